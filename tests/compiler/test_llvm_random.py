"""Random kernels by native code, against the NumPy oracle: bodies mix what the fuser mixes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings, strategies as st

from infini.core import dtypes, trace
from infini.core.ir import ArrayType
from infini.lax import elementwise as e, reduction, view
from infini.tile.program import Access, Kernel
from tests.compiler import llvm_kernels as k

DTYPES = [dtypes.float32, dtypes.bfloat16, dtypes.int32, dtypes.float64]
TOLERANCES = {"float32": 2e-5, "bfloat16": 3e-2, "float64": 1e-11}
BINARY = [e.add_p, e.sub_p, e.mul_p, e.max_p, e.min_p]
UNARY = [e.neg_p, e.abs_p, e.sign_p]
FLOAT_UNARY = [e.tanh_p, e.logistic_p, e.sin_p, e.floor_p]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Any, tuple[int, ...], np.dtype]:
    """A function of two tiles, given as a list of steps, with the shape and dtype of the tiles."""
    rank = draw(st.integers(1, 3))
    shape = tuple(
        draw(st.sampled_from([1, 2, 5, 16, 37] if d == rank - 1 else [1, 3, 4])) for d in range(rank)
    )
    dtype = draw(st.sampled_from(DTYPES))
    kinds = st.sampled_from(["binary", "unary", "select", "reduce", "iota", "convert"])
    steps = draw(st.lists(st.tuples(kinds, *[st.integers(0, 1 << 20)] * 3), min_size=2, max_size=9))

    def run(x: Any, y: Any) -> tuple[Any, ...]:
        values = [x, y]
        for kind, a, b, c in steps:
            first, second = values[a % len(values)], values[b % len(values)]
            values.append(step(kind, first, second, c, shape, dtype))
        return values[-1], values[len(values) // 2]

    return run, shape, dtype


def step(kind: str, x: Any, y: Any, choice: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    unary = UNARY + (FLOAT_UNARY if dtype in dtypes.FLOATS else [])
    if kind == "binary":
        return trace.bind1(BINARY[choice % len(BINARY)], x, y)
    if kind == "unary":
        return trace.bind1(unary[choice % len(unary)], x)
    if kind == "select":
        return trace.bind1(e.select_n_p, trace.bind1(e.lt_p, x, y), y, x)
    if kind == "iota":
        return trace.bind1(e.add_p, x, view.broadcasted_iota(dtype, shape, choice % len(shape)))
    if kind == "convert":
        return e.convert_element_type(e.convert_element_type(x, dtypes.float32), dtype)
    axes = tuple(d - len(shape) for d in range(len(shape)) if (choice >> d) & 1) or (-1,)
    op = [reduction.reduce_sum_p, reduction.reduce_max_p, reduction.reduce_min_p][choice % 3]
    # Scaled down, so that sums of sums stay where a tolerance means something.
    reduced = trace.bind1(op, trace.bind1(e.sign_p, x) if op is reduction.reduce_sum_p else x, axes=axes)
    return reduction.expand_reduced(reduced, axes, shape)


@settings(max_examples=120)
@given(bodies(), st.integers(1, 3), st.booleans(), st.integers(0, 1 << 30))
def test_random_kernel(
    body: tuple[Any, tuple[int, ...], np.dtype], programs: int, is_cut: bool, seed: int
) -> None:
    run, shape, dtype = body
    rng = np.random.default_rng(seed)
    tile = ArrayType(shape, dtype)
    # Programs lie side by side along the last dimension; the last one may reach beyond the array.
    size = shape[-1] * programs - (1 if is_cut and shape[-1] * programs > 1 else 0)
    array = (*shape[:-1], size)
    rows = tuple((shape[-1] if d == len(shape) - 1 else 0,) for d in range(len(shape)))
    identity = tuple(tuple(int(i == j) for j in range(len(shape))) for i in range(len(shape)))
    access = Access(shape, rows, identity, (0,) * len(shape), 1 if is_cut else None)
    outputs = (ArrayType(array, dtype),) * 2
    kernel = Kernel((programs,), (access,) * 2, (access,) * 2, outputs, k.body_of(run, [tile, tile], 1))
    operands = [rng.integers(-3, 4, array).astype(dtype) for _ in range(2)]
    k.check(kernel, *operands, tolerance=TOLERANCES.get(dtype.name, 0.0))
