"""Parts of complex numbers and whether numbers are real, with NumPy's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from infini.core import dtypes, trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy._promotion import ArrayLike, as_value, constant, inexact_operands, with_weak


def real(val: ArrayLike, /) -> Value:
    """Real part; real arrays are returned as they are."""
    value = as_value("real", val)
    return trace.bind1(e.real_p, value) if value.dtype in dtypes.COMPLEX else value


def imag(val: ArrayLike, /) -> Value:
    """Imaginary part; zeros for real arrays."""
    value = as_value("imag", val)
    if value.dtype in dtypes.COMPLEX:
        return trace.bind1(e.imag_p, value)
    return constant(0, value.dtype, value.shape, value.weak)


def conj(x: ArrayLike, /) -> Value:
    """Complex conjugate; real arrays are returned as they are."""
    value = as_value("conj", x)
    return trace.bind1(e.conj_p, value) if value.dtype in dtypes.COMPLEX else value


conjugate = conj


def angle(z: ArrayLike, deg: bool = False) -> Value:
    """Angle of complex numbers, between -pi and pi, as `numpy.angle`; inexact.

    Args:
        z: complex or real numbers.
        deg: degrees in place of radians.
    """
    (value,) = inexact_operands("angle", z)
    result = with_weak(trace.bind1(e.atan2_p, imag(value), real(value)), False)
    return bind_scalars(e.mul_p, result, 180 / np.pi) if deg else result


def isreal(x: ArrayLike) -> Value:
    """Whether the imaginary part of each element is zero."""
    return trace.bind1(e.not_p, iscomplex(x))


def iscomplex(x: ArrayLike) -> Value:
    """Whether the imaginary part of each element is not zero."""
    value = as_value("iscomplex", x)
    if value.dtype in dtypes.COMPLEX:
        return bind_scalars(e.ne_p, trace.bind1(e.imag_p, value), 0)
    return constant(False, dtypes.bool_, value.shape)


def iscomplexobj(x: Any) -> bool:  # Any: arrays, numbers, and nested sequences of them
    """Whether the dtype of an object is complex, whatever its numbers are."""
    if x is None:
        return False
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return dtype in dtypes.COMPLEX


def isrealobj(x: Any) -> bool:  # Any: as iscomplexobj
    """Whether the dtype of an object is not complex."""
    return not iscomplexobj(x)
