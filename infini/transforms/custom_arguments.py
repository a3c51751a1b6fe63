"""Arguments and results of custom derivative rules: which arguments are differentiated, zeros that rules are
told of, cotangents by leaf.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, tree
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import families
from infini.transforms import flat


@dataclass(frozen=True, slots=True)
class SymbolicZero:
    """A tangent or cotangent that is known to be zero, given to rules with `symbolic_zeros=True`."""

    shape: ir.Shape
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def instantiate(self) -> Any:  # Any: an array, or float0 for integers
        """An array of zeros."""
        if self.dtype == dtypes.float0:
            return flat.float0_zeros(self.shape)
        return families.zeros(ArrayType(self.shape, self.dtype))

    @classmethod
    def like(cls, type_: ArrayType) -> SymbolicZero:
        """The zero tangent of an array of this type."""
        return cls(type_.shape, flat.tangent_dtype(type_.dtype))


@dataclass(frozen=True, slots=True)
class CustomVJPPrimal:
    """What the forward rule of a `custom_vjp` with `symbolic_zeros=True` is given for each array.

    Args:
        value: the array.
        perturbed: whether the derivative with respect to it is asked for.
    """

    value: Value
    perturbed: bool


# --- arguments ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments of one call without the values that are differentiated: their structure, and the other
    arguments with their positions.
    """

    in_tree: tree.PyTreeDef
    static: tuple[Any, ...]
    positions: tuple[int, ...]

    def merged(self, leaves: Sequence[Any]) -> list[Any]:
        """All arguments by position."""
        return self.insert(list(tree.unflatten(self.in_tree, leaves)))

    def insert(self, args: list[Any]) -> list[Any]:
        """Arguments by position from those that are differentiated."""
        for position, item in zip(self.positions, self.static, strict=True):
            args.insert(position, item)
        return args

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the rule for this call, next to the function."""
        return (self.in_tree, self.static, tuple(map(type, self.static)), self.positions)


def arguments_of(
    fun: Callable[..., Any], nums: Sequence[int], names: Sequence[str], args: Any, kwargs: Any
) -> tuple[list[Value], Arguments]:
    """Values that are differentiated, and the rest of the arguments: those at positions `nums` and with
    `names` are not.

    Raises:
        TypeMismatchError: the function cannot be called so, or an argument is no array.
        ValueMismatchError: there is no such position.
    """
    given = _positional(fun, args, kwargs)
    parameters = _parameter_names(fun) if names else []
    wanted = [*nums, *(parameters.index(name) for name in names)]
    for n in wanted:
        if not -len(given) <= n < len(given):
            raise errors.ValueMismatchError(
                f"nondiff_argnums {tuple(nums)} does not fit the call",
                got=f"{len(given)} positional arguments",
            )
    positions = tuple(sorted({n % len(given) for n in wanted}))
    leaves, in_tree = tree.flatten(tuple(a for n, a in enumerate(given) if n not in positions))
    what = f"arguments of {name_of(fun)}, which has custom derivative rules,"
    return flat.values(leaves, what), Arguments(in_tree, tuple(given[n] for n in positions), positions)


def name_of(fun: Callable[..., Any]) -> str:
    """Name of a function, for messages."""
    return getattr(fun, "__name__", type(fun).__name__)


def _parameter_names(fun: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(fun).parameters)


def _positional(fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments by position, defaults filled in."""
    try:
        bound = inspect.signature(fun).bind(*args, **kwargs)
    except ValueError:  # a builtin without a signature
        return args
    except TypeError as error:
        raise errors.TypeMismatchError(f"{name_of(fun)} cannot be called so: {error}") from error
    bound.apply_defaults()
    if bound.kwargs:
        raise errors.TypeMismatchError(
            "functions with custom rules take positional arguments only",
            got=f"keyword-only arguments {', '.join(bound.kwargs)}",
        )
    return bound.args


def check_nondiff_names(fun: Callable[..., Any], names: Sequence[str]) -> None:
    """Refuse names of arguments that a function does not have.

    Raises:
        ValueMismatchError: it does not have one of them.
    """
    for name in names:
        if name not in _parameter_names(fun):
            raise errors.ValueMismatchError(
                f"nondiff_argnames: {name_of(fun)} has no argument {name!r}",
                expected=", ".join(_parameter_names(fun)),
            )


def cotangents_by_leaf(found: Any, in_tree: tree.PyTreeDef, name: str) -> list[Any]:
    """One cotangent per leaf of the arguments, from what a user's rule returned.

    None, or one value for a whole argument, stands for its leaves.

    Raises:
        TypeMismatchError: the structure is another.
    """
    if isinstance(found, list) and len(found) == in_tree.num_children:
        found = tuple(found)
    dummy = tree.unflatten(in_tree, list(range(in_tree.num_leaves)))
    leaves: list[Any] = []
    try:
        if not isinstance(found, tuple):
            raise ValueError
        prefix, prefix_tree = tree.flatten(found, is_leaf=lambda x: x is None)
        for ct, subtree in zip(prefix, prefix_tree.flatten_up_to(dummy), strict=True):
            leaves += [ct] * len(tree.leaves(subtree))
    except ValueError as error:
        raise errors.TypeMismatchError(
            f"the backward rule of {name} must return a tuple with one cotangent per argument,"
            " each of the structure of its argument",
            got=str(tree.structure(found)),
            expected=str(in_tree),
            fix="return None for arguments without a cotangent",
        ) from error
    return leaves
