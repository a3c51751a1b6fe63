"""Windows of signal processing, with NumPy's names: float32 vectors of `M` weights, one at the middle."""

from __future__ import annotations

import math

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes, elementwise, transcendental
from infini.numpy._promotion import ArrayLike, convert


def bartlett(M: int) -> Value:
    """Weights that rise and fall in straight lines from 0, as `numpy.bartlett`."""
    size = _count("bartlett", M)
    if size <= 1:
        return _ones(size)
    return 1 - elementwise.abs(2 * _positions(size) - (size - 1)) / (size - 1)


def blackman(M: int) -> Value:
    """Weights of three cosines, as `numpy.blackman`."""
    return _of_cosines("blackman", M, (0.42, -0.5, 0.08))


def hamming(M: int) -> Value:
    """Weights of a raised cosine that end above 0, as `numpy.hamming`."""
    return _of_cosines("hamming", M, (0.54, -0.46))


def hanning(M: int) -> Value:
    """Weights of a raised cosine that end at 0, as `numpy.hanning`."""
    return _of_cosines("hanning", M, (0.5, -0.5))


def kaiser(M: int, beta: ArrayLike) -> Value:
    """Weights of Bessel functions, as `numpy.kaiser`.

    Args:
        M: number of weights.
        beta: shape; 0 makes them all equal.
    """
    size = _count("kaiser", M)
    if size <= 1:
        return _ones(size)
    middle = 0.5 * (size - 1)
    inside = 1 - elementwise.square((_positions(size) - middle) / middle)
    shape = convert(beta, dtypes.float32)
    return transcendental.i0(shape * transcendental.sqrt(inside)) / transcendental.i0(shape)


def _of_cosines(name: str, M: int, weights: tuple[float, ...]) -> Value:
    size = _count(name, M)
    if size <= 1:
        return _ones(size)
    angle = _positions(size) * (2 * math.pi / (size - 1))
    result: Value | float = weights[0]
    for k, weight in enumerate(weights[1:], 1):
        result = result + weight * transcendental.cos(k * angle)
    assert isinstance(result, Value), "there is at least one cosine"
    return result


def _positions(size: int) -> Value:
    return view.iota(dtypes.float32, size)


def _ones(size: int) -> Value:
    return view.full((size,), 1, dtypes.float32)


def _count(name: str, M: int) -> int:
    size = _axes.integer(name, "M", M)
    if size < 0:
        raise errors.ValueMismatchError(f"{name}: a window has no negative size", got=str(size))
    return size
