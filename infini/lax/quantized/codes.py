"""Codes to numbers and back, as programs of basis operations.

Planes of an array (..., N, K) in groups of R numbers, with G = K / R:

    blocks   uint8 (..., N, G, B)   the codes of a group in B = R * bits / 8 bytes
    scales         (..., N, G)
    beside         (..., N, G)      minima or zero points, where the scheme has them

A byte of 4-bit codes holds number i of its group in the low half and number i + R/2 in the high half. A group
of 5-bit codes has 4 bytes with the fifth bits, number i at bit i, and then the low four bits like that.
These are ggml's bytes without the scale in front, which has a plane of its own: it is aligned there, keeps
its dtype, and is split over devices like any array. Groups that are cut into parts have one plane more, for
their sub-scales; see `parts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import elementwise as e, families, positions, reduction, view
from infini.lax.families import bind_scalars
from infini.lax.quantized import arrangement, parts
from infini.lax.quantized.scheme import Scheme

ACTIVATION_GROUP = 32  # activations that are rounded together
_HIGH_BYTES = 4  # bytes of a group that hold the fifth bits of its 32 codes


def dequantize(planes: Sequence[Value], scheme: Scheme, dtype: np.dtype) -> Value:
    """The numbers (..., N, K): computed in float32 and rounded once to `dtype`."""
    if scheme.rows > 1:
        planes = arrangement.plain(planes, scheme)
    if scheme.part:
        return parts.dequantize(planes, scheme, dtype)
    blocks, scales, *beside = planes
    numbers = _codes(blocks, scheme)
    if scheme.center:
        numbers = bind_scalars(e.sub_p, numbers, float(scheme.center))
    if scheme.beside == "zero_point":
        numbers = bind_scalars(e.sub_p, numbers, _per_number(beside[0]))
    numbers = bind_scalars(e.mul_p, numbers, _per_number(scales))
    if scheme.beside == "minimum":
        numbers = bind_scalars(e.add_p, numbers, _per_number(beside[0]))
    rows = (*numbers.shape[:-2], math.prod(numbers.shape[-2:]))
    return e.convert_element_type(view.reshape(numbers, rows), dtype)


def quantize(x: Value, scheme: Scheme) -> tuple[Value, ...]:
    """The planes of floats (..., N, K); the group of `scheme` divides K."""
    assert scheme.group is not None
    wide = e.convert_element_type(x, dtypes.float32)
    groups = view.reshape(wide, (*x.shape[:-1], x.shape[-1] // scheme.group, scheme.group))
    if scheme.part:
        return parts.quantize(groups, scheme)
    if scheme.beside == "minimum":
        return _with_minima(groups, scheme)
    if scheme.beside == "zero_point":
        return _with_zero_points(groups, scheme)
    return _signed(groups, scheme) if scheme.bits == 8 else _symmetric(groups, scheme)


def rounded(x: Value) -> Value:
    """Activations (..., K) as bytes see them, in float32: each 32 neighbours as whole numbers up to 127 times
    a scale.
    """
    wide, k = e.convert_element_type(x, dtypes.float32), x.shape[-1]
    missing = -k % ACTIVATION_GROUP
    if missing:
        zeros = families.zeros(ArrayType((*x.shape[:-1], missing), dtypes.float32))
        wide = view.concatenate([wide, zeros], x.ndim - 1)
    size = (k + missing) // ACTIVATION_GROUP
    groups = view.reshape(wide, (*x.shape[:-1], size, ACTIVATION_GROUP))
    largest = _reduced(reduction.reduce_max_p, e.abs(groups))
    whole = e.round(_scaled(groups, bind_scalars(e.div_p, largest, 127.0)), e.RoundingMethod.TO_NEAREST_EVEN)
    found = bind_scalars(e.mul_p, whole, _per_number(bind_scalars(e.div_p, largest, 127.0)))
    found = view.reshape(found, (*x.shape[:-1], k + missing))
    return view.slice_in_dim(found, 0, k, axis=x.ndim - 1) if missing else found


# --- codes ------------------------------------------------------------------------------------


def _codes(blocks: Value, scheme: Scheme) -> Value:
    """Codes (..., G, R) as float32."""
    if scheme.bits == 8:
        return e.convert_element_type(e.bitcast_convert_type(blocks, dtypes.int8), dtypes.float32)
    if scheme.bits == 4:
        return e.convert_element_type(_parts(blocks, 2, 4), dtypes.float32)
    axis, width = blocks.ndim - 1, blocks.shape[-1]
    low = _parts(view.slice_in_dim(blocks, _HIGH_BYTES, width, axis=axis), 2, 4)
    high = _parts(view.slice_in_dim(blocks, 0, _HIGH_BYTES, axis=axis), 8, 1, is_minor=True)
    codes = bind_scalars(e.or_p, low, bind_scalars(e.shift_left_p, high, 4))
    return e.convert_element_type(codes, dtypes.float32)


def _parts(x: Value, count: int, bits: int, *, is_minor: bool = False) -> Value:
    """The `count` parts of each byte: all first parts, then all second ones ...; byte after byte when
    `is_minor`.
    """
    shape = (*x.shape, 1) if is_minor else (*x.shape[:-1], 1, x.shape[-1])
    shifts = bind_scalars(e.mul_p, view.iota(dtypes.uint8, count), bits)
    if not is_minor:
        shifts = view.reshape(shifts, (count, 1))
    parts = bind_scalars(e.shift_right_logical_p, view.reshape(x, shape), shifts)
    parts = bind_scalars(e.and_p, parts, (1 << bits) - 1)
    return view.reshape(parts, (*x.shape[:-1], count * x.shape[-1]))


def _packed(codes: Value, scheme: Scheme) -> Value:
    """Bytes of unsigned codes (..., G, R), which are whole float32 numbers."""
    # By way of int32: a float below zero or of more than 255 has no uint8.
    small = e.convert_element_type(e.convert_element_type(codes, dtypes.int32), dtypes.uint8)
    axis, half = small.ndim - 1, small.shape[-1] // 2
    first = bind_scalars(e.and_p, view.slice_in_dim(small, 0, half, axis=axis), 15)
    second = bind_scalars(e.shift_left_p, view.slice_in_dim(small, half, 2 * half, axis=axis), 4)
    low = bind_scalars(e.or_p, first, second)
    if scheme.bits == 4:
        return low
    bits = bind_scalars(e.shift_right_logical_p, small, 4)
    bits = view.reshape(bits, (*small.shape[:-1], _HIGH_BYTES, 8))
    bits = bind_scalars(e.shift_left_p, bits, view.iota(dtypes.uint8, 8))
    # The eight bits lie in different places, so their sum is their union.
    high = reduction.reduce_sum(bits, (bits.ndim - 1,))
    return view.concatenate([high, low], axis)


# --- scales -----------------------------------------------------------------------------------


def _signed(groups: Value, scheme: Scheme) -> tuple[Value, ...]:
    exact = bind_scalars(e.div_p, _reduced(reduction.reduce_max_p, e.abs(groups)), 127.0)
    scales = e.convert_element_type(exact, scheme.scale_dtype)
    if scheme.is_ggml:
        # ggml divides by the scale as it was before it is rounded to 16 bits.
        codes = e.round(_scaled(groups, exact), e.RoundingMethod.AWAY_FROM_ZERO)
    else:
        codes = _nearest(groups, scales)
    codes = e.convert_element_type(e.clamp(-127.0, codes, 127.0), dtypes.int8)
    return e.bitcast_convert_type(codes, dtypes.uint8), scales


def _symmetric(groups: Value, scheme: Scheme) -> tuple[Value, ...]:
    top = float(2 * scheme.center - 1)
    if scheme.is_ggml:
        # The number of the largest magnitude, the first of them, gets the code 0: there is one code more
        # below the center than above it.
        exact = bind_scalars(e.div_p, _largest(groups), float(-scheme.center))
        scales = e.convert_element_type(exact, scheme.scale_dtype)
        codes = _truncated(_scaled(groups, exact), scheme.center + 0.5)
    else:
        largest = _reduced(reduction.reduce_max_p, e.abs(groups))
        exact = bind_scalars(e.div_p, largest, float(scheme.center - 1))
        scales = e.convert_element_type(exact, scheme.scale_dtype)
        codes = bind_scalars(e.add_p, _nearest(groups, scales), float(scheme.center))
    return _packed(e.clamp(0.0, codes, top), scheme), scales


def _with_minima(groups: Value, scheme: Scheme) -> tuple[Value, ...]:
    top = float((1 << scheme.bits) - 1)
    low, high = (_reduced(op, groups) for op in (reduction.reduce_min_p, reduction.reduce_max_p))
    exact = bind_scalars(e.div_p, e.sub(high, low), top)
    from_low = bind_scalars(e.sub_p, groups, _per_number(low))
    codes = e.clamp(0.0, _truncated(_scaled(from_low, exact), 0.5), top)
    scales, minima = (e.convert_element_type(v, scheme.scale_dtype) for v in (exact, low))
    return _packed(codes, scheme), scales, minima


def _with_zero_points(groups: Value, scheme: Scheme) -> tuple[Value, ...]:
    top = float((1 << scheme.bits) - 1)
    # Zero is among the numbers, so that it is stored exactly.
    low = bind_scalars(e.min_p, _reduced(reduction.reduce_min_p, groups), 0.0)
    high = bind_scalars(e.max_p, _reduced(reduction.reduce_max_p, groups), 0.0)
    scales = e.convert_element_type(bind_scalars(e.div_p, e.sub(high, low), top), scheme.scale_dtype)
    zero = _nearest(view.expand_dims(e.neg(low), (low.ndim,)), scales)
    zero = e.clamp(0.0, view.squeeze(zero, (low.ndim,)), top)
    codes = bind_scalars(e.add_p, _nearest(groups, scales), _per_number(zero))
    points = e.convert_element_type(zero, dtypes.uint8)
    return _packed(e.clamp(0.0, codes, top), scheme), scales, points


def _per_number(x: Value) -> Value:
    """One number per group as float32, with a dimension for the numbers of the group."""
    return view.expand_dims(e.convert_element_type(x, dtypes.float32), (x.ndim,))


def _reduced(op: primitive.Primitive, x: Value) -> Value:
    return trace.bind1(op, x, axes=(-1,))


def _largest(groups: Value) -> Value:
    """The first number of the largest magnitude of each group, with its sign."""
    where = positions.argmax(e.abs(groups), groups.ndim - 1, dtypes.int32)
    line = view.iota(dtypes.int32, groups.shape[-1])
    is_there = bind_scalars(e.eq_p, line, view.expand_dims(where, (where.ndim,)))
    nothing = families.full(ArrayType(groups.shape, groups.dtype), -math.inf)
    return _reduced(reduction.reduce_max_p, trace.bind1(e.select_n_p, is_there, nothing, groups))


def _scaled(groups: Value, scales: Value) -> Value:
    """Numbers times one over the scale of their group; zero where a scale is too small to have that."""
    inverse = bind_scalars(e.div_p, families.full(scales.type, 1), scales)
    zero = families.zeros(scales.type)
    inverse = trace.bind1(e.select_n_p, e.is_finite(inverse), zero, inverse)
    return bind_scalars(e.mul_p, groups, _per_number(inverse))


def _nearest(groups: Value, scales: Value) -> Value:
    """Numbers by the scale of their group as it is stored, rounded to whole ones, halves to even."""
    wide = _per_number(scales)
    one = families.full(wide.type, 1)
    is_zero = bind_scalars(e.eq_p, wide, 0.0)
    ratio = bind_scalars(e.div_p, groups, trace.bind1(e.select_n_p, is_zero, wide, one))
    return e.round(ratio, e.RoundingMethod.TO_NEAREST_EVEN)


def _truncated(x: Value, shift: float) -> Value:
    """`x + shift` without its fraction, for results that are not negative."""
    return e.floor(bind_scalars(e.add_p, x, shift))
