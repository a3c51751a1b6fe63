"""Transformations that scale updates by numbers and schedules, by the parameters, or by simple statistics."""

from __future__ import annotations

import functools
from typing import NamedTuple

import infini.numpy as inp
from infini import Array, random, tree
from infini.optim import moments
from infini.optim.base import (
    EmptyState,
    GradientTransformation,
    Mask,
    Params,
    Rate,
    Schedule,
    State,
    Updates,
    identity,
    init_empty_state,
    needed,
    stateless_with_tree_map,
)
from infini.optim.masking import masked


def scale(step_size: float | Array) -> GradientTransformation:
    """Multiply updates by a number."""
    return stateless_with_tree_map(lambda u, p: (u * step_size).astype(u.dtype))


class ScaleByScheduleState(NamedTuple):
    """What `scale_by_schedule` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples


def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    """Multiply updates by a schedule, which sees how often it was asked before."""

    def init(params: Params) -> ScaleByScheduleState:
        return ScaleByScheduleState(inp.zeros((), inp.int32))

    def update(
        updates: Updates, state: ScaleByScheduleState, params: Params | None = None
    ) -> tuple[Updates, ScaleByScheduleState]:
        factor = step_size_fn(state.count)
        updates = tree.map(lambda u: (u * factor).astype(u.dtype), updates)
        return updates, ScaleByScheduleState(moments.safe_increment(state.count))

    return GradientTransformation(init, update)


def scale_by_learning_rate(
    learning_rate: Rate | None = None, *, flip_sign: bool = True
) -> GradientTransformation:
    """Multiply updates by minus the learning rate (plus, without `flip_sign`)."""
    if learning_rate is None:
        return identity()
    sign = -1 if flip_sign else 1
    if callable(learning_rate):
        rate = learning_rate
        return scale_by_schedule(lambda count: sign * rate(count))
    return scale(sign * learning_rate)


def scale_by_sign() -> GradientTransformation:
    """The signs of updates."""
    return stateless_with_tree_map(lambda u, p: inp.sign(u))


def scale_by_param_block_norm(min_scale: float = 1e-3) -> GradientTransformation:
    """Multiply each leaf of the updates by the norm of its parameters, which counts as `min_scale` at
    least."""

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        params = needed("scale_by_param_block_norm", params)
        return tree.map(lambda u, p: u * moments.safe_norm(p, min_scale), updates, params), state

    return GradientTransformation(init_empty_state, update)


def scale_by_param_block_rms(min_scale: float = 1e-3) -> GradientTransformation:
    """Multiply each leaf of the updates by the root mean square of its parameters, which counts as
    `min_scale` at least."""

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        params = needed("scale_by_param_block_rms", params)
        return tree.map(lambda u, p: u * moments.safe_root_mean_squares(p, min_scale), updates, params), state

    return GradientTransformation(init_empty_state, update)


def scale_by_trust_ratio(
    min_norm: float = 0.0, trust_coefficient: float | Array = 1.0, eps: float = 0.0
) -> GradientTransformation:
    """Multiply each leaf of the updates by the norm of its parameters over its own.

    Args:
        min_norm: smallest norm of either.
        trust_coefficient: factor.
        eps: added to the norm of the updates.
    """

    def one(u: Array, p: Array) -> Array:
        own, other = moments.safe_norm(u, min_norm), moments.safe_norm(p, min_norm)
        ratio = trust_coefficient * other / (own + eps)
        return u * inp.where((own == 0) | (other == 0), inp.ones((), p.dtype), ratio)

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        return tree.map(one, updates, needed("scale_by_trust_ratio", params)), state

    return GradientTransformation(init_empty_state, update)


def normalize_by_update_norm(scale_factor: float = 1.0, eps: float = 1e-6) -> GradientTransformation:
    """Divide updates by their global norm."""

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        factor = scale_factor / (moments.global_norm(updates) + eps)
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return GradientTransformation(init_empty_state, update)


class WeightDecaySchedule(NamedTuple):
    """What `add_decayed_weights` by a schedule remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples


def add_decayed_weights(weight_decay: Rate = 0.0, mask: Mask | None = None) -> GradientTransformation:
    """Add `weight_decay` times the parameters to the updates.

    Args:
        weight_decay: number, array or schedule.
        mask: which parameters decay: a pytree of bools, or a function of the parameters to one; all when
            absent.
    """

    def init(params: Params) -> State:
        return WeightDecaySchedule(inp.zeros((), inp.int32)) if callable(weight_decay) else EmptyState()

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        params = needed("add_decayed_weights", params)
        if callable(weight_decay):
            share, after = weight_decay(state.count), WeightDecaySchedule(moments.safe_increment(state.count))
        else:
            share, after = weight_decay, state
        if type(share) in (int, float) and share == 0:
            return updates, after
        return tree.map(lambda u, p: u + share * p, updates, params), after

    plain = GradientTransformation(init, update)
    return plain if mask is None else masked(plain, mask)


class AddNoiseState(NamedTuple):
    """What `add_noise` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    rng_key: Array


def add_noise(eta: float, gamma: float, key: Array | int) -> GradientTransformation:
    """Add normal noise of variance `eta / count**gamma` to updates.

    Args:
        eta: variance at the first step.
        gamma: exponent of its decay.
        key: a key, or a seed.
    """

    def init(params: Params) -> AddNoiseState:
        return AddNoiseState(inp.zeros((), inp.int32), random.PRNGKey(key) if isinstance(key, int) else key)

    def update(
        updates: Updates, state: AddNoiseState, params: Params | None = None
    ) -> tuple[Updates, AddNoiseState]:
        count = moments.safe_increment(state.count)
        deviation = inp.sqrt(eta / count.astype(inp.float32) ** gamma)
        rest, own = random.split(state.rng_key)
        leaves, structure = tree.flatten(updates)
        keys = tree.unflatten(structure, list(random.split(own, len(leaves))))
        noisy = tree.map(lambda u, k: u + deviation * random.normal(k, u.shape, u.dtype), updates, keys)
        return noisy, AddNoiseState(count, rest)

    return GradientTransformation(init, update)


# --- clipping ---------------------------------------------------------------------------------


def clip(max_delta: float | Array) -> GradientTransformation:
    """Limit each element of the updates to the range from `-max_delta` to `max_delta`."""
    return stateless_with_tree_map(lambda u, p: inp.clip(u, -max_delta, max_delta))


def clip_by_global_norm(max_norm: float | Array) -> GradientTransformation:
    """Scale all updates down together so that their global norm is at most `max_norm`."""

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        factor = inp.minimum(1.0, max_norm / inp.maximum(moments.global_norm(updates), 1e-16))
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return GradientTransformation(init_empty_state, update)


def clip_by_block_rms(threshold: float | Array) -> GradientTransformation:
    """Scale each leaf of the updates down so that its root mean square is at most `threshold`."""

    def one(u: Array, p: Array | None) -> Array:
        return u / inp.maximum(1.0, inp.sqrt(inp.mean(moments.squared(u))) / threshold)

    return stateless_with_tree_map(one)


def adaptive_grad_clip(
    clipping: float, eps: float = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformation:
    """Scale the updates of each unit down to a share of the norm of its parameters (arXiv:2102.06171).

    Args:
        clipping: the largest share.
        eps: smallest norm of parameters.
        axis: dimensions of a unit: all but the last when absent, of vectors the only one.
    """

    def one(u: Array, p: Array) -> Array:
        own, largest = _unit_norm(u, axis), clipping * inp.maximum(_unit_norm(p, axis), eps)
        return inp.where(own < largest, u, u * (largest / inp.maximum(own, 1e-6)))

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        return tree.map(one, updates, needed("adaptive_grad_clip", params)), state

    return GradientTransformation(init_empty_state, update)


def _unit_norm(x: Array, axis: int | tuple[int, ...] | None) -> Array:
    if axis is None:
        is_vector = sum(n > 1 for n in x.shape) <= 1
        axis = tuple(range(x.ndim)) if is_vector else (0,) if x.ndim in (2, 3) else tuple(range(x.ndim - 1))
    return inp.sqrt(inp.sum(moments.squared(x), axis, keepdims=True))


def per_example_global_norm_clip(grads: Updates, l2_norm_clip: float) -> tuple[Updates, Array]:
    """The sum over examples of their gradients, each scaled down to a global norm, for private training.

    Args:
        grads: gradients with a leading dimension of examples.
        l2_norm_clip: largest norm of one example.

    Returns:
        The sums, and how many examples were scaled down.
    """
    squares = [inp.sum(moments.squared(g), tuple(range(1, g.ndim))) for g in tree.leaves(grads)]
    norms = inp.sqrt(functools.reduce(inp.add, squares))
    factors = inp.nan_to_num(inp.minimum(l2_norm_clip / norms, 1.0), nan=1.0)
    return tree.map(lambda g: inp.tensordot(factors, g, axes=1), grads), inp.sum(factors < 1.0)


def keep_params_nonnegative() -> GradientTransformation:
    """Change updates so that parameters that are not negative stay so."""

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        params = needed("keep_params_nonnegative", params)
        return tree.map(lambda p, u: inp.where(p + u < 0.0, -p, u), params, updates), state

    return GradientTransformation(init_empty_state, update)


class ZeroNansState(NamedTuple):
    """Which leaves of the last updates held a NaN."""

    found_nan: Params


def zero_nans() -> GradientTransformation:
    """Replace NaN by 0."""

    def init(params: Params) -> ZeroNansState:
        return ZeroNansState(tree.map(lambda p: inp.asarray(False), params))

    def update(
        updates: Updates, state: ZeroNansState, params: Params | None = None
    ) -> tuple[Updates, ZeroNansState]:
        found = tree.map(lambda u: inp.any(inp.isnan(u)), updates)
        return tree.map(lambda u: inp.where(inp.isnan(u), 0, u), updates), ZeroNansState(found)

    return GradientTransformation(init, update)
