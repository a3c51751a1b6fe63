"""Running means of updates and of their powers, and the norms that optimizers use.

Moments of parameters of fewer than 32 bits are float32, unless a dtype is asked for: in bfloat16 a running
mean loses the small changes that it is made of. That is the one place where results differ from optax's.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import infini.numpy as inp
from infini import Array, tree
from infini.optim.base import DType, GradientTransformation, Params, Updates, stateless_with_tree_map


def zeros(params: Params, dtype: DType | None = None) -> Params:
    """Zeros of the shapes of the parameters, to accumulate in."""
    return filled(params, 0.0, dtype)


def filled(params: Params, value: float | Array, dtype: DType | None = None) -> Params:
    """One value in the shapes of the parameters, to accumulate in."""
    return tree.map(lambda p: inp.full(p.shape, value, _wide(p.dtype) if dtype is None else dtype), params)


def _wide(dtype: Any) -> Any:  # Any: dtypes
    is_narrow = inp.issubdtype(dtype, inp.floating) and inp.finfo(dtype).bits < 32
    return inp.float32 if is_narrow else dtype


def cast(values: Params, dtype: DType | None) -> Params:
    """Leaves in a dtype, as they are when there is none."""
    return values if dtype is None else tree.map(lambda x: x.astype(dtype), values)


def squared(x: Array) -> Array:
    """Square of the absolute value."""
    return inp.real(inp.conj(x) * x) if inp.issubdtype(x.dtype, inp.complexfloating) else inp.square(x)


def update_moment(updates: Updates, moments: Params, decay: float | Array, order: int) -> Params:
    """`decay * moment + (1 - decay) * update**order`."""
    return tree.map(
        lambda u, m: decay * m + (1.0 - decay) * (u if order == 1 else u**order), updates, moments
    )


def update_moment_per_elem_norm(
    updates: Updates, moments: Params, decay: float | Array, order: int
) -> Params:
    """`decay * moment + (1 - decay) * |update|**order`."""

    def powered(u: Array) -> Array:
        return squared(u) if order == 2 else inp.abs(u) ** order

    return tree.map(lambda u, m: decay * m + (1.0 - decay) * powered(u), updates, moments)


def update_infinity_moment(
    updates: Updates, moments: Params, decay: float | Array, eps: float | Array
) -> Params:
    """`max(|update| + eps, decay * moment)`."""
    return tree.map(lambda u, m: inp.maximum(inp.abs(u) + eps, decay * m), updates, moments)


def bias_correction(moment: Params, decay: float | Array, count: Array) -> Params:
    """A running mean of `count` steps, corrected for its start at zero."""
    factor = 1.0 / (1.0 - decay ** count.astype(inp.float32))
    return tree.map(lambda m: m * factor.astype(m.dtype), moment)


def ahead(mean: Params, updates: Updates, decay: float | Array, count: Array, nesterov: bool) -> Params:
    """The running mean, corrected for its start; by Nesterov's rule mixed with the update of this step."""
    if not nesterov:
        return bias_correction(mean, decay, count)
    return tree.map(
        lambda m, u: decay * m + (1.0 - decay) * u,
        bias_correction(mean, decay, safe_increment(count)),
        bias_correction(updates, decay, count),
    )


def plus(x: Array, number: float | Array) -> Array:
    """A sum, without an operation for the number 0."""
    return x if type(number) in (int, float) and number == 0 else x + number


def safe_increment(count: Array) -> Array:
    """One more, or the largest number of the dtype."""
    count = inp.asarray(count)
    is_integer = inp.issubdtype(count.dtype, inp.integer)
    largest = (inp.iinfo if is_integer else inp.finfo)(count.dtype).max
    return inp.where(count < largest, count + 1, count)


def global_norm(updates: Updates) -> Array:
    """Euclidean norm of all leaves together, in float32."""
    squares = [inp.sum(squared(leaf.astype(inp.float32))) for leaf in tree.leaves(updates)]
    return inp.sqrt(functools.reduce(inp.add, squares))


def safe_norm(x: Array, min_norm: float | Array) -> Array:
    """Euclidean norm, at least `min_norm`, whose derivative at zero is no NaN."""
    return _safe_root(x, inp.sum, min_norm)


def safe_root_mean_squares(x: Array, min_rms: float | Array) -> Array:
    """Root of the mean square, at least `min_rms`, whose derivative at zero is no NaN."""
    return _safe_root(x, inp.mean, min_rms)


def _safe_root(x: Array, reduce: Any, least: float | Array) -> Array:  # Any: a reduction
    is_small = inp.sqrt(reduce(squared(x))) <= least
    return inp.where(is_small, least, inp.sqrt(reduce(squared(inp.where(is_small, inp.ones_like(x), x)))))


def centered(x: Array) -> Array:
    """Less the mean over all dimensions but the first, of arrays with several."""
    return x - inp.mean(x, tuple(range(1, x.ndim)), keepdims=True) if x.ndim > 1 else x


class TraceState(NamedTuple):
    """What `trace` remembers."""

    trace: Params


def trace(
    decay: float | Array, nesterov: bool = False, accumulator_dtype: DType | None = None
) -> GradientTransformation:
    """A decaying sum of updates, which is momentum.

    Args:
        decay: share of the sum that is kept.
        nesterov: look one step ahead.
        accumulator_dtype: dtype of the sum.
    """

    def init(params: Params) -> TraceState:
        return TraceState(zeros(params, accumulator_dtype))

    def update(
        updates: Updates, state: TraceState, params: Params | None = None
    ) -> tuple[Updates, TraceState]:
        total = tree.map(lambda u, t: u + decay * t, updates, state.trace)
        found = tree.map(lambda u, t: u + decay * t, updates, total) if nesterov else total
        return found, TraceState(cast(total, accumulator_dtype))

    return GradientTransformation(init, update)


class EmaState(NamedTuple):
    """What `ema` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    ema: Params


def ema(
    decay: float | Array, debias: bool = True, accumulator_dtype: DType | None = None
) -> GradientTransformation:
    """A running mean of updates.

    Args:
        decay: share of the mean that is kept.
        debias: correct it for its start at zero.
        accumulator_dtype: dtype of the mean.
    """

    def init(params: Params) -> EmaState:
        return EmaState(inp.zeros((), inp.int32), zeros(params, accumulator_dtype))

    def update(updates: Updates, state: EmaState, params: Params | None = None) -> tuple[Updates, EmaState]:
        mean, count = update_moment(updates, state.ema, decay, 1), safe_increment(state.count)
        found = bias_correction(mean, decay, count) if debias else mean
        return found, EmaState(count, cast(mean, accumulator_dtype))

    return GradientTransformation(init, update)


def centralize() -> GradientTransformation:
    """Take the mean over all dimensions but the first off updates with several dimensions."""

    return stateless_with_tree_map(lambda u, p: centered(u))
