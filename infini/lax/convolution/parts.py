"""Convolutions whose patches are too many to hold: computed part by part, in a loop.

A part is one of the batch, of the groups, of contracted features, of places of the result, or of places of
the kernel, whichever divides the patches without repeating work. Contracted parts add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

from infini.core import dtypes, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import elementwise as e, families, indexing, loops, view
from infini.lax.convolution.plain import Compute, Convolution, padded
from infini.lax.windows.padding import Line

Part: TypeAlias = Callable[[Sequence[Value]], Convolution]


def in_parts(conv: Convolution, wanted: int, compute: Compute) -> Value:
    """The result, with at most a `wanted`-th of the patches at a time where possible.

    Args:
        conv: the convolution.
        wanted: parts to make at least.
        compute: computes a part.
    """
    letters = [c for c in conv.spec.lhs if not c.isdigit() and conv.sizes[c] > 1]
    # A letter that only the image has is cut without touching the kernel, a contracted one costs additions.
    letters.sort(key=lambda c: (c in conv.spec.rhs, c not in conv.spec.out, conv.spec.lhs.index(c)))
    for letter in letters:
        size = conv.sizes[letter]
        count = next((n for n in range(min(wanted, size), size + 1) if size % n == 0), size)
        if count >= wanted:
            return _by_letter(conv, letter, count, compute)
    number, line = max(enumerate(conv.lines), key=lambda item: max(item[1].count, item[1].window))
    if line.count >= line.window:
        return _by_results(conv, number, min(wanted, line.count), compute)
    return _by_kernel(conv, number, min(wanted, line.window), compute)


def _cut(x: Value, axis: int, count: int) -> Value:
    """An array with `count` equal parts along an axis in front."""
    x = view.reshape(x, (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :]))
    return view.transpose(x, [axis, *(d for d in range(x.ndim) if d != axis)])


def _joined(x: Value, axis: int) -> Value:
    """The inverse of `_cut`."""
    x = view.transpose(x, [*range(1, axis + 1), 0, *range(axis + 1, x.ndim)])
    return view.reshape(x, (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]))


def _by_letter(conv: Convolution, letter: str, count: int, compute: Compute) -> Value:
    cut = [_cut(conv.x, conv.spec.lhs.index(letter), count)]
    if letter in conv.spec.rhs:
        cut.append(_cut(conv.w, conv.spec.rhs.index(letter), count))

    def part(each: Sequence[Value]) -> Convolution:
        return dataclasses.replace(conv, x=each[0], w=each[1] if len(each) > 1 else conv.w)

    if letter in conv.spec.out:
        return _joined(_stacked(cut, part, compute), conv.spec.out.index(letter))
    return _added(conv, cut, part, compute)


def _by_results(conv: Convolution, number: int, count: int, compute: Compute) -> Value:
    """Some places of the result at a time, along one dimension."""
    line = conv.lines[number]
    size = -(-line.count // count)
    axis = conv.spec.lhs.index(str(number))
    reach = (count * size - 1) * line.stride + line.extent
    image = _along(conv.x, axis, (line.low, reach - line.size - line.low))
    length = (size - 1) * line.stride + line.extent
    own = Line(length, line.window, line.stride, window_dilation=line.window_dilation)

    def part(each: Sequence[Value]) -> Convolution:
        x = _window(image, axis, each[0], size * line.stride, length)
        return dataclasses.replace(conv, x=x, lines=_with(conv, number, own))

    place = conv.spec.out.index(str(number))
    found = _joined(_stacked([view.iota(dtypes.int32, count)], part, compute), place)
    return view.slice_in_dim(found, 0, line.count, axis=place)


def _by_kernel(conv: Convolution, number: int, count: int, compute: Compute) -> Value:
    """Some places of the kernel at a time, along one dimension."""
    line = conv.lines[number]
    size = -(-line.window // count)
    axis, kernel_axis = conv.spec.lhs.index(str(number)), conv.spec.rhs.index(str(number))
    reach = (line.count - 1) * line.stride + (count * size - 1) * line.window_dilation + 1
    image = _along(conv.x, axis, (line.low, reach - line.size - line.low))
    kernel = _along(conv.w, kernel_axis, (0, count * size - line.window))
    length = (line.count - 1) * line.stride + (size - 1) * line.window_dilation + 1
    own = Line(length, size, line.stride, window_dilation=line.window_dilation)

    def part(each: Sequence[Value]) -> Convolution:
        x = _window(image, axis, each[0], size * line.window_dilation, length)
        return dataclasses.replace(conv, x=x, w=each[1], lines=_with(conv, number, own))

    return _added(conv, [view.iota(dtypes.int32, count), _cut(kernel, kernel_axis, count)], part, compute)


def _with(conv: Convolution, number: int, line: Line) -> tuple[Line, ...]:
    return (*conv.lines[:number], line, *conv.lines[number + 1 :])


def _along(x: Value, axis: int, ends: tuple[int, int]) -> Value:
    return padded(x, [(*ends, 0) if d == axis else (0, 0, 0) for d in range(x.ndim)])


def _window(x: Value, axis: int, number: Value, step: int, length: int) -> Value:
    start = families.bind_scalars(e.mul_p, number, step)
    return indexing.dynamic_slice_in_dim(x, start, length, axis=axis)


def _stacked(cut: Sequence[Value], part: Part, compute: Compute) -> Value:
    """Results of the parts along a new first dimension."""

    def step(carry: tuple[()], each: Sequence[Value]) -> tuple[tuple[()], Value]:
        return carry, compute(part(each))

    _, found = loops.scan(step, (), tuple(cut))
    stacked: Value = found
    return stacked


def _added(conv: Convolution, cut: Sequence[Value], part: Part, compute: Compute) -> Value:
    """The sum of the results of the parts."""

    def step(total: Value, each: Sequence[Value]) -> tuple[Value, None]:
        found = compute(dataclasses.replace(part(each), dtype=conv.accumulator))
        return trace.bind1(e.add_p, total, found), None

    zero = families.zeros(ArrayType(conv.shape, conv.accumulator))
    found, _ = loops.scan(step, zero, tuple(cut))
    return e.convert_element_type(found, conv.dtype)
