"""Gradient transformations: pairs of pure functions `init(params)` and `update(updates, state, params)`.

`chain` applies several in turn; `apply_updates` adds the result to the parameters. A learning rate is a
number, an array (also a traced one), or a schedule of the step number. States are tuples and dictionaries,
so they are pytrees.

References: Adam (arXiv:1412.6980), decoupled weight decay (arXiv:1711.05101), clipping by norm
(arXiv:1211.5063).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import infini.numpy as inp
from infini import Array, tree

Params: TypeAlias = Any  # Any: a pytree of arrays
State: TypeAlias = Any  # Any: a pytree of arrays, of a structure only its transformation knows
LearningRate: TypeAlias = float | Array | Callable[[Array], Array]
Mask: TypeAlias = Callable[[Params], Any]  # Any: a pytree of bools


class GradientTransformation(NamedTuple):
    """A step of an optimizer.

    Args:
        init: state for these parameters.
        update: `(updates, state, params) -> (updates, state)`.
    """

    init: Callable[[Params], State]
    update: Callable[[Params, State, Params], tuple[Params, State]]


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """Apply transformations one after the other; the state is the tuple of theirs."""

    def init(params: Params) -> State:
        return tuple(transformation.init(params) for transformation in transformations)

    def update(updates: Params, state: State, params: Params) -> tuple[Params, State]:
        after = []
        for transformation, before in zip(transformations, state, strict=True):
            updates, part = transformation.update(updates, before, params)
            after.append(part)
        return updates, tuple(after)

    return GradientTransformation(init, update)


def apply_updates(params: Params, updates: Params) -> Params:
    """Parameters plus updates, in the parameters' dtypes."""
    return tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)


def global_norm(updates: Params) -> Array:
    """Euclidean norm of all leaves together, in float32."""
    squares = [inp.sum(inp.square(leaf.astype(inp.float32))) for leaf in tree.leaves(updates)]
    return inp.sqrt(functools.reduce(inp.add, squares))


def clip_by_global_norm(max_norm: float) -> GradientTransformation:
    """Scale all updates down together so that their global norm is at most `max_norm`."""

    def update(updates: Params, state: State, params: Params) -> tuple[Params, State]:
        factor = inp.minimum(1.0, max_norm / inp.maximum(global_norm(updates), 1e-16))
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return GradientTransformation(_no_state, update)


def scale(factor: float | Array) -> GradientTransformation:
    """Multiply updates by a number."""

    def update(updates: Params, state: State, params: Params) -> tuple[Params, State]:
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return GradientTransformation(_no_state, update)


def scale_by_learning_rate(learning_rate: LearningRate) -> GradientTransformation:
    """Multiply updates by minus the learning rate; a schedule sees how often it was asked before."""
    if not callable(learning_rate):
        return scale(-learning_rate)

    def init(params: Params) -> State:
        return {"count": inp.zeros((), inp.int32)}

    def update(updates: Params, state: State, params: Params) -> tuple[Params, State]:
        factor = -learning_rate(state["count"])
        updates = tree.map(lambda u: (u * factor).astype(u.dtype), updates)
        return updates, {"count": state["count"] + 1}

    return GradientTransformation(init, update)


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> GradientTransformation:
    """Divide the running mean of updates by the root of the running mean of their squares.

    Both are corrected for their start at zero. The two moments are float32 whatever the dtype of
    the parameters: bfloat16 would lose small changes.
    """

    def init(params: Params) -> State:
        zeros = tree.map(lambda p: inp.zeros(p.shape, inp.float32), params)
        return {"count": inp.zeros((), inp.int32), "mean": zeros, "square": tree.map(inp.zeros_like, zeros)}

    def update(updates: Params, state: State, params: Params) -> tuple[Params, State]:
        count = state["count"] + 1
        steps = count.astype(inp.float32)
        mean = tree.map(lambda m, u: b1 * m + (1.0 - b1) * u, state["mean"], updates)
        square = tree.map(lambda s, u: b2 * s + (1.0 - b2) * inp.square(u), state["square"], updates)
        mean_scale = 1.0 / (1.0 - b1**steps)
        square_scale = 1.0 / (1.0 - b2**steps)
        updates = tree.map(lambda m, s: (m * mean_scale) / (inp.sqrt(s * square_scale) + eps), mean, square)
        return updates, {"count": count, "mean": mean, "square": square}

    return GradientTransformation(init, update)


def add_decayed_weights(weight_decay: float, mask: Mask | None = None) -> GradientTransformation:
    """Add `weight_decay` times the parameters to the updates, where `mask(params)` is true."""

    def update(updates: Params, state: State, params: Params) -> tuple[Params, State]:
        chosen = tree.map(lambda p: True, params) if mask is None else mask(params)
        return tree.map(
            lambda u, p, is_decayed: u + weight_decay * p if is_decayed else u, updates, params, chosen
        ), state

    return GradientTransformation(_no_state, update)


def sgd(learning_rate: LearningRate) -> GradientTransformation:
    """Plain gradient descent."""
    return scale_by_learning_rate(learning_rate)


def adam(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransformation:
    """Adam."""
    return chain(scale_by_adam(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: LearningRate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Adam with decoupled weight decay.

    Args:
        learning_rate: number, array or schedule.
        b1: decay of the running mean.
        b2: decay of the running mean of squares.
        eps: added to the root, against division by zero.
        weight_decay: share of a parameter taken away per step, times the learning rate.
        mask: function from parameters to a tree of bools that says which of them decay; all when absent.
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _no_state(params: Params) -> State:
    return ()
