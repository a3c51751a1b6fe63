"""argmax and argmin: where the extremum along one axis is, the first of equal ones; NaN counts as one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, families, places, reduction, sorting
from infini.lax.cases import Case, Sample, Span

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_TIED: Final = Span(-2.0, 2.0, (1.5, -1.5, 1.5, -1.5))  # integers tie in it by themselves


def _signature(*, axis: int, index_dtype: np.dtype) -> Signature:
    names = families.letters(-axis)
    return Signature((names,), (names[1:],))


def _partition(part: places.Part, x: Value) -> tuple[Value]:
    """The extremum of each part and its place, of which every device takes the first of the best."""
    axis = part.attrs["axis"]
    factor, at = families.letters(-axis)[0], x.ndim + axis
    own = trace.bind1(part.op, x, **part.attrs)
    start = part.start(factor, part.attrs["index_dtype"])
    if start is None:
        return (own,)
    extremum = reduction.reduce_max_p if part.op.name == "argmax" else reduction.reduce_min_p
    best = trace.bind1(extremum, x, axes=(axis,))
    shape = (*x.shape[:at], *x.shape[at + 1 :], 1)
    columns = [
        trace.bind1(primitive.by_name("reshape"), y, shape=shape, ndim=y.ndim)
        for y in (best, trace.bind1(primitive.by_name("add"), own, start))
    ]
    values, found = (part.gather(y, factor, len(shape) - 1) for y in columns)
    first = trace.bind1(part.op, values, axis=-1, index_dtype=dtypes.int32)
    order = trace.bind1(primitive.by_name("reshape"), first, shape=shape, ndim=first.ndim)
    chosen = sorting.take_last(found, order)
    return (trace.bind1(primitive.by_name("reshape"), chosen, shape=shape[:-1], ndim=len(shape)),)


def _tail_of(outside: places.Fill) -> Any:  # Any: a TAIL rule
    """TAIL of these: what is no better than any element before it."""

    def rule(found: places.Factors, factors: Collection[str], attrs: ir.Attrs) -> places.Tails:
        return places.tails_along(found, factors, (attrs["axis"],), outside)

    return rule


def _position(name: str, reference: Callable[..., Any], outside: places.Fill) -> Primitive:
    def type_(x: ArrayType, *, axis: int, index_dtype: np.dtype) -> tuple[ArrayType, ...]:
        families.accept(name, reduction.ORDERED, [x])
        families.core_sizes(name, _signature(axis=axis, index_dtype=index_dtype), [x])
        if x.shape[axis] == 0:
            raise errors.ValueMismatchError(
                f"{name} of an empty axis", got=str(x), expected="at least one element"
            )
        shape = tuple(n for i, n in enumerate(x.shape) if i - x.ndim != axis)
        return (x.update(shape=shape, dtype=index_dtype),)

    def run(x: np.ndarray, *, axis: int, index_dtype: np.dtype) -> np.ndarray:
        wide = x.astype(np.float32) if x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2 else x
        return np.asarray(reference(wide, axis=axis)).astype(index_dtype)

    def decompose(x: Value, *, axis: int, index_dtype: np.dtype) -> tuple[Value]:
        # What no backend searches itself is searched in float32, which holds it exactly.
        wide = trace.bind1(primitive.by_name("convert_element_type"), x, new_dtype=dtypes.float32)
        return (trace.bind1(primitive.by_name(name), wide, axis=axis, index_dtype=index_dtype),)

    examples = (((3, 5), -1), ((3, 5), -2), ((2, 1, 3), -2), ((70,), -1))
    return primitive.register(
        Primitive(
            name,
            _signature,
            {
                primitive.TYPE: type_,
                primitive.REFERENCE: run,
                primitive.JVP: families.no_jvp,
                primitive.PLACE: places.every_letter_apart,
                primitive.PARTITION: _partition,
                primitive.TAIL: _tail_of(outside),
                primitive.WEAK: lambda weak, attrs: False,
                primitive.DECOMPOSE: decompose,
                primitive.COST: families.PerElement(),
                primitive.CASES: cases.always(
                    reduction.ORDERED,
                    *(
                        Case(
                            (Sample(shape, span=_TIED),),
                            {"axis": axis, "index_dtype": dtypes.int32},
                            "exact",
                        )
                        for shape, axis in examples
                    ),
                ),
            },
        )
    )


argmax_p: Primitive = _position("argmax", np.argmax, reduction.lowest)
argmin_p: Primitive = _position("argmin", np.argmin, reduction.highest)
NAMES: Final = frozenset({"argmax", "argmin"})


def argmax(operand: ArrayLike, axis: int, index_dtype: Any) -> Value:  # Any: a dtype
    """Index of the largest element along `axis`; the first of equal ones; NaN counts as largest.

    Args:
        operand: array of booleans or real numbers.
        axis: axis to search along, not negative.
        index_dtype: integer dtype of the result.

    Raises:
        ValueMismatchError: the axis does not exist or is empty.
        TypeMismatchError: `index_dtype` is no integer, or the operand is complex.
    """
    return _found(argmax_p, operand, axis, index_dtype)


def argmin(operand: ArrayLike, axis: int, index_dtype: Any) -> Value:  # Any: a dtype
    """Index of the smallest element along `axis`; the first of equal ones; NaN counts as smallest.

    Args:
        operand: array of booleans or real numbers.
        axis: axis to search along, not negative.
        index_dtype: integer dtype of the result.

    Raises:
        ValueMismatchError: the axis does not exist or is empty.
        TypeMismatchError: `index_dtype` is no integer, or the operand is complex.
    """
    return _found(argmin_p, operand, axis, index_dtype)


def _found(op: Primitive, operand: ArrayLike, axis: int, index_dtype: Any) -> Value:  # Any: a dtype
    x = trace.as_value(operand)
    (negative,) = reduction.check_axes(op.name, (axis,), x.ndim)
    target = dtypes.canonical(index_dtype)
    if target not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"lax.{op.name}: index_dtype has to be an integer dtype", got=target.name
        )
    return trace.bind1(op, x, axis=negative, index_dtype=target)
