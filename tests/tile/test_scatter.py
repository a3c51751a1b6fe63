"""Results that kernels write at run-time places, against NumPy's `add.at` and its like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.core import check, dtypes, errors, ir, parser, text
from infini.core.ir import ArrayType
from infini.tile import Tensor
from tests.tile import scatter_kernels as k
from tests.tile.scatter_kernels import DTYPES, UFUNCS, draw, wanted


@pytest.fixture(autouse=True)
def on_backend(backend_name: str) -> Any:
    """Every test runs on the oracle and on the CPU."""
    with inf.config(device=backend_name):
        yield


# --- results ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("height", "count", "width"), [(10, 37, 5), (3, 16, 1), (1, 1, 8)])
def test_rows_add_up(height: int, count: int, width: int, dtype: np.dtype, rng: Any) -> None:
    table, numbers, rows = draw(rng, height, count, width, dtype)
    found = k.embedding_gradient(numbers, rows, height=height)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, wanted(np.add, np.zeros_like(table), numbers, rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UFUNCS)
def test_a_result_starts_as_an_operand(name: str, dtype: np.dtype, rng: Any) -> None:
    table, numbers, rows = draw(rng, 11, 50, 3, dtype)
    found = getattr(k, name)(table, numbers, rows)
    np.testing.assert_array_equal(found, wanted(UFUNCS[name], table, numbers, rows))


@pytest.mark.parametrize("dtype", [*DTYPES, dtypes.bool_], ids=str)
def test_rows_are_overwritten(dtype: np.dtype, rng: Any) -> None:
    table, _, rows = draw(rng, 30, 37, 4, dtype)
    numbers = rng.permutation(40)[:37].astype(np.int32)
    expected = table.copy()
    expected[numbers[numbers < 30]] = rows[numbers < 30]
    np.testing.assert_array_equal(k.put(table, numbers, rows), expected)


def test_one_of_the_rows_for_a_place_stays(rng: Any) -> None:
    rows = rng.standard_normal((40, 3)).astype(np.float32)
    found = np.asarray(k.put(np.zeros((2, 3), np.float32), np.ones(40, np.int32), rows))
    assert not found[0].any() and any((found[1] == row).all() for row in rows)


@pytest.mark.parametrize("count", [1, 15, 16, 33])
def test_elements_beyond_the_operand_count_nowhere(count: int, rng: Any) -> None:
    x = rng.uniform(0.2, 1, count).astype(np.float32)
    counts, largest = k.histogram(x)
    bins = np.floor(x * np.float32(5)).astype(int)
    np.testing.assert_array_equal(counts, np.bincount(bins, minlength=5)[:5])
    expected = [x[bins == b].max(initial=-np.inf) for b in range(5)]
    np.testing.assert_array_equal(largest, np.array(expected, np.float32))


@pytest.mark.parametrize("shape", [(6,), (6, 3)], ids=str)
def test_updates_beyond_the_operand_go_nowhere(shape: tuple[int, ...]) -> None:
    """The places are computed from the number of the program alone."""
    x, end = Tensor(len(shape)), (-1,) * (len(shape) - 1)

    def blocks(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.tile((4, *end)), y.tile((-1, *end))
        x, y = (t if len(shape) == 1 else t.squeeze(1) for t in (x, y))
        return x, y.expand(x.shape)

    def backwards(x: Any) -> Any:
        at = 4 * tile.program_id(0) + inf.numpy.arange(4)
        return tile.scatter(-1, 7 - at, x)

    kernel = tile.kernel(blocks, tensors=(x, Tensor(shape=(8, *shape[1:]))))(backwards)
    values = np.arange(1.0, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    expected = np.full((8, *shape[1:]), -1, np.float32)
    expected[2:] = values[::-1]
    np.testing.assert_array_equal(kernel(values), expected)


def test_rows_beyond_the_operand_choose_no_column(rng: Any) -> None:
    x = rng.standard_normal((21, 6)).astype(np.float32)
    np.testing.assert_array_equal(k.chosen(x), np.bincount(x.argmax(1), minlength=6))


def test_places_read_by_numbers_beyond_the_operand_are_none() -> None:
    slots = np.array([3, 0, 4, 2, 1], np.int32)
    found = k.through_slots(slots, np.array([2, 1, 2], np.int32))
    np.testing.assert_array_equal(found, [1, 0, 0, 0, 1])


def test_a_program_may_say_which_mixed_places_count() -> None:
    x = Tensor(1)

    def backwards(x: Any) -> Any:
        places = inp.take(x, inp.arange(15, -1, -1))
        is_there = inp.flip(tile.offsets(x, 0) < tile.array_shape(x)[0])
        return tile.scatter_add(0, inp.where(is_there, places, -1), 1)

    def blocks(x: Any, y: Any) -> Any:
        x = x.tile((16,))
        return x, y.tile((-1,)).expand(x.shape)

    kernel = tile.kernel(blocks, tensors=(x, Tensor(shape=(4,))))(backwards)
    np.testing.assert_array_equal(kernel(np.array([0, 3, 3, 1, 2], np.int32)), [1, 1, 1, 2])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_places_of_every_dtype(dtype: str, rng: Any) -> None:
    i, j = (inf.numpy.asarray(rng.integers(0, n + 2, 29), dtype=dtype) for n in (6, 7))
    values = rng.integers(-4, 5, 29).astype(np.float32)
    expected, at = np.zeros((8, 9), np.float32), (np.asarray(i).astype(int), np.asarray(j).astype(int))
    np.add.at(expected, at, values)
    np.testing.assert_array_equal(k.cells(i, j, values, height=6, width=7), expected[:6, :7])


def test_numbers_larger_than_any_place_are_none() -> None:
    i = inf.numpy.asarray(np.array([2**32, 1, 2**63 - 1, -(2**62)]), dtype="int64")
    found = k.cells(i, inf.numpy.zeros_like(i), np.ones(4, np.float32), height=2, width=2)
    np.testing.assert_array_equal(found, [[0, 0], [1, 0]])


@pytest.mark.parametrize(("height", "count", "width"), [(4, 0, 3), (0, 4, 3), (4, 5, 0)])
def test_empty_operands(height: int, count: int, width: int) -> None:
    table, rows = np.ones((height, width), np.float32), np.ones((count, width), np.float32)
    found = k.add(table, np.full(count, 9, np.int32), rows)
    np.testing.assert_array_equal(found, table)


def test_strided_operands(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 37, 4, dtypes.float32)
    views = table[::-1, ::2], np.repeat(numbers, 2)[::2], np.asfortranarray(rows)[:, 1:3]
    np.testing.assert_array_equal(k.add(*views), wanted(np.add, *views))


def test_programs_read_what_a_result_starts_as(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 37, 4, dtypes.float32)
    numbers = abs(numbers) % 10
    found = inf.jit(k.doubled, donate_argnums=0)(inf.numpy.asarray(table), numbers, rows)
    np.testing.assert_array_equal(found, wanted(np.add, table, numbers, table[numbers] + rows))


def test_one_row_per_program(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 21, 4, dtypes.float32)
    found = k.one_by_one(numbers, rows, height=10)
    np.testing.assert_array_equal(found, wanted(np.add, np.zeros_like(table), numbers, rows))


def test_operands_stay_as_they_are(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 37, 4, dtypes.float32)
    own = inf.numpy.asarray(table)
    k.add(own, numbers, rows)
    np.testing.assert_array_equal(own, table)


def test_any_number_of_threads_gives_the_same_bits(rng: Any) -> None:
    numbers = rng.integers(0, 50, 20_000).astype(np.int32)
    rows = rng.standard_normal((20_000, 8)).astype(np.float32)
    found = []
    for count in (1, 2):
        with inf.config(num_threads=count):
            found.append(np.asarray(k.embedding_gradient(numbers, rows, height=50)).tobytes())
    assert found[0] == found[1]


# --- transforms ------------------------------------------------------------------------------


def test_inside_a_program(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 37, 4, dtypes.float32)
    found = inf.jit(lambda t, n, r: k.add(t + 1, n, r * 2) * 3)(table, numbers, rows)
    np.testing.assert_array_equal(found, wanted(np.add, table + 1, numbers, rows * 2) * 3)


@pytest.mark.parametrize("in_axes", [(0, 0, 0), (None, 0, None), (None, None, 0), (0, None, None)])
def test_a_batch(in_axes: Any, rng: Any) -> None:
    calls = [draw(rng, 10, 21, 4, dtypes.float32) for _ in range(3)]
    operands = [
        np.stack(xs) if axis == 0 else xs[0]
        for xs, axis in zip(zip(*calls, strict=True), in_axes, strict=True)
    ]
    expected = [
        wanted(np.add, *(x[b] if axis == 0 else x for x, axis in zip(operands, in_axes, strict=True)))
        for b in range(3)
    ]
    np.testing.assert_array_equal(inf.vmap(k.add, in_axes=in_axes)(*operands), expected)


def test_a_batch_of_batches(rng: Any) -> None:
    x = rng.uniform(0, 1, (2, 3, 19)).astype(np.float32)
    counts, _ = inf.vmap(inf.vmap(k.histogram))(x)
    expected = [[np.histogram(row, 5, (0, 1))[0] for row in rows] for rows in x]
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("function", [k.add_defined, k.add_by_rule], ids=lambda f: f.name)
def test_gradients(function: Any, rng: Any) -> None:
    table, _, rows = draw(rng, 10, 21, 4, dtypes.float32)
    numbers, weights = rng.integers(0, 10, 21).astype(np.int32), rng.standard_normal((10, 4)).astype("f")
    loss = lambda t, r: (function(t, numbers, r) * weights).sum()  # noqa: E731
    of_table, of_rows = inf.jit(inf.grad(loss, argnums=(0, 1)))(table, rows)
    scale = 2 * rows if function is k.add_defined else 1
    np.testing.assert_allclose(of_table, weights, rtol=1e-6)
    np.testing.assert_allclose(of_rows, weights[numbers] * scale, rtol=1e-6)


def test_the_derivative_of_a_batch_with_a_definition(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 21, 4, dtypes.float32)
    numbers = abs(numbers) % 10
    loss = lambda r: inf.vmap(k.add_defined, in_axes=(None, None, 0))(table, numbers, r).sum()  # noqa: E731
    np.testing.assert_allclose(inf.grad(loss)(np.stack([rows, rows])), np.stack([rows, rows]) * 2)


def test_a_kernel_without_a_rule_has_no_derivative(rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 21, 4, dtypes.float32)
    with pytest.raises(errors.MissingRuleError, match="kernel add has no derivative"):
        inf.grad(lambda r: k.add(table, numbers, r).sum())(rows)


# --- as programs -----------------------------------------------------------------------------


TYPES = [ArrayType((37,), dtypes.int32), ArrayType((37, 5), dtypes.float32)]


def test_the_program_prints_and_parses() -> None:
    program = k.embedding_gradient.as_program(TYPES, height=10)
    check.check(program)
    assert parser.parse(text.print_program(program)) == program


def test_the_kernel_stores_places_and_values() -> None:
    kernel = k.embedding_gradient.specialize(TYPES, height=10)
    places = ArrayType((3, 16), dtypes.int32)
    assert kernel.outputs == (places, ArrayType((3, 16, 5), dtypes.float32))


def test_a_wrong_scatter_is_found() -> None:
    program = k.embedding_gradient.as_program(TYPES, height=10)
    (equation,) = program.equations
    (scatter,) = equation.attrs["scatters"]
    attrs = equation.attrs.replace(scatters=(scatter.__class__(scatter.kind, TYPES[1], 2, None),))
    with pytest.raises(errors.TypeMismatchError, match="do not fit the result"):
        ir.single_equation(equation.op, TYPES, attrs)


def test_simulation_shows_the_whole_result_to_every_program() -> None:
    _, _, found = tile.simulate(k.embedding_gradient, TYPES, height=10)
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(50).reshape(10, 5), (3, 10, 5)))


def test_compare_takes_such_kernels(rng: Any) -> None:
    _, numbers, rows = draw(rng, 10, 37, 5, dtypes.float32)
    assert not tile.compare(k.embedding_gradient, numbers, rows, height=10).difference


def test_a_kernel_is_built_for_the_cpu(tmp_path: Any, rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 37, 5, dtypes.float32)
    place = tile.build(k.embedding_gradient, [TYPES], ["cpu"], tmp_path, height=10)
    found = tile.load(place)(numbers, rows)
    np.testing.assert_array_equal(found, wanted(np.add, np.zeros_like(table), numbers, rows))


def test_a_binary_of_one_function_is_refused(tmp_path: Any) -> None:
    with pytest.raises(errors.UnsupportedError, match="run-time places"):
        tile.build(k.embedding_gradient, [TYPES], ["cuda:90"], tmp_path, height=10)


# --- what is refused -------------------------------------------------------------------------

X = Tensor(1, name="x")


def kernel_of(application: Any, *, arranged: Any = None, result: Any = None) -> Any:
    """A kernel from blocks of four integers to a result of three numbers."""
    result = result if result is not None else Tensor(shape=(3,), name="counts")
    whole = arranged or (lambda t, grid: t.tile((-1,)).expand(grid))
    return tile.kernel(
        lambda x, y: (x.tile((4,)), whole(y, x.tile((4,)).shape)), tensors=(X, result), name="counting"
    )(application)


NUMBERS = np.arange(6, dtype=np.int32)
REFUSED: dict[str, tuple[Any, str]] = {
    "fractions": (lambda: kernel_of(lambda x: tile.scatter_add(0, x * 0.5, 1)), "numbers of rows"),
    "no indices": (lambda: kernel_of(lambda x: tile.scatter_add(0, (), 1)), "needs indices"),
    "indices of two shapes": (
        lambda: kernel_of(lambda x: tile.scatter_add(0, (x, x[:3]), 1)), "differ in shape",
    ),
    "too many indices": (lambda: kernel_of(lambda x: tile.scatter_add(0, (x, x), 1)), "fewer dimensions"),
    "updates of another shape": (
        lambda: kernel_of(lambda x: tile.scatter_add(0, x, inf.numpy.ones(3))), "do not fit the indices",
    ),
    "a start that is no operand": (
        lambda: kernel_of(lambda x: tile.scatter_add(x + 1, x, 1)), "no tile that the application was given",
    ),
    "a start of another shape": (
        lambda: kernel_of(lambda x: tile.scatter_add(x, x, 1)), "cannot start as an array of another type",
    ),
    "a start that is no number": (lambda: kernel_of(lambda x: tile.scatter_add("0", x, 1)), "as a number"),
    "a start the dtype has not": (lambda: kernel_of(lambda x: tile.scatter_add(0.5, x, x)), "no such number"),
    "sums of booleans": (
        lambda: kernel_of(lambda x: tile.scatter_add(0, x, True)), "does not take this dtype",
    ),
    "sums with what a scatter gives": (
        lambda: kernel_of(lambda x: tile.scatter_add(0, x, 1) + 1), "no array to compute with",
    ),
    "places picked from beyond the operand": (
        lambda: kernel_of(lambda x: tile.scatter_add(0, inp.take(x, inp.arange(3, -1, -1)), 1)),
        "come through 'gather'",
    ),
    "places of a loop beyond the operand": (
        lambda: kernel_of(lambda x: tile.scatter_add(0, lax.fori_loop(0, 3, lambda _, c: inp.flip(c), x), 1)),
        "come through '(while|scan)'",
    ),
    "places of a branch beyond the operand": (
        lambda: kernel_of(
            lambda x: tile.scatter_add(0, lax.cond(x.sum() > 0, lambda x: x, lambda x: x + 1, x), 1)
        ),
        "come through 'cond'",
    ),
    "updates of a loop, whose places come from nowhere": (
        lambda: kernel_of(
            lambda x: tile.scatter_add(0, inp.arange(4) % 3, lax.fori_loop(0, 3, lambda _, c: inp.flip(c), x))
        ),
        "come through '(while|scan)'",
    ),
    "a part of the result": (
        lambda: kernel_of(
            lambda x: tile.scatter_add(0, x, 1),
            arranged=lambda t, grid: t.tile((4,)), result=Tensor(shape=X.shape),
        ),
        "its tile is a part of the array",
    ),
    "a whole result that all programs store": (
        lambda: kernel_of(lambda x: x[:3]), "programs or elements write the same place",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(errors.InfiniError, match=message):
        make()(NUMBERS)


def test_outside_of_applications_arrays_have_methods() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"x\.at\[indices\]\.set\(updates\)"):
        tile.scatter(0, NUMBERS, 1)
