"""Operands of the functions of this folder: matrices in a floating dtype."""

from __future__ import annotations

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.numpy._promotion import ArrayLike, inexact_operands


def inexact(name: str, x: ArrayLike) -> Value:
    """An operand in a floating dtype."""
    (value,) = inexact_operands(name, x)
    return value


def matrix(name: str, x: ArrayLike) -> Value:
    """An operand in a floating dtype with at least two dimensions.

    Raises:
        TypeMismatchError: it has fewer.
    """
    value = inexact(name, x)
    if value.ndim < 2:
        raise errors.TypeMismatchError(
            f"{name} needs a matrix", got=str(value.type), expected="at least 2 dimensions"
        )
    return value


def square(name: str, x: ArrayLike) -> Value:
    """As `matrix`, with as many rows as columns.

    Raises:
        ValueMismatchError: the last two dimensions differ, or there are fewer than two.
    """
    value = inexact(name, x)
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        raise errors.ValueMismatchError(
            f"{name} needs square matrices", got=str(value.type), expected="shape (..., n, n)"
        )
    return value


def turned(x: Value) -> Value:
    """Rows and columns exchanged."""
    return view.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def conj(x: Value) -> Value:
    """The conjugate; real numbers as they are."""
    return e.conj(x) if x.dtype in dtypes.COMPLEX else x


def adjoint(x: Value) -> Value:
    """Rows and columns exchanged, and conjugated."""
    return conj(turned(x))


def epsilon(dtype: np.dtype) -> float:
    """Distance from 1 to the next number of a dtype."""
    return float(np.finfo(dtype).eps)
