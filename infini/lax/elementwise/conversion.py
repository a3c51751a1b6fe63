"""Conversion between dtypes: of values, of bits; and values that derivatives take for constants."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive
from infini.core.value import Literal, Value
from infini.lax import places as places_
from infini.lax.cases import Case, Cases, Sample, Span, always
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import PerElement, elementwise

_IN_ALL = Span(0.0, 100.0)  # numbers that every dtype holds, more or less
_WITH_ENDS = Span(
    -300.0, 300.0, (np.nan, np.inf, -np.inf, 1e9, -1e9, 0.5, -0.5, 1.5, -0.0, 464.0, 465.0, 1e-3)
)


# --- values -----------------------------------------------------------------------------------


def _reference_convert(x: np.ndarray, *, new_dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        if x.dtype in dtypes.COMPLEX and new_dtype in t.REAL:
            x = x.real
        if new_dtype in dtypes.INTEGERS and x.dtype in dtypes.FLOATS:
            return _saturated(x.astype(np.float64), new_dtype)
        if new_dtype == dtypes.bool_:
            return np.asarray(x != 0)
        if new_dtype == dtypes.float16:
            return x.astype(np.float32).astype(new_dtype)  # in two steps, as every small float
        return x.astype(new_dtype)


def _saturated(x: np.ndarray, new_dtype: np.dtype) -> np.ndarray:
    """Towards zero, saturating, NaN to 0, as XLA does."""
    bounds = np.iinfo(new_dtype)
    whole = np.trunc(np.nan_to_num(x, nan=0.0, posinf=bounds.max, neginf=bounds.min))
    result = np.clip(whole, float(bounds.min), float(bounds.max)).astype(new_dtype)
    result = np.where(whole >= float(bounds.max), np.array(bounds.max, new_dtype), result)
    result = np.where(whole <= float(bounds.min), np.array(bounds.min, new_dtype), result)
    return result.astype(new_dtype)


def _type_convert(x: ArrayType, *, new_dtype: np.dtype) -> tuple[ArrayType, ...]:
    return (x.update(dtype=new_dtype),)


def _cases_convert(dtype: np.dtype) -> list[Case]:
    span = _WITH_ENDS if dtype in dtypes.FLOATS else _IN_ALL
    targets = sorted(dtypes.ALL, key=lambda d: d.name)
    return [
        Case((Sample((3, 7), span=span),), {"new_dtype": new}, "exact", is_smooth=False) for new in targets
    ]


def _jvp_convert(
    primals: Any, tangents: Any, results: Any, *, new_dtype: np.dtype
) -> tuple[Value | None]:  # Any: sequences of values
    if tangents[0] is None or not dtypes.is_inexact(new_dtype):
        return (None,)
    return (trace.bind1(convert_element_type_p, tangents[0], new_dtype=new_dtype),)


def _linear_convert(in_types: places_.Types, out_types: places_.Types, attrs: Attrs) -> places_.Linear:
    """Terms may become wider floats; in narrower ones, or as integers, each would be rounded."""
    before, after = in_types[0].dtype, out_types[0].dtype
    widens = dtypes.is_float(before) and dtypes.is_float(after) and after.itemsize >= before.itemsize
    return places_.alone(0) if widens else ()


convert_element_type_p: Primitive = elementwise(
    "convert_element_type",
    dtypes.ALL,
    _reference_convert,
    type=_type_convert,
    transpose=lambda ct, x, *, new_dtype: (trace.bind1(convert_element_type_p, ct, new_dtype=x.dtype),),
    cost=PerElement(0.5),
    cases=Cases(dtypes.ALL, _cases_convert),
    extra={
        primitive.REFERENCE: _reference_convert,
        primitive.JVP: _jvp_convert,
        primitive.LINEAR: _linear_convert,
        primitive.WEAK: lambda weak, attrs: False,
    },
)


def _settled(x: Value) -> Value:
    """The value with its dtype for good; an array where operations run at once."""
    settled = x.with_weak(False) if x.weak else x
    return trace.to_array(settled) if trace.is_eager() else settled


def convert_element_type(operand: ArrayLike, new_dtype: Any) -> Value:  # Any: what names a dtype
    """`operand` in another dtype.

    Floats become integers towards zero and saturate, NaN becomes 0; integers wrap; numbers round to the
    nearest float, ties to even, and what is too large becomes infinite (NaN in float8_e4m3fn, which has no
    infinities). Complex numbers lose their imaginary part with a `numpy.exceptions.ComplexWarning`.

    Args:
        operand: array of any dtype, or a number.
        new_dtype: dtype of the result.

    Raises:
        TypeMismatchError: `new_dtype` is no dtype, or a complex Python number is to become real.
    """
    target = dtypes.canonical(new_dtype)
    if type(operand) is int:  # of any size, since the target may hold it
        return _settled(Literal(_reference_convert(np.asarray(operand), new_dtype=target), weak=False))
    x = trace.as_value(operand)
    if x.dtype == target:
        return _settled(x)
    if x.dtype in dtypes.COMPLEX and target in t.REAL:
        if type(operand) is complex:
            raise errors.TypeMismatchError(
                "a complex number does not become real by itself", got=repr(operand), fix="take its .real"
            )
        message = "casting complex values to real discards the imaginary part"
        warnings.warn(message, np.exceptions.ComplexWarning, stacklevel=2)
    return trace.bind1(convert_element_type_p, x, new_dtype=target)


# --- bits -------------------------------------------------------------------------------------


def _reference_bitcast(x: np.ndarray, *, new_dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(x.shape).view(new_dtype)


def _type_bitcast(x: ArrayType, *, new_dtype: np.dtype) -> tuple[ArrayType, ...]:
    if x.dtype.itemsize != new_dtype.itemsize:
        raise errors.TypeMismatchError(
            "the operation bitcast_convert_type needs dtypes of equal width",
            got=f"{x} to {dtypes.short(new_dtype)}",
            fix="use lax.bitcast_convert_type, which adds or drops a dimension",
        )
    return (x.update(dtype=new_dtype),)


_HAVE_BITS = dtypes.ALL - dtypes.COMPLEX - {dtypes.bool_}

bitcast_convert_type_p: Primitive = elementwise(
    "bitcast_convert_type",
    _HAVE_BITS,
    _reference_bitcast,
    type=_type_bitcast,
    cost=PerElement(0.0),
    cases=Cases(
        _HAVE_BITS,
        lambda dtype: [
            Case((Sample((3, 7)),), {"new_dtype": new}, "exact", is_smooth=False)
            for new in sorted(_HAVE_BITS, key=lambda d: d.name)
            if new.itemsize == dtype.itemsize
        ],
    ),
    extra={primitive.REFERENCE: _reference_bitcast, primitive.WEAK: lambda weak, attrs: False},
)


def bitcast_convert_type(operand: ArrayLike, new_dtype: Any) -> Value:  # Any: what names a dtype
    """The same bits read as another dtype.

    Args:
        operand: array of integers or floats.
        new_dtype: dtype to read; a narrower one adds a last dimension with the parts of each element, lowest
            bits first, a wider one takes the last dimension for such parts.

    Raises:
        TypeMismatchError: a dtype is bool or complex and the other one differs, or the last dimension does
            not hold the parts of one element.

    Example:
        >>> from infini import lax
        >>> import numpy as np
        >>> lax.bitcast_convert_type(np.uint16(513), np.uint8).tolist()
        [1, 2]
    """
    x, target = trace.as_value(operand), dtypes.canonical(new_dtype)
    if x.dtype == target:
        return _settled(x)
    if x.dtype not in _HAVE_BITS or target not in _HAVE_BITS:
        raise errors.TypeMismatchError(
            "bitcast_convert_type takes no bool or complex numbers",
            got=f"{x.type} to {dtypes.short(target)}",
            expected="integers or floats, or two equal dtypes",
        )
    if x.dtype.itemsize > target.itemsize:
        return _split(x, target)
    if x.dtype.itemsize < target.itemsize:
        return _joined(x, target)
    return t.bitcast(x, target)


def _word(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{dtype.itemsize * 8}")


def _places(wide: np.dtype, narrow: np.dtype) -> np.ndarray:
    return np.arange(0, wide.itemsize * 8, narrow.itemsize * 8).astype(_word(wide))


def _bits(x: Value, dtype: np.dtype) -> Value:
    return x if x.dtype == dtype else t.bitcast(x, dtype)


def _split(x: Value, target: np.dtype) -> Value:
    places = _places(x.dtype, target)
    repeated = trace.bind1(
        primitive.by_name("broadcast_in_dim"),
        _bits(x, _word(x.dtype)),
        shape=(*x.shape, places.size),
        dims=tuple(range(-x.ndim - 1, -1)),
    )
    parts = t.shift_right(repeated, Literal(places, weak=False))
    return _bits(t.convert(parts, _word(target)), target)


def _joined(x: Value, target: np.dtype) -> Value:
    places = _places(target, x.dtype)
    if not x.shape or x.shape[-1] != places.size:
        raise errors.TypeMismatchError(
            "bitcast_convert_type to a wider dtype takes the parts of an element from the last dimension",
            got=f"{x.type} to {dtypes.short(target)}",
            expected=f"a last dimension of {places.size}",
        )
    parts = t.convert(_bits(x, _word(x.dtype)), _word(target))
    moved = t.shift_left(parts, Literal(places, weak=False))
    return _bits(trace.bind1(primitive.by_name("reduce_sum"), moved, axes=(-1,)), target)


# --- stop_gradient ----------------------------------------------------------------------------

stop_gradient_p: Primitive = elementwise(
    "stop_gradient",
    dtypes.ALL,
    lambda x: x,
    decompose=lambda x: (x,),
    cases=always(dtypes.ALL, Case((Sample((3, 7)),), kind="exact", is_smooth=False)),
    extra={primitive.REFERENCE: lambda x: x},
)


def stop_gradient(x: Any) -> Any:  # Any: pytrees
    """The same values, treated as constants by every derivative."""
    return tree.map(lambda leaf: trace.bind1(stop_gradient_p, leaf), x)
