"""Symbolic tensors and the operations that cut them into levels of tiles.

A `Tensor` is a list of levels, outermost first: level 0 is the grid of programs, the last one the elements of
a tile, those between are walked by a loop. Whatever these operations make is an affine map from (program,
loop, element) to array index; see `geometry`. Source of the idea, arrange and apply:
https://github.com/InfiniTensor/ninetoothed (the arrangement there is the same notion).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import numpy as np
import sympy

from infini.core import dtypes, errors
from infini.tile import geometry, reasoning, symbols
from infini.tile.affine import Level, Map
from infini.tile.geometry import Bound, Dimension, Factor, Requirement
from infini.tile.symbols import Size, SizeOptions

_UNNAMED: Final = "size"


@dataclass(frozen=True, slots=True)
class Source:
    """The array behind an arranged tensor; see the arguments of `Tensor`."""

    shape: tuple[Size, ...]
    dtype: np.dtype | None
    other: complex | None
    name: str | None = None
    constexpr: bool = False
    value: Any = None  # Any: a number or a string, for a parameter of the application


class Tensor:
    """A symbolic array, to be arranged. Operations return another one; `level=` says which level they act on,
    the outermost unless told otherwise.

    Args:
        ndim: number of dimensions, whose sizes become symbols; 0 is a scalar that every program sees.
        shape: sizes instead of `ndim`: integers and symbols, for example those of another tensor's `shape`.
        dtype: dtype operands must have, or results are converted to; any when absent.
        other: what a load gives outside the array, 0 when absent.
        name: name of the tensor and its size symbols in messages; a kernel gives the name of the
            application's parameter.
        shape_options: what is known of the sizes that `ndim` makes, as keyword arguments of `Symbol`: one
            mapping for all, or one per dimension.
        constexpr: a scalar that is a parameter of compilation: the call takes a Python value, and the
            application sees it as it is. Other values are other kernels.
        value: the value of such a scalar; the call then leaves it out.

    Raises:
        TypeMismatchError: neither or both of `ndim` and `shape` are given, a size is none, options are given
            for sizes that are, or `constexpr` and `value` for no scalar.
        ValueMismatchError: a size is negative, or no size is what is said of it.

    Example:
        >>> from infini.tile import Tensor
        >>> Tensor(2, name="x").tile((16, 32)).shape
        (ceiling(x_0/16), ceiling(x_1/32))
    """

    __slots__ = ("map", "source", "top")

    def __init__(
        self,
        ndim: int | None = None,
        *,
        shape: Sequence[Size] | None = None,
        dtype: Any = None,  # Any: whatever names a dtype
        other: complex | None = None,
        name: str | None = None,
        shape_options: SizeOptions | Sequence[SizeOptions | None] | None = None,
        constexpr: bool = False,
        value: Any = None,  # Any: as of Source
    ) -> None:
        if (ndim is None) == (shape is None):
            raise errors.TypeMismatchError(
                "a Tensor needs ndim or shape", got=f"ndim={ndim}, shape={shape}", expected="one of them"
            )
        if ndim is not None and (not isinstance(ndim, int) or isinstance(ndim, bool) or ndim < 0):
            raise errors.TypeMismatchError(
                "this is not a number of dimensions", got=repr(ndim), expected="an integer from 0 on"
            )
        if shape is None:
            options = _options(ndim or 0, shape_options)
            sizes = [symbols.fresh(f"{name or _UNNAMED}_{d}", options[d]) for d in range(ndim or 0)]
        else:
            if shape_options is not None:
                raise errors.TypeMismatchError(
                    "shape_options describe sizes that ndim makes",
                    got=f"shape={shape}",
                    fix="say it of the symbol: Symbol(name, lower=, upper=, divisible_by=)",
                )
            sizes = [_checked(n, 0, "shape") for n in _sequence(shape, "shape")]
        if (constexpr and sizes) or (value is not None and not constexpr):
            raise errors.TypeMismatchError(
                "only a scalar is a parameter of compilation, and only such a one has a value",
                got=f"{len(sizes)} dimensions, constexpr={constexpr}, value={value}",
                expected="Tensor(0, constexpr=True, value=...)",
            )
        canonical = None if dtype is None else dtypes.canonical(dtype)
        self.source = Source(tuple(sizes), canonical, other, name, constexpr, value)
        whole = tuple(Dimension((Factor(n, ((d, sympy.Integer(1)),)),)) for d, n in enumerate(sizes))
        self.map = Map(self.source.shape, (whole,))
        self.top = 0

    # --- looking ------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[Size, ...]:
        """Sizes of the outermost level."""
        return self.shape_of(0)

    def shape_of(self, level: int) -> tuple[Size, ...]:
        """Sizes of a level."""
        return tuple(dimension.size for dimension in self.map.levels[self._at(level)])

    @property
    def ndim(self) -> int:
        """Number of dimensions of the outermost level."""
        return len(self.map.levels[self.top])

    @property
    def levels(self) -> tuple[Level, ...]:
        """The dimensions of each level, as products of factors."""
        return self.map.levels[self.top :]

    @property
    def num_levels(self) -> int:
        """Number of levels, this one included."""
        return len(self.map.levels) - self.top

    @property
    def is_scalar(self) -> bool:
        """Whether it is a scalar that nothing arranged: every program sees it."""
        return not self.source.shape and not any(self.map.levels)

    @property
    def size(self) -> Size:
        """Product of the sizes of the outermost level."""
        return symbols.product(self.shape)

    @property
    def inner(self) -> Tensor:
        """The levels below the outermost as a tensor of their own. Assigning puts them back arranged:
        `x.inner = x.inner.squeeze(0)` is `x = x.squeeze(0, level=1)`.

        Raises:
            TypeMismatchError: there is no level below, or what is assigned was not made from this tensor's
                inner levels.
        """
        if self.num_levels == 1:
            raise errors.TypeMismatchError(
                "a tensor of one level has no inner one", got=repr(self), fix="tile it first"
            )
        return self._with(top=self.top + 1)

    @inner.setter
    def inner(self, inner: Tensor) -> None:
        if not (
            inner.source is self.source
            and inner.top == self.top + 1
            and inner.map.levels[: inner.top] == self.map.levels[: inner.top]
            and inner.map.bounds[: len(self.map.bounds)] == self.map.bounds
        ):
            raise errors.TypeMismatchError(
                "these are not the inner levels of this tensor",
                got=repr(inner),
                expected=f"made from the inner of {self!r}",
                fix="write x.inner = x.inner... in one statement",
            )
        self.map = inner.map

    @property
    def innermost(self) -> Tensor:
        """The last level as a tensor of its own: the elements of a tile."""
        return self._with(top=len(self.map.levels) - 1)

    def label(self, number: int) -> str:
        """What messages call it, being tensor `number` of a kernel."""
        return f"tensor {number}" if self.source.name is None else f"tensor {self.source.name}"

    def __repr__(self) -> str:
        parts = []
        for level in range(self.num_levels):
            sizes = ", ".join(map(str, self.shape_of(level)))
            parts.append(f"({sizes},)" if len(self.shape_of(level)) == 1 else f"({sizes})")
        name = "" if self.source.name is None else f" {self.source.name}"
        return f"Tensor{name}({' of '.join(parts)})"

    # --- arranging ----------------------------------------------------------------------------

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

        Tiles start inside the dimension, up to the first that reaches its end. A dimension that does not move
        in the array (unsqueezed, expanded) repeats without end, so tiles never overrun it.

        Args:
            tile_shape: size of a tile per dimension; -1 takes the whole dimension.
            strides: distance between the starts of tiles; -1, and the default, is the size of the tile; 0 is
                one tile, at the start, which `expand` repeats.
            dilation: distance between neighbouring elements of a tile, 1 by default.
            floor_mode: only tiles that end inside the dimension.
            level: the level to cut.

        Raises:
            TypeMismatchError: the number of sizes is wrong, or a flattened dimension would be cut across its
                parts.
            ValueMismatchError: a tile size, stride or dilation is out of range.
        """
        dimensions = self._dimensions(level, tile_shape, "tile")
        options = []
        for name, given, default, lowest in (
            ("strides", strides, -1, 0),
            ("dilation", dilation, 1, 1),
        ):
            chosen = [default] * len(dimensions) if given is None else list(given)
            self._dimensions(level, chosen, f"{name} of tile")
            options.append([_checked(n, lowest, name, may_be_whole=name == "strides") for n in chosen])
        tiles = [_checked(n, 1, "tile_shape", may_be_whole=True) for n in tile_shape]
        counts, elements, bounds = [], [], list(self.map.bounds)
        for dimension, tile, stride, spacing in zip(dimensions, tiles, *options, strict=True):
            found = geometry.cut(
                dimension, tile, stride, spacing, floor_mode=floor_mode, coordinate=self._coordinate(bounds)
            )
            counts.append(found.count)
            elements.append(found.elements)
            bounds += [found.bound] if found.bound else []
        return self._with_levels(level, [tuple(counts), tuple(elements)], bounds=tuple(bounds))

    def expand(self, shape: Sequence[Size], *, level: int = 0) -> Tensor:
        """Repeat dimensions of size 1; -1 and the size it has keep a dimension.

        Raises:
            TypeMismatchError: a repeated dimension is known not to have size 1.
        """
        dimensions = list(self._dimensions(level, shape, "expand"))
        needed: list[Requirement] = []
        for i, wanted in enumerate(_checked(n, -1, "expand") for n in shape):
            if wanted != -1 and not reasoning.is_equal(wanted, dimensions[i].size):
                needed += self._must_be_one(dimensions[i], f"expand of dimension {i} to {wanted}")
                dimensions[i] = Dimension((Factor(wanted, ()),))
        return self._with_levels(level, [tuple(dimensions)], needed)

    def unsqueeze(self, dim: int, *, level: int = 0) -> Tensor:
        """Insert a dimension of size 1 at this position of the result."""
        dimensions = list(self.map.levels[self._at(level)])
        dimensions.insert(_axis(dim, len(dimensions) + 1), Dimension())
        return self._with_levels(level, [tuple(dimensions)])

    def squeeze(self, dim: int | Sequence[int], *, level: int = 0) -> Tensor:
        """Drop dimensions of size 1.

        Raises:
            TypeMismatchError: one is known to have another size.
        """
        dimensions = self.map.levels[self._at(level)]
        dropped = {_axis(d, len(dimensions)) for d in ([dim] if isinstance(dim, int) else dim)}
        needed = [r for d in sorted(dropped) for r in self._must_be_one(dimensions[d], f"squeeze({d})")]
        kept = tuple(x for i, x in enumerate(dimensions) if i not in dropped)
        return self._with_levels(level, [kept], needed)

    def permute(self, dims: Sequence[int], *, level: int = 0) -> Tensor:
        """Reorder dimensions: dimension `i` of the result is dimension `dims[i]`.

        Raises:
            ValueMismatchError: the numbers are no permutation.
        """
        dimensions = self._dimensions(level, dims, "permute")
        order = [_axis(d, len(dimensions)) for d in dims]
        if sorted(order) != list(range(len(order))):
            raise errors.ValueMismatchError("permute: this is not a permutation", got=str(tuple(dims)))
        return self._with_levels(level, [tuple(dimensions[d] for d in order)])

    def flatten(self, start_dim: int = 0, end_dim: int | None = None, *, level: int = 0) -> Tensor:
        """Join the dimensions from `start_dim` up to, without, `end_dim` into one.

        Raises:
            IndexOutOfRangeError: there are no such dimensions, or none between the two.
        """
        dimensions = self.map.levels[self._at(level)]
        start = _axis(start_dim, len(dimensions)) if dimensions else 0
        end = len(dimensions) if end_dim is None else end_dim + (len(dimensions) if end_dim < 0 else 0)
        if dimensions and not start < end <= len(dimensions):
            raise errors.IndexOutOfRangeError(
                f"flatten: there are no dimensions from {start_dim} up to {end_dim}",
                got=f"a level of {len(dimensions)} dimensions",
            )
        joined = Dimension(tuple(f for dimension in dimensions[start:end] for f in dimension.factors))
        return self._with_levels(level, [(*dimensions[:start], joined, *dimensions[end:])])

    def ravel(self, *, level: int = 0) -> Tensor:
        """Join a level and all inside it into one, the dimensions of outer levels first."""
        at = self._at(level)
        joined = tuple(dimension for inside in self.map.levels[at:] for dimension in inside)
        return self._with(map=replace(self.map, levels=(*self.map.levels[:at], joined)))

    def pad(self, widths: Sequence[tuple[Size, Size]], *, level: int = 0) -> Tensor:
        """Widen dimensions by (before, after); loads there give `other`.

        Raises:
            TypeMismatchError: the number of widths is wrong, or a flattened dimension would be padded.
            ValueMismatchError: a width is negative.
        """
        dimensions = self._dimensions(level, widths, "pad")
        padded, offsets, bounds = [], self.map.offsets, list(self.map.bounds)
        for dimension, pair in zip(dimensions, widths, strict=True):
            low, high = _sequence(pair, "a width of pad", 2)
            before, after = _checked(low, 0, "widths"), _checked(high, 0, "widths")
            found, moved = geometry.widen(dimension, before, after, self._coordinate(bounds))
            padded.append(found.elements)
            bounds += [found.bound] if found.bound else []
            offsets = geometry.plus(offsets, moved)
        return self._with_levels(level, [tuple(padded)], offsets=offsets, bounds=tuple(bounds))

    def __getitem__(self, index: Any) -> Tensor:  # Any: integers, slices, None, Ellipsis and tuples of these
        """Index the outermost level as NumPy does: integers, slices, None and Ellipsis; symbols count as not
        negative. Inner levels: `x.inner = x.inner[...]`.

        Raises:
            IndexOutOfRangeError: there are too many indices, or one is known to be out of range.
            TypeMismatchError: a flattened dimension is indexed.
        """
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
        if any(item is Ellipsis for item in items):
            raise errors.IndexOutOfRangeError("an index has one Ellipsis", got=str(index))
        rest, result, offsets = iter(self.map.levels[self.top]), [], self.map.offsets
        needed: list[Requirement] = []
        for item in items:
            if item is None:
                result.append(Dimension())
                continue
            picked = geometry.pick(next(rest), item)
            result += [] if picked.dimension is None else [picked.dimension]
            needed += [picked.requirement] if picked.requirement else []
            offsets = geometry.plus(offsets, picked.moved)
        return self._with_levels(0, [tuple(result)], needed, offsets=offsets)

    def require(self, what: str, first: Size, second: Size) -> Tensor:
        """The same tensor for sizes that are equal; the grid alone does not tell sizes that need the same
        number of tiles apart.

        Args:
            what: what is equal, for messages.
            first: a size.
            second: what it equals.

        Raises:
            TypeMismatchError: the two are known to differ; a call raises it where they do.
        """
        first, second = symbols.size(first), symbols.size(second)
        if not reasoning.may_be_equal(first, second):
            raise errors.TypeMismatchError(
                f"{what} must be equal", got=f"{first} and {second}", expected="equal sizes"
            )
        if reasoning.is_equal(first, second):
            return self
        needed = Requirement(f"{what} ({first} = {second})", first, second, second)
        return self._with_levels(0, [self.map.levels[self.top]], [needed])

    # --- substitution -------------------------------------------------------------------------

    def subs(self, sizes: Mapping[Size | str, Size]) -> Tensor:
        """The same arrangement with some symbols replaced.

        Args:
            sizes: from symbols, or their names, to sizes.

        Raises:
            TypeMismatchError: a replacement is no size.

        Example:
            >>> from infini.tile import Tensor
            >>> Tensor(1, name="x").tile((16,)).subs({"x_0": 40}).shape
            (3,)
        """
        found = self._symbols(sizes)
        changed = self.map.substituted({symbol: symbols.size(value) for symbol, value in found.items()})
        return self._with(map=changed, source=replace(self.source, shape=changed.shape))

    def eval(self, sizes: Mapping[Size | str, int] | None = None) -> np.ndarray:
        """Which element of the array each element of each tile is, for concrete sizes.

        Args:
            sizes: values of the symbols, or of their names.

        Returns:
            int64, shaped by the levels from the outermost on: the position of the element in the array,
            counted in C order, or -1 outside.

        Raises:
            TypeMismatchError: a symbol has no value, or what an operation required does not hold.

        Example:
            >>> from infini.tile import Tensor
            >>> Tensor(1, name="x").tile((4,)).eval({"x_0": 6})
            array([[ 0,  1,  2,  3],
                   [ 4,  5, -1, -1]])
        """
        values = self._symbols(sizes or {})
        return self.map.at(values, self.source.name or "this tensor").positions(self.top)

    def named(self, name: str) -> Tensor:
        """The same tensor under a name for messages, if it has none."""
        if self.source.name is not None:
            return self._with()
        for d, symbol in enumerate(self.source.shape):
            # Symbols are shared with the tensors that are made of this one's shape: they print anew in all.
            if isinstance(symbol, symbols.Named) and symbol.label == f"{_UNNAMED}_{d}":
                symbol.label = f"{name}_{d}"
        return self._with(source=replace(self.source, name=name))

    # --- helpers ------------------------------------------------------------------------------

    def _with(self, **changes: Any) -> Tensor:  # Any: fields of several types
        copy = object.__new__(Tensor)
        for name in Tensor.__slots__:
            setattr(copy, name, changes.get(name, getattr(self, name)))
        return copy

    def _with_levels(
        self, level: int, found: Sequence[Level], needed: Sequence[Requirement] = (), **changes: Any
    ) -> Tensor:  # Any: as of _with
        at, old = self._at(level), self.map
        levels = (*old.levels[:at], *found, *old.levels[at + 1 :])
        requirements = (*old.requirements, *needed)
        return self._with(map=replace(old, levels=levels, requirements=requirements, **changes))

    def _symbols(self, sizes: Mapping[Any, Any]) -> dict[Size, Any]:  # Any: of subs and of eval
        """What is given by name under its symbol; a name that no expression has is left alone."""
        found: dict[Size, Any] = {}
        for key, size in sizes.items():
            same = [s for s in self.map.free_symbols if str(s) == key] if isinstance(key, str) else [key]
            if len(same) > 1:
                raise errors.ValueMismatchError(
                    f"{len(same)} symbols are called {key}", fix="give the symbol itself, or name the tensors"
                )
            found[same[0] if same else sympy.Symbol(key)] = size
        return found

    def _at(self, level: int) -> int:
        if not -self.num_levels <= level < self.num_levels:
            raise errors.IndexOutOfRangeError(
                f"there is no level {level}", got=repr(self), expected=f"0 to {self.num_levels - 1}"
            )
        return self.top + level % self.num_levels

    def _coordinate(self, bounds: Sequence[Bound]) -> int:
        return len(self.source.shape) + len(bounds)

    def __iter__(self) -> NoReturn:
        """Refused: indexing a symbolic dimension would never end."""
        raise errors.TypeMismatchError(
            "a Tensor is no sequence of tensors",
            got=repr(self),
            expected="an arrangement returns one tensor per operand and result",
            fix="return a tuple, such as (x, y)",
        )

    def _dimensions(self, level: int, entries: Sequence[object], name: str) -> Level:
        dimensions, entries = self.map.levels[self._at(level)], _sequence(entries, name)
        if len(entries) != len(dimensions):
            raise errors.TypeMismatchError(
                f"{name} needs one entry per dimension of level {level}",
                got=str(tuple(entries)),
                expected=f"{len(dimensions)}: {self!r}",
            )
        return dimensions

    def _must_be_one(self, dimension: Dimension, what: str) -> list[Requirement]:
        found = dimension.size
        if not reasoning.may_be_equal(found, 1):
            raise errors.TypeMismatchError(
                f"{what}: the dimension cannot have size 1", got=f"size {found} in {self!r}"
            )
        one = sympy.Integer(1)
        return [] if reasoning.is_one(found) else [Requirement(what, found, one, one)]


def _options(
    ndim: int, given: SizeOptions | Sequence[SizeOptions | None] | None
) -> Sequence[SizeOptions | None]:
    if given is None or isinstance(given, Mapping):
        return [given] * ndim
    if len(given) != ndim:
        raise errors.TypeMismatchError(
            "shape_options has one entry per dimension", got=str(len(given)), expected=str(ndim)
        )
    return given


def _sequence(entries: Any, what: str, length: int | None = None) -> Sequence[Any]:  # Any: of the user's
    """Entries that must be several.

    Raises:
        TypeMismatchError: they are not, or not so many.
    """
    if not isinstance(entries, (tuple, list)) or (length is not None and len(entries) != length):
        raise errors.TypeMismatchError(
            f"{what} needs a sequence" + ("" if length is None else f" of {length}"),
            got=repr(entries),
            expected="a tuple or a list, with one entry per dimension" if length is None else None,
        )
    return entries


def _checked(value: object, lowest: int, name: str, *, may_be_whole: bool = False) -> Size:
    found = symbols.size(value)
    if reasoning.interval(found)[1] < lowest and not (may_be_whole and found == -1):
        raise errors.ValueMismatchError(
            f"{name}: this is too small",
            got=str(value),
            expected=f"at least {lowest}" + (", or -1" if may_be_whole else ""),
        )
    return found


def _axis(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise errors.IndexOutOfRangeError(f"dimension {dim} does not exist in a level of {ndim} dimensions")
    return dim % ndim
