"""Transformations for matrices: Adafactor's factored statistics, and Muon's orthogonal steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import infini.numpy as inp
from infini import Array, tree
from infini.core import errors
from infini.optim import moments
from infini.optim.base import DType, GradientTransformation, Params, Updates, needed, stateless_with_tree_map

MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class FactoredState(NamedTuple):
    """What `scale_by_factored_rms` remembers; a leaf is in `v`, or as its factors in `v_row` and `v_col`."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    v_row: Params
    v_col: Params
    v: Params


class _Entry(NamedTuple):
    """What belongs to one leaf. A class of its own, so that it counts as a leaf below."""

    update: Array
    v_row: Array
    v_col: Array
    v: Array


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: float = 1e-30,
) -> GradientTransformation:
    """Divide updates by the root of a running mean of their squares, kept as an outer product for large
    matrices (arXiv:1804.04235).

    Args:
        factored: whether anything is kept as a product.
        decay_rate: at step t the mean keeps `1 - t**-decay_rate` of itself.
        step_offset: subtracted from t.
        min_dim_size_to_factor: leaves whose second largest dimension is smaller are kept whole.
        epsilon: added to squares.
    """

    def axes(p: Array) -> tuple[int, int] | None:
        """The second largest dimension and the largest one, of a leaf that is kept as a product."""
        if not factored or p.ndim < 2:
            return None
        order = sorted(range(p.ndim), key=lambda d: p.shape[d])
        return (order[-2], order[-1]) if p.shape[order[-2]] >= min_dim_size_to_factor else None

    def start(p: Array) -> _Entry:
        nothing = inp.zeros(1, p.dtype)
        found = axes(p)
        if found is None:
            return _Entry(nothing, nothing, nothing, moments.zeros(p))
        row, column = (moments.zeros(inp.sum(inp.zeros_like(p), d)) for d in found[::-1])
        return _Entry(nothing, row, column, nothing)

    def step(u: Array, row: Array, column: Array, whole: Array, p: Array, kept: Array) -> _Entry:
        found, square = axes(p), moments.squared(u) + epsilon
        if found is None:
            whole = kept * whole + (1.0 - kept) * square
            return _Entry(u / inp.sqrt(whole), row, column, whole)
        second, first = found
        row = kept * row + (1.0 - kept) * inp.mean(square, first)
        column = kept * column + (1.0 - kept) * inp.mean(square, second)
        of_row = row / inp.mean(row, second - 1 if second > first else second, keepdims=True)
        factors = inp.expand_dims(of_row, first), inp.expand_dims(column, second)
        return _Entry(u / inp.sqrt(factors[0]) / inp.sqrt(factors[1]), row, column, whole)

    def part(entries: Params, name: str) -> Params:
        return tree.map(lambda entry: getattr(entry, name), entries, is_leaf=lambda x: isinstance(x, _Entry))

    def collected(count: Array, entries: Params) -> FactoredState:
        return FactoredState(count, part(entries, "v_row"), part(entries, "v_col"), part(entries, "v"))

    def init(params: Params) -> FactoredState:
        return collected(inp.zeros((), inp.int32), tree.map(start, params))

    def update(
        updates: Updates, state: FactoredState, params: Params | None = None
    ) -> tuple[Updates, FactoredState]:
        params = needed("scale_by_factored_rms", params)
        step_number = (state.count - step_offset + 1).astype(inp.float32)
        kept = 1.0 - step_number**-decay_rate
        entries = tree.map(
            lambda u, row, column, whole, p: step(u, row, column, whole, p, kept),
            updates,
            state.v_row,
            state.v_col,
            state.v,
            params,
        )
        return part(entries, "update"), collected(moments.safe_increment(state.count), entries)

    return GradientTransformation(init, update)


class MuonState(NamedTuple):
    """What `scale_by_muon` remembers."""

    count: Array  # type: ignore[assignment]  # optax's name, and a method of tuples
    mu: Params


def scale_by_muon(
    ns_coeffs: Sequence[float] = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
) -> GradientTransformation:
    """The orthogonal matrix nearest to the running mean of a matrix's updates.

    Args:
        ns_coeffs: the three coefficients of the Newton-Schulz iteration.
        ns_steps: number of iterations.
        beta: decay of the mean.
        eps: added to the norm that it is divided by first.
        mu_dtype: dtype of the mean.
        nesterov: look one step ahead.
        adaptive: scale the step by its inner product with the mean.

    Source: K. Jordan et al., https://kellerjordan.github.io/posts/muon

    Raises:
        ValueMismatchError: there are not three coefficients.
    """
    if len(ns_coeffs) != 3:
        raise errors.ValueMismatchError(
            "optim.scale_by_muon: the iteration has three coefficients", got=str(tuple(ns_coeffs))
        )
    first, third, fifth = ns_coeffs

    def orthogonal(m: Array) -> Array:
        if m.ndim != 2:
            raise errors.ValueMismatchError(
                "optim.scale_by_muon works on matrices",
                got=f"an update of shape {m.shape}",
                fix="use optim.muon, which leaves the others to Adam, or optim.masked",
            )
        x = m if m.shape[0] <= m.shape[1] else m.T
        x = x / (inp.sqrt(inp.sum(moments.squared(x))) + eps)
        for _ in range(ns_steps):
            gram = x @ x.T
            x = first * x + (third * gram + fifth * gram @ gram) @ x
        return x if m.shape[0] <= m.shape[1] else x.T

    def init(params: Params) -> MuonState:
        return MuonState(inp.zeros((), inp.int32), moments.zeros(params, mu_dtype))

    def update(updates: Updates, state: MuonState, params: Params | None = None) -> tuple[Updates, MuonState]:
        mean, count = moments.update_moment(updates, state.mu, beta, 1), moments.safe_increment(state.count)
        ahead = moments.ahead(mean, updates, beta, count, nesterov)
        found = tree.map(orthogonal, ahead)
        if adaptive:
            found = tree.map(lambda m, x: inp.sum(m * x) * x, ahead, found)
        return found, MuonState(count, moments.cast(mean, mu_dtype))

    return GradientTransformation(init, update)


def scale_by_shape(consistent_rms: float | None = None) -> GradientTransformation:
    """Multiply the steps of matrices (inputs, outputs) by `sqrt(max(1, outputs / inputs))`, or by
    `consistent_rms * sqrt(max(inputs, outputs))`."""

    def one(u: Array, p: Array | None) -> Array:
        inputs, outputs = u.shape
        if consistent_rms is not None:
            return u * (consistent_rms * math.sqrt(max(inputs, outputs)))
        return u * math.sqrt(max(1.0, outputs / inputs))

    return stateless_with_tree_map(one)
