"""Taking an index such as `x[1:, None, rows, ..., 0]` apart, by NumPy's rules: what is static in it, and the
numbers and arrays, which are operands.

An index without arrays is *basic*: numbers and bounds per dimension. With arrays it is *advanced*: integer
arrays and numbers broadcast together, and their dimensions stand where the first of them stood, or in front
when something lies between them. A boolean array stands for the positions where it is true.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy import creation
from infini.numpy._promotion import convert

WIDE: Final = (dtypes.int64, dtypes.uint32, dtypes.uint64)
INT32_MAX: Final = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Range:
    """A slice of one dimension: `size` elements in steps of `step`, all inside.

    Args:
        low: the smallest position; None where it is an operand of a program.
        size: number of elements.
        step: distance between neighbours; negative ones run backwards.
        length: size of the dimension.
    """

    low: int | Value | None
    size: int
    step: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether it takes every element, in either order."""
        return self.size == self.length and self.step in (1, -1)

    @property
    def span(self) -> int:
        """Number of positions from the smallest to the largest."""
        return (self.size - 1) * abs(self.step) + 1 if self.size else 0


class Slot(enum.Enum):
    """What stands in the structure of an index for a part that is an operand of a program."""

    NUMBER = "a number, counted from 0"
    HOST = "an array, counted from 0"
    DEVICE = "a number or an array that may be negative"


Item: TypeAlias = int | Value | Range | None


@dataclass(frozen=True, slots=True)
class Structure:
    """What is static in an index: everything but its numbers and arrays.

    Args:
        parts: a Slot for a number or an array, a Range, or None for a new dimension.
        shape: shape of the indexed array, with a dimension of size 1 for each single boolean.
        added: places of these dimensions in it.
        is_together: whether numbers and arrays stand side by side.
        is_inside: whether there are no arrays and every number is known to lie inside.
    """

    parts: tuple[Slot | Range | None, ...]
    shape: ir.Shape
    added: tuple[int, ...]
    is_together: bool
    is_inside: bool


@dataclass(frozen=True, slots=True)
class Index:
    """An index taken apart: a Structure with its numbers and arrays in place, which count from 0."""

    parts: tuple[Item, ...]
    structure: Structure

    @property
    def is_basic(self) -> bool:
        """Whether no part is an array of one dimension or more."""
        return not any(isinstance(part, Value) and part.ndim for part in self.parts)

    @property
    def dimensions(self) -> list[int | Value | Range]:
        """The parts that index a dimension."""
        return [part for part in self.parts if part is not None]

    @property
    def basic_shape(self) -> ir.Shape:
        """Shape of the result, for an index without arrays."""
        return tuple(
            1 if part is None else part.size for part in self.parts if part is None or isinstance(part, Range)
        )


Operand: TypeAlias = int | Value


def join(structure: Structure, operands: Sequence[Operand], *, wraps: bool) -> Index:
    """An index from its structure and operands; negative ones on devices count from the end if `wraps`."""
    given = iter(operands)
    lengths = iter(structure.shape)
    parts: list[Item] = []
    for part in structure.parts:
        if part is None:
            parts.append(None)
            continue
        length = next(lengths)
        if isinstance(part, Range):
            parts.append(part if part.low is not None else replace(part, low=_number(next(given))))
        elif part is Slot.DEVICE:
            parts.append(wrapped(next(given), length, wraps=wraps))
        else:
            parts.append(_number(next(given)))
    return Index(tuple(parts), structure)


def _number(x: Operand) -> Operand:
    return int(x.host) if isinstance(x, Literal) and not x.ndim else x


# --- parsing --------------------------------------------------------------------------------------


def parse(
    index: Any, shape: ir.Shape, *, wraps: bool = True
) -> tuple[Structure, list[Operand]]:  # Any: whatever stands in brackets
    """Take an index of an array of `shape` apart: its structure, and the numbers and arrays in it.

    Args:
        index: what stands in brackets.
        shape: shape of the indexed array.
        wraps: whether negative numbers count from the end.

    Raises:
        IndexOutOfRangeError: there are more parts than dimensions, a mask does not fit, a slice has traced
            bounds, or a part is nothing that can be an index.
        TypeMismatchError: a part is a list, a string or not of integers.
        NonConcreteBooleanIndexError: a boolean array is being traced.
    """
    if isinstance(index, (list, range)):
        raise errors.TypeMismatchError(
            "a list is not an index",
            got=repr(index),
            expected="integers, slices, None, ... or integer or boolean arrays",
            fix="use x[infini.numpy.asarray(...)] for an array, x[tuple(...)] for one part per dimension",
        )
    given = [_classified(part) for part in (index if isinstance(index, tuple) else (index,))]
    taken = sum(_num_taken(part) for part in given)
    if sum(part is Ellipsis for part in given) > 1:
        raise errors.IndexOutOfRangeError("an index can only have one ellipsis", got=_show(index))
    if taken > len(shape):
        raise errors.IndexOutOfRangeError(
            f"too many indices: {taken} for {len(shape)} dimensions",
            got=f"shape {shape}, index {_show(index)}",
            expected=f"at most {len(shape)}, besides None and ...",
        )
    advanced = [i for i, part in enumerate(given) if isinstance(part, (int, Value, np.ndarray))]
    is_together = not advanced or advanced[-1] - advanced[0] + 1 == len(advanced)
    place = next((i for i, part in enumerate(given) if part is Ellipsis), len(given))
    given[place : place + 1] = [slice(None)] * (len(shape) - taken)
    found = _Parts(list(shape), wraps)
    for part in given:
        found.add(part)
    structure = Structure(
        tuple(found.parts), tuple(found.shape), tuple(found.added), is_together, found.is_inside
    )
    return structure, found.operands


class _Parts:
    """The parts of an index, one after another.

    Args:
        rest: sizes of the dimensions that no part has taken.
        wraps: whether negative numbers count from the end.
    """

    def __init__(self, rest: list[int], wraps: bool) -> None:
        self.rest, self.wraps = rest, wraps
        self.parts: list[Slot | Range | None] = []
        self.operands: list[Operand] = []
        self.shape: list[int] = []
        self.added: list[int] = []
        self.is_inside = True

    def add(self, part: Any) -> None:  # Any: as _classified
        """Take the next part."""
        if part is None:
            self.parts.append(None)
        elif isinstance(part, np.ndarray):
            self._add_mask(part)
        elif isinstance(part, slice):
            self.shape.append(self.rest.pop(0))
            self._add_range(_range(part, self.shape[-1]))
        else:
            self.shape.append(self.rest.pop(0))
            self._add_index(part, self.shape[-1])

    def _add_mask(self, mask: np.ndarray) -> None:
        covered, self.rest = self.rest[: mask.ndim], self.rest[mask.ndim :]
        self.parts += [Slot.HOST] * max(mask.ndim, 1)
        self.operands += _positions_of(mask, covered)
        if not covered:
            self.added.append(len(self.shape))
        self.shape += covered or [1]
        self.is_inside = False

    def _add_range(self, part: Range) -> None:
        if part.is_whole:
            self.parts.append(part)
            return
        assert isinstance(part.low, int)
        self.operands.append(_as_operand(part.low, part.length))
        self.parts.append(replace(part, low=None))

    def _add_index(self, part: int | Value, length: int) -> None:
        if not length and (isinstance(part, int) or not part.ndim):
            raise errors.IndexOutOfRangeError(
                f"index is out of bounds: dimension {len(self.shape) - 1} has no elements", got=_show(part)
            )
        if isinstance(part, int):
            number = part + length if part < 0 and self.wraps else part
            self.is_inside &= 0 <= number < length
            self.parts.append(Slot.NUMBER)
            self.operands.append(_as_operand(number, length))
            return
        self.is_inside = False
        is_known = isinstance(part, Literal)
        self.parts.append(Slot.HOST if is_known else Slot.DEVICE)
        self.operands.append(wrapped(part, length, wraps=self.wraps) if is_known else part)


def _classified(part: Any) -> Any:  # Any: int, slice, None, Ellipsis, an integer Value, or a NumPy mask
    """A part in one of the forms that the rest of the parser knows."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, (bool, np.bool_)):
        return np.asarray(part, bool)
    if isinstance(part, (int, np.integer)):
        return int(part)
    if isinstance(part, (list, tuple)):
        found = creation.asarray(part, dtypes.int32 if not len(part) else None)
        return _classified(np.asarray(found) if not isinstance(found, trace.Tracer) else found)
    if hasattr(part, "__infini_array__"):
        part = part.__infini_array__()
    if isinstance(part, (Value, np.ndarray)):
        if part.dtype == dtypes.bool_:
            return _known_mask(part)
        if part.dtype in dtypes.INTEGERS or np.issubdtype(part.dtype, np.integer):
            # Host arrays keep their 64 bits here: what does not fit is out of bounds, not an error.
            value = part if isinstance(part, Value) else Literal(np.asarray(part), weak=False)
            return value if value.ndim or not isinstance(value, Literal) else int(value.host)
    if isinstance(part, (Value, np.ndarray, str, float, complex, np.generic)):
        kind = str(part.type) if isinstance(part, Value) else f"{part!r} of type {type(part).__name__}"
        raise errors.TypeMismatchError(
            "this is not an index",
            got=kind,
            expected="integers, slices, None, ... or integer or boolean arrays",
            fix="convert it to an integer first, for example with .astype('int32')",
        )
    try:
        return operator.index(part)
    except TypeError:
        raise errors.IndexOutOfRangeError(
            "this is not an index",
            got=f"{part!r} of type {type(part).__name__}",
            expected="integers, slices, None, ... or integer or boolean arrays",
        ) from None


def _known_mask(mask: Value | np.ndarray) -> np.ndarray:
    if isinstance(mask, trace.Tracer) and mask.concrete() is None:
        raise errors.NonConcreteBooleanIndexError(
            "a traced boolean mask cannot be an index, since the size of the result depends on it",
            got=str(mask.type),
            fix="use infini.numpy.where(mask, x, fill), or infini.numpy.nonzero(mask, size=...); "
            "or index outside jit",
        )
    return np.asarray(mask)


def _num_taken(part: Any) -> int:  # Any: as _classified
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) else 1


def _positions_of(mask: np.ndarray, covered: Sequence[int]) -> list[Value]:
    """Index arrays that stand for a mask; a single boolean is one of a dimension of size 1."""
    if not mask.ndim:
        return [Literal(np.arange(int(mask), dtype=np.int32), weak=False)]
    if any(n not in (0, m) for n, m in zip(mask.shape, covered, strict=True)):
        raise errors.IndexOutOfRangeError(
            "a mask has another shape than the dimensions it stands for",
            got=f"a mask of shape {mask.shape} for dimensions of sizes {tuple(covered)}",
            expected="equal shapes",
        )
    return [Literal(found.astype(np.int32), weak=False) for found in np.nonzero(mask)]


def _range(part: slice, length: int) -> Range:
    try:
        start, stop, step = part.indices(length)
    except TypeError:
        bounds = (part.start, part.stop, part.step)
        if any(isinstance(bound, trace.Tracer) for bound in bounds):
            raise errors.IndexOutOfRangeError(
                "the bounds of a slice have to be known while tracing",
                got=_show(part),
                expected="integers or None",
                fix="use lax.dynamic_slice for a slice of known size at a traced start",
            ) from None
        raise errors.TypeMismatchError(
            "the bounds of a slice have to be integers", got=_show(part), expected="integers or None"
        ) from None
    size = len(range(start, stop, step))
    low = start if step > 0 else start + (size - 1) * step
    return Range(low if size else 0, size, step, length)


def _show(index: Any) -> str:  # Any: as parse
    def one(part: Any) -> str:
        if isinstance(part, Value):
            return str(part.type)
        if isinstance(part, slice):
            return f"slice({one(part.start)}, {one(part.stop)}, {one(part.step)})"
        return repr(part)

    return ", ".join(map(one, index if isinstance(index, tuple) else (index,)))


def _as_operand(number: int, length: int) -> Operand:
    """A number that counts from 0, which int32 holds; in int64 for dimensions beyond it."""
    if length > INT32_MAX:
        return wrapped(number, length, wraps=False)
    return min(max(number, -1), INT32_MAX)


def wrapped(part: int | Value, length: int, *, wraps: bool = True) -> Value:
    """An index as int32, or int64 where it or the dimension needs that; negative numbers count from the end
    if `wraps`. Numbers of the host beyond the dtype stay outside of the array.
    """
    wide = dtypes.int64 if length > INT32_MAX else dtypes.int32
    bounds = np.iinfo(wide)
    if isinstance(part, int):
        part = Literal(np.asarray(min(max(part, bounds.min), bounds.max), np.int64), weak=False)
    if isinstance(part, Literal):
        host = np.clip(part.host, bounds.min, bounds.max) if part.dtype in WIDE else part.host
        host = host.astype(np.int64)
        return Literal(np.where((host < 0) & wraps, host + length, host).astype(wide), weak=False)
    if part.dtype == dtypes.uint64:
        part = bind_scalars(e.min_p, part, int(np.iinfo(np.int64).max))
    column = convert(part, dtypes.int64 if part.dtype in WIDE else wide)
    if part.dtype in dtypes.UNSIGNED or not wraps:
        return column
    is_negative = bind_scalars(e.lt_p, column, 0)
    return trace.bind1(e.select_n_p, is_negative, column, bind_scalars(e.add_p, column, length))
