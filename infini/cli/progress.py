"""What is shown while text is read and a model is trained: bars with loss, tokens per second, time left and
memory.

Without a terminal it is a line for every tenth.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from infini.cli import output
from infini.core import comm
from infini.data import tokens
from infini.train import runs, trainer

# Single steps are noisy; the bar shows means over this many.
_WINDOW: Final = 20


@contextlib.contextmanager
def listener(on_data: Callable[[tokens.TokenizedCorpus], None]) -> Iterator[runs.Listener]:
    """Show what a run does within the block.

    Args:
        on_data: called when the text is ready.
    """
    console = output.console(stderr=True)
    if not console.is_terminal:
        lines = _Lines()
        yield runs.Listener(on_data=on_data, on_step=lines.on_step, on_note=lines.on_note)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bars = _Bars(progress)

        def on_ready(data: tokens.TokenizedCorpus) -> None:
            bars.hide_text()
            on_data(data)

        yield runs.Listener(bars.on_text, on_ready, bars.on_step, bars.on_note)


class _Recent:
    """Means over the last steps."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._seconds: deque[float] = deque(maxlen=_WINDOW)  # per token
        self._has_compiled = False
        self._step = 0

    def add(self, report: trainer.StepReport) -> None:
        self._step = report.step + 1
        self._losses.append(report.loss)
        if self._has_compiled or not self._seconds:
            self._seconds.append(1.0 / report.tokens_per_s)
        if not self._has_compiled and len(self._losses) > 1:  # the first step compiles: no measure of speed
            self._has_compiled = True
            self._seconds = deque([1.0 / report.tokens_per_s], maxlen=_WINDOW)

    def summary(self) -> str:
        loss = sum(self._losses) / len(self._losses)
        speed = len(self._seconds) / sum(self._seconds)
        return f"step {self._step}  loss {loss:.3f}  {speed:,.0f} tokens/s  {_memory_text()}"


class _Bars:
    """One bar for the text and one for the training."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._recent = _Recent()
        self._text: TaskID | None = None
        self._training: TaskID | None = None

    def on_text(self, stage: tokens.Stage, done: int, total: int) -> None:
        if self._text is None:
            self._text = self._progress.add_task(stage, total=total, text="")
        size = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        self._progress.update(self._text, description=stage, completed=done, total=total, text=size)

    def hide_text(self) -> None:
        if self._text is not None:
            self._progress.remove_task(self._text)
            self._text = None
        self._training = self._progress.add_task("training", total=1.0, text="compiling")

    def on_step(self, report: trainer.StepReport) -> None:
        self._recent.add(report)
        if self._training is not None:
            done = min(report.share_done, 1.0)
            self._progress.update(self._training, completed=done, text=self._recent.summary())
        if report.held_out_loss is not None:
            self.on_note(_held_out(report))

    def on_note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)


class _Lines:
    """Lines for logs."""

    def __init__(self) -> None:
        self._recent = _Recent()
        self._tenths: int | None = None

    def on_step(self, report: trainer.StepReport) -> None:
        self._recent.add(report)
        tenths = int(report.share_done * 10)
        # A run that goes on does not begin with the tenths it has behind it.
        if self._tenths is not None and tenths > self._tenths:
            self.on_note(f"{min(report.share_done, 1.0):4.0%}  {self._recent.summary()}")
        if self._tenths is None and report.share_done >= 1.0:
            self.on_note(f"100%  {self._recent.summary()}")
        self._tenths = tenths
        if report.held_out_loss is not None:
            self.on_note(_held_out(report))

    def on_note(self, text: str) -> None:
        print(comm.prefix() + text, file=sys.stderr, flush=True)


def _held_out(report: trainer.StepReport) -> str:
    return f"step {report.step + 1}  held-out loss {report.held_out_loss:.3f}"


def _memory_text() -> str:
    used = _peak_memory_bytes()
    return f"{used / 2**20:,.0f} MiB" if used else ""


def _peak_memory_bytes() -> int:
    """Most memory the process has used, 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
