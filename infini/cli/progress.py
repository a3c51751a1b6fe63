"""The progress bar of training: loss, tokens per second, time left, memory.

Without a terminal it is a line for every tenth.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from infini.cli import output
from infini.train import trainer

# Single steps are noisy; the bar shows means over this many.
_WINDOW: Final = 20


@contextlib.contextmanager
def bar() -> Iterator[Callable[[trainer.StepReport], None]]:
    """Show a bar within the block; call the result with each report."""
    recent: deque[trainer.StepReport] = deque(maxlen=_WINDOW)
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield _lines(recent)
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=1.0, text="compiling")

        def show(report: trainer.StepReport) -> None:
            recent.append(report)
            progress.update(task, completed=min(report.share_done, 1.0), text=_summary(recent))

        yield show


def _lines(recent: deque[trainer.StepReport]) -> Callable[[trainer.StepReport], None]:
    tenths = 0

    def show(report: trainer.StepReport) -> None:
        nonlocal tenths
        recent.append(report)
        if int(report.share_done * 10) > tenths:
            tenths = int(report.share_done * 10)
            print(f"{min(report.share_done, 1.0):4.0%}  {_summary(recent)}", file=sys.stderr, flush=True)

    return show


def _summary(recent: deque[trainer.StepReport]) -> str:
    loss = sum(report.loss for report in recent) / len(recent)
    # The first step compiles, which says nothing about speed.
    timed = [report for report in recent if report.step > 0] or recent
    speed = len(timed) / sum(1.0 / report.tokens_per_s for report in timed)
    return f"step {recent[-1].step + 1}  loss {loss:.3f}  {speed:,.0f} tokens/s  {_memory_text()}"


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
