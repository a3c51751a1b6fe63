"""Convolution and correlation of sequences, with NumPy's names."""

from __future__ import annotations

from typing import Any, Literal

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import convolution, elementwise as e, precision as precision_, view
from infini.numpy._promotion import ArrayLike, DTypeLike, inexact_operands, operands

Mode = Literal["full", "same", "valid"]


def convolve(
    a: ArrayLike,
    v: ArrayLike,
    mode: Mode = "full",
    *,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Sums of products of one sequence with the other reversed and moved along it, as `numpy.convolve`.

    Args:
        a: sequence (n,).
        v: sequence (m,).
        mode: `full` for all n + m - 1 places where they meet, `same` for the middle max(n, m) of them,
            `valid` for those where the shorter one lies within the other.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent, floats for integers.

    Raises:
        ValueMismatchError: an operand is no sequence or empty, or there is no such mode.

    Example:
        >>> import infini.numpy as inp
        >>> inp.convolve(inp.asarray([1.0, 2.0, 3.0]), inp.asarray([0.0, 1.0, 0.5]))
        Array([0. , 1. , 2.5, 4. , 1.5], dtype=float32)
    """
    x, y = _sequences("convolve", a, v, preferred_element_type)
    if x.size < y.size:
        x, y = y, x
    return _along("convolve", x, view.rev(y, (0,)), mode, precision, preferred_element_type)


def correlate(
    a: ArrayLike,
    v: ArrayLike,
    mode: Mode = "valid",
    *,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Sums of products of one sequence with the other, conjugated, moved along it, as `numpy.correlate`.

    Args:
        a: sequence (n,).
        v: sequence (m,).
        mode: as for `convolve`.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent, floats for integers.

    Raises:
        ValueMismatchError: an operand is no sequence or empty, or there is no such mode.
    """
    x, y = _sequences("correlate", a, v, preferred_element_type)
    y = e.conj(y) if y.dtype in dtypes.COMPLEX else y
    if x.size >= y.size:
        return _along("correlate", x, y, mode, precision, preferred_element_type)
    return view.rev(_along("correlate", y, x, mode, precision, preferred_element_type), (0,))


def _sequences(name: str, a: ArrayLike, v: ArrayLike, dtype: DTypeLike | None) -> list[Value]:
    found = operands(name, a, v) if dtype is not None else inexact_operands(name, a, v)
    if any(x.ndim != 1 or x.size == 0 for x in found):
        raise errors.ValueMismatchError(
            f"{name} takes two sequences with elements",
            got=", ".join(str(x.type) for x in found),
            expected="arrays of one dimension",
        )
    return found


def _along(
    name: str, x: Value, y: Value, mode: Any, precision: precision_.PrecisionLike, dtype: DTypeLike | None
) -> Value:
    """Products of `y` with each part of the longer `x`."""
    size = y.size
    pads = {"valid": (0, 0), "same": (size // 2, size - size // 2 - 1), "full": (size - 1, size - 1)}
    if mode not in pads:
        raise errors.ValueMismatchError(
            f"{name}: there is no such mode", got=repr(mode), expected="'full', 'same' or 'valid'"
        )
    found = convolution.conv_general_dilated(
        view.reshape(x, (1, 1, x.size)), view.reshape(y, (1, 1, size)), (1,), [pads[mode]],
        precision=precision, preferred_element_type=dtype,
    )  # fmt: skip
    return view.reshape(found, (found.size,))
