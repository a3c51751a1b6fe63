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


def random_function(seed):
    """A function of three arrays: random elementwise operations, views, reductions, products and loops."""

    def f(*arrays):
        rng = np.random.default_rng(seed)
        values = [*arrays]
        for _ in range(rng.integers(6, 28)):
            x, y = (values[i] for i in rng.integers(max(0, len(values) - 8), len(values), 2))
            try:
                value = _random_step(rng, x, y)
            except (TypeError, ValueError):  # shapes that do not go together
                continue
            if value is not None and value.size < 20000:
                values.append(value)
        made = values[3:] or [arrays[0]]
        chosen = sorted(set(rng.integers(0, len(made), rng.integers(1, len(made) + 1)).tolist()))
        return [made[i] for i in chosen]

    return f


def _random_step(rng, x, y):
    """One operation, or None when the choice does not apply."""
    axis = int(rng.integers(0, x.ndim)) if x.ndim else 0
    is_array, is_matrix = x.ndim > 0, x.ndim == 2 == y.ndim
    choices = [
        (True, lambda: inp.tanh(x)),
        (True, lambda: x * 0.5 + y),
        (True, lambda: x - y * 0.25),
        (True, lambda: inp.where(x > y, x, y * 0.5)),
        (is_array, lambda: x.sum(axis=axis, keepdims=bool(rng.integers(0, 2))) * 0.3),
        (is_array, lambda: x - x.max(axis=axis, keepdims=True)),
        (is_array, lambda: inp.mean(x * x, axis=-1, keepdims=True) + x),
        (is_array, lambda: inp.swapaxes(x, axis, -1)),
        (is_array, lambda: inp.broadcast_to(x[..., None], (*x.shape, 3))),
        (is_array, lambda: inp.pad(x, [(1, 0)] * x.ndim)),
        (is_array, lambda: inp.concatenate([x, y * 2.0], axis=-1)),
        (is_array, lambda: lax.rev(x, (axis,))),
        (is_array, lambda: x[..., 1:]),
        (is_array, lambda: lax.scan(lambda c, r: (c * 0.5 + r, inp.exp(-inp.abs(c))), x[0], x)[1]),
        (is_matrix, lambda: x @ y * 0.1),
        (True, lambda: x.reshape(-1)),
        (x.size % 6 == 0, lambda: x.reshape(6, -1)),
        (x.size % 8 == 0, lambda: x.reshape(2, 4, -1)),
        (True, lambda: lax.fori_loop(0, 2, lambda i, c: c * 0.9 + 0.1, x)),
    ]
    applies, make = choices[int(rng.integers(0, len(choices)))]
    return make() if applies and x.size else None
