"""Results that an application writes at places known at run time: what it returns for them, and how that
becomes the places and values of `scattered`.

A result of this kind is arranged so that every program has the whole of it: its tiles do not say where the
program writes, the places do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.ir import ArrayType
from infini.core.value import Literal, Value, number_in
from infini.lax import elementwise as e, families, indexing, view
from infini.tile import within
from infini.tile.scattered import Scatter

Places = Value | int | Sequence[Value | int]
_INT32_MAX = int(np.iinfo(np.int32).max)
_METHODS = {"scatter": "set", "scatter_add": "add", "scatter_max": "max", "scatter_min": "min"}
_WIDE = frozenset({dtypes.int64, dtypes.uint64, dtypes.uint32})


@dataclass(frozen=True, slots=True)
class Scattered:
    """What an application returns for a result that it writes at run-time places; see `scatter_add`.

    It is no array: nothing is computed from it.
    """

    kind: str
    start: Value | complex
    places: tuple[Value, ...]
    updates: Value

    def _refuse(self, *_: object) -> NoReturn:
        raise errors.TypeMismatchError(
            f"what tile.{self.kind} gives is no array to compute with",
            got="an operation on it",
            expected="an application that returns it as it is",
            fix="compute with the updates before, or with the result of the kernel",
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __neg__ = __abs__ = __pow__ = __matmul__ = __getitem__ = __len__ = __iter__ = __bool__ = _refuse


def scatter(start: Any, indices: Places, updates: Any) -> Scattered:  # Any: a tile or a number; arrays
    """A result with some of its rows overwritten; for applications only. See `scatter_add`.

    Which of several updates to one place stays is not specified.
    """
    return _scattered("scatter", start, indices, updates)


def scatter_add(start: Any, indices: Places, updates: Any) -> Scattered:  # Any: a tile or a number; arrays
    """A result with updates added to some of its rows; for applications only, which return it in the place of
    the result's tile.

    The result's tensor is arranged so that every program has the whole array. Updates of all programs add up,
    whichever places they name: on the CPU in the order of the programs and of the elements of a tile, with
    any number of threads, and on GPUs in any order.

    Args:
        start: what the result starts as: a number, or the tile of an operand of the same type.
        indices: numbers of rows, a tile of integers, or one of them for each of the leading dimensions of
            the array. What lies outside the array is dropped: -1 is no row, as is a place computed from
            elements beyond the end of an operand, or one computed from no operand where the update was.
            Operations that mix elements, as loops and products do, are refused where such elements take part,
            unless the place is `numpy.where(condition, place, -1)`.
        updates: what is added, shaped like the indices and then a row, or what broadcasts to that.

    Returns:
        What the application returns for the result; it has no elements to compute with.

    Raises:
        TypeMismatchError: indices are no integers, or differ in shape.
        ValueMismatchError: no application is being traced.

    Example:
        >>> import numpy as np
        >>> from infini import tile
        >>> x, counts = tile.Tensor(1), tile.Tensor(shape=(4,))
        >>> def blocks(x, counts):
        ...     x = x.tile((16,))
        ...     return x, counts.tile((-1,)).expand(x.shape)
        >>> @tile.kernel(blocks, tensors=(x, counts))
        ... def histogram(x):
        ...     return tile.scatter_add(0, x, 1)
        >>> histogram(np.array([0, 3, 3, 7, -1]))
        Array([1, 0, 0, 2], dtype=int32)
    """
    return _scattered("scatter_add", start, indices, updates)


def scatter_max(start: Any, indices: Places, updates: Any) -> Scattered:  # Any: a tile or a number; arrays
    """A result with the larger of what is there and the updates; for applications only. See `scatter_add`."""
    return _scattered("scatter_max", start, indices, updates)


def scatter_min(start: Any, indices: Places, updates: Any) -> Scattered:  # Any: a tile or a number; arrays
    """A result with the smaller of what is there and the updates; for applications only. See
    `scatter_add`.
    """
    return _scattered("scatter_min", start, indices, updates)


def _scattered(kind: str, start: Any, indices: Places, updates: Any) -> Scattered:  # Any: as of scatter_add
    if not within.is_running():
        raise errors.ValueMismatchError(
            f"tile.{kind} has no meaning here",
            expected="an application of a kernel, which returns it for a result",
            fix=f"outside of kernels write x.at[indices].{_METHODS[kind]}(updates)",
        )
    is_several = isinstance(indices, (tuple, list))
    places = [trace.as_value(i) for i in (indices if is_several else (indices,))]  # type: ignore[union-attr]
    for place in places:
        if place.dtype not in dtypes.INTEGERS:
            raise errors.TypeMismatchError(
                f"tile.{kind}: indices are numbers of rows",
                got=str(place.type),
                expected="integers",
                fix="convert them by .astype('int32')",
            )
    if not places:
        raise errors.TypeMismatchError(
            f"tile.{kind} needs indices", got="none", expected="one tile of them, or one per dimension"
        )
    try:
        shape = np.broadcast_shapes(*(place.shape for place in places))
    except ValueError:
        raise errors.TypeMismatchError(
            f"tile.{kind}: the indices of the dimensions differ in shape",
            got=", ".join(str(place.type) for place in places),
            expected="shapes that broadcast to one",
        ) from None
    if isinstance(start, Value) and not isinstance(start, Literal):
        within.operand_number(start)  # it is one
    elif isinstance(start, Literal) and start.shape == ():
        start = start.host.item()
    elif not isinstance(start, (bool, int, float, complex, np.generic)):
        raise errors.TypeMismatchError(
            f"tile.{kind}: the result starts as a number or as an operand",
            got=type(start).__name__,
            expected="a number, or a tile as the application was given it",
        )
    spread = tuple(families.broadcast_to(place, shape) for place in places)
    return Scattered(kind, start, spread, trace.as_value(updates))


def resolve(
    found: Scattered, array: ir.Shape, dtype: np.dtype | None, label: str
) -> tuple[Scatter, Value, Value]:
    """The scatter of a result, its places and its values.

    Args:
        found: what the application returned.
        array: shape of the result.
        dtype: what was said of its dtype.
        label: names the result, for messages.

    Raises:
        TypeMismatchError: indices, updates and start do not fit the result.
    """
    count, shape = len(found.places), found.places[0].shape
    if count > len(array):
        raise errors.TypeMismatchError(
            f"{label} has fewer dimensions than indices are given for",
            got=f"{count} tiles of indices for {array}",
            expected=f"at most {len(array)}",
        )
    start, values = found.start, found.updates
    own = start.dtype if isinstance(start, Value) else dtype if dtype is not None else values.dtype
    out = ArrayType(array, own)
    if isinstance(start, Value) and (start.dtype != (dtype or own) or within.array_shape(start) != array):
        raise errors.TypeMismatchError(
            f"{label} cannot start as an array of another type",
            got=str(ArrayType(within.array_shape(start), start.dtype)),
            expected=str(ArrayType(array, dtype or own)),
        )
    if own not in indexing.KINDS[found.kind].allowed:
        raise errors.TypeMismatchError(
            f"tile.{found.kind} does not take this dtype",
            got=str(out),
            expected="numbers",
            fix="convert the updates, or say dtype= of the result",
        )
    full = (*shape, *array[count:])
    try:
        is_fitting = np.broadcast_shapes(values.shape, full) == full
    except ValueError:
        is_fitting = False
    if not is_fitting:
        raise errors.TypeMismatchError(
            f"{label}: the updates do not fit the indices and the rows",
            got=f"updates {values.type}, indices {found.places[0].type}, rows of {array[count:]}",
            expected=f"updates that broadcast to {full}",
        )
    values = families.broadcast_to(e.convert_element_type(values, own), full)
    operand = within.operand_number(start) if isinstance(start, Value) else None
    fill = 0 if isinstance(start, Value) else number_in(own, start, label).item()
    return Scatter(found.kind, out, count, operand, fill), _counted(found.places, array[:count]), values


def _counted(places: Sequence[Value], sizes: ir.Shape) -> Value:
    """Numbers of rows in C order, -1 where a place lies outside."""
    total = math.prod(sizes)
    is_wide = max(total, *sizes) > _INT32_MAX or any(place.dtype in _WIDE for place in places)
    dtype = dtypes.int64 if is_wide else dtypes.int32
    shape = places[0].shape
    number: Value | None = None
    is_inside: Value | None = None
    for place, size in zip(places, sizes, strict=True):
        at = e.convert_element_type(place, dtype)
        here = e.bitwise_and(e.ge(at, 0), e.lt(at, size))
        is_inside = here if is_inside is None else e.bitwise_and(is_inside, here)
        number = at if number is None else e.add(e.mul(number, size), at)
    assert number is not None and is_inside is not None, "there are indices"
    found = e.select(is_inside, number, _full(-1, dtype, shape))
    return e.convert_element_type(found, dtypes.int32 if total <= _INT32_MAX else dtypes.int64)


def _full(number: int, dtype: np.dtype, shape: ir.Shape) -> Value:
    return view.broadcast_in_dim(Literal(np.asarray(number, dtype), weak=False), shape, ())
