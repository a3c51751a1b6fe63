"""Learning rates as functions of the step number, which may be traced. Names and arguments are optax's."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import TypeAlias

import infini.numpy as inp
from infini import Array

Schedule: TypeAlias = Callable[[Array | int], Array]


def constant_schedule(value: float) -> Schedule:
    """The same value at every step."""
    return lambda count: inp.asarray(value, dtype=inp.float32)


def linear_schedule(init_value: float, end_value: float, transition_steps: int) -> Schedule:
    """A straight line from `init_value` to `end_value` over `transition_steps`, then constant."""

    def schedule(count: Array | int) -> Array:
        share = inp.clip(inp.asarray(count, dtype=inp.float32) / max(transition_steps, 1), 0.0, 1.0)
        return init_value + (end_value - init_value) * share

    return schedule


def cosine_decay_schedule(init_value: float, decay_steps: int, alpha: float = 0.0) -> Schedule:
    """Half a cosine from `init_value` to `alpha * init_value` over `decay_steps`, then constant."""

    def schedule(count: Array | int) -> Array:
        share = inp.clip(inp.asarray(count, dtype=inp.float32) / max(decay_steps, 1), 0.0, 1.0)
        return init_value * ((1.0 - alpha) * 0.5 * (1.0 + inp.cos(pi * share)) + alpha)

    return schedule


def warmup_cosine_decay_schedule(
    init_value: float, peak_value: float, warmup_steps: int, decay_steps: int, end_value: float = 0.0
) -> Schedule:
    """A straight line up to `peak_value`, then half a cosine down to `end_value`.

    Args:
        init_value: value at step 0.
        peak_value: value at step `warmup_steps`.
        warmup_steps: length of the rise.
        decay_steps: length of rise and fall together, as in optax.
        end_value: value from step `decay_steps` on.
    """
    alpha = end_value / peak_value if peak_value else 0.0
    rise = linear_schedule(init_value, peak_value, warmup_steps)
    fall = cosine_decay_schedule(peak_value, decay_steps - warmup_steps, alpha)

    def schedule(count: Array | int) -> Array:
        step = inp.asarray(count, dtype=inp.float32)
        return inp.where(step < warmup_steps, rise(step), fall(step - warmup_steps))

    return schedule
