"""Coordinates of grids, and the index tricks `mgrid ogrid r_ c_ s_ index_exp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes, creation, joining, manipulation, ranges
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, operands

Key = Any  # Any: slices, numbers, arrays, strings and tuples of them


def meshgrid(*xi: ArrayLike, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> list[Value]:
    """Coordinate arrays of a grid from vectors, as `numpy.meshgrid`.

    Args:
        *xi: vectors of coordinates.
        copy: only True: arrays do not share memory.
        sparse: leave dimensions at size 1 that other vectors run along.
        indexing: `xy` puts the first vector along the second dimension, `ij` along the first.

    Raises:
        ValueMismatchError: `indexing` is another one, `copy` is false, or an operand is no vector.
    """
    vectors = [as_value("meshgrid", x) for x in xi]
    if indexing not in ("xy", "ij") or not copy or any(v.ndim != 1 for v in vectors):
        raise errors.ValueMismatchError(
            "meshgrid needs vectors, copy=True and indexing 'xy' or 'ij'",
            got=f"{indexing!r}, copy={copy}, {', '.join(str(v.type) for v in vectors)}",
        )
    places = list(range(len(vectors)))
    if indexing == "xy" and len(vectors) >= 2:
        places[:2] = [1, 0]
    shape = [0] * len(vectors)
    for vector, place in zip(vectors, places, strict=True):
        shape[place] = vector.size
    return [
        view.broadcast_in_dim(
            v, [n if d == place or not sparse else 1 for d, n in enumerate(shape)], (place,)
        )
        for v, place in zip(vectors, places, strict=True)
    ]


def indices(
    dimensions: Sequence[int], dtype: DTypeLike | None = None, sparse: bool = False
) -> Any:  # Any: an array, or a tuple of arrays when sparse
    """Positions along each dimension of an array of this shape, as `numpy.indices`.

    Args:
        dimensions: the shape.
        dtype: dtype of the result, int32 when absent.
        sparse: one array per dimension, of size 1 along the others.
    """
    sizes = _axes.integers("indices", "a size", tuple(dimensions)) if len(dimensions) else ()
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    if sparse:
        ones = [[n if d == i else 1 for d, n in enumerate(sizes)] for i in range(len(sizes))]
        return tuple(view.broadcasted_iota(target, shape, i) for i, shape in enumerate(ones))
    if not sizes:
        return creation.zeros((0,), target)
    return view.stack([view.broadcasted_iota(target, sizes, i) for i in range(len(sizes))])


def ix_(*args: ArrayLike) -> tuple[Value, ...]:
    """Vectors shaped so that they index the product of their places, as `numpy.ix_`.

    Raises:
        ValueMismatchError: an argument is no vector.
        MissingRuleError: an argument is boolean.
    """
    vectors = [as_value("ix_", a) for a in args]
    for vector in vectors:
        if vector.ndim != 1:
            raise errors.ValueMismatchError("ix_ takes vectors", got=str(vector.type))
        if vector.dtype == dtypes.bool_:
            raise errors.MissingRuleError(
                "ix_ does not take boolean vectors",
                got=str(vector.type),
                fix="use infini.numpy.nonzero first",
            )
    found = []
    for i, vector in enumerate(vectors):
        whole = convert(vector, dtypes.int32) if not vector.size else vector
        found.append(view.reshape(whole, [vector.size if d == i else 1 for d in range(len(vectors))]))
    return tuple(found)


# --- index tricks ----------------------------------------------------------------------------------


def _line(key: slice) -> Value:
    """The numbers of a slice; an imaginary step is a count, and includes the end."""
    start = 0 if key.start is None else key.start
    if isinstance(key.step, complex):
        return ranges.linspace(start, key.stop, int(abs(key.step)))
    return ranges.arange(start, key.stop, key.step)


class _Grid:
    """`mgrid[a:b, c:d]` and `ogrid[a:b, c:d]`: coordinates of a grid, whole or open."""

    __slots__ = ("is_open",)

    def __init__(self, is_open: bool) -> None:
        self.is_open = is_open

    def __getitem__(self, key: Key) -> Any:  # Any: an array, or a list of arrays
        if isinstance(key, slice):
            return _line(key)
        lines = operands("mgrid", *(_line(part) for part in key))
        grid = meshgrid(*lines, indexing="ij", sparse=self.is_open)
        return grid if self.is_open else view.stack(grid)

    def __repr__(self) -> str:
        return "ogrid" if self.is_open else "mgrid"


class _Joined:
    """`r_[a, b, 1:4]` and `c_[a, b]`: arrays, numbers and ranges joined along an axis.

    A string in front says how, as in NumPy: `"axis,ndmin,place"`, `"r"` or `"c"`.
    """

    __slots__ = ("axis", "name", "ndmin", "place")

    def __init__(self, name: str, axis: int, ndmin: int, place: int) -> None:
        self.name, self.axis, self.ndmin, self.place = name, axis, ndmin, place

    def __getitem__(self, key: Key) -> Value:
        parts = list(key) if isinstance(key, tuple) else [key]
        axis, ndmin, place, as_matrix = self.axis, self.ndmin, self.place, ""
        if parts and isinstance(parts[0], str):
            axis, ndmin, place, as_matrix = self._directive(parts.pop(0))
        if any(isinstance(part, str) for part in parts):
            raise errors.ValueMismatchError(f"{self.name}: a string may only stand first", got=repr(key))
        values = []
        for part, kept in zip(parts, _typed(parts), strict=True):
            values.append(_placed(kept, ndmin, place, isinstance(part, slice) or not np.ndim(part)))
        result = joining.concatenate(values, axis)
        if as_matrix and result.ndim == 1:
            result = view.expand_dims(result, (0 if as_matrix == "r" else 1,))
        return result

    def _directive(self, text: str) -> tuple[int, int, int, str]:
        if text in ("r", "c"):
            return -1, self.ndmin, self.place, text
        try:
            numbers = [int(n) for n in text.split(",")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3:
            raise errors.ValueMismatchError(
                f"{self.name}: this is not a directive",
                got=repr(text),
                expected="'r', 'c', or one to three integers",
            )
        axis, ndmin, place = (numbers + [self.axis, self.ndmin, self.place][len(numbers) :])[:3]
        return axis, ndmin, place, ""

    def __repr__(self) -> str:
        return self.name


def _typed(parts: Sequence[Any]) -> list[Value]:  # Any: arrays, numbers and slices
    return operands("r_", *(_line(part) if isinstance(part, slice) else _as_operand(part) for part in parts))


def _as_operand(part: Any) -> Any:  # Any: an array, a number, or a nested sequence of them
    return creation.asarray(part) if isinstance(part, (list, tuple)) else part


def _placed(x: Value, ndmin: int, place: int, is_flat: bool) -> Value:
    """An array with at least `ndmin` dimensions, its own from `place` on."""
    x = manipulation.atleast_1d(x)
    missing = ndmin - x.ndim
    if missing <= 0:
        return x
    first = place if place >= 0 else missing + place + 1
    first = min(max(first, 0), missing)
    return view.expand_dims(x, [*range(first), *range(first + x.ndim, ndmin)])


class _IndexExpression:
    """`s_[...]` and `index_exp[...]`: the index itself, as a tuple for `index_exp`."""

    __slots__ = ("is_tuple",)

    def __init__(self, is_tuple: bool) -> None:
        self.is_tuple = is_tuple

    def __getitem__(self, key: Key) -> Key:
        return (key,) if self.is_tuple and not isinstance(key, tuple) else key

    def __repr__(self) -> str:
        return "index_exp" if self.is_tuple else "s_"


mgrid: Final = _Grid(is_open=False)
ogrid: Final = _Grid(is_open=True)
r_: Final = _Joined("r_", 0, 1, -1)
c_: Final = _Joined("c_", -1, 2, 0)
s_: Final = _IndexExpression(is_tuple=False)
index_exp: Final = _IndexExpression(is_tuple=True)
