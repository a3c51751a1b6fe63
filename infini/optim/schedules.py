"""Learning rates as functions of the step number, which may be traced. Names and arguments are optax's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import infini.numpy as inp
from infini import Array
from infini.core import errors
from infini.optim.base import Schedule


def _steps(count: Array | int) -> Array:
    return inp.asarray(count, dtype=inp.float32)


def constant_schedule(value: float | Array) -> Schedule:
    """The same value at every step."""
    return lambda count: inp.asarray(value, dtype=inp.float32)


def polynomial_schedule(
    init_value: float, end_value: float, power: float, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """A power of the share of steps that are left, from `init_value` to `end_value`, then constant.

    Args:
        init_value: value up to the step `transition_begin`.
        end_value: value from `transition_begin + transition_steps` on.
        power: exponent.
        transition_steps: length of the way; without any, `init_value` stays.
        transition_begin: step at which it starts.
    """
    if transition_steps <= 0:
        return constant_schedule(init_value)

    def schedule(count: Array | int) -> Array:
        share = inp.clip(_steps(count) - max(transition_begin, 0), 0, transition_steps) / transition_steps
        left = 1.0 - share if power == 1 else (1.0 - share) ** power
        return (init_value - end_value) * left + end_value

    return schedule


def linear_schedule(
    init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """A straight line from `init_value` to `end_value`, then constant; arguments as of
    `polynomial_schedule`."""
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


def exponential_decay(
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """`init_value * decay_rate**(count / transition_steps)`.

    Args:
        init_value: value up to the step `transition_begin`.
        transition_steps: steps in which the value is multiplied once; without any, `init_value` stays.
        decay_rate: factor; 0 keeps `init_value` as well.
        transition_begin: step at which it starts.
        staircase: only whole multiples change the value.
        end_value: bound that the value does not cross.
    """
    if transition_steps <= 0 or decay_rate == 0:
        return constant_schedule(init_value)
    bound = inp.maximum if decay_rate < 1 else inp.minimum

    def schedule(count: Array | int) -> Array:
        steps = _steps(count) - max(transition_begin, 0)
        turns = inp.floor(steps / transition_steps) if staircase else steps / transition_steps
        value = inp.where(steps <= 0, init_value, init_value * inp.power(decay_rate, turns))
        return value if end_value is None else bound(value, end_value)

    return schedule


def cosine_decay_schedule(
    init_value: float, decay_steps: int, alpha: float = 0.0, exponent: float = 1.0
) -> Schedule:
    """Half a cosine from `init_value` to `alpha * init_value` over `decay_steps`, then constant.

    Args:
        init_value: value at step 0.
        decay_steps: length of the way.
        alpha: share of `init_value` at its end.
        exponent: power of the cosine's share.

    Raises:
        ValueMismatchError: there are no steps.
    """
    if not decay_steps > 0:
        raise errors.ValueMismatchError(
            "optim.cosine_decay_schedule needs steps", got=f"decay_steps={decay_steps}"
        )

    def schedule(count: Array | int) -> Array:
        share = inp.clip(_steps(count) / decay_steps, 0.0, 1.0)
        cosine = 0.5 * (1.0 + inp.cos(math.pi * share))
        shaped = cosine if exponent == 1 else cosine**exponent
        return init_value * ((1.0 - alpha) * shaped + alpha)

    return schedule


def piecewise_constant_schedule(
    init_value: float, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """A value that is multiplied by a scale at each boundary.

    Args:
        init_value: value up to the first boundary.
        boundaries_and_scales: factors, at least 0, by the step from which they count.

    Raises:
        ValueMismatchError: a scale is negative.
    """
    pairs = _boundaries("piecewise_constant_schedule", boundaries_and_scales)

    def schedule(count: Array | int) -> Array:
        steps = _steps(count)
        value = inp.asarray(init_value, dtype=inp.float32)
        for boundary, factor in pairs:
            value = inp.where(steps < boundary, value, value * factor)
        return value

    return schedule


def piecewise_interpolate_schedule(
    interpolate_type: Literal["linear", "cosine"],
    init_value: float,
    boundaries_and_scales: Mapping[int, float] | None = None,
) -> Schedule:
    """A value that moves from one boundary to the next, where it has been multiplied by the scale.

    Args:
        interpolate_type: along a straight line or half a cosine.
        init_value: value at step 0.
        boundaries_and_scales: factors, at least 0, by step.

    Raises:
        ValueMismatchError: a scale is negative, or the type is another one.
    """
    if interpolate_type not in ("linear", "cosine"):
        raise errors.ValueMismatchError(
            "optim.piecewise_interpolate_schedule: unknown type",
            got=repr(interpolate_type),
            expected="'linear' or 'cosine'",
        )
    pairs = _boundaries("piecewise_interpolate_schedule", boundaries_and_scales)

    def schedule(count: Array | int) -> Array:
        steps = _steps(count)
        result = start = inp.asarray(init_value, dtype=inp.float32)
        begin = 0
        for boundary, factor in pairs:
            end, share = start * factor, (steps - begin) / max(boundary - begin, 1)
            if interpolate_type == "linear":
                between = (end - start) * share + start
            else:
                between = end + (start - end) / 2.0 * (inp.cos(math.pi * share) + 1)
            result = inp.where(steps >= begin, inp.where(steps < boundary, between, end), result)
            begin, start = boundary, end
        return result

    return schedule


def _boundaries(name: str, pairs: Mapping[int, float] | None) -> list[tuple[int, float]]:
    found = sorted((pairs or {}).items())
    if any(factor < 0 for _, factor in found):
        raise errors.ValueMismatchError(f"optim.{name}: a scale is negative", got=str(dict(found)))
    return found


def _check_steps(name: str, transition_steps: int) -> None:
    if transition_steps <= 0:
        raise errors.ValueMismatchError(
            f"optim.{name} needs steps", got=f"transition_steps={transition_steps}"
        )


def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Up to the peak, down again, and further down, along straight lines (arXiv:1708.07120).

    Args:
        transition_steps: length of all three.
        peak_value: largest value.
        pct_start: share of the steps up.
        pct_final: share of the steps at whose end the value is where it started.
        div_factor: the peak over the first value.
        final_div_factor: the first value over the last one.
    """
    _check_steps("linear_onecycle_schedule", transition_steps)
    return piecewise_interpolate_schedule(
        "linear",
        peak_value / div_factor,
        {
            int(pct_start * transition_steps): div_factor,
            int(pct_final * transition_steps): 1.0 / div_factor,
            transition_steps: 1.0 / final_div_factor,
        },
    )


def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Up to the peak and down, along halves of a cosine; arguments as of `linear_onecycle_schedule`."""
    _check_steps("cosine_onecycle_schedule", transition_steps)
    return piecewise_interpolate_schedule(
        "cosine",
        peak_value / div_factor,
        {
            int(pct_start * transition_steps): div_factor,
            transition_steps: 1.0 / (div_factor * final_div_factor),
        },
    )


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """One schedule after the other; each counts from its own start.

    Args:
        schedules: the schedules.
        boundaries: first steps of all but the first.
    """

    def schedule(count: Array | int) -> Array:
        steps = inp.asarray(count)
        value = schedules[0](count)
        for boundary, later in zip(boundaries, schedules[1:], strict=False):
            value = inp.where(steps < boundary, value, later(steps - boundary))
        return value

    return schedule


def warmup_constant_schedule(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """A straight line up to `peak_value`, then constant."""
    return linear_schedule(init_value, peak_value, warmup_steps)


def warmup_cosine_decay_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    """A straight line up to `peak_value`, then half a cosine down to `end_value`.

    Args:
        init_value: value at step 0.
        peak_value: value at step `warmup_steps`.
        warmup_steps: length of the rise.
        decay_steps: length of rise and fall together, as in optax.
        end_value: value from step `decay_steps` on.
        exponent: power of the cosine's share.
    """
    alpha = end_value / peak_value if peak_value else 0.0
    rise = linear_schedule(init_value, peak_value, warmup_steps)
    fall = cosine_decay_schedule(peak_value, decay_steps - warmup_steps, alpha, exponent)
    return join_schedules([rise, fall], [warmup_steps])


def warmup_exponential_decay_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """A straight line up to `peak_value` over `warmup_steps`, then `exponential_decay`."""
    rise = linear_schedule(init_value, peak_value, warmup_steps)
    fall = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return join_schedules([rise, fall], [warmup_steps])


def sgdr_schedule(cosine_kwargs: Iterable[dict[str, Any]]) -> Schedule:
    """Several `warmup_cosine_decay_schedule`, one after the other (arXiv:1608.03983).

    Args:
        cosine_kwargs: the arguments of each.
    """
    parts, boundaries, step = [], [], 0
    for options in cosine_kwargs:
        parts.append(warmup_cosine_decay_schedule(**options))
        step += options["decay_steps"]
        boundaries.append(step)
    return join_schedules(parts, boundaries[:-1])
