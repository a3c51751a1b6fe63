"""The loop around the step: batches, learning rate, budget, measurements, and a clean end on Ctrl-C.

It prints nothing: each step is reported to a callback and, when asked, to a file of JSON lines that names
everything needed to repeat the run (`{"event": "start" | "step" | "end", ...}`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import infini as inf
from infini import random
from infini.core import errors
from infini.data import batches, tokens as tokens_
from infini.train import gpt, step as step_

StoppedBy = Literal["budget", "interrupt"]
_EVALUATION_BATCH = 4


class NonFiniteLossError(errors.InfiniError, ArithmeticError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. Exactly one of `num_steps` and `budget_s` is given.

    Args:
        num_steps: number of steps.
        budget_s: seconds of training, not counting the first step, which compiles.
        batch_size: windows per step.
        length: tokens per window.
        learning_rate: its highest value.
        warmup_steps: steps over which it rises to that.
        final_share: share of it that is left at the end of the cosine.
        hyper: what the optimizer does.
        seed: of the parameters and the batches.
        num_evaluation_windows: windows of held-out text to measure on.
    """

    num_steps: int | None = None
    budget_s: float | None = None
    batch_size: int = 4
    length: int = 256
    learning_rate: float = 1.5e-3
    warmup_steps: int = 40
    final_share: float = 0.05
    hyper: step_.Hyperparameters = field(default_factory=step_.Hyperparameters)
    seed: int = 0
    num_evaluation_windows: int = 32

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.budget_s is None):
            raise errors.ValueMismatchError(
                "give either a number of steps or a time", fix="use one of --steps and --seconds"
            )
        for name in ("num_steps", "budget_s", "batch_size", "length", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise errors.ValueMismatchError(f"{name} must be positive", got=repr(value))

    def learning_rate_at(self, step: int, share_done: float) -> float:
        """The rate of a step: a linear rise over the first steps, times half a cosine over the budget.

        Args:
            step: number of the step, from 0.
            share_done: share of the budget spent before it, 0 to 1.
        """
        rise = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        fall = 0.5 * (1.0 + math.cos(math.pi * min(share_done, 1.0)))
        return self.learning_rate * rise * (self.final_share + (1.0 - self.final_share) * fall)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    elapsed_s: float
    share_done: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did. Losses and entropy are in nats per token.

    Args:
        params: the trained parameters.
        num_steps: steps taken.
        num_tokens: tokens they predicted.
        compile_s: seconds that the first step took.
        train_s: seconds of the steps after the first.
        held_out_before: loss on held-out text before the first step.
        held_out_after: loss on it after the last.
        unigram_entropy: entropy of the held-out tokens' own frequencies.
        stopped_by: what ended the run.
    """

    params: gpt.Params
    num_steps: int
    num_tokens: int
    compile_s: float
    train_s: float
    held_out_before: float
    held_out_after: float
    unigram_entropy: float
    stopped_by: StoppedBy

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the steps after the first."""
        return self.num_tokens / self.num_steps * (self.num_steps - 1) / self.train_s if self.train_s else 0.0


def train(
    config: gpt.Config,
    settings: Settings,
    tokens: np.ndarray,
    held_out: np.ndarray,
    *,
    on_step: Callable[[StepReport], None] = lambda report: None,
    metrics_file: Path | None = None,
) -> Outcome:
    """Train a model.

    Args:
        config: its sizes.
        settings: how to train.
        tokens: ids to train on, of shape (number of tokens,).
        held_out: ids to measure on.
        on_step: called after every step.
        metrics_file: where to write JSON lines; replaced when it exists.

    Returns:
        Parameters and measurements. After Ctrl-C, those of the steps taken until then; a second one ends
        the program.

    Raises:
        NonFiniteLossError: the loss is no longer finite.
        ValueMismatchError: the text is too short, or as for `check`.
    """
    check(config, settings)
    windows = batches.spaced_windows(held_out, count=settings.num_evaluation_windows, length=settings.length)
    options: dict[str, Any] = {"config": config, "hyper": settings.hyper}  # Any: keyword arguments
    run_step = inf.jit(functools.partial(step_.step, **options), donate_argnums=0, donation="require")
    measure = inf.jit(functools.partial(gpt.loss, config=config))
    state = inf.jit(functools.partial(step_.init_state, **options))(random.PRNGKey(settings.seed))

    with _metrics(metrics_file) as write, _interrupt() as is_interrupted:
        before = _mean_loss(measure, state["params"], windows)
        write(
            {
                "event": "start",
                "config": asdict(config),
                "settings": asdict(settings),
                "tokens": tokens_.fingerprint(tokens, held_out),
                "held_out_loss": before,
            }
        )
        clock = _Clock(settings)
        last_finite = None
        while not is_interrupted() and clock.share_done < 1.0:
            number, share_done = clock.num_steps, clock.share_done
            rate = settings.learning_rate_at(number, share_done)
            batch = batches.random_windows(
                tokens,
                batch_size=settings.batch_size,
                length=settings.length,
                seed=settings.seed,
                step=number,
            )
            state, metrics = run_step(state, batch, np.float32(rate))
            loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
            if not math.isfinite(loss):
                raise _not_finite(loss, number, rate, last_finite)
            last_finite = loss
            clock.tick()
            tokens_per_s = settings.batch_size * settings.length / clock.last_step_s
            report = StepReport(number, loss, rate, norm, clock.elapsed_s, clock.share_done, tokens_per_s)
            write({"event": "step"} | asdict(report))
            on_step(report)
        after = _mean_loss(measure, state["params"], windows)
        outcome = Outcome(
            params=state["params"],
            num_steps=clock.num_steps,
            num_tokens=clock.num_steps * settings.batch_size * settings.length,
            compile_s=clock.compile_s,
            train_s=clock.train_s,
            held_out_before=before,
            held_out_after=after,
            unigram_entropy=batches.unigram_entropy(held_out),
            stopped_by="interrupt" if is_interrupted() else "budget",
        )
        write(
            {"event": "end", "held_out_loss": after, "unigram_entropy": outcome.unigram_entropy}
            | {
                "num_steps": outcome.num_steps,
                "tokens_per_s": outcome.tokens_per_s,
                "stopped_by": outcome.stopped_by,
            }
        )
    return outcome


def check(config: gpt.Config, settings: Settings) -> None:
    """Refuse a model that cannot be trained so.

    Raises:
        ValueMismatchError: sizes do not go together.
    """
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if settings.length > config.max_length:
        got, expected = f"sequences of {settings.length} tokens", f"at most {config.max_length}"
    elif config.head_dim < 2 or config.head_dim % 2:
        got, expected = f"heads of width {config.head_dim}", "an even width"
    elif heads % kv_heads:
        got, expected = f"{heads} query heads for {kv_heads} key-value heads", "a multiple"
    else:
        return
    raise errors.ValueMismatchError("sizes of the model do not go together", got=got, expected=expected)


class _Clock:
    """Time and steps spent of a budget. The first step compiles and is timed apart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._start = self._last = time.perf_counter()
        self.num_steps = 0
        self.compile_s = self.last_step_s = 0.0

    def tick(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.last_step_s, self._last = now - self._last, now
        if self.num_steps == 0:
            self.compile_s = self.last_step_s
        self.num_steps += 1

    @property
    def elapsed_s(self) -> float:
        return self._last - self._start

    @property
    def train_s(self) -> float:
        return self.elapsed_s - self.compile_s

    @property
    def share_done(self) -> float:
        if self._settings.num_steps is not None:
            return self.num_steps / self._settings.num_steps
        assert self._settings.budget_s is not None
        return self.train_s / self._settings.budget_s


def _mean_loss(measure: Callable[..., inf.Array], params: gpt.Params, windows: np.ndarray) -> float:
    """Mean loss over windows, in batches of one shape; those that do not fill the last one go one by one."""
    whole = len(windows) - len(windows) % _EVALUATION_BATCH
    parts = [windows[at : at + _EVALUATION_BATCH] for at in range(0, whole, _EVALUATION_BATCH)]
    parts += [windows[at : at + 1] for at in range(whole, len(windows))]
    return sum(float(measure(params, part)) * len(part) for part in parts) / len(windows)


def _not_finite(loss: float, step: int, rate: float, last_finite: float | None) -> NonFiniteLossError:
    before = (
        "no finite loss came before it"
        if last_finite is None
        else f"the loss before it was {last_finite:.4g}"
    )
    return NonFiniteLossError(
        f"training stopped at step {step}: the loss is {loss}",
        got=f"learning rate {rate:.3g}; {before}",
        expected="a finite loss",
        fix="use a smaller learning rate; nothing was saved, because the parameters are damaged",
    )


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only raises a flag: a step cut off would lose its donated state."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set  # signals reach the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def on_signal(number: int, frame: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _metrics(path: Path | None) -> Iterator[Callable[[dict[str, object]], None]]:
    """A function that writes one JSON line, at once readable by others; it does nothing without a path."""
    if path is None:
        yield lambda record: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=1) as file:
        yield lambda record: print(json.dumps(record), file=file)
