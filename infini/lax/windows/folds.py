"""Folds of windows: each window of an array, or of several together, joined into one element.

Small windows are joined place by place, which one kernel computes. Larger ones are joined one dimension after
the other: places that windows do not share first, then by doubling, with as many steps as the size of a
window has bits. Places are joined in their order, so the operation need not commute.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.core import dtypes, trace
from infini.core.value import Value
from infini.lax import elementwise as e, families, view
from infini.lax.windows.padding import Line

Parts: TypeAlias = tuple[Value, ...]

MAX_PLACES: Final = 16  # places of a window that are joined at once
SHORT: Final = 8  # places along one dimension that are joined one after another


@dataclass(frozen=True, slots=True)
class Monoid:
    """How elements join.

    Args:
        join: joins two tuples of arrays element by element.
        fills: scalars that stand outside of the arrays and change nothing.
        reduce: joins everything along some axes of a single array, where there is an operation for it.
    """

    join: Callable[[Parts, Parts], Parts]
    fills: Parts
    reduce: Callable[[Value, Sequence[int]], Value] | None = None


def fold(monoid: Monoid, parts: Parts, lines: Sequence[Line]) -> Parts:
    """Every window along the last dimensions as one element.

    Args:
        monoid: how elements join.
        parts: arrays of one shape.
        lines: how windows lie along each of the last dimensions.
    """
    axes = range(-len(lines), 0)
    parts, plain = _without_holes(monoid, parts, list(lines))
    parts = filled(monoid.fills, parts, plain)
    if math.prod(line.window for line in plain) <= MAX_PLACES:
        return _place_by_place(monoid, parts, plain)
    if monoid.reduce is not None:
        parts, plain = _apart(monoid.reduce, parts, plain)
    # The last dimension first, so that places are joined in row-major order.
    for axis, line in reversed(list(zip(axes, plain, strict=True))):
        parts = _along(monoid, parts, axis, line)
    return parts


def filled(fills: Parts, parts: Parts, lines: Sequence[Line]) -> Parts:
    """Arrays with what lies outside of them filled in, as far as windows reach."""
    config = [(line.low, line.reach - line.size - line.low, 0) for line in lines]
    return padded(fills, parts, config)


def padded(fills: Parts, parts: Parts, config: Sequence[tuple[int, int, int]]) -> Parts:
    """Arrays padded along their last dimensions."""
    if not any(itertools.chain(*config)):
        return parts
    return tuple(
        view.pad(x, fill, [*((0, 0, 0),) * (x.ndim - len(config)), *config])
        for x, fill in zip(parts, fills, strict=True)
    )


def place(x: Value, lines: Sequence[Line], offsets: Sequence[int]) -> Value:
    """The elements at one place of every window of a padded array."""
    loops = x.ndim - len(lines)
    start = [k * line.window_dilation for k, line in zip(offsets, lines, strict=True)]
    limit = [s + (line.count - 1) * line.stride + 1 for s, line in zip(start, lines, strict=True)]
    strides = [line.stride for line in lines]
    return view.slice(x, [0] * loops + start, [*x.shape[:loops], *limit], [1] * loops + strides)


def places(lines: Sequence[Line]) -> itertools.product[tuple[int, ...]]:
    """The places of a window in row-major order."""
    return itertools.product(*(range(line.window) for line in lines))


def _place_by_place(monoid: Monoid, parts: Parts, lines: Sequence[Line]) -> Parts:
    total: Parts | None = None
    for offsets in places(lines):
        here = tuple(place(x, lines, offsets) for x in parts)
        total = here if total is None else monoid.join(total, here)
    assert total is not None, "a window has elements"
    return total


# --- holes ----------------------------------------------------------------------------------------


def _without_holes(monoid: Monoid, parts: Parts, lines: list[Line]) -> tuple[Parts, list[Line]]:
    """Dilated arrays, with fills between their elements where these cannot be stepped over."""
    if monoid.reduce is not None:
        for i, line in enumerate(lines):
            if line.base_dilation > 1 and line.stride == line.window_dilation == 1 and line.count:
                parts = _in_phases(monoid, parts, i - len(lines), line)
                lines[i] = Line(line.count, 1)
    config = [(0, 0, line.base_dilation - 1) for line in lines]
    dense = [dataclasses.replace(line, size=line.base, base_dilation=1) for line in lines]
    return padded(monoid.fills, parts, config), dense


def _in_phases(monoid: Monoid, parts: Parts, axis: int, line: Line) -> Parts:
    """Windows over a dilated axis: those that begin equally between elements see the same ones.

    With L the dilation and p - low = L a - b, 0 <= b < L, place L j + b of window p holds element a + j.
    """
    step = line.base_dilation
    start = -(line.low // step)
    first = step - 1 - (step * start + line.low)
    count = -(-(first + line.count) // step)
    length = -(-line.window // step)
    ends = [(-start, count + length - 1 - line.size + start, 0)] + [(0, 0, 0)] * (-axis - 1)
    parts = padded(monoid.fills, parts, ends)
    position = axis + parts[0].ndim
    shape = [*parts[0].shape[:position], count, step, *parts[0].shape[position + 1 :]]
    # The places between elements count down from the next element.
    b = _number_along(shape, position + 1, step)
    total: Parts | None = None
    for j in range(length):
        here = []
        for x, fill in zip(parts, monoid.fills, strict=True):
            seen = view.expand_dims(_cut(x, axis, j, j + count, 1), (position + 1,))
            seen = families.broadcast_to(seen, tuple(shape))
            if line.window - step * j < step:
                is_inside = families.bind_scalars(e.lt_p, b, line.window - step * j)
                seen = trace.bind1(e.select_n_p, is_inside, fill, seen)
            here.append(seen)
        total = tuple(here) if total is None else monoid.join(total, tuple(here))
    assert total is not None, "a window has elements"
    merged = (*shape[:position], count * step, *shape[position + 2 :])
    return tuple(_cut(view.reshape(x, merged), axis, first, first + line.count, 1) for x in total)


def _number_along(shape: Sequence[int], position: int, step: int) -> Value:
    """`step - 1` down to 0 along one dimension of `shape`."""
    count = view.broadcasted_iota(dtypes.int32, [step], 0)
    down = families.bind_scalars(e.add_p, trace.bind1(e.neg_p, count), step - 1)
    return view.broadcast_in_dim(down, tuple(shape), (position,))


# --- one dimension after the other ------------------------------------------------------------------


def _apart(
    reduce: Callable[[Value, Sequence[int]], Value], parts: Parts, lines: list[Line]
) -> tuple[Parts, list[Line]]:
    """Windows that share no place, joined in one reduction over all such dimensions."""
    (x,) = parts
    loops = x.ndim - len(lines)
    shape, axes, found = list(x.shape[:loops]), [], []
    for line, size in zip(lines, x.shape[loops:], strict=True):
        if line.window > 1 and line.window_dilation == 1 and (line.count == 1 or line.stride == line.window):
            shape += [line.count, line.window]
            axes.append(len(shape) - 1)
            found.append(Line(line.count, 1))
        else:
            shape.append(size)
            found.append(line)
    return ((reduce(view.reshape(x, shape), axes),), found) if axes else (parts, lines)


def _along(monoid: Monoid, parts: Parts, axis: int, line: Line) -> Parts:
    """Windows along one axis of padded arrays."""
    shared = math.gcd(line.window, line.stride) if line.window_dilation == 1 else 1
    if line.count > 1 and shared > 1 and line.window > SHORT and monoid.reduce is not None:
        # Windows begin at multiples of `shared`, so blocks of that size are joined once for all of them.
        (x,) = parts
        position = axis + x.ndim
        num_blocks = x.shape[axis] // shared
        blocks = view.reshape(x, (*x.shape[:position], num_blocks, shared, *x.shape[position + 1 :]))
        parts = (monoid.reduce(blocks, (position + 1,)),)
        line = Line(num_blocks, line.window // shared, line.stride // shared)
    if line.window <= SHORT:
        total = tuple(_strided(x, axis, line, 0) for x in parts)
        for k in range(1, line.window):
            total = monoid.join(total, tuple(_strided(x, axis, line, k) for x in parts))
        return total
    return _by_doubling(monoid, parts, axis, line)


def _by_doubling(monoid: Monoid, parts: Parts, axis: int, line: Line) -> Parts:
    """Windows of 1, 2, 4, ... places at every place, and of these the ones that make up each window."""
    total: Parts | None = None
    offset, width, window = 0, 1, line.window
    while window:
        if window & 1:
            here = tuple(_strided(x, axis, line, offset) for x in parts)
            total = here if total is None else monoid.join(total, here)
            offset += width
        window >>= 1
        if window:
            step = width * line.window_dilation
            length = parts[0].shape[axis]
            first = tuple(_cut(x, axis, 0, length - step, 1) for x in parts)
            parts = monoid.join(first, tuple(_cut(x, axis, step, length, 1) for x in parts))
            width *= 2
    assert total is not None, "a window has elements"
    return total


def _strided(x: Value, axis: int, line: Line, offset: int) -> Value:
    start = offset * line.window_dilation
    return _cut(x, axis, start, start + (line.count - 1) * line.stride + 1, line.stride)


def _cut(x: Value, axis: int, start: int, stop: int, step: int) -> Value:
    return view.slice_in_dim(x, start, stop, step, axis=axis)
