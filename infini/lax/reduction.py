"""Reductions over core dimensions. Axes are negative, so loop dimensions never move them. 16-bit sums
accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import elementwise as e, families, places
from infini.lax.families import bind_scalars

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _signature(*, axes: tuple[int, ...]) -> Signature:
    rank = max((-axis for axis in axes), default=0)
    names = families.letters(rank)
    return Signature((names,), (tuple(name for i, name in enumerate(names) if i - rank not in axes),))


def expand_reduced(x: Value, axes: tuple[int, ...], shape: tuple[int, ...]) -> Value:
    """Broadcast the result of a reduction back over the reduced axes of an operand of `shape`."""
    reduced = {axis + len(shape) for axis in axes}
    kept = tuple(axis - len(shape) for axis in range(len(shape)) if axis not in reduced)
    return trace.bind1(primitive.by_name("broadcast_in_dim"), x, shape=shape, dims=kept)


def reduction(
    name: str,
    allowed: Collection[np.dtype],
    reference: Callable[..., Any],
    *,
    jvp: Any,
    combine: places.Reducer,
    transpose: Any = None,
) -> Primitive:
    """Declare a reduction; `reference(x, axis=...)` is a NumPy function, `combine` joins results of parts."""

    def run(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
        return np.asarray(reference(x, axis=axes)).astype(x.dtype) if axes else x

    rules: dict[primitive.RuleKey, Any] = {  # Any: each key has its own kind of rule
        primitive.TYPE: families.type_from_signature(name, _signature, allowed, families.same_dtype(name)),
        primitive.REFERENCE: families.in_float32(run),
        primitive.JVP: jvp,
        primitive.PLACE: places.every_letter(combine),
        primitive.CASES: (frozenset(allowed), (families.ANYTHING,)),
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    return primitive.register(Primitive(name, _signature, rules))


reduce_sum_p: Primitive = reduction(
    "reduce_sum",
    dtypes.NUMERIC,
    np.sum,
    jvp=families.linear_jvp("reduce_sum"),
    combine="sum",
    transpose=lambda ct, x, *, axes: (expand_reduced(ct, axes, x.shape),),
)


def _jvp_extremum(
    primals: Sequence[Value],
    tangents: Sequence[Value | None],
    results: Sequence[Value],
    *,
    axes: tuple[int, ...],
) -> tuple[Value | None]:
    (x,), (g,), (out,) = primals, tangents, results
    if g is None:
        return (None,)
    # Ties share the tangent equally, as in JAX.
    is_winner = e.convert_element_type(bind_scalars(e.eq_p, x, expand_reduced(out, axes, x.shape)), g.dtype)
    count = trace.bind1(reduce_sum_p, is_winner, axes=axes)
    total = trace.bind1(reduce_sum_p, bind_scalars(e.mul_p, g, is_winner), axes=axes)
    return (bind_scalars(e.div_p, total, count),)


def _max(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    return np.max(x, axis=axis, initial=_lowest(x.dtype))


def _min(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    return np.min(x, axis=axis, initial=_highest(x.dtype))


def _lowest(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    if dtype == dtypes.bool_:
        return False
    return -np.inf if dtype in dtypes.FLOATS else np.iinfo(dtype).min


def _highest(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    if dtype == dtypes.bool_:
        return True
    return np.inf if dtype in dtypes.FLOATS else np.iinfo(dtype).max


reduce_max_p: Primitive = reduction(
    "reduce_max", e.REAL | {dtypes.bool_}, _max, jvp=_jvp_extremum, combine="max"
)
reduce_min_p: Primitive = reduction(
    "reduce_min", e.REAL | {dtypes.bool_}, _min, jvp=_jvp_extremum, combine="min"
)


def identity_of(op: Primitive, dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """The element a reduction starts from."""
    return {"reduce_sum": lambda d: 0, "reduce_max": _lowest, "reduce_min": _highest}[op.name](dtype)


def _reduce(op: Primitive, operand: ArrayLike, axes: Sequence[int]) -> Value:
    x = trace.as_value(operand)
    negative = tuple(sorted({families.normalize_axis(axis, x.ndim) - x.ndim for axis in axes}))
    if len(negative) != len(axes):
        raise errors.ValueMismatchError(f"{op.name}: an axis occurs twice", got=str(tuple(axes)))
    return trace.bind1(op, x, axes=negative) if axes else x


def reduce_sum(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Sum over some axes. 16-bit floats accumulate in float32."""
    return _reduce(reduce_sum_p, operand, axes)


def reduce_max(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Maximum over some axes; minus infinity of nothing."""
    return _reduce(reduce_max_p, operand, axes)


def reduce_min(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Minimum over some axes; infinity of nothing."""
    return _reduce(reduce_min_p, operand, axes)


def _type_argmax(x: Any, *, axis: int, index_dtype: np.dtype) -> tuple[Any, ...]:
    signature = _signature(axes=(axis,))
    families.accept("argmax", e.REAL | {dtypes.bool_}, [x])
    families.core_sizes("argmax", signature, [x])
    if x.shape[axis] == 0:
        raise errors.ValueMismatchError("argmax of an empty axis", got=str(x))
    return (x.update(shape=tuple(n for i, n in enumerate(x.shape) if i - x.ndim != axis), dtype=index_dtype),)


argmax_p: Primitive = primitive.register(
    Primitive(
        "argmax",
        lambda *, axis, index_dtype: _signature(axes=(axis,)),
        {
            primitive.TYPE: _type_argmax,
            primitive.REFERENCE: lambda x, *, axis, index_dtype: np.asarray(np.argmax(x, axis=axis)).astype(
                index_dtype
            ),
            primitive.JVP: families.no_jvp,
            primitive.PLACE: places.every_letter(None),
            primitive.CASES: (frozenset(e.REAL), (families.ANYTHING,)),
        },
    )
)


def argmax(operand: ArrayLike, axis: int, index_dtype: Any) -> Value:
    """Index of the largest element along `axis`; the first of equal ones; NaN counts as largest."""
    x = trace.as_value(operand)
    negative = families.normalize_axis(axis, x.ndim) - x.ndim
    return trace.bind1(argmax_p, x, axis=negative, index_dtype=dtypes.canonical(index_dtype))
