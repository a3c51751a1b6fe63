"""Evenly spaced numbers: arange, linspace, logspace, geomspace. Computed, so traced programs hold no
constants for them, except ranges of fractions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Value, literal
from infini.lax import elementwise as e, families, view
from infini.numpy import _axes, elementwise, transcendental
from infini.numpy._placement import placed
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, with_weak


def arange(
    start: ArrayLike,
    stop: ArrayLike | None = None,
    step: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    *,
    device: Any = None,  # Any: a device or a sharding
) -> Value:
    """Numbers from `start` up to and without `stop`, as `jax.numpy.arange`.

    Args:
        start: first number; the end when `stop` is absent.
        stop: end, not included.
        step: distance, 1 when absent.
        dtype: dtype of the result; that of the arguments together when absent.
        device: device or sharding of the result.

    Raises:
        ConcretizationError: an argument is being traced; sizes have to be known.
        ValueMismatchError: `step` is 0, or an argument is no real scalar.
        TypeMismatchError: an argument is no number, or the dtype is bool.
    """
    first, last = (0, start) if stop is None else (start, stop)
    given = [("start", first), ("stop", last), ("step", 1 if step is None else step)]
    kinds = tuple(_kind(name, x) for name, x in given)
    target = dtypes.promote(kinds)[0] if dtype is None else dtypes.canonical(dtype)
    if target == dtypes.bool_:
        raise errors.TypeMismatchError(
            "arange does not count in bool", got=f"dtype {target}", expected="numbers"
        )
    first, last, step = (_number(x) for _, x in given)
    if step == 0:
        raise errors.ValueMismatchError("arange: step is 0", expected="a step that is not 0")
    if any(isinstance(n, float) for n in (first, last, step)):
        # Whole numbers count in whole steps from the truncated start, as NumPy's do.
        exact = target if target in dtypes.INTEGERS else np.float64
        return placed(literal(np.arange(first, last, step, dtype=exact), target), device)
    size = max(0, int(-(-(last - first) // step)))
    result = view.iota(target, size)
    if step != 1:
        result = trace.bind1(e.mul_p, result, convert(step, target))
    if first != 0:
        result = trace.bind1(e.add_p, result, convert(first, target))
    return placed(result, device)


def _kind(name: str, x: ArrayLike) -> tuple[np.dtype, bool]:
    value = as_value("arange", x)
    if value.ndim or value.dtype in dtypes.COMPLEX:
        raise errors.ValueMismatchError(f"arange: {name} has to be a real scalar", got=str(value.type))
    if value.dtype == dtypes.bool_:
        raise errors.TypeMismatchError(
            f"arange: {name} is a boolean", got=str(value.type), expected="a number"
        )
    return value.dtype, value.weak


def _number(x: ArrayLike) -> int | float:
    number = x.item() if isinstance(x, (Value, np.ndarray, np.generic)) else x
    return number if isinstance(number, int) else float(number)


def linspace(
    start: ArrayLike,
    stop: ArrayLike,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: DTypeLike | None = None,
    axis: int = 0,
    *,
    device: Any = None,  # Any: a device or a sharding
) -> Any:  # Any: an array, or a pair with the step
    """`num` evenly spaced numbers from `start` to `stop`, as `jax.numpy.linspace`.

    Args:
        start: first number or array.
        stop: last number or array, left out of the result when `endpoint` is false.
        num: how many, at least 0.
        endpoint: whether `stop` is included.
        retstep: also return the distance.
        dtype: dtype of the result; a float when absent. Integers are rounded down.
        axis: dimension of the result along which the numbers run.
        device: device or sharding of the result.

    Raises:
        ValueMismatchError: `num` is negative.
        TypeMismatchError: `num` is no integer.
    """
    count = _count("linspace", num)
    first, last = (as_value("linspace", x) for x in (start, stop))
    common = dtypes.promote(((first.dtype, first.weak), (last.dtype, last.weak)))[0]
    compute = common if dtypes.is_inexact(common) else dtypes.float32
    target = compute if dtype is None else dtypes.canonical(dtype)
    first, last = convert(start, compute), convert(stop, compute)
    points = _line(first, last, count, endpoint)
    if target in dtypes.INTEGERS:
        points = elementwise.floor(points)
    points = placed(convert(_moved("linspace", points, axis), target), device)
    if not retstep:
        return points
    intervals = count - 1 if endpoint else count
    step = trace.bind1(
        e.div_p, trace.bind1(e.sub_p, last, first), convert(intervals if intervals > 0 else math.nan, compute)
    )
    return points, convert(step, compute if dtype is None else target)


def _count(name: str, num: int) -> int:
    count = _axes.integer(name, "num", num)
    if count < 0:
        raise errors.ValueMismatchError(f"{name}: num is negative", got=str(count), expected="at least 0")
    return count


def _line(first: Value, last: Value, count: int, endpoint: bool) -> Value:
    """Numbers from `first` to `last` along a new first dimension."""
    bind, compute = trace.bind1, first.dtype
    intervals = count - 1 if endpoint else count
    inner = np.broadcast_shapes(first.shape, last.shape)
    column = (count,) + (1,) * len(inner)
    numbers = view.reshape(view.iota(compute, count), column)
    fraction = bind(e.div_p, numbers, convert(max(intervals, 1), compute))
    rest = bind(e.sub_p, convert(1, compute), fraction)
    points = bind(e.add_p, bind(e.mul_p, first, rest), bind(e.mul_p, last, fraction))
    if endpoint and count > 1:
        places = view.reshape(view.iota(dtypes.int32, count), column)
        at_end = families.bind_scalars(e.eq_p, places, intervals)
        points = bind(e.select_n_p, at_end, points, last)
    return families.broadcast_to(points, (count, *inner))


def _moved(name: str, points: Value, axis: int) -> Value:
    """The first dimension moved to `axis`."""
    place = _axes.one(name, axis, points.ndim)
    return view.transpose(points, [*range(1, place + 1), 0, *range(place + 1, points.ndim)])


def logspace(
    start: ArrayLike,
    stop: ArrayLike,
    num: int = 50,
    endpoint: bool = True,
    base: ArrayLike = 10.0,
    dtype: DTypeLike | None = None,
    axis: int = 0,
) -> Value:
    """Powers of `base` whose exponents are `linspace(start, stop, ...)`, as `jax.numpy.logspace`."""
    first, last, root = (as_value("logspace", x) for x in (start, stop, base))
    common = dtypes.promote(tuple((x.dtype, x.weak) for x in (first, last, root)))[0]
    compute = common if dtypes.is_inexact(common) else dtypes.float32
    exponents = linspace(start, stop, num, endpoint, dtype=compute, axis=axis)
    powers = elementwise.power(convert(base, compute), exponents)
    return with_weak(convert(powers, compute if dtype is None else dtypes.canonical(dtype)), False)


def geomspace(
    start: ArrayLike,
    stop: ArrayLike,
    num: int = 50,
    endpoint: bool = True,
    dtype: DTypeLike | None = None,
    axis: int = 0,
) -> Value:
    """`num` numbers from `start` to `stop` with a constant ratio, as `jax.numpy.geomspace`.

    Both ends have to have the same sign, or for complex numbers the results lie on a spiral between them.
    """
    first, last = (as_value("geomspace", x) for x in (start, stop))
    common = dtypes.promote(((first.dtype, first.weak), (last.dtype, last.weak)))[0]
    compute = common if dtypes.is_inexact(common) else dtypes.float32
    target = compute if dtype is None else dtypes.canonical(dtype)
    # The sign (the direction, for complex numbers) of the start is taken out, so that logarithms are real.
    first, last = convert(start, compute), convert(stop, compute)
    sign = elementwise.sign(first)
    low, high = (transcendental.log10(elementwise.divide(x, sign)) for x in (first, last))
    exponents = linspace(low, high, num, endpoint, dtype=compute)
    points = elementwise.multiply(sign, elementwise.power(convert(10.0, compute), exponents))
    if target in dtypes.INTEGERS:
        # Powers lie a rounding error off whole numbers; their ends are exact.
        points = _with_ends(points, first, last, endpoint)
    return with_weak(convert(_moved("geomspace", points, axis), target), False)


def _with_ends(points: Value, first: Value, last: Value, endpoint: bool) -> Value:
    ends = [(0, first)] + ([(points.shape[0] - 1, last)] if endpoint else [])
    for place, number in ends if points.shape[0] else []:
        places = view.broadcasted_iota(dtypes.int32, points.shape, 0)
        points = trace.bind1(e.select_n_p, families.bind_scalars(e.eq_p, places, place), points, number)
    return points
