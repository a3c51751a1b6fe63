"""What all transforms of this folder are: axes moved to the end, sizes cut or padded, `lax.fft`, a factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from infini.core import errors
from infini.core.value import Value
from infini.lax import view
from infini.lax.fft import MAX_RANK, FftType, fft
from infini.numpy import _axes, manipulation
from infini.numpy._promotion import ArrayLike, as_value, convert

Norm = str | None  # "backward", "ortho", "forward", or None, which is "backward"
_NORMS: Final = ("backward", "ortho", "forward")
_OUTER: Final = {
    FftType.FFT: FftType.FFT,
    FftType.RFFT: FftType.FFT,
    FftType.IFFT: FftType.IFFT,
    FftType.IRFFT: FftType.IFFT,
}


def transform(
    name: str,
    fft_type: FftType,
    a: ArrayLike,
    s: Sequence[int] | None,
    axes: Sequence[int] | None,
    norm: Norm,
    *,
    direction: Literal["forward", "inverse"],
) -> Value:
    """A transform along some axes.

    Args:
        name: of the function, for errors.
        fft_type: what to compute.
        a: operand.
        s: size of the result along each axis, of a half spectrum that of the real numbers; those of the
            operand when absent.
        axes: which; the last `len(s)` ones, or all of them, when absent. Along the last one a spectrum is
            half.
        norm: which direction divides by the number of elements: "forward", "backward", or "ortho" for both by
            its root.
        direction: which of the two the function is.

    Raises:
        ValueMismatchError: a size is not positive, sizes and axes differ in number, an axis occurs twice, or
            there is no such norm.
    """
    value = as_value(name, a)
    sizes = None if s is None else _sizes(name, s)
    if sizes is not None and axes is not None and len(sizes) != len(axes):
        raise errors.ValueMismatchError(
            f"{name} needs one size for each axis", got=f"s={tuple(sizes)}, axes={tuple(axes)}"
        )
    places = _places(name, value, sizes, axes)
    rank = len(places)
    last = tuple(range(value.ndim - rank, value.ndim))
    value = manipulation.moveaxis(value, places, last)
    if sizes is None:
        sizes = list(value.shape[value.ndim - rank :])
        if rank and fft_type is FftType.IRFFT:
            sizes[-1] = max(0, 2 * (sizes[-1] - 1))
            value = _fitted(value, sizes, is_half=True)  # of one number none is left
    else:
        value = _fitted(value, sizes, is_half=fft_type is FftType.IRFFT)
    result = _transformed(value, fft_type, tuple(sizes))
    factor = _factor(name, norm, math.prod(sizes), is_inverse=direction == "inverse")
    if factor is not None:
        result = result * factor
    return manipulation.moveaxis(result, last, places)


def _sizes(name: str, s: Sequence[int]) -> list[int]:
    sizes = [_axes.integer(name, "a size", n) for n in s]
    if any(n <= 0 for n in sizes):
        raise errors.ValueMismatchError(f"{name}: sizes have to be positive", got=str(tuple(s)))
    return sizes


def _places(
    name: str, value: Value, sizes: Sequence[int] | None, axes: Sequence[int] | None
) -> tuple[int, ...]:
    if axes is None:
        rank = value.ndim if sizes is None else len(sizes)
        if rank > value.ndim:
            raise errors.ValueMismatchError(
                f"{name}: there are more sizes than dimensions", got=f"{value.type}, {rank} sizes"
            )
        return tuple(range(value.ndim - rank, value.ndim))
    places = tuple(_axes.one(name, axis, value.ndim) for axis in axes)
    if len(set(places)) != len(places):
        raise errors.ValueMismatchError(
            f"{name} transforms an axis once",
            got=f"axes={tuple(axes)}",
            fix="call it again for a second transform along the same axis",
        )
    return places


def _fitted(x: Value, sizes: Sequence[int], *, is_half: bool) -> Value:
    """The last dimensions cut, or padded with zeros, to sizes; the last one to the half that goes with it."""
    wanted = [*x.shape[: x.ndim - len(sizes)], *sizes]
    if is_half and sizes:
        wanted[-1] = wanted[-1] // 2 + 1 if wanted[-1] else 0
    if tuple(wanted) == x.shape:
        return x
    kept = [min(n, m) for n, m in zip(x.shape, wanted, strict=True)]
    x = view.slice(x, (0,) * x.ndim, kept)
    return view.pad(x, convert(0, x.dtype), [(0, m - n, 0) for n, m in zip(kept, wanted, strict=True)])


def _transformed(x: Value, fft_type: FftType, sizes: tuple[int, ...]) -> Value:
    """The transform over the last dimensions, some at a time."""
    if len(sizes) <= MAX_RANK:
        return fft(x, fft_type, sizes)
    outer, inner = sizes[:-MAX_RANK], sizes[-MAX_RANK:]
    first = tuple(range(x.ndim - len(sizes), x.ndim - MAX_RANK))
    last = tuple(range(x.ndim - len(outer), x.ndim))

    def over_outer(y: Value) -> Value:
        moved = manipulation.moveaxis(y, first, last)
        return manipulation.moveaxis(_transformed(moved, _OUTER[fft_type], outer), last, first)

    # The half of a spectrum is made first and taken last.
    if fft_type in (FftType.FFT, FftType.RFFT):
        return over_outer(fft(x, fft_type, inner))
    return fft(over_outer(x), fft_type, inner)


def _factor(name: str, norm: Norm, size: int, *, is_inverse: bool) -> float | None:
    """What `norm` asks for beside the division of inverses by `size`."""
    if norm is not None and norm not in _NORMS:
        raise errors.ValueMismatchError(
            f"{name}: there is no such norm", got=repr(norm), expected=", ".join(map(repr, _NORMS))
        )
    if norm in (None, "backward") or size == 0:
        return None
    divisor = math.sqrt(size) if norm == "ortho" else float(size)
    return divisor if is_inverse else 1.0 / divisor
