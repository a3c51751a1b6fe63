"""Samples of the Poisson, binomial and multinomial distributions, by JAX's methods, so equal keys give equal
numbers up to the rounding of logarithms.

Sources: W. Hörmann, "The transformed rejection method for generating Poisson random variables", Insurance:
Mathematics and Economics 12 (1993), and "The generation of binomial random variates", J. Statist. Comput.
Simul. 46 (1993). Small means are drawn by Knuth's product of uniform samples and by sums of geometric ones.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import ml_dtypes
import numpy as np

import infini.numpy as inp
from infini import lax
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, inexact_operands, to_inexact
from infini.random import keys, streams
from infini.random.keys import KeyLike
from infini.random.streams import Placement
from infini.transforms import staging


def poisson(
    key: KeyLike,
    lam: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Poisson integers.

    Args:
        key: a key.
        lam: mean, at least 0; broadcasts to `shape`.
        shape: shape of the result, that of `lam` when absent.
        dtype: an integer dtype, int32 when absent.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: the dtype is no integer.
    """
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    if target not in dtypes.INTEGERS:
        raise errors.ValueMismatchError("random.poisson makes integers", got=target.name)
    mean = streams.bound("poisson", lam, as_value("poisson", lam).shape, dtypes.float32)
    sizes = mean.shape if shape is None else _axes.shape("poisson", shape)
    streams.check_broadcasts("poisson", mean.shape, sizes)
    drawn = _poisson(keys.raw(key, "poisson"), inp.broadcast_to(mean, sizes), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(2,))
def _poisson(raw_key: Value, mean: Value, dtype: np.dtype) -> Value:
    is_small = inp.isnan(mean) | (mean < 10)
    # Each method gets harmless parameters where the other one is taken.
    small = _products_of_uniforms(raw_key, inp.where(is_small, mean, 0.0), dtype)
    large = _transformed_rejection(raw_key, inp.where(is_small, 1e5, mean), dtype)
    return inp.where(mean == 0, 0, inp.where(is_small, small, large))


def _products_of_uniforms(raw_key: Value, mean: Value, dtype: np.dtype) -> Value:
    """How many uniform samples can be multiplied before the product is below `exp(-mean)`."""

    def step(state: tuple[Value, ...]) -> tuple[Value, ...]:
        i, count, key, logarithm = state
        pair = keys.split_words(key, (2,))
        count = inp.where(logarithm > -mean, count + 1, count)
        uniform = streams.uniform_from(pair[1], mean.shape, mean.dtype, 0.0, 1.0)
        return i + 1, count, pair[0], logarithm + inp.log(uniform)

    def is_open(state: tuple[Value, ...]) -> Value:
        return inp.any(state[3] > -mean) & (state[0] < _most(dtype))

    start = (0, inp.zeros(mean.shape, dtype), raw_key, inp.zeros(mean.shape, mean.dtype))
    return (lax.while_loop(is_open, step, start)[1] - 1).astype(dtype)


def _most(dtype: np.dtype) -> int:
    """Rounds after which a loop ends in any case."""
    return min(int(np.iinfo(dtype).max), int(np.iinfo(np.int32).max))


def _transformed_rejection(raw_key: Value, mean: Value, dtype: np.dtype) -> Value:
    """Hörmann's algorithm PTRS; the names are the paper's."""
    log_mean = inp.log(mean)
    b = 0.931 + 2.53 * inp.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2)

    def step(state: tuple[Value, ...]) -> tuple[Value, ...]:
        i, taken, is_taken, key = state
        three = keys.split_words(key, (3,))
        u = streams.uniform_from(three[1], mean.shape, mean.dtype, 0.0, 1.0) - 0.5
        v = streams.uniform_from(three[2], mean.shape, mean.dtype, 0.0, 1.0)
        us = 0.5 - inp.abs(u)
        k = inp.floor((2 * a / us + b) * u + mean + 0.43)
        logarithm = inp.log(v * inverse_alpha / (a / (us * us) + b))
        is_inside = (us >= 0.07) & (v <= v_r)
        is_outside = (k < 0) | ((us < 0.013) & (v > us))
        is_below = logarithm <= -mean + k * log_mean - lax.lgamma(k + 1)
        is_accepted = is_inside | (~is_outside & is_below)
        return i + 1, inp.where(is_accepted, k, taken), is_taken | is_accepted, three[0]

    def is_open(state: tuple[Value, ...]) -> Value:
        return ~inp.all(state[2]) & (state[0] < _most(dtype))

    start = (0, inp.full(mean.shape, -1, mean.dtype), inp.zeros(mean.shape, inp.bool_), raw_key)
    return lax.while_loop(is_open, step, start)[1].astype(dtype)


def binomial(
    key: KeyLike, n: ArrayLike, p: ArrayLike, shape: Any = None, dtype: DTypeLike | None = None
) -> Value:  # Any: sizes
    """Numbers of successes in `n` trials, as floats.

    Args:
        key: a key.
        n: number of trials; broadcasts to `shape`. NaN and negative numbers give NaN, infinity infinity.
        p: probability of a success; broadcasts to `shape`.
        shape: shape of the result, that of the parameters when absent.
        dtype: a float dtype, float32 when absent.
    """
    target = streams.float_dtype("binomial", dtype)
    chance = p if type(p) in (int, float) else as_value("binomial", p)
    wide = streams.float_dtype("binomial", None) if chance is p else to_inexact(chance.dtype)
    sizes, (chance,) = streams.parameters("binomial", shape, wide, p)
    count_sizes = as_value("binomial", n).shape
    if shape is None:
        sizes = inp.broadcast_shapes(sizes, count_sizes)
    streams.check_broadcasts("binomial", count_sizes, sizes)
    count = streams.bound("binomial", n, sizes, wide)
    return _binomial(keys.raw(key, "binomial"), count, chance, sizes, target)


@functools.partial(staging.jit, static_argnums=(3, 4))
def _binomial(raw_key: Value, count: Value, p: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    count, p = inp.broadcast_to(count, shape), inp.broadcast_to(p, shape)
    is_low = p < 0.5
    chance = inp.where(is_low, p, 1.0 - p)
    is_no_count = inp.isnan(count) | (count < 0)
    is_no_chance = inp.isnan(chance) | (chance < 0)
    is_endless = inp.isinf(count)
    is_nan_chance = inp.isnan(chance)
    chance = inp.where(is_no_chance, 0.01, chance)
    is_rare = is_no_count | (count * chance <= 10)
    count = inp.floor(count)
    # Each method gets harmless parameters where the other one is taken.
    limit = float(ml_dtypes.finfo(dtype).max)
    rare = _geometric_sums(raw_key, inp.where(is_rare, count, 0.0), chance, shape, limit)
    common = _rejection(
        raw_key, inp.where(is_rare, 1e4, count), inp.where(is_rare, 0.5, chance), shape, limit
    )
    drawn = inp.where(is_rare, rare.astype(dtype), common.astype(dtype))
    is_invalid = is_no_count | is_no_chance
    drawn = inp.where(is_invalid, inp.nan, drawn)
    drawn = inp.where(is_endless & ~is_invalid, inp.inf, drawn)
    stays = is_low | is_no_count | is_nan_chance | is_endless
    return inp.where(stays, drawn, count.astype(dtype) - drawn)


def _geometric_sums(raw_key: Value, count: Value, p: Value, shape: tuple[int, ...], limit: float) -> Value:
    """How many geometric samples fit into the trials."""
    log_failure = inp.log1p(-p)

    def step(state: tuple[Value, ...]) -> tuple[Value, ...]:
        i, found, total, key = state
        pair = keys.split_words(key, (2,))
        found = inp.where(total <= count, found + 1, found)
        uniform = streams.uniform_from(pair[0], shape, p.dtype, 0.0, 1.0)
        return i + 1, found, total + inp.ceil(inp.log(uniform) / log_failure), pair[1]

    zeros = inp.zeros(shape, p.dtype)

    def is_open(state: tuple[Value, ...]) -> Value:
        return inp.any(state[2] <= count) & (state[0] < limit)

    return lax.while_loop(is_open, step, (0, zeros, zeros, raw_key))[1] - 1


def _rejection(raw_key: Value, count: Value, p: Value, shape: tuple[int, ...], limit: float) -> Value:
    """Transformed rejection with a squeeze (Hörmann's algorithm BTRS); the names are the paper's."""
    deviation = inp.sqrt(count * p * (1 - p))
    b = 1.15 + 2.53 * deviation
    a = -0.0873 + 0.0248 * b + 0.01 * p
    c = count * p + 0.5
    v_r = 0.92 - 4.2 / b
    r = p / (1 - p)
    alpha = (2.83 + 5.1 / b) * deviation
    m = inp.floor((count + 1) * p)

    def step(state: tuple[Value, ...]) -> tuple[Value, ...]:
        i, taken, is_taken, key = state
        three = keys.split_words(key, (3,))
        u = streams.uniform_from(three[1], shape, p.dtype, 0.0, 1.0) - 0.5
        v = streams.uniform_from(three[2], shape, p.dtype, 0.0, 1.0)
        us = 0.5 - inp.abs(u)
        k = inp.floor((2 * a / us + b) * u + c)
        is_inside = (us >= 0.07) & (v <= v_r)
        is_outside = (k < 0) | (k > count)
        v = inp.log(v * alpha / (a / (us * us) + b))
        bound = (
            (m + 0.5) * inp.log((m + 1) / (r * (count - m + 1)))
            + (count + 1) * inp.log((count - m + 1) / (count - k + 1))
            + (k + 0.5) * inp.log(r * (count - k + 1) / (k + 1))
            + _stirling_tail(m)
            + _stirling_tail(count - m)
            - _stirling_tail(k)
            - _stirling_tail(count - k)
        )
        is_accepted = is_inside | (~is_outside & (v <= bound))
        return i + 1, inp.where(is_accepted, k, taken), is_taken | is_accepted, three[0]

    start = (0, inp.full(shape, -1, p.dtype), inp.zeros(shape, inp.bool_), raw_key)

    def is_open(state: tuple[Value, ...]) -> Value:
        return ~inp.all(state[2]) & (state[0] < limit)

    return lax.while_loop(is_open, step, start)[1]


# log(k!) less Stirling's formula for k from 0 to 9. Source: the definition, with 30 digits.
_TAILS: Final = (
    0.0810614667953272582,
    0.0413406959554092941,
    0.0276779256849983391,
    0.0207906721037650931,
    0.0166446911898211922,
    0.0138761288230707480,
    0.0118967099458917701,
    0.0104112652619720965,
    0.00925546218271273292,
    0.00833056343336287126,
)


def _stirling_tail(k: Value) -> Value:
    """log(k!) less Stirling's formula: from the table up to 9; above, as in JAX, its series at 9."""
    bounded = inp.clip(k, 0, 9)
    squared = (bounded + 1) * (bounded + 1)
    series = (1 / 12 - (1 / 360 - 1 / 1260 / squared) / squared) / (bounded + 1)
    table = inp.asarray(np.array(_TAILS), dtype=k.dtype)
    return inp.where(k <= 9, table[inp.floor(bounded).astype(inp.int32)], series)


def multinomial(
    key: KeyLike,
    n: ArrayLike,
    p: ArrayLike,
    *,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    unroll: int | bool = 1,
) -> Value:  # Any: sizes
    """How often each outcome occurs in `n` trials, as floats.

    Args:
        key: a key.
        n: number of trials; broadcasts to the shape of `p` without its last dimension.
        p: (..., k) probabilities of the outcomes.
        shape: shape of the result, that of `p` when absent.
        dtype: a float dtype, float32 when absent.
        unroll: accepted for JAX's sake; the compiler decides.
    """
    target = streams.float_dtype("multinomial", dtype)
    count, chances = inexact_operands("multinomial", n, p)
    sizes = chances.shape if shape is None else _axes.shape("multinomial", shape)
    streams.check_broadcasts("multinomial", chances.shape, sizes)
    streams.check_broadcasts("multinomial", count.shape, sizes[:-1])
    return _multinomial(keys.raw(key, "multinomial"), count, chances, sizes).astype(target)


@functools.partial(staging.jit, static_argnums=(3,))
def _multinomial(raw_key: Value, count: Value, p: Value, shape: tuple[int, ...]) -> Value:
    """One outcome after the other: its count among the trials that are left is binomial."""
    chances = inp.moveaxis(inp.broadcast_to(p, shape), -1, 0)
    rest = inp.flip(inp.cumsum(inp.flip(chances, 0), 0), 0)
    ratios = inp.clip(chances / inp.where(rest == 0, 1, rest), 0, 1)

    def step(left: Value, item: tuple[Value, Value]) -> tuple[Value, Value]:
        ratio, key = item
        found = _binomial(key, left, ratio, left.shape, left.dtype)
        return left - found, found

    start = inp.broadcast_to(count, shape[:-1])
    _, counts = lax.scan(step, start, (ratios, keys.split_words(raw_key, (shape[-1],))))
    return inp.moveaxis(counts, 0, -1)
