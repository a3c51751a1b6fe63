"""A search for the fastest configuration as a picture: what the roofline predicts, and what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from infini.compiler import inspection
from infini.tile.drawing import Drawing
from infini.tile.scene import Line, Rectangle, Scene, Text

if TYPE_CHECKING:
    from infini.perf.tuning import Report, Row

_WIDTH, _HEIGHT = 560.0, 360.0
_LEFT, _TOP = 70.0, 56.0
_POINT: Final = 4.0  # half of a side
_MEASURED, _CHOSEN, _SKIPPED = "#2b6ca8", "#f2a541", "#9aa5b1"
_GRID, _MUTED = "#e1e6eb", "#5b6770"
_ROOM: Final = 1.15  # around the points, as a factor


def plot(report: Report) -> Drawing:
    """Predicted times to the right, measured ones upwards, both logarithmic; on the diagonal a configuration
    takes as long as predicted. What was not measured stands at the foot.
    """
    scene = Scene()
    title = f"{report.kernel}: {len(report.rows)} configurations on {report.device}"
    scene.add(Text(0, 14, title, size=15, is_bold=True))
    scene.add(Text(0, 32, ", ".join(map(str, report.types)), colour=_MUTED))
    measured = [row for row in report.rows if row.measured_s is not None]
    x = _Axis([row.predicted_s for row in report.rows], _LEFT, _LEFT + _WIDTH)
    y = _Axis([row.measured_s for row in measured if row.measured_s], _TOP + _HEIGHT, _TOP)
    _frame(scene, x, y)
    for row in report.rows:
        if row.measured_s is None:
            at = x.place(row.predicted_s)
            scene.add(Line(((at, _TOP + _HEIGHT - 7), (at, _TOP + _HEIGHT)), _SKIPPED, 1.5))
    chosen = [row for row in measured if row.configuration == report.chosen]
    for row in (*(row for row in measured if row not in chosen), *chosen):
        _point(scene, row, x, y, is_chosen=row in chosen)
    _legend(scene, has_skipped=len(measured) < len(report.rows))
    return Drawing(title, scene)


class _Axis:
    """A logarithmic axis from pixel to pixel."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        present = [v for v in values if v > 0] or [1e-6]
        self.low, self.high = min(present) / _ROOM, max(present) * _ROOM
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        """The pixel of a value."""
        part = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """Round values, at most about eight."""
        decades = math.log10(self.high / self.low)
        digits = (
            (1.0, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if decades < 0.7 else (1.0, 2, 5) if decades < 2.5 else (1.0,)
        )
        first = math.floor(math.log10(self.low))
        for power, digit in itertools.product(range(first, first + 12), digits):
            if self.low <= digit * 10.0**power <= self.high:
                yield digit * 10.0**power


def _frame(scene: Scene, x: _Axis, y: _Axis) -> None:
    bottom = _TOP + _HEIGHT
    for value in x.ticks():
        at = x.place(value)
        scene.add(Line(((at, _TOP), (at, bottom)), _GRID))
        scene.add(Text(at, bottom + 15, _duration(value), size=10, anchor="middle", colour=_MUTED))
    for value in y.ticks():
        at = y.place(value)
        scene.add(Line(((_LEFT, at), (_LEFT + _WIDTH, at)), _GRID))
        scene.add(Text(_LEFT - 6, at + 4, _duration(value), size=10, anchor="end", colour=_MUTED))
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low < high:
        ends = ((x.place(low), y.place(low)), (x.place(high), y.place(high)))
        scene.add(Line(ends, _SKIPPED, is_dashed=True))
    scene.add(Rectangle(_LEFT, _TOP, _WIDTH, _HEIGHT, outline=_MUTED))
    scene.add(Text(_LEFT + _WIDTH, bottom + 32, "predicted by the roofline", anchor="end", colour=_MUTED))
    scene.add(Text(_LEFT, _TOP - 6, "measured", colour=_MUTED))


def _point(scene: Scene, row: Row, x: _Axis, y: _Axis, *, is_chosen: bool) -> None:
    assert row.measured_s is not None
    across, up = x.place(row.predicted_s), y.place(row.measured_s)
    size = _POINT * (1.5 if is_chosen else 1.0)
    fill = _CHOSEN if is_chosen else _MEASURED
    scene.add(Rectangle(across - size, up - size, 2 * size, 2 * size, fill, "#ffffff", 1.0))
    if is_chosen:
        # Away from the nearer edge, so that it stays in the frame.
        is_left = across < _LEFT + _WIDTH / 2
        place = (across + 10, "start") if is_left else (across - 10, "end")
        scene.add(Text(place[0], up + 4, str(row.configuration), anchor=place[1], is_bold=True))  # type: ignore[arg-type]


def _legend(scene: Scene, *, has_skipped: bool) -> None:
    entries = [(_CHOSEN, "chosen"), (_MEASURED, "measured")]
    entries += [(_SKIPPED, "predicted to be slower, not measured")] if has_skipped else []
    x, y = _LEFT, _TOP + _HEIGHT + 48
    for fill, text in entries:
        scene.add(Rectangle(x, y - 9, 10, 10, fill))
        scene.add(Text(x + 15, y, text, colour=_MUTED))
        x += 15 + 7 * len(text) + 14


def _duration(seconds: float) -> str:
    return inspection.duration(seconds * 1e9)
