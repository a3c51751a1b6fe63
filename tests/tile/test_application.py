"""What an application may be written with: operators, broadcasting, loops, positions. Every kernel runs on
the oracle, on the CPU and, where it has a form there, in Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn, random, testing, tile
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.testing.tolerances import Kind
from infini.tile import Tensor


def check(kernel: Any, wanted: Any, *operands: np.ndarray, kind: Kind = "elementwise") -> None:
    """The kernel gives this on every route."""
    for device in ("reference", "cpu"):
        with inf.config(device=device):
            testing.assert_close(kernel(*operands), wanted, kind)
    if importlib.util.find_spec("triton") is None:
        return
    from infini.compiler.triton import emit, interpret

    types = [ArrayType(x.shape, x.dtype) for x in operands]
    program = kernel.specialize(types)
    (found,) = interpret.interpret(emit.emit_triton(program, types), operands, program.outputs)
    testing.assert_close(found, wanted, kind)


def blocks(size: int, *, num_operands: int = 1, dtype: Any = None) -> Any:
    """Decorator: a kernel of blocks of a line."""
    x = Tensor(1)
    same = Tensor(shape=x.shape)
    tensors = (x, *[same] * (num_operands - 1), Tensor(shape=x.shape, dtype=dtype))
    return tile.kernel(lambda *ts: [t.tile((size,)) for t in ts], tensors=tensors)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# --- operators --------------------------------------------------------------------------------


def test_operators_and_numbers(rng: Any) -> None:
    @blocks(16, num_operands=2)
    def kernel(x: Any, y: Any) -> Any:
        return (2 * x - y / 4) ** 2 + abs(x) * -y + (x > y) * 3

    x, y = normal(rng, 50), normal(rng, 50)
    check(kernel, (2 * x - y / 4) ** 2 + abs(x) * -y + (x > y) * 3, x, y)


def test_operators_of_integers(rng: Any) -> None:
    @blocks(16, num_operands=2)
    def kernel(x: Any, y: Any) -> Any:
        return (x // y) * 5 + (x % y) - ((x << 2) & 13) + (~x | (y ^ 3))

    x, y = (rng.integers(low, 100, 50).astype(np.int32) for low in (-100, 1))
    check(kernel, (x // y) * 5 + (x % y) - ((x << 2) & 13) + (~x | (y ^ 3)), x, y, kind="exact")


def test_functions_of_numpy(rng: Any) -> None:
    @blocks(16, num_operands=2)
    def kernel(x: Any, y: Any) -> Any:
        return inp.where(x > 0, inp.sin(x), inp.exp(y)) + inp.maximum(x, y).clip(-1, 1) + inp.log1p(y * y)

    x, y = normal(rng, 50), normal(rng, 50)
    wanted = np.where(x > 0, np.sin(x), np.exp(y)) + np.maximum(x, y).clip(-1, 1) + np.log1p(y * y)
    check(kernel, wanted, x, y)


def test_reductions_broadcast_against_their_tile(rng: Any) -> None:
    x = Tensor(2)

    @tile.kernel(lambda *ts: [t.tile((4, -1)).squeeze(1) for t in ts], tensors=(x, Tensor(shape=x.shape)))
    def kernel(x: Any) -> Any:
        centred = x - x.mean(1, keepdims=True)
        return centred / (centred**2).mean(-1)[:, None] + x.max()

    values = normal(rng, 8, 13)
    centred = values - values.mean(1, keepdims=True)
    largest = np.repeat(values.reshape(2, -1).max(1), 4)[:, None]
    check(kernel, centred / (centred**2).mean(-1)[:, None] + largest, values, kind="reduction")


def test_rows_columns_and_scalars_broadcast_against_a_tile(rng: Any) -> None:
    x = Tensor(2)

    def arrangement(x: Tensor, row: Tensor, column: Tensor, scalar: Tensor, y: Tensor) -> Any:
        x, y = x.tile((4, 8)), y.tile((4, 8))
        row = row.tile((8,)).unsqueeze(0).expand((x.shape[0], -1))
        return x, row, column.tile((4,)).unsqueeze(1).expand((-1, x.shape[1])), scalar, y

    shapes = (Tensor(shape=x.shape[1:]), Tensor(shape=x.shape[:1]), Tensor(0))
    kernel = tile.kernel(arrangement, tensors=(x, *shapes, Tensor(shape=x.shape)))(
        lambda x, row, column, scalar: x * row + column[:, None] - scalar
    )
    values, row, column, scalar = normal(rng, 10, 13), normal(rng, 13), normal(rng, 10), normal(rng)
    check(kernel, values * row + column[:, None] - scalar, values, row, column, np.asarray(scalar))


def test_promotion_is_that_of_arrays() -> None:
    kernel = blocks(16)(lambda x: x * 2.5 + 1)
    for dtype in (dtypes.float32, dtypes.bfloat16, dtypes.float16):
        assert kernel(np.ones(5, dtype)).dtype == dtype
    assert kernel(np.ones(5, np.int32)).dtype == dtypes.float32


def test_a_result_of_a_dtype_of_its_own(rng: Any) -> None:
    x = normal(rng, 40)
    check(blocks(16, dtype="int32")(lambda x: x * 10), (x * 10).astype(np.int32), x, kind="exact")


def doubled_or_less(x: Any) -> Any:
    return lax.cond(tile.program_id(0) == 0, lambda v: v * 2, lambda v: v - 1, x)


CALLS: dict[str, tuple[Any, Any]] = {
    "jit": (lambda x: inf.jit(lambda v: v * 2)(x), lambda x: x * 2),
    "rule of its own": (lambda x: nn.softplus(x), lambda x: np.logaddexp(x, 0)),
    "stopped gradient": (
        lambda x: nn.logsumexp(x) - x,
        lambda x: (np.log(np.exp(x.reshape(2, -1)).sum(1, keepdims=True)) - x.reshape(2, -1)).reshape(-1),
    ),
    "checkpoint": (inf.checkpoint(lambda x: inp.sin(x) + 1), lambda x: np.sin(x) + 1),
    "gradient": (lambda x: inf.grad(lambda v: (v**3).sum())(x), lambda x: 3 * x * x),
    "vmap": (inf.vmap(lambda v: v * v), lambda x: x * x),
    "cond": (doubled_or_less, lambda x: np.concatenate([x[:32] * 2, x[32:] - 1])),
    "cond in a loop": (
        lambda x: lax.fori_loop(
            0, 3, lambda i, v: lax.cond(i == 1, lambda: v * 2, lambda: v + 1), x
        ),
        lambda x: (x + 1) * 2 + 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_and_branches(name: str, rng: Any) -> None:
    function, wanted = CALLS[name]
    x = normal(rng, 64)
    check(blocks(32)(function), wanted(x.astype(np.float64)).astype(np.float32), x)


# --- loops ------------------------------------------------------------------------------------


def product(application: Any) -> Any:
    """A kernel that walks 16 columns of the left and 16 rows of the right operand at a time."""
    a, b = Tensor(2), Tensor(2)

    def arrangement(a: Tensor, b: Tensor, c: Tensor) -> Any:
        c = c.tile((16, 16))
        a = a.tile((16, 16)).tile((1, -1)).expand((-1, c.shape[1])).squeeze(0, level=1)
        b = b.tile((16, 16)).tile((-1, 1)).expand((c.shape[0], -1)).squeeze(1, level=1)
        return a, b, c

    return tile.kernel(arrangement, tensors=(a, b, Tensor(shape=(a.shape[0], b.shape[1]))))(application)


def by_index(a: Any, b: Any) -> Any:
    total = inp.zeros((16, 16))
    for i in range(a.shape[0]):
        total += a[i] @ b[i]
    return total


def by_pairs(a: Any, b: Any) -> Any:
    return sum(x @ y for x, y in zip(a, b, strict=True))


def by_the_last_first(a: Any, b: Any) -> Any:
    return sum(a[-i] @ b[-i] for i in range(1, a.shape[0] + 1))


def by_scan(a: Any, b: Any) -> Any:
    def step(total: Any, pair: Any) -> Any:
        return total + pair[0] @ pair[1], None

    return lax.scan(step, inp.zeros((16, 16)), (a, b))[0]


def by_fori_loop(a: Any, b: Any) -> Any:
    return lax.fori_loop(0, a.shape[0], lambda i, total: total + a[i] @ b[i], inp.zeros((16, 16)))


@pytest.mark.parametrize(
    "application", [by_index, by_pairs, by_the_last_first, by_scan, by_fori_loop], ids=lambda f: f.__name__
)
def test_loops_over_a_level(application: Any, rng: Any) -> None:
    a, b = normal(rng, 21, 50), normal(rng, 50, 19)
    check(product(application), a @ b, a, b, kind="contraction")


def test_rows_of_a_table_by_number(rng: Any) -> None:
    """A level that is indexed by a value: the operand is read where the value says."""
    table, numbers = Tensor(2), Tensor(1)

    def arrangement(table: Tensor, numbers: Tensor, rows: Tensor) -> Any:
        rows = rows.tile((1, -1)).squeeze(1).squeeze(0, level=1)
        table = table.tile((1, -1)).squeeze(0, level=1).tile((-1, 1)).squeeze(1, level=1).squeeze(1)
        return table.expand(rows.shape), numbers.tile((1,)).squeeze(0, level=1), rows

    tensors = (table, numbers, Tensor(shape=(numbers.shape[0], table.shape[1])))
    kernel = tile.kernel(arrangement, tensors=tensors)(lambda table, number: table[number])
    values, picked = normal(rng, 9, 20), rng.integers(0, 9, 30).astype(np.int32)
    check(kernel, values[picked], values, picked, kind="exact")


def test_an_element_by_two_numbers(rng: Any) -> None:
    matrix, numbers = Tensor(2), Tensor(2)

    def arrangement(matrix: Tensor, numbers: Tensor, y: Tensor) -> Any:
        y = y.tile((1,)).squeeze(0, level=1)
        matrix = matrix.tile((1, 1)).squeeze((0, 1), level=1).tile((-1, -1)).squeeze(0)
        pairs = numbers.tile((1, 1)).squeeze((0, 1), level=1).tile((1, -1)).squeeze(0, level=1).squeeze(1)
        return matrix.expand(y.shape), pairs, y

    kernel = tile.kernel(arrangement, tensors=(matrix, numbers, Tensor(shape=numbers.shape[:1])))(
        lambda matrix, pair: matrix[pair[0], pair[1]]
    )
    values, picked = normal(rng, 9, 7), rng.integers(-7, 7, (20, 2)).astype(np.int32)
    check(kernel, values[picked[:, 0], picked[:, 1]], values, picked, kind="exact")


def rows_of_a_table(application: Any, size: int, *, dtype: Any = None) -> Any:
    """A kernel of a table, a level along its first dimension, and blocks of a line of numbers."""
    table, numbers = Tensor(2), Tensor(1)

    def arrangement(table: Tensor, numbers: Tensor, rows: Tensor) -> Any:
        rows = rows.tile((size, -1)).squeeze(1)
        table = table.tile((1, -1)).squeeze(0, level=1).tile((-1, 1)).squeeze(1, level=1).squeeze(1)
        return table.expand(rows.shape), numbers.tile((size,)), rows

    result = Tensor(shape=(numbers.shape[0], table.shape[1]), dtype=dtype)
    return tile.kernel(arrangement, tensors=(table, numbers, result))(application)


@pytest.mark.parametrize("width", [20, 32, 1])
def test_many_rows_of_a_table_by_their_numbers(width: int, rng: Any) -> None:
    kernel = rows_of_a_table(lambda table, numbers: table[numbers] * 2, 8)
    values, picked = normal(rng, 9, width), rng.integers(-9, 9, 30).astype(np.int32)
    check(kernel, values[picked] * 2, values, picked, kind="exact")


def test_rows_beyond_the_table() -> None:
    values, picked = np.arange(18, dtype=np.int32).reshape(9, 2), np.array([-1, 3, 9, 8], np.int32)
    clipped = rows_of_a_table(lambda table, numbers: inp.take(table, numbers, 0, mode="clip"), 4)
    check(clipped, np.take(values, picked, 0, mode="clip"), values, picked, kind="exact")
    filled = rows_of_a_table(lambda table, numbers: table.at[numbers].get(mode="fill", fill_value=7), 4)
    wanted = np.where(picked[:, None] < 9, values[np.minimum(picked, 8)], 7).astype(np.int32)
    check(filled, wanted, values, picked, kind="exact")


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.bool_, dtypes.float64], ids=str)
def test_rows_of_other_dtypes(dtype: np.dtype, rng: Any) -> None:
    kernel = rows_of_a_table(lambda table, numbers: table[numbers], 8)
    values, picked = (normal(rng, 9, 20) > 0).astype(dtype), rng.integers(0, 9, 30).astype(np.uint8)
    check(kernel, values[picked], values, picked, kind="exact")


def test_elements_of_a_line_by_their_numbers(rng: Any) -> None:
    line, numbers = Tensor(1), Tensor(1)

    def arrangement(line: Tensor, numbers: Tensor, y: Tensor) -> Any:
        y = y.tile((16,))
        whole = line.tile((1,)).squeeze(0, level=1).tile((-1,))
        return whole.expand(y.shape), numbers.tile((16,)), y

    kernel = tile.kernel(arrangement, tensors=(line, numbers, Tensor(shape=numbers.shape)))(
        lambda line, numbers: inp.sin(line[numbers]) + numbers
    )
    values, picked = normal(rng, 40), rng.integers(0, 40, 50).astype(np.int32)
    check(kernel, np.sin(values[picked]) + picked, values, picked)


def test_a_matrix_of_numbers_picks_rows(rng: Any) -> None:
    table, numbers = Tensor(2), Tensor(2)

    def arrangement(table: Tensor, numbers: Tensor, y: Tensor) -> Any:
        y = y.tile((4, 2, -1)).squeeze(2)
        table = table.tile((1, -1)).squeeze(0, level=1).tile((-1, 1)).squeeze(1, level=1)
        return table.expand(y.shape), numbers.tile((4, 2)), y

    shape = (*numbers.shape, table.shape[1])
    kernel = tile.kernel(arrangement, tensors=(table, numbers, Tensor(shape=shape)))(
        lambda table, numbers: table[numbers].sum(2, keepdims=True) + table[numbers]
    )
    values, picked = normal(rng, 9, 20), rng.integers(0, 9, (7, 3)).astype(np.int32)
    found = values[picked]
    check(kernel, found.sum(2, keepdims=True) + found, values, picked, kind="reduction")


def test_rows_of_a_table_compile_for_a_gpu(monkeypatch: Any, tmp_path: Any) -> None:
    pytest.importorskip("triton")
    from infini.compiler.triton import compile as compile_, emit

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    types = [ArrayType((5000, 100), dtypes.bfloat16), ArrayType((3000,), dtypes.int32)]
    kernel = rows_of_a_table(lambda table, numbers: table.at[numbers].get(mode="fill"), 16).specialize(types)
    with inf.config(cache_dir=str(tmp_path)):
        assert compile_.compile_source(emit.emit_triton(kernel, types), 90).code


def test_rows_of_a_computed_table_are_refused_by_triton() -> None:
    pytest.importorskip("triton")
    from infini.compiler.triton import emit

    types = [ArrayType((9, 20), dtypes.float32), ArrayType((30,), dtypes.int32)]
    kernel = rows_of_a_table(lambda table, numbers: (table + 1)[numbers], 8).specialize(types)
    with pytest.raises(errors.LoweringError, match="rows of a level of its operands only"):
        emit.emit_triton(kernel, types)


# --- positions --------------------------------------------------------------------------------


def test_offsets_of_blocks(rng: Any) -> None:
    kernel = blocks(8)(lambda x: x + tile.offsets(x, 0))
    x = normal(rng, 30)
    check(kernel, x + np.arange(30, dtype=np.float32), x)


def test_offsets_along_each_dimension() -> None:
    x = Tensor(2)

    @tile.kernel(lambda *ts: [t.tile((4, 8)) for t in ts], tensors=(x, Tensor(shape=x.shape)))
    def kernel(x: Any) -> Any:
        rows, columns = tile.offsets(x, 0), tile.offsets(x, -1)
        assert rows.shape == (4, 1) and columns.shape == (1, 8) and tile.array_shape(x) == (10, 13)
        return x + 100 * rows + columns

    wanted = np.add.outer(100 * np.arange(10), np.arange(13)).astype(np.int32)
    check(kernel, wanted, np.zeros((10, 13), np.int32), kind="exact")


def test_offsets_of_spaced_and_padded_elements() -> None:
    x = Tensor(1, other=-1)

    @tile.kernel(
        lambda x, y: (x.pad(((2, 2),)).tile((4,), strides=(8,), dilation=(2,)), y.tile((4,))),
        tensors=(x, Tensor(shape=(8,), dtype="int32")),
    )
    def kernel(x: Any) -> Any:
        return tile.offsets(x, 0)

    check(kernel, np.arange(-2, 14, 2, dtype=np.int32), np.zeros(11, np.int32), kind="exact")


def test_offsets_of_a_flattened_tile() -> None:
    x = Tensor(2)

    @tile.kernel(
        lambda x, y: (x.tile((2, 4)).flatten(level=1).squeeze(0), y.tile((8,))),
        tensors=(x, Tensor(shape=(16,), dtype="int32")),
    )
    def kernel(x: Any) -> Any:
        return 10 * tile.offsets(x, 0) + tile.offsets(x, 1)

    grid = (10 * np.arange(2)[:, None] + np.arange(8)).reshape(2, 2, 4).swapaxes(0, 1)
    check(kernel, grid.reshape(-1).astype(np.int32), np.zeros((2, 8), np.int32), kind="exact")


def test_offsets_inside_a_loop(rng: Any) -> None:
    x = Tensor(1)

    @tile.kernel(
        lambda x, y: (x.tile((8,)).tile((-1,)), y.tile((1,)).squeeze(0, level=1)),
        tensors=(x, Tensor(shape=(1,))),
    )
    def kernel(x: Any) -> Any:
        def step(total: Any, block: Any) -> Any:
            number, values = block
            return total + (values * tile.offsets(x, 0, number)).sum(), None

        return lax.scan(step, inp.float32(0), (inp.arange(x.shape[0]), x))[0]

    values = normal(rng, 30)
    check(kernel, (values * np.arange(30)).sum(keepdims=True), values, kind="reduction")


def test_offsets_of_a_result() -> None:
    scalar = Tensor(0)

    @tile.kernel(lambda s, y: (s, y.tile((8,))), tensors=(scalar, Tensor(shape=(20,), dtype="int32")))
    def kernel(scalar: Any) -> Any:
        return scalar + tile.result_offsets(0)

    check(kernel, np.arange(5, 25, dtype=np.int32), np.asarray(5, np.int32), kind="exact")


def test_stacked_tiles_are_a_level_of_the_result(rng: Any) -> None:
    x = Tensor(1)

    @tile.kernel(
        lambda x, y: (x.tile((8,)), y.tile((-1, 8)).squeeze(0)), tensors=(x, Tensor(shape=(3, x.shape[0])))
    )
    def kernel(x: Any) -> Any:
        return tile.stack([x, x * 2, -x])

    values = normal(rng, 30)
    check(kernel, np.stack([values, values * 2, -values]), values, kind="exact")


# --- random bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(4, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("function", ["random_bits", "uniform"])
def test_random_numbers_are_those_of_the_array(function: str, block: tuple[int, int]) -> None:
    x = Tensor(2)

    def arrangement(x: Tensor, key: Tensor, y: Tensor) -> Any:
        x, y = x.tile(block), y.tile(block)
        return x, key.tile((-1,)).unsqueeze(1).expand(x.shape), y

    tensors = (x, Tensor(shape=(2,), dtype="uint32"), Tensor(shape=x.shape))
    kernel = tile.kernel(arrangement, tensors=tensors)(lambda x, key: getattr(tile, function)(key, x))
    key = random.key(7)
    wanted = {"random_bits": random.bits, "uniform": random.uniform}[function](key, (10, 13))
    check(kernel, wanted, np.zeros((10, 13), np.float32), np.asarray(random.key_data(key)), kind="exact")


def test_a_key_of_another_type_is_refused() -> None:
    x = Tensor(1)
    kernel = tile.kernel(
        lambda x, y: (x.tile((8,)), y.tile((8,))), tensors=(x, Tensor(shape=x.shape, dtype="uint32"))
    )(lambda x: tile.random_bits(x, x))
    with pytest.raises(errors.TypeMismatchError, match="two words of a key"):
        kernel(np.zeros(8, np.uint32))


# --- errors -----------------------------------------------------------------------------------


def test_offsets_of_a_computed_tile_are_refused() -> None:
    kernel = blocks(8)(lambda x: x + tile.offsets(x + 1, 0))
    with pytest.raises(errors.ValueMismatchError, match="no tile that the application was given"):
        kernel(np.zeros(8, np.float32))


def test_offsets_outside_an_application_are_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="being traced"):
        tile.offsets(inp.zeros(3), 0)
    with pytest.raises(errors.ValueMismatchError, match="result"):
        tile.result_offsets(0)


def test_a_dimension_that_the_array_lacks_is_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="array of 1 dimensions"):
        blocks(8)(lambda x: x + tile.offsets(x, 1))(np.zeros(8, np.float32))


def test_positions_beyond_the_levels_are_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="tile of 0 levels"):
        blocks(8)(lambda x: x + tile.offsets(x, 0, 1))(np.zeros(8, np.float32))


def test_an_application_that_returns_nothing_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="returns nothing"):
        blocks(8)(lambda x: None)(np.zeros(8, np.float32))


def test_tiles_of_several_types_are_not_stacked() -> None:
    with pytest.raises(errors.TypeMismatchError, match="one type"):
        tile.stack([inp.zeros(2), inp.zeros(3)])


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_a_flattened_tile_may_be_empty(shape: tuple[int, int]) -> None:
    def whole(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        turned = x.tile((-1, -1)).permute((1, 0), level=1).flatten(level=1)
        return turned, total.tile((1, 1)).squeeze((0, 1), level=1)

    kernel = tile.kernel(whole, tensors=(Tensor(2), Tensor(shape=(1, 1))))(lambda x: x.sum())
    for device in ("reference", "cpu"):
        with inf.config(device=device):
            testing.assert_close(
                kernel(np.ones(shape, np.float32)), np.full((1, 1), shape[0] * shape[1], np.float32)
            )
