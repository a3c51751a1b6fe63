"""What an application may ask about the program that it describes: which one it is, where the elements of its
tiles lie, and how large the arrays are.

A tile is known by its identity, so these functions take the tiles that the application was given, before any
operation on them.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, reduction, view
from infini.lax.random_bits import threefry2x32
from infini.tile.lowering import Lowered
from infini.tile.program import Access


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile of the application: its value, None for a result, and where it lies."""

    value: Value | None
    access: Access
    shape: ir.Shape  # as the application sees it
    array: ir.Shape


@dataclass(frozen=True, slots=True)
class _Running:
    """An application that is being traced."""

    operands: tuple[_Tile, ...]
    results: tuple[_Tile, ...]
    ids: tuple[Value, ...]  # per refined dimension of the grid
    combined: tuple[Value, ...]  # per dimension of the arrangement's grid


_running: contextvars.ContextVar[_Running | None] = contextvars.ContextVar("infini_running", default=None)


def program_id(axis: int) -> Value:
    """Which program is running, along a dimension of the arrangement's grid: an int32 scalar; for
    applications only.

    Raises:
        ValueMismatchError: no application is being traced, or the grid has no such dimension.
    """
    running = _running.get()
    ids = () if running is None else running.combined
    if not -len(ids) <= axis < len(ids):
        raise errors.ValueMismatchError(
            f"program_id({axis}) has no meaning here",
            got=f"a grid of {len(ids)} dimensions",
            expected="an application of a kernel",
        )
    return ids[axis]


def array_shape(tile: Value) -> tuple[int, ...]:
    """Sizes of the array that a tile was cut from; for applications only.

    Args:
        tile: a tile as the application was given it.

    Raises:
        ValueMismatchError: it is no such tile.
    """
    return _known(tile).array


def offsets(tile: Value, dim: int, *positions: Value | int) -> Value:
    """Where the elements of a tile lie along one dimension of its array; for applications only.

    Elements outside the array have offsets below 0 or from its size up.

    Args:
        tile: a tile as the application was given it.
        dim: dimension of the array.
        *positions: where the loops over the leading levels of the tile stand; levels without one stay
            dimensions of the result.

    Returns:
        int32, of the shape of the tile at these positions, with size 1 where the offset does not change: it
        broadcasts against the tile.

    Raises:
        ValueMismatchError: this is no tile of the application, or its array has no such dimension.

    Example:
        >>> import numpy as np
        >>> import infini as inf
        >>> from infini import tile
        >>> x = tile.Tensor(1)
        >>> @tile.kernel(lambda *ts: [t.tile((4,)) for t in ts], tensors=(x, tile.Tensor(shape=x.shape)))
        ... def from_the_end(x):
        ...     return x + tile.array_shape(x)[0] - 1 - tile.offsets(x, 0)
        >>> from_the_end(np.zeros(6, np.int32))
        Array([5, 4, 3, 2, 1, 0], dtype=int32)
    """
    return _offsets(_known(tile), dim, positions)


def result_offsets(dim: int, number: int = 0) -> Value:
    """`offsets` of the tile that the application returns as result `number`.

    Raises:
        ValueMismatchError: no application is being traced, or there is no such result or dimension.
    """
    running = _running.get()
    if running is None or not 0 <= number < len(running.results):
        raise errors.ValueMismatchError(
            f"result_offsets of result {number} have no meaning here",
            expected="the number of a result, in an application of a kernel",
        )
    return _offsets(running.results[number], dim, ())


def random_bits(key: Value, tile: Value) -> Value:
    """Random bits for every element of a tile, by its place in the array; for applications only.

    Where a program stands, how large its tile is and over which mesh the array is split make no difference:
    the bits are those that `random.bits(key, array.shape)` has at the same places.

    Args:
        key: the two words of a key, uint32[2]: a tile of `random.key_data(key)`.
        tile: a tile as the application was given it.

    Returns:
        uint32, of the shape of the tile.

    Raises:
        TypeMismatchError: the key is no two words.
        ValueMismatchError: this is no tile of the application, or its array has 2**32 elements or more.
    """
    known = _known(tile)
    if key.shape != (2,) or key.dtype != dtypes.uint32:
        raise errors.TypeMismatchError(
            "random bits are made from the two words of a key",
            got=str(key.type),
            expected="u32[2]",
            fix="give the kernel random.key_data(key), arranged by tile((-1,))",
        )
    if math.prod(known.array) >= 1 << 32:
        raise errors.ValueMismatchError(
            "one array has fewer than 2**32 random elements", got=f"shape {known.array}"
        )
    counter: Value = Literal(np.asarray(0, np.uint32), weak=False)
    for dim, size in enumerate(known.array):
        place = e.convert_element_type(_offsets(known, dim, ()), dtypes.uint32)
        counter = e.add(e.mul(counter, size), place)
    high = Literal(np.asarray(0, np.uint32), weak=False)
    first, second = threefry2x32(_word(key, 0), _word(key, 1), high, counter)
    return view.broadcast_in_dim(e.bitwise_xor(first, second), tile.shape, range(tile.ndim))


def uniform(key: Value, tile: Value) -> Value:
    """Random float32 in [0, 1) for every element of a tile, those of `random.uniform` at the same places; for
    applications only.

    Args:
        key: as of `random_bits`.
        tile: as of `random_bits`.

    Example:
        >>> import numpy as np
        >>> import infini as inf
        >>> import infini.numpy as inp
        >>> from infini import random, tile
        >>> x = tile.Tensor(1)
        >>> def arrangement(x, key, y):
        ...     y = y.tile((64,))
        ...     return x.tile((64,)), key.tile((-1,)).expand(y.shape), y
        >>> words = tile.Tensor(shape=(2,), dtype="uint32")
        >>> @tile.kernel(arrangement, tensors=(x, words, tile.Tensor(shape=x.shape)))
        ... def dropout(x, key):
        ...     return inp.where(tile.uniform(key, x) < 0.5, x * 2, 0)
        >>> dropout(np.ones(6, np.float32), random.key_data(random.key(0)))
        Array([0., 0., 2., 2., 0., 2.], dtype=float32)
    """
    bits = e.shift_right_logical(random_bits(key, tile), 9)
    return e.mul(e.convert_element_type(bits, dtypes.float32), 2.0**-23)


def stack(tiles: Sequence[Value]) -> Value:
    """Join tiles of one type along a leading dimension: the tile of a result that has a level of so many.

    Raises:
        TypeMismatchError: the tiles differ in type, or there is none.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import tile
        >>> tile.stack([inp.zeros(2), inp.ones(2)])
        Array([[0., 0.],
               [1., 1.]], dtype=float32)
    """
    values = [trace.as_value(x) for x in tiles]
    if len({v.type for v in values}) != 1:
        raise errors.TypeMismatchError(
            "stack takes tiles of one type", got=", ".join(str(v.type) for v in values) or "none"
        )
    shape = (len(values), *values[0].shape)
    dims = tuple(range(1, len(shape)))
    place = _iota(shape, 0)
    found = view.broadcast_in_dim(values[0], shape, dims)
    for number, value in enumerate(values[1:], 1):
        found = e.select(e.eq(place, number), view.broadcast_in_dim(value, shape, dims), found)
    return found


@contextlib.contextmanager
def running(
    tiles: Sequence[Value], arrays: Sequence[ir.Shape], lowered: Lowered, ids: Sequence[Value]
) -> Iterator[None]:
    """Answer questions of the application that is traced meanwhile.

    Args:
        tiles: the tiles it is given.
        arrays: shapes of the arrays of operands, then of results.
        lowered: its accesses.
        ids: number of the program along each refined dimension of the grid.
    """
    values = [*tiles, *[None] * (len(arrays) - len(tiles))]
    known = [
        _Tile(*item) for item in zip(values, lowered.accesses, lowered.tiles, map(tuple, arrays), strict=True)
    ]
    combined = []
    for parts in lowered.grid_parts:
        total = ids[parts[0]]
        for part in parts[1:]:
            total = e.add(e.mul(total, lowered.grid[part]), ids[part])
        combined.append(total)
    now = _Running(tuple(known[: len(tiles)]), tuple(known[len(tiles) :]), tuple(ids), tuple(combined))
    token = _running.set(now)
    try:
        yield
    finally:
        _running.reset(token)


def is_running() -> bool:
    """Whether an application is being traced."""
    return _running.get() is not None


def operand_number(tile: Value) -> int:
    """Which operand a tile of the application is.

    Raises:
        ValueMismatchError: it is no such tile.
    """
    running, known = _running.get(), _known(tile)
    assert running is not None
    return next(n for n, found in enumerate(running.operands) if found is known)


def _known(tile: Value) -> _Tile:
    running = _running.get()
    for found in () if running is None else running.operands:
        if found.value is tile:
            return found
    raise errors.ValueMismatchError(
        "this is no tile that the application was given",
        got=f"a value of {tile.type}" if isinstance(tile, Value) else repr(tile),
        expected="a parameter of the application that is being traced",
        fix="ask before the tile goes through an operation, and give positions instead of x[i]",
    )


def _offsets(tile: _Tile, dim: int, positions: Sequence[Value | int]) -> Value:
    access, rank = tile.access, len(tile.array)
    if not -rank <= dim < rank or len(positions) > access.levels:
        raise errors.ValueMismatchError(
            "offsets of a tile: there is no such dimension or level",
            got=f"dimension {dim}, {len(positions)} positions",
            expected=f"an array of {rank} dimensions, a tile of {access.levels} levels",
        )
    running = _running.get()
    assert running is not None
    dim %= rank
    lead, strides = len(positions), access.tile_strides[dim]
    moves = [
        *zip(running.ids, access.grid_strides[dim], strict=True),
        *zip(positions, strides, strict=False),
    ]
    total: Value = Literal(np.asarray(access.offsets[dim], np.int32), weak=False)
    for place, step in moves:
        if step:
            total = e.add(total, e.mul(e.convert_element_type(place, dtypes.int32), step))
    lanes = _lanes(tile.shape[lead:], access.tile[lead:], strides[lead:])
    shape = tuple(n if steps else 1 for n, steps in zip(tile.shape[lead:], lanes, strict=True))
    total = view.broadcast_in_dim(total, shape, ()) if shape else total
    for axis, steps in enumerate(lanes):
        for inner, size, step in steps:
            place = _iota(shape, axis)
            place = place if inner == 1 else e.div(place, inner)
            place = place if inner * size == shape[axis] else e.rem(place, size)
            total = e.add(total, e.mul(place, step))
    return total


def _lanes(
    shape: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> list[list[tuple[int, int, int]]]:
    """Per dimension of a tile, the steps it is made of that move: (elements per step, steps, distance)."""
    found = []
    rest = list(zip(sizes, strides, strict=True))
    for n in shape:
        own = [rest.pop(0)]
        while rest and own[0][0] and math.prod(size for size, _ in own) < n:
            own.append(rest.pop(0))
        inner, steps = 1, []
        for size, step in reversed(own):
            steps += [(inner, size, step)] if step else []
            inner *= size
        found.append(steps)
    return found


def _iota(shape: ir.Shape, axis: int) -> Value:
    return view.broadcasted_iota(dtypes.int32, shape, axis)


def _word(key: Value, number: int) -> Value:
    """One word of a key: a sum, because emitters cannot cut a tile."""
    return reduction.reduce_sum(e.select(e.eq(_iota((2,), 0), number), key, e.mul(key, 0)), (0,))
