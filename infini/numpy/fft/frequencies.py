"""The frequencies of a spectrum, and its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes, _placement, rearranging
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, to_inexact


def fftfreq(
    n: int,
    d: ArrayLike = 1.0,
    *,
    dtype: DTypeLike | None = None,
    device: Any = None,  # Any: a device or a sharding
) -> Value:
    """The frequencies of what `fft` gives for `n` samples, in its order, as `numpy.fft.fftfreq`.

    Args:
        n: number of samples.
        d: distance of samples; frequencies are per unit of it.
        dtype: of the result; float32 when absent.
        device: where the array lives.

    Returns:
        Frequencies (n,): zero, the positive ones, then the negative ones.

    Raises:
        ValueMismatchError: `n` or `d` is a sequence.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.fftfreq(4)
        Array([ 0.  ,  0.25, -0.5 , -0.25], dtype=float32)
    """
    _check_numbers("fftfreq", n, d)
    size = _axes.integer("fft.fftfreq", "n", n)
    chosen = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    exact = _real(chosen)
    middle = (size + 1) // 2
    numbers = view.concatenate(
        [view.iota(exact, middle), view.iota(exact, size - middle) - (size - middle)], 0
    )
    return _placement.placed(convert(numbers / convert(d * size, exact), chosen), device)


def rfftfreq(
    n: int,
    d: ArrayLike = 1.0,
    *,
    dtype: DTypeLike | None = None,
    device: Any = None,  # Any: a device or a sharding
) -> Value:
    """The frequencies of what `rfft` gives for `n` samples, as `numpy.fft.rfftfreq`.

    Args:
        n: number of samples.
        d: distance of samples; frequencies are per unit of it.
        dtype: of the result, a floating one; float32 when absent, and for integers.
        device: where the array lives.

    Returns:
        Frequencies (n // 2 + 1,).

    Raises:
        ValueMismatchError: `n` or `d` is a sequence.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.rfftfreq(5, 0.5)
        Array([0. , 0.4, 0.8], dtype=float32)
    """
    _check_numbers("rfftfreq", n, d)
    size = _axes.integer("fft.rfftfreq", "n", n)
    chosen = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    exact = _real(chosen)
    numbers = view.iota(exact, size // 2 + 1) / convert(d * size, exact)
    return _placement.placed(convert(numbers, to_inexact(chosen)), device)


def fftshift(x: ArrayLike, axes: int | Sequence[int] | None = None) -> Value:
    """The zero frequency moved to the middle, as `numpy.fft.fftshift`.

    Args:
        x: a spectrum.
        axes: which; all of them when absent.

    Raises:
        AxisError: there is no such axis.

    Example:
        >>> import infini.numpy as inp
        >>> inp.fft.fftshift(inp.fft.fftfreq(4))
        Array([-0.5 , -0.25,  0.  ,  0.25], dtype=float32)
    """
    return _shifted("fft.fftshift", x, axes, 1)


def ifftshift(x: ArrayLike, axes: int | Sequence[int] | None = None) -> Value:
    """The inverse of `fftshift`, as `numpy.fft.ifftshift`; they differ for an odd number of elements."""
    return _shifted("fft.ifftshift", x, axes, -1)


def _shifted(name: str, x: ArrayLike, axes: int | Sequence[int] | None, sign: int) -> Value:
    value = as_value(name, x)
    places = _axes.several(name, axes, value.ndim)
    return rearranging.roll(value, [sign * (value.shape[axis] // 2) for axis in places], places)


def _real(dtype: Any) -> Any:  # Any: NumPy's dtypes
    """The real dtype that frequencies of a dtype are computed in."""
    inexact = to_inexact(dtype)
    return {dtypes.complex64: dtypes.float32, dtypes.complex128: dtypes.float64}.get(inexact, inexact)


def _check_numbers(name: str, n: object, d: object) -> None:
    for argument, given in (("n", n), ("d", d)):
        if isinstance(given, (list, tuple)):
            raise errors.ValueMismatchError(
                f"fft.{name} takes one number for {argument}", got=f"{argument}={given!r}"
            )
