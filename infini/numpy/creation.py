"""Making arrays: from host data, from functions, and filled.

Host data become arrays on the default device at once, also while tracing; everything else is computed, so
traced programs hold no constants for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from infini.core import array as array_, backend, dtypes, errors, exchange, tree
from infini.core.value import Value, literal
from infini.lax import families, view
from infini.numpy import _axes
from infini.numpy._placement import placed
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, with_weak
from infini.transforms import batching


def asarray(
    a: Any,  # Any: numbers, NumPy arrays, infini arrays, and nested sequences of them
    dtype: DTypeLike | None = None,
    order: str | None = None,
    *,
    copy: bool | None = None,
    device: Any = None,  # Any: a device or a sharding
) -> Value:
    """An array with the contents of `a`, as `jax.numpy.asarray`.

    Args:
        a: number, NumPy array, array, object with `__dlpack__`, or nested sequence of these.
        dtype: dtype of the result; when absent, 64-bit host data become the 32-bit default.
        order: accepted for NumPy's sake; only None and `K`, since arrays are dense and in C order.
        copy: True copies arrays too; False is an error where a copy is needed.
        device: device or sharding to put the array on; host data go to the default device when absent.

    Returns:
        An array; weak only when `a` is, or is one Python number, and no dtype is given.

    Raises:
        TypeMismatchError: `a` is not numeric.
        OutOfRangeError: an integer does not fit.
        ValueMismatchError: `a` is None or ragged, or `copy=False` and the data have to be copied.
        MissingRuleError: `order` is another one.

    Example:
        >>> import infini.numpy as inp
        >>> inp.asarray([1, 2, 3]).dtype
        dtype('int32')
    """
    if order not in (None, "K"):
        raise errors.MissingRuleError(
            f"arrays have no order {order!r}", expected="None or 'K'", fix="leave it out"
        )
    target = None if dtype is None else dtypes.canonical(dtype)
    if hasattr(a, "__infini_array__"):
        a = a.__infini_array__()
    if isinstance(a, Value):
        changed = a if target is None else convert(a, target)
        return placed(_copied(changed) if copy and changed is a else changed, device)
    if copy is False:
        raise errors.ValueMismatchError(
            "asarray cannot share memory with host data",
            got=f"{type(a).__name__} and copy=False",
            fix="leave out copy=False, or use infini.numpy.from_dlpack",
        )
    if isinstance(a, (list, tuple)):
        leaves = tree.leaves(a, is_leaf=lambda leaf: leaf is None)
        if any(isinstance(leaf, Value) for leaf in leaves):
            return placed(_stacked(a, target), device)
        _refuse_none(any(leaf is None for leaf in leaves), a)
        if target == dtypes.uint64:  # NumPy makes floats of numbers of which some need the highest bit
            with contextlib.suppress(OverflowError):
                a = np.asarray(a, np.uint64)
    _refuse_none(a is None, a)
    if not isinstance(a, (np.ndarray, np.generic)) and hasattr(a, "__dlpack__"):
        a = np.from_dlpack(a)
    is_plain = device is None or isinstance(device, backend.Device)
    made = array_.materialize(literal(a, target), device if is_plain else None)
    return made if is_plain else placed(made, device)


def _refuse_none(is_found: bool, a: Any) -> None:  # Any: as asarray
    if is_found:
        raise errors.ValueMismatchError("None is no number", got=repr(a), expected="numbers or arrays")


def _copied(x: Value) -> Value:
    if not isinstance(x, array_.Array) or len(x.sharding.devices) > 1:
        return x
    device = x.sharding.devices[0]
    buffer = device.backend.copy(x.block_until_ready().buffers[0], x.type, device)
    return array_.Array(x.type, (buffer,), x.sharding, weak=x.weak, committed=x.committed)


def _stacked(a: Any, target: np.dtype | None) -> Value:  # Any: as in asarray
    parts = [asarray(item) for item in a]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise errors.TypeMismatchError(
            "asarray: parts of a nested sequence have different shapes",
            got=", ".join(map(str, sorted(shapes))),
            expected="equal shapes",
        )
    kinds = tuple((part.dtype, part.weak) for part in parts)
    common = target if target is not None else dtypes.promote(kinds)[0]
    rows = [view.expand_dims(convert(part, common), (0,)) for part in parts]
    return view.concatenate(rows, 0)


def array(
    object: Any,  # Any: as in asarray
    dtype: DTypeLike | None = None,
    *,
    copy: bool = True,
    order: str | None = "K",
    ndmin: int = 0,
    device: Any = None,  # Any: a device or a sharding
) -> Value:
    """As `asarray`, and a copy of what is an array already; at least `ndmin` dimensions."""
    result = asarray(object, dtype, order, copy=copy or None, device=device)
    return view.expand_dims(result, tuple(range(ndmin - result.ndim))) if ndmin > result.ndim else result


def copy(a: ArrayLike, order: str | None = None) -> Value:
    """A copy of an array in a buffer of its own."""
    return array(as_value("copy", a), copy=True, order=order)


# --- from other sources ---------------------------------------------------------------------------


def from_dlpack(
    x: Any, /, *, device: Any = None, copy: bool | None = None
) -> Value:  # Any: an object with __dlpack__; a device or a sharding
    """An array from any object that speaks DLPack (https://dmlc.github.io/dlpack); 64-bit dtypes are kept.

    Args:
        x: array or tensor of another library, on the CPU.
        device: device or sharding to put it on.
        copy: False shares memory, which must then not be written to; otherwise the elements are copied.

    Raises:
        TypeMismatchError: the object does not speak DLPack, or NumPy cannot read its dtype or device.
    """
    return placed(exchange.from_dlpack(x, copy=copy), device)


def frombuffer(buffer: Any, dtype: DTypeLike = float, count: int = -1, offset: int = 0) -> Value:
    """An array from the bytes of an object that speaks the buffer protocol, as `numpy.frombuffer`.

    Args:
        buffer: bytes, bytearray, memoryview and their like.
        dtype: dtype of the elements in it; 64 bits become the 32-bit default, as for every host data.
        count: number of elements, all of them when negative.
        offset: where to start, in bytes.

    Raises:
        ValueMismatchError: the buffer does not hold that many elements.
    """
    kind = np.float64 if dtype is float else np.int64 if dtype is int else dtypes.canonical(dtype)
    try:
        found = np.frombuffer(buffer, kind, count, offset)
    except ValueError as error:
        raise errors.ValueMismatchError(f"frombuffer: {error}", got=f"dtype {np.dtype(kind)}") from None
    return asarray(found)


def fromstring(string: str, dtype: DTypeLike = float, count: int = -1, *, sep: str) -> Value:
    """Numbers written in a string, as `numpy.fromstring`.

    Args:
        string: the text.
        dtype: dtype of the result.
        count: how many to read, all of them when negative.
        sep: what stands between them; not empty.

    Raises:
        ValueMismatchError: the text does not hold numbers separated like this.
    """
    try:
        found = np.fromstring(string, np.float64 if dtype is float else dtype, count, sep=sep)
    except (ValueError, DeprecationWarning) as error:
        raise errors.ValueMismatchError(f"fromstring: {error}", got=repr(string)) from None
    return asarray(found, None if dtype in (float, int) else dtype)


def fromiter(*args: Any, **kwargs: Any) -> NoReturn:  # Any: refused
    """Not supported, as in JAX: it would use up the iterator while tracing.

    Raises:
        MissingRuleError: always.
    """
    raise errors.MissingRuleError(
        "fromiter is not supported, since it uses up its argument",
        fix="use infini.numpy.asarray(numpy.fromiter(...))",
    )


def fromfile(*args: Any, **kwargs: Any) -> NoReturn:  # Any: refused
    """Not supported, as in JAX: it would read while tracing.

    Raises:
        MissingRuleError: always.
    """
    raise errors.MissingRuleError(
        "fromfile is not supported, since it reads a file each time a function is traced",
        fix="use infini.numpy.asarray(numpy.fromfile(...))",
    )


def fromfunction(
    function: Callable[..., Any], shape: Any, *, dtype: DTypeLike = float, **kwargs: Any
) -> Value:  # Any: results of the function; an integer or a sequence of integers; its keywords
    """An array whose elements are a function of their position, as `jax.numpy.fromfunction`.

    Args:
        function: function of one scalar per dimension; called once, mapped over the positions.
        shape: number of positions along each dimension.
        dtype: dtype of the positions.
        **kwargs: further arguments of the function, as they are.

    Returns:
        An array of this shape; dimensions of the function's result follow.
    """
    sizes = _axes.shape("fromfunction", shape)
    mapped: Callable[..., Any] = lambda *places: function(*places, **kwargs)  # noqa: E731  # rebound below
    for d in reversed(range(len(sizes))):
        mapped = batching.vmap(mapped, in_axes=tuple(0 if d == i else None for i in range(len(sizes))))
    result: Value = mapped(*(view.iota(dtypes.canonical(dtype), n) for n in sizes))
    return asarray(result)


# --- filled arrays ------------------------------------------------------------------------------


def full(
    shape: Any, fill_value: ArrayLike, dtype: DTypeLike | None = None, *, device: Any = None
) -> Value:  # Any: an integer or a sequence of integers; a device or a sharding
    """An array with one value everywhere (`fill_value` broadcasts), as `numpy.full`.

    Raises:
        TypeMismatchError: a size is negative or no integer.
        ValueMismatchError: `fill_value` does not broadcast to the shape.
    """
    value = as_value("full", fill_value)
    target = value.dtype if dtype is None else dtypes.canonical(dtype)
    filled = convert(fill_value, target, value.weak and dtype is None)
    sizes = _axes.shape("full", shape)
    _axes.check_broadcasts("full", filled, sizes)
    return placed(families.broadcast_to(filled, sizes), device)


def zeros(shape: Any, dtype: DTypeLike | None = None, *, device: Any = None) -> Value:  # Any: as full
    """An array of zeros, float32 unless `dtype` says otherwise, as `numpy.zeros`."""
    return full(shape, 0, dtypes.float32 if dtype is None else dtype, device=device)


def ones(shape: Any, dtype: DTypeLike | None = None, *, device: Any = None) -> Value:  # Any: as full
    """An array of ones, float32 unless `dtype` says otherwise, as `numpy.ones`."""
    return full(shape, 1, dtypes.float32 if dtype is None else dtype, device=device)


def empty(shape: Any, dtype: DTypeLike | None = None, *, device: Any = None) -> Value:  # Any: as full
    """As `zeros`: infini has no uninitialised arrays."""
    return zeros(shape, dtype, device=device)


def full_like(
    a: ArrayLike,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    shape: Any = None,
    *,
    device: Any = None,
) -> Value:  # Any: as full
    """An array with one value everywhere, with the shape, dtype and weak flag of `a` where they are not
    given."""
    model = a if hasattr(a, "shape") and hasattr(a, "dtype") else as_value("full_like", a)
    kept = dtypes.canonical(model.dtype) if isinstance(model, Value) else literal_dtype(model.dtype)
    target = kept if dtype is None else dtypes.canonical(dtype)
    weak = dtype is None and bool(getattr(model, "weak", False))
    # A number that does not fit is rounded or wrapped, as by `astype`.
    filled = with_weak(convert(as_value("full_like", fill_value), target), weak)
    sizes = tuple(model.shape) if shape is None else _axes.shape("full_like", shape)
    _axes.check_broadcasts("full_like", filled, sizes)
    return placed(families.broadcast_to(filled, sizes), device)


def literal_dtype(dtype: Any) -> np.dtype:  # Any: the dtype of a host array
    """The dtype that host data of this dtype get: 64 bits become 32, unless a knob keeps them."""
    return literal(np.zeros((), dtypes.canonical(dtype))).dtype


def zeros_like(
    a: ArrayLike, dtype: DTypeLike | None = None, shape: Any = None, *, device: Any = None
) -> Value:  # Any: as full
    """Zeros with the shape and dtype of `a`, as `numpy.zeros_like`."""
    return full_like(a, 0, dtype, shape, device=device)


def ones_like(
    a: ArrayLike, dtype: DTypeLike | None = None, shape: Any = None, *, device: Any = None
) -> Value:  # Any: as full
    """Ones with the shape and dtype of `a`, as `numpy.ones_like`."""
    return full_like(a, 1, dtype, shape, device=device)


def empty_like(
    prototype: ArrayLike, dtype: DTypeLike | None = None, shape: Any = None, *, device: Any = None
) -> Value:  # Any: as full
    """As `zeros_like`."""
    return zeros_like(prototype, dtype, shape, device=device)
