"""Symbolic tensors and the operations that cut them into levels of tiles.

A `Tensor` is a list of levels, outermost first: level 0 is the grid of programs, the last one the elements of
a tile, those between are walked by a loop. Every dimension of a level is a product of *factors*; one step of
a factor moves a fixed distance in the array, so whatever these operations make is an affine map from
(program, loop, element) to array index. Source of the idea, arrange and apply:
https://github.com/InfiniTensor/ninetoothed (the arrangement there is the same notion).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from infini.core import dtypes, errors
from infini.tile import symbols
from infini.tile.symbols import Size

Steps = tuple[Size, ...]  # per dimension of the array, how far one step goes


@dataclass(frozen=True, slots=True)
class Factor:
    """`size` steps, each of which moves by `steps` in the array."""

    size: Size
    steps: Steps


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of a level: the product of its factors, slowest first; none means size 1."""

    factors: tuple[Factor, ...]

    @property
    def size(self) -> Size:
        """Number of steps."""
        return symbols.product(f.size for f in self.factors)

    def collapsed(self) -> Dimension:
        """The same dimension with neighbouring factors joined where they walk the array evenly."""
        joined: list[Factor] = []
        for factor in self.factors:
            last = joined[-1] if joined else None
            if last and all(
                symbols.is_equal(a, b * factor.size) for a, b in zip(last.steps, factor.steps, strict=True)
            ):
                joined[-1] = Factor(last.size * factor.size, factor.steps)
            else:
                joined.append(factor)
        return Dimension(tuple(joined))


@dataclass(frozen=True, slots=True)
class Guard:
    """A dimension of `size` that tiles overrun up to `reach`: the elements between must lie outside the
    array.
    """

    size: Size
    reach: Size
    steps: Steps


@dataclass(frozen=True, slots=True)
class Source:
    """The array behind an arranged tensor; see the arguments of `Tensor`."""

    shape: tuple[Size, ...]
    dtype: np.dtype | None
    other: complex | None


class Tensor:
    """A symbolic array, to be arranged. Operations return another one and act on the outermost level unless
    told otherwise.

    Args:
        ndim: number of dimensions, whose sizes become symbols; 0 is a scalar that every program sees.
        shape: sizes instead of `ndim`: integers and symbols, for example those of another tensor's `shape`.
        dtype: dtype operands must have, or results are converted to; any when absent.
        other: what a load gives outside the array, 0 when absent.
        name: name of the size symbols in messages.

    Raises:
        TypeMismatchError: neither or both of `ndim` and `shape` are given, or a size is none.

    Example:
        >>> from infini.tile import Tensor
        >>> Tensor(2, name="x").tile((16, 32)).shape
        (ceiling(x_0/16), ceiling(x_1/32))
    """

    __slots__ = ("guards", "levels", "offsets", "ones", "source")

    def __init__(
        self,
        ndim: int | None = None,
        *,
        shape: Sequence[Size] | None = None,
        dtype: Any = None,  # Any: whatever names a dtype
        other: complex | None = None,
        name: str = "size",
    ) -> None:
        if (ndim is None) == (shape is None):
            raise errors.TypeMismatchError(
                "a Tensor needs ndim or shape", got=f"ndim={ndim}, shape={shape}", expected="one of them"
            )
        if shape is None:
            sizes = [symbols.fresh(f"{name}_{d}") for d in range(ndim or 0)]
        else:
            sizes = [symbols.size(n) for n in shape]
        rank = len(sizes)
        self.source = Source(tuple(sizes), None if dtype is None else dtypes.canonical(dtype), other)
        self.levels: tuple[tuple[Dimension, ...], ...] = (
            tuple(Dimension((Factor(n, _unit(d, rank)),)) for d, n in enumerate(sizes)),
        )
        self.offsets: Steps = (sympy.Integer(0),) * rank
        self.guards: tuple[Guard, ...] = ()
        self.ones: tuple[Size, ...] = ()

    @property
    def shape(self) -> tuple[Size, ...]:
        """Sizes of the outermost level."""
        return self.shape_of(0)

    def shape_of(self, level: int) -> tuple[Size, ...]:
        """Sizes of a level."""
        return tuple(dimension.size for dimension in self.levels[level])

    @property
    def ndim(self) -> int:
        """Number of dimensions of the outermost level."""
        return len(self.levels[0])

    def tile(
        self,
        tile_shape: Sequence[Size],
        strides: Sequence[Size] | None = None,
        dilation: Sequence[Size] | None = None,
        *,
        floor_mode: bool = False,
        level: int = 0,
    ) -> Tensor:
        """Cut a level into tiles: it becomes a level that counts tiles and, inside it, one of the elements of
        a tile.

        Args:
            tile_shape: size of a tile per dimension; -1 takes the whole dimension.
            strides: distance between the starts of tiles; -1, and the default, is the size of the tile.
            dilation: distance between neighbouring elements of a tile, 1 by default.
            floor_mode: drop a last tile that is not full.
            level: the level to cut.

        Raises:
            TypeMismatchError: the number of sizes is wrong, or a flattened dimension would be cut across its
                parts.
        """
        dimensions = self._dimensions(level, tile_shape, "tile")
        stride_of = [-1] * len(dimensions) if strides is None else list(strides)
        dilation_of = [1] * len(dimensions) if dilation is None else list(dilation)
        outer, inner, guards = [], [], list(self.guards)
        for dimension, *numbers in zip(dimensions, tile_shape, stride_of, dilation_of, strict=True):
            size, stride, spacing = map(symbols.size, numbers)
            count, elements, guard = self._cut(dimension, size, stride, spacing, floor_mode)
            outer.append(count)
            inner.append(elements)
            guards += [guard] if guard else []
        levels = (*self.levels[:level], tuple(outer), tuple(inner), *self.levels[level + 1 :])
        return self._with(levels=levels, guards=tuple(guards))

    def _cut(
        self, dimension: Dimension, tile: Size, stride: Size, dilation: Size, floor_mode: bool
    ) -> tuple[Dimension, Dimension, Guard | None]:
        """One dimension as (count of tiles, elements of a tile) and what must hold for its last tile."""
        none = Dimension(())
        is_plain = stride == -1 and dilation == 1
        if is_plain and tile == -1:
            return none, dimension, None
        if is_plain and symbols.is_one(tile):
            return dimension, none, None
        parts = dimension.collapsed().factors or (Factor(sympy.Integer(1), self._zeros()),)
        if len(parts) > 1:
            raise errors.TypeMismatchError(
                "a flattened dimension cannot be cut into tiles, its parts do not lie evenly in the array",
                got=f"a dimension of sizes {' x '.join(str(f.size) for f in parts)}, tile size {tile}",
                expected="a tile size of 1 or -1",
                fix="tile before flatten",
            )
        (factor,) = parts
        tile = factor.size if tile == -1 else tile
        stride = tile if stride == -1 else stride
        reach = (tile - 1) * dilation + 1
        if floor_mode:
            count = symbols.floor_div(factor.size - reach, stride) + 1
        elif stride == tile and dilation == 1:
            count = symbols.ceil_div(factor.size, tile)
        else:
            count = sympy.Max(symbols.ceil_div(factor.size - reach, stride) + 1, 1)
        guard = None if floor_mode else Guard(factor.size, (count - 1) * stride + reach, factor.steps)
        return (
            Dimension((Factor(count, _times(factor.steps, stride)),)),
            Dimension((Factor(tile, _times(factor.steps, dilation)),)),
            guard,
        )

    def expand(self, shape: Sequence[Size], *, level: int = 0) -> Tensor:
        """Repeat dimensions of size 1; -1 keeps a dimension.

        Raises:
            TypeMismatchError: a repeated dimension is known not to have size 1.
        """
        dimensions = list(self._dimensions(level, shape, "expand"))
        ones = []
        for i, wanted in enumerate(map(symbols.size, shape)):
            if wanted != -1:
                ones.append(self._must_be_one(dimensions[i], "expand"))
                dimensions[i] = Dimension((Factor(wanted, self._zeros()),))
        return self._with_level(level, dimensions, ones)

    def unsqueeze(self, dim: int, *, level: int = 0) -> Tensor:
        """Insert a dimension of size 1 at this position of the result."""
        dimensions = list(self.levels[level])
        dimensions.insert(_axis(dim, len(dimensions) + 1), Dimension(()))
        return self._with_level(level, dimensions)

    def squeeze(self, dim: int | Sequence[int], *, level: int = 0) -> Tensor:
        """Drop dimensions of size 1.

        Raises:
            TypeMismatchError: one is known to have another size.
        """
        dimensions = self.levels[level]
        dropped = {_axis(d, len(dimensions)) for d in ([dim] if isinstance(dim, int) else dim)}
        ones = [self._must_be_one(dimensions[d], "squeeze") for d in sorted(dropped)]
        return self._with_level(level, [x for i, x in enumerate(dimensions) if i not in dropped], ones)

    def permute(self, dims: Sequence[int], *, level: int = 0) -> Tensor:
        """Reorder dimensions: dimension `i` of the result is dimension `dims[i]`."""
        dimensions = self._dimensions(level, dims, "permute")
        order = [_axis(d, len(dimensions)) for d in dims]
        if sorted(order) != list(range(len(order))):
            raise errors.ValueMismatchError("permute: this is not a permutation", got=str(tuple(dims)))
        return self._with_level(level, [dimensions[d] for d in order])

    def flatten(self, start_dim: int = 0, end_dim: int | None = None, *, level: int = 0) -> Tensor:
        """Join the dimensions from `start_dim` up to, without, `end_dim` into one."""
        dimensions = self.levels[level]
        start = _axis(start_dim, len(dimensions))
        end = len(dimensions) if end_dim is None else end_dim + (len(dimensions) if end_dim < 0 else 0)
        joined = Dimension(tuple(f for dimension in dimensions[start:end] for f in dimension.factors))
        return self._with_level(level, [*dimensions[:start], joined, *dimensions[end:]])

    def ravel(self) -> Tensor:
        """Join all levels into one, the dimensions of outer levels first."""
        return self._with(levels=(tuple(dimension for level in self.levels for dimension in level),))

    def pad(self, widths: Sequence[tuple[Size, Size]]) -> Tensor:
        """Widen dimensions by (before, after); loads there give `other`.

        Raises:
            TypeMismatchError: the tensor has been arranged already.
        """
        dimensions = self._dimensions(0, widths, "pad")
        if len(self.levels) > 1 or any(len(x.factors) != 1 for x in dimensions):
            raise errors.TypeMismatchError(
                "pad comes before tile and flatten", fix="pad the tensor first, then tile it"
            )
        padded, offsets = [], self.offsets
        for dimension, (low, high) in zip(dimensions, widths, strict=True):
            (factor,) = dimension.factors
            padded.append(
                Dimension((Factor(factor.size + symbols.size(low) + symbols.size(high), factor.steps),))
            )
            offsets = _plus(offsets, _times(factor.steps, -symbols.size(low)))
        return self._with(levels=(tuple(padded),), offsets=offsets)

    def __getitem__(self, index: Any) -> Tensor:  # Any: integers, slices, None, Ellipsis and tuples of these
        """Index the outermost level: integers, slices with positive steps, None and Ellipsis."""
        items = list(index) if isinstance(index, tuple) else [index]
        if not any(item is Ellipsis for item in items):
            items.append(Ellipsis)
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        missing = self.ndim - sum(item is not None and item is not Ellipsis for item in items)
        if missing < 0:
            raise errors.IndexOutOfRangeError(
                "too many indices for this level", got=str(index), expected=f"at most {self.ndim}"
            )
        items[at : at + 1] = [slice(None)] * missing
        rest, result, offsets = iter(self.levels[0]), [], self.offsets
        for item in items:
            if item is None:
                result.append(Dimension(()))
                continue
            kept, moved = _picked(next(rest), item, len(self.source.shape))
            result += [kept] if kept else []
            offsets = _plus(offsets, moved)
        return self._with(levels=(tuple(result), *self.levels[1:]), offsets=offsets)

    def __repr__(self) -> str:
        return f"Tensor({' of '.join(str(self.shape_of(i)) for i in range(len(self.levels)))})"

    # --- helpers ------------------------------------------------------------------------------

    def _with(self, **changes: Any) -> Tensor:  # Any: fields of several types
        copy = object.__new__(Tensor)
        for name in Tensor.__slots__:
            setattr(copy, name, changes.get(name, getattr(self, name)))
        return copy

    def _with_level(self, level: int, dimensions: Sequence[Dimension], ones: Sequence[Size] = ()) -> Tensor:
        levels = list(self.levels)
        levels[level] = tuple(dimensions)
        return self._with(
            levels=tuple(levels), ones=(*self.ones, *(n for n in ones if not symbols.is_one(n)))
        )

    def _dimensions(self, level: int, sizes: Sequence[object], name: str) -> tuple[Dimension, ...]:
        dimensions = self.levels[level]
        if len(sizes) != len(dimensions):
            raise errors.TypeMismatchError(
                f"{name} needs one entry per dimension of level {level}",
                got=str(tuple(sizes)),
                expected=f"{len(dimensions)}: {self!r}",
            )
        return dimensions

    def _must_be_one(self, dimension: Dimension, name: str) -> Size:
        found = dimension.size
        if found.is_Integer and found != 1:
            raise errors.TypeMismatchError(
                f"{name}: a dimension does not have size 1", got=f"size {found} in {self!r}"
            )
        return found

    def _zeros(self) -> Steps:
        return (sympy.Integer(0),) * len(self.source.shape)


def _unit(d: int, rank: int) -> Steps:
    return tuple(sympy.Integer(int(i == d)) for i in range(rank))


def _times(steps: Steps, factor: Size) -> Steps:
    return tuple(step * factor for step in steps)


def _plus(steps: Steps, more: Steps) -> Steps:
    return tuple(a + b for a, b in zip(steps, more, strict=True))


def _axis(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise errors.IndexOutOfRangeError(f"dimension {dim} does not exist in a level of {ndim} dimensions")
    return dim % ndim


def _picked(dimension: Dimension, item: Any, rank: int) -> tuple[Dimension | None, Steps]:  # Any: an index
    """What is left of a dimension after indexing, and how far the origin moves."""
    nothing = (sympy.Integer(0),) * rank
    if item == slice(None):
        return dimension, nothing
    if len(dimension.factors) != 1:
        raise errors.TypeMismatchError("a flattened dimension cannot be indexed", fix="index before flatten")
    (factor,) = dimension.factors

    def bound(value: Any, default: Size) -> Size:  # Any: None, an integer or a symbol
        chosen = default if value is None else symbols.size(value)
        return chosen + factor.size if chosen.is_negative else chosen

    if not isinstance(item, slice):
        return None, _times(factor.steps, bound(item, sympy.Integer(0)))
    step = symbols.size(1 if item.step is None else item.step)
    start, stop = bound(item.start, sympy.Integer(0)), bound(item.stop, factor.size)
    kept = Factor(symbols.ceil_div(stop - start, step), _times(factor.steps, step))
    return Dimension((kept,)), _times(factor.steps, start)
