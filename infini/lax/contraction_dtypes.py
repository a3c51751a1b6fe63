"""Dtypes of contractions and convolutions: of the result, and what operands are converted to on the way.

Operands may differ: the result has the dtype that XLA ranks higher, complex before floats before integers,
then by range and precision. Floats stay as narrow as they are until they are multiplied.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e


def _rank_of(dtype: np.dtype) -> tuple[bool, int, int, int, bool]:
    """What decides which of two dtypes a contraction results in, as XLA ranks them."""
    part = np.dtype(f"float{dtype.itemsize * 4}") if dtype in dtypes.COMPLEX else dtype
    is_float = part in dtypes.FLOATS
    found = ml_dtypes.finfo(part) if is_float else None  # type: ignore[no-untyped-call]  # no types
    width = 1 if part == dtypes.bool_ else part.itemsize * 8
    return (
        dtype in dtypes.COMPLEX,
        int(found.maxexp) if found is not None else -1,
        int(found.nmant) if found is not None else -1,
        width,
        part not in dtypes.UNSIGNED,
    )


def joint(name: str, left: Value, right: Value) -> np.dtype:
    """Dtype that a contraction of two operands has when nothing else is asked for.

    Raises:
        TypeMismatchError: neither dtype can stand for the other.
    """
    ranks = _rank_of(left.dtype), _rank_of(right.dtype)
    if ranks[0] == ranks[1] and left.dtype != right.dtype:
        raise errors.TypeMismatchError(
            f"{name}: neither dtype holds the other", got=f"{left.type}, {right.type}",
            fix="convert one with .astype(...)",
        )  # fmt: skip
    return left.dtype if ranks[0] >= ranks[1] else right.dtype


def preferred(name: str, natural: np.dtype, given: Any, *, is_checked: bool = True) -> np.dtype:
    """Dtype of the result: what the user prefers, else the natural one.

    Raises:
        TypeMismatchError: the preferred dtype is narrower than that of integer or complex operands.
    """
    if given is None:
        return natural
    found = dtypes.canonical(given)
    is_narrower = _rank_of(found)[3] < _rank_of(natural)[3]
    if is_checked and found != natural and natural not in dtypes.FLOATS and is_narrower:
        raise errors.TypeMismatchError(
            f"{name}: preferred_element_type is narrower than the dtype of the operands",
            got=f"preferred_element_type={dtypes.short(found)} for operands of {dtypes.short(natural)}",
            expected=f"{dtypes.short(natural)} or a wider dtype",
        )
    return found


def working(natural: np.dtype, result: np.dtype) -> tuple[np.dtype, np.dtype]:
    """The dtype that operands of unlike dtypes are converted to, and that of the sum, before the result is
    converted to its own.
    """
    if natural == dtypes.bool_:
        return dtypes.int32, dtypes.int32
    if natural in dtypes.INTEGERS:
        if result in dtypes.INTEGERS:
            return result, result
        if result in dtypes.FLOATS:
            wide = dtypes.float64 if result == dtypes.float64 else dtypes.float32
            return wide, result
        return natural, natural
    if natural in dtypes.FLOATS and result in dtypes.FLOATS:
        return natural, result if natural.itemsize <= 4 or result == dtypes.float64 else natural
    if natural in dtypes.COMPLEX and result in dtypes.COMPLEX:
        return result, result
    return natural, natural


def prepared(x: Value, natural: np.dtype, operand: np.dtype) -> Value:
    """An operand in a dtype that goes with the other: floats stay as narrow as they are."""
    if x.dtype == natural and (x.dtype == operand or {x.dtype, operand} <= dtypes.INTEGERS):
        return x
    if x.dtype in dtypes.FLOATS and operand in dtypes.FLOATS:
        return x
    return e.convert_element_type(x, operand)
