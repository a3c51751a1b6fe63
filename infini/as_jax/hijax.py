"""Names of `jax.experimental.hijax`, the way for libraries to add types to JAX: they may be declared, so that
such a library loads, and a value of such a type cannot enter a program of infini."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from infini.as_jax import abstract, refused
from infini.core import errors

Function = Callable[..., Any]  # Any: whatever a library declares


class HiPrimitive:
    """`hijax.HiPrimitive`: the base of a library's operations on its own types, which infini cannot run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def bind(self, *args: object, **params: object) -> Any:  # Any: never returns
        """Say that infini has no such types.

        Raises:
            UnsupportedError: always.
        """
        raise errors.UnsupportedError(
            f"the operation {self.name!r} works on types that a library adds, which infini does not have",
            fix="switch the library's use of hijax off",
        )


class HiType(abstract.AbstractValue):
    """`hijax.HiType`: the base of types that libraries add."""


class MutableHiType(HiType):
    """`hijax.MutableHiType`: the base of types of mutable values that libraries add."""


class aval_property:  # noqa: N801  # JAX's name
    """`hijax.aval_property`: a property of a type that its traced values show."""

    def __init__(self, fget: Function) -> None:
        self.fget = fget


class aval_method:  # noqa: N801  # JAX's name
    """`hijax.aval_method`: a method of a type that its traced values show."""

    def __init__(self, fun: Function) -> None:
        self.fun = fun


class EffectTypes:
    """A set of effect classes, as `control_flow_allowed_effects`."""

    def __init__(self) -> None:
        self.types: set[type] = set()

    def add_type(self, effect: type) -> None:
        """Put a class of effects into the set."""
        self.types.add(effect)


def register_hitype(value_class: type, type_of: Function) -> None:
    """`hijax.register_hitype`: remember which type the values of a class have."""
    hitypes[value_class] = type_of


hitypes: Final[dict[type, Function]] = {}
control_flow_allowed_effects: Final = EffectTypes()
AvalQDD: Final = refused.refused_class("jax.experimental.hijax.AvalQDD")
AvalMutableQDD: Final = refused.refused_class("jax.experimental.hijax.AvalMutableQDD")
