"""The one program type: typed SSA with frozen attributes and the user's line on every equation.

`Program(params, consts, equations, results)`; a `Var` is identity plus `ArrayType`, nothing else.
Placement, layout and
donation are side tables made by passes. Programs are immutable; equality and the fingerprint are
structural and ignore
names and lines. `Builder` is the only way to make an equation, so every one has gone through its type rule.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from infini.core import dtypes, errors, primitive, source

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayType:
    """Shape and dtype of an array, nothing else."""

    shape: Shape
    dtype: np.dtype

    # Written out because every call of a jitted function hashes and compares the types of its arguments.
    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is ArrayType and self.shape == other.shape and self.dtype == other.dtype
        )

    def __hash__(self) -> int:
        return hash(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense array of this type."""
        return self.size * self.dtype.itemsize

    def update(self, *, shape: Shape | None = None, dtype: np.dtype | None = None) -> ArrayType:
        """The same type with another shape or dtype."""
        return ArrayType(self.shape if shape is None else shape, self.dtype if dtype is None else dtype)

    def __str__(self) -> str:
        return f"{dtypes.short(self.dtype)}[{','.join(map(str, self.shape))}]"

    __repr__ = __str__


class Var:
    """A value of a program: identity plus type. `hint` is a name for the printer and means nothing."""

    __slots__ = ("hint", "type")

    def __init__(self, type: ArrayType, hint: str = "") -> None:
        self.type = type
        self.hint = hint

    def __repr__(self) -> str:
        return f"Var({self.hint or hex(id(self))}: {self.type})"


class Attrs(Mapping[str, Any]):  # Any: attributes are of many frozen types
    """Frozen, hashable attributes of an equation, in the order of their names."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {name: freeze(items[name]) for name in sorted(items)}
        self._hash: int | None = None

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
        return isinstance(other, Attrs) and self._items == other._items

    def replace(self, **changes: object) -> Attrs:
        """The same attributes with some changed."""
        return Attrs({**self._items, **changes})

    def __repr__(self) -> str:
        return f"Attrs({self._items!r})"


NO_ATTRS = Attrs({})

_ATTRIBUTE_CLASSES: dict[str, type] = {}


def attribute(cls: type) -> type:
    """Class decorator: instances of this frozen dataclass may be attributes, and print and parse by field."""
    _ATTRIBUTE_CLASSES[cls.__name__] = cls
    return cls


def attribute_class(name: str) -> type:
    """The class registered by `attribute` under `name`.

    Raises:
        ParseError: there is none.
    """
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
    if value is None or isinstance(
        value, (bool, int, float, complex, str, np.dtype, ArrayType, Program, primitive.Primitive)
    ):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, (frozenset, set)):
        return frozenset(freeze(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if type(value).__name__ in _ATTRIBUTE_CLASSES:
        return value
    raise errors.TypeMismatchError(
        f"a value of type {type(value).__name__} cannot be an attribute of an equation",
        expected="numbers, strings, dtypes, tuples of these, programs, or a class marked with ir.attribute",
    )


@attribute
@dataclass(frozen=True, slots=True)
class HostFunction:
    """A Python function that a program calls; `name` for people, `id` for the table in `core.host`
    (design 4a.3).
    """

    name: str
    id: int


@dataclass(frozen=True, slots=True)
class Constant:
    """At most 64 elements of data, compared by their bytes, so NaN equals itself."""

    type: ArrayType
    data: bytes

    MAX_SIZE: ClassVar[int] = 64

    @classmethod
    def of(cls, array: np.ndarray) -> Constant:
        """The constant with the elements of `array`."""
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        return cls(ArrayType(tuple(contiguous.shape), contiguous.dtype), contiguous.tobytes())

    @property
    def array(self) -> np.ndarray:
        """The elements, read-only."""
        return np.frombuffer(self.data, self.type.dtype).reshape(self.type.shape)

    @property
    def is_scalar(self) -> bool:
        """Whether every element is the same, so the constant can be broadcast from one number."""
        size = self.type.dtype.itemsize
        return len(self.data) > 0 and self.data == self.data[:size] * (len(self.data) // size)

    def item(self) -> complex | bool:
        """The first element as a Python number."""
        return self.array.reshape(-1)[0].item()


@dataclass(frozen=True, slots=True, eq=False)
class Equation:
    """`outputs = op(inputs; attrs)`, made at the user's line `where`; `via` names the passes that rewrote
    it.
    """

    op: primitive.Primitive
    inputs: tuple[Var, ...]
    attrs: Attrs
    outputs: tuple[Var, ...]
    where: source.Where | None = None
    via: str = ""

    @property
    def output(self) -> Var:
        """The only output."""
        (output,) = self.outputs
        return output

    @property
    def effect(self) -> primitive.Effect:
        """What it does besides computing, its sub-programs included."""
        own = self.op.effect_for(self.attrs)
        return max_effect([own, *(program.effect for program in self.programs)])

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs among its attributes."""
        return tuple(_programs_in(self.attrs.values()))


def _programs_in(values: Iterable[object]) -> Iterator[Program]:
    for value in values:
        if isinstance(value, Program):
            yield value
        elif isinstance(value, tuple):
            yield from _programs_in(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _programs_in(getattr(value, item.name) for item in dataclasses.fields(value))


_EFFECT_ORDER = (
    primitive.Effect.NONE,
    primitive.Effect.IO,
    primitive.Effect.ORDERED_IO,
    primitive.Effect.COLLECTIVE,
)


def max_effect(effects: Iterable[primitive.Effect]) -> primitive.Effect:
    """The strongest of some effects."""
    return max(effects, key=_EFFECT_ORDER.index, default=primitive.Effect.NONE)


@dataclass(frozen=True, eq=False)
class Program:
    """A typed function: `params` in, `equations` in order, `results` out; `consts` are small and known.

    Immutable. `==` and `hash` are structural: names, lines and the identity of Vars do not count.
    """

    params: tuple[Var, ...]
    equations: tuple[Equation, ...]
    results: tuple[Var, ...]
    consts: tuple[tuple[Var, Constant], ...] = ()
    name: str = field(default="main", compare=False)

    @property
    def in_types(self) -> tuple[ArrayType, ...]:
        """Types of the parameters."""
        return tuple(param.type for param in self.params)

    @property
    def out_types(self) -> tuple[ArrayType, ...]:
        """Types of the results."""
        return tuple(result.type for result in self.results)

    @functools.cached_property
    def effect(self) -> primitive.Effect:
        """The strongest effect of its equations."""
        return max_effect(equation.effect for equation in self.equations)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal blake2b of the structure: the cache key. Ignores names and lines; uses no id, hash
        or set order.
        """
        # The printer is one level up in reading order and needs this module; it is looked up at the first
        # use.
        return hashlib.blake2b(_canonical_text(self).encode(), digest_size=20).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.fingerprint == other.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return _print(self)

    def _repr_pretty_(
        self, printer: Any, cycle: bool
    ) -> None:  # Any: IPython's and hypothesis' pretty printer
        printer.text(_print(self))

    def replace(self, **changes: Any) -> Program:  # Any: as dataclasses.replace
        """The same program with some fields changed."""
        return dataclasses.replace(self, **changes)


_printers: list[Any] = []  # Any: two functions that core.text installs, [print, canonical]


def install_printer(print_program: Any, canonical_text: Any) -> None:  # Any: see _printers
    """Called once by `core.text`, which imports this module."""
    _printers[:] = [print_program, canonical_text]


def _print(program: Program) -> str:
    return str(_printers[0](program))


def _canonical_text(program: Program) -> str:
    return str(_printers[1](program))


def infer_types(
    op: primitive.Primitive, in_types: Sequence[ArrayType], attrs: Mapping[str, Any]
) -> tuple[ArrayType, ...]:
    """Types of the results of an operation, by its TYPE rule."""
    return _infer_types(op, tuple(in_types), attrs if isinstance(attrs, Attrs) else Attrs(attrs))


@functools.lru_cache(maxsize=65536)
def _infer_types(
    op: primitive.Primitive, in_types: tuple[ArrayType, ...], attrs: Attrs
) -> tuple[ArrayType, ...]:
    return tuple(op.rule(primitive.TYPE)(*in_types, **attrs))


class Builder:
    """Collects equations and constants of a program under construction."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.consts: dict[Constant, Var] = {}

    def emit(
        self,
        op: primitive.Primitive,
        inputs: Sequence[Var],
        attrs: Attrs,
        *,
        where: source.Where | None = None,
        via: str = "",
        out_types: Sequence[ArrayType] | None = None,
    ) -> tuple[Var, ...]:
        """Append an equation and return its outputs; `out_types` may be given by a caller that ran the
        type rule.
        """
        types = out_types if out_types is not None else infer_types(op, [v.type for v in inputs], attrs)
        outputs = tuple(Var(type_) for type_ in types)
        self.equations.append(Equation(op, tuple(inputs), attrs, outputs, where, via))
        return outputs

    def emit1(self, op: primitive.Primitive, inputs: Sequence[Var], **attrs: object) -> Var:
        """Append an equation with one output and return it; the form passes use."""
        (output,) = self.emit(op, inputs, Attrs(attrs))
        return output

    def append(self, equation: Equation) -> None:
        """Append an equation that exists already, outputs included."""
        self.equations.append(equation)

    def constant(self, array: np.ndarray) -> Var:
        """The variable of a constant; equal constants share one."""
        constant = Constant.of(array)
        if constant not in self.consts:
            self.consts[constant] = Var(constant.type)
        return self.consts[constant]

    def build(self, params: Sequence[Var], results: Sequence[Var], *, name: str = "main") -> Program:
        """The finished program; constants nothing uses are left out."""
        used = {id(v) for equation in self.equations for v in equation.inputs} | {id(v) for v in results}
        consts = tuple((var, constant) for constant, var in self.consts.items() if id(var) in used)
        return Program(tuple(params), tuple(self.equations), tuple(results), consts, name)


def inline(builder: Builder, program: Program, arguments: Sequence[Var]) -> tuple[Var, ...]:
    """Append the equations of `program`, applied to `arguments`, to a builder; returns its results there."""
    env: dict[Var, Var] = dict(zip(program.params, arguments, strict=True))
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        outputs = builder.emit(
            equation.op,
            [env[v] for v in equation.inputs],
            equation.attrs,
            where=equation.where,
            via=equation.via,
            out_types=[v.type for v in equation.outputs],
        )
        env.update(zip(equation.outputs, outputs, strict=True))
    return tuple(env[v] for v in program.results)


def single_equation(op: primitive.Primitive, in_types: Sequence[ArrayType], attrs: Attrs) -> Program:
    """The program that applies one operation to its parameters: what eager execution compiles."""
    builder = Builder()
    params = [Var(type_) for type_ in in_types]
    return builder.build(params, builder.emit(op, params, attrs), name=op.name)
