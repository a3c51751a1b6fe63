"""Kernels of one operation, and the comparison of Triton's interpreter with the NumPy oracle, for the tests
of the emitter.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.backends.reference.interpreter import evaluate
from infini.compiler.triton.emit import emit_triton
from infini.compiler.triton.source import TritonSource
from infini.core import dtypes, ir, trace
from infini.core.ir import ArrayType
from infini.tile import program as kernel_


def on_tiles(
    function: Callable[..., Any], *shapes: ArrayType, grid: tuple[int, ...] = (1,)
) -> kernel_.Kernel:
    """The kernel whose every program applies `function` to whole arrays as tiles."""

    def run(*args: Any) -> Sequence[Any]:
        found = function(*args[: len(shapes)])
        return found if isinstance(found, tuple) else (found,)

    ids = [ArrayType((), dtypes.int32)] * len(grid)
    body = trace.stage(run, [*shapes, *ids], name="body").program
    whole = kernel_.Access.whole
    return kernel_.Kernel(
        grid,
        tuple(whole(t.shape, len(grid)) for t in shapes),
        tuple(whole(t.shape, len(grid)) for t in body.out_types),
        body.out_types,
        body,
    )


def types(*arrays: np.ndarray) -> list[ArrayType]:
    """Types of arrays."""
    return [ArrayType(a.shape, a.dtype) for a in arrays]


def oracle(kernel: kernel_.Kernel, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Results by NumPy."""
    return kernel_.interpret(kernel, arrays, evaluate)


def source_of(kernel: kernel_.Kernel, *arrays: np.ndarray) -> TritonSource:
    """The Triton source for operands like these."""
    return emit_triton(kernel, types(*arrays))


def check(kernel: kernel_.Kernel, *arrays: np.ndarray, tolerance: float = 0.0) -> None:
    """Triton's interpreter gives what NumPy gives.

    Args:
        kernel: the kernel.
        *arrays: operands.
        tolerance: largest difference relative to 1 or to the value, whichever is larger.
    """
    from infini.compiler.triton import interpret

    found = interpret.interpret(source_of(kernel, *arrays), arrays, kernel.outputs)
    for got, wanted in zip(found, oracle(kernel, *arrays), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        if dtypes.is_float(got.dtype):
            np.testing.assert_allclose(
                got.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance
            )
        else:
            np.testing.assert_array_equal(got, wanted)


def numbers(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, span: Any = None
) -> np.ndarray:
    """Random operands: uniform in a span for floats, everything a few bits hold for the others."""
    if dtype == dtypes.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if dtypes.is_integer(dtype):
        low, high = (0, 8) if span is not None and span.high <= 7 and span.low >= 0 else (-100, 100)
        if dtype in dtypes.UNSIGNED:
            low = 0
        return rng.integers(low, high, shape).astype(dtype)
    low, high = (-4.0, 4.0) if span is None else (span.low, span.high)
    return rng.uniform(low, high, shape).astype(dtype)


def statements(text: str) -> list[str]:
    """The simple statements of a text, each on one line and without comments."""
    nodes = ast.walk(ast.parse(text))
    return [ast.unparse(node) for node in nodes if isinstance(node, (ast.Assign, ast.Expr, ast.AugAssign))]


def attrs_of(**attrs: object) -> ir.Attrs:
    """Attributes of an equation."""
    return ir.Attrs(attrs)
