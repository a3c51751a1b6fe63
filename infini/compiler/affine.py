"""Affine index maps: where an element of an array lies, as a function of the axes of an iteration domain.

A domain is a list of axis sizes, row-major. An `Affine` is `offset + sum coefficient * axis`; a map has one
per array dimension. Reshapes stay affine when the axes are fine enough; `SplitAxis` asks for a finer axis,
`NotAffine` says that none exists.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infini.core.ir import Shape


class NotAffine(Exception):  # noqa: N818  # control flow inside the fuser, never seen by users
    """No choice of axes makes this index affine."""


class SplitAxis(Exception):  # noqa: N818  # control flow inside the fuser, never seen by users
    """Axis `axis` has to become two, the inner one of size `inner`."""

    def __init__(self, axis: int, inner: int) -> None:
        super().__init__(axis, inner)
        self.axis, self.inner = axis, inner


@dataclass(frozen=True, slots=True)
class Affine:
    """`offset + sum coefficient * axis` over (axis, coefficient) pairs in increasing order of the axis."""

    offset: int = 0
    terms: tuple[tuple[int, int], ...] = ()

    def scaled(self, factor: int) -> Affine:
        """The product with a number."""
        return Affine(self.offset * factor, tuple((a, c * factor) for a, c in self.terms) if factor else ())

    def shifted(self, offset: int) -> Affine:
        """The sum with a number."""
        return Affine(self.offset + offset, self.terms)

    def plus(self, other: Affine) -> Affine:
        """The sum of two."""
        if not other.terms:
            return Affine(self.offset + other.offset, self.terms) if other.offset else self
        if not self.terms and all(c for _, c in other.terms):
            return Affine(self.offset + other.offset, other.terms)
        terms = dict(self.terms)
        for axis, coefficient in other.terms:
            terms[axis] = terms.get(axis, 0) + coefficient
        return Affine(self.offset + other.offset, tuple(sorted((a, c) for a, c in terms.items() if c)))

    def coefficient(self, axis: int) -> int:
        """Factor of an axis."""
        return dict(self.terms).get(axis, 0)

    def range(self, sizes: Sequence[int]) -> tuple[int, int]:
        """Smallest and largest value over the domain."""
        ends = [c * (sizes[a] - 1) for a, c in self.terms]
        return self.offset + sum(e for e in ends if e < 0), self.offset + sum(e for e in ends if e > 0)


IndexMap: TypeAlias = tuple[Affine, ...]
ZERO = Affine()


def axis(number: int) -> Affine:
    """The index along one axis."""
    return Affine(0, ((number, 1),))


def row_major(shape: Shape) -> tuple[int, ...]:
    """Element strides of a dense array."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def linearize(index: Sequence[Affine], shape: Shape) -> Affine:
    """Position in memory of an element of a dense array."""
    total = ZERO
    for place, stride in zip(index, row_major(shape), strict=True):
        total = total.plus(place.scaled(stride))
    return total


def flat(axes: Sequence[int], sizes: Sequence[int]) -> Affine:
    """Row-major position over some axes of a domain, in the order given."""
    shape = tuple(sizes[a] for a in axes)
    return linearize([axis(a) for a in axes], shape)


def delinearize(position: Affine, shape: Shape, sizes: Sequence[int]) -> IndexMap:
    """Index of the element at a row-major position of an array of `shape`.

    Raises:
        SplitAxis: an axis covers parts of several dimensions.
        NotAffine: the dimensions cannot be told apart, as after a slice across rows.
    """
    strides = row_major(shape)
    found: list[dict[int, int]] = [{} for _ in shape]
    offsets, rest = [], position.offset
    for stride in strides:
        offsets.append(rest // stride)
        rest %= stride
    for a, coefficient in position.terms:
        if sizes[a] == 1:
            continue
        if coefficient < 0:
            raise NotAffine
        dimension = next(
            (d for d, stride in enumerate(strides) if stride <= coefficient and shape[d] > 1), None
        )
        if dimension is None or coefficient % strides[dimension]:
            raise NotAffine
        limit = strides[dimension] * shape[dimension]
        if coefficient * sizes[a] > limit:
            inner, remainder = divmod(limit, coefficient)
            if remainder or inner <= 1 or sizes[a] % inner:
                raise NotAffine
            raise SplitAxis(a, inner)
        found[dimension][a] = coefficient // strides[dimension]
    index = tuple(Affine(o, tuple(sorted(t.items()))) for o, t in zip(offsets, found, strict=True))
    for place, size in zip(index, shape, strict=True):
        low, high = place.range(sizes)
        if low < 0 or high >= max(size, 1):
            raise NotAffine
    return index


def refinement(shapes: Sequence[Shape]) -> list[int] | None:
    """Sizes of the coarsest axes of which the dimensions of all `shapes` are products; None when there are
    none.
    """
    steps = {1}
    for shape in shapes:
        steps.update(stride * size for stride, size in zip(row_major(shape), shape, strict=True))
    ordered = sorted(steps)
    steps_up = list(itertools.pairwise(ordered))
    if any(b % a for a, b in steps_up):
        return None
    return [b // a for a, b in reversed(steps_up)] or [1]


def split(sizes: Sequence[int], request: SplitAxis) -> list[int]:
    """The sizes with one axis cut in two."""
    before, size, after = sizes[: request.axis], sizes[request.axis], sizes[request.axis + 1 :]
    return [*before, size // request.inner, request.inner, *after]
