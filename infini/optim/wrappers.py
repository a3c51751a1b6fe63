"""Transformations around others: refusal of steps that are not finite, hyperparameters in the state,
lookahead, and a scale that follows the loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import infini.numpy as inp
from infini import Array, lax, tree
from infini.core import errors
from infini.optim import moments
from infini.optim.base import (
    DType,
    GradientTransformation,
    GradientTransformationExtraArgs,
    Params,
    State,
    Updates,
    as_before,
    run,
    zeros_of,
)


class ApplyIfFiniteState(NamedTuple):
    """What `apply_if_finite` remembers."""

    notfinite_count: Array
    last_finite: Array
    total_notfinite: Array
    inner_state: State


def apply_if_finite(
    inner: GradientTransformation, max_consecutive_errors: int
) -> GradientTransformationExtraArgs:
    """Skip updates that hold an infinity or a NaN, unless too many follow each other.

    Args:
        inner: transformation.
        max_consecutive_errors: after so many refusals in a row the next update is applied in any case.
    """

    def init(params: Params) -> ApplyIfFiniteState:
        zero = inp.zeros((), inp.int32)
        return ApplyIfFiniteState(zero, inp.asarray(True), zero, inner.init(params))

    def update(
        updates: Updates, state: ApplyIfFiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyIfFiniteState]:  # Any: arguments of update
        is_finite = functools.reduce(
            inp.logical_and, [inp.all(inp.isfinite(leaf)) for leaf in tree.leaves(updates)]
        )
        in_a_row = inp.where(is_finite, 0, moments.safe_increment(state.notfinite_count))
        total = inp.where(is_finite, state.total_notfinite, moments.safe_increment(state.total_notfinite))
        found, after = lax.cond(
            is_finite | (in_a_row > max_consecutive_errors),
            lambda: as_before(run(inner, updates, state.inner_state, params, extra), state.inner_state),
            lambda: (zeros_of(inner, updates, state.inner_state, params, extra), state.inner_state),
        )
        return found, ApplyIfFiniteState(in_a_row, is_finite, total, after)

    return GradientTransformationExtraArgs(init, update)


class InjectHyperparamsState(NamedTuple):
    """What `inject_hyperparams` remembers; `hyperparams` can be replaced between steps."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    hyperparams: dict[str, Array]
    inner_state: State


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DType | None = None,
) -> Callable[..., GradientTransformationExtraArgs]:
    """An optimizer whose numbers live in its state, where they can be read and replaced without a new trace.

    Args:
        inner_factory: function from hyperparameters to a transformation, such as `adamw`.
        static_args: names of hyperparameters that stay as they are.
        hyperparam_dtype: dtype of the others, float32 when absent.

    Returns:
        A function with the arguments of `inner_factory`. Schedules are evaluated at every step.

    Raises:
        ValueMismatchError: a static argument is none of the factory's.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import optim
        >>> optimizer = optim.inject_hyperparams(optim.sgd)(learning_rate=0.5)
        >>> state = optimizer.init({"w": inp.zeros(())})
        >>> state.hyperparams["learning_rate"] = inp.asarray(2.0)
        >>> float(optimizer.update({"w": inp.ones(())}, state)[0]["w"])
        -2.0
    """
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    signature = inspect.signature(inner_factory)
    if not static <= set(signature.parameters):
        raise errors.ValueMismatchError(
            "optim.inject_hyperparams: a static argument is none of the factory's",
            got=", ".join(sorted(static - set(signature.parameters))),
            expected=", ".join(signature.parameters),
        )
    dtype = inp.float32 if hyperparam_dtype is None else hyperparam_dtype

    @functools.wraps(inner_factory)
    def factory(*args: Any, **kwargs: Any) -> GradientTransformationExtraArgs:  # Any: hyperparameters
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        schedules, numbers, others = _sorted(bound.arguments, static)

        def made(values: dict[str, Array]) -> GradientTransformation:
            return inner_factory(**others, **values)

        def scheduled(count: Array) -> dict[str, Array]:
            return {name: inp.asarray(schedule(count), dtype=dtype) for name, schedule in schedules.items()}

        def init(params: Params) -> InjectHyperparamsState:
            count = inp.zeros((), inp.int32)
            values = {
                name: inp.asarray(x) if isinstance(x, int) else inp.asarray(x, dtype=dtype)
                for name, x in numbers.items()
            } | scheduled(count)
            return InjectHyperparamsState(count, values, made(values).init(params))

        def update(
            updates: Updates, state: InjectHyperparamsState, params: Params | None = None, **extra: Any
        ) -> tuple[Updates, InjectHyperparamsState]:  # Any: arguments of update
            values = state.hyperparams | scheduled(state.count)
            found, inner = run(made(values), updates, state.inner_state, params, extra)
            return found, InjectHyperparamsState(moments.safe_increment(state.count), values, inner)

        return GradientTransformationExtraArgs(init, update)

    return factory


def _sorted(
    arguments: dict[str, Any], static: set[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:  # Any: hyperparameters
    """Schedules, numbers, and others."""
    schedules: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in arguments.items():
        is_number = isinstance(value, (int, float, Array)) or hasattr(value, "__array__")
        if name in static or isinstance(value, bool):
            others[name] = value
        elif callable(value) and not isinstance(value, type):
            schedules[name] = value
        elif is_number:
            numbers[name] = value
        else:
            others[name] = value
    return schedules, numbers, others


class LookaheadParams(NamedTuple):
    """The fast and the slow parameters of `lookahead`."""

    fast: Params
    slow: Params

    @classmethod
    def init_synced(cls, params: Params) -> LookaheadParams:
        """Both as these parameters."""
        return cls(params, params)


class LookaheadState(NamedTuple):
    """What `lookahead` remembers."""

    fast_state: State
    steps_since_sync: Array


def lookahead(
    fast_optimizer: GradientTransformation,
    sync_period: int,
    slow_step_size: float,
    reset_state: bool = False,
) -> GradientTransformation:
    """Let slow parameters follow the fast ones at every `sync_period`-th step, and those start from there
    (arXiv:1907.08610).

    Args:
        fast_optimizer: optimizer of the fast parameters.
        sync_period: steps between.
        slow_step_size: share of the way that the slow parameters go.
        reset_state: start the optimizer anew then.

    Returns:
        A transformation of gradients by the fast parameters, whose parameters are `LookaheadParams`.

    Raises:
        ValueMismatchError: the period is below 1.
    """
    if sync_period < 1:
        raise errors.ValueMismatchError("optim.lookahead: sync_period is at least 1", got=str(sync_period))

    def init(params: LookaheadParams) -> LookaheadState:
        return LookaheadState(fast_optimizer.init(params.fast), inp.zeros((), inp.int32))

    def update(
        updates: Updates, state: LookaheadState, params: LookaheadParams
    ) -> tuple[LookaheadParams, LookaheadState]:
        steps, fast_state = fast_optimizer.update(updates, state.fast_state, params.fast)
        is_due = state.steps_since_sync == sync_period - 1
        ways = tree.map(lambda f, u, s: f + u - s, params.fast, steps, params.slow)
        slow = tree.map(lambda way: inp.where(is_due, slow_step_size * way, 0), ways)
        fast = tree.map(lambda u, way: u - inp.where(is_due, (1 - slow_step_size) * way, 0), steps, ways)
        if reset_state:
            fresh = fast_optimizer.init(params.fast)
            fast_state = tree.map(lambda old, new: inp.where(is_due, new, old), fast_state, fresh)
        count = (state.steps_since_sync + 1) % sync_period
        return LookaheadParams(fast, slow), LookaheadState(fast_state, count)

    return GradientTransformation(init, update)


class ReduceLROnPlateauState(NamedTuple):
    """What `reduce_on_plateau` remembers."""

    scale: Array
    best_value: Array
    plateau_count: Array
    cooldown_count: Array
    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    avg_value: Array


def reduce_on_plateau(
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> GradientTransformationExtraArgs:
    """Scale updates down when the loss no longer falls; `update` takes it as `value=`.

    Args:
        factor: each time the scale is multiplied by this, in (0, 1).
        patience: evaluations without a better value before that.
        rtol: a better value is smaller by this share at least,
        atol: and by this much.
        cooldown: evaluations after a change that do not count.
        accumulation_size: steps whose mean value is one evaluation.
        min_scale: smallest scale.

    Raises:
        ValueMismatchError: the factor or a tolerance is out of range.
    """
    if not 0.0 < factor < 1.0 or not 0.0 <= rtol <= 1.0 or atol < 0.0 or rtol == atol == 0.0:
        raise errors.ValueMismatchError(
            "optim.reduce_on_plateau: an option is out of range",
            got=f"factor={factor}, rtol={rtol}, atol={atol}",
            expected="factor in (0, 1), rtol in [0, 1], atol at least 0, not both tolerances 0",
        )

    def init(params: Params) -> ReduceLROnPlateauState:
        zero, one = inp.zeros((), inp.int32), inp.ones((), inp.float32)
        return ReduceLROnPlateauState(one, one * inp.inf, zero, zero, zero, one * 0)

    def evaluated(state: ReduceLROnPlateauState) -> ReduceLROnPlateauState:
        is_better = state.avg_value < (1 - rtol) * state.best_value - atol
        stalled = inp.where(is_better, 0, moments.safe_increment(state.plateau_count))
        is_cooling = state.cooldown_count > 0
        is_due = ~is_cooling & (stalled == patience)
        return ReduceLROnPlateauState(
            scale=inp.where(
                is_due,
                inp.maximum(state.scale * factor, min_scale),
                inp.where(is_cooling, state.scale, inp.maximum(state.scale, min_scale)),
            ),
            best_value=inp.where(is_better, state.avg_value, state.best_value),
            plateau_count=inp.where(is_cooling | is_due, 0, stalled),
            cooldown_count=inp.where(is_cooling, state.cooldown_count - 1, inp.where(is_due, cooldown, 0)),
            count=inp.zeros((), inp.int32),
            avg_value=inp.zeros((), inp.float32),
        )

    def update(
        updates: Updates,
        state: ReduceLROnPlateauState,
        params: Params | None = None,
        *,
        value: float | Array,
        **extra: Any,  # Any: those of others in the chain
    ) -> tuple[Updates, ReduceLROnPlateauState]:
        count = moments.safe_increment(state.count)
        mean = (state.count * state.avg_value + value) / count
        seen = state._replace(avg_value=mean.astype(inp.float32), count=count)
        after = tree.map(
            lambda new, old: inp.where(count == accumulation_size, new, old), evaluated(seen), seen
        )
        return tree.map(lambda u: (u * after.scale).astype(u.dtype), updates), after

    return GradientTransformationExtraArgs(init, update)
