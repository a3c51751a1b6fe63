"""Reductions, views, rows, columns, edges and grids of kernels by native code, against the oracle."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest

from infini.compiler.llvm import kernels
from infini.compiler.llvm.target import Target, host_target, make_target
from infini.core import dtypes, errors, ir, trace
from infini.core.ir import ArrayType
from infini.lax import contraction, elementwise as e, families, loops, positions, reduction, sorting, view
from infini.lax.families import bind_scalars
from infini.tile.program import Access, Kernel
from tests.compiler import llvm_kernels as k

TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-12}
DOTS = [
    ("mk,kn->mn", (7, 9), (9, 37)),
    ("mk,nk->mn", (4, 8), (5, 8)),
    ("k,k->", (9,), (9,)),
    ("k,kn->n", (9,), (9, 20)),
    ("bmk,bkn->bmn", (3, 5, 6), (3, 6, 4)),
    ("mk,kn->mn", (2, 1, 3, 4), (5, 4, 6)),
    ("mk,kn->nm", (7, 9), (9, 3)),
]
REDUCTIONS = [reduction.reduce_sum_p, reduction.reduce_max_p, reduction.reduce_min_p]


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype == dtypes.bool_:
        return rng.random(shape) < 0.5
    high = 4 if dtype in dtypes.FLOATS else 20
    return rng.uniform(0 if dtype in dtypes.UNSIGNED else -high, high, shape).astype(dtype)


def softmax(x: Any) -> Any:
    largest = trace.bind1(reduction.reduce_max_p, x, axes=(-1,))
    powers = e.exp(e.sub(x, reduction.expand_reduced(largest, (-1,), x.shape)))
    total = trace.bind1(reduction.reduce_sum_p, powers, axes=(-1,))
    return e.div(powers, reduction.expand_reduced(total, (-1,), x.shape))


def layer_norm(x: Any, gain: Any) -> Any:
    size = x.shape[-1]

    def mean(v: Any) -> Any:
        return bind_scalars(e.div_p, trace.bind1(reduction.reduce_sum_p, v, axes=(-1,)), float(size))

    centred = e.sub(x, families.broadcast_to(mean(x), x.shape))
    scale = e.rsqrt(bind_scalars(e.add_p, mean(e.mul(centred, centred)), 1e-5))
    return e.mul(e.mul(centred, families.broadcast_to(scale, x.shape)), gain), scale


# --- reductions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.float16,
        dtypes.int32, dtypes.int8, dtypes.uint64,
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("axes", [(-1,), (-2,), (-3,), (-2, -1), (-3, -1), (-3, -2), (-3, -2, -1)], ids=str)
def test_reductions_of_a_tile(axes: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> None:
    x = numbers(rng, (3, 5, 37), dtype)
    kernel = k.on_tiles(lambda x: tuple(trace.bind1(op, x, axes=axes) for op in REDUCTIONS), *k.types(x))
    k.check(kernel, x, tolerance=TOLERANCES.get(dtype.name, 0.0))


@pytest.mark.parametrize("op", [reduction.reduce_max_p, reduction.reduce_min_p], ids=str)
@pytest.mark.parametrize("dtype", [dtypes.bool_, dtypes.uint8], ids=str)
def test_extrema_of_bool_and_unsigned(op: Any, dtype: np.dtype, rng: np.random.Generator) -> None:
    x = numbers(rng, (4, 100), dtype)
    k.check(k.on_tiles(functools.partial(trace.bind1, op, axes=(-1,)), *k.types(x)), x)


@pytest.mark.parametrize("place", [0, 17, 99])
def test_nan_wins_in_extrema(place: int) -> None:
    x = np.linspace(-3, 3, 100).astype(np.float32)
    x[place] = np.nan
    kernel = k.on_tiles(lambda x: tuple(trace.bind1(op, x, axes=(-1,)) for op in REDUCTIONS), *k.types(x))
    assert all(np.isnan(found) for found in k.run(kernel, x))


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.int16, dtypes.uint32], ids=str)
@pytest.mark.parametrize("axis", [-1, -2])
def test_argmax_is_the_first_of_equals(axis: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    x = rng.integers(0, 4, (6, 75)).astype(dtype)
    kernel = k.on_tiles(
        lambda x: trace.bind1(positions.argmax_p, x, axis=axis, index_dtype=dtypes.int32), *k.types(x)
    )
    k.check(kernel, x)


def test_argmax_counts_nan_as_largest() -> None:
    x = np.linspace(0, 1, 50).astype(np.float32)
    x[[20, 30]] = np.nan
    kernel = k.on_tiles(
        lambda x: trace.bind1(positions.argmax_p, x, axis=-1, index_dtype=dtypes.int32), *k.types(x)
    )
    assert k.run(kernel, x)[0] == 20


# --- views -----------------------------------------------------------------------------------


VIEWS = {
    "transpose": lambda x: view.transpose(x, (2, 0, 1)),
    "slice": lambda x: view.slice(x, (1, 0, 3), (4, 6, 30), (1, 2, 3)),
    "rev": lambda x: view.rev(x, (0, 2)),
    "broadcast": lambda x: families.broadcast_to(x, (2, *x.shape)),
    "join": lambda x: view.reshape(x, (4, 6 * 33)),
    "split": lambda x: view.reshape(x, (4, 2, 3, 33)),
    "squeeze": lambda x: view.reshape(x, (4, 1, 6, 33, 1)),
    "shuffle": lambda x: view.reshape(view.transpose(x, (1, 0, 2)), (33, 24)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_view_of_a_computed_value(name: str, rng: np.random.Generator) -> None:
    x = numbers(rng, (4, 6, 33), dtypes.float32)
    k.check(k.on_tiles(lambda x: e.add(VIEWS[name](e.mul(x, x)), 1.0), *k.types(x)), x)


@pytest.mark.parametrize("dtype", [dtypes.int32, dtypes.float32, dtypes.bfloat16, dtypes.uint8], ids=str)
@pytest.mark.parametrize("dimension", [0, 1])
def test_iota(dimension: int, dtype: np.dtype) -> None:
    x = np.ones((5, 40), dtype)
    kernel = k.on_tiles(lambda x: e.add(x, view.broadcasted_iota(dtype, (5, 40), dimension)), *k.types(x))
    k.check(kernel, x)


def test_constant_array(rng: np.random.Generator) -> None:
    x = numbers(rng, (20,), dtypes.float32)
    table = np.arange(20, dtype=np.float32) ** 2
    k.check(k.on_tiles(lambda x: e.mul(x, trace.as_value(table)), *k.types(x)), x)


# --- shapes of the fuser -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, block", [(1, 1), (7, 16), (100, 64), (4096, 512), (10_007, 1024), (70_000, 4096)]
)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.int8], ids=str)
def test_blocks_of_a_vector(size: int, block: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    x, y = numbers(rng, (size,), dtype), numbers(rng, (size,), dtype)
    kernel = k.blocks(lambda x, y: (e.mul(e.add(x, y), y), e.lt(x, y)), size, block, dtype, dtype)
    k.check(kernel, x, y)


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 100, 1000, 1024, 5000])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
def test_softmax_of_rows(columns: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    x = numbers(rng, (9, columns), dtype)
    k.check(k.rows(softmax, 9, *k.types(x)), x, tolerance=TOLERANCES[dtype.name])


@pytest.mark.parametrize("columns", [8, 257, 1024])
def test_layer_norm_of_rows(columns: int, rng: np.random.Generator) -> None:
    x, gain = numbers(rng, (11, columns), dtypes.float32), numbers(rng, (columns,), dtypes.float32)
    k.check(k.rows(layer_norm, 11, *k.types(x, gain)), x, gain, tolerance=1e-5)


def test_rows_longer_than_the_stack(rng: np.random.Generator) -> None:
    x = numbers(rng, (2, 300_000), dtypes.float32)
    k.check(k.rows(softmax, 2, *k.types(x)), x, tolerance=1e-5)


@pytest.mark.parametrize("num_rows", [1, 3, 500])
@pytest.mark.parametrize("size, block", [(64, 64), (300, 128), (1000, 256), (5, 8)])
def test_sums_of_columns(num_rows: int, size: int, block: int, rng: np.random.Generator) -> None:
    x = numbers(rng, (num_rows, size), dtypes.float32)
    fill = 0 if size % block else None
    tile = ArrayType((num_rows, block), dtypes.float32)
    body = k.body_of(lambda x: trace.bind1(reduction.reduce_sum_p, e.mul(x, x), axes=(-2,)), [tile], 1)
    load = Access(tile.shape, ((0,), (block,)), ((1, 0), (0, 1)), (0, 0), fill)
    store = Access((block,), ((block,),), ((1,),), (0,), fill)
    kernel = Kernel((-(-size // block),), (load,), (store,), (ArrayType((size,), dtypes.float32),), body)
    k.check(kernel, x, tolerance=1e-5)


def test_columns_centred_by_their_mean(rng: np.random.Generator) -> None:
    x = numbers(rng, (40, 32), dtypes.float32)

    def centred(x: Any) -> Any:
        return e.sub(x, families.broadcast_to(trace.bind1(reduction.reduce_sum_p, x, axes=(-2,)), x.shape))

    k.check(k.on_tiles(centred, *k.types(x)), x, tolerance=1e-5)


# --- grids and accesses -------------------------------------------------------------------------


def test_program_ids_are_operands_of_the_body(rng: np.random.Generator) -> None:
    x = numbers(rng, (3, 4, 5), dtypes.int32)
    body = k.body_of(
        lambda x, i, j: e.add(
            x, families.broadcast_to(bind_scalars(e.add_p, bind_scalars(e.mul_p, i, 100), j), (5,))
        ),
        [ArrayType((5,), dtypes.int32)],
        2,
    )
    access = Access((5,), ((1, 0), (0, 1), (0, 0)), ((0,), (0,), (1,)), (0, 0, 0))
    k.check(Kernel((3, 4), (access,), (access,), (ArrayType(x.shape, x.dtype),), body), x)


@pytest.mark.parametrize("offset", [-3, 0, 3])
def test_fill_on_every_side(offset: int, rng: np.random.Generator) -> None:
    x = numbers(rng, (20, 30), dtypes.float32)
    body = k.body_of(lambda x: e.mul(x, 2.0), [ArrayType((8, 16), dtypes.float32)], 2)
    load = Access((8, 16), ((8, 0), (0, 16)), ((1, 0), (0, 1)), (offset, offset), 7.0)
    store = Access((8, 16), ((8, 0), (0, 16)), ((1, 0), (0, 1)), (0, 0), 0)
    k.check(Kernel((3, 2), (load,), (store,), (ArrayType(x.shape, x.dtype),), body), x)


def test_one_element_outside_is_filled(rng: np.random.Generator) -> None:
    x = numbers(rng, (5,), dtypes.float32)
    body = k.body_of(lambda x: e.add(x, 1.0), [ArrayType((), dtypes.float32)], 1)
    load = Access((), ((1,),), ((),), (-2,), 9.0)
    store = Access((), ((1,),), ((),), (0,))
    k.check(Kernel((8,), (load,), (store,), (ArrayType((8,), dtypes.float32),), body), x)


def test_strided_and_reversed_loads(rng: np.random.Generator) -> None:
    x = numbers(rng, (100,), dtypes.float32)
    body = k.body_of(lambda x, y: e.sub(x, y), [ArrayType((16,), dtypes.float32)] * 2, 1)
    even = Access((16,), ((0,),), ((3,),), (1,))
    back = Access((16,), ((0,),), ((-1,),), (99,))
    store = Access.whole((16,), 1)
    k.check(Kernel((1,), (even, back), (store,), (ArrayType((16,), dtypes.float32),), body), x, x)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 21])
@pytest.mark.parametrize(
    "dtype", [dtypes.float32, dtypes.float64, dtypes.int8, dtypes.bfloat16, dtypes.bool_]
)
@pytest.mark.parametrize("first", [0, 1])
def test_every_other_element(size: int, dtype: np.dtype, first: int, rng: np.random.Generator) -> None:
    """The last element that is read is the last of the array."""
    x = numbers(rng, (2 * size - 1 + first,), dtype)
    body = k.body_of(lambda x: e.convert_element_type(x, np.float32), [ArrayType((size,), dtype)], 1)
    load = Access((size,), ((0,),), ((2,),), (first,))
    store = Access.whole((size,), 1)
    k.check(Kernel((1,), (load,), (store,), (ArrayType((size,), dtypes.float32),), body), x)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.int8, dtypes.bfloat16])
@pytest.mark.parametrize("first", [-3, -2, 0, 5])
def test_every_other_element_outside_is_filled(first: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    x = numbers(rng, (39,), dtype)
    body = k.body_of(lambda x: e.convert_element_type(x, np.float32), [ArrayType((23,), dtype)], 1)
    load = Access((23,), ((0,),), ((2,),), (first,), 1.0)
    store = Access.whole((23,), 1)
    k.check(Kernel((1,), (load,), (store,), (ArrayType((23,), dtypes.float32),), body), x)


def test_store_across_the_rows(rng: np.random.Generator) -> None:
    x = numbers(rng, (12, 20), dtypes.float32)
    body = k.body_of(lambda x: e.exp(x), [ArrayType((20,), dtypes.float32)], 1)
    load = Access((20,), ((1,), (0,)), ((0,), (1,)), (0, 0))
    store = Access((20,), ((0,), (1,)), ((1,), (0,)), (0, 0))
    k.check(Kernel((12,), (load,), (store,), (ArrayType((20, 12), dtypes.float32),), body), x, tolerance=1e-6)


@pytest.mark.parametrize("extent", [0, 1, 5, 6, 12])
def test_extent_bounds_the_grid(extent: int, rng: np.random.Generator) -> None:
    x, bound = numbers(rng, (12, 8), dtypes.float32), np.array(extent, np.int32)
    body = k.body_of(lambda x: e.add(x, 1.0), [ArrayType((2, 8), dtypes.float32)], 1)
    access = Access((2, 8), ((2,), (0,)), ((1, 0), (0, 1)), (0, 0))
    kernel = Kernel((6,), (access,), (access,), (ArrayType(x.shape, x.dtype),), body, ((0, 2, 1),))
    (found,) = k.run(kernel, x, bound)
    np.testing.assert_array_equal(found[:extent], x[:extent] + 1)


def test_empty_grid_writes_nothing() -> None:
    x = np.zeros((0, 8), np.float32)
    kernel = k.rows(lambda x: e.add(x, 1.0), 0, *k.types(x))
    assert kernels.emit_kernel(kernel, k.types(x), host_target()).num_tasks == 0


# --- products and scans of tiles -----------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.int32, dtypes.bool_], ids=str
)
@pytest.mark.parametrize("spec, x, y", DOTS)
def test_dot_of_tiles(
    spec: str, x: tuple[int, ...], y: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator
) -> None:
    a, b = numbers(rng, x, dtype), numbers(rng, y, dtype)
    kernel = k.on_tiles(
        lambda a, b: trace.bind1(contraction.dot_p, a, b, spec=spec, dtype=dtype), *k.types(a, b)
    )
    k.check(kernel, a, b, tolerance=TOLERANCES.get(dtype.name, 0.0))


def test_dot_of_computed_tiles_and_what_follows(rng: np.random.Generator) -> None:
    a, b = numbers(rng, (6, 20), dtypes.float32), numbers(rng, (20, 18), dtypes.float32)

    def attend(a: Any, b: Any) -> Any:
        scores = trace.bind1(contraction.dot_p, e.tanh(a), b, spec="mk,kn->mn", dtype=dtypes.float32)
        return softmax(scores)

    k.check(k.on_tiles(attend, *k.types(a, b)), a, b, tolerance=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_of_tiles(reverse: bool, rng: np.random.Generator) -> None:
    xs, start, scale = (numbers(rng, s, dtypes.float32) for s in ((6, 20), (20,), ()))

    def run(xs: Any, start: Any, scale: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            total = e.add(e.mul(carry, families.broadcast_to(scale, (20,))), x)
            return total, trace.bind1(reduction.reduce_max_p, total, axes=(-1,))

        return loops.scan(step, start, xs, reverse=reverse)

    k.check(k.on_tiles(run, *k.types(xs, start, scale)), xs, start, scale, tolerance=1e-5)


def test_matrix_product_that_walks_over_a_level(rng: np.random.Generator) -> None:
    a, b = numbers(rng, (40, 32), dtypes.float32), numbers(rng, (32, 24), dtypes.float32)
    block = 8

    def product(a: Any, b: Any) -> Any:
        def step(total: Any, tiles: Any) -> Any:
            part = trace.bind1(contraction.dot_p, *tiles, spec="mk,kn->mn", dtype=dtypes.float32)
            return e.add(total, part), ()

        return loops.scan(step, families.zeros(ArrayType((block, block), dtypes.float32)), (a, b))[0]

    tile = ArrayType((4, block, block), dtypes.float32)
    body = k.body_of(product, [tile, tile], 2)
    load_a = Access(tile.shape, ((8, 0), (0, 0)), ((0, 1, 0), (8, 0, 1)), (0, 0), None, 1)
    load_b = Access(tile.shape, ((0, 0), (0, 8)), ((8, 1, 0), (0, 0, 1)), (0, 0), None, 1)
    store = Access((8, 8), ((8, 0), (0, 8)), ((1, 0), (0, 1)), (0, 0))
    kernel = Kernel((5, 3), (load_a, load_b), (store,), (ArrayType((40, 24), dtypes.float32),), body)
    k.check(kernel, a, b, tolerance=1e-5)


# --- what an assembly relies on ------------------------------------------------------------------


def test_equal_kernels_have_one_symbol() -> None:
    first, second = (k.rows(softmax, 4, ArrayType((4, 64), dtypes.float32)) for _ in range(2))
    types = [ArrayType((4, 64), dtypes.float32)]
    assert kernels.emit_kernel(first, types, host_target()) == kernels.emit_kernel(
        second, types, host_target()
    )


def test_large_kernels_have_many_tasks_and_small_ones_one() -> None:
    def tasks(size: int) -> int:
        kernel = k.blocks(e.exp, size, 1024, dtypes.float32)
        return kernels.emit_kernel(kernel, [ArrayType((size,), dtypes.float32)], host_target()).num_tasks

    assert tasks(1024) == 1
    assert tasks(1 << 20) > 8


def test_unknown_operation_is_refused_with_its_name() -> None:
    x = ArrayType((8,), dtypes.float32)
    body = ir.Builder()
    params = [ir.Var(x), ir.Var(ArrayType((), dtypes.int32))]
    results = body.emit(sorting.sort_p, params[:1], ir.Attrs({"num_keys": 1, "is_stable": True}))
    kernel = Kernel(
        (1,), (Access.whole((8,), 1),), (Access.whole((8,), 1),), (x,), body.build(params, results)
    )
    with pytest.raises(errors.LoweringError, match="sort"):
        kernels.emit_kernel(kernel, [x], host_target())


@pytest.mark.parametrize(
    "triple, features, lanes",
    [("x86_64-unknown-linux-gnu", "+avx,+avx2,+fma,+f16c", 8), ("x86_64-unknown-linux-gnu", "+sse2", 4),
     ("aarch64-unknown-linux-gnu", "+neon", 4), ("arm64-apple-darwin", "+neon", 4)],
)  # fmt: skip
def test_code_for_other_processors_compiles(triple: str, features: str, lanes: int) -> None:
    from infini.backends.cpu import objects

    cpu = "x86-64" if triple.startswith("x86") else "generic"
    target: Target = make_target(triple, cpu, features)
    types = [ArrayType((4, 100), dtypes.float32)]
    phase = kernels.emit_kernel(k.rows(softmax, 4, *types), types, target)
    text = "\n".join([f'target triple = "{triple}"', *sorted(phase.declares), phase.text])
    assert target.lanes == lanes
    assert len(objects.compile_module(text, target)) > 500


# --- sharing memory ------------------------------------------------------------------------------


def in_place(kernel: Kernel, *types: ArrayType) -> tuple[tuple[int, int], ...]:
    return kernels.in_place_pairs(kernel, types)


def test_results_may_take_the_memory_of_operands_read_before() -> None:
    x = ArrayType((64,), dtypes.float32)
    assert in_place(k.blocks(lambda a, b: e.mul(a, b), 64, 16, x.dtype, x.dtype), x, x) == ((0, 0), (1, 0))
    rows = ArrayType((4, 64), dtypes.float32)
    assert in_place(k.rows(softmax, 4, rows), rows) == ((0, 0),)


def test_results_may_not_take_the_memory_of_operands_read_later() -> None:
    rows = ArrayType((4, 64), dtypes.float32)
    kernel = k.rows(lambda x: (e.add(x, 1.0), softmax(x)), 4, rows)
    assert in_place(kernel, rows) == ((0, 1),)


def test_results_may_not_take_the_memory_of_operands_read_elsewhere() -> None:
    x = ArrayType((64,), dtypes.float32)
    assert in_place(k.on_tiles(lambda a: e.add(a, view.rev(a, (0,))), x), x) == ()


def test_softmax_in_place_is_right(rng: np.random.Generator) -> None:
    x = numbers(rng, (6, 300), dtypes.float32)
    kernel = k.rows(softmax, 6, *k.types(x))
    (wanted,) = k.run(kernel, x)
    phase = kernels.emit_kernel(kernel, k.types(x), host_target())
    (address,) = k.load([phase])
    args = (ctypes.c_void_p * 2)(x.ctypes.data, x.ctypes.data)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)(ctypes.addressof(args), 0)
    np.testing.assert_array_equal(x, wanted)
