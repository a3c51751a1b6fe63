"""Transforms along one axis."""

from __future__ import annotations

from infini.core import errors
from infini.core.value import Value
from infini.lax.fft import FftType
from infini.numpy import _axes, complex_numbers, creation
from infini.numpy._promotion import ArrayLike, as_value
from infini.numpy.fft import _transform
from infini.numpy.fft._transform import Norm


def fft(a: ArrayLike, n: int | None = None, axis: int = -1, norm: Norm = None) -> Value:
    """The discrete Fourier transform along one axis, as `numpy.fft.fft`.

    Args:
        a: numbers of any dtype.
        n: size along the axis; the operand is cut, or padded with zeros at its end. That of the operand when
            absent.
        axis: which.
        norm: who divides: "backward" (default) the inverse, by `n`; "forward" this one, by `n`; "ortho"
            both, by the root of `n`.

    Returns:
        Complex numbers, complex128 for operands of 64 bits.

    Raises:
        ValueMismatchError: `n` is not positive, there is no such axis or norm.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.fft(inp.array([1.0, 2.0, 3.0, 4.0]))
        Array([10.+0.j, -2.+2.j, -2.+0.j, -2.-2.j], dtype=complex64)
    """
    return _along("fft", FftType.FFT, a, n, axis, norm)


def ifft(a: ArrayLike, n: int | None = None, axis: int = -1, norm: Norm = None) -> Value:
    """The inverse of `fft`, as `numpy.fft.ifft`; arguments, dtypes and errors are the same.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.ifft(inp.array([10.0, -2.0, -2.0, -2.0])).real
        Array([1., 3., 3., 3.], dtype=float32)
    """
    return _along("ifft", FftType.IFFT, a, n, axis, norm)


def rfft(a: ArrayLike, n: int | None = None, axis: int = -1, norm: Norm = None) -> Value:
    """The first half of the spectrum of real numbers, as `numpy.fft.rfft`.

    Args:
        a: real numbers.
        n: size along the axis; the operand is cut, or padded with zeros at its end. That of the operand when
            absent.
        axis: which.
        norm: as in `fft`.

    Returns:
        Complex numbers, `n // 2 + 1` along the axis.

    Raises:
        ValueMismatchError: the numbers are complex or of 16 bits, `n` is not positive, there is no such axis
            or norm.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.rfft(inp.array([1.0, 2.0, 3.0, 4.0]))
        Array([10.+0.j, -2.+2.j, -2.+0.j], dtype=complex64)
    """
    return _along("rfft", FftType.RFFT, a, n, axis, norm)


def irfft(a: ArrayLike, n: int | None = None, axis: int = -1, norm: Norm = None) -> Value:
    """Real numbers from the first half of their spectrum, as `numpy.fft.irfft`.

    Args:
        a: the half of a spectrum.
        n: number of real numbers; `2 * (m - 1)` for `m` elements when absent. An odd one has to be given.
        axis: which.
        norm: as in `fft`.

    Returns:
        Real numbers, `n` along the axis.

    Raises:
        ValueMismatchError: `n` is not positive, there is no such axis or norm.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.irfft(inp.fft.rfft(inp.array([1.0, 2.0, 3.0])), n=3)
        Array([1., 2., 3.], dtype=float32)
    """
    return _along("irfft", FftType.IRFFT, a, n, axis, norm)


def hfft(a: ArrayLike, n: int | None = None, axis: int = -1, norm: Norm = None) -> Value:
    """The transform of a Hermitian signal, which is real, from the signal's first half, as `numpy.fft.hfft`.

    Args:
        a: the half of a signal.
        n: number of elements of the result; `2 * (m - 1)` for `m` elements when absent.
        axis: which.
        norm: as in `fft`.

    Returns:
        Real numbers, `n` along the axis.

    Raises:
        ValueMismatchError: `n` is not positive, there is no such axis or norm.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.hfft(inp.array([1.0, 2.0, 1.0]))
        Array([ 6.,  0., -2.,  0.], dtype=float32)
    """
    value = complex_numbers.conj(as_value("fft.hfft", a))
    size = 2 * (_size("hfft", value, axis) - 1) if n is None else n
    return _along("hfft", FftType.IRFFT, value, n, axis, norm) * size


def ihfft(a: ArrayLike, n: int | None = None, axis: int = -1, norm: Norm = None) -> Value:
    """The inverse of `hfft`: the first half of the Hermitian signal of a real spectrum, as `numpy.fft.ihfft`.

    Args:
        a: real numbers.
        n: size along the axis; the operand is cut, or padded with zeros at its end. That of the operand when
            absent.
        axis: which.
        norm: as in `fft`.

    Returns:
        Complex numbers, `n // 2 + 1` along the axis.

    Raises:
        ValueMismatchError: the numbers are complex or of 16 bits, `n` is not positive, there is no such axis
            or norm.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.ihfft(inp.array([6.0, 0.0, -2.0, 0.0])).real
        Array([1., 2., 1.], dtype=float32)
    """
    value = creation.asarray(a)
    size = _size("ihfft", value, axis) if n is None else n
    result = _along("ihfft", FftType.RFFT, value, n, axis, norm)
    return complex_numbers.conj(result) * (1 / size)


def _size(name: str, x: Value, axis: int) -> int:
    _check_axis(name, axis)
    return x.shape[_axes.one(f"fft.{name}", axis, x.ndim)]


def _check_axis(name: str, axis: int | None) -> None:
    if isinstance(axis, (list, tuple)):
        raise errors.ValueMismatchError(
            f"fft.{name} works along one axis",
            got=f"axis={axis!r}",
            fix=f"use fft.{name.removeprefix('i').removeprefix('h')}n or its inverse, which take several",
        )


def _along(name: str, fft_type: FftType, a: ArrayLike, n: int | None, axis: int | None, norm: Norm) -> Value:
    _check_axis(name, axis)
    return _transform.transform(
        f"fft.{name}",
        fft_type,
        a,
        None if n is None else (n,),
        None if axis is None else (axis,),
        norm,
        direction="inverse" if name.startswith("i") else "forward",
    )
