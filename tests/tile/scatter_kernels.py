"""Kernels that write results at run-time places, shared by the tests of the language and of the emitters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import infini.numpy as inp
from infini import tile
from infini.core import dtypes
from infini.tile import Symbol, Tensor

Tile = Any  # Any: traced tiles

_numbers, _rows = Tensor(1, name="numbers"), Tensor(2, name="rows")
_height = Symbol("height")


def _level_of_rows(table: Tensor, grid: Any) -> Tensor:  # Any: a shape of sizes
    """Every row a tile, all of them a level, for every program."""
    table = table.tile((1, -1)).squeeze(0, level=1)
    return table.tile((-1, 1)).squeeze(1, level=1).squeeze(1).expand(grid)


def _by_rows(numbers: Tensor, rows: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    rows = rows.tile((16, -1)).squeeze(1)
    return numbers.tile((16,)), rows, _level_of_rows(table, rows.shape)


@tile.kernel(_by_rows, tensors=(_numbers, _rows, Tensor(shape=(_height, _rows.shape[1]))))
def embedding_gradient(numbers: Tile, rows: Tile) -> Any:
    return tile.scatter_add(0, numbers, rows)


_table = Tensor(2, name="table")


def _into_table(table: Tensor, numbers: Tensor, rows: Tensor, result: Tensor) -> tuple[Tensor, ...]:
    numbers, rows, result = _by_rows(numbers, rows, result)
    return _level_of_rows(table, rows.shape), numbers, rows, result


def _table_kernel(function: Any, name: str, **options: Any) -> Any:  # Any: of tiles; of the decorator
    tensors = (_table, _numbers, _rows, Tensor(shape=_table.shape))
    return tile.kernel(_into_table, tensors=tensors, name=name, **options)(function)


put = _table_kernel(lambda table, numbers, rows: tile.scatter(table, numbers, rows), "put")
add = _table_kernel(lambda table, numbers, rows: tile.scatter_add(table, numbers, rows), "add")
largest = _table_kernel(lambda table, numbers, rows: tile.scatter_max(table, numbers, rows), "largest")
smallest = _table_kernel(lambda table, numbers, rows: tile.scatter_min(table, numbers, rows), "smallest")
add_defined = _table_kernel(
    lambda table, numbers, rows: tile.scatter_add(table, numbers, rows * rows), "add_defined",
    definition=lambda table, numbers, rows: table.at[numbers].add(rows * rows, mode="drop"),
)  # fmt: skip
add_by_rule = _table_kernel(
    lambda table, numbers, rows: tile.scatter_add(table, numbers, rows), "add_by_rule",
    vjp=(
        lambda table, numbers, rows: (add(table, numbers, rows), numbers),
        lambda numbers, ct: (ct, inp.zeros_like(numbers), ct[numbers]),
    ),
)  # fmt: skip

doubled = _table_kernel(
    lambda table, numbers, rows: tile.scatter_add(table, numbers, table[numbers] + rows), "doubled"
)
one_by_one = tile.kernel(
    lambda numbers, rows, out: (
        numbers.tile((1,)).squeeze(0, level=1),
        rows.tile((1, -1)).squeeze(1).squeeze(0, level=1),
        out.tile((-1, -1)).squeeze(0).expand(numbers.shape),
    ),
    tensors=(_numbers, _rows, Tensor(shape=(_height, _rows.shape[1]))),
    name="one_by_one",
)(lambda numbers, rows: tile.scatter_add(0, numbers, rows))

_x = Tensor(1, name="x")


def _bins(x: Tensor, *counts: Tensor) -> tuple[Tensor, ...]:
    x = x.tile((16,))
    return (x, *(t.tile((-1,)).expand(x.shape) for t in counts))


@tile.kernel(_bins, tensors=(_x, Tensor(shape=(5,)), Tensor(shape=(5,), dtype="float32")), num_results=2)
def histogram(x: Tile) -> Any:
    """How many numbers of 0 to 1 lie in each fifth, and the largest of them."""
    bins = inp.floor(x * 5).astype("int32")
    return tile.scatter_add(0, bins, 1), tile.scatter_max(-math.inf, (bins,), x)


_logits = Tensor(2, other=-math.inf, name="logits")


@tile.kernel(
    lambda x, y: (x.tile((16, 8)).squeeze(1), y.tile((-1,)).expand((-(-x.shape[0] // 16),))),
    tensors=(_logits, Tensor(shape=(_logits.shape[1],))),
)
def chosen(logits: Tile) -> Any:
    """How often each column of at most 8 has the largest number of its row."""
    return tile.scatter_add(0, logits.argmax(1), 1)


_i, _j, _values = Tensor(1, name="i"), Tensor(1, name="j"), Tensor(1, name="values")
_cells = Tensor(shape=(Symbol("height"), Symbol("width")))


def _by_cells(i: Tensor, j: Tensor, values: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    i = i.tile((8,))
    return i, j.tile((8,)), values.tile((8,)), cells.tile((-1, -1)).squeeze(0).expand(i.shape)


@tile.kernel(_by_cells, tensors=(_i, _j, _values, _cells))
def cells(i: Tile, j: Tile, values: Tile) -> Any:
    return tile.scatter_add(0, (i, j), values)


@tile.kernel(
    lambda slots, i, out: (
        slots.tile((1,)).squeeze(0, level=1).tile((-1,)).expand((-(-i.shape[0] // 16),)),
        i.tile((16,)),
        out.tile((-1,)).expand((-(-i.shape[0] // 16),)),
    ),
    tensors=(_x, _i, Tensor(shape=_x.shape)),
)
def through_slots(slots: Tile, i: Tile) -> Any:
    """Marks the slots that some numbers stand for."""
    return tile.scatter(0, slots[i], 1)


# --- operands and oracle ------------------------------------------------------------------------

DTYPES = (dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int32)
UFUNCS = {"add": np.add, "largest": np.maximum, "smallest": np.minimum}


def draw(rng: Any, height: int, count: int, width: int, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """A table, numbers of rows of which some are none, and rows; whole numbers, so sums are exact."""
    table, rows = (rng.integers(-4, 5, (n, width)).astype(dtype) for n in (height, count))
    return table, rng.integers(-2, height + 2, count).astype(np.int32), rows


def wanted(ufunc: Any, table: np.ndarray, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found, is_row = table.copy(), (numbers >= 0) & (numbers < len(table))
    ufunc.at(found, numbers[is_row], rows[is_row])
    return found
