"""Samples of the gamma distribution and of those made from it, by JAX's methods, so equal keys give equal
numbers up to the rounding of logarithms.

Source: G. Marsaglia and W. W. Tsang, "A simple method for generating gamma variables", ACM TOMS 26 (2000).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.core.value import Value
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random import continuous, discrete, keys, normal, streams
from infini.random.keys import KeyLike
from infini.random.streams import Placement
from infini.transforms import batching, custom, staging


def gamma(
    key: KeyLike,
    a: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Gamma floats of scale 1.

    Args:
        key: a key.
        a: shape parameter of the distribution, above 0; broadcasts to `shape`.
        shape: shape of the result, that of `a` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    return streams.placed(_drawn("gamma", key, a, shape, dtype, False), out_sharding)


def loggamma(
    key: KeyLike,
    a: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Logarithms of gamma floats, which do not underflow for small `a`.

    Args:
        key: a key.
        a: shape parameter of the distribution, above 0; broadcasts to `shape`.
        shape: shape of the result, that of `a` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    return streams.placed(_drawn("loggamma", key, a, shape, dtype, True), out_sharding)


def _drawn(
    name: str, key: KeyLike, a: ArrayLike, shape: Any, dtype: DTypeLike | None, is_log: bool
) -> Value:  # Any: sizes
    target = streams.float_dtype(name, dtype)
    sizes, (alpha,) = streams.parameters(name, shape, target, a)
    raw_key = keys.raw(key, name)
    return _draw_logarithms(raw_key, alpha, sizes) if is_log else _draw(raw_key, alpha, sizes)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _samples(raw_key: Value, alpha: Value, shape: tuple[int, ...], is_log: bool) -> Value:
    """One key and one pair of loops per element."""
    size = math.prod(shape)
    if not size:
        return inp.zeros(shape, alpha.dtype)
    flat = inp.broadcast_to(alpha, shape).reshape(size)
    one = functools.partial(_one, is_log=is_log)
    return batching.vmap(one)(keys.split_words(raw_key, (size,)), flat).reshape(shape)


@functools.partial(custom.custom_jvp, nondiff_argnums=(2,))
def _draw(raw_key: Value, alpha: Value, shape: tuple[int, ...]) -> Value:
    return _samples(raw_key, alpha, shape, False)


@_draw.defjvp
def _slope(
    shape: tuple[int, ...], primals: Sequence[Value], tangents: Sequence[Value]
) -> tuple[Value, Value]:
    """How a sample moves when its place in the distribution stays (implicit reparametrisation,
    arXiv:1805.08498)."""
    raw_key, alpha = primals
    drawn = _draw(raw_key, alpha, shape)
    return drawn, tangents[1] * lax.random_gamma_grad(inp.broadcast_to(alpha, shape), drawn)


@functools.partial(custom.custom_jvp, nondiff_argnums=(2,))
def _draw_logarithms(raw_key: Value, alpha: Value, shape: tuple[int, ...]) -> Value:
    return _samples(raw_key, alpha, shape, True)


@_draw_logarithms.defjvp
def _slope_of_logarithm(
    shape: tuple[int, ...], primals: Sequence[Value], tangents: Sequence[Value]
) -> tuple[Value, Value]:
    raw_key, alpha = primals
    drawn = _draw_logarithms(raw_key, alpha, shape)
    # A sample that underflows counts as the smallest normal number.
    sample = inp.maximum(inp.exp(drawn), float(inp.finfo(drawn.dtype).tiny))
    return drawn, tangents[1] * lax.random_gamma_grad(inp.broadcast_to(alpha, shape), sample) / sample


def _one(raw_key: Value, alpha: Value, *, is_log: bool) -> Value:
    """One sample: a cube of a normal one, accepted or drawn anew.

    Below 1, the sample of `alpha + 1` times `u ** (1 / alpha)` is one of `alpha`.
    """
    is_large = alpha >= 1
    boosted = inp.where(is_large, alpha, alpha + 1)
    center = boosted - 1 / 3
    slope = 1 / 3 / inp.sqrt(center)
    pair = keys.split_words(raw_key, (2,))

    def is_refused(state: tuple[Value, ...]) -> Value:
        _, squared, cube, chance = state
        is_outside = chance >= 1 - 0.0331 * (squared * squared)
        bound = squared * 0.5 + center * ((1 - cube) + inp.log(cube))
        return is_outside & (inp.log(chance) >= bound)

    def attempt(state: tuple[Value, ...]) -> tuple[Value, ...]:
        three = keys.split_words(state[0], (3,))

        def draw(inner: tuple[Value, ...]) -> tuple[Value, ...]:
            both = keys.split_words(inner[0], (2,))
            x = normal.standard(both[1], (), alpha.dtype)
            return both[0], x, 1 + x * slope

        start = (three[1], inp.zeros((), alpha.dtype), -inp.ones((), alpha.dtype))
        _, x, root = lax.while_loop(lambda inner: inner[2] <= 0, draw, start)
        return (
            three[0], x * x, root * root * root, streams.uniform_from(three[2], (), alpha.dtype, 0.0, 1.0),
        )  # fmt: skip

    # The first state is refused.
    first = [inp.full((), x, alpha.dtype) for x in (0, 1, 2)]
    cube = lax.while_loop(is_refused, attempt, (pair[0], *first))[2]
    if is_log:
        logarithm = -continuous.exponential_from(pair[1], (), alpha.dtype)
        is_none = is_large | (logarithm == 0)
        return inp.log(center) + inp.log(cube) + inp.where(is_none, 0, logarithm * (1 / alpha))
    chance = 1 - streams.uniform_from(pair[1], (), alpha.dtype, 0.0, 1.0)
    return center * cube * inp.where(is_large, 1, inp.power(chance, 1 / alpha))


def beta(
    key: KeyLike,
    a: ArrayLike,
    b: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Beta floats in (0, 1).

    Args:
        key: a key.
        a: first shape parameter of the distribution; broadcasts to `shape`.
        b: second one.
        shape: shape of the result, that of the parameters when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("beta", dtype)
    sizes, parameters = streams.parameters("beta", shape, target, a, b)
    pair = keys.split_words(keys.raw(key, "beta"), (2,))
    first, second = (_draw_logarithms(pair[i], parameter, sizes) for i, parameter in enumerate(parameters))
    # The larger logarithm is taken off both, so that neither exponential underflows alone.
    largest = inp.maximum(first, second)
    first, second = inp.exp(first - largest), inp.exp(second - largest)
    return streams.placed(first / (first + second), out_sharding)


def dirichlet(
    key: KeyLike,
    alpha: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Vectors of positive floats with sum 1.

    Args:
        key: a key.
        alpha: (..., n) concentrations, above 0.
        shape: shape of the result without its last dimension; that of `alpha` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: `alpha` has no dimension.
    """
    target, given = streams.float_dtype("dirichlet", dtype), as_value("dirichlet", alpha)
    if not given.ndim:
        raise errors.ValueMismatchError(
            "random.dirichlet needs vectors of concentrations", got=str(given.type)
        )
    sizes = given.shape[:-1] if shape is None else _axes.shape("dirichlet", shape)
    streams.check_broadcasts("dirichlet", given.shape[:-1], sizes)
    scores = loggamma(key, given, (*sizes, given.shape[-1]), target)
    grown = inp.exp(scores - inp.max(scores, -1, keepdims=True))
    return streams.placed(grown / inp.sum(grown, -1, keepdims=True), out_sharding)


def chisquare(
    key: KeyLike,
    df: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Chi-square floats.

    Args:
        key: a key.
        df: degrees of freedom, above 0; broadcasts to `shape`.
        shape: shape of the result, that of `df` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("chisquare", dtype)
    sizes, (degrees,) = streams.parameters("chisquare", shape, target, df)
    return streams.placed(_chisquare(keys.raw(key, "chisquare"), degrees, sizes), out_sharding)


def _chisquare(raw_key: Value, degrees: Value, shape: tuple[int, ...]) -> Value:
    return inp.exp(_draw_logarithms(raw_key, degrees / 2, shape)) * 2


def f(
    key: KeyLike,
    dfnum: ArrayLike,
    dfden: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Floats of the F distribution.

    Args:
        key: a key.
        dfnum: degrees of freedom of the numerator, above 0; broadcasts to `shape`.
        dfden: those of the denominator.
        shape: shape of the result, that of the parameters when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("f", dtype)
    sizes, (above, below) = streams.parameters("f", shape, target, dfnum, dfden)
    pair = keys.split_words(keys.raw(key, "f"), (2,))
    numerator = _chisquare(pair[1], above, sizes) / above
    denominator = _chisquare(pair[0], below, sizes) / below
    return streams.placed(numerator / denominator, out_sharding)


def t(
    key: KeyLike,
    df: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Floats of Student's t distribution.

    Args:
        key: a key.
        df: degrees of freedom, above 0; broadcasts to `shape`.
        shape: shape of the result, that of `df` when absent.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("t", dtype)
    sizes, (degrees,) = streams.parameters("t", shape, target, df)
    pair = keys.split_words(keys.raw(key, "t"), (2,))
    half = degrees / 2
    drawn = normal.standard(pair[0], sizes, target) * inp.sqrt(half / _draw(pair[1], half, sizes))
    return streams.placed(drawn, out_sharding)


def generalized_normal(
    key: KeyLike,
    p: ArrayLike,
    shape: Any = (),
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Floats of density proportional to `exp(-|x|**p)`.

    Args:
        key: a key.
        p: exponent, above 0.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target = streams.float_dtype("generalized_normal", dtype)
    sizes, (exponent,) = streams.parameters(
        "generalized_normal", _axes.shape("generalized_normal", shape), target, p
    )
    drawn = _generalized(keys.raw(key, "generalized_normal"), exponent, sizes)
    return streams.placed(drawn, out_sharding)


def _generalized(raw_key: Value, exponent: Value, shape: tuple[int, ...]) -> Value:
    pair = keys.split_words(raw_key, (2,))
    lengths = inp.power(_draw(pair[0], 1 / exponent, shape), 1 / exponent)
    return discrete.rademacher(pair[1], shape, exponent.dtype) * lengths


def ball(
    key: KeyLike,
    d: int,
    p: ArrayLike = 2,
    shape: Any = (),
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Points spread evenly in the unit ball of a norm.

    Args:
        key: a key.
        d: number of dimensions of the ball.
        p: exponent of the norm.
        shape: shape of the result without its last dimension, which is `d`.
        dtype: a float dtype, float32 when absent.
        out_sharding: placement of the result.
    """
    target, sizes = streams.float_dtype("ball", dtype), _axes.shape("ball", shape)
    _, (exponent,) = streams.parameters("ball", (), target, p)
    pair = keys.split_words(keys.raw(key, "ball"), (2,))
    points = _generalized(pair[0], exponent, (*sizes, *_axes.shape("ball", d)))
    rest = continuous.exponential_from(pair[1], sizes, target)
    total = inp.sum(inp.power(inp.abs(points), exponent), -1) + rest
    return streams.placed(points / inp.power(total, 1 / exponent)[..., None], out_sharding)
