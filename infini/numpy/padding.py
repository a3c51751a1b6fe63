"""`pad`, with all modes of NumPy. Axes are padded one after another, so corners continue earlier padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import creation, elementwise, indexing, mapping, quantiles, ranges, reductions
from infini.numpy._promotion import ArrayLike, as_value, convert, with_weak

Pair = tuple[Any, Any]  # Any: numbers or scalar arrays, before and after

# The keywords of each mode.
_KEYWORDS: Final[dict[str, tuple[str, ...]]] = {
    "constant": ("constant_values",),
    "edge": (),
    "empty": (),
    "wrap": (),
    "linear_ramp": ("end_values",),
    "maximum": ("stat_length",),
    "mean": ("stat_length",),
    "median": ("stat_length",),
    "minimum": ("stat_length",),
    "reflect": ("reflect_type",),
    "symmetric": ("reflect_type",),
}
_STATISTICS: Final[Mapping[str, Callable[..., Value]]] = {
    "maximum": reductions.max,
    "mean": reductions.mean,
    "median": quantiles.median,
    "minimum": reductions.min,
}


def pad(
    array: ArrayLike, pad_width: Any, mode: str | Callable[..., Any] = "constant", **kwargs: Any
) -> Value:  # Any: numbers and pairs, results of the function, and keywords by mode
    """Add elements at the ends of dimensions, as `numpy.pad`.

    Args:
        array: array to pad.
        pad_width: elements before and after: a number for every end, a pair for every dimension, or one pair
            per dimension; known while tracing.
        mode: `constant` (with `constant_values`, 0), `edge` repeats the outermost elements, `wrap` continues
            with the other end, `reflect` and `symmetric` mirror without and with the outermost
            (`reflect_type`, `even` or `odd`), `linear_ramp` runs to `end_values` (0), `maximum`, `mean`,
            `median` and `minimum` are those of the outermost `stat_length` elements (all of them), `empty`
            gives zeros; or a function `f(vector, pair, axis, kwargs)` that returns the padded vector with
            other ends.
        **kwargs: what the mode takes; values are numbers, pairs or one pair per dimension.

    Raises:
        ValueMismatchError: a width is negative or has the wrong shape, an axis without elements cannot be
            continued, or the mode does not take a keyword.
        TypeMismatchError: widths are no integers.
        MissingRuleError: there is no such mode.
    """
    x = as_value("pad", array)
    widths = _widths(pad_width, x.ndim)
    if callable(mode):
        return _by_function(x, widths, mode, kwargs)
    if mode not in _KEYWORDS:
        raise errors.MissingRuleError(
            f"pad: there is no mode {mode!r}", expected=", ".join(sorted(_KEYWORDS)) + ", or a function"
        )
    unknown = set(kwargs) - set(_KEYWORDS[mode])
    if unknown:
        raise errors.ValueMismatchError(
            f"pad: the mode {mode!r} does not take {', '.join(sorted(unknown))}",
            expected=", ".join(_KEYWORDS[mode]) or "no keywords",
        )
    if mode in ("constant", "empty"):
        return _constant(x, widths, kwargs.get("constant_values", 0))
    for axis, (low, high) in enumerate(widths):
        if (low or high) and not x.shape[axis] and mode not in _STATISTICS:
            raise errors.ValueMismatchError(
                f"pad: axis {axis} has no elements to continue", got=str(x.type), fix="use mode='constant'"
            )
    if mode == "linear_ramp":
        return _ramp(x, widths, _pairs("end_values", kwargs.get("end_values", 0), x.ndim))
    if mode in _STATISTICS:
        length = kwargs.get("stat_length")
        lengths = [(None, None)] * x.ndim if length is None else _pairs("stat_length", length, x.ndim)
        return _statistic(x, widths, lengths, _STATISTICS[mode])
    kind = kwargs.get("reflect_type", "even")
    if kind not in ("even", "odd"):
        raise errors.ValueMismatchError(
            "pad: unknown reflect_type", got=repr(kind), expected="'even' or 'odd'"
        )
    if kind == "odd":
        return _odd(x, widths, includes_edge=mode == "symmetric")
    for axis, width in enumerate(widths):
        if any(width):
            line = np.pad(np.arange(x.shape[axis], dtype=np.int32), width, mode=mode)  # type: ignore[call-overload]  # a known mode
            x = indexing.take(x, line, axis=axis, mode="clip")
    return x


def _widths(pad_width: Any, ndim: int) -> list[tuple[int, int]]:  # Any: as in pad
    given = np.asarray(pad_width)
    if given.dtype.kind not in "iu":
        raise errors.TypeMismatchError("pad: widths have to be integers", got=repr(pad_width))
    widths = [(int(low), int(high)) for low, high in _pairs("pad_width", given, ndim)]
    if any(n < 0 for pair in widths for n in pair):
        raise errors.ValueMismatchError(
            "pad: a width is negative", got=str(widths), fix="use a slice to remove elements"
        )
    return widths


def _pairs(name: str, values: Any, ndim: int) -> list[Pair]:  # Any: numbers, pairs, or one pair per dimension
    """One pair per dimension; arrays may be traced."""
    given: Any = values if isinstance(values, Value) else np.asarray(values)
    if given.shape not in ((), (1,), (2,), (1, 2), (ndim, 2)):
        raise errors.ValueMismatchError(
            f"pad: {name} has the wrong shape", got=f"{given.shape} for {ndim} dimensions",
            expected=f"a number, a pair, or {ndim} pairs",
        )  # fmt: skip
    if given.ndim < 2:
        pair = (given, given) if not given.ndim else (given[0], given[-1])
        return [pair] * ndim
    return [(given[i if len(given) > 1 else 0, 0], given[i if len(given) > 1 else 0, 1]) for i in range(ndim)]


def _constant(x: Value, widths: list[tuple[int, int]], constants: Any) -> Value:  # Any: as in pad
    if not np.ndim(constants):
        fill = convert(as_value("pad", constants), x.dtype)
        return with_weak(view.pad(x, fill, [(low, high, 0) for low, high in widths]), x.weak)
    result = x
    for axis, pair in enumerate(_pairs("constant_values", constants, x.ndim)):
        for is_high, (width, number) in enumerate(zip(widths[axis], pair, strict=True)):
            config = [(0, 0, 0)] * x.ndim
            config[axis] = (0, width, 0) if is_high else (width, 0, 0)
            result = view.pad(result, convert(as_value("pad", number), x.dtype), config)
    return with_weak(result, x.weak)


def _joined(x: Value, axis: int, before: Value, after: Value) -> Value:
    parts = [part for part in (before, x, after) if part.shape[axis]]
    return with_weak(view.concatenate(parts or [x], axis), x.weak)


def _ramp(x: Value, widths: list[tuple[int, int]], ends: list[Pair]) -> Value:
    for axis, (width, end) in enumerate(zip(widths, ends, strict=True)):
        edges = (view.index_in_dim(x, place, axis, keepdims=False) for place in (0, -1))
        before, after = (
            ranges.linspace(as_value("pad", number), edge, count, endpoint=False, dtype=x.dtype, axis=axis)
            for number, edge, count in zip(end, edges, width, strict=True)
        )
        x = _joined(x, axis, before, view.rev(after, (axis,)))
    return x


def _statistic(
    x: Value, widths: list[tuple[int, int]], lengths: list[Pair], function: Callable[..., Value]
) -> Value:
    for axis, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        size = x.shape[axis]
        parts = []
        for is_after, (count, wanted) in enumerate(zip(width, length, strict=True)):
            taken = size if wanted is None else min(int(wanted), size)
            if wanted is not None and int(wanted) <= 0:
                raise errors.ValueMismatchError("pad: a stat_length of 0 yields no value", got=str(length))
            piece = view.slice_in_dim(
                x, size - taken if is_after else 0, size if is_after else taken, axis=axis
            )
            value = function(piece, axis=axis, keepdims=True)
            value = elementwise.round(value) if x.dtype in dtypes.INTEGERS else value
            shape = tuple(count if d == axis else n for d, n in enumerate(x.shape))
            parts.append(
                creation.full(shape, convert(value, x.dtype))
                if count
                else view.slice_in_dim(x, 0, 0, axis=axis)
            )
        x = _joined(x, axis, *parts)
    return x


def _odd(x: Value, widths: list[tuple[int, int]], *, includes_edge: bool) -> Value:
    """Continue point-symmetrically to the outermost element, as far at a time as there are elements."""
    for axis, (low, high) in enumerate(widths):
        while low or high:
            size = x.shape[axis]
            most = size if includes_edge else size - 1
            before, after = (min(n, most) if most else n for n in (low, high))
            first, last = (view.index_in_dim(x, place, axis) for place in (0, -1))
            if not most:  # one element is its own continuation
                pieces = [_repeated(edge, count, axis) for edge, count in ((first, before), (last, after))]
            else:
                skip = 0 if includes_edge else 1
                near = view.slice_in_dim(x, skip, skip + before, axis=axis)
                far = view.slice_in_dim(x, size - skip - after, size - skip, axis=axis)
                pieces = [_mirrored(edge, part, axis) for edge, part in ((first, near), (last, far))]
            x = _joined(x, axis, *pieces)
            low, high = low - before, high - after
    return x


def _repeated(edge: Value, count: int, axis: int) -> Value:
    shape = tuple(count if d == axis else n for d, n in enumerate(edge.shape))
    return creation.full(shape, edge) if count else view.slice_in_dim(edge, 0, 0, axis=axis)


def _mirrored(edge: Value, part: Value, axis: int) -> Value:
    return elementwise.subtract(elementwise.add(edge, edge), view.rev(part, (axis,)))


def _by_function(
    x: Value, widths: list[tuple[int, int]], function: Callable[..., Any], kwargs: dict[str, Any]
) -> Value:  # Any: as in pad
    padded = _constant(x, widths, 0)
    for axis, width in enumerate(widths):
        padded = mapping.apply_along_axis(function, axis, padded, width, axis, kwargs)
    return padded
