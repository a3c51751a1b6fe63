"""Blocks of patches copied from the image into a buffer, in the dtype of the products; zeros where a window
leaves the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution.problem import Axis, Bound, Group, Problem
from infini.compiler.llvm.types import I1

UNROLLED = 8  # vectors of a run that are copied without a loop


@dataclass(frozen=True, slots=True)
class Reach:
    """Where some indices of patches lead: elements in the image, and places in each bounded dimension."""

    x: Int
    along: tuple[Int | None, ...]


def indices(f: Function, number: Int, axes: Sequence[Axis]) -> list[Int]:
    """A number of some axes together as one index per axis, the last one changing fastest."""
    found: list[Int] = []
    for axis in reversed(axes[1:]):
        number, rest = f.divide(number, axis.size)
        found.append(rest)
    return [number, *reversed(found)] if axes else []


def reach(f: Function, number: Int, axes: Sequence[Axis], bounds: Sequence[Bound | None]) -> Reach:
    """Where a number of some axes together leads."""
    x: Int = 0
    along: list[Int | None] = [None if bound is None else 0 for bound in bounds]
    for axis, index in zip(axes, indices(f, number, axes), strict=True):
        x = f.add(x, f.mul(index, axis.x))
        if axis.digit >= 0 and (before := along[axis.digit]) is not None:
            along[axis.digit] = f.add(before, f.mul(index, axis.step))
    return Reach(x, tuple(along))


def first_of_group(
    f: Function, problem: Problem, groups: Sequence[Group], number: Int
) -> tuple[Int, Int, Int]:
    """Elements to the first one of a number of some groups together, in image, kernel and result."""
    x: Int = problem.x_first
    w: Int = problem.w_first
    out: Int = problem.out_first
    for group in reversed(groups):
        number, index = f.divide(number, group.size) if group is not groups[0] else (0, number)
        x, w = f.add(x, f.mul(index, group.x)), f.add(w, f.mul(index, group.w))
        out = f.add(out, f.mul(index, group.out))
    return x, w, out


def range_inside(f: Function, row: Reach, axis: Axis, bounds: Sequence[Bound | None]) -> tuple[Int, Int]:
    """The places of an axis, from where a row begins, that meet elements."""
    bound = bounds[axis.digit] if axis.digit >= 0 else None
    if bound is None:
        return 0, axis.size
    along = row.along[axis.digit]
    assert along is not None
    place = f.add(along, bound.first)
    if isinstance(place, int):
        taps = [t for t in range(axis.size) if 0 <= place + t * axis.step < bound.size]
        return (taps[0], taps[-1] + 1) if taps else (0, 0)
    last = axis.step - 1
    first, _ = f.divide(f.add(f.maximum(f.sub(0, place), 0), last), axis.step)
    stop, _ = f.divide(f.maximum(f.add(f.sub(bound.size, place), last), 0), axis.step)
    return first, f.minimum(stop, axis.size)


def is_inside(f: Function, bounds: Sequence[Bound | None], *parts: Reach) -> Value | None:
    """Whether the element to which all parts together lead exists; None when it always does."""
    found: Value | None = None
    for number, bound in enumerate(bounds):
        if bound is None:
            continue
        place: Int = bound.first
        for part in parts:
            along = part.along[number]
            assert along is not None
            place = f.add(place, along)
        fits = f.compare("ult", f.integer(place), f.integer(bound.size))
        found = fits if found is None else f.binary("and", found, fits)
    return found


def whether_all_inside(
    f: Function, bounds: Sequence[Bound | None], rows: Sequence[Reach], axes: Sequence[Axis]
) -> Iterator[bool]:
    """True in the branch where all places of some axes exist in all rows, False in the other one."""
    found: Value | None = None
    for number, bound in enumerate(bounds):
        if bound is None:
            continue
        span = sum(a.step * (a.size - 1) for a in axes if a.digit == number)
        if span >= bound.size:
            yield False
            return
        for row in rows:
            along = row.along[number]
            assert along is not None
            place = f.integer(f.add(along, bound.first))
            fits = f.compare("ult", place, f.integer(bound.size - span))
            found = fits if found is None else f.binary("and", found, fits)
    if found is None:
        yield True
        return
    with f.when(found):
        yield True
    with f.when(f.binary("xor", found, f.constant(True, I1))):
        yield False


@dataclass(frozen=True, slots=True)
class Runs:
    """Copies of runs of elements.

    Args:
        source: dtype of the image.
        compute: dtype of the copy.
        lanes: elements of a register.
    """

    source: np.dtype
    compute: np.dtype
    lanes: int

    @property
    def memory(self) -> str:
        """LLVM's name of an element of the image."""
        return registers.memory_element(self.source)

    @property
    def element(self) -> str:
        """LLVM's name of an element of the copy."""
        return registers.memory_element(self.compute)

    def copy(self, f: Function, here: Value, there: Value, length: int, inside: Value | None) -> None:
        """Copy a run; whole vectors are written, so up to a vector behind it changes."""
        if inside is None:
            self._each(f, there, length, lambda place, count: self._load(f, here, place, count))
            return
        zero = registers.constant(f, 0, self.compute, self.lanes)
        with f.when(inside):
            self._each(f, there, length, lambda place, count: self._load(f, here, place, count))
        with f.when(f.binary("xor", inside, f.constant(True, I1))):
            self._each(f, there, length, lambda place, count: zero)

    def copy_pairs(
        self, f: Function, here: Sequence[Value], there: Value, length: int, inside: Sequence[Value | None]
    ) -> None:
        """Copy two runs of 16 bits as one of 32, zeros for what does not exist."""

        def load(place: Int, count: int) -> Value:
            halves = []
            for pointer, exists in zip(here, inside, strict=True):
                mask = f.first_lanes(count, self.lanes)
                if exists is not None:
                    mask = f.binary("and", f.splat(exists, self.lanes), mask)
                source = f.at(pointer, place, self.memory)
                if exists is None and count == self.lanes:
                    bits = registers.load(f, source, self.source, self.lanes)
                else:
                    bits = registers.masked_load(f, source, self.source, mask, 0)
                halves.append(f.convert("zext", bits, bits.type.with_element("i32")))
            low, high = halves
            return f.binary("or", low, f.binary("shl", high, f.constant(16, high.type)))

        self._each(f, there, length, load)

    def _each(self, f: Function, there: Value, length: int, load: Callable[[Int, int], Value]) -> None:
        def move(place: Int, count: int) -> None:
            registers.store(f, load(place, count), f.at(there, place, self.element), self.compute)

        step = UNROLLED * self.lanes
        whole = length // step * step if length >= 2 * step else 0
        if whole:
            with f.loop(0, whole, step) as loop:
                for u in range(UNROLLED):
                    move(f.add(loop.index, u * self.lanes), self.lanes)
        for start in range(whole, length, self.lanes):
            move(start, min(self.lanes, length - start))

    def _load(self, f: Function, here: Value, place: Int, count: int) -> Value:
        pointer = f.at(here, place, self.memory)
        if count == self.lanes:
            x = registers.load(f, pointer, self.source, self.lanes)
        else:
            x = registers.masked_load(f, pointer, self.source, f.first_lanes(count, self.lanes), 0)
        return operations.convert(f, self.source, x, new_dtype=self.compute)
