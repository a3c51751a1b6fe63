"""Random bits, uniform floats and integers: the samplers that all others are made of. Bit for bit those of
JAX.

Samplers are jitted inside, so a draw outside tracing is one program and makes one pass over the result.
"""

from __future__ import annotations

import functools
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, families, placement, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, result_type
from infini.random import keys
from infini.random.keys import KeyLike
from infini.transforms import staging

Placement: TypeAlias = Any  # Any: a NamedSharding, or a P inside `with mesh:`, or None

_UNSIGNED: Final = {8: dtypes.uint8, 16: dtypes.uint16, 32: dtypes.uint32, 64: dtypes.uint64}


@functools.partial(staging.jit, static_argnums=(1, 2))
def words(raw_key: Value, bit_width: int, shape: tuple[int, ...]) -> Value:
    """Random bits of a raw key as unsigned integers of `bit_width` bits."""
    high, low = keys.encrypt(raw_key, shape)
    if bit_width == 64:
        wide_high, wide_low = (e.convert_element_type(word, dtypes.uint64) for word in (high, low))
        return trace.bind1(e.or_p, bind_scalars(e.shift_left_p, wide_high, 32), wide_low)
    mixed = trace.bind1(e.xor_p, high, low)
    return convert(mixed, _UNSIGNED[bit_width])


def bits(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Random bits as unsigned integers.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: unsigned integer dtype, uint32 when absent.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: the dtype is not unsigned.
    """
    target = dtypes.uint32 if dtype is None else dtypes.canonical(dtype)
    if target not in dtypes.UNSIGNED:
        raise errors.ValueMismatchError(
            "random.bits makes unsigned integers", got=target.name, expected="uint8, uint16, uint32 or uint64"
        )
    drawn = words(keys.raw(key, "bits"), target.itemsize * 8, _axes.shape("bits", shape))
    return placed(drawn, out_sharding)


def placed(x: Value, out_sharding: Placement) -> Value:
    """A sample where the caller wants it. The mesh never changes its numbers."""
    return x if out_sharding is None else placement.with_sharding_constraint(x, out_sharding)


def float_dtype(name: str, dtype: DTypeLike | None) -> np.dtype:
    """The dtype of a sampler of floats, float32 when absent.

    Raises:
        ValueMismatchError: it is not a float of 16 to 64 bits.
    """
    target = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    if target not in dtypes.FLOATS or target.itemsize == 1:
        raise errors.ValueMismatchError(
            f"random.{name} does not make this dtype",
            got=target.name,
            expected="float16, bfloat16, float32 or float64",
        )
    return target


def uniform(
    key: KeyLike,
    shape: Any = (),
    dtype: DTypeLike | None = None,
    minval: ArrayLike = 0.0,
    maxval: ArrayLike = 1.0,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Uniform floats in [minval, maxval).

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        minval: lower end; broadcasts to `shape`.
        maxval: upper end; broadcasts to `shape`.
        out_sharding: placement of the result.
    """
    sizes, target = _axes.shape("uniform", shape), float_dtype("uniform", dtype)
    return placed(uniform_from(keys.raw(key, "uniform"), sizes, target, minval, maxval), out_sharding)


def uniform_from(
    raw_key: Value, shape: tuple[int, ...], dtype: np.dtype, minval: ArrayLike, maxval: ArrayLike
) -> Value:
    """As `uniform`, for arguments that have been checked."""
    return scaled(
        raw_key, shape, dtype, bound("uniform", minval, shape, dtype), bound("uniform", maxval, shape, dtype)
    )


@functools.partial(staging.jit, static_argnums=(1, 2))
def scaled(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype, low: Value, high: Value) -> Value:
    """Random bits fill the mantissa under the exponent of 1, which gives [1, 2); then it is shifted and
    scaled."""
    width, mantissa = dtype.itemsize * 8, int(ml_dtypes.finfo(dtype).nmant)
    drawn = width if mantissa >= 8 else 8  # bfloat16 has 7 bits to fill, one byte is enough
    unsigned = _UNSIGNED[width]
    random = convert(words(raw_key, drawn, shape), unsigned)
    one = int(np.ones((), dtype).view(unsigned))
    filled = bind_scalars(e.or_p, bind_scalars(e.shift_right_logical_p, random, drawn - mantissa), one)
    floats = bind_scalars(e.sub_p, trace.bind1(e.bitcast_convert_type_p, filled, new_dtype=dtype), 1.0)
    spread = trace.bind1(e.mul_p, floats, trace.bind1(e.sub_p, high, low))
    return trace.bind1(e.max_p, low, trace.bind1(e.add_p, spread, low))


def bound(name: str, x: ArrayLike, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """A parameter of a distribution in the dtype of the result.

    Raises:
        ValueMismatchError: it does not broadcast to the shape of the result.
    """
    parameter = convert(x if type(x) in (int, float) else as_value(name, x), dtype)
    check_broadcasts(name, parameter.shape, shape)
    return parameter


def check_broadcasts(name: str, shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Refuse a parameter whose shape does not broadcast to that of the result.

    Raises:
        ValueMismatchError: it does not.
    """
    fits = len(shape) <= len(target) and all(
        n in (1, m) for n, m in zip(shape[::-1], target[::-1], strict=False)
    )
    if not fits:
        raise errors.ValueMismatchError(
            f"random.{name}: a parameter does not broadcast to the shape of the result",
            got=f"a parameter of shape {shape}, shape={target}",
            fix="leave out shape=, or give one that the parameters broadcast to",
        )


def parameters(
    name: str, shape: Any, dtype: np.dtype, *given: ArrayLike
) -> tuple[tuple[int, ...], list[Value]]:  # Any: sizes, or None
    """The shape of a sample, and the parameters of its distribution in its dtype.

    Raises:
        ValueMismatchError: a parameter does not broadcast to the shape.
        PromotionError: a parameter has a wider dtype than the sample.
    """
    kept = [x if type(x) in (int, float) else as_value(name, x) for x in given]
    shapes = [x.shape if isinstance(x, Value) else () for x in kept]
    sizes = inp.broadcast_shapes(*shapes) if shape is None else _axes.shape(name, shape)
    for one in shapes:
        check_broadcasts(name, one, sizes)
    for x in kept:
        if isinstance(x, Value) and result_type(x, dtype) != dtype:
            raise errors.PromotionError(
                f"random.{name}: a parameter has a wider dtype than the result",
                got=f"{x.type}, dtype={dtype.name}",
                fix="pass dtype=, or convert the parameter with .astype(...)",
            )
    return sizes, [convert(x, dtype) for x in kept]


def randint(
    key: KeyLike,
    shape: Any,
    minval: ArrayLike,
    maxval: ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Integers in [minval, maxval), of nearly equal probability: twice the bits that the dtype has are
    reduced modulo the span.

    Args:
        key: a key.
        shape: shape of the result.
        minval: smallest value; broadcasts to `shape`.
        maxval: end, not included.
        dtype: an integer dtype, int32 when absent. Fewer than 32 bits are drawn in 32.
        out_sharding: placement of the result.

    Raises:
        TypeMismatchError: the dtype is no integer.
    """
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    if target not in dtypes.INTEGERS:
        raise errors.TypeMismatchError("random.randint makes integers", got=target.name)
    sizes, raw_key = _axes.shape("randint", shape), keys.raw(key, "randint")
    low, high = (_integer_bound(x, sizes) for x in (minval, maxval))
    if target.itemsize >= 4:
        return placed(_integers(raw_key, low, high, sizes, target), out_sharding)
    limits = np.iinfo(target)
    low = inp.clip(convert(low, dtypes.int32), int(limits.min), int(limits.max))
    high = inp.clip(convert(high, dtypes.int32), int(limits.min), int(limits.max) + 1)
    drawn = convert(_integers(raw_key, low, high, sizes, dtypes.int32), target)
    return placed(drawn, out_sharding)


def _integer_bound(x: ArrayLike, shape: tuple[int, ...]) -> Value:
    number = as_value("randint", x)
    check_broadcasts("randint", number.shape, shape)
    return number if number.dtype in dtypes.INTEGERS else convert(number, dtypes.int32)


def _clipped(x: Value, dtype: np.dtype) -> Value:
    """An integer in another dtype, clipped to its range instead of wrapped."""
    own, other = np.iinfo(x.dtype), np.iinfo(dtype)
    low, high = max(int(own.min), int(other.min)), min(int(own.max), int(other.max))
    return convert(bind_scalars(e.min_p, bind_scalars(e.max_p, x, low), high), dtype)


@functools.partial(staging.jit, static_argnums=(3, 4))
def _integers(raw_key: Value, minval: Value, maxval: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    bind, num_bits = trace.bind1, dtype.itemsize * 8
    largest = min(int(np.iinfo(dtype).max), int(np.iinfo(maxval.dtype).max))
    is_beyond = bind_scalars(e.gt_p, maxval, largest)
    low, high = _clipped(minval, dtype), _clipped(maxval, dtype)
    is_empty = bind(e.le_p, high, low)
    span = convert(bind(e.sub_p, high, low), _UNSIGNED[num_bits])
    # An empty range gives minval; one that reaches past the largest value is one longer, and 0 stands for
    # the whole range.
    span = bind(e.select_n_p, is_empty, span, convert(1, span.dtype))
    longer = bind(e.and_p, is_beyond, bind(e.not_p, is_empty))
    span = bind(e.select_n_p, longer, span, bind_scalars(e.add_p, span, 1))
    both = keys.split_words(raw_key, (2,))
    first, second = (
        words(view.reshape(view.slice_in_dim(both, i, i + 1), (2,)), num_bits, shape) for i in range(2)
    )
    # (a * 2**n + b) % span, in n bits, by reducing every factor first.
    multiplier = bind(e.rem_p, convert(1 << (num_bits // 2), span.dtype), span)
    multiplier = bind(e.rem_p, bind(e.mul_p, multiplier, multiplier), span)
    total = bind(e.add_p, bind(e.mul_p, bind(e.rem_p, first, span), multiplier), bind(e.rem_p, second, span))
    offset = bind(e.rem_p, total, span)
    return families.broadcast_to(bind(e.add_p, low, convert(offset, dtype)), shape)
