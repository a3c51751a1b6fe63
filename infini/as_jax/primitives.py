"""`jax.extend.core.Primitive` and the tables of rules that libraries fill in: an operation of a library runs
on known values through its implementation. On traced values it is refused: JAX's rules speak of JAX's
tracers and of MLIR, and running the implementation instead would give results that its rules forbid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.as_jax import abstract
from infini.core import errors, trace

Function = Callable[..., Any]  # Any: rules and implementations have their own signatures


class Primitive:
    """An operation that a library declares: `def_impl`, `def_abstract_eval` and others take its rules."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.multiple_results = False
        self.impl: Function | None = None
        self.abstract_eval: Function | None = None

    def def_impl(self, impl: Function) -> Function:
        """Set how it runs on known values."""
        self.impl = impl
        return impl

    def def_abstract_eval(self, abstract_eval: Function) -> Function:
        """Set how its result's type follows from its operands' types."""
        self.abstract_eval = abstract_eval
        return abstract_eval

    def def_effectful_abstract_eval(self, abstract_eval: Function) -> Function:
        """As `def_abstract_eval`, for a rule that gives effects as well."""
        return self.def_abstract_eval(abstract_eval)

    def bind(self, *args: object, **params: object) -> Any:  # Any: what the implementation gives
        """Run it.

        Raises:
            MissingRuleError: an operand is being traced, or the library gave no implementation.
        """
        if any(isinstance(item, trace.Tracer) for item in args):
            raise errors.MissingRuleError(
                f"the operation {self.name!r} of a library written for JAX cannot be traced by infini",
                got=", ".join(str(item.type) for item in args if isinstance(item, trace.Tracer)),
                expected="known values: its rules are written for JAX's own tracers",
                fix="call it outside jit, grad and vmap, or write it with custom_jvp or custom_vjp",
            )
        if self.impl is None:
            raise errors.MissingRuleError(
                f"the operation {self.name!r} of a library written for JAX has no implementation",
                expected="def_impl",
                fix="use a function of jax.numpy or jax.lax in its place",
            )
        return self.impl(*args, **params)

    def __repr__(self) -> str:
        return self.name


class Effect:
    """`jax.extend.core.Effect`: the base of effects that libraries declare."""


@dataclass(frozen=True, slots=True)
class Zero:
    """`jax.interpreters.ad.Zero`: a tangent known to be zero, by its type."""

    aval: abstract.ShapedArray


@dataclass(frozen=True, slots=True)
class UndefinedPrimal:
    """`jax.interpreters.ad.UndefinedPrimal`: an operand that a transposition asks for."""

    aval: abstract.ShapedArray


def is_undefined_primal(x: object) -> bool:
    """`jax.interpreters.ad.is_undefined_primal`."""
    return isinstance(x, UndefinedPrimal)


def instantiate_zeros(tangent: object) -> object:
    """`jax.interpreters.ad.instantiate_zeros`: an array of zeros for a `Zero`."""
    if not isinstance(tangent, Zero):
        return tangent
    assert isinstance(tangent.aval.dtype, np.dtype), "keys have no tangents"
    return trace.as_value(np.zeros(tangent.aval.shape, tangent.aval.dtype))


@dataclass(frozen=True, slots=True)
class Lowering:
    """`mlir.lower_fun`: a lowering that is a function of arrays."""

    function: Function
    multiple_results: bool


def lower_fun(function: Function, multiple_results: bool = True) -> Lowering:
    """`jax.interpreters.mlir.lower_fun`: remember the function."""
    return Lowering(function, multiple_results)


def register_lowering(primitive: Primitive, rule: Lowering | Function, platform: str | None = None) -> None:
    """`jax.interpreters.mlir.register_lowering`: one written for MLIR means nothing here and is kept."""
    lowerings[primitive, platform] = rule


lowerings: Final[dict[tuple[Primitive, str | None], Any]] = {}  # Any: rules differ
primitive_batchers: Final[dict[Primitive, Any]] = {}  # Any: rules differ
axis_primitive_batchers: Final[dict[Primitive, Any]] = {}  # Any: rules differ
fancy_primitive_batchers: Final[dict[Primitive, Any]] = {}  # Any: rules differ
primitive_jvps: Final[dict[Primitive, Any]] = {}  # Any: rules differ
primitive_transposes: Final[dict[Primitive, Any]] = {}  # Any: rules differ
