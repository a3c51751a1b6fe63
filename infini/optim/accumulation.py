"""Gradients of several steps as one: `MultiSteps`, functions that leave out steps, and `apply_every`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import infini.numpy as inp
from infini import Array, lax, tree
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


def skip_not_finite(
    updates: Updates, gradient_step: Array, params: Params | None
) -> tuple[Array, dict[str, Array]]:
    """For `MultiSteps`: skip updates that hold an infinity or a NaN."""
    bad = [inp.sum(~inp.isfinite(leaf)) for leaf in tree.leaves(updates)]
    count = functools.reduce(inp.add, bad)
    return count > 0, {"should_skip": count > 0, "num_not_finite": count}


def skip_large_updates(
    updates: Updates, gradient_step: Array, params: Params | None, max_squared_norm: float
) -> tuple[Array, dict[str, Array]]:
    """For `MultiSteps`: skip updates whose squared global norm is `max_squared_norm` or more."""
    squares = [inp.sum(moments.squared(leaf)) for leaf in tree.leaves(updates)]
    total = functools.reduce(inp.add, squares)
    should_skip = ~(total < max_squared_norm)
    return should_skip, {"should_skip": should_skip, "norm_squared": total}


class MultiStepsState(NamedTuple):
    """What `MultiSteps` remembers."""

    mini_step: Array
    gradient_step: Array
    inner_opt_state: State
    acc_grads: Params
    skip_state: Any = ()  # Any: what the skip function gives


@dataclass(frozen=True)
class MultiSteps:
    """Accumulate the gradients of several steps, and let the optimizer see their mean once.

    Between, updates are zero. It is a transformation: it has `init` and `update`.

    Args:
        opt: optimizer.
        every_k_schedule: how many steps make one, a number or a schedule of the steps of the optimizer.
        use_grad_mean: take the mean; otherwise the sum.
        should_skip_update_fn: function of updates, number of the step and parameters that says whether
            these updates are left out, and something to put into the state, such as `skip_not_finite`.
        accumulator_dtype: dtype of the accumulated gradients.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import optim
        >>> optimizer = optim.MultiSteps(optim.sgd(1.0), every_k_schedule=2)
        >>> params = {"w": inp.zeros(())}
        >>> state = optimizer.init(params)
        >>> for gradient in (1.0, 3.0):
        ...     updates, state = optimizer.update({"w": inp.asarray(gradient)}, state, params)
        ...     print(float(updates["w"]), bool(optimizer.has_updated(state)))
        0.0 False
        -2.0 True
    """

    opt: GradientTransformation
    every_k_schedule: int | Callable[[Array], Any]  # Any: a number or a scalar array
    use_grad_mean: bool = True
    should_skip_update_fn: Callable[..., tuple[Array, Any]] | None = None
    accumulator_dtype: DType = inp.float32

    @property
    def inner_opt(self) -> GradientTransformation:
        """The optimizer."""
        return self.opt

    def _skipped(self, updates: Updates, step: Array, params: Params | None) -> tuple[Array, Any]:
        if self.should_skip_update_fn is None:
            return inp.asarray(False), ()
        return self.should_skip_update_fn(updates, step, params)

    def init(self, params: Params) -> MultiStepsState:
        """The state for these parameters."""
        zero = inp.zeros((), inp.int32)
        _, skip_state = self._skipped(tree.map(inp.zeros_like, params), zero, params)
        accumulated = moments.zeros(params, self.accumulator_dtype)
        return MultiStepsState(zero, zero, self.opt.init(params), accumulated, skip_state)

    def update(
        self, updates: Updates, state: MultiStepsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MultiStepsState]:  # Any: arguments of update
        """Accumulate, and at the last of the steps update."""
        every = self.every_k_schedule
        count = every(state.gradient_step) if callable(every) else every
        should_skip, skip_state = self._skipped(updates, state.gradient_step, params)
        is_last = (state.mini_step == count - 1) & ~should_skip

        def accumulated(u: Array, total: Array) -> Array:
            more = total + (u - total) / (state.mini_step + 1) if self.use_grad_mean else total + u
            return inp.where(should_skip, total, more).astype(total.dtype)

        totals = tree.map(accumulated, updates, state.acc_grads)
        narrow = tree.map(lambda total, u: total.astype(u.dtype), totals, updates)
        # The optimizer runs at the last step alone, not at every one.
        found, inner = lax.cond(
            is_last,
            lambda: as_before(
                run(self.opt, narrow, state.inner_opt_state, params, extra), state.inner_opt_state
            ),
            lambda: (
                zeros_of(self.opt, narrow, state.inner_opt_state, params, extra),
                state.inner_opt_state,
            ),
        )
        step = inp.where(should_skip, state.mini_step, (state.mini_step + 1) % count)
        return found, MultiStepsState(
            mini_step=step.astype(inp.int32),
            gradient_step=inp.where(
                is_last, moments.safe_increment(state.gradient_step), state.gradient_step
            ),
            inner_opt_state=inner,
            acc_grads=tree.map(lambda total: inp.where(is_last, 0, total), totals),
            skip_state=skip_state,
        )

    def has_updated(self, state: MultiStepsState) -> Array:
        """Whether the last call was the last of its steps."""
        return (state.mini_step == 0) & (state.gradient_step > 0)

    def gradient_transformation(self) -> GradientTransformation:
        """This as a pair of functions."""
        return GradientTransformationExtraArgs(self.init, self.update)


class ApplyEvery(NamedTuple):
    """What `apply_every` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    grad_acc: Params


def apply_every(k: int = 1) -> GradientTransformation:
    """Accumulate updates and give their sum at every k-th step, zeros between. In front of it stands what
    sees every step; `MultiSteps` lets the whole optimizer wait."""

    def init(params: Params) -> ApplyEvery:
        return ApplyEvery(inp.zeros((), inp.int32), moments.zeros(params))

    def update(
        updates: Updates, state: ApplyEvery, params: Params | None = None
    ) -> tuple[Updates, ApplyEvery]:
        place = state.count % k
        totals = tree.map(lambda u, t: inp.where(place == 0, 0, t) + u, updates, state.grad_acc)
        found = tree.map(lambda t, u: inp.where(place == k - 1, t, 0).astype(u.dtype), totals, updates)
        return found, ApplyEvery((state.count + 1) % k, totals)

    return GradientTransformation(init, update)
