"""Sources of operations that move elements, and of contractions, under Triton's interpreter, against their
REFERENCE rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infini import lax
from infini.core import dtypes, primitive, trace
from infini.lax import contraction
from infini.lax.indexing import KINDS, GatherDimensionNumbers, ScatterDimensionNumbers
from tests.compiler import triton_kernels as k

pytest.importorskip("triton")
from infini.compiler.triton import interpret, matmul, movement  # after the skip

SOURCES = {
    "concatenate": movement.concatenate,
    "dynamic_slice": movement.dynamic_slice,
    "dynamic_update_slice": movement.dynamic_update_slice,
    "gather": movement.gather,
    "pad": movement.pad,
} | {name: movement.scatter(name) for name in KINDS}
UPDATES = {"dynamic_update_slice", *KINDS}


def check(function: Any, *arrays: np.ndarray) -> None:
    """The one equation of a traced function gives the same by its sources as by its REFERENCE rule."""
    program = trace.stage(lambda *xs: [function(*xs)], k.types(*arrays)).program
    (equation,) = program.equations
    env = dict(zip(program.params, arrays, strict=True)) | {v: c.array for v, c in program.consts}
    operands = [env[v] for v in equation.inputs]
    name, out = equation.op.name, equation.output.type
    types = [v.type for v in equation.inputs]
    result = operands[0].copy() if name in UPDATES else np.zeros(out.shape, out.dtype)
    scratch = np.zeros(movement.scratch_bytes(name, types), np.uint8)
    memory = {f"x{i}": x for i, x in enumerate(operands)} | {"y0": result, "scratch": scratch}
    for source in SOURCES[name](types, equation.attrs):
        interpret.launch(
            source,
            [np.ascontiguousarray(memory[p]) if p[0] == "x" else memory[p] for p, _ in source.signature],
        )
    expected = equation.op.rule(primitive.REFERENCE)(*operands, **equation.attrs)
    np.testing.assert_array_equal(result.astype(np.float64), np.asarray(expected).astype(np.float64))


X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float8_e5m2, dtypes.bool_], ids=str)
def test_concatenate_many(dtype: np.dtype, axis: int, rng: Any) -> None:
    sizes = (3, 1, 4, 0, 2)
    shapes = [tuple(n if d == axis + 3 else (2, 5, 3)[d] for d in range(3)) for n in sizes]
    op = primitive.by_name("concatenate")
    arrays = [k.numbers(rng, shape, dtype) for shape in shapes]
    check(lambda *xs: trace.bind1(op, *xs, axis=axis), *arrays)


@pytest.mark.parametrize("starts", [(0, 1, 2), (2, 3, 4), (9, 0, 0)], ids=str)
def test_dynamic_slice_clamps(starts: tuple[int, ...]) -> None:
    at = [np.asarray(s, np.int32) for s in starts]
    op = primitive.by_name("dynamic_slice")
    check(lambda x, *s: trace.bind1(op, x, *s, slice_sizes=(2, 2, 3)), X, *at)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.bool_], ids=str)
def test_dynamic_update_slice(dtype: np.dtype) -> None:
    update = np.ones((2, 1, 3), dtype)
    at = [np.asarray(s, np.int32) for s in (1, 2, 9)]
    op = primitive.by_name("dynamic_update_slice")
    check(lambda x, u, *s: trace.bind1(op, x, u, *s), (X % 2).astype(dtype), update, *at)


ROWS = GatherDimensionNumbers((1,), (0,), (0,))
BATCHED = GatherDimensionNumbers((1,), (1,), (1,), (0,), (0,))


@pytest.mark.parametrize("mode", ["clip", "fill"])
@pytest.mark.parametrize(
    "dtype",
    [dtypes.float32, dtypes.bfloat16, dtypes.int32, dtypes.uint8, dtypes.bool_, dtypes.float8_e5m2],
    ids=str,
)
def test_gather_of_rows(dtype: np.dtype, mode: str) -> None:
    table = (np.arange(28).reshape(7, 4) % 3).astype(dtype)
    indices = np.array([[3], [0], [-1], [7], [6]], np.int32)
    op = primitive.by_name("gather")
    attrs = {"dimension_numbers": ROWS, "slice_sizes": (1, 4), "mode": mode, "unique_indices": False}
    fill = 1 if dtype != dtypes.float32 else None
    check(lambda x, i: trace.bind1(op, x, i, **attrs, fill_value=0 if fill is None else fill), table, indices)


def test_gather_with_batching_dimensions_and_windows() -> None:
    indices = np.array([[2], [0], [3]], np.int64)
    op = primitive.by_name("gather")
    attrs = {"dimension_numbers": BATCHED, "slice_sizes": (1, 1, 5), "mode": "clip", "fill_value": None}
    attrs["unique_indices"] = False
    check(lambda x, i: trace.bind1(op, x, i, **attrs), X, indices)
    windows = GatherDimensionNumbers((0, 2, 3), (), (0, 2))
    attrs |= {"dimension_numbers": windows, "slice_sizes": (2, 4, 2)}
    check(lambda x, i: trace.bind1(op, x, i, **attrs), X, np.array([[0, 1], [1, 3]], np.int32))


SCATTER_ROWS = ScatterDimensionNumbers((1,), (0,), (0,))
SMALL = (dtypes.bfloat16, dtypes.float16, dtypes.uint8, dtypes.int16)


@pytest.mark.parametrize("is_unique", [False, True], ids=["repeated", "unique"])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.int32, *SMALL], ids=str)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.combine])
def test_scatters_combine_rows(name: str, dtype: np.dtype, is_unique: bool, rng: Any) -> None:
    x, updates = (rng.integers(1, 5, shape).astype(dtype) for shape in ((7, 4), (5, 4)))
    if dtype in dtypes.FLOATS and name in ("scatter_min", "scatter_max"):
        x[3, 1] = updates[1, 2] = np.nan
    indices = np.array([[3], [0], [6 if is_unique else 3], [7], [-1]], np.int32)
    op = primitive.by_name(name)
    attrs = {"dimension_numbers": SCATTER_ROWS, "mode": "fill", "unique_indices": is_unique}
    check(lambda x, i, u: trace.bind1(op, x, i, u, **attrs), x, indices, updates)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bool_, dtypes.float8_e4m3fn], ids=str)
def test_scatter_writes_rows(dtype: np.dtype, rng: Any) -> None:
    x, updates = (rng.integers(0, 3, shape).astype(dtype) for shape in ((7, 4), (3, 4)))
    indices = np.array([[5], [0], [9]], np.int32)
    op = primitive.by_name("scatter")
    attrs = {"dimension_numbers": SCATTER_ROWS, "mode": "clip", "unique_indices": False}
    check(lambda x, i, u: trace.bind1(op, x, i, u, **attrs), x, indices, updates)


@pytest.mark.parametrize(
    "config", [((1, 2, 1), (0, 1, 2)), ((-1, 0, 0), (2, -1, 1)), ((0, -2, 1), (0, 0, 0))], ids=str
)
def test_pad_with_elements_between(config: Any) -> None:
    check(lambda x: lax.pad(x, np.float32(7), config), X[0])


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.float64, dtypes.int32], ids=str)
@pytest.mark.parametrize(
    ("spec", "x_shape", "y_shape"),
    [
        ("mk,kn->mn", (70, 40), (40, 20)),
        ("km,nk->nm", (33, 17), (18, 33)),
        ("bhqd,bhkd->bhqk", (2, 3, 20, 8), (2, 3, 24, 8)),
        ("bqhd,bkhd->bhqk", (2, 20, 3, 8), (2, 24, 3, 8)),
        ("k,kn->n", (40,), (40, 20)),
        ("mij,ijn->mn", (18, 3, 20), (3, 20, 17)),
        ("ij,ij->", (5, 20), (5, 20)),
        ("m,n->mn", (30,), (20,)),
    ],
)
def test_contraction_kernel(spec: str, x_shape: Any, y_shape: Any, dtype: np.dtype, rng: Any) -> None:
    x, y = k.numbers(rng, x_shape, dtype), k.numbers(rng, y_shape, dtype)
    kernel = matmul.matmul_kernel(*k.types(x, y), spec, dtype)
    (found,) = interpret.interpret(k.source_of(kernel, x, y), [x, y], kernel.outputs)
    expected = contraction.dot_p.rule(primitive.REFERENCE)(x, y, spec=spec, dtype=dtype)
    tolerance = {"float32": 1e-4, "bfloat16": 1e-2}.get(dtype.name, 1e-12)
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=10 * tolerance
    )
