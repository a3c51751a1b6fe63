"""Samples made of uniform ones by the inverse of their distribution function, by JAX's methods, so equal
keys give equal numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

import infini.numpy as inp
from infini import lax
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike
from infini.random import keys, streams
from infini.random.keys import KeyLike
from infini.random.streams import Placement
from infini.transforms import staging


def exponential(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Exponential floats of rate 1.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("exponential", dtype)
    drawn = exponential_from(keys.raw(key, "exponential"), _axes.shape("exponential", shape), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def exponential_from(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """As `exponential`, for arguments that have been checked."""
    return e.neg(e.log1p(e.neg(streams.uniform_from(raw_key, shape, dtype, 0.0, 1.0))))


def laplace(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Laplace floats of location 0 and scale 1.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("laplace", dtype)
    drawn = _laplace(keys.raw(key, "laplace"), _axes.shape("laplace", shape), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _laplace(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    above_minus_one = -1.0 + float(ml_dtypes.finfo(dtype).epsneg)
    uniform = streams.uniform_from(raw_key, shape, dtype, above_minus_one, 1.0)
    return e.mul(e.sign(uniform), e.log1p(e.neg(e.abs(uniform))))


def logistic(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Logistic floats of location 0 and scale 1.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("logistic", dtype)
    drawn = _logistic(keys.raw(key, "logistic"), _axes.shape("logistic", shape), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _logistic(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    uniform = streams.uniform_from(raw_key, shape, dtype, float(ml_dtypes.finfo(dtype).tiny), 1.0)
    return e.sub(e.log(uniform), e.log1p(e.neg(uniform)))


def gumbel(
    key: KeyLike,
    shape: Any = (),
    dtype: DTypeLike | None = None,
    mode: str | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Gumbel floats.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        mode: `low` (the default) draws one number per sample; `high` draws two, for events rarer than 1e-7
            in float32; `highest` uses all 64 bits of the two, in float32.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: the mode is another one.
    """
    target, sizes = streams.float_dtype("gumbel", dtype), _axes.shape("gumbel", shape)
    check_mode("gumbel", mode, (None, "low", "high", "highest"))
    drawn = _gumbel(keys.raw(key, "gumbel"), sizes, target, mode or "low")
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2, 3))
def _gumbel(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype, mode: str) -> Value:
    finfo = ml_dtypes.finfo(dtype)
    if mode == "low":
        uniform = streams.uniform_from(raw_key, shape, dtype, float(finfo.tiny), 1.0)
        return e.neg(e.log(e.neg(e.log(uniform))))
    if mode == "highest" and dtype == dtypes.float32:
        return _fine_gumbel(streams.words(raw_key, 32, (2, *shape)))
    pair = streams.uniform_from(raw_key, (2, *shape), dtype, 0.0, 1.0)
    high, low = (view.reshape(view.slice_in_dim(pair, i, i + 1), shape) for i in range(2))
    fine = bind_scalars(e.add_p, high, bind_scalars(e.mul_p, low, 2.0 ** -int(finfo.nmant)))
    fine = bind_scalars(e.add_p, fine, float(finfo.tiny))
    chosen = trace.bind1(e.select_n_p, bind_scalars(e.ge_p, high, 0.5), fine, high)
    return e.neg(e.log(e.neg(e.log1p(e.neg(chosen)))))


def _fine_gumbel(words: Value) -> Value:
    """Gumbel floats from fractions of 64 bits, (2, ...): the high words and the low ones.

    Fractions below 1/2 go through `log1p`, others through `log` of what is missing to 1, so that both ends
    keep their precision.
    """
    high, low = words[0], words[1]
    is_small = high < np.uint32(1 << 31)
    # Two's complement of the 64 bits.
    rest_low, rest_high = ~low + np.uint32(1), ~high + (low == 0).astype(dtypes.uint32)
    fraction = _fraction(inp.where(is_small, high, rest_high), inp.where(is_small, low, rest_low))
    return inp.where(is_small, -inp.log(-inp.log1p(-fraction)), -inp.log(-inp.log(fraction)))


def _fraction(high: Value, low: Value) -> Value:
    """The float32 `(high * 2**32 + low) / 2**64`, cut to its mantissa."""
    zeros_high, zeros_low = lax.clz(high), lax.clz(low)
    is_short = zeros_high == 32
    # A shift by 32 gives zero.
    both = (high << zeros_high) | (low >> (np.uint32(32) - zeros_high))
    shifted = inp.where(is_short, low << zeros_low, both)
    mantissa = (shifted >> np.uint32(8)) & np.uint32((1 << 23) - 1)
    zeros = inp.where(is_short, 32 + zeros_low, zeros_high)
    exponent = ((np.uint32(126) - zeros) << np.uint32(23)) & np.uint32((1 << 30) - (1 << 22))
    return e.bitcast_convert_type(exponent | mantissa, dtypes.float32)


def check_mode(name: str, mode: str | None, known: tuple[str | None, ...]) -> None:
    """Refuse a mode that a sampler does not have.

    Raises:
        ValueMismatchError: it does not.
    """
    if mode not in known:
        raise errors.ValueMismatchError(
            f"random.{name}: unknown mode", got=repr(mode), expected=" or ".join(repr(x) for x in known if x)
        )


def cauchy(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Cauchy floats of location 0 and scale 1.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("cauchy", dtype)
    drawn = _cauchy(keys.raw(key, "cauchy"), _axes.shape("cauchy", shape), target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _cauchy(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    uniform = streams.uniform_from(raw_key, shape, dtype, float(ml_dtypes.finfo(dtype).eps), 1.0)
    return inp.tan(math.pi * (uniform - 0.5))


def pareto(
    key: KeyLike,
    b: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Pareto floats, at least 1.

    Args:
        key: a key.
        b: exponent of the tail; broadcasts to `shape`.
        shape: shape of the result, that of `b` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("pareto", dtype)
    sizes, (exponent,) = streams.parameters("pareto", shape, target, b)
    return streams.placed(_pareto(keys.raw(key, "pareto"), exponent, sizes, target), out_sharding)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _pareto(raw_key: Value, b: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    return inp.exp(exponential_from(raw_key, shape, dtype) / b)


def rayleigh(
    key: KeyLike,
    scale: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Rayleigh floats.

    Args:
        key: a key.
        scale: scale; broadcasts to `shape`.
        shape: shape of the result, that of `scale` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("rayleigh", dtype)
    sizes, (factor,) = streams.parameters("rayleigh", shape, target, scale)
    return streams.placed(_rayleigh(keys.raw(key, "rayleigh"), factor, sizes, target), out_sharding)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _rayleigh(raw_key: Value, scale: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    return scale * inp.sqrt(inp.log(streams.uniform_from(raw_key, shape, dtype, 0.0, 1.0)) * -2)


def triangular(
    key: KeyLike,
    left: ArrayLike,
    mode: ArrayLike,
    right: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Floats whose density is a triangle.

    Args:
        key: a key.
        left: lower end; broadcasts to `shape`.
        mode: place of the peak; broadcasts to `shape`.
        right: upper end; broadcasts to `shape`.
        shape: shape of the result, that of the parameters when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("triangular", dtype)
    sizes, corners = streams.parameters("triangular", shape, target, left, mode, right)
    return streams.placed(_triangular(keys.raw(key, "triangular"), *corners, sizes, target), out_sharding)


@functools.partial(staging.jit, static_argnums=(4, 5))
def _triangular(
    raw_key: Value, left: Value, mode: Value, right: Value, shape: tuple[int, ...], dtype: np.dtype
) -> Value:
    uniform = streams.uniform_from(raw_key, shape, dtype, 0.0, 1.0)
    width = right - left
    rising = left + inp.sqrt(uniform * width * (mode - left))
    falling = right - inp.sqrt((1 - uniform) * width * (right - mode))
    return inp.where(uniform < (mode - left) / width, rising, falling)


def weibull_min(
    key: KeyLike,
    scale: ArrayLike,
    concentration: ArrayLike,
    shape: Any = (),
    dtype: DTypeLike | None = None,
) -> Value:  # Any: sizes
    """Weibull floats.

    Args:
        key: a key.
        scale: scale.
        concentration: shape parameter of the distribution.
        shape: shape of the draw, which broadcasts with the parameters.
        dtype: a float dtype, float32 when absent.
    """
    target, sizes = streams.float_dtype("weibull_min", dtype), _axes.shape("weibull_min", shape)
    return _weibull(keys.raw(key, "weibull_min"), scale, concentration, sizes, target)


@functools.partial(staging.jit, static_argnums=(3, 4))
def _weibull(
    raw_key: Value, scale: ArrayLike, concentration: ArrayLike, shape: tuple[int, ...], dtype: np.dtype
) -> Value:
    exponential_ = exponential_from(raw_key, shape, dtype)
    return inp.power(exponential_, 1.0 / concentration) * scale
