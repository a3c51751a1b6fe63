"""From functions of pytrees to functions of flat values: what every transform does with arguments first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infini.core import dtypes, errors, trace, tree
from infini.core.value import Literal, Value


def values(leaves: Sequence[Any], what: str) -> list[Value]:
    """Leaves as operands.

    Raises:
        TypeMismatchError: a leaf is no array; the message says what it belongs to.
    """
    found = []
    for leaf in leaves:
        if isinstance(leaf, Value):
            found.append(leaf)
            continue
        try:
            found.append(trace.as_value(leaf))
        except errors.TypeMismatchError as error:
            raise errors.TypeMismatchError(
                f"{what} must be arrays, numbers, or pytrees of these",
                got=f"{leaf!r} of type {type(leaf).__name__}",
                fix="mark the argument static (static_argnums) or close over it",
            ) from error
    return found


def finished(results: Sequence[Value]) -> list[Value]:
    """Results for the user: outside every transformation, constants are arrays too."""
    if not trace.is_eager():
        return list(results)
    return [trace.to_array(r) if isinstance(r, Literal) else r for r in results]


class FlatFunction:
    """A function of pytrees called with flat values; remembers the structure of the last results."""

    def __init__(self, f: Callable[..., Any], in_tree: tree.PyTreeDef, has_aux: bool = False) -> None:
        self.f = f
        self.in_tree = in_tree
        self.has_aux = has_aux
        self.out_tree: tree.PyTreeDef | None = None
        self._aux: Any = None
        self.__name__ = getattr(f, "__name__", type(f).__name__)

    def __call__(self, *leaves: Any) -> list[Any]:
        args, kwargs = tree.unflatten(self.in_tree, leaves)
        result = self.f(*args, **kwargs)
        if self.has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise errors.TypeMismatchError(
                    f"with has_aux=True {self.__name__} must return (output, aux)", got=type(result).__name__
                )
            result, self._aux = result
        out, self.out_tree = tree.flatten(result)
        return out

    def aux_value(self, interpreter: Any = None) -> Any:
        """The auxiliary output of the last call, with the primal part of values that `interpreter` traced."""

        def primal(leaf: Any) -> Any:
            return interpreter.split(leaf)[0] if interpreter is not None else getattr(leaf, "primal", leaf)

        return tree.map(primal, self._aux)


def argnums(nums: int | Sequence[int], count: int, what: str) -> tuple[int, ...]:
    """Positions from 0.

    Raises:
        ValueMismatchError: one is out of range or occurs twice.
    """
    given = (nums,) if isinstance(nums, int) else tuple(nums)
    for n in given:
        if not isinstance(n, int) or not -count <= n < count:
            raise errors.ValueMismatchError(
                f"{what}: argnums {nums} does not fit a call with {count} positional arguments",
                fix="pass the argument by position",
            )
    fixed = tuple(n % count for n in given)
    if len(set(fixed)) != len(fixed):
        raise errors.ValueMismatchError(f"{what}: an argument number occurs twice", got=str(nums))
    return fixed


def check_differentiable(operands: Sequence[Value], what: str) -> None:
    """Refuse inputs without derivatives.

    Raises:
        TypeMismatchError: one is an integer or a boolean.
    """
    for x in operands:
        if not dtypes.is_inexact(x.dtype):
            raise errors.TypeMismatchError(
                f"{what} requires real- or complex-valued inputs",
                got=f"an input of type {x.type}",
                expected="a sub-dtype of inexact",
                fix="convert it with .astype(float), or leave it out of argnums",
            )
