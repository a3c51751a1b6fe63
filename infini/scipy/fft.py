"""Cosine transforms with `jax.scipy.fft`'s names: those of type 2, by Fourier transforms of as many numbers.

Source: J. Makhoul, "A fast cosine transform in one and two dimensions" (1980).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.numpy import _axes, fft
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands


def dct(x: ArrayLike, type: int = 2, n: int | None = None, axis: int = -1, norm: str | None = None) -> Value:
    """The discrete cosine transform, `2 sum(x[m] cos(pi k (2 m + 1) / 2 n))`, as `scipy.fft.dct`.

    Args:
        x: numbers; of complex ones each part.
        type: kind of transform; only 2.
        n: size along the axis; the operand is cut, or padded with zeros at its end.
        axis: which.
        norm: `"ortho"` makes the transform orthogonal; None or `"backward"` leaves it as it is.

    Returns:
        Numbers of the same kind, in floats.

    Raises:
        UnsupportedError: another type than 2.
        ValueMismatchError: there is no such norm.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import fft
        >>> print(fft.dct(inp.ones(4)) + 0)
        [8. 0. 0. 0.]
    """
    return _along("dct", _forward, x, type, n, axis, norm)


def idct(x: ArrayLike, type: int = 2, n: int | None = None, axis: int = -1, norm: str | None = None) -> Value:
    """The inverse of `dct`, as `scipy.fft.idct`; arguments and errors are the same.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import fft
        >>> print(fft.idct(inp.array([8.0, 0.0, 0.0, 0.0])))
        [1. 1. 1. 1.]
    """
    return _along("idct", _inverse, x, type, n, axis, norm)


def dctn(
    x: ArrayLike,
    type: int = 2,
    s: Sequence[int] | int | None = None,
    axes: Sequence[int] | int | None = None,
    norm: str | None = None,
) -> Value:
    """`dct` along several axes, the last `len(s)` or all of them unless named, as `scipy.fft.dctn`."""
    return _over("dctn", _forward, x, type, s, axes, norm)


def idctn(
    x: ArrayLike,
    type: int = 2,
    s: Sequence[int] | int | None = None,
    axes: Sequence[int] | int | None = None,
    norm: str | None = None,
) -> Value:
    """The inverse of `dctn`, as `scipy.fft.idctn`."""
    return _over("idctn", _inverse, x, type, s, axes, norm)


Transform = Callable[[Value, bool], Value]  # along the last axis, with or without the orthogonal norm


def _along(
    name: str, transform: Transform, x: ArrayLike, type: int, n: int | None, axis: int, norm: str | None
) -> Value:
    if type != 2:
        raise errors.UnsupportedError(
            f"{name} is implemented for type 2 only", got=f"type={type}", fix="use numpy.fft"
        )
    if norm not in (None, "backward", "ortho"):
        raise errors.ValueMismatchError(
            f"{name}: there is no such norm", got=repr(norm), expected="None, 'backward' or 'ortho'"
        )
    value = as_value(name, x)
    if value.dtype in dtypes.COMPLEX:
        parts = (_along(name, transform, y, type, n, axis, norm) for y in (e.real(value), e.imag(value)))
        return e.complex(*parts)
    (value,) = inexact_operands(name, value)
    value = inp.moveaxis(value, _axes.one(name, axis, value.ndim), -1)
    if n is not None:
        change = _axes.integer(name, "n", n) - value.shape[-1]
        value = view.pad(value, convert(0, value.dtype), [*[(0, 0, 0)] * (value.ndim - 1), (0, change, 0)])
    if value.size:
        value = transform(value, norm == "ortho")
    return inp.moveaxis(value, -1, axis)


def _over(
    name: str,
    transform: Transform,
    x: ArrayLike,
    type: int,
    s: Sequence[int] | int | None,
    axes: Sequence[int] | int | None,
    norm: str | None,
) -> Value:
    value = as_value(name, x)
    sizes = None if s is None else _axes.integers(name, "s", s)
    if sizes is not None and len(sizes) > value.ndim:
        raise errors.ValueMismatchError(
            f"{name}: there are more sizes than dimensions", got=f"{value.type}, s={sizes}"
        )
    if axes is None:
        along: tuple[int, ...] = tuple(range(value.ndim if sizes is None else len(sizes)))
        along = tuple(value.ndim - len(along) + d for d in along)
    else:
        along = _axes.several(name, axes, value.ndim)
    for i, axis in enumerate(along):
        value = _along(name, transform, value, type, None if sizes is None else sizes[i], axis, norm)
    return value


def _forward(x: Value, is_orthogonal: bool) -> Value:
    size = x.shape[-1]
    order = inp.concatenate([x[..., ::2], inp.flip(x[..., 1::2], -1)], -1)
    found = 2 * e.real(fft.fft(order) * _turns(size, x, -1.0))
    return found / _weights(size, x) if is_orthogonal else found


def _inverse(x: Value, is_orthogonal: bool) -> Value:
    size = x.shape[-1]
    x = x * _weights(size, x) if is_orthogonal else x
    # The first element stands for one cosine, the others for two halves of one.
    first = view.iota(dtypes.int32, size) == 0
    found = e.real(fft.ifft(inp.where(first, 0.5 * x, x) * _turns(size, x, 1.0)))
    half = (size + 1) // 2
    evens, odds = found[..., :half], inp.flip(found[..., half:], -1)
    odds = inp.concatenate([odds, evens[..., : half - odds.shape[-1]]], -1)
    return inp.reshape(inp.stack([evens, odds], -1), (*x.shape[:-1], 2 * half))[..., :size]


def _turns(size: int, like: Value, sign: float) -> Value:
    """`exp(+-pi i k / 2 n)`."""
    dtype = dtypes.float64 if like.dtype == dtypes.float64 else dtypes.float32
    angle = view.iota(dtype, size) * (sign * math.pi / (2 * size))
    return e.complex(e.cos(angle), e.sin(angle))


def _weights(size: int, like: Value) -> Value:
    """What makes the rows of the transform of norm 1."""
    first = view.iota(dtypes.int32, size) == 0
    dtype = like.dtype if like.dtype in (dtypes.float32, dtypes.float64) else dtypes.float32
    return convert(inp.where(first, math.sqrt(4 * size), math.sqrt(2 * size)), dtype)
