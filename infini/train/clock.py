"""Time and steps spent of a run's budget."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from infini.train.settings import Settings


class Clock:
    """Time and steps spent of a budget. The first step in this process compiles and is timed apart.

    Attributes:
        num_steps: steps taken, those before a resumption included.
        num_timed_steps: steps that `train_s` counts.
        compile_s: seconds of the first step.
        train_s: seconds of the others.
        last_step_s: seconds of the last one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._last = time.perf_counter()
        self._has_compiled = False
        self.num_steps = self.num_timed_steps = 0
        self.compile_s = self.last_step_s = self.train_s = 0.0

    def resume(self, num_steps: int, num_timed_steps: int, train_s: float) -> None:
        """Go on from so many steps, of which some took so long."""
        self.num_steps, self.num_timed_steps, self.train_s = num_steps, num_timed_steps, train_s

    def start(self) -> None:
        """The next step begins."""
        self._last = time.perf_counter()

    def tick(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.last_step_s, self._last = now - self._last, now
        if self._has_compiled:
            self.train_s += self.last_step_s
            self.num_timed_steps += 1
        else:
            self.compile_s, self._has_compiled = self.last_step_s, True
        self.num_steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in the block is no part of a step."""
        started = time.perf_counter()
        yield
        self._last += time.perf_counter() - started

    @property
    def elapsed_s(self) -> float:
        """Seconds of all steps."""
        return self.compile_s + self.train_s

    @property
    def share_done(self) -> float:
        """Share of the budget that is spent; 1 or a little more at the end."""
        if self._settings.num_steps is not None:
            return self.num_steps / self._settings.num_steps
        assert self._settings.budget_s is not None
        return self.train_s / self._settings.budget_s
