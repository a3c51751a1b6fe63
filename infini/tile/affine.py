"""The map of an arrangement: from (program, loop, element) to array index, with symbols and with numbers.

Every size and distance of a map is compiled to one function of integers at its first use, so that other
shapes cost no symbolic work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from infini.core import errors
from infini.tile import symbols
from infini.tile.geometry import Bound, Dimension, Factor, Requirement, Steps
from infini.tile.numbers import Numbers
from infini.tile.symbols import BlockSize, Size

Level = tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """A factor with numbers: `size` steps, each of which moves by `steps`, one distance per coordinate."""

    size: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound with numbers: its coordinate lies in `[0, size)`, and a place moves by `steps` in the array."""

    size: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concrete:
    """A map at concrete sizes.

    Args:
        shape: of the array.
        levels: per level and dimension its loops, slowest first.
        offsets: per coordinate: dimensions of the array, then limits.
        limits: what the coordinates after those of the array lie in.
    """

    shape: tuple[int, ...]
    levels: tuple[tuple[tuple[Loop, ...], ...], ...]
    offsets: tuple[int, ...]
    limits: tuple[Limit, ...]

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Every loop, outermost first."""
        return tuple(loop for level in self.levels for dimension in level for loop in dimension)

    def positions(self, top: int = 0) -> np.ndarray:
        """Which element of the array each element of the levels from `top` is, counted in C order; -1
        outside the array and outside the limits. Outer levels stand at their first place.
        """
        kept = [d for level in self.levels[top:] for d in level]
        sizes = [loop.size for d in kept for loop in d]
        inside = np.ones(sizes, bool)
        position = np.zeros(sizes, np.int64)
        places = np.indices(sizes, dtype=np.int64, sparse=True)
        ends = (*self.shape, *(limit.size for limit in self.limits))
        for coordinate, (end, offset) in enumerate(zip(ends, self.offsets, strict=True)):
            at = np.full(sizes, offset, np.int64)
            for place, loop in zip(places, (loop for d in kept for loop in d), strict=True):
                at += place * loop.steps[coordinate]
            inside &= (at >= 0) & (at < end)
            if coordinate < len(self.shape):
                position = position * end + at
        found = np.where(inside, position, -1)
        return found.reshape([math.prod(loop.size for loop in d) for d in kept])


@dataclass(frozen=True)
class Map:
    """Levels of dimensions over an array.

    Args:
        shape: of the array.
        levels: outermost first.
        offsets: where the first element of all lies.
        bounds: of the coordinates after those of the array.
        requirements: what symbols do not decide.
    """

    shape: tuple[Size, ...]
    levels: tuple[Level, ...]
    offsets: Steps = ()
    bounds: tuple[Bound, ...] = ()
    requirements: tuple[Requirement, ...] = ()

    def expressions(self) -> list[Size]:
        """Every size and distance, in the order in which `at` reads their numbers."""
        found = [*self.shape]
        for factor in (f for level in self.levels for dimension in level for f in dimension.factors):
            found += [factor.size, *(distance for _, distance in factor.steps)]
        found += [distance for _, distance in self.offsets]
        for bound in self.bounds:
            found += [bound.size, *(distance for _, distance in bound.steps)]
        for requirement in self.requirements:
            found += [requirement.value, requirement.lower, requirement.upper]
        return found

    @functools.cached_property
    def free_symbols(self) -> frozenset[Size]:
        """The symbols in it."""
        return frozenset(s for e in self.expressions() for s in e.free_symbols)

    @functools.cached_property
    def block_sizes(self) -> tuple[BlockSize, ...]:
        """The tunable symbols in it."""
        return symbols.block_sizes(self.expressions())

    @functools.cached_property
    def counts(self) -> Numbers:
        """Elements of the innermost level, and of all levels together."""
        sizes = [[dimension.size for dimension in level] for level in self.levels]
        return Numbers([symbols.product(sizes[-1]), symbols.product(n for level in sizes for n in level)])

    def substituted(self, found: Mapping[Size, Size]) -> Map:
        """The map with some symbols replaced."""

        def steps(old: Steps) -> Steps:
            return tuple((c, new) for c, distance in old if (new := distance.xreplace(found)) != 0)

        def level(old: Level) -> Level:
            return tuple(
                Dimension(tuple(Factor(f.size.xreplace(found), steps(f.steps)) for f in d.factors))
                for d in old
            )

        return Map(
            tuple(n.xreplace(found) for n in self.shape),
            tuple(level(x) for x in self.levels),
            steps(self.offsets),
            tuple(Bound(b.size.xreplace(found), steps(b.steps)) for b in self.bounds),
            tuple(
                Requirement(r.what, *(e.xreplace(found) for e in (r.value, r.lower, r.upper)))
                for r in self.requirements
            ),
        )

    def at(self, values: Mapping[Size, int], label: str) -> Concrete:
        """The map at concrete sizes; `label` names the tensor in messages.

        Raises:
            TypeMismatchError: a size is not known, or what an operation required does not hold.
        """
        numbers = iter(self._numbers(values))
        rank = len(self.shape)
        width = rank + len(self.bounds)

        def steps(coordinates: tuple[int, ...], length: int) -> tuple[int, ...]:
            found = [0] * length
            for coordinate in coordinates:
                found[coordinate] = next(numbers)
            return tuple(found)

        shape = tuple(next(numbers) for _ in self.shape)
        levels = tuple(
            tuple(
                tuple(Loop(next(numbers), steps(where, width)) for where in dimension) for dimension in level
            )
            for level in self._coordinates
        )
        offsets = steps(tuple(c for c, _ in self.offsets), width)
        # The array's part of the moves: a bound of a bound does not matter, both are checked.
        limits = tuple(
            Limit(next(numbers), steps(tuple(c for c, _ in bound.steps), width)[:rank])
            for bound in self.bounds
        )
        self._check(label, numbers)
        return Concrete(shape, levels, offsets, limits)

    def _check(self, label: str, numbers: Iterator[int]) -> None:
        for requirement in self.requirements:
            value, lower, upper = next(numbers), next(numbers), next(numbers)
            if not lower <= value <= upper:
                raise errors.TypeMismatchError(
                    f"{label}: {requirement.what} does not fit these sizes",
                    got=f"{requirement.value} = {value}",
                    expected=str(lower) if lower == upper else f"from {lower} to {upper}",
                )

    @functools.cached_property
    def _numbers(self) -> Numbers:
        return Numbers(self.expressions())

    @functools.cached_property
    def _coordinates(self) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]:
        """Which coordinates each factor moves along."""
        return tuple(
            tuple(tuple(tuple(c for c, _ in f.steps) for f in d.factors) for d in level)
            for level in self.levels
        )
