"""Transforms along several axes; those whose names end in 2 are along the last two."""

from __future__ import annotations

from collections.abc import Sequence

from infini.core import errors
from infini.core.value import Value
from infini.lax.fft import FftType
from infini.numpy._promotion import ArrayLike
from infini.numpy.fft import _transform
from infini.numpy.fft._transform import Norm

Sizes = Sequence[int] | None


def fftn(a: ArrayLike, s: Sizes = None, axes: Sizes = None, norm: Norm = None) -> Value:
    """The discrete Fourier transform along several axes, as `numpy.fft.fftn`.

    Args:
        a: numbers of any dtype.
        s: size along each axis; the operand is cut, or padded with zeros at the end. Those of the operand
            when absent.
        axes: which; the last `len(s)` ones, or all of them, when absent.
        norm: who divides: "backward" (default) the inverse, by the number of elements; "forward" this one;
            "ortho" both, by its root.

    Returns:
        Complex numbers, complex128 for operands of 64 bits.

    Raises:
        ValueMismatchError: a size is not positive, sizes and axes differ in number, an axis occurs twice, or
            there is no such axis or norm.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.fftn(inp.array([[1.0, 2.0], [3.0, 4.0]]))
        Array([[10.+0.j, -2.+0.j],
               [-4.+0.j,  0.+0.j]], dtype=complex64)
    """
    return _over("fftn", FftType.FFT, a, s, axes, norm)


def ifftn(a: ArrayLike, s: Sizes = None, axes: Sizes = None, norm: Norm = None) -> Value:
    """The inverse of `fftn`, as `numpy.fft.ifftn`; arguments, dtypes and errors are the same."""
    return _over("ifftn", FftType.IFFT, a, s, axes, norm)


def rfftn(a: ArrayLike, s: Sizes = None, axes: Sizes = None, norm: Norm = None) -> Value:
    """The spectrum of real numbers along several axes, as `numpy.fft.rfftn`: of the last one the first half.

    Args:
        a: real numbers.
        s: size along each axis; the operand is cut, or padded with zeros at the end. Those of the operand
            when absent.
        axes: which; the last `len(s)` ones, or all of them, when absent.
        norm: as in `fftn`.

    Returns:
        Complex numbers; along the last of the axes `n // 2 + 1` for `n` real ones.

    Raises:
        ValueMismatchError: the numbers are complex or of 16 bits, or as in `fftn`.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.rfftn(inp.ones((4, 6))).shape
        (4, 4)
    """
    return _over("rfftn", FftType.RFFT, a, s, axes, norm)


def irfftn(a: ArrayLike, s: Sizes = None, axes: Sizes = None, norm: Norm = None) -> Value:
    """Real numbers from their spectrum along several axes, as `numpy.fft.irfftn`.

    Args:
        a: a spectrum, the first half of it along the last of the axes.
        s: size of the result along each axis; those of the operand, and `2 * (m - 1)` for the last one, when
            absent.
        axes: which; the last `len(s)` ones, or all of them, when absent.
        norm: as in `fftn`.

    Returns:
        Real numbers.

    Raises:
        ValueMismatchError: as in `fftn`.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.irfftn(inp.fft.rfftn(inp.ones((4, 5))), s=(4, 5)).shape
        (4, 5)
    """
    return _over("irfftn", FftType.IRFFT, a, s, axes, norm)


def fft2(a: ArrayLike, s: Sizes = None, axes: Sequence[int] = (-2, -1), norm: Norm = None) -> Value:
    """`fftn` along two axes, the last ones unless others are named, as `numpy.fft.fft2`."""
    return _over_two("fft2", FftType.FFT, a, s, axes, norm)


def ifft2(a: ArrayLike, s: Sizes = None, axes: Sequence[int] = (-2, -1), norm: Norm = None) -> Value:
    """`ifftn` along two axes, the last ones unless others are named, as `numpy.fft.ifft2`."""
    return _over_two("ifft2", FftType.IFFT, a, s, axes, norm)


def rfft2(a: ArrayLike, s: Sizes = None, axes: Sequence[int] = (-2, -1), norm: Norm = None) -> Value:
    """`rfftn` along two axes, the last ones unless others are named, as `numpy.fft.rfft2`."""
    return _over_two("rfft2", FftType.RFFT, a, s, axes, norm)


def irfft2(a: ArrayLike, s: Sizes = None, axes: Sequence[int] = (-2, -1), norm: Norm = None) -> Value:
    """`irfftn` along two axes, the last ones unless others are named, as `numpy.fft.irfft2`."""
    return _over_two("irfft2", FftType.IRFFT, a, s, axes, norm)


def _over(name: str, fft_type: FftType, a: ArrayLike, s: Sizes, axes: Sizes, norm: Norm) -> Value:
    return _transform.transform(
        f"fft.{name}",
        fft_type,
        a,
        s,
        axes,
        norm,
        direction="inverse" if name.startswith("i") else "forward",
    )


def _over_two(name: str, fft_type: FftType, a: ArrayLike, s: Sizes, axes: Sequence[int], norm: Norm) -> Value:
    if len(axes) != 2:
        raise errors.ValueMismatchError(
            f"fft.{name} works along two axes",
            got=f"axes={tuple(axes)}",
            fix=f"use fft.{name[:-1]}n, which takes any number",
        )
    return _over(name, fft_type, a, s, axes, norm)
