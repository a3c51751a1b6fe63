"""How to train: what the loop reads, and the learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from infini.core import errors
from infini.data.batches import Order
from infini.train import gpt, step as step_
from infini.train.layouts import Layout

ScheduleKind = Literal["cosine", "linear", "constant"]


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
        final_share: share of it that is left at the end.
        hyper: what the optimizer does.
        seed: of the parameters and the batches.
        num_evaluation_windows: windows of held-out text to measure on.
        schedule: shape of the fall after the rise.
        computation: dtypes, and memory against time.
        order: which windows a step sees.
        evaluate_every: steps between measurements on held-out text; None for the ends of the run alone.
        checkpoint_every: steps between checkpoints, where there are any.
        layout: how the devices of the run are arranged.
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
    schedule: ScheduleKind = "cosine"
    computation: step_.Computation = field(default_factory=step_.Computation)
    order: Order = "random"
    evaluate_every: int | None = None
    checkpoint_every: int = 100
    layout: Layout = Layout()  # noqa: RUF009  # immutable

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.budget_s is None):
            raise errors.ValueMismatchError(
                "give either a number of steps or a time",
                got=f"{self.num_steps} steps and {self.budget_s} seconds",
                expected="one of run.steps and run.seconds",
                fix="leave one of --steps and --seconds out",
            )
        for name in ("num_steps", "budget_s", "batch_size", "length", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise errors.ValueMismatchError(f"{name} must be positive", got=repr(value))
        if self.batch_size % self.computation.num_parts:
            raise errors.ValueMismatchError(
                "the parts of a step do not divide the batch",
                got=f"{self.batch_size} sequences in {self.computation.num_parts} parts",
                expected="a divisor of run.batch_size",
                fix="change run.accumulate or run.batch_size",
            )

    def learning_rate_at(self, step: int, share_done: float) -> float:
        """The rate of a step: a linear rise over the first steps, times the schedule's fall over the budget.

        Args:
            step: number of the step, from 0.
            share_done: share of the budget spent before it, 0 to 1.
        """
        rise = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        done = min(share_done, 1.0)
        match self.schedule:
            case "cosine":
                left = 0.5 * (1.0 + math.cos(math.pi * done))
            case "linear":
                left = 1.0 - done
            case "constant":
                left = 1.0
        return self.learning_rate * rise * (self.final_share + (1.0 - self.final_share) * left)


def check(config: gpt.Config, settings: Settings) -> None:
    """Refuse a model that cannot be trained so.

    Raises:
        ValueMismatchError: sizes do not go together, or a pipeline does not fit them.
    """
    settings.layout.check(config.num_layers, settings.computation.num_parts, settings.batch_size)
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if settings.length > config.max_length:
        got, expected = f"sequences of {settings.length} tokens", f"at most {config.max_length}"
        fix = "change run.length or model.max_length"
    elif config.head_dim < 2 or config.head_dim % 2:
        got, expected = f"heads of width {config.head_dim}", "an even width"
        fix = "change model.hidden_size, model.num_heads or model.head_dim"
    elif heads % kv_heads:
        got, expected = f"{heads} query heads for {kv_heads} key-value heads", "a multiple"
        fix = "change model.num_heads or model.num_kv_heads"
    elif not set(config.full_layers) <= set(range(config.num_layers)):
        got, expected = f"full_layers = {list(config.full_layers)}", f"numbers below {config.num_layers}"
        fix = "change model.full_layers"
    elif config.num_experts and config.experts_per_token > config.num_experts:
        got = f"{config.experts_per_token} experts of a token"
        expected, fix = f"at most {config.num_experts}", "change model.num_experts or model.experts_per_token"
    elif config.num_experts and config.mlp_bias:
        got, expected, fix = "experts and mlp_bias", "experts without biases", "leave one of them out"
    elif settings.layout.ep > 1 and (not config.num_experts or config.num_experts % settings.layout.ep):
        got = f"{config.num_experts or 'no'} experts over ep = {settings.layout.ep} devices"
        expected, fix = "a multiple", "change mesh.ep or model.num_experts; mesh.dp splits the batch alone"
    else:
        return
    raise errors.ValueMismatchError(
        "sizes of the model do not go together", got=got, expected=expected, fix=fix
    )
