"""Samples that are made of standard normal ones, by JAX's methods, so equal keys give equal numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

import infini.numpy as inp
from infini.core import trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, convert
from infini.random import discrete, keys, streams
from infini.random.keys import KeyLike
from infini.random.streams import Placement
from infini.transforms import staging


def normal(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Standard normal floats: `sqrt(2) * erf_inv(u)` of uniform `u` in (-1, 1).

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("normal", dtype)
    drawn = standard(keys.raw(key, "normal"), _axes.shape("normal", shape), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def standard(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """As `normal`, for arguments that have been checked."""
    above_minus_one = np.nextafter(np.array(-1.0, dtype), np.array(0.0, dtype))
    uniform = streams.uniform_from(raw_key, shape, dtype, above_minus_one, np.ones((), dtype))
    return _times_sqrt2(e.erf_inv(uniform))


def _times_sqrt2(x: Value) -> Value:
    return bind_scalars(e.mul_p, convert(math.sqrt(2.0), x.dtype), x)


def truncated_normal(
    key: KeyLike,
    lower: ArrayLike,
    upper: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Standard normal floats in (lower, upper).

    Args:
        key: a key.
        lower: lower end; broadcasts to `shape`.
        upper: upper end; broadcasts to `shape`.
        shape: shape of the result, that of the bounds when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("truncated_normal", dtype)
    sizes, ends = streams.parameters("truncated_normal", shape, target, lower, upper)
    return streams.placed(_truncated(keys.raw(key, "truncated_normal"), *ends, sizes, target), out_sharding)


@functools.partial(staging.jit, static_argnums=(3, 4))
def _truncated(raw_key: Value, lower: Value, upper: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    low, high = (e.erf(trace.bind1(e.div_p, x, convert(math.sqrt(2.0), dtype))) for x in (lower, upper))
    sample = _times_sqrt2(e.erf_inv(streams.scaled(raw_key, shape, dtype, low, high)))
    # Rounding must not leave the open interval.
    return inp.clip(sample, next_after(lower, is_up=True), next_after(upper, is_up=False))


def next_after(x: Value, *, is_up: bool) -> Value:
    """The next float above or below each element, by its bits; NaN and the infinity of that side stay."""
    bind, signed = trace.bind1, np.dtype(f"int{x.dtype.itemsize * 8}")
    x = e.stop_gradient(x)
    pattern = bind(e.bitcast_convert_type_p, x, new_dtype=signed)
    away = bind_scalars(e.gt_p if is_up else e.lt_p, x, 0)
    moved = bind(e.select_n_p, away, bind_scalars(e.sub_p, pattern, 1), bind_scalars(e.add_p, pattern, 1))
    tiny = (
        1
        if is_up
        else int(np.array(-float(ml_dtypes.finfo(x.dtype).smallest_subnormal), x.dtype).view(signed))
    )
    moved = bind(e.select_n_p, bind_scalars(e.eq_p, x, 0), moved, convert(tiny, signed))
    end = bind_scalars(e.eq_p, x, math.inf if is_up else -math.inf)
    stays = bind(e.or_p, end, bind(e.ne_p, x, x))
    return bind(e.select_n_p, stays, bind(e.bitcast_convert_type_p, moved, new_dtype=x.dtype), x)


def lognormal(
    key: KeyLike,
    sigma: ArrayLike = 1.0,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Floats whose logarithm is normal of mean 0.

    Args:
        key: a key.
        sigma: standard deviation of the logarithm; broadcasts to `shape`.
        shape: shape of the result, that of `sigma` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("lognormal", dtype)
    sizes, (deviation,) = streams.parameters("lognormal", shape, target, sigma)
    drawn = _lognormal(keys.raw(key, "lognormal"), deviation, sizes, target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _lognormal(raw_key: Value, sigma: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    return inp.exp(standard(raw_key, shape, dtype) * sigma)


def maxwell(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Lengths of vectors of three standard normal floats (Maxwell's distribution of scale 1).

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("maxwell", dtype)
    drawn = _maxwell(keys.raw(key, "maxwell"), _axes.shape("maxwell", shape), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _maxwell(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    vectors = standard(raw_key, (*shape, 3), dtype)
    return inp.sqrt(inp.sum(vectors * vectors, -1))


def double_sided_maxwell(
    key: KeyLike,
    loc: ArrayLike,
    scale: ArrayLike,
    shape: Any = (),
    dtype: DTypeLike | None = None,
) -> Value:  # Any: sizes
    """`loc` plus or minus `scale` times a sample of Maxwell's distribution.

    Args:
        key: a key.
        loc: centre.
        scale: scale.
        shape: leading part of the shape; the shape of the parameters follows.
        dtype: a float dtype, float32 when absent.
    """
    target = streams.float_dtype("double_sided_maxwell", dtype)
    own, (center, factor) = streams.parameters("double_sided_maxwell", None, target, loc, scale)
    sizes = _axes.shape("double_sided_maxwell", shape) or own
    both = keys.split_words(keys.raw(key, "double_sided_maxwell"), (2,))
    lengths = _maxwell(both[0], (*sizes, *own), target)
    return discrete.rademacher(both[1], (*sizes, *own), target) * lengths * factor + center


def wald(
    key: KeyLike,
    mean: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Floats of Wald's distribution (the inverse Gaussian) of scale 1.

    Args:
        key: a key.
        mean: mean, above 0; broadcasts to `shape`.
        shape: shape of the result, that of `mean` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("wald", dtype)
    sizes, (center,) = streams.parameters("wald", shape, target, mean)
    return streams.placed(_wald(keys.raw(key, "wald"), center, sizes, target), out_sharding)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _wald(raw_key: Value, mean: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """The smaller root of a quadratic equation, or with a certain chance the larger one.

    Source: J. Michael, W. Schucany, R. Haas, The American Statistician 30 (1976).
    """
    both = keys.split_words(raw_key, (2,))
    squared = standard(both[0], shape, dtype) ** 2
    chance = streams.uniform_from(both[1], shape, dtype, 0.0, 1.0)
    mean_squared = mean * mean
    root = inp.sqrt(4 * mean * squared + mean_squared * (squared * squared))
    smaller = mean + mean_squared * squared / 2 - mean / 2 * root
    return inp.where(chance <= mean / (mean + smaller), smaller, mean_squared / smaller)
