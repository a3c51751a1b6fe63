"""Making arrays: from host data, filled, ranges, and triangles.

Host data become arrays on the default device at once, also while tracing; everything else is computed, so
traced programs hold no constants for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import array as array_, backend, dtypes, errors, trace, tree
from infini.core.value import Literal, Value, literal
from infini.lax import elementwise, families, view
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, with_weak


def asarray(
    a: Any,  # Any: numbers, NumPy arrays, infini arrays, and nested sequences of them
    dtype: DTypeLike | None = None,
    order: None = None,
    *,
    copy: bool | None = None,
    device: backend.Device | None = None,
) -> Value:
    """An array with the contents of `a`, as `jax.numpy.asarray`.

    Args:
        a: number, NumPy array, array, object with `__dlpack__`, or nested sequence of these.
        dtype: dtype of the result; when absent, 64-bit host data become the 32-bit default.
        order: accepted for NumPy's sake; only None.
        copy: True copies arrays too; False is an error where a copy is needed.
        device: device to put host data on; the default device when absent.

    Returns:
        An array; weak only when `a` is one Python number and no dtype is given.

    Raises:
        TypeMismatchError: `a` is not numeric.
        OutOfRangeError: an integer does not fit.
        ValueMismatchError: `copy=False` and the data have to be copied.

    Example:
        >>> import infini.numpy as inp
        >>> inp.asarray([1, 2, 3]).dtype
        dtype('int32')
    """
    target = None if dtype is None else dtypes.canonical(dtype)
    if isinstance(a, Value):
        changed = a if target is None else convert(a, target)
        return _copy(changed) if copy and changed is a else changed
    if hasattr(a, "__infini_array__"):
        return asarray(a.__infini_array__(), dtype, copy=copy, device=device)
    if copy is False:
        raise errors.ValueMismatchError(
            "asarray cannot share memory with host data",
            got=f"{type(a).__name__} and copy=False",
            fix="leave out copy=False, or use infini.dlpack.from_dlpack",
        )
    if isinstance(a, (list, tuple)) and any(isinstance(leaf, Value) for leaf in tree.leaves(a)):
        return _stack_nested(a, target)
    if not isinstance(a, (np.ndarray, np.generic)) and hasattr(a, "__dlpack__"):
        a = np.from_dlpack(a)
    return array_.materialize(literal(a, target), device)


def _copy(x: Value) -> Value:
    if not isinstance(x, array_.Array) or len(x.sharding.devices) > 1:
        return x
    device = x.sharding.devices[0]
    buffer = device.backend.copy(x.block_until_ready().buffers[0], x.type, device)
    return array_.Array(x.type, (buffer,), x.sharding, weak=x.weak, committed=x.committed)


def _stack_nested(a: Any, target: np.dtype | None) -> Value:  # Any: as in asarray
    parts = [asarray(item) for item in a]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise errors.ValueMismatchError(
            "asarray: parts of a nested sequence have different shapes",
            got=", ".join(map(str, sorted(shapes))),
        )
    kinds = tuple((part.dtype, part.weak) for part in parts)
    common = target if target is not None else dtypes.promote(kinds)[0]
    rows = [view.expand_dims(convert(part, common), (0,)) for part in parts]
    return view.concatenate(rows, 0)


def array(
    object: Any,  # Any: as in asarray
    dtype: DTypeLike | None = None,
    copy: bool = True,
    order: None = None,
    ndmin: int = 0,
    *,
    device: backend.Device | None = None,
) -> Value:
    """As `asarray`, and a copy of what is an array already; at least `ndmin` dimensions."""
    result = asarray(object, dtype, copy=copy or None, device=device)
    return view.expand_dims(result, tuple(range(ndmin - result.ndim))) if ndmin > result.ndim else result


def full(
    shape: Any, fill_value: ArrayLike, dtype: DTypeLike | None = None, *, device: backend.Device | None = None
) -> Value:  # Any: an integer or a sequence of integers
    """An array with one value everywhere (`fill_value` broadcasts), as `numpy.full`."""
    value = as_value("full", fill_value)
    target = value.dtype if dtype is None else dtypes.canonical(dtype)
    filled = convert(fill_value, target, value.weak and dtype is None)
    sizes = _axes.shape("full", shape)
    _axes.check_broadcasts("full", filled, sizes)
    return _placed(families.broadcast_to(filled, sizes), device)


def zeros(shape: Any, dtype: DTypeLike | None = None, *, device: backend.Device | None = None) -> Value:
    """An array of zeros, float32 unless `dtype` says otherwise, as `numpy.zeros`."""
    return full(shape, 0, dtypes.float32 if dtype is None else dtype, device=device)


def ones(shape: Any, dtype: DTypeLike | None = None, *, device: backend.Device | None = None) -> Value:
    """An array of ones, float32 unless `dtype` says otherwise, as `numpy.ones`."""
    return full(shape, 1, dtypes.float32 if dtype is None else dtype, device=device)


def empty(shape: Any, dtype: DTypeLike | None = None, *, device: backend.Device | None = None) -> Value:
    """As `zeros`: infini has no uninitialised arrays."""
    return zeros(shape, dtype, device=device)


def full_like(
    a: ArrayLike,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    shape: Any = None,
    *,
    device: backend.Device | None = None,
) -> Value:
    """An array with one value everywhere, with the shape, dtype and weak flag of `a` where they are not
    given."""
    model = a if hasattr(a, "shape") and hasattr(a, "dtype") else as_value("full_like", a)
    target = dtypes.canonical(model.dtype if dtype is None else dtype)
    weak = dtype is None and getattr(model, "weak", False)
    filled = convert(fill_value, target, weak)
    sizes = tuple(model.shape) if shape is None else _axes.shape("full_like", shape)
    _axes.check_broadcasts("full_like", filled, sizes)
    return _placed(families.broadcast_to(filled, sizes), device)


def zeros_like(
    a: ArrayLike, dtype: DTypeLike | None = None, shape: Any = None, *, device: backend.Device | None = None
) -> Value:
    """Zeros with the shape and dtype of `a`, as `numpy.zeros_like`."""
    return full_like(a, 0, dtype, shape, device=device)


def ones_like(
    a: ArrayLike, dtype: DTypeLike | None = None, shape: Any = None, *, device: backend.Device | None = None
) -> Value:
    """Ones with the shape and dtype of `a`, as `numpy.ones_like`."""
    return full_like(a, 1, dtype, shape, device=device)


def empty_like(
    a: ArrayLike, dtype: DTypeLike | None = None, shape: Any = None, *, device: backend.Device | None = None
) -> Value:
    """As `zeros_like`."""
    return zeros_like(a, dtype, shape, device=device)


def _placed(x: Value, device: backend.Device | None) -> Value:
    """`x` as an array: literals are materialised, arrays moved to `device` when one is named."""
    if isinstance(x, Literal):
        return array_.materialize(x, device)
    if device is not None and isinstance(x, array_.Array) and x.devices() != {device}:
        return array_.from_host(x.to_host(), keep_dtype=True, device=device, weak=x.weak)
    return x


def arange(
    start: Any, stop: Any = None, step: Any = None, dtype: DTypeLike | None = None, *, device: Any = None
) -> Value:  # Any: numbers known while tracing
    """Numbers from `start` up to and without `stop`, as `numpy.arange`.

    Args:
        start: first number; the end when `stop` is absent.
        stop: end, not included.
        step: distance, 1 when absent.
        dtype: dtype of the result; int32 or float32 by the arguments when absent.
        device: device of the result.

    Raises:
        ConcretizationError: an argument is being traced; sizes have to be known.
        ValueMismatchError: `step` is 0.
    """
    first, last = (0, start) if stop is None else (start, stop)
    first, last, step = (_concrete_number(n) for n in (first, last, 1 if step is None else step))
    if step == 0:
        raise errors.ValueMismatchError("arange: step is 0", expected="a step that is not 0")
    kinds = tuple(
        (dtypes.float32 if isinstance(n, float) else dtypes.int32, False) for n in (first, last, step)
    )
    target = dtypes.promote(kinds)[0] if dtype is None else dtypes.canonical(dtype)
    if (
        any(isinstance(n, float) for n in (first, last, step))
        or target not in dtypes.INTEGERS | dtypes.FLOATS
    ):
        return array_.materialize(literal(np.arange(first, last, step), target), device)
    size = max(0, -(-(last - first) // step))
    result = view.iota(target, size)
    if step != 1:
        result = trace.bind1(elementwise.mul_p, result, convert(step, target))
    if first != 0:
        result = trace.bind1(elementwise.add_p, result, convert(first, target))
    return _placed(result, device)


def _concrete_number(x: Any) -> int | float:  # Any: a number or an array of one element
    number = x.item() if isinstance(x, (Value, np.ndarray, np.generic)) else x
    if not isinstance(number, (int, float)):
        raise errors.TypeMismatchError("arange needs real numbers", got=f"{x!r}")
    return int(number) if isinstance(number, bool) else number


def linspace(
    start: ArrayLike,
    stop: ArrayLike,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: DTypeLike | None = None,
    axis: int = 0,
) -> Any:  # Any: an array, or a pair with the step
    """`num` evenly spaced numbers from `start` to `stop`, as `numpy.linspace`.

    Args:
        start: first number or array.
        stop: last number or array, left out of the result when `endpoint` is false.
        num: how many, at least 0.
        endpoint: whether `stop` is included.
        retstep: also return the distance.
        dtype: dtype of the result; a float when absent.
        axis: dimension of the result along which the numbers run.
    """
    if num < 0:
        raise errors.ValueMismatchError("linspace: num is negative", got=str(num))
    first, last = (as_value("linspace", x) for x in (start, stop))
    common = dtypes.promote(((first.dtype, first.weak), (last.dtype, last.weak)))[0]
    compute = common if dtypes.is_inexact(common) else dtypes.float32
    first, last = convert(start, compute), convert(stop, compute)
    bind, count = trace.bind1, num - 1 if endpoint else num
    inner = np.broadcast_shapes(first.shape, last.shape)
    column = (num,) + (1,) * len(inner)
    fraction = bind(
        elementwise.div_p, view.reshape(view.iota(compute, num), column), convert(max(count, 1), compute)
    )
    rest = bind(elementwise.sub_p, convert(1, compute), fraction)
    points = bind(
        elementwise.add_p, bind(elementwise.mul_p, first, rest), bind(elementwise.mul_p, last, fraction)
    )
    if endpoint and num > 1:
        at_end = bind(
            elementwise.eq_p, view.reshape(view.iota(dtypes.int32, num), column), convert(count, dtypes.int32)
        )
        points = bind(elementwise.select_n_p, at_end, points, last)
    points = families.broadcast_to(points, (num, *inner))
    place = _axes.one("linspace", axis, points.ndim)
    order = [*range(1, place + 1), 0, *range(place + 1, points.ndim)]
    points = convert(view.transpose(points, order), compute if dtype is None else dtypes.canonical(dtype))
    if not retstep:
        return points
    step = bind(
        elementwise.div_p,
        bind(elementwise.sub_p, last, first),
        convert(count if count else math.nan, compute),
    )
    return points, step


def _below(rows: int, columns: int, k: int, op: Any) -> Value:  # Any: a comparison
    shape = (rows, columns)
    row = view.broadcasted_iota(dtypes.int32, (rows, 1), 0)
    column = view.broadcasted_iota(dtypes.int32, (1, columns), 1)
    shifted = trace.bind1(elementwise.add_p, row, convert(k, dtypes.int32)) if k else row
    return families.broadcast_to(trace.bind1(op, shifted, column), shape)


def eye(N: int, M: int | None = None, k: int = 0, dtype: DTypeLike | None = None) -> Value:
    """A matrix with ones on the `k`-th diagonal, as `numpy.eye`."""
    target = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    return convert(_below(N, N if M is None else M, k, elementwise.eq_p), target)


def identity(n: int, dtype: DTypeLike | None = None) -> Value:
    """The identity matrix."""
    return eye(n, dtype=dtype)


def tri(N: int, M: int | None = None, k: int = 0, dtype: DTypeLike | None = None) -> Value:
    """A matrix with ones on and below the `k`-th diagonal, as `numpy.tri`."""
    target = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    return convert(_below(N, N if M is None else M, k, elementwise.ge_p), target)


def _triangle(name: str, m: ArrayLike, k: int, is_lower: bool) -> Value:
    x = as_value(name, m)
    if x.ndim < 2:
        raise errors.ValueMismatchError(
            f"{name} needs at least two dimensions", got=str(x.type), fix="use x[None, :] to add a dimension"
        )
    keep = _below(x.shape[-2], x.shape[-1], k if is_lower else k - 1, elementwise.ge_p)
    nothing = Literal(np.zeros((), x.dtype), weak=x.weak)
    cases = (nothing, x) if is_lower else (x, nothing)
    return with_weak(trace.bind1(elementwise.select_n_p, keep, *cases), x.weak)


def tril(m: ArrayLike, k: int = 0) -> Value:
    """`m` with zeros above the `k`-th diagonal of its last two dimensions, as `numpy.tril`."""
    return _triangle("tril", m, k, is_lower=True)


def triu(m: ArrayLike, k: int = 0) -> Value:
    """`m` with zeros below the `k`-th diagonal of its last two dimensions, as `numpy.triu`."""
    return _triangle("triu", m, k, is_lower=False)


def meshgrid(*xi: ArrayLike, indexing: str = "xy") -> list[Value]:
    """Coordinate arrays of a grid from vectors, as `numpy.meshgrid` without `sparse`.

    Raises:
        ValueMismatchError: `indexing` is neither `xy` nor `ij`, or an operand is no vector.
    """
    vectors = [as_value("meshgrid", x) for x in xi]
    if indexing not in ("xy", "ij") or any(v.ndim > 1 for v in vectors):
        raise errors.ValueMismatchError(
            "meshgrid needs vectors and indexing 'xy' or 'ij'",
            got=f"{indexing!r}, {', '.join(str(v.type) for v in vectors)}",
        )
    order: Sequence[int] = range(len(vectors))
    if indexing == "xy" and len(vectors) >= 2:
        order = (1, 0, *range(2, len(vectors)))
    places = {source: place for place, source in enumerate(order)}
    shape = [0] * len(vectors)
    for source, place in places.items():
        shape[place] = vectors[source].size
    return [
        view.broadcast_in_dim(view.reshape(v, (v.size,)), shape, (places[i],)) for i, v in enumerate(vectors)
    ]
