"""Blocks of patches copied from the image into a buffer, in the dtype of the products; zeros where a window
leaves the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution.problem import Axis, Bound
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
