"""Attributes of equations: frozen, hashable, and compared so that 1, 1.0 and True are three values.

Numbers, strings, dtypes, types, operations, programs, tuples and sets of these, and frozen dataclasses marked
with `attribute`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from infini.core import errors, primitive
from infini.core.ir.types import ArrayType

_Class = TypeVar("_Class", bound=type)


class Attrs(Mapping[str, Any]):  # Any: attributes are of many frozen types
    """Frozen, hashable attributes of an equation, in the order of their names."""

    __slots__ = ("_hash", "_items", "_programs")

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {name: freeze(items[name]) for name in sorted(items)}
        self._hash: int | None = None
        self._programs: tuple[Any, ...] | None = None  # Any: programs, which this module is below

    def programs(self, find: Callable[[Iterable[object]], Iterator[Any]]) -> tuple[Any, ...]:
        """What `find` finds in the values; looked for once."""
        if self._programs is None:
            self._programs = tuple(find(self._items.values()))
        return self._programs

    def __getitem__(self, name: str) -> Any:  # Any: see class
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(self._items.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Attrs) or self._items.keys() != other._items.keys():
            return False
        return all(_is_same(item, other._items[name]) for name, item in self._items.items())

    def replace(self, **changes: object) -> Attrs:
        """The same attributes with some changed."""
        return Attrs({**self._items, **changes})

    def __repr__(self) -> str:
        return f"Attrs({self._items!r})"


def _is_same(one: object, other: object) -> bool:
    """Equality of frozen values that tells 1, 1.0 and True apart, and 0.0 and -0.0."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1.0, one) == math.copysign(1.0, other)
    if isinstance(one, complex) and isinstance(other, complex):
        return _is_same(one.real, other.real) and _is_same(one.imag, other.imag)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


_ATTRIBUTE_CLASSES: dict[str, type] = {}
# Classes of attributes that `import infini` does not load, as `core.primitive` has for operations.
_DECLARED_LATER: Final = {
    "Access": "infini.tile.program",
    "Check": "infini.transforms.check_operation",
    "Kernel": "infini.tile.program",
    "Scatter": "infini.tile.scattered",
}
_PLAIN: set[type] = {type(None), bool, int, float, complex, str, ArrayType, primitive.Primitive}


def attribute(cls: _Class) -> _Class:
    """Class decorator: instances of this frozen dataclass may be attributes, and print and parse by field.

    Raises:
        ValueMismatchError: another class has its name, under which it would be parsed.
    """
    known = _ATTRIBUTE_CLASSES.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise errors.ValueMismatchError(
            f"an attribute class named {cls.__name__!r} exists already",
            got=f"{cls.__module__}.{cls.__qualname__} beside {known.__module__}.{known.__qualname__}",
            fix="choose another name",
        )
    _ATTRIBUTE_CLASSES[cls.__name__] = cls
    return cls


def plain(cls: _Class) -> _Class:
    """Class decorator: instances are attributes as they are. For `Program`, which has its own text form."""
    _PLAIN.add(cls)
    return cls


def attribute_class(name: str) -> type:
    """The class registered by `attribute` under `name`.

    Raises:
        ParseError: there is none.
    """
    if name not in _ATTRIBUTE_CLASSES and name in _DECLARED_LATER:
        importlib.import_module(_DECLARED_LATER[name])
    if name not in _ATTRIBUTE_CLASSES:
        raise errors.ParseError(
            f"there is no attribute class {name!r}", expected=", ".join(sorted(_ATTRIBUTE_CLASSES))
        )
    return _ATTRIBUTE_CLASSES[name]


def freeze(value: object) -> object:
    """`value` as a hashable attribute: lists become tuples, NumPy scalars Python ones.

    Raises:
        TypeMismatchError: it is nothing an attribute can hold.
    """
    if type(value) is float:
        return value if value == value else math.nan  # one object, which equals itself
    if type(value) in _PLAIN or isinstance(value, np.dtype):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, (frozenset, set)):
        return frozenset(freeze(item) for item in value)
    if isinstance(value, np.generic):
        return freeze(value.item())
    if isinstance(value, int):
        return int(value)  # an enumeration, say: it prints and parses as what it stands for
    if isinstance(value, str):
        return str.__str__(value)
    if _ATTRIBUTE_CLASSES.get(type(value).__name__) is type(value):
        return value
    raise errors.TypeMismatchError(
        f"a value of type {type(value).__name__} cannot be an attribute of an equation",
        expected="numbers, strings, dtypes, tuples of these, programs, or a class marked with ir.attribute",
    )


NO_ATTRS = Attrs({})


@attribute
@dataclass(frozen=True, slots=True, weakref_slot=True)
class HostFunction:
    """A Python function that a program calls; `name` for people, `id` for the table in `core.host`
    (design 4a.3).
    """

    name: str
    id: int
