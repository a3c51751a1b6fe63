"""Reductions, shapes, contractions and loops of emitted kernels under Triton's interpreter, against NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from infini.core import dtypes, errors, ir, trace
from infini.core.ir import ArrayType
from infini.lax import contraction, elementwise as e, loops, positions, reduction, view
from infini.tile.program import Access, Kernel
from tests.compiler import triton_kernels as k

pytest.importorskip("triton")

FLOATS = [dtypes.float32, dtypes.bfloat16, dtypes.float16]
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3, "float64": 1e-12}

# --- reductions ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, dtypes.int32, dtypes.int8, dtypes.uint32], ids=str)
@pytest.mark.parametrize("axes", [(-1,), (-2,), (-2, -1), (-3, -1)], ids=str)
@pytest.mark.parametrize(
    "op", [reduction.reduce_sum_p, reduction.reduce_max_p, reduction.reduce_min_p], ids=str
)
def test_reduction_of_a_padded_tile(op: Any, axes: tuple[int, ...], dtype: np.dtype, rng: Any) -> None:
    x = k.numbers(rng, (3, 5, 12), dtype)
    x = x if dtype != dtypes.int8 else (x // 16).astype(dtype)
    kernel = k.on_tiles(functools.partial(trace.bind1, op, axes=axes), *k.types(x))
    k.check(kernel, x, tolerance=TOLERANCES.get(dtype.name, 0.0))


@pytest.mark.parametrize("op", [reduction.reduce_max_p, reduction.reduce_min_p], ids=str)
def test_nan_wins_in_extrema(op: Any) -> None:
    x = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, -np.inf]], np.float32)
    k.check(k.on_tiles(functools.partial(trace.bind1, op, axes=(-1,)), *k.types(x)), x)


def test_extrema_of_booleans(rng: Any) -> None:
    x = k.numbers(rng, (4, 3), dtypes.bool_)
    k.check(
        k.on_tiles(lambda x: (reduction.reduce_max(x, (1,)), reduction.reduce_min(x, (1,))), *k.types(x)), x
    )


def test_argmax_takes_the_first_of_equal_elements_and_any_nan() -> None:
    x = np.array([[1, 7, 7], [2, 0, 2], [3, np.nan, np.inf]], np.float32)
    k.check(k.on_tiles(lambda x: positions.argmax(x, 1, "int32"), *k.types(x)), x)


# --- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.int64, dtypes.bool_], ids=str)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: view.broadcast_in_dim(x, (3, 2, 5), (0, 2)),
        lambda x: view.transpose(x, (1, 0)),
        lambda x: view.reshape(x, (3, 1, 5, 1)),
        lambda x: view.transpose(view.reshape(x, (1, 3, 5)), (2, 0, 1)),
        lambda x: view.slice(x, (0, 0), (3, 5)),
    ],
    ids=["broadcast", "transpose", "unsqueeze", "permute", "whole slice"],
)
def test_shape(function: Any, dtype: np.dtype, rng: Any) -> None:
    x = k.numbers(rng, (3, 5), dtype)
    k.check(k.on_tiles(function, *k.types(x)), x)


def test_reshape_of_a_tile_without_padding(rng: Any) -> None:
    x = k.numbers(rng, (4, 8), dtypes.float32)
    k.check(k.on_tiles(lambda x: view.reshape(x, (2, 16)), *k.types(x)), x)


def test_reshape_of_a_padded_tile_is_refused_with_the_way_out(rng: Any) -> None:
    x = k.numbers(rng, (3, 5), dtypes.float32)
    kernel = k.on_tiles(lambda x: view.reshape(x, (5, 3)), *k.types(x))
    with pytest.raises(errors.LoweringError, match="powers of two"):
        k.source_of(kernel, x)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_scalars_and_tiles_of_one_element(shape: tuple[int, ...], rng: Any) -> None:
    x = k.numbers(rng, shape, dtypes.float32)

    def function(x: Any) -> Any:
        total = view.reshape(e.add(x, 1.0), ())
        return view.broadcast_in_dim(total, (3,), ()), view.reshape(total, (1, 1))

    k.check(k.on_tiles(function, *k.types(x)), x)


@pytest.mark.parametrize("dtype", [dtypes.int32, dtypes.float32, dtypes.bfloat16], ids=str)
def test_iota(dtype: np.dtype) -> None:
    k.check(k.on_tiles(lambda: (view.iota(dtype, 5), view.broadcasted_iota(dtype, (3, 5), 0))))


def test_constant_of_different_numbers() -> None:
    table = np.array([[1.5, -2.0, 0.25], [8.0, np.inf, 0.0]], np.float32)
    k.check(k.on_tiles(lambda: e.add(table, 0.0)))


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 1.702, 1e-40, 0.0], ids=str)
@pytest.mark.parametrize("target", [dtypes.bfloat16, dtypes.float16, dtypes.float32, dtypes.float64], ids=str)
def test_constants_that_are_converted_and_repeated(number: float, target: np.dtype, rng: Any) -> None:
    x = k.numbers(rng, (3, 5), target)

    def function(x: Any) -> Any:
        constant = trace.bind1(e.convert_element_type_p, np.float32(number), new_dtype=target)
        return e.max(x, view.broadcast_in_dim(constant, (3, 5), ())), e.mul(
            x, view.full((3, 5), number, target)
        )

    k.check(k.on_tiles(function, *k.types(x)), x)


@pytest.mark.parametrize("number", [0, 3, -5, 2**31 - 1])
@pytest.mark.parametrize("dtype", [dtypes.int8, dtypes.uint8, dtypes.int32, dtypes.uint32], ids=str)
def test_arithmetic_with_constants_keeps_the_dtype(dtype: np.dtype, number: int, rng: Any) -> None:
    value = np.array(number).astype(dtype)
    x = k.numbers(rng, (40,), dtype)
    operations = (
        e.add,
        e.sub,
        e.mul,
        e.div,
        e.rem,
        e.max,
        e.bitwise_xor,
        e.shift_left,
        e.shift_right_arithmetic,
    )

    def function(x: Any) -> Any:
        return tuple(f(*pair) for f in operations for pair in ((x, value), (value, x)))

    k.check(k.on_tiles(function, *k.types(x)), x)


def test_a_dtype_without_a_triton_form_is_refused() -> None:
    kernel = k.on_tiles(lambda x: e.add(x, x), ArrayType((4,), dtypes.complex64))
    with pytest.raises(errors.LoweringError, match="c64"):
        k.source_of(kernel, np.zeros(4, np.complex64))


def test_an_operation_without_a_route_names_the_routes_tried() -> None:
    x = np.zeros((4,), np.float32)
    kernel = k.on_tiles(lambda x: view.rev(x, (0,)), *k.types(x))
    with pytest.raises(errors.LoweringError, match="routes tried"):
        k.source_of(kernel, x)


# --- contractions ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, dtypes.int8], ids=str)
@pytest.mark.parametrize(
    ("spec", "x_shape", "y_shape"),
    [
        ("mk,kn->mn", (32, 20), (20, 16)),
        ("mk,nk->mn", (16, 24), (40, 24)),
        ("km,kn->nm", (17, 16), (17, 32)),
        ("bmk,bkn->bmn", (2, 16, 16), (2, 16, 16)),
        ("mk,k->m", (5, 30), (30,)),
        ("m,n->mn", (3,), (7,)),
        ("k,k->", (30,), (30,)),
        ("mk,kn->mn", (2, 3), (3, 4)),
    ],
)
def test_contraction(spec: str, x_shape: Any, y_shape: Any, dtype: np.dtype, rng: Any) -> None:
    x, y = k.numbers(rng, x_shape, dtype), k.numbers(rng, y_shape, dtype)
    result = dtypes.int32 if dtype == dtypes.int8 else dtypes.float32
    kernel = k.on_tiles(
        lambda x, y: contraction.contract(spec, x, y, preferred_element_type=result), *k.types(x, y)
    )
    k.check(kernel, x, y, tolerance=1e-5)


def test_float32_products_are_exact_not_tf32(rng: Any) -> None:
    x = k.numbers(rng, (16, 16), dtypes.float32)
    kernel = k.on_tiles(lambda x: contraction.dot(x, x), *k.types(x))
    assert 'input_precision="ieee"' in k.source_of(kernel, x).text


def test_contraction_too_large_to_multiply_out_is_refused() -> None:
    x = ArrayType((8, 64, 8, 64), dtypes.float32)
    kernel = k.on_tiles(lambda x: contraction.contract("abcd,aecf->bdef", x, x), x)
    with pytest.raises(errors.LoweringError, match="matrix unit"):
        k.source_of(kernel, np.zeros(x.shape, np.float32))


# --- loops -----------------------------------------------------------------------------------


def _walked(function: Any, steps: int, size: int, dtype: np.dtype) -> Kernel:
    """A kernel of one program whose operand of shape (steps, size) is walked step by step."""
    type_ = ArrayType((steps, size), dtype)
    kernel = k.on_tiles(function, type_)
    (load,) = kernel.loads
    walked = Access(load.tile, load.grid_strides, load.tile_strides, load.offsets, load.fill, levels=1)
    return Kernel(kernel.grid, (walked,), kernel.stores, kernel.outputs, kernel.body)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_walks_levels(reverse: bool, rng: Any) -> None:
    x = k.numbers(rng, (5, 12), dtypes.float32)

    def function(x: Any) -> Any:
        step = lambda carry, row: (e.add(e.mul(carry, 0.5), row), None)  # noqa: E731
        return loops.scan(step, view.full((12,), 0.0, "float32"), x, reverse=reverse)[0]

    kernel = _walked(function, 5, 12, dtypes.float32)
    assert k.source_of(kernel, x).text.count("tl.load") == 1
    k.check(kernel, x, tolerance=1e-6)


def test_carries_that_trade_places(rng: Any) -> None:
    x = k.numbers(rng, (3, 8), dtypes.float32)

    def function(x: Any) -> Any:
        start = (view.full((8,), 1.0, "float32"), view.full((8,), 2.0, "float32"))
        return loops.scan(lambda c, row: ((c[1], e.add(c[0], row)), None), start, x)[0]

    k.check(_walked(function, 3, 8, dtypes.float32), x)


def test_a_counter_is_walked_without_a_load(rng: Any) -> None:
    x = k.numbers(rng, (4, 8), dtypes.float32)

    def function(x: Any) -> Any:
        def step(total: Any, at: Any) -> Any:
            number, row = at
            return e.add(total, e.mul(row, e.convert_element_type(number, "float32"))), None

        return loops.scan(step, view.full((8,), 0.0, "float32"), (view.iota("int32", 4), x))[0]

    k.check(_walked(function, 4, 8, dtypes.float32), x, tolerance=1e-6)


def test_one_level_is_loaded_by_a_static_index(rng: Any) -> None:
    x = k.numbers(rng, (4, 8), dtypes.float32)
    function = lambda x: view.reshape(view.slice(x, (2, 0), (3, 8)), (8,))  # noqa: E731
    k.check(_walked(function, 4, 8, dtypes.float32), x)


def test_stacked_results_of_a_loop_are_refused() -> None:
    function = lambda x: loops.scan(lambda c, row: (c, row), view.full((8,), 0.0, "float32"), x)[1]  # noqa: E731
    with pytest.raises(errors.LoweringError, match="stack"):
        k.source_of(_walked(function, 4, 8, dtypes.float32), np.zeros((4, 8), np.float32))


# --- grids and extents -----------------------------------------------------------------------


def _rows(grid: tuple[int, ...], extents: tuple[tuple[int, int, int], ...] = ()) -> Kernel:
    """Programs over a (6, 4, 10) array, one row each, that double it."""
    type_ = ArrayType((6, 4, 10), dtypes.float32)
    params = [ir.Var(ArrayType((10,), dtypes.float32)), *(ir.Var(ArrayType((), dtypes.int32)) for _ in grid)]
    builder = ir.Builder()
    doubled = builder.emit1(e.add_p, [params[0], params[0]])
    moves = ((1, 0), (0, 1), (0, 0))
    access = Access((10,), moves, ((0,), (0,), (1,)), (0, 0, 0))
    return Kernel(grid, (access,), (access,), (type_,), builder.build(params, [doubled]), extents)


def test_a_grid_of_two_dimensions_is_folded(rng: Any) -> None:
    x = k.numbers(rng, (6, 4, 10), dtypes.float32)
    source = k.source_of(_rows((6, 4)), x)
    assert source.grid == (24,)
    k.check(_rows((6, 4)), x)


def test_programs_beyond_an_extent_return(rng: Any) -> None:
    x = k.numbers(rng, (6, 4, 10), dtypes.float32)
    k.check(_rows((6, 4), extents=((0, 2, 1),)), x, np.asarray(7, np.int32))


def test_offsets_beyond_32_bits_are_computed_in_64() -> None:
    size = 1 << 20
    access = Access((16,), ((1,), (0,)), ((0,), (1,)), (0, 0))
    params = [ir.Var(ArrayType((16,), dtypes.int8)), ir.Var(ArrayType((), dtypes.int32))]
    type_ = ArrayType((1 << 13, size), dtypes.int8)
    kernel = Kernel((1 << 13,), (access,), (access,), (type_,), ir.Builder().build(params, params[:1]))
    from infini.compiler.triton.emit import emit_triton

    assert f"pid.to(tl.int64) * {size}" in emit_triton(kernel, [type_]).text
