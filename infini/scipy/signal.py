"""Convolutions and trends of signals with `jax.scipy.signal`'s names. Spectrograms are not here: their
windows come from SciPy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import convolution, view
from infini.lax.precision import PrecisionLike
from infini.numpy import _axes, fft
from infini.numpy._promotion import ArrayLike, inexact_operands

_MODES = ("full", "same", "valid")


def convolve(
    in1: ArrayLike,
    in2: ArrayLike,
    mode: str = "full",
    method: str = "auto",
    precision: PrecisionLike = None,
) -> Value:
    """The convolution of two arrays, as `scipy.signal.convolve`.

    Args:
        in1: array.
        in2: array of as many dimensions; one of the two is not larger than the other in any of them.
        mode: `"full"`, `"same"` for the middle part in the size of `in1`, `"valid"` for the part where they
            overlap whole.
        method: `"direct"` or `"auto"` for a sum of products, `"fft"` for a product of spectra.
        precision: of the products.

    Returns:
        The convolution, in floats.

    Raises:
        ValueMismatchError: no such mode or method, sizes that do not go together, or no elements.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import signal
        >>> print(signal.convolve(inp.ones(3), inp.ones(3)))
        [1. 2. 3. 2. 1.]
    """
    if method not in ("auto", "direct", "fft"):
        raise errors.ValueMismatchError(
            "convolve: no such method", got=repr(method), expected="'auto', 'direct' or 'fft'"
        )
    return fftconvolve(in1, in2, mode) if method == "fft" else _direct(in1, in2, mode, precision)


def correlate(
    in1: ArrayLike,
    in2: ArrayLike,
    mode: str = "full",
    method: str = "auto",
    precision: PrecisionLike = None,
) -> Value:
    """The correlation of two arrays, as `scipy.signal.correlate`: `convolve` with the second one turned
    round and conjugated."""
    x, y = inexact_operands("correlate", in1, in2)
    return convolve(x, inp.flip(inp.conj(y)), mode, method, precision)


def convolve2d(
    in1: ArrayLike,
    in2: ArrayLike,
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: float = 0,
    precision: PrecisionLike = None,
) -> Value:
    """`convolve` of two matrices, as `scipy.signal.convolve2d`.

    Raises:
        UnsupportedError: another boundary than zeros.
        ValueMismatchError: as in `convolve`, or there are not two dimensions.
    """
    return _direct(*_matrices("convolve2d", in1, in2, boundary, fillvalue), mode, precision)


def correlate2d(
    in1: ArrayLike,
    in2: ArrayLike,
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: float = 0,
    precision: PrecisionLike = None,
) -> Value:
    """The correlation of two matrices, as `scipy.signal.correlate2d`.

    Raises:
        UnsupportedError: another boundary than zeros.
        ValueMismatchError: as in `convolve`, or there are not two dimensions.
    """
    x, y = _matrices("correlate2d", in1, in2, boundary, fillvalue)
    is_smaller = all(n <= m for n, m in zip(x.shape, y.shape, strict=True)) and x.shape != y.shape
    if mode != "same" and is_smaller:
        # SciPy turns both round, so that the larger one comes first.
        found = _direct(inp.flip(y), inp.conj(x), mode, precision)
        return inp.conj(found) if mode == "full" else found
    return inp.flip(_direct(inp.flip(x), inp.conj(y), mode, precision))


def fftconvolve(
    in1: ArrayLike, in2: ArrayLike, mode: str = "full", axes: int | Sequence[int] | None = None
) -> Value:
    """The convolution of two arrays by Fourier transforms, as `scipy.signal.fftconvolve`.

    Args:
        in1: array.
        in2: array of as many dimensions.
        mode: as in `convolve`.
        axes: along which; all of them when absent. Sizes along the others are equal.

    Returns:
        The convolution, in floats.

    Raises:
        ValueMismatchError: no such mode, or sizes that do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import signal
        >>> print(inp.round(signal.fftconvolve(inp.ones(3), inp.ones(3), "same"), 4))
        [2. 3. 2.]
    """
    x, y = inexact_operands("fftconvolve", in1, in2)
    _check_mode("fftconvolve", mode)
    if x.ndim != y.ndim:
        raise errors.ValueMismatchError(
            "fftconvolve needs arrays of as many dimensions", got=f"{x.type}, {y.type}"
        )
    along = tuple(range(x.ndim)) if axes is None else _axes.several("fftconvolve", axes, x.ndim)
    if any(x.shape[d] != y.shape[d] for d in range(x.ndim) if d not in along):
        raise errors.ValueMismatchError(
            "fftconvolve: sizes along the other axes differ", got=f"{x.type}, {y.type}, axes={axes}"
        )
    if mode == "valid":
        x, y = _larger_first("fftconvolve", x, y, along)
    whole = [x.shape[d] + y.shape[d] - 1 if d in along else x.shape[d] for d in range(x.ndim)]
    sizes = [whole[d] for d in along]
    if all(x.shape[d] == 1 or y.shape[d] == 1 for d in along):
        found = x * y
    elif x.dtype in dtypes.COMPLEX:
        found = fft.ifftn(fft.fftn(x, sizes, along) * fft.fftn(y, sizes, along), sizes, along)
    else:
        found = fft.irfftn(fft.rfftn(x, sizes, along) * fft.rfftn(y, sizes, along), sizes, along)
    kept = list(whole)
    for d in along:
        if mode != "full":
            kept[d] = x.shape[d] if mode == "same" else x.shape[d] - y.shape[d] + 1
    starts = [(n - m) // 2 for n, m in zip(whole, kept, strict=True)]
    return view.slice(found, starts, [s + m for s, m in zip(starts, kept, strict=True)])


def detrend(
    data: ArrayLike,
    axis: int = -1,
    type: str = "linear",
    bp: int | Sequence[int] | np.ndarray = 0,
    overwrite_data: None = None,
) -> Value:
    """A signal without its trend, as `scipy.signal.detrend`.

    Args:
        data: signals.
        axis: along which.
        type: `"linear"` takes away the straight line of least squares, `"constant"` the mean.
        bp: places where a new line begins.
        overwrite_data: not supported.

    Raises:
        ValueMismatchError: there is no such type, or a place lies outside.
        UnsupportedError: `overwrite_data` is given.
    """
    if overwrite_data is not None:
        raise errors.UnsupportedError(
            "arrays are not overwritten", got="overwrite_data", fix="use the array that is returned"
        )
    if type not in ("linear", "constant"):
        raise errors.ValueMismatchError(
            "detrend: no such type", got=repr(type), expected="'linear' or 'constant'"
        )
    (x,) = inexact_operands("detrend", data)
    if type == "constant":
        return x - inp.mean(x, axis, keepdims=True)
    x = inp.moveaxis(x, axis, 0)
    size = x.shape[0]
    places = sorted({0, size, *_axes.integers("detrend", "bp", bp)})
    if places[0] < 0 or places[-1] > size:
        raise errors.ValueMismatchError(
            "detrend: a place lies outside of the signal", got=f"bp={bp}", expected=f"0 to {size}"
        )
    pieces = []
    for first, last in itertools.pairwise(places):
        piece = x[first:last]
        count = last - first
        # Least squares of a line: its slope over centred positions, and the mean.
        position = view.iota(x.dtype, count) - (count - 1) / 2
        column = inp.reshape(position, (count, *(1,) * (x.ndim - 1)))
        mean = inp.mean(piece, 0, keepdims=True)
        slope = inp.sum(column * (piece - mean), 0, keepdims=True) / (count * (count**2 - 1) / 12 or 1.0)
        pieces.append(piece - mean - column * slope)
    return inp.moveaxis(inp.concatenate(pieces) if pieces else x, 0, axis)


def _matrices(
    name: str, in1: ArrayLike, in2: ArrayLike, boundary: str, fillvalue: float
) -> tuple[Value, Value]:
    if boundary != "fill" or fillvalue != 0:
        raise errors.UnsupportedError(
            f"{name} fills with zeros only", got=f"boundary={boundary!r}, fillvalue={fillvalue}",
            fix="pad with infini.numpy.pad first, and take mode='valid'",
        )  # fmt: skip
    x, y = inexact_operands(name, in1, in2)
    if x.ndim != 2 or y.ndim != 2:
        raise errors.ValueMismatchError(f"{name} takes matrices", got=f"{x.type}, {y.type}")
    return x, y


def _check_mode(name: str, mode: str) -> None:
    if mode not in _MODES:
        raise errors.ValueMismatchError(
            f"{name}: no such mode", got=repr(mode), expected="'full', 'same' or 'valid'"
        )


def _larger_first(name: str, x: Value, y: Value, along: Sequence[int]) -> tuple[Value, Value]:
    if all(x.shape[d] >= y.shape[d] for d in along):
        return x, y
    if all(x.shape[d] <= y.shape[d] for d in along):
        return y, x
    raise errors.ValueMismatchError(
        f"{name}: one array has to be the larger one in every dimension", got=f"{x.type}, {y.type}"
    )


def _direct(in1: ArrayLike, in2: ArrayLike, mode: str, precision: PrecisionLike) -> Value:
    _check_mode("convolve", mode)
    x, y = inexact_operands("convolve", in1, in2)
    if x.ndim != y.ndim:
        raise errors.ValueMismatchError(
            "convolve needs arrays of as many dimensions", got=f"{x.type}, {y.type}"
        )
    if not x.size or not y.size:
        raise errors.ValueMismatchError("convolve needs elements", got=f"{x.type}, {y.type}")
    given = y.shape
    x, y = _larger_first("convolve", x, y, range(x.ndim))
    if mode == "full":
        padding = [(n - 1, n - 1) for n in y.shape]
    elif mode == "same":
        # In the size of the first array, even when that is the smaller one.
        padding = [(n - 1 - (m - 1) // 2, n - m + (m - 1) // 2) for n, m in zip(y.shape, given, strict=True)]
    else:
        padding = [(0, 0)] * x.ndim
    if not x.ndim:
        return x * y
    found = convolution.conv_general_dilated(
        x[None, None], inp.flip(y)[None, None], (1,) * x.ndim, padding, precision=precision
    )
    return inp.squeeze(found, (0, 1))
