"""Affine accesses as Triton pointer expressions: offsets, and masks where an index can leave the array.

Arrays are dense in C order and their sizes are known, so every factor is a constant. A tile dimension along
which the array index does not move is loaded once, with size 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infini.compiler.triton.source import padded
from infini.core.ir import Shape
from infini.tile.program import Access

_INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Expressions of one tile of an array.

    Args:
        offset: elements from the start of the array.
        mask: where the tile lies inside the array and inside its logical shape; empty when everywhere.
        shape: padded shape of what is loaded or stored; dimensions that do not move have size 1.
    """

    offset: str
    mask: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Tail:
    """One chunk of a walked tile dimension: elements from `position * chunk` on, of `size`, along `axis`."""

    position: str
    chunk: int
    size: int
    axis: int


@dataclass(frozen=True, slots=True)
class _Term:
    """A variable of the map: its expression, how many values it takes, and its factor per array dimension."""

    name: str
    size: int
    steps: tuple[int, ...]
    is_lane: bool = False


def place(
    access: Access,
    shape: Shape,
    grid: Sequence[int],
    programs: Sequence[str],
    walked: Sequence[str] = (),
    *,
    tail: Tail | None = None,
    block_rank: int = 0,
) -> Place:
    """Where a tile lies.

    Args:
        access: how the array is cut.
        shape: shape of the array.
        grid: number of programs per dimension.
        programs: expression of each program id.
        walked: expressions of the positions along the leading dimensions of the tile that loops have reached.
        tail: the chunk of one dimension to take; without walked dimensions.
        block_rank: dimensions of the last of `walked`, where that is a block; it has them all, those of the
            tile with size 1.
    """
    if tail is not None:
        access, walked = _chunked(access, tail), (tail.position,)
    lead, strides = len(walked), c_strides(shape)
    tile = access.tile[lead:]
    sizes = tuple(
        n if any(row[lead + t] for row in access.tile_strides) else 1 for t, n in enumerate(padded(tile))
    )
    blocked = (*(1,) * block_rank, *sizes)
    scalars = [
        _Term(p, n, tuple(row[j] for row in access.grid_strides))
        for j, (p, n) in enumerate(zip(programs, grid, strict=True))
    ]
    scalars += [
        _Term(w, access.tile[i], tuple(row[i] for row in access.tile_strides)) for i, w in enumerate(walked)
    ]
    terms = [term for term in scalars if term.size != 1]
    terms += [
        _Term(
            lane(blocked, block_rank + t),
            tile[t],
            tuple(row[lead + t] for row in access.tile_strides),
            is_lane=True,
        )
        for t in range(len(tile))
        if sizes[t] > 1
    ]
    is_long = _span(terms, strides, access.offsets) > _INT32_MAX
    offset = _linear(terms, strides, access.offsets, is_long=is_long, keep_lanes=True)
    if blocked and not any(term.is_lane for term in terms):
        # Adding a block makes the pointer a block even where every size is 1.
        offset = f"{offset} + tl.zeros({list(blocked)}, tl.int32)"
    conditions = [] if access.fill is None else _array_conditions(terms, shape, access.offsets)
    for t, n in enumerate(tile):
        if sizes[t] > n and not _is_cut_by_array(access, lead + t, shape, terms):
            conditions.append(f"({lane(blocked, block_rank + t)} < {n})")
    if tail is not None and tail.size % tail.chunk and sizes[tail.axis] > 1:
        conditions.append(f"({tail.position} * {tail.chunk} + {lane(sizes, tail.axis)} < {tail.size})")
    return Place(offset, " & ".join(conditions), blocked)


def _chunked(access: Access, tail: Tail) -> Access:
    """The access with one dimension cut into a walked one and chunks."""
    tile = tuple(tail.chunk if t == tail.axis else n for t, n in enumerate(access.tile))
    strides = tuple((tail.chunk * row[tail.axis], *row) for row in access.tile_strides)
    count = -(-tail.size // tail.chunk)
    return Access((count, *tile), access.grid_strides, strides, access.offsets, access.fill, 1)


def lane(shape: Shape, axis: int) -> str:
    """Positions along one axis of a padded tile, as a block that broadcasts with the others."""
    arange = f"tl.arange(0, {shape[axis]})"
    if len(shape) == 1:
        return arange
    return f"{arange}[{', '.join(':' if i == axis else 'None' for i in range(len(shape)))}]"


def c_strides(shape: Shape) -> tuple[int, ...]:
    """Elements between neighbours along each dimension of a dense array in C order."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def _array_conditions(terms: Sequence[_Term], shape: Shape, offsets: Sequence[int]) -> list[str]:
    """Comparisons of the index along each array dimension, where it can lie outside."""
    conditions = []
    for d, size in enumerate(shape):
        unit = tuple(int(i == d) for i in range(len(shape)))
        moves = [term.steps[d] * (term.size - 1) for term in terms]
        low = offsets[d] + sum(min(0, move) for move in moves)
        high = offsets[d] + sum(max(0, move) for move in moves)
        index = _linear(terms, unit, offsets, is_long=high > _INT32_MAX, keep_lanes=False)
        conditions += [f"({index} >= 0)"] if low < 0 else []
        conditions += [f"({index} < {size})"] if high >= size else []
    return conditions


def _is_cut_by_array(access: Access, t: int, shape: Shape, terms: Sequence[_Term]) -> bool:
    """Whether the array ends where tile dimension `t` does in the last program, so that its mask covers the
    padding too.
    """
    if access.fill is None:
        return False
    for d, row in enumerate(access.tile_strides):
        moves = [term.steps[d] * (term.size - 1) for term in terms]
        masked = access.offsets[d] + sum(max(0, move) for move in moves) >= shape[d]
        alone = all(term.steps[d] == 0 for term in terms if not term.is_lane) and sum(map(bool, row)) == 1
        if masked and alone and row[t] > 0 and access.offsets[d] + row[t] * access.tile[t] >= shape[d]:
            return True
    return False


def _span(terms: Sequence[_Term], strides: Sequence[int], offsets: Sequence[int]) -> int:
    """Largest distance from the start of the array that any partial sum of the offset reaches."""
    padded_moves = (abs(_dot(strides, term.steps)) * padded((term.size,))[0] for term in terms)
    return abs(_dot(strides, offsets)) + sum(padded_moves)


def _linear(
    terms: Sequence[_Term], weights: Sequence[int], offsets: Sequence[int], *, is_long: bool, keep_lanes: bool
) -> str:
    """Weighted sum of the array indices; `keep_lanes` keeps lanes of factor 0, for their shape."""
    parts = []
    for term in terms:
        factor = _dot(weights, term.steps)
        if factor or (term.is_lane and keep_lanes):
            name = f"{term.name}.to(tl.int64)" if is_long else term.name
            parts.append(name if factor == 1 else f"{name} * {factor}")
    constant = _dot(weights, offsets)
    return " + ".join([*parts, *([str(constant)] if constant else [])]) or "0"


def _dot(weights: Sequence[int], steps: Sequence[int]) -> int:
    return sum(w * s for w, s in zip(weights, steps, strict=True))
