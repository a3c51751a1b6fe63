"""From arranged tensors and concrete sizes to a grid and affine accesses.

Flattened dimensions of the grid stay apart: a grid dimension of one tensor made of 2 x 3 and one of size 6
elsewhere meet in the common refinement (2, 3), so no access ever needs a division.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infini.core import errors, ir
from infini.tile.affine import Concrete, Limit, Loop
from infini.tile.arrangement import Tensor
from infini.tile.program import Access
from infini.tile.symbols import Size

Loops = tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Lowered:
    """Arranged tensors at concrete sizes.

    Args:
        grid: number of programs per dimension of the refined grid.
        grid_parts: per dimension of the arrangement's grid, which refined dimensions it is the product of,
            slowest first.
        accesses: one per tensor.
        tiles: shape of the tile that the application sees, per tensor.
        shared: tensors of results that every program has whole: it may write there by numbers of rows alone,
            unless it is the only program.
    """

    grid: tuple[int, ...]
    grid_parts: tuple[tuple[int, ...], ...]
    accesses: tuple[Access, ...]
    tiles: tuple[ir.Shape, ...]
    shared: frozenset[int] = frozenset()


def lower(tensors: Sequence[Tensor], num_results: int, values: Mapping[Size, int]) -> Lowered:
    """Accesses of arranged tensors, the last `num_results` of which are results.

    Raises:
        TypeMismatchError: tensors disagree on the grid, an arrangement is no affine map, or tiles of a result
            overlap or leave elements out.
    """
    labels = [t.label(number) for number, t in enumerate(tensors)]
    found = [t.map.at(values, label) for t, label in zip(tensors, labels, strict=True)]
    for concrete, label in zip(found, labels, strict=True):
        _check_limits(concrete, label)
    # An unarranged scalar is what every program sees; any other tensor lies on the grid.
    on_grid = [i for i, t in enumerate(tensors) if not t.is_scalar]
    outer = {i: [_joined(d, len(found[i].shape)) for d in found[i].levels[0]] for i in on_grid}
    _check_grids(tensors, labels, outer)
    rank = len(outer[on_grid[0]]) if on_grid else 0
    refined = [_refine([outer[i][d] for i in on_grid], d) for d in range(rank)]
    sizes = tuple(size for part in refined for size in part)
    starts = [0, *itertools.accumulate(len(part) for part in refined)]
    accesses, tiles, shared = [], [], set()
    for number, tensor in enumerate(tensors):
        loops = [
            x
            for d in range(rank if number in outer else 0)
            for x in _split(outer[number][d], refined[d], len(found[number].shape))
        ]
        is_result = number >= len(tensors) - num_results
        moves = loops or [Loop(size, (0,) * len(found[number].shape)) for size in sizes]
        access, tile = _access(found[number], tensor.source.other, moves, labels[number])
        if is_result and _is_whole(access, found[number].shape):
            shared.add(number)
        elif is_result:
            _check_written(found[number], labels[number], [*moves, *_inner(found[number], labels[number])])
        accesses.append(access)
        tiles.append(tile)
    parts = tuple(tuple(range(starts[d], starts[d + 1])) for d in range(rank))
    return Lowered(sizes, parts, tuple(accesses), tuple(tiles), frozenset(shared))


def check_alone(lowered: Lowered, number: int, shape: ir.Shape, label: str) -> None:
    """Refuse a result that every program has whole, and stores.

    Raises:
        TypeMismatchError: there are several programs, or none that writes it.
    """
    programs = math.prod(lowered.grid)
    if number not in lowered.shared or programs == 1 or 0 in shape:
        return
    if programs == 0:
        raise _left_out(shape, label)
    raise _overlapping(label)


def _joined(dimension: Loops, rank: int) -> list[Loop]:
    """The loops of a dimension along the array alone, those of size 1 left out and even neighbours joined."""
    joined: list[Loop] = []
    for whole in dimension:
        if whole.size == 1:
            continue
        loop = Loop(whole.size, whole.steps[:rank])
        last = joined[-1] if joined else None
        if last and last.steps == tuple(step * loop.size for step in loop.steps):
            joined[-1] = Loop(last.size * loop.size, loop.steps)
        else:
            joined.append(loop)
    return joined


def _size(loops: Sequence[Loop]) -> int:
    return math.prod(loop.size for loop in loops)


# --- what must hold -----------------------------------------------------------------------------


def _range(moves: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Smallest and largest sum of moves, each of some (number of places, distance from place to place)."""
    low = high = 0
    for size, distance in moves:
        reach = distance * (size - 1)
        low, high = low + min(0, reach), high + max(0, reach)
    return low, high


def _check_limits(found: Concrete, label: str) -> None:
    """Where a coordinate leaves its limit, elements must lie outside the array: an access masks nothing
    else.
    """
    loops, rank = found.loops, len(found.shape)
    if not found.limits or any(loop.size == 0 for loop in loops):
        return
    for coordinate, limit in enumerate(found.limits, rank):
        offset = found.offsets[coordinate]
        low, high = (offset + end for end in _range((x.size, x.steps[coordinate]) for x in loops))
        is_above_safe = high < limit.size or _is_outside(found, limit, coordinate, limit.size, 1)
        is_below_safe = low >= 0 or _is_outside(found, limit, coordinate, -1, -1)
        if not (is_above_safe and is_below_safe):
            raise errors.TypeMismatchError(
                f"{label}: tiles or pads reach from a part of the array into elements beside it, "
                "and only the ends of an array can be masked",
                got=f"{limit.size} elements, reached from {low} to {high}",
                expected="tiles that fit the part, or that overrun the array itself",
                fix="choose tiles that divide the part, floor_mode=True, "
                "or give the kernel the part as an operand",
            )


def _is_outside(found: Concrete, limit: Limit, coordinate: int, end: int, sign: int) -> bool:
    """Whether every element whose coordinate is at `end` or further in the direction of `sign` lies outside
    the array: along one dimension, it moves outwards with the coordinate and the rest cannot bring it back.
    """
    for d, size in enumerate(found.shape):
        per_place = limit.steps[d]
        low, high = _range((x.size, x.steps[d] - per_place * x.steps[coordinate]) for x in found.loops)
        at = per_place * end + found.offsets[d] - per_place * found.offsets[coordinate]
        if per_place * sign > 0 and at + low >= size:
            return True
        if per_place * sign < 0 and at + high < 0:
            return True
    return False


def _check_grids(
    tensors: Sequence[Tensor], labels: Sequence[str], outer: Mapping[int, Sequence[Sequence[Loop]]]
) -> None:
    sizes = {number: tuple(_size(d) for d in dimensions) for number, dimensions in outer.items()}
    first = next(iter(sizes), 0)
    for other in sizes:
        if sizes[first] != sizes[other]:
            raise errors.TypeMismatchError(
                "the outermost levels of the tensors of a kernel must agree: they are the grid of programs",
                got=", ".join(
                    f"{labels[number]} has {tensors[number].shape} = {sizes[number]}"
                    for number in (first, other)
                ),
                fix="tile, expand or permute one of them so that both count the same programs",
            )


def _refine(found: Sequence[Sequence[Loop]], d: int) -> list[int]:
    """Sizes, slowest first, that every tensor's factors of one grid dimension are products of."""
    total = _size(found[0])
    if total == 0:
        return [0]
    bounds = {1, total}
    for loops in found:
        bounds.update(math.prod(loop.size for loop in loops[i:]) for i in range(len(loops)))
    chain = sorted(bounds)
    if any(b % a for a, b in itertools.pairwise(chain)):
        raise errors.TypeMismatchError(
            f"dimension {d} of the grid is flattened in ways that do not fit together",
            got="; ".join(" x ".join(str(loop.size) for loop in loops) for loops in found),
            fix="flatten the same dimensions in every tensor",
        )
    # A dimension of one program stays, so that the grid has the rank of the arrangement.
    return [b // a for a, b in itertools.pairwise(chain)][::-1] or [1]


def _split(loops: Sequence[Loop], sizes: Sequence[int], rank: int) -> list[Loop]:
    """The loops of a dimension cut into `sizes`, a refinement of theirs."""
    if not loops or 0 in sizes:
        return [Loop(size, (0,) * rank) for size in sizes]
    remaining, result = list(reversed(loops)), []
    done = 1
    for size in reversed(sizes):
        loop = remaining[0]
        result.append(Loop(size, tuple(step * done for step in loop.steps)))
        done *= size
        if done == loop.size and len(remaining) > 1:
            remaining, done = remaining[1:], 1
    return result[::-1]


def _access(
    found: Concrete, other: complex | None, grid: Sequence[Loop], label: str
) -> tuple[Access, ir.Shape]:
    rank = len(found.shape)
    inner = _levels(found)
    tile_shape = tuple(_size(d) for level in inner for d in level)
    tile, levels = _tile_loops(label, inner, rank)
    moves = [*grid, *tile]
    offsets = found.offsets[:rank]
    ranges = [_range((x.size, x.steps[d]) for x in moves) for d in range(rank)]
    is_inside = all(
        offset + low >= 0 and offset + high < size
        for offset, (low, high), size in zip(offsets, ranges, found.shape, strict=True)
    )
    return (
        Access(
            tuple(loop.size for loop in tile),
            tuple(tuple(loop.steps[d] for loop in grid) for d in range(rank)),
            tuple(tuple(loop.steps[d] for loop in tile) for d in range(rank)),
            offsets,
            None if is_inside else (other or 0),
            levels,
        ),
        tile_shape,
    )


def _levels(found: Concrete) -> list[list[list[Loop]]]:
    rank = len(found.shape)
    return [[_joined(d, rank) for d in level] for level in found.levels[1:]]


def _inner(found: Concrete, label: str) -> list[Loop]:
    """The loops of a tile."""
    return _tile_loops(label, _levels(found), len(found.shape))[0]


def _is_whole(access: Access, shape: ir.Shape) -> bool:
    """Whether every program has the whole array as its tile, in order."""
    if not shape or any(any(row) for row in access.grid_strides) or any(access.offsets):
        return False
    steps = zip(*access.tile_strides, strict=True)
    moving = [(n, step) for n, step in zip(access.tile, steps, strict=True) if n != 1]
    unit = [tuple(int(i == d) for i in range(len(shape))) for d in range(len(shape))]
    return moving == [(n, step) for n, step in zip(shape, unit, strict=True) if n != 1]


def _tile_loops(label: str, inner: Sequence[Sequence[Sequence[Loop]]], rank: int) -> tuple[list[Loop], int]:
    """Loops of the dimensions of a tile, and how many of them belong to levels that a loop of the application
    walks.
    """
    tile: list[Loop] = []
    levels = 0
    for index, level in enumerate(inner):
        is_walked = index < len(inner) - 1
        for loops in level:
            found = list(loops) or [Loop(1, (0,) * rank)]
            if is_walked and len(found) > 1:
                raise errors.TypeMismatchError(
                    f"{label}: a flattened dimension that is walked must lie evenly",
                    got=" x ".join(str(loop.size) for loop in found),
                    fix="leave its parts as dimensions of their own, and walk each by a loop",
                )
            tile += found
            levels += is_walked
    return tile, levels


def _check_written(found: Concrete, label: str, moves: Sequence[Loop]) -> None:
    """Refuse a result two of whose (program, element) pairs meet, or that has elements which none writes.

    Sufficient for the first is that steps are those of a mixed radix: each is larger than all smaller ones
    reach together. Where each is larger by one, nothing is left out between the ends.
    """
    if 0 in found.shape:
        return
    real = [loop for loop in moves if loop.size != 1]
    if any(loop.size and not any(loop.steps) for loop in real):
        raise _overlapping(label)
    if any(loop.size == 0 for loop in real):
        raise _left_out(found.shape, label)
    for d, size in enumerate(found.shape):
        along = sorted(
            (abs(loop.steps[d]), loop.size, sum(map(bool, loop.steps))) for loop in real if loop.steps[d]
        )
        low, high = _range((loop.size, loop.steps[d]) for loop in real)
        reach, is_gapless = 0, True
        for step, count, num_dimensions in along:
            if step <= reach or num_dimensions > 1:
                raise errors.TypeMismatchError(f"{label} is a result and its tiles overlap")
            is_gapless &= step == reach + 1
            reach += step * (count - 1)
        offset = found.offsets[d]
        is_whole = is_gapless and offset + low <= 0 and offset + high >= size - 1
        if not (is_whole or _is_covered(real, d, offset, size)):
            raise _left_out(found.shape, label)


def _overlapping(label: str) -> errors.TypeMismatchError:
    return errors.TypeMismatchError(
        f"{label} is a result and its programs or elements write the same place",
        fix="do not expand results, or return what is written by numbers of rows: tile.scatter_add",
    )


def _left_out(shape: ir.Shape, label: str) -> errors.TypeMismatchError:
    return errors.TypeMismatchError(
        f"{label} is a result and its tiles leave out some of its elements",
        got=f"an array of {shape}",
        expected="tiles that cover it",
        fix="leave floor_mode and gaps between tiles to operands, or make the result smaller",
    )


def _is_covered(loops: Sequence[Loop], d: int, offset: int, size: int) -> bool:
    """Whether every index along a dimension is among those of some loops, by counting."""
    found = np.array([offset])
    for loop in loops:
        if loop.steps[d]:
            found = (found[:, None] + loop.steps[d] * np.arange(loop.size)).ravel()
    return bool(np.count_nonzero((found >= 0) & (found < size)) == size)
