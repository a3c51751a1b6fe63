"""Comparison of each pair of elements, and choice between them."""

from __future__ import annotations

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases as cases_, families, places
from infini.lax.cases import Case, Sample, Span
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import PerElement, elementwise, is_linear

# Numbers that meet themselves, zeros of both signs and NaN.
_LEFT = Span(-4.0, 4.0, (0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 2.0))
_RIGHT = Span(-4.0, 4.0, (-0.0, 0.0, 1.0, np.nan, np.inf, np.inf, -2.0))

eq_p: Primitive = elementwise(
    "eq", dtypes.ALL, np.equal, num_operands=2, dtype=dtypes.bool_, cases=(_LEFT, _RIGHT)
)


def eq(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether elements are equal; of any dtype."""
    return t.binary(eq_p, x, y)


ne_p: Primitive = elementwise(
    "ne", dtypes.ALL, np.not_equal, num_operands=2, dtype=dtypes.bool_, cases=(_LEFT, _RIGHT)
)


def ne(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether elements differ; of any dtype."""
    return t.binary(ne_p, x, y)


lt_p: Primitive = elementwise(
    "lt", t.ORDERED, np.less, num_operands=2, dtype=dtypes.bool_, cases=(_LEFT, _RIGHT)
)


def lt(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x < y`."""
    return t.binary(lt_p, x, y)


le_p: Primitive = elementwise(
    "le", t.ORDERED, np.less_equal, num_operands=2, dtype=dtypes.bool_, cases=(_LEFT, _RIGHT)
)


def le(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x <= y`."""
    return t.binary(le_p, x, y)


gt_p: Primitive = elementwise(
    "gt", t.ORDERED, np.greater, num_operands=2, dtype=dtypes.bool_, cases=(_LEFT, _RIGHT)
)


def gt(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x > y`."""
    return t.binary(gt_p, x, y)


ge_p: Primitive = elementwise(
    "ge", t.ORDERED, np.greater_equal, num_operands=2, dtype=dtypes.bool_, cases=(_LEFT, _RIGHT)
)


def ge(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x >= y`."""
    return t.binary(ge_p, x, y)


# --- choice -----------------------------------------------------------------------------------


def _type_select(which: ArrayType, on_false: ArrayType, on_true: ArrayType) -> tuple[ArrayType, ...]:
    families.accept("select_n", {dtypes.bool_}, [which])
    dtype = families.same_dtype("select_n")(on_false, on_true)
    return (ArrayType(families.loop_shape("select_n", [which, on_false, on_true], [0, 0, 0]), dtype),)


def _reference_select(which: np.ndarray, on_false: np.ndarray, on_true: np.ndarray) -> np.ndarray:
    return np.where(which, on_true, on_false)


select_n_p: Primitive = elementwise(
    "select_n",
    dtypes.ALL,
    _reference_select,
    num_operands=3,
    type=_type_select,
    cases=cases_.always(
        dtypes.ALL,
        Case((Sample((3, 7), dtypes.bool_), Sample((3, 7)), Sample((3, 7))), kind="exact"),
    ),
    jvp=(
        None,
        lambda g, out, which, f, t_: t.where(which, 0, g),
        lambda g, out, which, f, t_: t.where(which, g, 0),
    ),
    transpose=lambda ct, which, on_false, on_true: (
        None,
        t.where(which, 0, ct) if is_linear(on_false) else None,
        t.where(which, ct, 0) if is_linear(on_true) else None,
    ),
    extra={
        primitive.REFERENCE: _reference_select,  # moves bits, those of NaN too
        primitive.LINEAR: lambda types, *_: places.together(*range(1, len(types))),
        primitive.WEAK: lambda weak, attrs: weak[1] and weak[2],
    },
)


def select_n(which: ArrayLike, *cases: ArrayLike) -> Value:
    """Choose between cases: by a boolean between two, `cases[1]` where it is true, or by the number of a
    case.

    Args:
        which: boolean or integer, a scalar or of the shape of the cases; numbers below 0 take the first case,
            numbers past the end the last one.
        *cases: arrays of one shape and dtype; Python numbers stand for arrays of it.

    Raises:
        TypeMismatchError: shapes or dtypes differ, `which` is neither boolean nor integer, or a boolean is
            given more than two cases.
        ValueMismatchError: there is no case.
    """
    if not cases:
        raise errors.ValueMismatchError("select_n needs at least one case")
    index = trace.as_value(which)
    families.accept("select_n", t.BITS, [index.type])
    if index.dtype == dtypes.bool_ and len(cases) > 2:
        raise errors.TypeMismatchError(
            "select_n takes at most two cases for a boolean", got=f"{len(cases)}", fix="choose by an integer"
        )
    values = t.adapted(*cases)
    _check_choice(index, values, cases)
    if len(values) == 1:
        return values[0]
    if index.dtype == dtypes.bool_:
        return trace.bind1(select_n_p, index, *values)
    chosen = values[-1]
    for number in reversed(range(len(values) - 1)):
        is_before = t.le(index, number)
        chosen = trace.bind1(select_n_p, is_before, chosen, values[number])
    return chosen


def _check_choice(which: Value, values: list[Value], given: tuple[ArrayLike, ...]) -> None:
    shapes = {
        v.shape for v, x in zip(values, given, strict=True) if type(x) not in (bool, int, float, complex)
    }
    if len(shapes) > 1 or (which.shape and shapes and which.shape not in shapes):
        raise errors.TypeMismatchError(
            "select_n needs cases of one shape, and a choice that is a scalar or of that shape",
            got=", ".join(str(v.type) for v in (which, *values)),
            fix="use infini.numpy.where, which broadcasts",
        )


def select(pred: ArrayLike, on_true: ArrayLike, on_false: ArrayLike) -> Value:
    """Elements of `on_true` where `pred` holds, of `on_false` elsewhere.

    Raises:
        TypeMismatchError: shapes or dtypes differ.
    """
    return select_n(pred, on_false, on_true)


def _clamp_is_inside(low: Value, x: Value, high: Value) -> Value:
    return t.both(t.gt(x, low), t.lt(x, high))


clamp_p: Primitive = elementwise(
    "clamp",
    t.ORDERED,
    lambda low, x, high: np.minimum(np.maximum(x, low), high),
    num_operands=3,
    jvp=(
        lambda g, out, low, x, high: t.where(t.both(t.gt(low, x), t.lt(low, high)), g, 0),
        lambda g, out, low, x, high: t.where(_clamp_is_inside(low, x, high), g, 0),
        lambda g, out, low, x, high: t.where(t.lt(high, x), g, 0),
    ),
    decompose=lambda low, x, high: (t.min(t.max(x, low), high),),
    cost=PerElement(2.0),
    cases=t.examples(
        t.ORDERED, (Span(-3.0, -2.0), Span(-1.5, 1.5), Span(2.0, 3.0)), edges=(Span(-2.0, 1.0), _LEFT, _RIGHT)
    ),
)


def clamp(min: ArrayLike, x: ArrayLike, max: ArrayLike) -> Value:
    """`x` limited to the range from `min` to `max`; NaN stays NaN.

    Args:
        min: lower limit, a scalar or of the shape of `x`.
        x: any ordered dtype.
        max: upper limit, which wins where the limits cross.

    Raises:
        TypeMismatchError: dtypes differ, or a limit has another shape.
    """
    operand = trace.as_value(x)
    _, *limits = t.adapted(operand, min, max)
    if any(limit.shape not in ((), operand.shape) for limit in limits):
        raise errors.TypeMismatchError(
            "clamp needs limits that are scalars or of the shape of the operand",
            got=", ".join(str(v.type) for v in (limits[0], operand, limits[1])),
            fix="use infini.numpy.clip, which broadcasts",
        )
    return trace.bind1(clamp_p, limits[0], operand, limits[1])
