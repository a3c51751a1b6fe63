"""Which parts of an array the tiles of one program cover, scaled down to what a picture can show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.core.ir import Shape
from infini.tile.simulation import Placement

_UNTOUCHED: Final = -1
_MAX_PROGRAMS: Final = 4096  # whose outlines are looked for
_MAX_OUTLINES: Final = 400


@dataclass(frozen=True, slots=True)
class Box:
    """Rows from `top` up to `bottom`, columns from `left` up to `right`; `value` is a step."""

    top: float
    bottom: float
    left: float
    right: float
    value: int = 0


@dataclass(frozen=True, slots=True)
class ArrayMap:
    """Two dimensions of an array and the tiles of one program in it.

    Args:
        leading: the index along the dimensions before the last two.
        shape: rows and columns of the array.
        bounds: what is shown, which contains the array and as much of the tiles outside as fits.
        inside: parts of the array that tiles cover, with their steps.
        outside: parts of tiles that lie outside.
        hidden: whether tiles reach beyond `bounds`.
        outlines: tiles of all programs, when they do not overlap.
    """

    leading: tuple[int, ...]
    shape: tuple[int, int]
    bounds: Box
    inside: tuple[Box, ...]
    outside: tuple[Box, ...]
    hidden: bool
    outlines: tuple[Box, ...]


def array_maps(
    placement: Placement, program: Sequence[int], step: int, *, bins: tuple[int, int], most: int
) -> tuple[list[ArrayMap], int]:
    """Maps of the planes of an array that a program touches.

    Args:
        placement: how the array is cut.
        program: the program.
        step: the step of the walked levels that is painted over the others.
        bins: rows and columns that a picture can tell apart.
        most: how many planes to show.

    Returns:
        The maps, and how many planes more the program touches.
    """
    shape = placement.type.shape
    index = placement.indices(program)
    num_steps = int(np.prod(placement.walked, dtype=np.int64))
    steps = np.arange(num_steps).repeat(int(np.prod(placement.tile, dtype=np.int64)))
    flat = [at.reshape(-1) for at in index]
    zeros = np.zeros(steps.shape, np.int64)
    *leading, rows, columns = [zeros] * (2 - len(flat)) + flat
    plane: tuple[int, int] = ((1, 1, *shape)[-2], (1, 1, *shape)[-1])
    sizes = shape[:-2]
    number = zeros
    is_inside = np.ones(steps.shape, bool)
    for at, size in zip(leading, sizes, strict=True):
        number = number * size + at
        is_inside &= (at >= 0) & (at < size)
    planes = list(dict.fromkeys(number[is_inside].tolist()))
    boxes = list(_outlines(placement))
    maps = []
    for chosen in planes[:most]:
        own = is_inside & (number == chosen)
        lead = tuple(int(i) for i in np.unravel_index(chosen, sizes)) if sizes else ()
        outlines = tuple(box for where, box in boxes if _holds(where, lead))
        maps.append(
            _map(
                lead, plane, rows=rows[own], columns=columns[own], steps=steps[own], step=step,
                bins=bins, outlines=outlines,
            )
        )  # fmt: skip
    return maps, max(0, len(planes) - most)


def _map(
    leading: tuple[int, ...],
    shape: tuple[int, int],
    *,
    rows: np.ndarray,
    columns: np.ndarray,
    steps: np.ndarray,
    step: int,
    bins: tuple[int, int],
    outlines: tuple[Box, ...],
) -> ArrayMap:
    top, bottom = _bounds(rows, shape[0])
    left, right = _bounds(columns, shape[1])
    shown = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    hidden = not bool(shown.all())
    rows, columns, steps = rows[shown], columns[shown], steps[shown]
    height, width = bottom - top, right - left
    num_rows, num_columns = min(height, bins[0]), min(width, bins[1])
    cells = np.full((num_rows, num_columns), _UNTOUCHED, np.int64)
    order = np.argsort(np.where(steps == step, -1, steps), kind="stable")[::-1]  # the last one painted stays
    at = (rows[order] - top) * num_rows // height, (columns[order] - left) * num_columns // width
    cells[at] = steps[order]
    middle_row = top + (np.arange(num_rows) + 0.5) * height / num_rows
    middle_column = left + (np.arange(num_columns) + 0.5) * width / num_columns
    inside = ((middle_row >= 0) & (middle_row < shape[0]))[:, None] & (
        (middle_column >= 0) & (middle_column < shape[1])
    )
    scale = (height / num_rows, width / num_columns)
    origin = (top, left)
    return ArrayMap(
        leading,
        shape,
        Box(top, bottom, left, right),
        tuple(_merged(np.where(inside, cells, _UNTOUCHED), scale, origin)),
        tuple(_merged(np.where(inside | (cells == _UNTOUCHED), _UNTOUCHED, 0), scale, origin)),
        hidden,
        outlines if _is_tiling(outlines, shape) else (),
    )


def _bounds(at: np.ndarray, size: int) -> tuple[int, int]:
    """What is shown of a dimension: the array, and tiles outside up to its own size."""
    room = max(size, 4)
    return max(min(0, int(at.min())), -room), max(min(max(size, int(at.max()) + 1), size + room), 1)


def _merged(cells: np.ndarray, scale: tuple[float, float], origin: tuple[int, int]) -> Iterator[Box]:
    """Equal neighbours as boxes, in elements."""

    def box(first: int, last: int, start: int, stop: int, value: int) -> Box:
        return Box(
            origin[0] + first * scale[0], origin[0] + last * scale[0],
            origin[1] + start * scale[1], origin[1] + stop * scale[1], value,
        )  # fmt: skip

    open_runs: dict[tuple[int, int, int], int] = {}
    for number, row in enumerate(cells):
        runs = set(_runs(row))
        for run in [run for run in open_runs if run not in runs]:
            yield box(open_runs.pop(run), number, *run)
        for run in runs:
            open_runs.setdefault(run, number)
    for run, first in open_runs.items():
        yield box(first, len(cells), *run)


def _runs(row: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Start, end and value of what is touched in a row."""
    edges = np.flatnonzero(np.diff(row)) + 1
    for start, stop in itertools.pairwise([0, *edges.tolist(), len(row)]):
        if row[start] != _UNTOUCHED:
            yield start, stop, int(row[start])


# --- tiles of all programs -------------------------------------------------------------------------

_Range = tuple[int, int]


def _outlines(placement: Placement) -> Iterator[tuple[tuple[_Range, ...], Box]]:
    """The smallest box around the tiles of every program: along leading dimensions, and in the plane."""
    access, shape = placement.access, placement.type.shape
    sizes = tuple(itertools.chain.from_iterable(placement.parts))
    if int(np.prod(sizes, dtype=np.int64)) > _MAX_PROGRAMS or 0 in access.tile:
        return
    seen = set()
    for program in np.ndindex(*sizes):
        ranges = []
        for offset, by_grid, by_tile, size in zip(
            access.offsets, access.grid_strides, access.tile_strides, shape, strict=True
        ):
            start = offset + sum(f * g for f, g in zip(by_grid, program, strict=True))
            ends = [f * (n - 1) for f, n in zip(by_tile, access.tile, strict=True)]
            low, high = start + sum(min(0, e) for e in ends), start + sum(max(0, e) for e in ends) + 1
            ranges.append((max(low, 0), min(high, size)))
        if tuple(ranges) in seen or any(low >= high for low, high in ranges):
            continue
        seen.add(tuple(ranges))
        *leading, rows, columns = [(0, 1)] * (2 - len(ranges)) + ranges
        yield tuple(leading), Box(*rows, *columns)


def _holds(ranges: Sequence[_Range], leading: Shape) -> bool:
    return all(low <= i < high for (low, high), i in zip(ranges, leading, strict=True))


def _is_tiling(outlines: Sequence[Box], shape: tuple[int, int]) -> bool:
    """Whether there is something to see: more than one box, and none over another."""
    area = sum((box.bottom - box.top) * (box.right - box.left) for box in outlines)
    return 1 < len(outlines) <= _MAX_OUTLINES and area <= shape[0] * shape[1]
