"""Reductions over core dimensions. Axes are negative, so loop dimensions never move them. The small floats
accumulate in float32 and are rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places, view
from infini.lax.cases import Case, Sample, Span
from infini.lax.families import bind_scalars

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
LOGICAL: Final = dtypes.INTEGERS | {dtypes.bool_}
ORDERED: Final = e.REAL | {dtypes.bool_}  # dtypes that argmax takes; extrema of complex numbers exist too


def _signature(*, axes: tuple[int, ...]) -> Signature:
    rank = max((-axis for axis in axes), default=0)
    names = families.letters(rank)
    return Signature((names,), (tuple(name for i, name in enumerate(names) if i - rank not in axes),))


def expand_reduced(x: Value, axes: tuple[int, ...], shape: tuple[int, ...]) -> Value:
    """Broadcast the result of a reduction back over the reduced axes of an operand of `shape`."""
    reduced = {axis + len(shape) for axis in axes}
    kept = tuple(axis - len(shape) for axis in range(len(shape)) if axis not in reduced)
    return trace.bind1(primitive.by_name("broadcast_in_dim"), x, shape=shape, dims=kept)


# --- neutral elements ---------------------------------------------------------------------------


def lowest(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """The smallest number of a dtype: what a maximum starts from."""
    return _farthest(dtype, -1)


def highest(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """The largest number of a dtype: what a minimum starts from."""
    return _farthest(dtype, 1)


def _farthest(dtype: np.dtype, sign: int) -> Any:  # Any: a number of that dtype
    if dtype == dtypes.bool_:
        return sign > 0
    if dtype in dtypes.COMPLEX:
        return complex(sign * np.inf, sign * np.inf)
    if dtype in dtypes.INTEGERS:
        return int(np.iinfo(dtype).max if sign > 0 else np.iinfo(dtype).min)
    if np.isinf(np.asarray(np.inf).astype(dtype).astype(np.float64)):
        return sign * np.inf
    largest: Any = ml_dtypes.finfo  # Any: ml_dtypes has no types
    return sign * float(largest(dtype).max)  # float8_e4m3fn has no infinity


def _all_ones(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    return True if dtype == dtypes.bool_ else int(np.invert(np.zeros((), dtype)))


_IDENTITIES: Final[dict[str, Callable[[np.dtype], Any]]] = {  # Any: a number of the dtype
    "reduce_sum": lambda dtype: 0,
    "reduce_prod": lambda dtype: 1,
    "reduce_max": lowest,
    "reduce_min": highest,
    "reduce_and": _all_ones,
    "reduce_or": lambda dtype: 0,
    "reduce_xor": lambda dtype: 0,
}


def identity_of(op: Primitive, dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """The element a reduction starts from."""
    return _IDENTITIES[op.name](dtype)


# --- declaring one ------------------------------------------------------------------------------


MONOIDS: Final[dict[str, Primitive]] = {}  # the operation on two elements of each reduction, by name
_EXAMPLES: Final = (
    ((3, 4, 5), (-1,)),
    ((3, 4, 5), (-3, -2)),
    ((3, 4, 5), (-3, -1)),
    ((2, 3, 4), (-3, -2, -1)),
    ((37,), (-1,)),
    ((1, 6), (-2,)),
)


def reduction(
    name: str,
    allowed: Collection[np.dtype],
    join: Primitive,
    *,
    jvp: Any = families.no_jvp,
    transpose: Any = None,
    place: Any = None,
    span: Span = cases.ANYTHING,
) -> Primitive:
    """Declare a reduction by an associative and commutative operation on two elements.

    Args:
        name: name of the operation.
        allowed: dtypes it takes.
        join: the elementwise operation, with a NumPy ufunc as its reference.
        jvp: JVP rule; constant almost everywhere when absent.
        transpose: TRANSPOSE rule of a linear one.
        place: PLACE rule of one that collectives join; when absent parts are gathered and joined again.
        span: numbers for the oracle tests.
    """
    ufunc = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}.get(
        join.name
    ) or getattr(np, f"bitwise_{join.name}")

    def run(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
        if not axes:
            return x
        wide = x.astype(np.float32) if x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2 else x
        start = np.asarray(_IDENTITIES[name](x.dtype)).astype(wide.dtype)
        with np.errstate(all="ignore"):
            found = ufunc.reduce(wide, axis=axes, dtype=wide.dtype, initial=start)
            return np.asarray(found).astype(x.dtype)

    def decompose(x: Value, *, axes: tuple[int, ...]) -> tuple[Value]:
        return (_by_halves(name, join, x, axes),)

    rules: dict[primitive.RuleKey, Any] = {  # Any: each key has its own kind of rule
        primitive.TYPE: families.type_from_signature(name, _signature, allowed, families.same_dtype(name)),
        primitive.REFERENCE: run,
        primitive.JVP: jvp,
        primitive.PLACE: place or places.every_letter_apart,
        primitive.PARTITION: _partition,
        primitive.TAIL: _tail_of(_IDENTITIES[name]),
        primitive.DECOMPOSE: decompose,
        primitive.COST: families.PerElement(),
        primitive.CASES: cases.always(allowed, *(_case(shape, axes, span) for shape, axes in _EXAMPLES)),
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    MONOIDS[name] = join
    return primitive.register(Primitive(name, _signature, rules))


def _partition(part: places.Part, x: Value) -> tuple[Value]:
    """The reduction of each part, gathered and reduced once more where no collective joins them."""
    axes = part.attrs["axes"]
    rank = max((-axis for axis in axes), default=0)
    names = families.letters(rank)
    split = [names[rank + a] for a in axes if part.count(names[rank + a]) > 1]
    if all(name in part.reduced for name in split):
        return (trace.bind1(part.op, x, axes=axes),)
    wide = e.convert_element_type(x, dtypes.float32) if _is_small_float(x.dtype) else x
    own = trace.bind1(part.op, wide, axes=axes)
    rows = view.expand_dims(own, (0,))
    for name in split:
        rows = part.gather(rows, name, 0)
    return (e.convert_element_type(trace.bind1(part.op, rows, axes=(-rows.ndim,)), x.dtype),)


def _tail_of(identity: places.Fill) -> Any:  # Any: a TAIL rule
    """TAIL of a reduction: what joins without a trace."""

    def rule(found: places.Factors, factors: Collection[str], attrs: Attrs) -> places.Tails:
        return places.tails_along(found, factors, attrs["axes"], identity)

    return rule


def _case(shape: ir.Shape, axes: tuple[int, ...], span: Span) -> Case:
    return Case((Sample(shape, span=span),), {"axes": axes}, "reduction")


def as_line(x: Value, axes: tuple[int, ...]) -> Value:
    """The reduced axes as one, behind all others."""
    rest = [d for d in range(x.ndim) if d - x.ndim not in axes]
    moved = view.transpose(x, [*rest, *(a + x.ndim for a in axes)])
    return view.reshape(moved, (*(x.shape[d] for d in rest), families.prod([x.shape[a] for a in axes])))


def _halves(x: Value) -> tuple[Value, Value, Value | None]:
    """First and second half of the last dimension, and the element that is left over."""
    half, is_odd = divmod(x.shape[-1], 2)
    low, high = view.slice_in_dim(x, 0, half, axis=-1), view.slice_in_dim(x, half, 2 * half, axis=-1)
    return low, high, view.slice_in_dim(x, 2 * half, None, axis=-1) if is_odd else None


def _neighbours(x: Value) -> tuple[Value, Value, Value | None]:
    """As `_halves`, of elements with an even and with an odd number: a device has both when it has a part."""
    pairs, is_odd = divmod(x.shape[-1], 2)
    even, odd = (view.slice_in_dim(x, i, 2 * pairs, stride=2, axis=-1) for i in (0, 1))
    return even, odd, view.slice_in_dim(x, 2 * pairs, None, axis=-1) if is_odd else None


def _with_rest(x: Value, rest: Value | None) -> Value:
    return x if rest is None else view.concatenate([x, rest], x.ndim - 1)


def _without_last(x: Value) -> Value:
    return view.reshape(x, x.shape[:-1])


def _is_small_float(dtype: np.dtype) -> bool:
    return dtype in dtypes.FLOATS and dtype.itemsize <= 2


def _by_halves(name: str, join: Primitive, x: Value, axes: tuple[int, ...]) -> Value:
    """A reduction as a tree of the operation on two elements."""
    if _is_small_float(x.dtype):
        wide = trace.bind1(primitive.by_name(name), e.convert_element_type(x, dtypes.float32), axes=axes)
        return e.convert_element_type(wide, x.dtype)
    line = as_line(x, axes)
    if line.shape[-1] == 0:
        return families.full(ArrayType(line.shape[:-1], x.dtype), _IDENTITIES[name](x.dtype))
    while line.shape[-1] > 1:
        low, high, rest = _halves(line)
        line = _with_rest(trace.bind1(join, low, high), rest)
    return _without_last(line)


# --- sum, product, extrema ------------------------------------------------------------------------

reduce_sum_p: Primitive = reduction(
    "reduce_sum",
    dtypes.NUMERIC,
    e.add_p,
    jvp=families.linear_jvp("reduce_sum"),
    place=places.every_letter("sum"),
    transpose=lambda ct, x, *, axes: (expand_reduced(ct, axes, x.shape),),
)


def _jvp_prod(
    primals: Sequence[Value],
    tangents: Sequence[Value | None],
    results: Sequence[Value],
    *,
    axes: tuple[int, ...],
) -> tuple[Value | None]:
    # Products of pairs (x, dx), so zeros need no care and the rule has derivatives of every order.
    (x,), (g,) = primals, tangents
    if g is None:
        return (None,)
    line, moved = as_line(x, axes), as_line(g, axes)
    if line.shape[-1] == 0:
        return (families.zeros(results[0].type),)
    while line.shape[-1] > 1:
        x_low, x_high, x_rest = _neighbours(line)
        g_low, g_high, g_rest = _neighbours(moved)
        left, right = bind_scalars(e.mul_p, g_low, x_high), bind_scalars(e.mul_p, x_low, g_high)
        line = _with_rest(bind_scalars(e.mul_p, x_low, x_high), x_rest)
        moved = _with_rest(bind_scalars(e.add_p, left, right), g_rest)
    return (_without_last(moved),)


reduce_prod_p: Primitive = reduction(
    "reduce_prod", dtypes.NUMERIC, e.mul_p, jvp=_jvp_prod, span=Span(-2.0, 2.0, (0.0,))
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


reduce_max_p: Primitive = reduction(
    "reduce_max", dtypes.ALL, e.max_p, jvp=_jvp_extremum, place=places.every_letter("max")
)
reduce_min_p: Primitive = reduction(
    "reduce_min", dtypes.ALL, e.min_p, jvp=_jvp_extremum, place=places.every_letter("min")
)


def _place_logical(reducer: places.Reducer) -> Any:  # Any: a PLACE rule
    """Booleans of several devices are joined by an extremum; bits of integers are gathered."""
    joined, alone = places.every_letter(reducer), places.every_letter_apart

    def rule(op: Primitive, in_types: places.Types, out_types: places.Types, attrs: Attrs) -> places.Factors:
        chosen = joined if in_types[0].dtype == dtypes.bool_ else alone
        found: places.Factors = chosen(op, in_types, out_types, attrs)
        return found

    return rule


reduce_and_p: Primitive = reduction("reduce_and", LOGICAL, e.and_p, place=_place_logical("min"))
reduce_or_p: Primitive = reduction("reduce_or", LOGICAL, e.or_p, place=_place_logical("max"))
reduce_xor_p: Primitive = reduction("reduce_xor", LOGICAL, e.xor_p)


def check_axes(name: str, axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes from 0 as increasing negative ones.

    Raises:
        ValueMismatchError: one does not exist, is negative, or occurs twice.
    """
    if any(not 0 <= axis < ndim for axis in axes):
        raise errors.ValueMismatchError(
            f"lax.{name}: an axis does not exist",
            got=f"axes {tuple(axes)} of an array of {ndim} dimensions",
            expected=f"axes from 0 to {ndim - 1}" if ndim else "no axes",
            fix="axes of lax functions are not negative; infini.numpy takes negative ones",
        )
    if len(set(axes)) != len(axes):
        raise errors.ValueMismatchError(f"lax.{name}: an axis occurs twice", got=str(tuple(axes)))
    return tuple(sorted(axis - ndim for axis in axes))


def _reduce(op: Primitive, operand: ArrayLike, axes: Sequence[int]) -> Value:
    x = trace.as_value(operand)
    negative = check_axes(op.name, axes, x.ndim)
    return trace.bind1(op, x, axes=negative)


def reduce_sum(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Sum over some axes. The small floats accumulate in float32."""
    return _reduce(reduce_sum_p, operand, axes)


def reduce_prod(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Product over some axes. The small floats are multiplied in float32."""
    return _reduce(reduce_prod_p, operand, axes)


def reduce_max(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Maximum over some axes; minus infinity, or the smallest integer, of nothing. NaN wins."""
    return _reduce(reduce_max_p, operand, axes)


def reduce_min(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Minimum over some axes; infinity, or the largest integer, of nothing. NaN wins."""
    return _reduce(reduce_min_p, operand, axes)


def reduce_and(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Bitwise "and" of booleans or integers over some axes."""
    return _reduce(reduce_and_p, operand, axes)


def reduce_or(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Bitwise "or" of booleans or integers over some axes."""
    return _reduce(reduce_or_p, operand, axes)


def reduce_xor(operand: ArrayLike, axes: Sequence[int]) -> Value:
    """Bitwise "exclusive or" of booleans or integers over some axes."""
    return _reduce(reduce_xor_p, operand, axes)
