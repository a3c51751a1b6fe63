"""Dimensions of arranged tensors and how they are cut, picked from and widened.

A dimension is a product of *factors*; one step of a factor moves a fixed distance along some *coordinates*.
The first coordinates are the dimensions of the array. Cutting and padding add one each: the place in what was
cut or padded, which must lie within its *bound*. So everything stays an affine map with a box around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from infini.core import errors
from infini.tile import reasoning, symbols
from infini.tile.symbols import Size

Steps = tuple[
    tuple[int, Size], ...
]  # (coordinate, distance), by coordinate; coordinates left out do not move


@dataclass(frozen=True, slots=True)
class Factor:
    """`size` steps, each of which moves by `steps`."""

    size: Size
    steps: Steps


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of a level: the product of its factors, slowest first; none means size 1."""

    factors: tuple[Factor, ...] = ()

    @property
    def size(self) -> Size:
        """Number of steps."""
        return symbols.product(f.size for f in self.factors)

    def collapsed(self) -> Dimension:
        """The same dimension with neighbouring factors joined where they walk evenly."""
        joined: list[Factor] = []
        # Of sizes that are all 1 the first stays: it says where tiles that overrun it go.
        for factor in [f for f in self.factors if not reasoning.is_one(f.size)] or self.factors[:1]:
            if joined and _is_even(joined[-1].steps, times(factor.steps, factor.size)):
                joined[-1] = Factor(joined[-1].size * factor.size, factor.steps)
            else:
                joined.append(factor)
        return Dimension(tuple(joined))


@dataclass(frozen=True, slots=True)
class Bound:
    """A coordinate that must lie in `[0, size)`: elements elsewhere count as outside the array.

    Args:
        size: its number of places.
        steps: how one place moves in the array, when the bound was made.
    """

    size: Size
    steps: Steps


@dataclass(frozen=True, slots=True)
class Requirement:
    """What is checked at the call because symbols do not decide it: `value` lies in `[lower, upper]`."""

    what: str
    value: Size
    lower: Size
    upper: Size


@dataclass(frozen=True, slots=True)
class Cut:
    """A dimension in tiles.

    Args:
        count: which tile.
        elements: which element of a tile.
        bound: of the new coordinate, where tiles may reach beyond the dimension.
    """

    count: Dimension
    elements: Dimension
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """A dimension after indexing.

    Args:
        dimension: what is left, nothing after an integer.
        moved: how far the origin moves.
        requirement: of an integer that may be out of range.
    """

    dimension: Dimension | None
    moved: Steps = ()
    requirement: Requirement | None = None


def times(steps: Steps, factor: Size) -> Steps:
    """That many steps at once."""
    return () if factor == 0 else tuple((c, distance * factor) for c, distance in steps)


def plus(first: Steps, second: Steps) -> Steps:
    """One after the other."""
    found = dict(first)
    for coordinate, distance in second:
        found[coordinate] = found.get(coordinate, 0) + distance
    return tuple(sorted(((c, d) for c, d in found.items() if d != 0), key=lambda item: item[0]))


def _is_even(first: Steps, second: Steps) -> bool:
    return len(first) == len(second) and all(
        a == b and reasoning.is_equal(m, n) for (a, m), (b, n) in zip(first, second, strict=True)
    )


# --- cutting --------------------------------------------------------------------------------


def cut(
    dimension: Dimension, tile: Size, stride: Size, dilation: Size, *, floor_mode: bool, coordinate: int
) -> Cut:
    """One dimension in tiles; -1 as of `Tensor.tile`.

    Args:
        dimension: the dimension.
        tile: elements of a tile.
        stride: from tile to tile.
        dilation: from element to element.
        floor_mode: whether a last tile that is not full is dropped.
        coordinate: number of the new coordinate, if there is one.

    Raises:
        TypeMismatchError: a flattened dimension would be cut across its parts.
    """
    if reasoning.is_one(dilation) and stride in (-1, tile):
        if tile == -1:
            return Cut(Dimension(), dimension)
        if reasoning.is_one(tile):
            return Cut(dimension, Dimension())
    parts = dimension.collapsed().factors or (Factor(sympy.Integer(1), ()),)
    tile = dimension.size if tile == -1 else tile
    stride = tile if stride == -1 else stride
    if len(parts) > 1:
        return _cut_parts(parts, tile, stride, dilation, floor_mode, coordinate)
    return _cut_factor(parts[0], tile, stride, dilation, floor_mode, coordinate)


def _cut_factor(
    factor: Factor, tile: Size, stride: Size, dilation: Size, floor_mode: bool, coordinate: int
) -> Cut:
    reach = (tile - 1) * dilation + 1
    count = _count(factor.size, stride, reach, floor_mode)
    steps, bound = factor.steps, None
    is_inside = (floor_mode and stride != 0) or _ends_inside(factor.size, count, stride, reach)
    # A dimension that repeats has no end, so tiles cannot overrun it.
    if steps and not is_inside:
        steps, bound = (*steps, (coordinate, sympy.Integer(1))), Bound(factor.size, steps)
    return Cut(
        Dimension((Factor(count, times(steps, stride)),)),
        Dimension((Factor(tile, times(steps, dilation)),)),
        bound,
    )


def _count(size: Size, stride: Size, reach: Size, floor_mode: bool) -> Size:
    """Tiles that start inside, up to the first that reaches the end; with `floor_mode` those that end
    inside.
    """
    if stride == 0:
        return sympy.Integer(1)
    if floor_mode:
        return reasoning.at_least(reasoning.floor_div(size - reach, stride) + 1, sympy.Integer(0))
    starts = reasoning.ceil_div(size, stride)
    if reasoning.is_at_most(reach, stride):
        return starts
    covering = reasoning.at_least(reasoning.ceil_div(size - reach, stride) + 1, sympy.Integer(1))
    return covering if reasoning.is_at_most(1, size) else reasoning.at_most(covering, starts)


def _ends_inside(size: Size, count: Size, stride: Size, reach: Size) -> bool:
    """Whether the last tile is known to end inside: the common cases, what is left gets a bound."""
    if all(n.is_Integer for n in (size, count, stride, reach)):
        return bool((count - 1) * stride + reach <= size)
    return bool(stride == reach) and reasoning.is_multiple(size, stride)


def _cut_parts(
    parts: Sequence[Factor], tile: Size, stride: Size, dilation: Size, floor_mode: bool, coordinate: int
) -> Cut:
    """A flattened dimension: whole fast parts go to the tile, and one part is cut, evenly unless it is the
    slowest.
    """
    sizes = " x ".join(str(f.size) for f in parts)
    if not (reasoning.is_equal(stride, tile) and reasoning.is_one(dilation)):
        raise errors.TypeMismatchError(
            "a flattened dimension whose parts do not lie evenly has no strides and no dilation",
            got=f"a dimension of {sizes}, tile {tile}, stride {stride}, dilation {dilation}",
            fix="tile before flatten",
        )
    left, elements = tile, Dimension()
    for at in reversed(range(len(parts))):
        part = parts[at]
        if reasoning.is_one(left):
            return Cut(Dimension(tuple(parts[: at + 1])), elements)
        if at and reasoning.is_multiple(left, part.size):
            left = sympy.cancel(left / part.size)
            elements = Dimension((part, *elements.factors))
        elif at == 0 or reasoning.is_multiple(part.size, left):
            # The slowest part may be overrun, as a plain dimension is.
            last = _cut_factor(part, left, left, sympy.Integer(1), floor_mode, coordinate)
            return Cut(
                Dimension((*parts[:at], *last.count.factors)),
                Dimension((*last.elements.factors, *elements.factors)),
                last.bound,
            )
        else:
            break
    raise errors.TypeMismatchError(
        "a flattened dimension is cut across parts that do not lie evenly in the array",
        got=f"a dimension of {sizes}, tile size {tile}",
        expected=f"a tile size that divides {parts[-1].size}, or that it divides, provably",
        fix="tile before flatten, or say divisible_by= of the sizes",
    )


# --- indexing and padding ---------------------------------------------------------------------


def pick(dimension: Dimension, item: Any) -> Picked:  # Any: an integer, a symbol or a slice
    """A dimension at an index.

    Raises:
        IndexOutOfRangeError: an integer is known to be out of range.
        TypeMismatchError: a flattened dimension is indexed.
    """
    if item == slice(None):
        return Picked(dimension)
    parts = dimension.collapsed().factors or (Factor(sympy.Integer(1), ()),)
    if len(parts) != 1:
        raise errors.TypeMismatchError(
            "a flattened dimension whose parts do not lie evenly cannot be indexed",
            got=f"a dimension of {' x '.join(str(f.size) for f in parts)}, index {item}",
            fix="index before flatten",
        )
    (factor,) = parts
    if isinstance(item, slice):
        start, count, step = _range(factor.size, item)
        kept = Factor(count, times(factor.steps, step))
        return Picked(Dimension((kept,)), times(factor.steps, start))
    at = symbols.size(item)
    at = at + factor.size if at.is_negative else at
    last = factor.size - 1
    low, high = reasoning.interval(sympy.expand(last - at))
    if high < 0 or reasoning.interval(at)[1] < 0:
        raise errors.IndexOutOfRangeError(
            "this index is out of range", got=str(item), expected=f"a dimension of size {factor.size}"
        )
    is_safe = low >= 0 and reasoning.is_at_most(0, at)
    requirement = None if is_safe else Requirement(f"index {item}", at, sympy.Integer(0), last)
    return Picked(None, times(factor.steps, at), requirement)


def _range(size: Size, item: slice) -> tuple[Size, Size, Size]:
    """Start, number of places and step of a slice, as NumPy has it."""
    step = symbols.size(1 if item.step is None else item.step)
    if not (step.is_positive or step.is_negative):
        raise errors.ValueMismatchError(
            "a slice has a step that is positive or negative, not zero", got=str(item.step)
        )
    is_forward = bool(step.is_positive)
    lowest = sympy.Integer(0 if is_forward else -1)
    highest = size if is_forward else size - 1

    def place(value: Any, default: Size) -> Size:  # Any: None, an integer or a symbol
        if value is None:
            return default
        wanted = symbols.size(value)
        if wanted.is_negative:
            return reasoning.at_least(wanted + size, lowest)
        return reasoning.at_most(wanted, highest)

    start = place(item.start, sympy.Integer(0) if is_forward else highest)
    stop = place(item.stop, highest if is_forward else lowest)
    count = reasoning.ceil_div(stop - start, step)
    return start, reasoning.at_least(count, sympy.Integer(0)), step


def widen(dimension: Dimension, low: Size, high: Size, coordinate: int) -> tuple[Cut, Steps]:
    """A dimension with places before and after it, as a cut without a count, and how far the origin moves.

    Raises:
        TypeMismatchError: a flattened dimension is padded.
    """
    if low == 0 and high == 0:
        return Cut(Dimension(), dimension), ()
    parts = dimension.collapsed().factors
    if len(parts) != 1:
        raise errors.TypeMismatchError(
            "a flattened dimension, or one of size 1 without place in the array, cannot be padded",
            got=f"a dimension of {' x '.join(str(f.size) for f in parts) or 1}, widths ({low}, {high})",
            fix="pad before flatten and unsqueeze",
        )
    (factor,) = parts
    steps = (*factor.steps, (coordinate, sympy.Integer(1)))
    wide = Dimension((Factor(factor.size + low + high, steps),))
    return Cut(Dimension(), wide, Bound(factor.size, factor.steps)), times(steps, -low)
