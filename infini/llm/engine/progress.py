"""Bars on standard error where that is a terminal: of loading, of compiling, and of prompts that are done.

The text of the last is vLLM's.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from infini.llm.engine.outputs import RequestOutput

_WIDE: Final = 136  # letters of a line with everything


class OpeningBars:
    """Bars and lines while an engine is opened; use it as a context manager.

    Args:
        is_shown: whether there are any.
        is_spoken: whether lines are written.
    """

    def __init__(self, *, is_shown: bool | None = None, is_spoken: bool = True) -> None:
        self._console = Console(stderr=True, highlight=False)
        is_shown = sys.stderr.isatty() if is_shown is None else is_shown
        self._is_spoken = is_spoken
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not is_shown,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Move a bar: one for the weights, one for the programs."""
        bar = what if what.startswith("Loading") else "Compiling steps"
        if bar not in self._tasks:
            self._tasks[bar] = self._progress.add_task(bar, total=total)
        self._progress.update(self._tasks[bar], completed=done, total=total)

    def on_line(self, line: str) -> None:
        """Write a line for people."""
        if self._is_spoken:
            self._progress.console.print(line, markup=False, soft_wrap=True)


class PromptsBar:
    """How many prompts are done, and how fast; use it as a context manager.

    Args:
        count: prompts.
        is_shown: whether there is a bar.
    """

    def __init__(self, count: int, *, is_shown: bool) -> None:
        console = Console(stderr=True, highlight=False)
        # A line that does not fit would lose the numbers, of which there are many, so the rest goes first.
        self._is_wide = console.width >= _WIDE
        columns: list[ProgressColumn | str] = ["Processed prompts: {task.percentage:>3.0f}%"]
        columns += [BarColumn(bar_width=20)] if self._is_wide else []
        columns += ["{task.completed}/{task.total}"]
        columns += [TimeElapsedColumn(), "<", TimeRemainingColumn()] if self._is_wide else []
        self._progress = Progress(
            *columns,
            "{task.fields[speed]}",
            console=console,
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task("", total=count, speed="")
        self._start = time.monotonic()
        self._inputs = self._outputs = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, output: RequestOutput) -> None:
        """One prompt is done."""
        self._inputs += len(output.prompt_token_ids)
        self._outputs += sum(len(completion.token_ids) for completion in output.outputs)
        elapsed = max(time.monotonic() - self._start, 1e-9)
        reading, writing = self._inputs / elapsed, self._outputs / elapsed
        speed = f"input: {reading:.0f}, output: {writing:.0f} toks/s"
        if self._is_wide:
            speed = f"est. speed input: {reading:.2f} toks/s, output: {writing:.2f} toks/s"
        self._progress.update(self._task, advance=1, speed=speed)
