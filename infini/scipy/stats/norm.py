"""The normal distribution. `loc` is its mean and `scale` its standard deviation."""

from __future__ import annotations

import math

import infini.numpy as inp
from infini.core.value import Value
from infini.numpy._promotion import ArrayLike, inexact_operands
from infini.scipy import special


def logpdf(x: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """Logarithm of the density.

    Args:
        x: where to evaluate it.
        loc: mean.
        scale: standard deviation.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy.stats import norm
        >>> print(inp.round(norm.logpdf(0.0), 4))
        -0.9189
    """
    value, mean, deviation = inexact_operands("norm.logpdf", x, loc, scale)
    variance = inp.square(deviation)
    normaliser = inp.log(inp.multiply(2 * math.pi, variance))
    square = inp.divide(inp.square(inp.subtract(value, mean)), variance)
    return inp.divide(inp.add(normaliser, square), -2)


def pdf(x: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """The density; arguments as for `logpdf`."""
    return inp.exp(logpdf(x, loc, scale))


def _standard(name: str, x: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> Value:
    value, mean, deviation = inexact_operands(name, x, loc, scale)
    return inp.divide(inp.subtract(value, mean), deviation)


def cdf(x: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """The distribution function; arguments as for `logpdf`."""
    return special.ndtr(_standard("norm.cdf", x, loc, scale))


def logcdf(x: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """Logarithm of `cdf`; arguments as for `logpdf`."""
    return special.log_ndtr(_standard("norm.logcdf", x, loc, scale))


def sf(x: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """One minus `cdf`; arguments as for `logpdf`."""
    return special.ndtr(inp.negative(_standard("norm.sf", x, loc, scale)))


def logsf(x: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """Logarithm of `sf`; arguments as for `logpdf`."""
    return special.log_ndtr(inp.negative(_standard("norm.logsf", x, loc, scale)))


def ppf(q: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """The inverse of `cdf`.

    Args:
        q: probabilities.
        loc: mean.
        scale: standard deviation.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy.stats import norm
        >>> print(inp.round(norm.ppf(0.975), 4))
        1.96
    """
    probability, mean, deviation = inexact_operands("norm.ppf", q, loc, scale)
    return inp.add(inp.multiply(special.ndtri(probability), deviation), mean)


def isf(q: ArrayLike, loc: ArrayLike = 0, scale: ArrayLike = 1) -> Value:
    """The inverse of `sf`; arguments as for `ppf`."""
    probability, mean, deviation = inexact_operands("norm.isf", q, loc, scale)
    return inp.subtract(mean, inp.multiply(special.ndtri(probability), deviation))
