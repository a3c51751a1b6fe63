"""Transformations that scale each element by a running statistic of its updates: Adagrad, RMSProp, Adadelta,
Lion, NovoGrad. Those of the Adam family are in `adam`."""

from __future__ import annotations

from typing import Literal, NamedTuple

import infini.numpy as inp
from infini import Array, tree
from infini.core import errors
from infini.optim import moments
from infini.optim.base import DType, GradientTransformation, Params, Updates, needed


class ScaleByLionState(NamedTuple):
    """What `scale_by_lion` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    mu: Params


def scale_by_lion(
    b1: float | Array = 0.9,
    b2: float | Array = 0.99,
    mu_dtype: DType | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: float = 1.0,
) -> GradientTransformation:
    """The sign of a mix of update and running mean (arXiv:2302.06675).

    Args:
        b1: share of the mean in the mix.
        b2: decay of the mean.
        mu_dtype: dtype of the mean.
        mode: `hard` takes the sign, `smooth` the hyperbolic tangent, `refined` the mix itself below 1.
        smooth_beta: factor inside the hyperbolic tangent.

    Raises:
        ValueMismatchError: the mode is another one.
    """
    if mode not in ("hard", "smooth", "refined"):
        raise errors.ValueMismatchError(
            "optim.scale_by_lion: unknown mode", got=repr(mode), expected="'hard', 'smooth' or 'refined'"
        )

    def direction(u: Array, m: Array) -> Array:
        mixed = (1.0 - b1) * u + b1 * m
        if mode == "smooth":
            return inp.tanh(smooth_beta * mixed)
        return inp.sign(mixed) if mode == "hard" else inp.clip(mixed, -1, 1)

    def init(params: Params) -> ScaleByLionState:
        return ScaleByLionState(inp.zeros((), inp.int32), moments.zeros(params, mu_dtype))

    def update(
        updates: Updates, state: ScaleByLionState, params: Params | None = None
    ) -> tuple[Updates, ScaleByLionState]:
        found = tree.map(direction, updates, state.mu)
        mean = moments.cast(moments.update_moment(updates, state.mu, b2, 1), mu_dtype)
        return found, ScaleByLionState(moments.safe_increment(state.count), mean)

    return GradientTransformation(init, update)


class ScaleByRssState(NamedTuple):
    """What `scale_by_rss` remembers."""

    sum_of_squares: Params


def scale_by_rss(initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> GradientTransformation:
    """Divide updates by the root of the sum of their squares so far."""

    def init(params: Params) -> ScaleByRssState:
        return ScaleByRssState(moments.filled(params, initial_accumulator_value))

    def update(
        updates: Updates, state: ScaleByRssState, params: Params | None = None
    ) -> tuple[Updates, ScaleByRssState]:
        total = tree.map(lambda u, t: moments.squared(u) + t, updates, state.sum_of_squares)
        found = tree.map(lambda u, t: inp.where(t > 0, u / inp.sqrt(t + eps), 0.0), updates, total)
        return found, ScaleByRssState(total)

    return GradientTransformation(init, update)


class ScaleByRmsState(NamedTuple):
    """What `scale_by_rms` remembers."""

    nu: Params


class ScaleByRmsWithCountState(NamedTuple):
    """What `scale_by_rms` with bias correction remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    nu: Params


def scale_by_rms(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide updates by the root of the running mean of their squares.

    Args:
        decay: decay of the mean.
        eps: added to it.
        initial_scale: where it starts.
        eps_in_sqrt: add `eps` below the root.
        bias_correction: correct the mean for its start.
    """

    def init(params: Params) -> ScaleByRmsState | ScaleByRmsWithCountState:
        square = moments.filled(params, initial_scale)
        return (
            ScaleByRmsWithCountState(inp.zeros((), inp.int32), square)
            if bias_correction
            else ScaleByRmsState(square)
        )

    def update(
        updates: Updates,
        state: ScaleByRmsState | ScaleByRmsWithCountState,
        params: Params | None = None,
    ) -> tuple[Updates, ScaleByRmsState | ScaleByRmsWithCountState]:
        square = moments.update_moment_per_elem_norm(updates, state.nu, decay, 2)
        if isinstance(state, ScaleByRmsWithCountState):
            count = moments.safe_increment(state.count)
            corrected = moments.bias_correction(square, decay, count)
            return _divided(updates, corrected, eps, eps_in_sqrt), ScaleByRmsWithCountState(count, square)
        return _divided(updates, square, eps, eps_in_sqrt), ScaleByRmsState(square)

    return GradientTransformation(init, update)


def _divided(updates: Updates, square: Params, eps: float, eps_in_sqrt: bool) -> Updates:
    if eps_in_sqrt:
        return tree.map(lambda u, s: u / inp.sqrt(s + eps), updates, square)
    return tree.map(lambda u, s: u / (inp.sqrt(s) + eps), updates, square)


class ScaleByRStdDevState(NamedTuple):
    """What `scale_by_stddev` remembers."""

    mu: Params
    nu: Params


class ScaleByRStdDevWithCountState(NamedTuple):
    """What `scale_by_stddev` with bias correction remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    mu: Params
    nu: Params


def scale_by_stddev(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """As `scale_by_rms`, with the variance instead of the mean of squares."""

    def init(params: Params) -> ScaleByRStdDevState | ScaleByRStdDevWithCountState:
        mean, square = moments.zeros(params), moments.filled(params, initial_scale)
        if bias_correction:
            return ScaleByRStdDevWithCountState(inp.zeros((), inp.int32), mean, square)
        return ScaleByRStdDevState(mean, square)

    def update(
        updates: Updates,
        state: ScaleByRStdDevState | ScaleByRStdDevWithCountState,
        params: Params | None = None,
    ) -> tuple[Updates, ScaleByRStdDevState | ScaleByRStdDevWithCountState]:
        mean = moments.update_moment(updates, state.mu, decay, 1)
        square = moments.update_moment_per_elem_norm(updates, state.nu, decay, 2)
        centers, squares = mean, square
        after: ScaleByRStdDevState | ScaleByRStdDevWithCountState = ScaleByRStdDevState(mean, square)
        if isinstance(state, ScaleByRStdDevWithCountState):
            count = moments.safe_increment(state.count)
            centers, squares = (moments.bias_correction(x, decay, count) for x in (mean, square))
            after = ScaleByRStdDevWithCountState(count, mean, square)
        variance = tree.map(lambda s, m: s - moments.squared(m), squares, centers)
        return _divided(updates, variance, eps, eps_in_sqrt), after

    return GradientTransformation(init, update)


class ScaleByAdaDeltaState(NamedTuple):
    """What `scale_by_adadelta` remembers."""

    e_g: Params
    e_x: Params


def scale_by_adadelta(rho: float = 0.9, eps: float = 1e-6) -> GradientTransformation:
    """Multiply updates by the ratio of running root mean squares of past steps and of updates
    (arXiv:1212.5701)."""

    def init(params: Params) -> ScaleByAdaDeltaState:
        return ScaleByAdaDeltaState(moments.zeros(params), moments.zeros(params))

    def update(
        updates: Updates, state: ScaleByAdaDeltaState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdaDeltaState]:
        square = moments.update_moment(updates, state.e_g, rho, 2)
        found = tree.map(
            lambda u, g, x: inp.sqrt(x + eps) / inp.sqrt(g + eps) * u, updates, square, state.e_x
        )
        return found, ScaleByAdaDeltaState(square, moments.update_moment(found, state.e_x, rho, 2))

    return GradientTransformation(init, update)


class ScaleByNovogradState(NamedTuple):
    """What `scale_by_novograd` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    mu: Params
    nu: Params


def scale_by_novograd(
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mu_dtype: DType | None = None,
) -> GradientTransformation:
    """Momentum of updates over the norm of their leaf, with decoupled weight decay (arXiv:1905.11286).

    Args:
        b1: decay of the sum.
        b2: decay of the squared norms.
        eps: added to the root.
        eps_root: added below the root.
        weight_decay: share of the parameters added to each step.
        mu_dtype: dtype of the sum.
    """

    def init(params: Params) -> ScaleByNovogradState:
        norms = tree.map(lambda p: inp.zeros((), p.dtype), params)
        return ScaleByNovogradState(
            inp.zeros((), inp.int32), moments.zeros(params, mu_dtype), moments.zeros(norms)
        )

    def update(
        updates: Updates, state: ScaleByNovogradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByNovogradState]:
        params = needed("scale_by_novograd", params)
        is_first = state.count == 0
        squares = tree.map(lambda u: inp.sum(moments.squared(u)), updates)
        norms = tree.map(lambda s, n: inp.where(is_first, s, b2 * n + (1.0 - b2) * s), squares, state.nu)
        steps = tree.map(
            lambda u, n, p: u / (inp.sqrt(moments.plus(n, eps_root)) + eps) + weight_decay * p,
            updates,
            norms,
            params,
        )
        total = tree.map(lambda s, m: inp.where(is_first, s, b1 * m + s), steps, state.mu)
        total = moments.cast(total, mu_dtype)
        return total, ScaleByNovogradState(moments.safe_increment(state.count), total, norms)

    return GradientTransformation(init, update)
