"""From functions of pytrees to functions of flat values: what every transform does with arguments first.

Leaves of dtype float0 (`dtypes.float0`: tangents of integers, which hold nothing) are no values. They are
taken out before a function is traced and put back into what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import array, dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType
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


def finished(results: Sequence[Any]) -> list[Any]:
    """Results for the user: outside every transformation, constants are arrays too."""
    if not trace.is_eager():
        return list(results)
    return [trace.to_array(r) if isinstance(r, Literal) else r for r in results]


def to_results(x: Any) -> Any:  # Any: pytrees
    """A tree that a user's function returned, with arrays in place of its numbers and NumPy arrays."""
    leaves, treedef = tree.flatten(x)
    return tree.unflatten(treedef, finished(values(leaves, "results")))


# --- leaves without contents ----------------------------------------------------------------------


def is_float0(x: object) -> bool:
    """Whether a leaf is the tangent of an integer."""
    return isinstance(x, np.ndarray) and x.dtype == dtypes.float0


def float0_zeros(shape: ir.Shape) -> np.ndarray:
    """The tangent of an integer array."""
    return np.zeros(shape, dtypes.float0)


def tangent_dtype(dtype: np.dtype) -> np.dtype:
    """Dtype of tangents of arrays of `dtype`."""
    return dtype if dtypes.is_inexact(dtype) else dtypes.float0


@dataclass(frozen=True, slots=True)
class Holes:
    """Where float0 leaves stood among `count` leaves, with their shapes."""

    count: int = 0
    shapes: tuple[tuple[int, ir.Shape], ...] = ()

    @classmethod
    def of(cls, leaves: Sequence[Any]) -> tuple[Holes, list[Any]]:
        """The holes and the other leaves."""
        for x in leaves:
            if type(x) is np.ndarray and x.dtype == dtypes.float0:
                break
        else:
            return _NO_HOLES, leaves if isinstance(leaves, list) else list(leaves)
        shapes = tuple((i, x.shape) for i, x in enumerate(leaves) if is_float0(x))
        return cls(len(leaves), shapes), [x for x in leaves if not is_float0(x)]

    def fill(self, leaves: Sequence[Any]) -> list[Any]:
        """All leaves, from the others."""
        if not self.shapes:
            return list(leaves)
        absent, items = dict(self.shapes), iter(leaves)
        return [float0_zeros(absent[i]) if i in absent else next(items) for i in range(self.count)]


_NO_HOLES: Final = Holes()


class FlatFunction:
    """A function of pytrees called with flat values; remembers the structure of the last results."""

    def __init__(
        self,
        f: Callable[..., Any],
        in_tree: tree.PyTreeDef,
        has_aux: bool = False,
        holes: Holes | None = None,
    ) -> None:
        self.f = f
        self.in_tree = in_tree
        self.has_aux = has_aux
        self.holes = holes
        self.out_tree: tree.PyTreeDef | None = None
        self.out_holes = Holes()
        self._aux: Any = None
        self.__name__ = getattr(f, "__name__", type(f).__name__)

    def __call__(self, *leaves: Any) -> list[Any]:
        args, kwargs = tree.unflatten(self.in_tree, self.holes.fill(leaves) if self.holes else leaves)
        result = self.f(*args, **kwargs)
        if self.has_aux:
            result, self._aux = split_aux(result, self.__name__)
        out, self.out_tree = tree.flatten(result)
        self.out_holes, out = Holes.of(out)
        return values(out, f"results of {self.__name__}")

    def aux_value(self, primal: Callable[[Any], Any]) -> Any:
        """The auxiliary output of the last call, with `primal` applied to its leaves."""
        leaves, treedef = tree.flatten(self._aux)
        return tree.unflatten(treedef, [primal(leaf) for leaf in leaves])


def split_aux(result: Any, name: str) -> tuple[Any, Any]:
    """Output and auxiliary output of a function with `has_aux=True`.

    Raises:
        TypeMismatchError: it returned no pair.
    """
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise errors.TypeMismatchError(
            f"with has_aux=True {name} must return (output, aux)",
            got=f"a {type(result).__name__}"
            + (f" of {len(result)} items" if isinstance(result, (tuple, list)) else ""),
        )
    return result[0], result[1]


# --- arguments --------------------------------------------------------------------------------------


def argnums(nums: int | Sequence[int], count: int, what: str) -> tuple[int, ...]:
    """Positions from 0.

    Raises:
        TypeMismatchError: one is no integer, or there are too few positional arguments.
        ValueMismatchError: a negative one is out of range, or one occurs twice.
    """
    is_sequence = isinstance(nums, Sequence) and not isinstance(nums, str)
    given: tuple[Any, ...] = tuple(nums) if is_sequence else (nums,)  # type: ignore[arg-type]  # a sequence
    if not all(isinstance(n, (int, np.integer)) for n in given):
        raise errors.TypeMismatchError(
            f"{what}: argnums must be an integer or a sequence of integers", got=repr(nums)
        )
    needed = max((n + 1 if n >= 0 else -n for n in given), default=0)
    if needed > count:
        error = errors.TypeMismatchError if max(given) >= count else errors.ValueMismatchError
        raise error(
            f"{what} with argnums={nums} needs at least {needed} positional arguments",
            got=f"{count}",
            fix="pass the arguments to differentiate by position, the others by name if you like",
        )
    fixed = tuple(int(n) % count for n in given)
    if len(set(fixed)) != len(fixed):
        raise errors.ValueMismatchError(f"{what}: an argument number occurs twice", got=str(nums))
    return fixed


@dataclass(frozen=True, slots=True)
class Chosen:
    """The arguments that a derivative is taken of: their leaves as operands, and the function of these."""

    operands: list[Value]
    tree: tree.PyTreeDef
    is_single: bool
    function: Callable[..., Any]

    @classmethod
    def of(
        cls, fun: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], nums: Any, what: str
    ) -> Chosen:  # Any: pytrees; argnums as the user gave them
        """The arguments at positions `nums`; the others are as they are."""
        numbers = argnums(nums, len(args), what)
        leaves, treedef = tree.flatten([args[n] for n in numbers])
        operands = values(leaves, f"arguments that {what} differentiates")

        def function(*moved: Value) -> Any:
            given = list(args)
            for n, arg in zip(numbers, tree.unflatten(treedef, moved), strict=True):
                given[n] = arg
            return fun(*given, **kwargs)

        function.__name__ = getattr(fun, "__name__", type(fun).__name__)
        return cls(operands, treedef, isinstance(nums, (int, np.integer)), function)

    def shaped(self, leaves: Sequence[Any]) -> Any:
        """Leaves in the structure of the arguments; a tuple of them when several were asked for."""
        found = tree.unflatten(self.tree, leaves)
        return found[0] if self.is_single else tuple(found)


# --- dtypes that have derivatives -----------------------------------------------------------------


def check_inputs(
    operands: Sequence[Value], what: str, *, holomorphic: bool, allow_int: bool, allow_complex: bool = True
) -> None:
    """Refuse inputs that have no derivative, by JAX's rules.

    Raises:
        TypeMismatchError: one has another dtype than `what` takes.
    """
    for x in operands:
        if holomorphic:
            if x.dtype not in dtypes.COMPLEX:
                raise errors.TypeMismatchError(
                    f"{what} with holomorphic=True requires inputs with complex dtype",
                    got=f"an input of type {x.type}",
                    fix="leave holomorphic=False for real inputs",
                )
        elif not dtypes.is_inexact(x.dtype):
            if not allow_int:
                raise errors.TypeMismatchError(
                    f"{what} requires real- or complex-valued inputs",
                    got=f"an input of type {x.type}",
                    expected="a sub-dtype of inexact",
                    fix="convert it with .astype(float), leave it out of argnums, or use vjp",
                )
        elif not allow_complex and x.dtype in dtypes.COMPLEX:
            raise errors.TypeMismatchError(
                f"{what} requires real-valued inputs",
                got=f"an input of type {x.type}",
                fix="pass holomorphic=True for holomorphic functions, or use jvp or vjp with a direction",
            )


def check_outputs(types: Sequence[ArrayType], what: str, *, holomorphic: bool) -> None:
    """Refuse outputs that `what` cannot differentiate, by JAX's rules.

    Raises:
        TypeMismatchError: one has another dtype.
    """
    for type_ in types:
        if holomorphic:
            if type_.dtype not in dtypes.COMPLEX:
                raise errors.TypeMismatchError(
                    f"{what} with holomorphic=True requires outputs with complex dtype",
                    got=f"an output of type {type_}",
                )
        elif type_.dtype not in dtypes.FLOATS:
            raise errors.TypeMismatchError(
                f"{what} requires real-valued outputs (a sub-dtype of floating)",
                got=f"an output of type {type_}",
                fix="pass holomorphic=True for holomorphic functions, or use vjp with a cotangent",
            )


def is_array(x: object) -> bool:
    """Whether a leaf of an output is an array, or something that becomes one."""
    return isinstance(x, (Value, array.Array, np.ndarray, np.generic, int, float, complex))


def negative(x: Value) -> Value:
    """Minus a value."""
    return trace.bind1(primitive.by_name("neg"), x)


def iterate(items: Sequence[Any], flags: Sequence[bool]) -> Iterator[Any]:
    """Items where flags are set."""
    return (item for item, flag in zip(items, flags, strict=True) if flag)
