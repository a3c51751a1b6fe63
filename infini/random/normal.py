"""Samples that are made of standard normal ones, by JAX's methods, so equal keys give equal numbers."""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import numpy as np

import infini.numpy as inp
from infini import lax
from infini.core import dtypes, trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, convert
from infini.random import discrete, keys, streams
from infini.random.keys import KeyLike
from infini.random.streams import Placement
from infini.transforms import custom, staging


def normal(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Standard normal floats: `sqrt(2) * erf_inv(u)` of uniform `u` in (-1, 1).

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent; or a complex one, whose samples have variance 1 and equal
            parts.
        out_sharding: placement of the result.
    """
    raw_key, sizes = keys.raw(key, "normal"), _axes.shape("normal", shape)
    if dtype is not None and dtypes.canonical(dtype) in dtypes.COMPLEX:
        return streams.placed(_complex(raw_key, sizes, dtypes.canonical(dtype)), out_sharding)
    target = streams.float_dtype("normal", dtype)
    return streams.placed(standard(raw_key, sizes, target), out_sharding)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _complex(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    part = dtypes.float32 if dtype == dtypes.complex64 else dtypes.float64
    pair = keys.split_words(raw_key, (2,))
    real, imaginary = (standard(pair[i], shape, part) / math.sqrt(2.0) for i in range(2))
    return lax.complex(real, imaginary)


@functools.partial(staging.jit, static_argnums=(1, 2))
def standard(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """As `normal`, for arguments that have been checked."""
    above_minus_one = np.nextafter(np.array(-1.0, dtype), np.array(0.0, dtype))
    uniform = streams.uniform_from(raw_key, shape, dtype, above_minus_one, np.ones((), dtype))
    return _times_sqrt2(_erf_inv(uniform))


# M. Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011), single precision; its error is
# below 4e-7 of the result but in the tails, where it grows to 7e-6.
_CENTRAL: Final = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL: Final = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


@custom.custom_jvp
def _erf_inv(x: Value) -> Value:
    """The inverse error function with JAX's rounding, so that samples are JAX's in the tails too.

    `lax.erf_inv` is the exact one; it differs there by some fifty units in the last place.
    """
    if x.dtype == dtypes.float64:
        return lax.erf_inv(x)
    wide = x.astype(dtypes.float32)
    w = -lax.log1p(-(wide * wide))
    is_central = w < 5.0
    distance = inp.where(is_central, w - 2.5, inp.sqrt(w) - 3.0)
    result = inp.where(is_central, _CENTRAL[0], _TAIL[0])
    for near, far in zip(_CENTRAL[1:], _TAIL[1:], strict=True):
        result = inp.where(is_central, near, far) + result * distance
    return inp.where(inp.abs(wide) == 1, wide * math.inf, result * wide).astype(x.dtype)


@_erf_inv.defjvp
def _erf_inv_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    result = _erf_inv(*primals)
    return result, tangents[0] * (inp.exp(result * result) * (math.sqrt(math.pi) / 2))


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
    sample = _times_sqrt2(_erf_inv(streams.scaled(raw_key, shape, dtype, low, high)))
    # Rounding must not leave the open interval.
    infinity = convert(math.inf, dtype)
    first = lax.nextafter(lax.stop_gradient(lower), infinity)
    last = lax.nextafter(lax.stop_gradient(upper), -infinity)
    return inp.clip(sample, first, last)


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
