"""What a call gives a kernel: arrays, parameters of compilation and sizes.

Sizes are read off the shapes of the arrays: a symbol that is a dimension, or the only unknown of a dimension
that is linear in it. Other symbols of the arrangement are keyword arguments of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.tile import agreement, symbols
from infini.tile.arrangement import Tensor
from infini.tile.numbers import Numbers
from infini.tile.symbols import BlockSize, Size

Static = Mapping[str, Any]  # Any: keyword arguments of a kernel, hashable
Function = Callable[..., Any]  # Any: functions of the user's, of tiles or arrays


@dataclass(frozen=True, slots=True)
class Bound:
    """What a call gives a kernel, as the kernel takes it.

    Args:
        operands: the arrays, and types where a type stands for an array.
        types: their types, after what a call makes of NumPy's arrays and Python's numbers.
        static: every keyword argument, parameters of compilation included.
    """

    operands: tuple[Value | ArrayType, ...]
    types: tuple[ArrayType, ...]
    static: dict[str, Any]  # Any: hashable constants

    def values(self, name: str) -> list[Value]:
        """The arrays.

        Args:
            name: of what computes with them, for the message.

        Raises:
            TypeMismatchError: a type stands for one of them.
        """
        found = [x for x in self.operands if isinstance(x, Value)]
        if len(found) != len(self.operands):
            raise errors.TypeMismatchError(
                f"{name} computes with arrays, and a type has no elements",
                got=", ".join(str(x) for x in self.operands if isinstance(x, ArrayType)),
                expected="an array of that type",
            )
        return found


class Binding:
    """How the operands of a call become those of the application.

    Args:
        name: of the kernel, for messages.
        operands: tensors of the call, parameters of compilation included.
        arranged: arranged tensors, whose symbols must get values.

    Raises:
        ValueMismatchError: two symbols that a call must give have one name.
    """

    __slots__ = (
        "_accepted",
        "_asked",
        "_facts",
        "_shapes",
        "_solved",
        "arrays",
        "constants",
        "direct",
        "given",
        "name",
    )

    def __init__(self, name: str, operands: Sequence[Tensor], arranged: Sequence[Tensor]) -> None:
        self.name = name
        self.arrays = tuple(t for t in operands if not t.source.constexpr)
        # Position among the operands, name and value of each parameter of compilation.
        self.constants = tuple(
            (n, str(t.source.name), t.source.value) for n, t in enumerate(operands) if t.source.constexpr
        )
        dimensions = [
            (size, number, d) for number, t in enumerate(self.arrays) for d, size in enumerate(t.source.shape)
        ]
        self.direct: dict[Size, tuple[int, int]] = {}
        for size, number, d in dimensions:
            if size.is_Symbol:
                self.direct.setdefault(size, (number, d))
        self._shapes = tuple(Numbers(t.source.shape) for t in self.arrays)
        found = {s for t in (*arranged, *self.arrays) for s in t.map.free_symbols}
        unknown = {s for s in found if s not in self.direct and not isinstance(s, BlockSize)}
        self._solved = [x for place in dimensions for x in _linear(*place, unknown)]
        self.given: dict[str, Size] = {}
        for symbol in sorted(unknown, key=lambda s: s.sort_key()):
            if self.given.setdefault(str(symbol), symbol) != symbol:
                raise errors.ValueMismatchError(
                    f"{name}: two symbols are called {symbol}", fix="say the same of both, or rename one"
                )
        self._facts = tuple(s for s in sorted(found, key=lambda s: s.sort_key()) if _is_checked(s))
        self._accepted: dict[Function, frozenset[str] | None] = {}
        self._asked: dict[Function, _Asked] = {}

    # --- operands and keyword arguments -------------------------------------------------------

    def split(self, operands: Sequence[Any], static: Static) -> tuple[Sequence[Any], Static]:  # Any: arrays
        """Operands of a call as arrays and keyword arguments.

        Raises:
            TypeMismatchError: an array is given for a parameter of compilation.
        """
        if not self.constants:
            return operands, static
        arrays, keywords = [], dict(static)
        left = {n: name for n, name, value in self.constants if value is None and name not in static}
        skipped = {n for n, _, _ in self.constants if n not in left}
        position = 0
        for operand in operands:
            while position in skipped:
                position += 1
            if position in left:
                keywords[left[position]] = self._constant(left[position], operand)
            else:
                arrays.append(operand)
            position += 1
        return arrays, keywords

    def complete(self, static: Static) -> Static:
        """Keyword arguments with the values of all parameters of compilation.

        Raises:
            TypeMismatchError: one has no value, or an array for a value.
        """
        if not self.constants:
            return static
        found = dict(static)
        for _, name, value in self.constants:
            if value is not None and found.get(name, value) != value:
                raise errors.TypeMismatchError(
                    f"{self.name} has a fixed value for {name}", got=repr(found[name]), expected=repr(value)
                )
            if found.setdefault(name, value) is None:
                raise errors.TypeMismatchError(
                    f"{self.name} needs a value for {name}, a parameter of compilation",
                    fix=f"give it as an operand, or {name}=",
                )
            found[name] = self._constant(name, found[name])
        return found

    def check(self, application: Function, static: Static) -> None:
        """Whether the application takes these keyword arguments, and no others are missing.

        Raises:
            TypeMismatchError: it does not, or one is no constant.
        """
        asked = self._asked.get(application)
        if asked is None:
            asked = self._asked[application] = self._asks(application)
        if not static and not asked.required:
            return
        for name, value in static.items():
            is_known = name in self.given or any(name == constant for _, constant, _ in self.constants)
            if not is_known and (
                name in asked.taken or (asked.optional is not None and name not in asked.optional)
            ):
                names = (*self.given, *(name for _, name, _ in self.constants), *(asked.optional or ()))
                raise errors.TypeMismatchError(
                    f"{self.name} takes no keyword argument {name!r}",
                    expected=", ".join(dict.fromkeys(names)) or "none",
                    fix="operands are given by position" if name in asked.taken else None,
                )
            if isinstance(value, Value) or not _is_hashable(value):
                raise errors.TypeMismatchError(
                    f"{self.name}: the keyword argument {name} is a constant of compilation",
                    got=type(value).__name__,
                    expected="a hashable constant such as a number, a string or a tuple",
                    fix="give arrays as operands, and tuples for lists",
                )
        for name in asked.required:
            if name not in static:
                raise errors.TypeMismatchError(
                    f"the application of {self.name} needs a value for {name}, which is none of the operands",
                    fix=f"give the call {name}=; results are returned, and no parameters",
                )

    def _asks(self, application: Function) -> _Asked:
        found = agreement.parameters(application)
        names = {name for _, name, _ in self.constants}
        positional = [p for p in found if p.kind in _POSITIONAL]
        count = len(self.arrays) + len(self.constants)
        taken = {p.name for p in positional[:count]} - names
        others = [*positional[count:], *(p for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY)]
        # Of some functions Python does not know the parameters.
        takes_all = not found or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
        return _Asked(
            frozenset(taken),
            None if takes_all else tuple(p.name for p in others),
            tuple(p.name for p in others if p.default is inspect.Parameter.empty),
        )

    def run(self, function: Function, tiles: Sequence[Any], static: Static) -> Any:  # Any: of the function
        """Call a function of all operands: parameters of compilation stand where their tensors do."""
        static = self.complete(static)
        arguments, keywords = list(tiles), self.keywords(function, static)
        for position, name, _ in self.constants:
            arguments.insert(position, static[name])
            keywords.pop(name, None)
        return function(*arguments, **keywords)

    def keywords(self, function: Function, static: Static) -> dict[str, Any]:  # Any: as of Static
        """Keyword arguments for a function: sizes and parameters of compilation where it asks for them."""
        if function not in self._accepted:
            found = agreement.parameters(function)
            takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
            self._accepted[function] = None if takes_all else frozenset(p.name for p in found)
        accepted = self._accepted[function]
        optional = {*self.given, *(name for _, name, _ in self.constants)}
        return {k: v for k, v in static.items() if accepted is None or k in accepted or k not in optional}

    def _constant(self, name: str, value: Any) -> Any:  # Any: a number, a string or another hashable
        if isinstance(value, np.generic):
            return value.item()
        if hasattr(value, "shape") or not _is_hashable(value):
            raise errors.TypeMismatchError(
                f"{self.name}: {name} is a parameter of compilation and takes no array",
                got=repr(type(value).__name__),
                expected="a Python number or another constant",
                fix="leave constexpr=True out if it changes from call to call",
            )
        return value

    # --- sizes --------------------------------------------------------------------------------

    def sizes(self, types: Sequence[ArrayType], static: Static) -> dict[Size, int]:
        """Values of the size symbols, from the shapes of the operands and the keyword arguments.

        Raises:
            TypeMismatchError: the operands do not fit the tensors.
            ValueMismatchError: a size is not what was said of it.
        """
        self._check_operands(types)
        values = {symbol: types[number].shape[d] for symbol, (number, d) in self.direct.items()}
        for name, symbol in self.given.items():
            if name in static:
                values[symbol] = self._size(name, static[name])
        waiting = list(self._solved)
        while ready := [x for x in waiting if x[0] not in values and x[1].are_known(values)]:
            symbol, numbers, number, d = ready[0]
            factor, rest = numbers(values)
            values[symbol] = self._solve(symbol, types[number].shape[d] - rest, factor)
        for symbol in self._facts:
            if symbol in values and not symbols.facts_of(symbol).hold(values[symbol]):
                raise errors.ValueMismatchError(
                    f"{self.name}: a size is not what was said of it",
                    got=f"{symbol} = {values[symbol]}",
                    expected=str(symbols.facts_of(symbol)),
                )
        for number, (shape, type_) in enumerate(zip(self._shapes, types, strict=True)):
            if (found := shape(values)) != type_.shape:
                raise errors.TypeMismatchError(
                    f"{self.name}: operand {number} has another shape than its tensor{self._label(number)}",
                    got=str(type_),
                    expected=f"{self.arrays[number].source.shape} = {found}",
                )
        return values

    def _check_operands(self, types: Sequence[ArrayType]) -> None:
        if len(types) != len(self.arrays):
            raise errors.TypeMismatchError(
                f"{self.name} takes {len(self.arrays)} operands", got=str(len(types))
            )
        for number, (tensor, type_) in enumerate(zip(self.arrays, types, strict=True)):
            dtype = tensor.source.dtype
            if len(tensor.source.shape) != type_.ndim or (dtype is not None and dtype != type_.dtype):
                raise errors.TypeMismatchError(
                    f"{self.name}: operand {number} does not fit its tensor{self._label(number)}",
                    got=str(type_),
                    expected=f"{len(tensor.source.shape)} dimensions"
                    + ("" if dtype is None else f" of {dtypes.short(dtype)}"),
                )

    def _size(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise errors.TypeMismatchError(
                f"{self.name}: {name} is a size of the arrangement",
                got=repr(value),
                expected="an integer from 0",
            )
        return int(value)

    def _solve(self, symbol: Size, value: int, factor: int) -> int:
        if factor == 0 or value % factor or value // factor < 0:
            raise errors.TypeMismatchError(
                f"{self.name}: no {symbol} fits the shapes of the operands",
                got=f"{factor}*{symbol} = {value}",
            )
        return value // factor

    def _label(self, number: int) -> str:
        name = self.arrays[number].source.name or ""
        return f" {name}" if name and not name.startswith("operand ") else ""


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Keyword arguments of an application.

    Args:
        taken: names of operands.
        optional: names that it takes besides; None when it takes all.
        required: those of them that have no default.
    """

    taken: frozenset[str]
    optional: tuple[str, ...] | None
    required: tuple[str, ...]


def _linear(size: Size, number: int, d: int, unknown: set[Size]) -> list[tuple[Size, Numbers, int, int]]:
    """How unknown symbols follow from one dimension: symbol, its factor and the rest, operand, dimension."""
    found = []
    for symbol in size.free_symbols & unknown:
        factor = sympy.expand(size).coeff(symbol)
        rest = sympy.expand(size - factor * symbol)
        if factor.is_integer and symbol not in factor.free_symbols | rest.free_symbols:
            found.append((symbol, Numbers([factor, rest]), number, d))
    return found


def _is_checked(symbol: Size) -> bool:
    return not isinstance(symbol, BlockSize) and symbols.facts_of(symbol) != symbols.Facts()


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
