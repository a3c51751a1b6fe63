"""What a convolution is for the machine: axes with their strides in image, kernel and result.

Patches are the matrix of all windows, P[m, k]: m numbers positions and the free letters of the image, k the
places inside a window and the contracted letters. The result is P times the kernel. Patches are never made;
an axis says how far the image moves with it, so any block of them can be copied from the image.

An image with holes is several problems, one for each place between its elements, each with the part of the
kernel that meets elements: nothing is multiplied by a hole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm.indexing import c_strides
from infini.core.ir import ArrayType, Attrs
from infini.lax.convolution import spec as spec_
from infini.lax.windows.padding import Line


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of patches.

    Args:
        size: its elements.
        x: elements from one to the next in the image.
        other: the same in the result for an axis of m, in the kernel for one of k.
        digit: number of the spatial dimension in which the image moves; -1 for a letter.
        step: places that the image moves in it.
    """

    size: int
    x: int
    other: int
    digit: int = -1
    step: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """Where windows leave the image: element `first + sum of steps` exists from 0 up to `size`."""

    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Group:
    """A letter of image, kernel and result: size and strides."""

    size: int
    x: int
    w: int
    out: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One product of patches and kernel for every group.

    Args:
        groups: letters of all three arrays.
        m: axes of patches that the result has, in its order.
        n: letters that kernel and result have, joined, as (size, stride in the kernel, stride in the result).
        k: axes of patches that are contracted, positions of the window first and then letters.
        bounds: of each spatial dimension, None where no window leaves the image.
        x_first: elements to what position 0 and place 0 meet.
        w_first: elements to the first place in the kernel.
        out_first: elements to the first position in the result.
        x_dtype: dtype of the image.
        w_dtype: dtype of the kernel.
        out_dtype: dtype of the result.
    """

    groups: tuple[Group, ...]
    m: tuple[Axis, ...]
    n: tuple[int, int, int]
    k: tuple[Axis, ...]
    bounds: tuple[Bound | None, ...]
    x_first: int
    w_first: int
    out_first: int
    x_dtype: np.dtype
    w_dtype: np.dtype
    out_dtype: np.dtype

    @property
    def num_groups(self) -> int:
        """Products."""
        return math.prod(g.size for g in self.groups)

    @property
    def rows(self) -> int:
        """Rows of patches."""
        return math.prod(a.size for a in self.m)

    @property
    def depth(self) -> int:
        """Columns of patches."""
        return math.prod(a.size for a in self.k)

    @property
    def flops(self) -> float:
        """Floating-point operations, two per product."""
        return 2.0 * self.num_groups * self.rows * self.n[0] * self.depth


@dataclass(frozen=True, slots=True)
class _Part:
    """A spatial dimension, or the part of it that meets the same elements of the kernel.

    Element `step * position + reach * tap - low` of the image meets tap `first_tap + each_tap * tap` and is
    added to position `first + each * position`.
    """

    step: int
    reach: int
    low: int
    count: int
    taps: int
    first_tap: int = 0
    each_tap: int = 1
    first: int = 0
    each: int = 1


def _parts(line: Line) -> list[_Part] | None:
    """A spatial dimension in parts without holes; None where strides and holes meet."""
    if line.base_dilation == 1:
        return [_Part(line.stride, line.window_dilation, line.low, line.count, line.window)]
    hole = line.base_dilation
    if not line.stride == line.window_dilation == 1:
        return None
    found = []
    for place in range(min(hole, line.count)):
        tap = (line.low - place) % hole
        taps = max(-(-(line.window - tap) // hole), 0)
        low = -((place + tap - line.low) // hole)
        count = -(-(line.count - place) // hole)
        found.append(_Part(1, 1, low, count, taps, tap, hole, place, hole))
    return found


def analyse(x: ArrayType, w: ArrayType, attrs: Attrs) -> tuple[Problem, ...] | None:
    """The products that a convolution without loop dimensions is; None where it is none of ours.

    A problem without places adds up nothing: its depth is 0.

    Args:
        x: type of the image.
        w: type of the kernel.
        attrs: attributes of `windowed_dot`.
    """
    reversed_ = attrs["flipped"]
    conv = spec_.analyse(x, w, **{name: value for name, value in attrs.items() if name != "flipped"})
    spec = conv.spec
    strides = [
        dict(zip(part, c_strides(shape), strict=True))
        for part, shape in ((spec.lhs, x.shape), (spec.rhs, w.shape), (spec.out, conv.shape))
    ]
    (in_x, in_w, in_out), sizes = strides, conv.sizes
    n = _joined(
        [
            (sizes[c], in_w[c], in_out[c])
            for c in spec.out
            if c.isalpha() and c in spec.rhs and c not in spec.lhs
        ]
    )
    parts = [_parts(line) for line in conv.lines]
    if n is None or any(found is None for found in parts):
        return None
    groups = tuple(Group(sizes[c], in_x[c], in_w[c], in_out[c]) for c in spec.groups if sizes[c] > 1)
    free = (c for c in spec.out if c in spec.lhs and c not in spec.rhs)
    m_letters = [Axis(sizes[c], in_x[c], in_out[c]) for c in free]
    k_letters = [Axis(sizes[c], in_x[c], in_w[c]) for c in spec.lhs if c in spec.contracted]
    problems = []
    for chosen in itertools.product(*(found for found in parts if found is not None)):
        m, k, bounds = list(m_letters), [], []
        x_first = w_first = out_first = 0
        for i, part in enumerate(chosen):
            c = str(i)
            is_reversed, line = reversed_[i], conv.lines[i]
            m.append(Axis(part.count, part.step * in_x[c], part.each * in_out[c], i, part.step))
            sign = -1 if is_reversed else 1
            k.append(Axis(part.taps, part.reach * in_x[c], sign * part.each_tap * in_w[c], i, part.reach))
            last = part.step * (part.count - 1) + part.reach * (part.taps - 1) - part.low
            is_inside = part.low <= 0 and last < line.size
            bounds.append(None if is_inside else Bound(-part.low, line.size))
            x_first -= part.low * in_x[c]
            w_first += in_w[c] * (line.window - 1 - part.first_tap if is_reversed else part.first_tap)
            out_first += in_out[c] * part.first
        m.sort(key=lambda a: -a.other)
        problems.append(
            Problem(
                groups, tuple(m), n, (*k, *k_letters), tuple(bounds), x_first, w_first, out_first, x.dtype,
                w.dtype, attrs["dtype"],
            )
        )  # fmt: skip
    return tuple(problems)


def _joined(letters: Sequence[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """Letters of kernel and result as one; None where they do not lie one after the other."""
    found = (1, 1, 1)
    for size, w, out in reversed([d for d in letters if d[0] > 1]):
        if found[0] == 1:
            found = (size, w, out)
        elif (w, out) == (found[0] * found[1], found[0] * found[2]):
            found = (found[0] * size, found[1], found[2])
        else:
            return None
    return found


def without_ones(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes of more than one element."""
    return tuple(a for a in axes if a.size > 1)


def joined_run(axes: Sequence[Axis], problem: Problem) -> tuple[tuple[Axis, ...], int, int]:
    """The axes of patches that lie side by side in the image as one run: the other axes, the length of the
    run, and the stride of its elements in result or kernel.

    A spatial axis is part of a run where no window leaves the image.
    """
    rest = list(without_ones(axes))
    length, other = 1, 0
    while True:
        following = next((a for a in rest if a.x == length and _may_join(a, problem, length, other)), None)
        if following is None:
            return tuple(rest), length, other
        other = following.other if length == 1 else other
        length *= following.size
        rest.remove(following)


def _may_join(axis: Axis, problem: Problem, length: int, other: int) -> bool:
    is_bounded = axis.digit >= 0 and problem.bounds[axis.digit] is not None
    return not is_bounded and (length == 1 or axis.other == length * other)
