"""The language of tables: `"symbol: slot slot ..."` says how a C function takes an operation's arguments.

Slots name logical arguments; their order is the vendor's. `n` is an argument, `>ptr` a result behind a
pointer, `=0` a constant, `=null` a null pointer, `&id` a structure or a number by pointer and `*id` a
structure by value. A type follows a colon (`device:u32`, `=8:u32`). `a|b: ...` are names of one function in
several versions, and `symbol -> str: ...` returns something other than a status.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from infini.core import errors

TYPES: Final[dict[str, Any]] = {  # Any: types of ctypes
    "ptr": ctypes.c_void_p,
    "str": ctypes.c_char_p,
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "u64": ctypes.c_uint64,
    "size": ctypes.c_size_t,
    "f32": ctypes.c_float,
    "text": ctypes.c_char * 256,
}
# Types of arguments that have none in the table; pointers are the rule.
_TYPE_OF_NAME: Final = {
    "n": "size", "size": "size", "kind": "i32", "value": "i32", "device": "i32", "code": "i32",
    "attribute": "i32", "name": "str", "blocks": "u32", "shared": "u32", "dtype": "i32", "op": "i32",
    "root": "i32", "peer": "i32", "rank": "i32", "num_ranks": "i32",
    **{f"{what}_{axis}": "u32" for what in ("grid", "block") for axis in "xyz"},
}  # fmt: skip
_CALL: Final = re.compile(r"(?P<symbols>\w+(\|\w+)*)( -> (?P<returns>\w+))?:(?P<slots>.*)")
_SLOT: Final = re.compile(r"(?P<mark>[>=&*]?)(?P<name>-?\w+)(:(?P<type>\w+))?")

Role: TypeAlias = Literal["argument", "result", "constant", "by pointer", "by value"]
_ROLES: Final[dict[str, Role]] = {
    "": "argument", ">": "result", "=": "constant", "&": "by pointer", "*": "by value",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slot:
    """One C argument."""

    role: Role
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Call:
    """A C function as a table describes it.

    Args:
        symbols: its name, and those of other versions.
        returns: `status`, or the type of what it returns.
        slots: its arguments in C's order.
    """

    symbols: tuple[str, ...]
    returns: str
    slots: tuple[Slot, ...]

    @property
    def arguments(self) -> frozenset[str]:
        """Names of the logical arguments that it takes."""
        return frozenset(slot.name for slot in self.slots if slot.role not in ("result", "constant"))

    @property
    def num_results(self) -> int:
        """How many values come back behind pointers."""
        return sum(slot.role == "result" for slot in self.slots)


def parse(text: str) -> Call:
    """A call from its text.

    Raises:
        ParseError: the text is no call.

    Example:
        >>> from infini.backends.vendors import slots
        >>> [slot.name for slot in slots.parse("aclrtMalloc: >ptr n =0").slots]
        ['ptr', 'n', '0']
    """
    found = _CALL.fullmatch(text.strip())
    if found is None:
        raise errors.ParseError(
            "a call of a vendor's table cannot be read",
            got=repr(text),
            expected="'symbol: slot slot ...', such as 'aclrtMalloc: >ptr n =0'",
        )
    returns = found["returns"] or "status"
    if returns != "status" and returns not in TYPES:
        raise errors.ParseError(f"{text!r} returns an unknown type", got=returns, expected=", ".join(TYPES))
    return Call(
        tuple(found["symbols"].split("|")),
        returns,
        tuple(_slot(each, text) for each in found["slots"].split()),
    )


def _slot(text: str, call: str) -> Slot:
    found = _SLOT.fullmatch(text)
    if found is None:
        raise errors.ParseError(
            f"a slot of {call!r} cannot be read",
            got=repr(text),
            expected="name, >type, =number, =null, &name or *name, with an optional :type",
        )
    role, name = _ROLES[found["mark"]], found["name"]
    if role == "result":
        type_ = found["type"] or name
    elif role == "constant":
        type_ = found["type"] or ("ptr" if name == "null" else "i32")
    elif role == "argument":
        type_ = found["type"] or _TYPE_OF_NAME.get(name, "ptr")
    else:
        type_ = found["type"] or "ptr"
    if type_ not in TYPES or (role == "constant" and name != "null" and not name.lstrip("-").isdigit()):
        raise errors.ParseError(
            f"a slot of {call!r} has an unknown type", got=text, expected=", ".join(TYPES)
        )
    return Slot(role, name, type_)


class Bound:
    """A call bound to the function of a loaded library.

    Args:
        call: how the function takes its arguments.
        function: of `ctypes`, not shared with others: its types are set.
        structures: types of structures by the names of their slots, for those passed by value.
    """

    def __init__(self, call: Call, function: Any, structures: Mapping[str, Any]) -> None:  # Any: ctypes
        self.call, self.symbol, self._function = call, function.__name__, function
        function.restype = ctypes.c_int32 if call.returns == "status" else TYPES[call.returns]
        function.argtypes = [_argument_type(slot, structures) for slot in call.slots]

    def __call__(self, values: Mapping[str, Any]) -> tuple[Any, list[Any]]:  # Any: what C gives
        """Call it.

        Args:
            values: numbers, addresses (None for a null pointer), bytes and structures by the names of slots.

        Returns:
            What the function returns, and the results behind pointers in order.
        """
        arguments, results = [], []
        for slot in self.call.slots:
            if slot.role == "result":
                results.append(TYPES[slot.type]())
                is_array = slot.type == "text"
                arguments.append(results[-1] if is_array else ctypes.byref(results[-1]))
            elif slot.role == "constant":
                arguments.append(None if slot.name == "null" else int(slot.name))
            elif slot.role == "by pointer":
                value = values[slot.name]
                arguments.append(ctypes.byref(TYPES[slot.type](value) if isinstance(value, int) else value))
            else:
                arguments.append(values[slot.name])
        return self._function(*arguments), [result.value for result in results]


def _argument_type(slot: Slot, structures: Mapping[str, Any]) -> Any:  # Any: a type of ctypes
    if slot.role == "by value":
        return structures[slot.name]
    if slot.role == "by pointer":
        return ctypes.c_void_p
    if slot.role == "result":
        return ctypes.c_char_p if slot.type == "text" else ctypes.POINTER(TYPES[slot.type])
    return TYPES[slot.type]


def bind(library: ctypes.CDLL, call: Call, structures: Mapping[str, Any] | None = None) -> Bound | None:
    """The first of a call's functions that a library has; None when it has none of them."""
    for symbol in call.symbols:
        try:
            return Bound(call, library[symbol], structures or {})
        except AttributeError:
            continue
    return None


def check(operation: str, call: Call, arguments: Sequence[str], num_results: Sequence[int]) -> None:
    """That a table's call fits an operation.

    Args:
        operation: its name.
        call: from the table.
        arguments: names of the logical arguments there are.
        num_results: how many values it may give.

    Raises:
        ValueMismatchError: it takes an argument that there is not, or gives too many or too few values.
    """
    unknown = sorted(call.arguments - set(arguments))
    if unknown:
        raise errors.ValueMismatchError(
            f"the call of {operation!r} ({call.symbols[0]}) has slots that the operation does not have",
            got=", ".join(unknown),
            expected=", ".join(arguments) or "no arguments",
        )
    given, wanted = call.num_results + (call.returns != "status"), " or ".join(map(str, num_results))
    if given not in num_results:
        raise errors.ValueMismatchError(
            f"the call of {operation!r} ({call.symbols[0]}) gives {given} values",
            expected=f"{wanted}, marked by > in the slots or returned by the function",
        )
