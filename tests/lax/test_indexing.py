"""Gather, the scatters and dynamic slices against loops in NumPy; splitting, derivatives and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition
from infini.compiler.llvm import single_scatters
from infini.compiler.llvm.target import host_target
from infini.compiler.steps import Phase
from infini.core import dtypes, errors, primitive, trace
from infini.core.mesh import AbstractMesh
from infini.lax.indexing import KINDS, GatherDimensionNumbers, dimension_numbers
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import check_grads, tolerances

SCATTERS = ["scatter_add", "scatter_mul", "scatter_min", "scatter_max"]
COMBINE = {"scatter": lambda a, b: b} | {n: KINDS[n].ufunc for n in SCATTERS}
MODES = ["clip", "fill", "promise_in_bounds"]


def windows(
    indices: np.ndarray, dn: GatherDimensionNumbers, shape: Any, sizes: Any
) -> Iterator[tuple[Any, Any]]:
    """Start of each window in the operand, before any mode, and where it stands in the dense array."""
    batch = indices.shape[:-1]
    for point in np.ndindex(*batch):
        start = [0] * len(shape)
        for column, d in enumerate(dn.start_index_map):
            start[d] = int(indices[(*point, column)])
        for d, where in zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=True):
            start[d] = point[where]
        ndim = len(batch) + len(dn.offset_dims)
        places = iter(point)
        yield start, tuple(slice(None) if d in dn.offset_dims else next(places) for d in range(ndim))


def looped_gather(
    x: np.ndarray, indices: np.ndarray, dn: Any, sizes: Any, mode: str, fill: Any
) -> np.ndarray:
    out = np.full(dn.result_shape(indices.shape[:-1], sizes), fill, x.dtype)
    for start, place in windows(indices, dn, x.shape, sizes):
        inside = [min(max(s, 0), n - m) for s, n, m in zip(start, x.shape, sizes, strict=True)]
        if mode == "fill" and inside != start:
            continue
        window = x[tuple(np.s_[s : s + m] for s, m in zip(inside, sizes, strict=True))]
        out[place] = window.reshape(dn.window_of(sizes))
    return out


def looped_scatter(
    x: np.ndarray, indices: np.ndarray, updates: np.ndarray, dn: Any, mode: str, combine: Any
) -> np.ndarray:
    out, sizes = x.copy(), dn.slice_sizes(x.shape, updates.shape)
    for start, place in windows(indices, dn.as_gather, x.shape, sizes):
        inside = [min(max(s, 0), n - m) for s, n, m in zip(start, x.shape, sizes, strict=True)]
        if mode != "clip" and inside != start:
            continue
        window = tuple(np.s_[s : s + m] for s, m in zip(inside, sizes, strict=True))
        out[window] = combine(out[window], updates[place].reshape(sizes))
    return out


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, GatherDimensionNumbers, tuple[int, ...]]:
    """An operand, indices of which some lie outside, and dimension numbers of every form."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 5)))
    order = rng.permutation(len(shape))
    num_indexed = int(rng.integers(0, len(shape) + 1))
    indexed = [int(d) for d in order[:num_indexed]]
    rest = [int(d) for d in order[num_indexed:]]
    batching = sorted(rest[: int(rng.integers(0, min(2, len(rest)) + 1))])
    collapsed = sorted(d for d in range(len(shape)) if d not in batching and rng.random() < 0.4)
    sizes = tuple(
        1 if d in collapsed or d in batching else int(rng.integers(1, n + 1)) for d, n in enumerate(shape)
    )
    batch = [int(n) for n in rng.integers(1, 4, rng.integers(0, 3))]
    wheres = []
    for d in batching:
        where = int(rng.integers(0, len(batch) + 1))
        batch.insert(where, shape[d])
        wheres = [w + (w >= where) for w in wheres] + [where]
    num_windows = len(shape) - len(collapsed) - len(batching)
    offset = sorted(int(d) for d in rng.permutation(num_windows + len(batch))[:num_windows])
    dtype = rng.choice(["int32", "int8", "uint8", "int64", "uint16"])
    low = 0 if dtype[0] == "u" else -2
    indices = rng.integers(low, 6, (*batch, num_indexed)).astype(dtype)
    dn = GatherDimensionNumbers(
        tuple(offset), tuple(collapsed), tuple(indexed), tuple(batching), tuple(wheres)
    )
    return rng.integers(1, 9, shape).astype(np.float32), indices, dn, sizes


def given(*arrays: np.ndarray) -> list[Any]:
    with inf.config(host64="keep"):
        return [inf.device_put(x) for x in arrays]


@pytest.mark.parametrize("seed", range(60))
def test_gather_and_scatters_equal_loops(seed: int) -> None:
    x, indices, dn, sizes = drawn(seed)
    rng = np.random.default_rng(seed)
    mode, name = MODES[seed % 3], list(COMBINE)[seed % len(COMBINE)]
    found = inf.jit(lambda x, i: lax.gather(x, i, dn, sizes, mode=mode, fill_value=7))(*given(x, indices))
    np.testing.assert_array_equal(found, looped_gather(x, indices, dn, sizes, mode, 7))
    updates = rng.integers(1, 4, found.shape).astype(np.float32)
    scatter = getattr(lax, name)
    written = inf.jit(lambda x, i, u: scatter(x, i, u, dn.as_scatter, mode=mode))(*given(x, indices, updates))
    np.testing.assert_array_equal(
        written, looped_scatter(x, indices, updates, dn.as_scatter, mode, COMBINE[name])
    )


@pytest.mark.parametrize("seed", range(0, 24, 2))
def test_the_definition_window_by_window_equals_the_scatter(seed: int) -> None:
    """DECOMPOSE, which backends without code of their own take."""
    x, indices, dn, sizes = drawn(seed)
    updates = np.full(dn.result_shape(indices.shape[:-1], sizes), 3, np.float32)
    for name in SCATTERS:
        op = getattr(lax, f"{name}_p")
        attrs = {"dimension_numbers": dn.as_scatter, "mode": MODES[seed % 3], "unique_indices": False}
        definition = op.rule(primitive.DECOMPOSE)
        found = inf.jit(lambda *xs, d=definition, a=attrs: d(*xs, **a))(*given(x, indices, updates))
        np.testing.assert_array_equal(found[0], trace.bind1(op, *given(x, indices, updates), **attrs))


def test_long_scatters_are_cut_into_tasks_without_a_change() -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(4096).astype(np.int32)
    x, u = (
        rng.standard_normal((4096, 64)).astype(np.float32),
        rng.standard_normal((4096, 64)).astype(np.float32),
    )
    expected = x.copy()
    np.add.at(expected, rows, u)
    for unique in (False, True):
        found = inf.jit(lambda x, u, n=unique: x.at[rows].add(u, unique_indices=n))(x, u)
        np.testing.assert_array_equal(found, expected)
    columns = inf.jit(lambda x, u: x.T.at[:, rows].add(u.T))(x, u)
    np.testing.assert_array_equal(columns, expected.T)
    np.testing.assert_array_equal(inf.jit(lambda x: x.T[:, rows])(x), x.T[:, rows])


@pytest.mark.parametrize("name, dtype, mode", [
    ("add", dtypes.float32, "drop"), ("add", dtypes.bfloat16, "clip"), ("multiply", dtypes.float64, "drop"),
    ("set", dtypes.int8, "drop"), ("max", dtypes.int32, "clip"),
])  # fmt: skip
def test_many_single_elements_are_combined_in_their_order(
    name: str, dtype: np.dtype, mode: str, rng: np.random.Generator
) -> None:
    size, count = 1001, 50_007
    places = rng.integers(-20, size + 20, count).astype(np.int32)
    if name == "multiply":
        given, start = rng.uniform(0.9, 1.1, count), np.ones(size)
    else:
        given, start = rng.integers(-100, 100, count), rng.integers(-100, 100, size)
    with inf.config(host64="keep"):
        x, u = inf.device_put(start.astype(dtype)), inf.device_put(given.astype(dtype))
    update = inf.jit(lambda x, i, u: getattr(x.at[i], name)(u, mode=mode))
    wrapped = np.where(places < 0, places + size, places)
    wrapped = wrapped.clip(0, size - 1) if mode == "clip" else wrapped
    combine = {"add": np.add, "multiply": np.multiply, "set": lambda _, y: y, "max": np.maximum}[name]
    expected = np.array(x)
    for place, y in zip(wrapped, np.asarray(u), strict=True):
        if 0 <= place < size:
            expected[place] = combine(expected[place], y)
    np.testing.assert_array_equal(np.asarray(update(x, places, u)), expected)
    steps = update.lower(x, places, u).compile().executable.block.steps
    (phase,) = (step for step in steps if isinstance(step, Phase) and step.name.startswith("scatter"))
    assert phase.tasks[0].num_tasks == (single_scatters.MOST_PARTS if host_target().has("avx512f") else 1)


@pytest.mark.parametrize("name", ["set", "add", "multiply", "min", "max"])
def test_updates_of_a_dead_array_are_in_place(name: str) -> None:
    def update(x: Any, i: Any, u: Any) -> Any:
        return getattr(x.at[i], name)(u)

    x = inp.ones((512, 64))
    step = inf.jit(update, donate_argnums=0, donation="require")
    compiled = step.lower(x, inp.asarray([1, 5, 1]), inp.ones((3, 64))).compile()
    assert compiled.memory_analysis()["alias bytes"] >= x.nbytes
    assert compiled.cost_analysis()["copied bytes"] < x.nbytes


# --- special numbers, hints, functions ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_nan_wins_comparisons(dtype: str) -> None:
    x = inp.asarray([1.0, 2.0, np.nan], dtype)
    for name in ("min", "max"):
        found = getattr(x.at[inp.asarray([0, 0, 2])], name)(inp.asarray([np.nan, 5.0, 1.0], dtype))
        np.testing.assert_array_equal(np.isnan(np.asarray(found, np.float32)), [True, False, True])


def test_a_broken_promise_reads_the_nearest_and_writes_nothing() -> None:
    x = inp.arange(4.0)
    at = inp.asarray([7, -9])
    assert x.at[at].get(mode="promise_in_bounds").tolist() == [3, 0]
    assert x.at[at].set(9, mode="promise_in_bounds").tolist() == [0, 1, 2, 3]


def test_a_function_is_applied_as_often_as_a_place_occurs() -> None:
    x = inp.asarray([1.0, 2.0, 3.0])
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    for jit in (lambda f: f, inf.jit):
        found = jit(lambda x, i: lax.scatter_apply(x, i, lambda v: v * 10, numbers, update_shape=(4,)))(
            x, inp.asarray([[0], [2], [0], [9]])
        )
        assert found.tolist() == [100, 2, 30]
    once = lax.scatter_apply(
        x, inp.asarray([[1]]), lambda v: v * v, numbers, update_shape=(1,), unique_indices=True
    )
    assert once.tolist() == [1, 4, 3]
    with pytest.raises(errors.TypeMismatchError, match="shape and dtype"):
        lax.scatter_apply(x, inp.asarray([[1]]), lambda v: v.astype(int), numbers, update_shape=(1,))


def test_index_take_counts_modulo() -> None:
    x = inp.arange(12).reshape(3, 4)
    found = lax.index_take(x, (inp.asarray([0, -1, 4]), inp.asarray([1, 5, 2])), (0, 1))
    assert found.tolist() == [1, 9, 6]


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.uint8], ids=str)
@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_single_elements_of_rows(dtype: np.dtype, mode: str, rng: np.random.Generator) -> None:
    # Whole vectors of places inside are taken another way than those of which one wraps or is outside.
    for columns, count in ((70, 64), (5, 37)):
        x = rng.integers(0, 250, (6, columns)).astype(dtype)
        places = rng.integers(0, columns, (6, count)).astype(np.int32)
        places[1, 3], places[2, 33], places[3, 0] = -1, -columns, -columns - 1
        places[3, 36], places[4, :], places[5, 1] = columns, np.arange(count) - 20, -columns * 5
        with inf.config(host64="keep"):
            given = inf.device_put(x)
        found = inf.jit(lambda x, i: inp.take_along_axis(x, i, axis=1, mode=mode))(given, places)
        wrapped = np.where(places < 0, places + columns, places)
        inside = (mode == "clip") | ((wrapped >= 0) & (wrapped < columns))
        filler = np.nan if dtype in dtypes.FLOATS else 255
        expected = np.take_along_axis(x, np.clip(wrapped, 0, columns - 1), axis=1).astype(np.float64)
        np.testing.assert_array_equal(np.asarray(found, np.float64), np.where(inside, expected, filler))


def test_fill_values() -> None:
    numbers = GatherDimensionNumbers((), (0,), (0,))
    for dtype, expected in (
        (dtypes.int8, -128),
        (dtypes.uint16, 65535),
        (dtypes.bool_, True),
        (dtypes.int32, -(2**31)),
    ):
        x = inp.zeros(3, dtype)
        assert lax.gather(x, inp.asarray([[5]]), numbers, (1,), mode="fill").tolist() == [expected]
    assert np.isnan(lax.gather(inp.zeros(3), inp.asarray([[5]]), numbers, (1,), mode="fill").tolist()[0])
    with pytest.raises(errors.TypeMismatchError, match="known while tracing"):
        inf.jit(lambda x, f: lax.gather(x, inp.asarray([[5]]), numbers, (1,), mode="fill", fill_value=f))(
            inp.zeros(3), 1.0
        )


def test_fill_values_that_are_not_numbers_make_one_program() -> None:
    take = inf.jit(lambda x, i: x.at[i].get(mode="fill", fill_value=float("nan")))
    programs = {take.lower(inp.zeros(3), inp.asarray([n])).program.fingerprint for n in range(3)}
    assert len(programs) == 1


# --- derivatives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("name", ["scatter", *SCATTERS])
def test_derivatives_of_scatters(name: str, unique: bool, rng: np.random.Generator) -> None:
    places = np.array([[2], [0]] if unique else [[2], [0], [2], [5]], np.int32)
    x, u = rng.standard_normal((4, 3)), rng.standard_normal((len(places), 3))
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))

    def write(x: Any, u: Any) -> Any:
        return getattr(lax, name)(x, places, u, numbers, unique_indices=unique)

    with inf.config(host64="keep"):
        if name == "scatter_mul" and not unique:
            check_grads(lambda x: write(x, u), (x,), order=2, atol=1e-4, rtol=1e-4)
            with pytest.raises(NotImplementedError, match="unique_indices"):
                inf.grad(lambda u: write(x, u).sum())(u)
        else:
            check_grads(write, (x, u), order=2, atol=1e-4, rtol=1e-4)


def test_ties_share_the_derivative_evenly() -> None:
    x, u = inp.asarray([1.0, 2.0, 3.0]), inp.asarray([1.0, 2.0, 2.0])
    of_x, of_u = inf.grad(lambda x, u: x.at[inp.asarray([0, 1, 1])].max(u).sum(), argnums=(0, 1))(x, u)
    np.testing.assert_allclose(of_x, [1 / 2, 1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(of_u, [1 / 2, 1 / 3, 1 / 3], rtol=1e-6)


def test_only_the_last_of_equal_places_has_a_derivative() -> None:
    u = inp.asarray([1.0, 2.0, 3.0])
    derivative = inf.grad(
        lambda u: (inp.zeros(2).at[inp.asarray([1, 0, 1])].set(u) * inp.asarray([5.0, 7.0])).sum()
    )
    assert derivative(u).tolist() == [0, 5, 7]


# --- splitting ------------------------------------------------------------------------------------------

MESH = AbstractMesh(("data",), (4,))
X = np.cos(np.arange(64, dtype=np.float32)).reshape(8, 8)
AT = np.array([1, 9, 0, 1, 7, -1, 1, 2], np.int32)

# function of an array and places, how they are split, collectives; sums of the type of the split array are
# scattered, as gradients are
CASES: list[tuple[Callable[..., Any], tuple[P, P], list[str]]] = [
    (lambda x, i: x[i], (P("data", None), P(None)), ["psum_scatter"]),
    (lambda x, i: x[i[:3]], (P("data", None), P(None)), ["psum"]),
    (lambda x, i: x[:, i], (P("data", None), P(None)), []),
    (lambda x, i: x[i], (P(None), P("data")), []),
    (lambda x, i: x.at[i].get(mode="fill", fill_value=3.0), (P("data", None), P(None)), ["psum_scatter"]),
    (lambda x, i: x.at[i].add(x), (P(None, "data"), P(None)), []),
    (lambda x, i: x.at[i].set(7.0), (P("data", None), P(None)), []),
    (lambda x, i: x.at[i].max(0.5), (P("data", None), P(None)), []),
    (lambda x, i: x.at[i].multiply(2.0), (P("data", None), P(None)), []),
    (lambda x, i: inp.zeros((8, 8)).at[i].add(x), (P("data", None), P("data")), ["psum_scatter"]),
    (lambda x, i: inp.zeros((8, 8)).at[i].max(x), (P("data", None), P("data")), ["pmax"]),
    (lambda x, i: inp.zeros((8, 8)).at[i].min(x), (P("data", None), P("data")), ["pmin"]),
    (
        lambda x, i: inp.ones((8, 8)).at[i].multiply(x),
        (P("data", None), P("data")),
        ["all_gather", "all_gather"],
    ),
    (lambda x, i: lax.dynamic_slice_in_dim(x, i[0], 3, 1), (P("data", None), P(None)), []),
]


@pytest.mark.parametrize(("function", "specs", "expected"), CASES, ids=range(len(CASES)))
def test_sharded_equals_unsharded(
    function: Callable[..., Any], specs: tuple[P, P], expected: list[str]
) -> None:
    found = partition.partition(inf.make_jaxpr(function)(X, AT), MESH, [tuple(spec) for spec in specs])
    assert sorted(c.name for c in found.collectives) == expected
    with inf.config(device="reference", cpu_devices=4, check=1):
        mesh = make_mesh((4,), ("data",))
        placed = [inf.device_put(v, NamedSharding(mesh, s)) for v, s in zip((X, AT), specs, strict=True)]
        tolerances.assert_close(inf.jit(function)(*placed), inf.jit(function)(X, AT), "reduction")


# --- refusals -------------------------------------------------------------------------------------------

NUMBERS = GatherDimensionNumbers((1,), (0,), (0,))


@pytest.mark.parametrize(
    ("numbers", "sizes", "error"),
    [
        (GatherDimensionNumbers((1, 0), (), (0,)), (1, 3), TypeError),
        (GatherDimensionNumbers((2,), (0,), (0,)), (1, 3), TypeError),
        (GatherDimensionNumbers((1,), (0,), (0, 1)), (1, 3), TypeError),
        (GatherDimensionNumbers((1,), (5,), (0,)), (1, 3), TypeError),
        (GatherDimensionNumbers((1,), (0,), (0,)), (2, 3), TypeError),
        (GatherDimensionNumbers((1,), (0,), (0,)), (1, 4), TypeError),
        (GatherDimensionNumbers((1,), (0,), (0,)), (1,), TypeError),
        (GatherDimensionNumbers((), (0,), (0,)), (1, 3), TypeError),
        (GatherDimensionNumbers((1,), (), (0,), (0,), (0,)), (1, 3), TypeError),
        (GatherDimensionNumbers((1,), (), (), (0,), (0,)), (1, 3), TypeError),
    ],
    ids=range(10),
)
def test_dimension_numbers_that_do_not_fit(numbers: Any, sizes: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        lax.gather(inp.ones((4, 3)), inp.zeros((2, 1), int), numbers, sizes)
    assert isinstance(caught.value, errors.InfiniError) and caught.value.got and caught.value.expected


def test_other_refusals() -> None:
    x, at = inp.ones((4, 3)), inp.zeros((2, 1), int)
    with pytest.raises(ValueError, match="integer"):
        lax.gather(x, at.astype(float), NUMBERS, (1, 3))
    with pytest.raises(ValueError, match="mode"):
        lax.gather(x, at, NUMBERS, (1, 3), mode="other")
    with pytest.raises(TypeError, match="one dtype"):
        lax.scatter_add(x, at, inp.ones((2, 3), int), NUMBERS.as_scatter)
    with pytest.raises(TypeError, match="shape"):
        lax.scatter(x, at, inp.ones((3, 3)), NUMBERS.as_scatter)
    with pytest.raises(TypeError, match="dtype"):
        lax.scatter_add(x > 0, at, inp.ones((2, 3), bool), NUMBERS.as_scatter)
    with pytest.raises(ValueError, match="start"):
        lax.dynamic_slice(x, (0,), (1, 1))
    with pytest.raises(ValueError, match="negative"):
        lax.dynamic_slice(x, (0, -1), (1, 1), allow_negative_indices=False)
    with pytest.raises(TypeError, match="larger"):
        lax.dynamic_slice(x, (0, 0), (5, 1))


def test_numbers_of_a_scatter_and_its_gather_belong_together() -> None:
    assert NUMBERS.as_scatter.as_gather == NUMBERS
    places, inside = dimension_numbers.window_positions(np.array([[1], [4]]), NUMBERS, (4, 3), (1, 3), False)
    assert places[0].tolist() == [3, 4, 5] and inside[:, 0].tolist() == [True, False]
