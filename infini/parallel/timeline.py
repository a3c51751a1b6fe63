"""What each rank of a pipeline does when: tasks with start and end, and what follows from them (idle time,
activations that are held). A timeline draws itself, as text and as a picture.

Times have whatever unit the durations had: steps of a model, or seconds that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from infini.core import errors
from infini.tile import scene as scene_
from infini.tile.scene import Rectangle, Scene, Text

Kind: TypeAlias = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Task:
    """One pass of one microbatch through one chunk of a model.

    Args:
        kind: direction of the pass.
        chunk: number of the chunk, in the order of the model.
        microbatch: number of the microbatch.
    """

    kind: Kind
    chunk: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind} of microbatch {self.microbatch} through chunk {self.chunk}"


@dataclass(frozen=True, slots=True)
class Span:
    """A task with the time it took.

    Args:
        task: the task.
        start: when it began.
        end: when it was done.
    """

    task: Task
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What each rank did, in order.

    Args:
        spans: for each rank its tasks with their times; times of one timeline start at 0.

    Example:
        >>> from infini.parallel import schedules
        >>> print(schedules.simulate(schedules.gpipe(2, 2), schedules.Durations(1, 1)).text())
        rank 0 |F0 F1 .  .  B0 B1
        rank 1 |.  F0 F1 B0 B1 .
    """

    spans: tuple[tuple[Span, ...], ...]

    @property
    def num_stages(self) -> int:
        """Number of ranks."""
        return len(self.spans)

    @property
    def makespan(self) -> float:
        """When the last task is done."""
        return max((span.end for row in self.spans for span in row), default=0.0)

    @property
    def busy(self) -> tuple[float, ...]:
        """Time that each rank works."""
        return tuple(math.fsum(span.end - span.start for span in row) for row in self.spans)

    @property
    def bubble_fraction(self) -> float:
        """Share of the time of all ranks in which they wait: (p - 1) / (m + p - 1) for p even stages and m
        microbatches in GPipe and 1F1B.
        """
        total = self.makespan * self.num_stages
        return 1.0 - math.fsum(self.busy) / total if total else 0.0

    @property
    def bubble_overhead(self) -> float:
        """Time of waiting over time of work: (p - 1) / m for even stages in GPipe and 1F1B."""
        busy = math.fsum(self.busy)
        return self.makespan * self.num_stages / busy - 1.0 if busy else 0.0

    @property
    def peak_activations(self) -> tuple[int, ...]:
        """For each rank the largest number of passes whose activations it holds at once: forward passes that
        wait for their backward pass, or are in it.
        """
        return tuple(round(peak) for peak in self.peak_held([1.0] * self._num_chunks))

    def peak_held(self, sizes: Sequence[float]) -> tuple[float, ...]:
        """For each rank the most that it holds at once.

        Args:
            sizes: what one microbatch keeps of each chunk, in the order of the model; bytes, for example.

        Raises:
            ValueMismatchError: there is not one size per chunk.
        """
        if len(sizes) != self._num_chunks:
            raise errors.ValueMismatchError(
                "peak_held takes one size per chunk", got=f"{len(sizes)}", expected=f"{self._num_chunks}"
            )
        return tuple(max(_held(row, sizes), default=0.0) for row in self.spans)

    @property
    def _num_chunks(self) -> int:
        return max((span.task.chunk + 1 for row in self.spans for span in row), default=0)

    def text(self, width: int | None = None) -> str:
        """The timeline as text: a line per rank, `F3` for forward and `B3` for backward passes of microbatch
        3, dots where a rank waits. A letter tells the chunks of one rank apart.

        Args:
            width: characters of a line; so many that the shortest task shows its name when absent.
        """
        head = f"rank {self.num_stages - 1} |"
        shortest = min((s.end - s.start for row in self.spans for s in row if s.end > s.start), default=1.0)
        cell = max((len(self._label(s.task)) + 1 for row in self.spans for s in row), default=1)
        scale = cell / shortest if width is None else max(width - len(head), 1) / (self.makespan or 1.0)
        lines = []
        for rank, row in enumerate(self.spans):
            cells = [" "] * round(self.makespan * scale)
            for start, end in _gaps(row, self.makespan):
                for column in range(round(start * scale), round(end * scale), 2 if width else cell):
                    cells[column] = "."
            for span in row:
                first, last = round(span.start * scale), round(span.end * scale)
                label, room = self._label(span.task), last - first - 1
                fill = "-" if span.task.kind == "forward" else "="
                cells[first:last] = (
                    (label if len(label) <= room else "")
                    .ljust(max(room, 1), fill)
                    .ljust(last - first)[: last - first]
                )
            lines.append((f"rank {rank} |".rjust(len(head)) + "".join(cells)).rstrip())
        return "\n".join(lines)

    def _label(self, task: Task) -> str:
        turn, has_turns = divmod(task.chunk, self.num_stages)[0], self._num_chunks > self.num_stages
        return f"{task.kind[0].upper()}{task.microbatch}" + (_letters(turn) if has_turns else "")

    @property
    def svg(self) -> str:
        """The timeline as the text of an SVG file. Notebooks show it."""
        return scene_.svg(self._scene(), "timeline of a pipeline")

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write an `.svg` or `.png` file.

        Raises:
            ValueMismatchError: the name ends otherwise.
            UnsupportedError: a PNG is wanted and nothing that draws one is installed.
        """
        place = Path(path)
        if place.suffix == ".svg":
            scene_.replace(place, self.svg.encode())
        elif place.suffix == ".png":
            scene_.png(self._scene(), "timeline of a pipeline", place)
        else:
            raise errors.ValueMismatchError(
                "timelines are written as SVG or PNG",
                got=place.name,
                expected="a name that ends in .svg or .png",
            )
        return place

    def _scene(self) -> Scene:
        shortest = min((s.end - s.start for row in self.spans for s in row if s.end > s.start), default=1.0)
        scale = min(_CELL / shortest, _WIDEST / (self.makespan or 1.0))
        painted = Scene()
        for rank, row in enumerate(self.spans):
            top = rank * (_ROW + _GAP)
            painted.add(Text(_HEAD - 8, top + 0.68 * _ROW, f"rank {rank}", anchor="end"))
            painted.add(Rectangle(_HEAD, top, self.makespan * scale, _ROW, fill=_IDLE))
            for span in row:
                colours = _COLOURS[span.task.kind]
                left, length = _HEAD + span.start * scale, (span.end - span.start) * scale
                fill = colours[span.task.chunk // self.num_stages % len(colours)]
                painted.add(Rectangle(left, top, length, _ROW, fill=fill, outline="#ffffff"))
                if scene_.text_width(str(span.task.microbatch), _LETTERS) < length:
                    middle = (left + length / 2, top + 0.66 * _ROW)
                    painted.add(Text(*middle, str(span.task.microbatch), size=_LETTERS, anchor="middle"))
        below = self.num_stages * (_ROW + _GAP) + 14
        for i, kind in enumerate(_COLOURS):
            painted.add(Rectangle(_HEAD + 90 * i, below, 12, 12, fill=_COLOURS[kind][0]))
            painted.add(Text(_HEAD + 90 * i + 18, below + 10, kind, size=_LETTERS))
        painted.add(Text(_HEAD + 190, below + 10, f"waiting: {self.bubble_fraction:.1%}", size=_LETTERS))
        return painted

    def __repr__(self) -> str:
        count = sum(map(len, self.spans))
        return (
            f"Timeline({self.num_stages} ranks, {count} tasks, makespan {self.makespan:g}, "
            f"bubble {self.bubble_fraction:.3f})"
        )


_CELL: Final = 22.0  # pixels of the shortest task
_WIDEST: Final = 1400.0
_ROW: Final = 24.0
_GAP: Final = 4.0
_HEAD: Final = 64.0
_LETTERS: Final = 10.0
_IDLE: Final = "#eceff2"
# Light for the first chunk of a rank, darker for the next ones.
_COLOURS: Final[dict[Kind, tuple[str, ...]]] = {
    "forward": ("#a9cdea", "#7fb2dc", "#5696cb", "#3b7ab0"),
    "backward": ("#b7dfa9", "#93cb80", "#70b45a", "#54983f"),
}


def _held(row: Sequence[Span], sizes: Sequence[float]) -> Iterator[float]:
    """What a rank holds in each of its tasks. A rank does one thing at a time, so their order is enough."""
    now = 0.0
    for span in row:
        if span.task.kind == "forward":
            now += sizes[span.task.chunk]
        yield now
        if span.task.kind == "backward":
            now -= sizes[span.task.chunk]


def _gaps(row: Sequence[Span], makespan: float) -> Iterator[tuple[float, float]]:
    before = 0.0
    for span in row:
        if span.start > before:
            yield before, span.start
        before = span.end
    if makespan > before:
        yield before, makespan


def _letters(number: int) -> str:
    """a, b ... z, then aa, ab ... of a number from 0."""
    head = _letters(number // 26 - 1) if number >= 26 else ""
    return head + chr(ord("a") + number % 26)
