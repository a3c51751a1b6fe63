"""Operations: a name, a gufunc signature and a table of rules.

A rule key is a typed name for one question about an operation (its type, its derivative, ...). A new
transform declares its
own key with a default derived from the signature; nobody edits old operations. Imports errors only.
"""

from __future__ import annotations

import enum
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from infini.core import errors


class Effect(enum.Enum):
    """What running an equation does besides computing its results (design 4a.6)."""

    NONE = "none"
    IO = "io"
    ORDERED_IO = "ordered_io"
    COLLECTIVE = "collective"

    @property
    def is_ordered(self) -> bool:
        """Whether equations with this effect keep program order."""
        return self in (Effect.ORDERED_IO, Effect.COLLECTIVE)


@dataclass(frozen=True, slots=True)
class RuleKey:
    """One question about an operation; `hint` says how an operation answers it."""

    name: str
    hint: str


TYPE: Final = RuleKey("type", "pass signature= or type=")
REFERENCE: Final = RuleKey("reference", "pass reference=, a NumPy function")
JVP: Final = RuleKey(
    "jvp", "only differentiable operations have one; wrap the function in stop_gradient or custom_jvp"
)
LINEARIZE: Final = RuleKey("linearize", "higher-order operations split their body; others use jvp=")
TRANSPOSE: Final = RuleKey("transpose", "only linear operations have one")
VJP: Final = RuleKey("vjp", "composites and custom rules may give one")
BATCH: Final = RuleKey("batch", "give the operation a signature, or pass batch=")
LINEAR: Final = RuleKey(
    "linear", "operations that are linear in one of several operands, or in some together, say in which"
)
PLACE: Final = RuleKey("place", "give the operation a signature, or pass place=")
PARTITION: Final = RuleKey("partition", "pass partition=; without it operands are gathered first")
TAIL: Final = RuleKey("tail", "pass tail=; an operation with a PARTITION but without it is split evenly only")
COST: Final = RuleKey("cost", "give the operation a signature, or pass cost=")
DECOMPOSE: Final = RuleKey("decompose", "pass decompose=, a definition by other operations")
CASES: Final = RuleKey("cases", "pass cases=, inputs for the oracle tests")
SCALAR: Final = RuleKey("scalar", "elementwise operations name the scalar function a backend emits")
WEAK: Final = RuleKey("weak", "results are weak when every operand is")


@dataclass(frozen=True, slots=True)
class Signature:
    """Core dimensions by letter, as in `(m,k),(k,n)->(m,n)`; dimensions left of them are loop dimensions
    and broadcast.
    """

    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]

    @property
    def letters(self) -> frozenset[str]:
        """Every letter that occurs."""
        return frozenset(letter for group in self.inputs + self.outputs for letter in group)

    @property
    def contracted(self) -> frozenset[str]:
        """Letters of inputs that no output has: splitting one over devices leaves partial results."""
        kept = {letter for group in self.outputs for letter in group}
        return frozenset(letter for group in self.inputs for letter in group if letter not in kept)

    def __str__(self) -> str:
        def side(groups: tuple[tuple[str, ...], ...]) -> str:
            return ",".join(f"({','.join(group)})" for group in groups)

        return f"{side(self.inputs)}->{side(self.outputs)}"


def parse_signature(text: str) -> Signature:
    """Signature from gufunc notation, for example `(m,k),(k,n)->(m,n)`.

    Raises:
        ValueMismatchError: the text is not in that notation.
    """
    sides = text.replace(" ", "").split("->")
    group = r"\((?:\w+(?:,\w+)*)?\)"
    if len(sides) != 2 or not all(re.fullmatch(rf"(?:{group}(?:,{group})*)?", side) for side in sides):
        raise errors.ValueMismatchError(
            f"{text!r} is not a signature", expected="gufunc notation such as (m,k),(k,n)->(m,n)"
        )
    inputs, outputs = (
        tuple(tuple(filter(None, inner.split(","))) for inner in re.findall(r"\(([^)]*)\)", side))
        for side in sides
    )
    return Signature(inputs, outputs)


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """An operation of the IR.

    Args:
        name: unique name, also its name in printed programs.
        signature: core dimensions, fixed or computed from the attributes; None for operations without one.
        rules: answers by rule key.
        effect: what running it does besides computing, fixed or computed from the attributes.
        is_higher_order: whether its attributes hold programs that it runs.
    """

    name: str
    signature: Signature | Callable[..., Signature] | None = None
    rules: dict[RuleKey, Any] = field(default_factory=dict)  # Any: each key has its own kind of rule
    effect: Effect | Callable[[Mapping[str, Any]], Effect] = Effect.NONE
    is_higher_order: bool = False

    def rule(self, key: RuleKey) -> Any:  # Any: each key has its own kind of rule
        """The rule under `key`.

        Raises:
            MissingRuleError: this operation has none.
        """
        try:
            return self.rules[key]
        except KeyError:
            raise errors.MissingRuleError(
                f"operation {self.name!r} has no {key.name} rule", expected=key.hint
            ) from None

    def has(self, key: RuleKey) -> bool:
        """Whether there is a rule under `key`."""
        return key in self.rules

    def signature_for(self, attrs: Mapping[str, Any]) -> Signature | None:
        """The signature with these attributes, or None when the operation has none."""
        if self.signature is None or isinstance(self.signature, Signature):
            return self.signature
        return self.signature(**attrs)

    def effect_for(self, attrs: Mapping[str, Any]) -> Effect:
        """The effect with these attributes."""
        return self.effect if isinstance(self.effect, Effect) else self.effect(attrs)

    def __repr__(self) -> str:
        return self.name


_PRIMITIVES: dict[str, Primitive] = {}
# Operations that `import infini` does not load, and the modules that declare them: a program that is parsed
# may have them.
_DECLARED_LATER: Final = {
    "check": "infini.transforms.check_operation",
    "kernel": "infini.tile.program",
    "scattered_kernel": "infini.tile.scattered",
}


def register(primitive: Primitive) -> Primitive:
    """Make an operation known to the parser under its name.

    Raises:
        ValueMismatchError: another operation has that name.
    """
    if primitive.name in _PRIMITIVES:
        raise errors.ValueMismatchError(
            f"an operation named {primitive.name!r} exists already",
            fix="choose another name, or unregister it first",
        )
    _PRIMITIVES[primitive.name] = primitive
    return primitive


def unregister(primitive: Primitive) -> None:
    """Forget an operation; for tests that declare one."""
    _PRIMITIVES.pop(primitive.name, None)


def by_name(name: str) -> Primitive:
    """The operation registered under `name`.

    Raises:
        ParseError: there is none.
    """
    if name not in _PRIMITIVES and name in _DECLARED_LATER:
        importlib.import_module(_DECLARED_LATER[name])
    try:
        return _PRIMITIVES[name]
    except KeyError:
        raise errors.ParseError(
            f"there is no operation named {name!r}", fix="import the module that declares it before parsing"
        ) from None


def all_primitives() -> Mapping[str, Primitive]:
    """Every registered operation by name."""
    return dict(_PRIMITIVES)
