"""Programs the compiler tests share, and their oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import infini.numpy as inp
from infini import lax
from infini.backends.reference import interpreter
from infini.core import dtypes, ir, trace
from infini.core.ir import ArrayType, Program


def f32(*shape: int) -> ArrayType:
    """A float32 type."""
    return ArrayType(shape, dtypes.float32)


def i32(*shape: int) -> ArrayType:
    """An int32 type."""
    return ArrayType(shape, dtypes.int32)


def program_of(f: Callable, *types: ArrayType) -> Program:
    """The program of a function of arrays."""

    def flat(*xs):
        found = f(*xs)
        return list(found) if isinstance(found, (tuple, list)) else [found]

    return trace.stage(flat, types).program


def inputs_for(types: Sequence[ArrayType], seed: int = 0) -> list[np.ndarray]:
    """Arrays of these types; integers are small and not negative."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 4, t.shape).astype(t.dtype)
        if t.dtype in dtypes.INTEGERS
        else (rng.standard_normal(t.shape) * 2).astype(t.dtype)
        for t in types
    ]


def evaluate(program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Results by the reference interpreter."""
    with np.errstate(all="ignore"):
        return interpreter.evaluate(program, inputs)


def ops(program: Program) -> list[str]:
    """Names of the operations in order."""
    return [equation.op.name for equation in program.equations]


def kernels(program: Program) -> list[ir.Equation]:
    """The kernel equations."""
    return [equation for equation in program.equations if equation.op.name == "kernel"]


def softmax(x):
    """Over the last axis."""
    u = inp.exp(x - x.max(axis=-1, keepdims=True))
    return u / u.sum(axis=-1, keepdims=True)


def layer_norm(x, scale, bias):
    """Over the last axis."""
    d = x - x.mean(axis=-1, keepdims=True)
    return d * lax.rsqrt((d * d).mean(axis=-1, keepdims=True) + 1e-5) * scale + bias


def cross_entropy(logits, labels):
    """Mean loss and the gradient of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = inp.exp(shifted).sum(axis=-1, keepdims=True)
    hot = inp.arange(logits.shape[-1]) == labels[:, None]
    losses = inp.log(total)[:, 0] - inp.where(hot, shifted, 0.0).sum(axis=-1)
    return losses.mean(), (inp.exp(shifted) / total - hot) / logits.shape[0]


def adam(p, m, v, g, rate):
    """One step of Adam."""
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return p - rate * m / (inp.sqrt(v) + 1e-8), m, v


def rope(x, cos, sin):
    """Rotary embedding of (B, T, H, D) by tables of (T, D / 2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return inp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
