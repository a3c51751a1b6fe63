"""Bodies of loops: tracing them at the types of their carry, widening weak carries, and the errors.

Used by `scan` and `while_loop`. A carry whose initial value is weak (a Python number) takes the type that
comes back, as in JAX; any other change of structure or type is an error that names the component.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import dtypes, errors, trace, tree, tree_flatten
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import elementwise as e, varying as varying_
from infini.lax.calls import Flags


@dataclass(frozen=True, slots=True)
class Carry:
    """The carry of a loop: its leaves, its structure, and names of the leaves for errors."""

    leaves: tuple[Value, ...]
    structure: tree.PyTreeDef
    names: tuple[str, ...]
    what: str

    @classmethod
    def of(cls, init: Any, what: str) -> Carry:  # Any: a pytree
        """The carry that starts as `init`; `what` names the loop."""
        found, structure = tree.flatten_with_path(init)
        leaves = tuple(_value(leaf, what) for _, leaf in found)
        return cls(leaves, structure, tuple("carry" + tree.keystr(path) for path, _ in found), what)

    def replace(self, leaves: Sequence[Value]) -> Carry:
        """The same carry with other leaves."""
        return Carry(tuple(leaves), self.structure, self.names, self.what)

    @property
    def types(self) -> list[ArrayType]:
        """Types of the leaves."""
        return [leaf.type for leaf in self.leaves]

    @property
    def weak(self) -> list[bool]:
        """Weak flags of the leaves."""
        return [leaf.weak for leaf in self.leaves]

    def flatten(self, result: Any) -> list[Any]:  # Any: a pytree
        """Leaves of what the body returned.

        Raises:
            TypeMismatchError: its structure is another.
        """
        leaves, structure = tree.flatten(result)
        if structure != self.structure:
            place, got, expected = where_apart(tree.unflatten(self.structure, self.types), result)
            raise errors.TypeMismatchError(
                f"the body of {self.what} must return a carry of the structure it takes",
                got=f"carry{place} comes out as {got}",
                expected=expected,
                fix="return the same containers with the same keys, and as many leaves",
            )
        return leaves

    def check(self, types: Sequence[ArrayType]) -> None:
        """Refuse a body that changes a type.

        Raises:
            TypeMismatchError: one leaf comes back with another shape or dtype; every one is named.
        """
        wrong = [
            f"{name} goes in as {old} and comes out as {new}"
            for name, old, new in zip(self.names, self.types, types, strict=False)
            if old != new
        ]
        if wrong:
            raise errors.TypeMismatchError(
                f"the body of {self.what} must return a carry of the type it takes",
                got="; ".join(wrong),
                expected="equal shapes and dtypes",
                fix="convert it with .astype(...), or start from a carry of the type that comes out",
            )


def _value(leaf: Any, what: str) -> Value:  # Any: a leaf of a pytree
    try:
        return trace.as_value(leaf)
    except errors.TypeMismatchError as error:
        raise errors.TypeMismatchError(
            f"the carry of {what} must be made of arrays and numbers",
            got=f"{leaf!r} of type {type(leaf).__name__}",
            fix="close over it instead",
        ) from error


def trace_body(
    flat: Callable[..., Sequence[Any]],
    carry: Carry,
    extra_types: Sequence[ArrayType],
    extra_weak: Sequence[bool],
    name: str,
    extra_varying: Sequence[trace.Varying] | None = None,
) -> tuple[trace.Staged, Carry]:
    """Trace a loop body whose first results are the next carry. Returns it with the carry it starts from.

    Weak leaves that come back with another dtype are converted to the common one, until nothing changes. So
    are leaves that come back varying along more manual axes than they start with.

    Raises:
        TypeMismatchError: the body changes a type.
    """
    varying = None if extra_varying is None else [trace.varying_axes(leaf) for leaf in carry.leaves]
    count = len(carry.leaves)
    while True:
        types, weak = [*carry.types, *extra_types], [*carry.weak, *extra_weak]
        if varying is None or extra_varying is None:
            staged = trace.stage(flat, types, weak=weak, name=name)
        else:
            staged = trace.stage(
                _marking(flat, varying), types, weak=weak, name=name, varying=[*varying, *extra_varying]
            )
        widened = [
            _widened(old, new, new_weak)
            for old, new, new_weak in zip(carry.leaves, staged.program.out_types, staged.weak, strict=False)
        ]
        grown = varying and [a | b for a, b in zip(varying, staged.varying[:count], strict=True)]
        if grown == varying and all(a is b for a, b in zip(widened, carry.leaves, strict=True)):
            break
        varying = grown
        carry = carry.replace(widened if varying is None else varying_.marked(widened, varying))
    carry.check(staged.program.out_types)
    return staged, carry


def _marking(
    flat: Callable[..., Sequence[Any]], varying: Sequence[trace.Varying]
) -> Callable[..., Sequence[Any]]:
    """The body with its carry marked as varying along as many axes as it goes in with."""

    def run(*args: Value) -> Sequence[Any]:
        results = [trace.as_value(x) for x in flat(*args)]
        return [*varying_.marked(results[: len(varying)], varying), *results[len(varying) :]]

    return run


def _widened(old: Value, new: ArrayType, new_weak: bool) -> Value:
    if not old.weak or old.dtype == new.dtype:
        return old
    dtype, _ = dtypes.promote(((old.dtype, True), (new.dtype, new_weak)))
    return e.convert_element_type(old, dtype)


def carry_fixpoint(step: Callable[[Flags], Flags], flags: Flags) -> Flags:
    """Smallest set of carries closed under the body: flags grow until the body adds none."""
    for _ in range(len(flags) + 1):
        found = step(flags)
        united = tuple(a or b for a, b in zip(flags, found, strict=True))
        if united == flags:
            break
        flags = united
    return flags


def cut(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Consecutive parts of a sequence."""
    parts, start = [], 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    return parts


def regroup(items: Sequence[Any], sizes: Sequence[int], order: Sequence[int]) -> tuple[Any, ...]:
    """Consecutive parts of a sequence in another order."""
    parts = cut(items, sizes)
    return tuple(item for i in order for item in parts[i])


def where_apart(first: Any, second: Any) -> tuple[str, str, str]:  # Any: pytrees
    """Where two trees of different structure part: the path, what the second has there, and the first."""
    found = tree_flatten.mismatch(first, second)
    if found is not None:
        return tree.keystr(found.path), found.got, found.expected
    turned = tree_flatten.mismatch(second, first)
    if turned is not None:
        return tree.keystr(turned.path), turned.expected, turned.got
    return "", str(tree.structure(second)), str(tree.structure(first))


def require_functions(what: str, *functions: Any) -> None:  # Any: whatever the user gave
    """Refuse what cannot be called.

    Raises:
        TypeMismatchError: one of them is no function.
    """
    for function in functions:
        if not callable(function):
            raise errors.TypeMismatchError(f"{what} needs functions", got=repr(function))
