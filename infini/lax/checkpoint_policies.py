"""Which values a checkpoint saves, with the names of `jax.checkpoint_policies`.

A policy is called as `policy(op, *types, **attrs)` for every operation of the forward pass and says whether
its results are saved. Those here are attributes, so programs that hold them print and parse; others are held
as host functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from infini.core import errors, host, ir, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import contraction

Policy: TypeAlias = Callable[..., bool]


# --- names of values ----------------------------------------------------------------------------

# Before the name of a value: the name of its tangent, and of its cotangent.
GRADIENT_OF: Final = "gradient of "


def _jvp_name(
    primals: Sequence[Value], tangents: Sequence[Value | None], results: Sequence[Value], *, name: str
) -> tuple[Value | None, ...]:
    """Tangents have a name of their own, and so have the cotangents that they become."""
    return tuple(None if t is None else trace.bind1(name_p, t, name=GRADIENT_OF + name) for t in tangents)


def _transpose_name(ct: Value, x: Any, *, name: str) -> tuple[Value]:  # Any: a linear operand
    return (trace.bind1(name_p, ct, name=name),)


name_p: Final = primitive.register(
    Primitive(
        "name",
        Signature(((),), ((),)),
        {
            primitive.TYPE: lambda x, *, name: (x,),
            primitive.REFERENCE: lambda x, *, name: x,
            primitive.JVP: _jvp_name,
            primitive.TRANSPOSE: _transpose_name,
            primitive.DECOMPOSE: lambda x, *, name: (x,),
        },
    )
)


def checkpoint_name(x: Any, name: str) -> Any:  # Any: pytrees
    """The same values, with a name by which policies such as `save_only_these_names` know them, and
    `shard(..., named=)` knows where they lie. The cotangent of a value named "x" is named "gradient of x".

    Args:
        x: pytree of arrays.
        name: the name.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> from infini.ad_checkpoint import checkpoint_name
        >>> f = lambda x: checkpoint_name(inp.sin(x), "sine") ** 2
        >>> policy = inf.checkpoint_policies.save_only_these_names("sine")
        >>> inf.grad(inf.checkpoint(f, policy=policy))(0.0)
        Array(0., dtype=float32, weak_type=True)
    """
    if not isinstance(name, str):
        raise errors.TypeMismatchError("checkpoint_name needs a string", got=type(name).__name__)
    return tree.map(lambda leaf: trace.bind1(name_p, leaf, name=name), x)


# --- policies -------------------------------------------------------------------------------------


@ir.attribute
@dataclass(frozen=True, slots=True)
class SaveAlways:
    """Save everything, or nothing."""

    is_saved: bool

    def __call__(self, op: Primitive, *types: ArrayType, **attrs: object) -> bool:
        return self.is_saved


@ir.attribute
@dataclass(frozen=True, slots=True)
class SaveDots:
    """Save results of contractions, or of those without batch dimensions only."""

    without_batch: bool

    def __call__(self, op: Primitive, *types: ArrayType, **attrs: Any) -> bool:
        if op is not contraction.dot_p:
            return op.name == "conv" and not self.without_batch
        a, b, out = contraction.parse_spec(attrs["spec"])
        has_batch = bool(set(a) & set(b) & set(out)) or (types[0].ndim > len(a) and types[1].ndim > len(b))
        return not (self.without_batch and has_batch)


@ir.attribute
@dataclass(frozen=True, slots=True)
class SaveNames:
    """Save values by name: those named so, or with `is_inverted` those named otherwise.

    `unnamed` says what happens to values without a name.
    """

    names: tuple[str, ...]
    is_inverted: bool = False
    unnamed: bool = False

    def __call__(self, op: Primitive, *types: ArrayType, **attrs: Any) -> bool:
        if op is not name_p:
            return self.unnamed
        return (attrs["name"] in self.names) != self.is_inverted


@ir.attribute
@dataclass(frozen=True, slots=True)
class SaveEither:
    """Save what one of two policies saves."""

    first: Any  # Any: attributes of policies
    second: Any

    def __call__(self, op: Primitive, *types: ArrayType, **attrs: object) -> bool:
        found = [policy_of(p)(op, *types, **attrs) for p in (self.first, self.second)]
        if not all(isinstance(item, bool) for item in found):
            raise errors.ValueMismatchError(
                "save_from_both_policies needs policies that return booleans", got=str(found)
            )
        return any(found)


everything_saveable: Final = SaveAlways(True)
nothing_saveable: Final = SaveAlways(False)
dots_saveable: Final = SaveDots(without_batch=False)
checkpoint_dots: Final = dots_saveable
dots_with_no_batch_dims_saveable: Final = SaveDots(without_batch=True)
checkpoint_dots_with_no_batch_dims: Final = dots_with_no_batch_dims_saveable


def save_only_these_names(*names_which_can_be_saved: str) -> Policy:
    """Save values that `checkpoint_name` gave one of these names, and nothing else."""
    return SaveNames(tuple(sorted(names_which_can_be_saved)))


def save_any_names_but_these(*names_not_to_save: str) -> Policy:
    """Save values with a name that is none of these."""
    return SaveNames(tuple(sorted(names_not_to_save)), is_inverted=True)


def save_anything_except_these_names(*names_not_to_save: str) -> Policy:
    """Save every value, with or without a name, except those with one of these names."""
    return SaveNames(tuple(sorted(names_not_to_save)), is_inverted=True, unnamed=True)


def save_from_both_policies(policy_1: Policy, policy_2: Policy) -> Policy:
    """Save what either policy saves."""
    return SaveEither(attribute_of(policy_1), attribute_of(policy_2))


def attribute_of(policy: Policy | None) -> Any:  # Any: an attribute
    """The attribute that stands for a policy: itself when it is one of these, else a host function.

    Raises:
        TypeMismatchError: it is no function.
    """
    if policy is None or isinstance(policy, (SaveAlways, SaveDots, SaveNames, SaveEither)):
        return policy
    if not callable(policy):
        raise errors.TypeMismatchError(
            "the policy of checkpoint must be a function", got=type(policy).__name__,
            expected="one of infini.checkpoint_policies, or policy(op, *types, **attrs) -> bool",
        )  # fmt: skip
    return host.register(policy)


def policy_of(attribute: Any) -> Policy:  # Any: an attribute
    """The policy that an attribute stands for; without one nothing is saved."""
    if attribute is None:
        return nothing_saveable
    found: Policy = host.lookup(attribute) if isinstance(attribute, ir.HostFunction) else attribute
    return found
