"""Axes and shapes: the argument checks that functions of `infini.numpy` share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors, trace
from infini.core.value import Value
from infini.numpy._promotion import Axis


def one(name: str, axis: int, ndim: int) -> int:
    """An axis as a number from 0.

    Raises:
        AxisError: there is no such axis.
        TypeMismatchError: it is not an integer.
    """
    try:
        number = operator.index(axis)
    except TypeError:
        raise errors.TypeMismatchError(
            f"{name}: an axis has to be an integer", got=f"{axis!r} of type {type(axis).__name__}"
        ) from None
    if not -ndim <= number < ndim:
        raise errors.AxisError(
            f"{name}: there is no axis {number}",
            got=f"an array of {ndim} dimensions",
            expected=f"{-ndim} to {ndim - 1}" if ndim else "no axis at all",
            fix="give an axis that the array has, or reshape it first",
        )
    return number % ndim


def integer(name: str, argument: str, number: Any) -> int:  # Any: an integer, known while tracing
    """An argument as a Python integer.

    Raises:
        TypeMismatchError: it is none.
        ConcretizationError: it is being traced.
    """
    try:
        return operator.index(number)
    except TypeError as error:
        if isinstance(error, errors.InfiniError):
            raise
        raise errors.TypeMismatchError(
            f"{name}: {argument} has to be an integer", got=f"{number!r} of type {type(number).__name__}"
        ) from None


def integers(name: str, argument: str, numbers: Any) -> tuple[int, ...]:  # Any: an integer or several
    """An argument as Python integers; one counts as a sequence of one."""
    items = numbers if np.ndim(numbers) else (numbers,)
    return tuple(integer(name, argument, number) for number in items)


def several(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """Axes as increasing numbers from 0; None means all of them.

    Raises:
        AxisError: one does not exist.
        ValueMismatchError: one occurs twice.
    """
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(one(name, a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if len(set(axes)) != len(axes):
        raise errors.ValueMismatchError(
            f"{name}: an axis occurs twice", got=str(axis), fix="name each axis once"
        )
    return tuple(sorted(axes))


def shape(name: str, sizes: Any) -> tuple[int, ...]:  # Any: an integer or a sequence of integers
    """A shape as a tuple of integers.

    Raises:
        TypeMismatchError: a size is negative or no integer.
        ConcretizationError: a size is being traced; sizes have to be known.
    """
    items: Sequence[Any] = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
    if isinstance(sizes, Value) and sizes.ndim == 1:
        items = sizes.tolist()
    try:
        result = tuple(operator.index(size) for size in items)
    except TypeError as error:
        if isinstance(error, errors.InfiniError):
            raise
        raise errors.TypeMismatchError(
            f"{name}: a shape has to be integers",
            got=repr(sizes),
            expected="an integer or a tuple of integers",
        ) from None
    if any(size < 0 for size in result):
        raise errors.TypeMismatchError(
            f"{name}: a size is negative", got=str(result), expected="sizes of at least 0"
        )
    return result


def check_broadcasts(name: str, x: Value, target: tuple[int, ...]) -> None:
    """Refuse an array that does not broadcast to a shape.

    Raises:
        ValueMismatchError: it does not.
    """
    fits = x.ndim <= len(target) and all(
        n in (1, m) for n, m in zip(x.shape[::-1], target[::-1], strict=False)
    )
    if not fits:
        raise errors.ValueMismatchError(
            f"{name}: the array does not broadcast to this shape",
            got=f"{x.type} to {target}",
            expected="dimensions that are equal or 1, from the right",
        )


def broadcast(name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that shapes broadcast to.

    Raises:
        ValueMismatchError: they do not.
    """
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*(tuple(s) for s in shapes)))
    except ValueError:
        raise errors.ValueMismatchError(
            f"{name}: shapes do not broadcast",
            got=", ".join(str(tuple(s)) for s in shapes),
            expected="sizes that are equal or 1, from the right",
        ) from None


def refuse_out(name: str, out: object) -> None:
    """Refuse NumPy's argument `out`.

    Raises:
        MissingRuleError: it is given.
    """
    if out is not None:
        raise errors.MissingRuleError(
            f"{name}: out is not supported, since arrays cannot be changed", fix="use the result instead"
        )


def no_out(name: str, out: object) -> None:
    """Refuse NumPy's argument `out`: arrays cannot be written to.

    Raises:
        UnsupportedError: it is given.
    """
    if out is not None:
        raise errors.UnsupportedError(
            f"{name} does not take out=",
            got=f"out of type {type(out).__name__}",
            expected="None",
            fix="use the array that is returned",
        )


def known_size(name: str, size: Value, argument: str) -> int:
    """The size of a result that depends on data.

    Raises:
        ConcretizationError: the data are being traced; names the argument that fixes the size.
    """
    if isinstance(size, trace.Tracer) and size.concrete() is None:
        raise errors.ConcretizationError(
            f"{name}: the size of the result depends on data that are being traced",
            got=f"a value of type {size.type} made at {size.born}",
            expected="data that are known, or a fixed size",
            fix=f"pass {argument}=, the size of the result",
        )
    return int(size)
