"""Data types: the table of short names, classes of dtypes, and JAX's promotion lattice with weak types.

A dtype is a `numpy.dtype`; the small floats come from ml_dtypes. A value is *weak* when it came from a
Python scalar; weak
values take the dtype of what they meet within their kind. Source: https://docs.jax.dev/en/latest/type_promotion.html
"""

from __future__ import annotations

import functools
from typing import Final, TypeAlias

import ml_dtypes
import numpy as np

from infini.core import errors

DType: TypeAlias = np.dtype

bool_: Final = np.dtype(np.bool_)
int8, int16, int32, int64 = (np.dtype(f"int{bits}") for bits in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64))
float16, float32, float64 = (np.dtype(f"float{bits}") for bits in (16, 32, 64))
bfloat16: Final = np.dtype(ml_dtypes.bfloat16)
float8_e4m3fn: Final = np.dtype(ml_dtypes.float8_e4m3fn)
float8_e5m2: Final = np.dtype(ml_dtypes.float8_e5m2)
complex64, complex128 = np.dtype("complex64"), np.dtype("complex128")
# What tangents of integers and booleans are made of: nothing. NumPy arrays of it stand for symbolic zeros.
float0: Final = np.dtype([("float0", np.void, 0)])


class extended(np.generic):  # noqa: N801  # JAX's name
    """The kind of dtypes that are not numbers."""


class prng_key(extended):  # noqa: N801  # JAX's name
    """The kind of the dtype of typed keys."""


class ExtendedDType:
    """Base of dtypes that are not numbers, such as that of typed keys."""

    __slots__ = ()


SHORT_NAMES: Final[dict[np.dtype, str]] = {
    bool_: "bool",
    int8: "i8",
    int16: "i16",
    int32: "i32",
    int64: "i64",
    uint8: "u8",
    uint16: "u16",
    uint32: "u32",
    uint64: "u64",
    float16: "f16",
    bfloat16: "bf16",
    float32: "f32",
    float64: "f64",
    float8_e4m3fn: "f8e4m3fn",
    float8_e5m2: "f8e5m2",
    complex64: "c64",
    complex128: "c128",
}
BY_SHORT_NAME: Final[dict[str, np.dtype]] = {name: dtype for dtype, name in SHORT_NAMES.items()}

SIGNED: Final[frozenset[np.dtype]] = frozenset({int8, int16, int32, int64})
UNSIGNED: Final[frozenset[np.dtype]] = frozenset({uint8, uint16, uint32, uint64})
INTEGERS: Final[frozenset[np.dtype]] = SIGNED | UNSIGNED
FLOATS: Final[frozenset[np.dtype]] = frozenset(
    {float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2}
)
COMPLEX: Final[frozenset[np.dtype]] = frozenset({complex64, complex128})
INEXACT: Final[frozenset[np.dtype]] = FLOATS | COMPLEX
NUMERIC: Final[frozenset[np.dtype]] = INTEGERS | INEXACT
ALL: Final[frozenset[np.dtype]] = NUMERIC | {bool_}

# JAX's promotion lattice: each node and what lies directly above it. A trailing star marks the weak
# scalar kinds.
_ABOVE: Final[dict[str, tuple[str, ...]]] = {
    "bool": ("i*",),
    "i*": ("u8", "i8"),
    "u8": ("i16", "u16"),
    "u16": ("i32", "u32"),
    "u32": ("i64", "u64"),
    "u64": ("f*",),
    "i8": ("i16",),
    "i16": ("i32",),
    "i32": ("i64",),
    "i64": ("f*",),
    "f*": ("bf16", "f16", "f8e4m3fn", "f8e5m2", "c*"),
    "bf16": ("f32",),
    "f16": ("f32",),
    "f8e4m3fn": (),
    "f8e5m2": (),
    "f32": ("f64", "c64"),
    "f64": ("c128",),
    "c*": ("c64",),
    "c64": ("c128",),
    "c128": (),
}
_WEAK_DTYPE: Final = {"i*": int32, "f*": float32, "c*": complex64}


def canonical(dtype: object) -> np.dtype:
    """The supported dtype that `dtype` (a name, scalar type or dtype) stands for.

    Raises:
        TypeMismatchError: `dtype` is nothing infini computes with (strings, objects, dates, float128).
    """
    if isinstance(dtype, str) and dtype in BY_SHORT_NAME:
        return BY_SHORT_NAME[dtype]
    if dtype is bool:
        return bool_
    if dtype is int:
        return int32
    if dtype is float:
        return float32
    if dtype is complex:
        return complex64
    try:
        result = np.dtype(dtype)  # type: ignore[call-overload]  # any object is asked, NumPy says no
    except TypeError:
        result = None
    if result is not None and result not in ALL and result.newbyteorder("=") in ALL:
        result = result.newbyteorder("=")
    if result is None or result not in ALL:
        raise errors.TypeMismatchError(
            f"{dtype!r} is not a dtype infini computes with",
            expected="one of " + ", ".join(d.name for d in SHORT_NAMES),
            fix="convert the data to one of these first, for example with numpy.asarray(x).astype(...)",
        )
    return result


def short(dtype: np.dtype) -> str:
    """Short name used in printed types, such as `f32`."""
    return SHORT_NAMES[dtype]


def is_float(dtype: np.dtype) -> bool:
    """Real floating point, the small floats of ml_dtypes included."""
    return dtype in FLOATS


def is_inexact(dtype: np.dtype) -> bool:
    """Floating or complex: the dtypes that have derivatives."""
    return dtype in INEXACT


def is_integer(dtype: np.dtype) -> bool:
    """Signed or unsigned integers; bool is not one."""
    return dtype in INTEGERS


def epsilon(dtype: np.dtype) -> float:
    """Distance from 1 to the next number of a floating dtype, or of the parts of a complex one."""
    part = {complex64: float32, complex128: float64}.get(dtype, dtype)
    return float(ml_dtypes.finfo(part).eps)  # type: ignore[no-untyped-call]  # ml_dtypes has no types


@functools.cache
def _ancestors(node: str) -> frozenset[str]:
    return frozenset({node}).union(*(_ancestors(above) for above in _ABOVE[node]))


@functools.cache
def _join(first: str, second: str) -> str | None:
    common = _ancestors(first) & _ancestors(second)
    for node in common:
        if common <= _ancestors(node):
            return node
    return None


def _node(dtype: np.dtype, weak: bool) -> str:
    if weak and dtype != bool_:
        return "i*" if dtype in INTEGERS else "f*" if dtype in FLOATS else "c*"
    return SHORT_NAMES[dtype]


@functools.cache
def promote(operands: tuple[tuple[np.dtype, bool], ...]) -> tuple[np.dtype, bool]:
    """Common (dtype, weak) of operands given as (dtype, weak), by JAX's lattice.

    Raises:
        PromotionError: there is none, as for the 8-bit floats with other floats.
    """
    nodes = [_node(dtype, weak) for dtype, weak in operands]
    result: str | None = nodes[0]
    for node in nodes[1:]:
        result = _join(result, node) if result else None
    if result is None:
        raise errors.PromotionError(
            "these dtypes have no common type",
            got=", ".join(SHORT_NAMES[dtype] for dtype, _ in operands),
            expected="dtypes that promote implicitly; the 8-bit floats do not",
            fix="convert one operand explicitly with .astype(...)",
        )
    if result in _WEAK_DTYPE:
        return _WEAK_DTYPE[result], True
    dtype = BY_SHORT_NAME[result]
    return dtype, all(weak for _, weak in operands)


_PYTHON_TYPES: Final[dict[object, np.dtype]] = {
    bool: bool_,
    int: int32,
    float: float32,
    complex: complex64,
}


def canonicalize_dtype(dtype: object, allow_extended_dtype: bool = False) -> np.dtype | ExtendedDType:
    """The dtype that something stands for; 64 bits stay, since infini has them without a flag.

    Args:
        dtype: a dtype, its name, or one of Python's types, which become the 32-bit defaults.
        allow_extended_dtype: take dtypes that are not numbers, and give them back.

    Example:
        >>> import infini
        >>> infini.dtypes.canonicalize_dtype(float)
        dtype('float32')
    """
    if isinstance(dtype, ExtendedDType) and allow_extended_dtype:
        return dtype
    return _PYTHON_TYPES[dtype] if isinstance(dtype, type) and dtype in _PYTHON_TYPES else canonical(dtype)


def itemsize_bits(dtype: object) -> int:
    """Bits of one element."""
    return 8 * canonical(dtype).itemsize


def scalar_type_of(x: object) -> type:
    """Python's type of the elements of something: `bool`, `int`, `float` or `complex`."""
    kind = canonical(getattr(x, "dtype", type(x)))
    return next(
        (t for t, group in ((bool, {bool_}), (int, INTEGERS), (float, FLOATS)) if kind in group), complex
    )
