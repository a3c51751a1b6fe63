"""The lane of one tensor in a drawing: its array, then its levels from the grid to the tile, each zoomed out
of a cell of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.core.ir import Shape
from infini.tile import maps, scene as scene_
from infini.tile.scene import HATCH, Line, Rectangle, Scene, Text
from infini.tile.simulation import Placement

CHOSEN: Final = "#f2a541"  # the tile of the chosen step
EMPTY: Final = "#f7f9fb"
MUTED: Final = "#5b6770"
OTHER_TILES: Final = "#8fa1b3"
OUTLINE: Final = "#3e4c59"
_FIRST_STEP, _LAST_STEP = (0xC6, 0xDF, 0xF2), (0x2B, 0x6C, 0xA8)
_CELL_LINES: Final = "#d3dae1"
_GAP: Final = 46.0
_HEAD: Final = 40.0  # above the panels
_MARGIN: Final = 26.0  # left of a panel, for numbers of rows
_ARRAY: Final = (360.0, 190.0)  # pixels of an array, at most
_CELL: Final = 18.0
_NARROW: Final = 110.0  # pixels that the short side of a long array takes all the same
_MOST_CELLS: Final = 8  # of a level along one dimension, before it is elided
_MOST_PLANES: Final = 3
_LETTERS: Final = 8.0  # size of numbers in cells


def step_colour(step: int, chosen: int, num_steps: int) -> str:
    """Colour of a step of the walked levels: light to dark, the chosen one apart."""
    if step == chosen:
        return CHOSEN
    part = step / max(1, num_steps - 1)
    mixed = (round(a + (b - a) * part) for a, b in zip(_FIRST_STEP, _LAST_STEP, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def numbers(items: Sequence[int]) -> str:
    """A shape or an index as people write it: without brackets when there is one number."""
    return str(items[0]) if len(items) == 1 else f"({', '.join(map(str, items))})"


def shown(size: int, chosen: int) -> list[int | None]:
    """Which places of a dimension are shown, None standing for those left out."""
    if size <= _MOST_CELLS:
        return list(range(size))
    near = range(max(0, chosen - 1), min(size, chosen + 2))
    kept = sorted({0, 1, 2, *near, size - 2, size - 1} if chosen < 4 else {0, *near, size - 1})
    found: list[int | None] = []
    for i in kept:
        if found and found[-1] != i - 1:
            found.append(None)
        found.append(i)
    return found


@dataclass(frozen=True, slots=True)
class _Cell:
    """How a cell is painted."""

    fill: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """One tensor.

    Args:
        scene: where it is painted.
        placement: how the tensor is cut.
        program: whose tiles are shown.
        step: of the walked levels.
        number: of the operand or result.
    """

    scene: Scene
    placement: Placement
    program: tuple[int, ...]
    step: tuple[int, ...]
    number: int

    def paint(self, y: float) -> float:
        """Paint from `y` on; returns where it ends."""
        placement = self.placement
        self._head(y)
        top = y + _HEAD
        right, bottom = self._array(_MARGIN, top)
        walked = placement.walked
        num_steps = int(np.prod(walked, dtype=np.int64))
        levels = placement.levels[1:-1]
        x = right + _GAP
        zoom: tuple[float, float, float] | None = None
        if placement.grid:
            corner = self._level(
                x,
                top,
                "grid",
                placement.grid,
                chosen=self.program,
                cell=lambda i: _Cell(CHOSEN if i == self.program else EMPTY),
            )
            x, zoom, bottom = corner.right + _GAP, corner.zoom, max(bottom, corner.bottom)
        start = 0
        for level in levels:
            own = self.step[start : start + len(level)]

            def cell(index: tuple[int, ...], start: int = start, size: int = len(level)) -> _Cell:
                at = (*self.step[:start], *index, *self.step[start + size :])
                flat = int(np.ravel_multi_index(at, walked))
                return _Cell(step_colour(flat, self._flat_step(), num_steps))

            corner = self._level(x, top, "walked", level, chosen=own, cell=cell, zoom=zoom)
            x, zoom, bottom = corner.right + _GAP, corner.zoom, max(bottom, corner.bottom)
            start += len(level)
        corner = self._tile(x, top, zoom)
        return max(bottom, corner.bottom)

    def _flat_step(self) -> int:
        return int(np.ravel_multi_index(self.step, self.placement.walked)) if self.step else 0

    # --- the head --------------------------------------------------------------------------

    def _head(self, y: float) -> None:
        placement = self.placement
        self.scene.add(Text(0, y + 12, placement.name, size=13, is_bold=True))
        width = scene_.text_width(placement.name, 13, is_bold=True) + 8
        role = "" if placement.is_result else f"operand {self.number}, "
        index = placement.indices(self.program)
        inside = placement.inside(index)
        facts = f"{role}{placement.type}"
        outside = int(inside.size - inside.sum()) if placement.type.shape else 0
        if outside:
            fate = "not stored" if placement.is_result else f"read as {_value(placement.access.fill)}"
            facts += f" - {outside} of the program's {inside.size} elements lie outside and are {fate}"
        elif placement.access.fill is None:
            facts += " - no tile reaches outside"
        else:
            facts += " - this program stays inside"
        self.scene.add(Text(width, y + 12, facts, colour=MUTED))

    # --- the array -------------------------------------------------------------------------

    def _array(self, x: float, y: float) -> tuple[float, float]:
        placement = self.placement
        shape = placement.type.shape
        right = self._caption(x, y, "array", shape)
        planes = 1 if len(shape) < 3 else _MOST_PLANES
        width, height = _ARRAY[0], _ARRAY[1] / (1 if planes == 1 else 2)
        found, more = maps.array_maps(
            placement, self.program, self._flat_step(),
            bins=(int(height / 1.5), int(width / 1.5)), most=planes,
        )  # fmt: skip
        y += 8
        for each in found:
            across, down = self._plane(each, x, y, width, height)
            right, y = max(right, across), down + 14
        if more:
            self.scene.add(Text(x, y + 6, f"and {more} more planes", size=10, colour=MUTED))
            y += 14
        if not found:
            self.scene.add(Text(x, y + 12, "nothing of this array", size=10, colour=MUTED))
            right, y = max(right, x + 110), y + 16
        return right, y

    def _plane(
        self, shown: maps.ArrayMap, x: float, y: float, width: float, height: float
    ) -> tuple[float, float]:
        if shown.leading:
            label = f"[{', '.join(map(str, shown.leading))}, :, :]"
            self.scene.add(Text(x, y + 10, label, size=9, colour=MUTED))
            y += 14
        num_rows, num_columns = shown.bounds.bottom - shown.bounds.top, shown.bounds.right - shown.bounds.left
        even = min(_CELL, width / num_columns, height / num_rows)
        across = max(even, min(_CELL, _NARROW / num_columns))
        down = max(even, min(_CELL, _NARROW / num_rows))

        def place(box: maps.Box, fill: str, **look: object) -> Rectangle:
            # What is narrower than a pixel is widened, so that it can be seen.
            wide, high = max((box.right - box.left) * across, 1.0), max((box.bottom - box.top) * down, 1.0)
            left, top = x + (box.left - shown.bounds.left) * across, y + (box.top - shown.bounds.top) * down
            return Rectangle(left, top, wide, high, fill, **look)  # type: ignore[arg-type]  # of Rectangle

        whole = maps.Box(0, shown.shape[0], 0, shown.shape[1])
        num_steps = int(np.prod(self.placement.walked, dtype=np.int64))
        self.scene.add(place(whole, EMPTY))
        for box in shown.inside:
            self.scene.add(place(box, step_colour(box.value, self._flat_step(), num_steps)))
        self.scene.add(*(place(box, HATCH) for box in shown.outside))
        if min(across, down) >= 6:
            self._rulings(x, y, shown, across, down)
        for box in shown.outlines:
            if (box.right - box.left) * across >= 4 and (box.bottom - box.top) * down >= 4:
                self.scene.add(place(box, scene_.NONE, outline=OTHER_TILES, thickness=1.0))
        self.scene.add(place(whole, scene_.NONE, outline=OUTLINE, thickness=1.6))
        right, bottom = x + num_columns * across, y + num_rows * down
        if shown.hidden:
            self.scene.add(Text(right + 4, y + 10, "...", colour=MUTED))
            right += 16
        return right, bottom

    def _rulings(self, x: float, y: float, shown: maps.ArrayMap, across: float, down: float) -> None:
        """Lines between elements, where there is room for them."""
        left, top = x - shown.bounds.left * across, y - shown.bounds.top * down
        rows, columns = shown.shape
        for i in range(1, rows):
            at = top + i * down
            self.scene.add(Line(((left, at), (left + columns * across, at)), _CELL_LINES, 0.6))
        for i in range(1, columns):
            at = left + i * across
            self.scene.add(Line(((at, top), (at, top + rows * down)), _CELL_LINES, 0.6))

    # --- levels ----------------------------------------------------------------------------

    def _caption(self, x: float, y: float, name: str, shape: Shape) -> float:
        """The name of a panel; returns where it ends."""
        text = f"{name} {numbers(shape) if shape else 'of one element'}"
        self.scene.add(Text(x, y - 8, text, size=10, is_bold=True, colour=MUTED))
        return x + scene_.text_width(text, 10, is_bold=True) - _GAP / 2

    def _level(
        self,
        x: float,
        y: float,
        name: str,
        shape: Shape,
        *,
        chosen: tuple[int, ...],
        cell: Callable[[tuple[int, ...]], _Cell],
        zoom: tuple[float, float, float] | None = None,
        cell_width: float = _CELL,
    ) -> _Corner:
        """The last two dimensions of a level, those before at the chosen place."""
        end = self._caption(x, y, name, shape)
        leading, plane = shape[:-2], (1, 1, *shape)[-2:]
        mark = (0, 0, *chosen)[-2:]
        if leading:
            label = f"[{', '.join(map(str, chosen[:-2]))}, :, :]"
            self.scene.add(Text(x, y + 8, label, size=9, colour=MUTED))
            y += 14
        rows, columns = shown(plane[0], mark[0]), shown(plane[1], mark[1])
        left, top = x, y + 12
        if len(shape) > 1:
            left += 18
        height = _CELL
        self._zoom(zoom, x, top, len(rows) * height)
        target = None
        for i, row in enumerate(rows):
            if len(shape) > 1:
                label = "" if row is None else str(row)
                self.scene.add(
                    Text(left - 4, top + i * height + 12, label, size=8, anchor="end", colour=MUTED)
                )
            for j, column in enumerate(columns):
                at_x, at_y = left + j * cell_width, top + i * height
                if i == 0 and shape:
                    label = "" if column is None else str(column)
                    self.scene.add(
                        Text(at_x + cell_width / 2, top - 3, label, size=8, anchor="middle", colour=MUTED)
                    )
                if row is None or column is None:
                    self.scene.add(
                        Text(at_x + cell_width / 2, at_y + 11, "...", size=9, anchor="middle", colour=MUTED)
                    )
                    continue
                full = (*chosen[: len(leading)], row, column)
                painted = cell(full[len(full) - len(shape) :] if shape else ())
                self.scene.add(Rectangle(at_x, at_y, cell_width, height, painted.fill, OUTLINE, 0.7))
                if painted.text:
                    self.scene.add(
                        Text(at_x + cell_width / 2, at_y + 12, painted.text, size=_LETTERS, anchor="middle")
                    )
                if (row, column) == mark:
                    target = (at_y, at_y + height)
        right = left + len(columns) * cell_width
        return _Corner(
            max(right, end), top + len(rows) * height, None if target is None else (right, *target)
        )

    def _zoom(self, zoom: tuple[float, float, float] | None, x: float, top: float, height: float) -> None:
        """Lines from a cell to what it holds."""
        if zoom is not None:
            right, above, below = zoom
            self.scene.add(
                Line(((right, above), (x, top)), OTHER_TILES, 0.9, is_dashed=True),
                Line(((right, below), (x, top + height)), OTHER_TILES, 0.9, is_dashed=True),
            )

    def _tile(self, x: float, y: float, zoom: tuple[float, float, float] | None) -> _Corner:
        placement = self.placement
        index = [at[self.step] for at in placement.indices(self.program)]
        inside = placement.inside(index) if index else np.ones(placement.tile, bool)
        is_plain = len(placement.type.shape) < 3
        position = np.zeros(placement.tile, np.int64)
        for at, size in zip(index, placement.type.shape, strict=True):
            position = position * size + at
        fill = "-" if placement.is_result else _value(placement.access.fill)

        def cell(element: tuple[int, ...]) -> _Cell:
            if not inside[element]:
                return _Cell(HATCH, fill)
            name = (
                ",".join(str(int(at[element])) for at in index) if is_plain else str(int(position[element]))
            )
            return _Cell(CHOSEN, name)

        corner = (0,) * len(placement.tile)
        letters = max([3, *(len(cell(e).text) for e in _ends(placement.tile))])
        width = max(_CELL, letters * _LETTERS * 0.6 + 6)
        return self._level(
            x, y, "tile", placement.tile, chosen=corner, cell=cell, zoom=zoom, cell_width=width
        )


@dataclass(frozen=True, slots=True)
class _Corner:
    """Where a panel ends, and the right edge, top and bottom of its chosen cell."""

    right: float
    bottom: float
    zoom: tuple[float, float, float] | None


def _ends(shape: Shape) -> list[tuple[int, ...]]:
    """First and last element."""
    return [(0,) * len(shape), tuple(n - 1 for n in shape)]


def _value(fill: complex | None) -> str:
    if fill is None:
        return "0"
    number = complex(fill)
    return f"{number.real:g}" if not number.imag else f"{number:g}"
