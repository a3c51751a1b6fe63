"""Metadata of a GGUF file: values with the type that the file gives them.

A reader keeps the type of every value, so that what is read and written again is the same bytes. Writers may
give plain Python values, whose types are found here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io.gguf.types import VALUE_DTYPES, ValueType

Scalar = bool | int | float | str
# Numbers of arrays are NumPy arrays, texts are lists: there may be hundreds of thousands of either.
Data = Scalar | np.ndarray | list[str]

_OF_DTYPES: Final = {(dtype.kind, dtype.itemsize): kind for kind, dtype in VALUE_DTYPES.items()}
_FLOATS: Final = (ValueType.FLOAT32, ValueType.FLOAT64)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A value of metadata.

    Args:
        kind: its type in the file.
        data: a number, a truth value, a text; for arrays a NumPy array of one dimension or a list of texts.
        item: type of an array's elements; None for others.
    """

    kind: ValueType
    data: Data
    item: ValueType | None = None

    def __eq__(self, other: object) -> bool:
        """Equal type and equal bits: NaN equals NaN, and 0.0 differs from -0.0."""
        if not isinstance(other, Value) or (self.kind, self.item) != (other.kind, other.item):
            return NotImplemented if not isinstance(other, Value) else False
        a, b = self.data, other.data
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.tobytes() == b.tobytes()
        if isinstance(a, float) and isinstance(b, float):
            return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
        return a == b

    def __hash__(self) -> int:
        return hash((self.kind, self.item))

    @property
    def type_name(self) -> str:
        """Type as people write it: `uint32`, `string`, `array of string`."""
        name = self.kind.name.lower()
        return f"{name} of {self.item.name.lower()}" if self.item is not None else name

    def plain(self) -> Scalar | list[Scalar]:
        """The value made of Python's own types."""
        if isinstance(self.data, np.ndarray):
            return self.data.tolist()
        return list(self.data) if isinstance(self.data, list) else self.data


class Metadata(Mapping[str, Data]):
    """Metadata by key: plain values, as a mapping; `fields` has them with their types.

    Args:
        fields: values by key, in the order of the file.

    Example:
        >>> metadata = Metadata({"general.name": value_of("tiny")})
        >>> metadata["general.name"], metadata.get("general.url")
        ('tiny', None)
    """

    def __init__(self, fields: Mapping[str, Value]) -> None:
        self.fields = dict(fields)

    def __getitem__(self, key: str) -> Data:
        return self.fields[key].data

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"Metadata({len(self)} keys)"


def value_of(
    data: Any, kind: ValueType | None = None, item: ValueType | None = None
) -> Value:  # Any: see Args
    """A value for a file.

    Args:
        data: a value, which stands for itself; a bool, int, float or str; a list of one of these; or a NumPy
            array of one dimension.
        kind: its type. When absent whole numbers become uint32, int32, uint64 or int64, the first that holds
            them, floats float32, and lists arrays.
        item: type of an array's elements; by the same rule when absent, except that whole numbers that fit
            become int32, as is usual.

    Raises:
        TypeMismatchError: there is no such value in GGUF files.
        ValueMismatchError: a number does not fit its type.

    Example:
        >>> value_of(7).kind.name, value_of(-7).kind.name, value_of([1.5]).type_name
        ('UINT32', 'INT32', 'array of float32')
    """
    if isinstance(data, Value):
        return data
    if isinstance(data, np.ndarray | list | tuple) and kind in (None, ValueType.ARRAY):
        return _array(data, item)
    if isinstance(data, np.generic):
        kind, data = kind or _OF_DTYPES.get((data.dtype.kind, data.dtype.itemsize)), data.item()
    if not isinstance(data, bool | int | float | str):
        raise errors.TypeMismatchError(
            "metadata of GGUF files has no values of this kind",
            got=f"{type(data).__name__}" + (f" for {kind.name.lower()}" if kind is not None else ""),
            expected="a truth value, a number, a text, or a list of these",
        )
    kind = _kind_of(data) if kind is None else kind
    return Value(kind, _checked(data, kind))


def _kind_of(data: Scalar) -> ValueType:
    if isinstance(data, str):
        return ValueType.STRING
    if isinstance(data, bool):
        return ValueType.BOOL
    if isinstance(data, float):
        return ValueType.FLOAT32
    for kind in (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64):
        if _fits(data, kind):
            return kind
    raise errors.ValueMismatchError("a whole number does not fit 64 bits", got=str(data))


def _fits(number: int, kind: ValueType) -> bool:
    limits = np.iinfo(VALUE_DTYPES[kind])
    return int(limits.min) <= number <= int(limits.max)


def _checked(data: Scalar, kind: ValueType) -> Scalar:
    """`data` as a value of `kind`, which has to hold it as it is."""
    if kind is ValueType.STRING and isinstance(data, str):
        return data
    if kind is ValueType.BOOL and (isinstance(data, bool) or data in (0, 1)) and not isinstance(data, str):
        return bool(data)
    if kind in _FLOATS and isinstance(data, int | float) and not isinstance(data, bool):
        return float(VALUE_DTYPES[kind].type(data))
    is_whole = kind in VALUE_DTYPES and kind not in (*_FLOATS, ValueType.BOOL)
    if is_whole and isinstance(data, int) and not isinstance(data, bool) and _fits(data, kind):
        return data
    raise errors.ValueMismatchError(
        f"a value does not fit its type {kind.name.lower()}", got=f"{data!r} of type {type(data).__name__}"
    )


def _array(data: np.ndarray | Sequence[Any], item: ValueType | None) -> Value:
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS":
        data = data.tolist()
    if isinstance(data, np.ndarray):
        found = item or _OF_DTYPES.get((data.dtype.kind, data.dtype.itemsize))
        if found is None or data.ndim != 1 or found not in VALUE_DTYPES:
            raise errors.TypeMismatchError(
                "metadata of GGUF files has no arrays of this kind",
                got=f"{data.dtype} with {data.ndim} dimensions",
                expected="one dimension of truth values, whole numbers up to 64 bits, or floats of 32 or 64",
            )
        return Value(ValueType.ARRAY, _fitting(data, found), found)
    if item is ValueType.STRING or (item is None and data and all(isinstance(x, str) for x in data)):
        if not all(isinstance(x, str) for x in data):
            raise errors.TypeMismatchError("an array of texts holds something else", got=repr(data[:4]))
        return Value(ValueType.ARRAY, list(data), ValueType.STRING)
    if any(isinstance(x, str) for x in data) or any(isinstance(x, list | tuple | dict) for x in data):
        raise errors.TypeMismatchError(
            "arrays in GGUF files have elements of one type, and no arrays",
            got=repr(list(data[:4])),
            expected="all texts, all truth values or all numbers",
        )
    found = item or _item_of(data)
    return Value(ValueType.ARRAY, _fitting(np.array(list(data)) if data else np.zeros(0), found), found)


def _item_of(data: Sequence[Scalar]) -> ValueType:
    if not data:
        return ValueType.INT32
    if all(isinstance(x, bool) for x in data):
        return ValueType.BOOL
    if any(isinstance(x, float) for x in data):
        return ValueType.FLOAT32
    kinds = (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)
    for kind in kinds:
        if all(isinstance(x, int) and _fits(x, kind) for x in data):
            return kind
    raise errors.ValueMismatchError("whole numbers of an array do not fit 64 bits", got=repr(data[:4]))


def _fitting(data: np.ndarray, item: ValueType) -> np.ndarray:
    """`data` as numbers of `item`, which has to hold them as they are; floats may be rounded."""
    dtype = VALUE_DTYPES.get(item)
    is_whole = dtype is not None and dtype.kind in "iu"
    if dtype is None or (data.size and data.dtype.kind not in ("iu" if is_whole else "fiub")):
        raise errors.TypeMismatchError(
            f"an array of {item.name.lower()} cannot hold these", got=f"{data.dtype}"
        )
    if is_whole and data.size:
        limits = np.iinfo(dtype)
        if int(data.min()) < limits.min or int(data.max()) > limits.max:
            raise errors.ValueMismatchError(
                f"a number does not fit {item.name.lower()}", got=f"{data.min()} to {data.max()}"
            )
    return np.ascontiguousarray(data, dtype)
