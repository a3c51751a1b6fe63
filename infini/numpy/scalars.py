"""Names of dtypes and constants. A name such as `float32` is a dtype wherever one is expected, and makes
arrays when called."""

from __future__ import annotations

import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini.core import dtypes
from infini.core.value import Value
from infini.numpy import creation
from infini.numpy._promotion import ArrayLike, DTypeLike


class ScalarType:
    """A dtype by name: `float32` is accepted as a dtype, `float32(1)` is an array of that dtype, never
    weak."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __call__(self, x: ArrayLike = 0) -> Value:
        return creation.asarray(x, dtype=self.dtype)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ScalarType):
            return self.dtype == other.dtype
        return isinstance(other, (np.dtype, type, str)) and self.dtype == other

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __repr__(self) -> str:
        return f"infini.numpy.{self.dtype.name}"


bool_: Final = ScalarType(dtypes.bool_)
int8: Final = ScalarType(dtypes.int8)
int16: Final = ScalarType(dtypes.int16)
int32: Final = ScalarType(dtypes.int32)
int64: Final = ScalarType(dtypes.int64)
uint8: Final = ScalarType(dtypes.uint8)
uint16: Final = ScalarType(dtypes.uint16)
uint32: Final = ScalarType(dtypes.uint32)
uint64: Final = ScalarType(dtypes.uint64)
float16: Final = ScalarType(dtypes.float16)
bfloat16: Final = ScalarType(dtypes.bfloat16)
float32: Final = ScalarType(dtypes.float32)
float64: Final = ScalarType(dtypes.float64)
float8_e4m3fn: Final = ScalarType(dtypes.float8_e4m3fn)
float8_e5m2: Final = ScalarType(dtypes.float8_e5m2)
complex64: Final = ScalarType(dtypes.complex64)
complex128: Final = ScalarType(dtypes.complex128)
int_: Final = int32
uint: Final = uint32
float_: Final = float32
complex_: Final = complex64
single: Final = float32
double: Final = float64
csingle: Final = complex64
cdouble: Final = complex128

pi: Final = math.pi
e: Final = math.e
euler_gamma: Final = float(np.euler_gamma)
inf: Final = math.inf
nan: Final = math.nan
newaxis: Final = None


def dtype(x: DTypeLike) -> np.dtype:
    """The supported dtype that a name, scalar type or dtype stands for, as `numpy.dtype`."""
    return dtypes.canonical(x)


def finfo(dtype: DTypeLike) -> Any:  # Any: numpy's or ml_dtypes' finfo
    """Limits of a floating dtype, as `numpy.finfo`; of an array, those of its dtype."""
    return ml_dtypes.finfo(dtype.dtype if isinstance(dtype, Value) else dtypes.canonical(dtype))


def iinfo(dtype: DTypeLike) -> np.iinfo:
    """Limits of an integer dtype, as `numpy.iinfo`."""
    return np.iinfo(dtype.dtype if isinstance(dtype, Value) else dtypes.canonical(dtype))


KINDS: Final = {
    "bool": frozenset({dtypes.bool_}),
    "signed integer": dtypes.SIGNED,
    "unsigned integer": dtypes.UNSIGNED,
    "integral": dtypes.INTEGERS,
    "real floating": dtypes.FLOATS,
    "complex floating": dtypes.COMPLEX,
    "numeric": dtypes.NUMERIC,
}
_ABSTRACT: Final = {
    np.generic: dtypes.ALL,
    np.number: dtypes.NUMERIC,
    np.integer: dtypes.INTEGERS,
    np.signedinteger: dtypes.SIGNED,
    np.unsignedinteger: dtypes.UNSIGNED,
    np.inexact: dtypes.INEXACT,
    np.floating: dtypes.FLOATS,
    np.complexfloating: dtypes.COMPLEX,
}
generic, number, integer, inexact = np.generic, np.number, np.integer, np.inexact
signedinteger, unsignedinteger = np.signedinteger, np.unsignedinteger
floating, complexfloating = np.floating, np.complexfloating
flexible, character, object_ = np.flexible, np.character, np.object_


def issubdtype(arg1: DTypeLike, arg2: DTypeLike) -> bool:
    """Whether a dtype is another one or belongs to an abstract class such as `floating`; bfloat16 is
    floating. Typed keys are of the kinds `dtypes.prng_key` and `dtypes.extended`."""
    is_extended = isinstance(arg1, dtypes.ExtendedDType) or arg1 in (dtypes.extended, dtypes.prng_key)
    if is_extended or arg2 in (dtypes.extended, dtypes.prng_key):
        return is_extended and (arg2 in (dtypes.extended, dtypes.prng_key, np.generic) or arg1 == arg2)
    group = _ABSTRACT.get(arg2) if isinstance(arg2, type) else None
    found = dtypes.canonical(arg1)
    return found in group if group is not None else found == dtypes.canonical(arg2)


def isdtype(dtype: DTypeLike, kind: Any) -> bool:  # Any: a dtype, a kind, or a tuple of them
    """Whether a dtype is of a kind of the array API standard, such as `real floating`."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, one) for one in kind)
    found = dtypes.canonical(dtype)
    return (
        found in KINDS[kind] if isinstance(kind, str) and kind in KINDS else found == dtypes.canonical(kind)
    )


def can_cast(from_: DTypeLike, to: DTypeLike, casting: str = "safe") -> bool:
    """Whether a dtype converts to another under a rule (`no equiv safe same_kind unsafe`), as in NumPy."""
    source, target = dtypes.canonical(getattr(from_, "dtype", from_)), dtypes.canonical(to)
    return bool(np.can_cast(source, target, casting))  # type: ignore[arg-type]  # NumPy says what it accepts


def isscalar(element: Any) -> bool:  # Any: anything
    """Whether something is a number, a string, or an array without dimensions."""
    return bool(np.isscalar(element)) or (isinstance(element, (Value, np.ndarray)) and element.ndim == 0)


def iterable(y: Any) -> bool:  # Any: anything
    """Whether something can be iterated over; an array without dimensions cannot."""
    try:
        iter(y)
    except TypeError:
        return False
    return True
