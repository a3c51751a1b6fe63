"""The loop around the step: batches, learning rate, budget, measurements, checkpoints, a clean end on Ctrl-C.

It prints nothing: each step is reported to a callback and, when asked, to a file of JSON lines that names
everything needed to repeat the run (`{"event": "start" | "step" | "end", ...}`). Under `mpirun` the batch is
shared out, each process writes its part of checkpoints, and the first one alone writes other files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infini.core import errors
from infini.data import batches, tokens as tokens_
from infini.data.prefetch import Prefetch
from infini.train import (
    checkpoints as checkpoints_,
    gpt,
    interrupts,
    measurements,
    programs as programs_,
    step as step_,
    team as team_,
)
from infini.train.clock import Clock
from infini.train.settings import Settings as Settings, check as check

StoppedBy = Literal["budget", "interrupt"]
# What a line of measurements says about time differs from run to run; all else is decided by the settings.
TIMES = ("elapsed_s", "tokens_per_s", "wait_s")


class NonFiniteLossError(errors.InfiniError, ArithmeticError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did.

    Args:
        step: its number, from 0.
        loss: mean over its batch, in nats per token.
        learning_rate: the rate it used.
        gradient_norm: global norm before clipping.
        elapsed_s: seconds of the run until its end, compilation included.
        share_done: share of the budget that is spent.
        tokens_per_s: its throughput.
        wait_s: seconds it waited for its batch.
        held_out_loss: loss on held-out text after it, where it was measured.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    elapsed_s: float
    share_done: float
    tokens_per_s: float
    wait_s: float
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did. Losses and entropy are in nats per token.

    Args:
        params: the trained parameters.
        num_steps: steps taken, those before a resumption included.
        num_tokens: tokens they predicted.
        compile_s: seconds that the first step took.
        train_s: seconds of the other steps.
        held_out_before: loss on held-out text before the first step.
        held_out_after: loss on it after the last.
        unigram_entropy: entropy of the held-out tokens' own frequencies.
        stopped_by: what ended the run.
        num_timed_steps: steps that `train_s` counts.
        checkpoint: the newest checkpoint, None when none are kept.
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
    num_timed_steps: int
    checkpoint: Path | None = None

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the steps that are timed."""
        per_step = self.num_tokens / self.num_steps if self.num_steps else 0.0
        return per_step * self.num_timed_steps / self.train_s if self.train_s else 0.0


def train(
    config: gpt.Config,
    settings: Settings,
    tokens: np.ndarray,
    held_out: np.ndarray,
    *,
    on_step: Callable[[StepReport], None] = lambda report: None,
    metrics_file: Path | None = None,
    checkpoints: checkpoints_.Store | None = None,
    is_resumed: bool = False,
    params: Callable[[], gpt.Params] | None = None,
    tokens_name: str | None = None,
) -> Outcome:
    """Train a model.

    Args:
        config: its sizes.
        settings: how to train.
        tokens: ids to train on, of shape (number of tokens,).
        held_out: ids to measure on.
        on_step: called after every step.
        metrics_file: where to write JSON lines; replaced when it exists and the run is not resumed.
        checkpoints: where to keep checkpoints; None for none.
        is_resumed: go on from the newest checkpoint; from the start when there is none.
        params: gives the parameters to start from, when there is no checkpoint; random ones when absent.
        tokens_name: `tokens.fingerprint` of both arrays, where it is known.

    Returns:
        Parameters and measurements. After Ctrl-C or SIGTERM, those of the steps taken until then, with a
        checkpoint where they are kept; a second one ends the program.

    Raises:
        NonFiniteLossError: the loss is no longer finite.
        ValueMismatchError: the text is too short or not the one of the checkpoint, the devices do not divide
            the batch, or as for `check`.
        CorruptFileError: there are checkpoints, and none can be used.
        CheckpointWriteError: a checkpoint could not be written.
    """
    check(config, settings)
    team = find_team(settings)
    run = _Run(config, settings, tokens, held_out, tokens_name, team)
    found = run.start(params, checkpoints if is_resumed else None)
    if not team.is_first:
        metrics_file = None
    with (
        measurements.writing(metrics_file, keep_bytes=found.position.metrics_bytes if found else 0) as file,
        interrupts.held_back() as is_asked_to_stop,
    ):
        if found is None:
            run.held_out_before = run.held_out_loss()
            file.write(run.start_line())
        last, last_step = (found.folder, found.position.step) if found else (None, None)
        pending = None
        with Prefetch(run.batches.at, start=run.clock.num_steps, stop=settings.num_steps) as ready:
            run.clock.start()
            while not run.must_stop(is_asked_to_stop()):
                batch = next(ready)
                report = run.step(batch, ready.wait_s)
                number = run.clock.num_steps
                every = settings.evaluate_every
                is_evaluated = bool(every and number % every == 0)
                is_saved = checkpoints is not None and number % settings.checkpoint_every == 0
                if (is_evaluated or is_saved) and run.is_spent():
                    is_evaluated = is_saved = False  # both come after the last step anyway
                if is_evaluated:
                    with run.clock.paused():
                        report = replace(report, held_out_loss=run.held_out_loss())
                file.write({"event": "step"} | {k: v for k, v in asdict(report).items() if v is not None})
                on_step(report)
                if checkpoints and is_saved:
                    with run.clock.paused():
                        position = run.position(file.sync())
                        pending = checkpoints.save(run.stored(), position, asynchronous=True)
                    last, last_step = pending.folder, number
        is_stopped = run.clock.share_done < 1.0
        if checkpoints and last_step != run.clock.num_steps:
            last = checkpoints.save(run.stored(), run.position(file.sync())).folder
        elif pending is not None:
            pending.wait()
        outcome = run.outcome("interrupt" if is_stopped else "budget", last)
        if not (is_stopped and checkpoints):  # a run that can be resumed has not ended
            file.write(_end_line(outcome))
    return outcome


def find_team(settings: Settings) -> team_.Team:
    """The devices that share a run.

    Raises:
        ValueMismatchError: there are more or fewer than its layout has, or they do not divide the batch or
            its sequences.
    """
    team, num_token_parts = team_.find(settings.layout), settings.layout.cp
    if settings.length % num_token_parts:
        raise errors.ValueMismatchError(
            "the devices do not divide the sequences",
            got=f"{settings.length} tokens in {num_token_parts} parts",
            expected="equal parts",
            fix=f"set run.length to a multiple of {num_token_parts}, or change mesh.cp",
        )
    num_parts = settings.computation.num_parts
    if team.is_pipelined:
        settings.layout.num_microbatches(num_parts, settings.batch_size, team.num_parts)
    elif settings.batch_size % (team.num_parts * num_parts):
        raise errors.ValueMismatchError(
            "the devices do not divide the batch",
            got=f"{settings.batch_size} sequences in {num_parts} parts for {team.num_parts} groups of "
            "devices",
            expected="a multiple of groups times parts",
            fix="set run.batch_size to one",
        )
    return team


class _Run:
    """A run under way: its compiled functions, its state and its clock."""

    def __init__(
        self,
        config: gpt.Config,
        settings: Settings,
        tokens: np.ndarray,
        held_out: np.ndarray,
        tokens_name: str | None,
        team: team_.Team,
    ) -> None:
        self._config, self._settings, self._held_out, self._team = config, settings, held_out, team
        self.batches = batches.Batches(
            tokens,
            settings.batch_size,
            settings.length,
            settings.seed,
            settings.order,
            team.share,
        )
        self._windows = batches.spaced_windows(
            held_out, count=settings.num_evaluation_windows, length=settings.length
        )
        self._tokens_name = tokens_name or tokens_.fingerprint(tokens, held_out)
        self._programs = programs_.of(config, settings, team)
        self._last_finite: float | None = None
        self.clock = Clock(settings)
        self.state: Any = None  # Any: of the programs
        self.held_out_before = math.nan

    def start(
        self, params: Callable[[], gpt.Params] | None, store: checkpoints_.Store | None
    ) -> checkpoints_.Checkpoint | None:
        """Make the first state, or take that of the newest checkpoint and return this."""
        found = store.latest() if store else None
        if found is None or store is None:
            self.state = self._programs.start(None if params is None else params())
            return None
        position = found.position
        for name, own in (("tokens", self._tokens_name), ("seed", self._settings.seed)):
            if getattr(position, name) != own:
                raise errors.ValueMismatchError(
                    "the text is not the one that the run saw" if name == "tokens" else "the seed changed",
                    got=f"{name} {own}",
                    expected=f"{name} {getattr(position, name)}, as in {found.folder}",
                    fix="name the same files, or start another run with another --out",
                )
        self.state = self._programs.loaded(store.load(found, self._programs.types()))
        self.clock.resume(position.step, position.num_timed_steps, position.train_s)
        self.held_out_before = position.held_out_before
        return found

    def must_stop(self, is_asked: bool) -> bool:
        """Whether the budget is spent or a process was asked to stop. Processes agree on both, since one that
        goes on alone waits for ever; the clock is that of the slowest.
        """
        self.clock.train_s, is_any_asked = self._team.agree(self.clock.train_s, float(is_asked))
        return is_any_asked > 0.0 or self.clock.share_done >= 1.0

    def is_spent(self) -> bool:
        """Whether the budget is spent, by the clock of the slowest process; call it in all of them."""
        (self.clock.train_s,) = self._team.agree(self.clock.train_s)
        return self.clock.share_done >= 1.0

    def step(self, batch: np.ndarray, wait_s: float) -> StepReport:
        """Take a step."""
        number, share_done = self.clock.num_steps, self.clock.share_done
        rate = self._settings.learning_rate_at(number, share_done)
        self.state, found = self._programs.step(self.state, batch, rate)
        loss, norm = found.loss, found.gradient_norm
        if not math.isfinite(loss):
            raise _not_finite(loss, number, rate, self._last_finite)
        self._last_finite = loss
        self.clock.tick()
        tokens_per_s = self._settings.batch_size * self._settings.length / self.clock.last_step_s
        return StepReport(
            number, loss, rate, norm, self.clock.elapsed_s, self.clock.share_done, tokens_per_s, wait_s
        )

    def held_out_loss(self) -> float:
        """Loss on held-out text of the parameters as they are."""
        return self._programs.mean_loss(self.state, self._windows)

    def stored(self) -> step_.State:
        """What a checkpoint holds."""
        return self._programs.stored(self.state)

    def position(self, metrics_bytes: int) -> checkpoints_.Position:
        """Where the run stands."""
        return checkpoints_.Position(
            step=self.clock.num_steps,
            num_windows=self.clock.num_steps * self._settings.batch_size,
            num_timed_steps=self.clock.num_timed_steps,
            train_s=self.clock.train_s,
            metrics_bytes=metrics_bytes,
            held_out_before=self.held_out_before,
            tokens=self._tokens_name,
            seed=self._settings.seed,
        )

    def start_line(self) -> dict[str, object]:
        """What a repetition of the run needs."""
        return {
            "event": "start",
            "config": asdict(self._config),
            "settings": asdict(self._settings),
            "tokens": self._tokens_name,
            "held_out_loss": self.held_out_before,
        }

    def outcome(self, stopped_by: StoppedBy, checkpoint: Path | None) -> Outcome:
        """What the run did until now."""
        clock = self.clock
        return Outcome(
            params=self._programs.params(self.state),
            num_steps=clock.num_steps,
            num_tokens=clock.num_steps * self._settings.batch_size * self._settings.length,
            compile_s=clock.compile_s,
            train_s=clock.train_s,
            held_out_before=self.held_out_before,
            held_out_after=self.held_out_loss(),
            unigram_entropy=batches.unigram_entropy(self._held_out),
            stopped_by=stopped_by,
            num_timed_steps=clock.num_timed_steps,
            checkpoint=checkpoint,
        )


def _end_line(outcome: Outcome) -> dict[str, object]:
    return {
        "event": "end",
        "held_out_loss": outcome.held_out_after,
        "unigram_entropy": outcome.unigram_entropy,
        "num_steps": outcome.num_steps,
        "tokens_per_s": outcome.tokens_per_s,
        "stopped_by": outcome.stopped_by,
    }


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
        fix="use a smaller learning rate; nothing was saved since the last checkpoint: the parameters are "
        "damaged",
    )
