"""Transformations of the Adam family: a running mean of updates over the root of one of their squares."""

from __future__ import annotations

from typing import NamedTuple

import infini.numpy as inp
from infini import Array, tree
from infini.optim import moments
from infini.optim.base import DType, GradientTransformation, Params, Updates


class ScaleByAdamState(NamedTuple):
    """What the Adam family remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    mu: Params
    nu: Params


def _start(params: Params, mu_dtype: DType | None = None) -> ScaleByAdamState:
    return ScaleByAdamState(inp.zeros((), inp.int32), moments.zeros(params, mu_dtype), moments.zeros(params))


def _ratio(mean: Params, square: Params, eps: float | Array, eps_root: float | Array) -> Updates:
    return tree.map(lambda m, s: m / (inp.sqrt(moments.plus(s, eps_root)) + eps), mean, square)


def scale_by_adam(
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Divide the running mean of updates by the root of the running mean of their squares (arXiv:1412.6980).

    Args:
        b1: decay of the mean.
        b2: decay of the mean of squares.
        eps: added to the root.
        eps_root: added below the root.
        mu_dtype: dtype of the mean.
        nesterov: look one step ahead.
    """

    def init(params: Params) -> ScaleByAdamState:
        return _start(params, mu_dtype)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        count = moments.safe_increment(state.count)
        mean = moments.update_moment(updates, state.mu, b1, 1)
        square = moments.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        found = _ratio(
            moments.ahead(mean, updates, b1, count, nesterov),
            moments.bias_correction(square, b2, count),
            eps,
            eps_root,
        )
        return found, ScaleByAdamState(count, moments.cast(mean, mu_dtype), square)

    return GradientTransformation(init, update)


class ScaleByAmsgradState(NamedTuple):
    """What `scale_by_amsgrad` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    mu: Params
    nu: Params
    nu_max: Params


def scale_by_amsgrad(
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """As `scale_by_adam`, with the largest mean of squares so far below the root.

    Args:
        b1: decay of the mean.
        b2: decay of the mean of squares.
        eps: added to the root.
        eps_root: added below the root.
        mu_dtype: dtype of the mean.
        bias_correction_mu: correct the mean for its start at zero.
        bias_correction_nu: correct the mean of squares.
    """

    def init(params: Params) -> ScaleByAmsgradState:
        return ScaleByAmsgradState(*_start(params, mu_dtype), moments.zeros(params))

    def update(
        updates: Updates, state: ScaleByAmsgradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAmsgradState]:
        count = moments.safe_increment(state.count)
        mean = moments.update_moment(updates, state.mu, b1, 1)
        square = moments.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        corrected = moments.bias_correction(square, b2, count) if bias_correction_nu else square
        largest = tree.map(inp.maximum, state.nu_max, corrected)
        direction = moments.bias_correction(mean, b1, count) if bias_correction_mu else mean
        after = ScaleByAmsgradState(count, moments.cast(mean, mu_dtype), square, largest)
        return _ratio(direction, largest, eps, eps_root), after

    return GradientTransformation(init, update)


def scale_by_adamax(
    b1: float | Array = 0.9, b2: float | Array = 0.999, eps: float | Array = 1e-8
) -> GradientTransformation:
    """Divide the running mean of updates by the decaying maximum of their absolute values."""

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        count = moments.safe_increment(state.count)
        mean = moments.update_moment(updates, state.mu, b1, 1)
        largest = moments.update_infinity_moment(updates, state.nu, b2, eps)
        found = tree.map(lambda m, s: m / s, moments.bias_correction(mean, b1, count), largest)
        return found, ScaleByAdamState(count, mean, largest)

    return GradientTransformation(_start, update)


def scale_by_belief(
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-16,
    eps_root: float | Array = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """As `scale_by_adam`, with squares of what is left of the update less its mean (arXiv:2010.07468)."""

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        count = moments.safe_increment(state.count)
        mean = moments.update_moment(updates, state.mu, b1, 1)
        rest = tree.map(lambda u, m: u - m, updates, mean)
        square = moments.update_moment_per_elem_norm(rest, state.nu, b2, 2)
        square = tree.map(lambda s: s + eps_root, square)
        found = _ratio(
            moments.ahead(mean, updates, b1, count, nesterov),
            moments.bias_correction(square, b2, count),
            eps,
            0.0,
        )
        return found, ScaleByAdamState(count, mean, square)

    return GradientTransformation(_start, update)


def scale_by_yogi(
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-3,
    eps_root: float | Array = 0.0,
    initial_accumulator_value: float | Array = 1e-6,
) -> GradientTransformation:
    """As `scale_by_adam`, with squares that grow and shrink by steps of their own size.

    Source: Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018.
    """

    def init(params: Params) -> ScaleByAdamState:
        first, second = (moments.filled(params, initial_accumulator_value) for _ in range(2))
        return ScaleByAdamState(inp.zeros((), inp.int32), first, second)

    def grown(u: Array, s: Array) -> Array:
        own = moments.squared(u)
        return s - (1.0 - b2) * inp.sign(s - own) * own

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        count = moments.safe_increment(state.count)
        mean = moments.update_moment(updates, state.mu, b1, 1)
        square = tree.map(grown, updates, state.nu)
        found = _ratio(
            moments.bias_correction(mean, b1, count),
            moments.bias_correction(square, b2, count),
            eps,
            eps_root,
        )
        return found, ScaleByAdamState(count, mean, square)

    return GradientTransformation(init, update)


def scale_by_radam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """As `scale_by_adam`, with the variance of the scale corrected; while that is undefined, the plain mean
    (arXiv:1908.03265)."""
    limit = 2.0 / (1.0 - b2) - 1.0

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        count = moments.safe_increment(state.count)
        mean = moments.update_moment(updates, state.mu, b1, 1)
        square = moments.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        steps = count.astype(inp.float32)
        share = b2**steps
        length = limit - 2 * steps * share / (1 - share)
        is_known = length >= threshold
        known = inp.where(is_known, length, threshold)
        above = (known - 4.0) * (known - 2.0) * limit
        factor = inp.sqrt(above / ((limit - 4.0) * (limit - 2.0) * known))
        direction = moments.ahead(mean, updates, b1, count, nesterov)
        scaled = _ratio(direction, moments.bias_correction(square, b2, count), eps, eps_root)
        found = tree.map(lambda s, m: inp.where(is_known, factor * s, m), scaled, direction)
        return found, ScaleByAdamState(count, mean, square)

    return GradientTransformation(_start, update)


class ScaleByAdanState(NamedTuple):
    """What `scale_by_adan` remembers."""

    m: Params
    v: Params
    n: Params
    g: Params
    t: Array


def scale_by_adan(
    b1: float | Array = 0.98,
    b2: float | Array = 0.92,
    b3: float | Array = 0.99,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
) -> GradientTransformation:
    """Adan: Nesterov's momentum by the differences of successive updates (arXiv:2208.06677)."""

    def init(params: Params) -> ScaleByAdanState:
        first, second, third, fourth = (moments.zeros(params) for _ in range(4))
        return ScaleByAdanState(first, second, third, fourth, inp.zeros((), inp.int32))

    def update(
        updates: Updates, state: ScaleByAdanState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdanState]:
        change = tree.map(lambda u, last: inp.where(state.t == 0, 0, u - last), updates, state.g)
        mean = moments.update_moment(updates, state.m, b1, 1)
        difference = moments.update_moment(change, state.v, b2, 1)
        mixed = tree.map(lambda u, c: u + (1.0 - b2) * c, updates, change)
        square = moments.update_moment_per_elem_norm(mixed, state.n, b3, 2)
        count = moments.safe_increment(state.t)
        direction = tree.map(
            lambda m, d: m + (1.0 - b2) * d,
            moments.bias_correction(mean, b1, count),
            moments.bias_correction(difference, b2, count),
        )
        found = _ratio(direction, moments.bias_correction(square, b3, count), eps, eps_root)
        last = tree.map(lambda u, g: u.astype(g.dtype), updates, state.g)
        return found, ScaleByAdanState(mean, difference, square, last, count)

    return GradientTransformation(init, update)
