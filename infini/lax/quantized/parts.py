"""Schemes whose groups are cut into parts with sub-scales, ggml's K-quants, as programs of basis operations.

Planes of an array (..., N, K) in groups of 256 numbers:

    blocks       uint8 (..., N, G, B)   the codes of a group
    scales             (..., N, G)
    minima             (..., N, G)      in Q2_K, Q4_K, Q5_K
    sub_scales   uint8 (..., N, G, S)   whole numbers for the parts of the group

The low bits of a group's codes lie in runs of 32 bytes (64 in Q6_K): all lowest parts of the bytes are the
first numbers of the run, then come the next parts. High bits have runs of their own: before the low ones in
Q3_K and Q5_K, one bit for each of eight parts in a byte, and behind them in Q6_K, two bits.

What is stored is ggml's form, https://github.com/ggml-org/ggml; what `quantize` puts there is simpler than
its search: a part's range decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import elementwise as e, families, reduction, view
from infini.lax.families import bind_scalars
from infini.lax.quantized.scheme import Scheme

GROUP = 256


def dequantize(planes: Sequence[Value], scheme: Scheme, dtype: np.dtype) -> Value:
    """The numbers (..., N, K): computed in float32, where every product is exact, and rounded once to
    `dtype`.
    """
    blocks, scales, *minima, sub_scales = planes
    factors, offsets = sub_scales_of(sub_scales, scheme)
    codes = e.convert_element_type(codes_of(blocks, scheme), dtypes.float32)
    shape = (*codes.shape[:-1], GROUP // scheme.part, scheme.part)
    numbers = view.reshape(codes, shape)
    if scheme.center:
        numbers = bind_scalars(e.sub_p, numbers, float(scheme.center))
    numbers = bind_scalars(e.mul_p, numbers, _last(bind_scalars(e.mul_p, _wide(scales), factors)))
    if minima:
        numbers = bind_scalars(e.sub_p, numbers, _last(bind_scalars(e.mul_p, _wide(minima[0]), offsets)))
    rows = (*blocks.shape[:-2], blocks.shape[-2] * GROUP)
    return e.convert_element_type(view.reshape(numbers, rows), dtype)


def quantize(groups: Value, scheme: Scheme) -> tuple[Value, ...]:
    """The planes of float32 (..., N, G, 256)."""
    shape = (*groups.shape[:-1], GROUP // scheme.part, scheme.part)
    x = view.reshape(groups, shape)
    return _with_minima(x, scheme) if scheme.beside else _symmetric(x, scheme)


# --- codes ------------------------------------------------------------------------------------


def codes_of(blocks: Value, scheme: Scheme) -> Value:
    """Codes uint8 (..., G, 256)."""
    match scheme.bits:
        case 2:
            return _split(blocks, 32, 2)
        case 3:
            return _both(_split(_bytes(blocks, 32, 96), 32, 2), _split(_bytes(blocks, 0, 32), 32, 1), 2)
        case 4:
            return _split(blocks, 32, 4)
        case 5:
            return _both(_split(_bytes(blocks, 32, 160), 32, 4), _split(_bytes(blocks, 0, 32), 32, 1), 4)
    return _both(_split(_bytes(blocks, 0, 128), 64, 4), _split(_bytes(blocks, 128, 192), 32, 2), 4)


def _blocks(codes: Value, scheme: Scheme) -> Value:
    """The bytes of codes uint8 (..., G, 256)."""

    def low(bits: int) -> Value:
        return bind_scalars(e.and_p, codes, (1 << bits) - 1)

    def high(bits: int) -> Value:
        return bind_scalars(e.shift_right_logical_p, codes, bits)

    match scheme.bits:
        case 2:
            return _joined(codes, 32, 2)
        case 3:
            return view.concatenate([_joined(high(2), 32, 1), _joined(low(2), 32, 2)], codes.ndim - 1)
        case 4:
            return _joined(codes, 32, 4)
        case 5:
            return view.concatenate([_joined(high(4), 32, 1), _joined(low(4), 32, 4)], codes.ndim - 1)
    return view.concatenate([_joined(low(4), 64, 4), _joined(high(4), 32, 2)], codes.ndim - 1)


def _split(x: Value, width: int, bits: int) -> Value:
    """Runs of `width` bytes as their first parts of so many bits, then their second ones ..."""
    size = x.shape[-1]
    runs = view.reshape(x, (*x.shape[:-1], size // width, 1, width))
    found = bind_scalars(e.shift_right_logical_p, runs, _shifts(bits))
    found = bind_scalars(e.and_p, found, (1 << bits) - 1)
    return view.reshape(found, (*x.shape[:-1], size * 8 // bits))


def _joined(x: Value, width: int, bits: int) -> Value:
    """What `_split` undoes: parts as runs of `width` bytes."""
    count = 8 // bits
    runs = view.reshape(x, (*x.shape[:-1], x.shape[-1] // (width * count), count, width))
    # Parts lie in different places, so their sum is their union.
    found = reduction.reduce_sum(bind_scalars(e.shift_left_p, runs, _shifts(bits)), (runs.ndim - 2,))
    return view.reshape(found, (*x.shape[:-1], x.shape[-1] // count))


def _shifts(bits: int) -> Value:
    count = 8 // bits
    return view.reshape(bind_scalars(e.mul_p, view.iota(dtypes.uint8, count), bits), (count, 1))


def _bytes(x: Value, start: int, stop: int) -> Value:
    return view.slice_in_dim(x, start, stop, axis=x.ndim - 1)


def _both(low: Value, high: Value, bits: int) -> Value:
    return bind_scalars(e.or_p, low, bind_scalars(e.shift_left_p, high, bits))


# --- sub-scales -------------------------------------------------------------------------------


def sub_scales_of(x: Value, scheme: Scheme) -> tuple[Value, Value]:
    """Sub-scales and sub-minima, float32 (..., G, parts); the second means nothing in schemes without."""

    def field(part: Value, shift: int, mask: int) -> Value:
        moved = bind_scalars(e.shift_right_logical_p, part, shift) if shift else part
        return bind_scalars(e.and_p, moved, mask)

    def joined(*parts: Value) -> Value:
        return view.concatenate(parts, x.ndim - 1)

    if scheme.bits == 6:
        factors = offsets = e.bitcast_convert_type(x, dtypes.int8)
    elif scheme.bits == 2:
        factors, offsets = field(x, 0, 15), field(x, 4, 15)
    elif scheme.bits == 3:
        first, second = _bytes(x, 0, 8), _bytes(x, 8, 12)
        low = joined(field(first, 0, 15), field(first, 4, 15))
        high = joined(*(field(second, shift, 3) for shift in (0, 2, 4, 6)))
        whole = e.convert_element_type(_both(low, high, 4), dtypes.float32)
        factors = offsets = bind_scalars(e.sub_p, whole, 32.0)
    else:
        first, second, both = _bytes(x, 0, 4), _bytes(x, 4, 8), _bytes(x, 8, 12)
        factors = joined(field(first, 0, 63), bind_scalars(e.or_p, field(both, 0, 15), field(first, 2, 48)))
        offsets = joined(field(second, 0, 63), bind_scalars(e.or_p, field(both, 4, 15), field(second, 2, 48)))
    return tuple(e.convert_element_type(v, dtypes.float32) for v in (factors, offsets))  # type: ignore[return-value]  # there are two


def _packed_sub_scales(factors: Value, offsets: Value, scheme: Scheme) -> Value:
    """The bytes of whole numbers, float32 (..., G, parts), as the scheme has them."""

    def small(x: Value) -> Value:
        return e.convert_element_type(e.convert_element_type(x, dtypes.int32), dtypes.uint8)

    def moved(x: Value, mask: int, shift: int) -> Value:
        return bind_scalars(e.shift_left_p, bind_scalars(e.and_p, x, mask), shift)

    if scheme.bits == 6:
        return e.bitcast_convert_type(e.convert_element_type(factors, dtypes.int8), dtypes.uint8)
    if scheme.bits == 2:
        return bind_scalars(e.or_p, small(factors), moved(small(offsets), 15, 4))
    axis = factors.ndim - 1
    if scheme.bits == 3:
        x = small(bind_scalars(e.add_p, factors, 32.0))
        low = bind_scalars(e.or_p, bind_scalars(e.and_p, _bytes(x, 0, 8), 15), moved(_bytes(x, 8, 16), 15, 4))
        top = bind_scalars(e.shift_right_logical_p, x, 4)
        high = moved(_bytes(top, 0, 4), 3, 0)
        for i in (1, 2, 3):
            high = bind_scalars(e.or_p, high, moved(_bytes(top, 4 * i, 4 * i + 4), 3, 2 * i))
        return view.concatenate([low, high], axis)
    x, y = small(factors), small(offsets)

    def with_top(v: Value) -> Value:
        """Six bits of the first four numbers, and over them the upper two of the others."""
        return bind_scalars(e.or_p, _bytes(v, 0, 4), moved(_bytes(v, 4, 8), 48, 2))

    both = bind_scalars(e.or_p, bind_scalars(e.and_p, _bytes(x, 4, 8), 15), moved(_bytes(y, 4, 8), 15, 4))
    return view.concatenate([with_top(x), with_top(y), both], axis)


# --- numbers ----------------------------------------------------------------------------------


def _with_minima(x: Value, scheme: Scheme) -> tuple[Value, ...]:
    """Parts (..., G, parts, numbers) from their smallest number, or zero, to their largest."""
    top, most = float((1 << scheme.bits) - 1), 15.0 if scheme.bits == 2 else 63.0
    low = bind_scalars(e.min_p, _reduced(reduction.reduce_min_p, x), 0.0)
    high = bind_scalars(e.max_p, _reduced(reduction.reduce_max_p, x), 0.0)
    steps, depths = bind_scalars(e.div_p, e.sub(high, low), top), e.neg(low)
    scales, factors = _shared(steps, _reduced(reduction.reduce_max_p, steps), most, 0.0, scheme)
    minima, offsets = _shared(depths, _reduced(reduction.reduce_max_p, depths), most, 0.0, scheme)
    step = bind_scalars(e.mul_p, _wide(scales), factors)
    from_low = bind_scalars(e.add_p, x, _last(bind_scalars(e.mul_p, _wide(minima), offsets)))
    codes = e.clamp(0.0, _nearest(from_low, _last(step)), top)
    return _packed(codes, scheme), scales, minima, _packed_sub_scales(factors, offsets, scheme)


def _symmetric(x: Value, scheme: Scheme) -> tuple[Value, ...]:
    """Parts (..., G, parts, numbers) whose number of the largest magnitude gets the code 0."""
    most = 127.0 if scheme.bits == 6 else 31.0
    low, high = _reduced(reduction.reduce_min_p, x), _reduced(reduction.reduce_max_p, x)
    is_low = bind_scalars(e.gt_p, e.neg(low), high)
    largest = trace.bind1(e.select_n_p, is_low, high, low)
    steps = bind_scalars(e.div_p, largest, float(-scheme.center))
    size = _reduced(reduction.reduce_max_p, e.abs(steps))
    scales, factors = _shared(steps, size, most, -most, scheme)
    step = bind_scalars(e.mul_p, _wide(scales), factors)
    codes = bind_scalars(e.add_p, _nearest(x, _last(step)), float(scheme.center))
    codes = e.clamp(0.0, codes, float(2 * scheme.center - 1))
    return _packed(codes, scheme), scales, _packed_sub_scales(factors, factors, scheme)


def _shared(steps: Value, largest: Value, most: float, least: float, scheme: Scheme) -> tuple[Value, Value]:
    """Steps of parts as one scale per group times whole numbers."""
    scales = e.convert_element_type(bind_scalars(e.div_p, largest, most), scheme.scale_dtype)
    return scales, e.clamp(least, _nearest(steps, _wide(scales)), most)


def _packed(codes: Value, scheme: Scheme) -> Value:
    """Bytes of codes (..., G, parts, numbers), which are whole float32 numbers."""
    small = e.convert_element_type(e.convert_element_type(codes, dtypes.int32), dtypes.uint8)
    return _blocks(view.reshape(small, (*codes.shape[:-2], GROUP)), scheme)


def _nearest(x: Value, steps: Value) -> Value:
    """Numbers by steps, rounded to whole ones, halves to even; where a step is zero, the numbers by one."""
    is_zero = bind_scalars(e.eq_p, steps, 0.0)
    one = families.full(ArrayType(steps.shape, steps.dtype), 1)
    ratio = bind_scalars(e.div_p, x, trace.bind1(e.select_n_p, is_zero, steps, one))
    return e.round(ratio, e.RoundingMethod.TO_NEAREST_EVEN)


def _reduced(op: primitive.Primitive, x: Value) -> Value:
    return trace.bind1(op, x, axes=(-1,))


def _wide(x: Value) -> Value:
    """One number per group as float32, with a dimension for the parts of the group."""
    return view.expand_dims(e.convert_element_type(x, dtypes.float32), (x.ndim,))


def _last(x: Value) -> Value:
    """One number per part, with a dimension for its numbers."""
    return view.expand_dims(x, (x.ndim,))
