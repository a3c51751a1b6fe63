"""Running sums, products, extrema and log-sum-exps along one axis, from either end.

Each is the prefix scan of an associative operation. Backends compute them in one pass; derivatives, and the
definition by other operations, are a tree of pairs with a logarithmic number of levels (W. D. Hillis and
G. L. Steele, "Data parallel algorithms", 1986). The small floats accumulate in float32, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, ir, primitive, trace
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, neighbours, places, reduction, view
from infini.lax.cases import Case, Sample, Span
from infini.lax.families import bind_scalars

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
Parts = tuple[Value, ...]
Combine = Callable[[Parts, Parts], Parts]


def _signature(*, axis: int, reverse: bool) -> Signature:
    names = families.letters(-axis)
    return Signature((names,), (names,))


# --- prefix scans by a tree ---------------------------------------------------------------------


def prefix_scan(combine: Combine, parts: Parts, axis: int, *, reverse: bool = False) -> Parts:
    """Inclusive scan of an associative operation on tuples of arrays.

    Args:
        combine: the operation on two tuples; it works element by element.
        parts: the tuple to scan.
        axis: negative axis to scan along.
        reverse: whether to start from the end.
    """
    if reverse:
        flipped = tuple(_flip(x, axis) for x in parts)
        return tuple(_flip(y, axis) for y in prefix_scan(combine, flipped, axis))
    count = parts[0].shape[axis]
    if count < 2:
        return parts
    # Scans of pairs are every second result; the others take one more element in.
    odd = prefix_scan(
        combine,
        combine(_strided(parts, 0, count - 1, axis), _strided(parts, 1, count, axis)),
        axis,
    )
    before = _cut(odd, 0, (count - 1) // 2, axis)
    even = _cut(parts, 0, 1, axis)
    if count > 2:
        later = combine(before, _strided(parts, 2, count, axis))
        even = tuple(view.concatenate([x, y], x.ndim + axis) for x, y in zip(even, later, strict=True))
    return tuple(_interleaved(x, y, count, axis) for x, y in zip(even, odd, strict=True))


def _flip(x: Value, axis: int) -> Value:
    return view.rev(x, (x.ndim + axis,))


def _strided(parts: Parts, start: int, stop: int, axis: int) -> Parts:
    return tuple(view.slice_in_dim(x, start, stop, stride=2, axis=axis) for x in parts)


def _cut(parts: Parts, start: int, stop: int, axis: int) -> Parts:
    return tuple(view.slice_in_dim(x, start, stop, axis=axis) for x in parts)


def _interleaved(even: Value, odd: Value, count: int, axis: int) -> Value:
    """Elements of two arrays in turn; the first has as many as the second, or one more."""
    if even.shape[axis] > odd.shape[axis]:
        last = view.slice_in_dim(even, even.shape[axis] - 1, None, axis=axis)
        odd = view.concatenate([odd, last], odd.ndim + axis)
    place = even.ndim + axis
    pairs = [view.expand_dims(x, (place + 1,)) for x in (even, odd)]
    shape = list(even.shape)
    shape[axis] *= 2
    both = view.reshape(view.concatenate(pairs, place + 1), shape)
    return both if shape[axis] == count else view.slice_in_dim(both, 0, count, axis=axis)


# --- declaring one ------------------------------------------------------------------------------


# Shape, axis, direction, and whether finite differences are worth their time.
_EXAMPLES: Final[tuple[tuple[ir.Shape, int, bool, bool], ...]] = (
    ((3, 5), -1, False, True),
    ((2, 3, 2), -2, True, False),
    ((1, 4), -2, False, False),
    ((19,), -1, False, False),
    ((3, 5), -1, True, False),
    ((4, 6), -2, False, False),
    ((4, 1), -1, True, False),
)


def _cumulative(
    name: str,
    allowed: Collection[np.dtype],
    accumulate: Callable[..., Any],
    combine: Combine,
    *,
    jvp: Any,
    identity: places.Fill,
    transpose: Any = None,
    span: Span = cases.ANYTHING,
    num_examples: int = len(_EXAMPLES),
) -> Primitive:
    """Declare the scan of an operation.

    Args:
        name: name of the operation.
        allowed: dtypes it takes.
        accumulate: NumPy function `(x, axis)` that scans.
        combine: the operation on tuples of one array.
        jvp: JVP rule.
        identity: what it starts from.
        transpose: TRANSPOSE rule of a linear one.
        span: numbers for the oracle tests.
        num_examples: how many examples they try.
    """

    def run(x: np.ndarray, *, axis: int, reverse: bool) -> np.ndarray:
        wide = x.astype(np.float32) if _is_small_float(x.dtype) else x
        with np.errstate(all="ignore"):
            if reverse:
                wide = np.flip(wide, axis)
            found = np.asarray(accumulate(wide, axis))
            return (np.flip(found, axis) if reverse else found).astype(x.dtype)

    def decompose(x: Value, *, axis: int, reverse: bool) -> tuple[Value]:
        if _is_small_float(x.dtype):
            wide = trace.bind1(
                primitive.by_name(name), e.convert_element_type(x, dtypes.float32), axis=axis, reverse=reverse
            )
            return (e.convert_element_type(wide, x.dtype),)
        (y,) = prefix_scan(combine, (x,), axis, reverse=reverse)
        return (y,)

    def partition(part: places.Part, x: Value) -> tuple[Value]:
        return (_over_parts(part, combine, x, **part.attrs),)

    rules: dict[primitive.RuleKey, Any] = {  # Any: each key has its own kind of rule
        primitive.TYPE: families.type_from_signature(name, _signature, allowed, families.same_dtype(name)),
        primitive.REFERENCE: run,
        primitive.JVP: jvp,
        primitive.PLACE: places.every_dimension,
        primitive.PARTITION: partition,
        primitive.TAIL: _tail_of(identity),
        primitive.DECOMPOSE: decompose,
        primitive.COST: families.PerElement(),
        primitive.CASES: cases.always(
            allowed, *(_case(*example, span) for example in _EXAMPLES[:num_examples])
        ),
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    return primitive.register(Primitive(name, _signature, rules))


def _tail_of(identity: places.Fill) -> Any:  # Any: a TAIL rule
    """TAIL of a scan: what comes after the end matters to who comes from there."""

    def rule(found: places.Factors, factors: Collection[str], attrs: ir.Attrs) -> places.Tails:
        return places.tails_along(found, factors, (attrs["axis"],), identity if attrs["reverse"] else None)

    return rule


def _over_parts(part: places.Part, combine: Combine, x: Value, *, axis: int, reverse: bool) -> Value:
    """The scan of one device's part: its own, with that of the parts before it joined in front.

    What parts hand on is one row each, so all rows are gathered and every device scans them itself.
    """
    factor = f"d{x.ndim + axis}"
    if part.count(factor) == 1:
        return trace.bind1(part.op, x, axis=axis, reverse=reverse)
    wide = e.convert_element_type(x, dtypes.float32) if _is_small_float(x.dtype) else x
    own = trace.bind1(part.op, wide, axis=axis, reverse=reverse)
    at = x.ndim + axis
    last = neighbours.cut(own, at, 0 if reverse else own.shape[at] - 1, 1)
    totals = trace.bind1(part.op, part.gather(last, factor, at), axis=axis, reverse=reverse)
    table = [i + 1 if reverse else i - 1 for i in range(part.count(factor))]  # starts are clamped
    before = neighbours.cut(totals, at, neighbours.by_device(part, factor, table), 1)
    (joined,) = combine((families.broadcast_to(before, own.shape),), (own,))
    edge = part.count(factor) - 1 if reverse else 0
    is_edge = bind_scalars(e.eq_p, part.index(factor), edge)
    return e.convert_element_type(trace.bind1(e.select_n_p, is_edge, joined, own), x.dtype)


def _case(shape: ir.Shape, axis: int, reverse: bool, is_smooth: bool, span: Span) -> Case:
    return Case((Sample(shape, span=span),), {"axis": axis, "reverse": reverse}, "reduction", is_smooth)


def _is_small_float(dtype: np.dtype) -> bool:
    return dtype in dtypes.FLOATS and dtype.itemsize <= 2


def _jvp_of(dual: Combine) -> Any:  # Any: a JVP rule
    """JVP by scanning pairs of an element and its tangent. Right where elements are zero or tie, and of
    every order, because it is made of ordinary operations."""

    def rule(
        primals: Sequence[Value],
        tangents: Sequence[Value | None],
        results: Sequence[Value],
        *,
        axis: int,
        reverse: bool,
    ) -> tuple[Value | None]:
        (x,), (g,) = primals, tangents
        return (None,) if g is None else (prefix_scan(dual, (x, g), axis, reverse=reverse)[1],)

    return rule


def _dual(join: Primitive) -> Combine:
    """The operation on pairs of an element and its tangent."""

    def combine(left: Parts, right: Parts) -> Parts:
        primals, moved = (left[0], right[0]), (left[1], right[1])
        out = trace.bind1(join, *primals)
        (tangent,) = join.rule(primitive.JVP)(primals, moved, (out,))
        return out, tangent

    return combine


def _join(join: Primitive) -> Combine:
    return lambda left, right: (trace.bind1(join, left[0], right[0]),)


def _ufunc(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda x, axis: ufunc.accumulate(x, axis=axis, dtype=x.dtype)


cumsum_p: Primitive = _cumulative(
    "cumsum",
    dtypes.NUMERIC,
    _ufunc(np.add),
    _join(e.add_p),
    jvp=families.linear_jvp("cumsum"),
    identity=places.zero,
    transpose=lambda ct, x, *, axis, reverse: (trace.bind1(cumsum_p, ct, axis=axis, reverse=not reverse),),
)
cumprod_p: Primitive = _cumulative(
    "cumprod",
    dtypes.NUMERIC,
    _ufunc(np.multiply),
    _join(e.mul_p),
    jvp=_jvp_of(_dual(e.mul_p)),
    identity=lambda dtype: 1,
    span=Span(-2.0, 2.0, (1.5, 0.0)),
)
cummax_p: Primitive = _cumulative(
    "cummax",
    dtypes.NUMERIC,
    _ufunc(np.maximum),
    _join(e.max_p),
    jvp=_jvp_of(_dual(e.max_p)),
    identity=reduction.lowest,
)
cummin_p: Primitive = _cumulative(
    "cummin",
    dtypes.NUMERIC,
    _ufunc(np.minimum),
    _join(e.min_p),
    jvp=_jvp_of(_dual(e.min_p)),
    identity=reduction.highest,
)


# --- log-sum-exp ----------------------------------------------------------------------------------


def _offset(x: Value, y: Value) -> Value:
    """`x - y`, and 0 where they are equal, infinities included."""
    return bind_scalars(
        e.select_n_p, bind_scalars(e.eq_p, x, y), bind_scalars(e.sub_p, x, y), families.like(0.0, x)
    )


def _log_add_exp(left: Parts, right: Parts) -> Parts:
    (x,), (y,) = left, right
    if x.dtype in dtypes.COMPLEX:
        return (_complex_log_add_exp(x, y),)
    large, small = trace.bind1(e.max_p, x, y), trace.bind1(e.min_p, x, y)
    return (bind_scalars(e.add_p, large, e.log1p(e.exp(_offset(small, large)))),)


def _complex_log_add_exp(x: Value, y: Value) -> Value:
    real = primitive.by_name("real")
    largest = trace.bind1(e.max_p, trace.bind1(real, x), trace.bind1(real, y))
    finite = bind_scalars(e.select_n_p, e.is_finite(largest), families.like(0.0, largest), largest)
    shift = e.convert_element_type(finite, x.dtype)
    total = bind_scalars(
        e.add_p, e.exp(bind_scalars(e.sub_p, x, shift)), e.exp(bind_scalars(e.sub_p, y, shift))
    )
    return bind_scalars(e.add_p, e.log(total), shift)


def _dual_log_add_exp(left: Parts, right: Parts) -> Parts:
    (x, dx), (y, dy) = left, right
    (out,) = _log_add_exp((x,), (y,))
    weighed = [bind_scalars(e.mul_p, d, e.exp(_offset(v, out))) for v, d in ((x, dx), (y, dy))]
    return out, bind_scalars(e.add_p, *weighed)


def _accumulate_log_add_exp(x: np.ndarray, axis: int) -> np.ndarray:
    if x.dtype not in dtypes.COMPLEX:
        return np.asarray(np.logaddexp.accumulate(x, axis=axis, dtype=x.dtype))
    largest = np.maximum.accumulate(x.real, axis=axis)
    rows = [np.take(x, range(min(1, x.shape[axis])), axis)]  # the first element stays as it is
    for i in range(1, x.shape[axis]):
        shift = np.take(largest, [i], axis)
        total = np.sum(np.exp(np.take(x, range(i + 1), axis) - shift), axis, keepdims=True)
        rows.append(np.log(total) + shift)
    return np.concatenate(rows, axis)


cumlogsumexp_p: Primitive = _cumulative(
    "cumlogsumexp",
    dtypes.INEXACT,
    _accumulate_log_add_exp,
    _log_add_exp,
    jvp=_jvp_of(_dual_log_add_exp),
    identity=lambda dtype: -np.inf,
    span=Span(-8.0, 8.0),
    num_examples=3,  # its derivatives are many equations
)
NAMES: Final = frozenset({"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"})


# --- functions ------------------------------------------------------------------------------------


def _run(op: Primitive, operand: ArrayLike, axis: int, reverse: bool) -> Value:
    x = trace.as_value(operand)
    (negative,) = reduction.check_axes(op.name, (axis,), x.ndim)
    return trace.bind1(op, x, axis=negative, reverse=bool(reverse))


def cumsum(operand: ArrayLike, axis: int = 0, reverse: bool = False) -> Value:
    """Running sums along an axis.

    Args:
        operand: array of numbers; the small floats accumulate in float32.
        axis: axis to run along, not negative.
        reverse: whether to run from the end to the start.

    Raises:
        ValueMismatchError: the axis does not exist.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.cumsum(inp.array([1, 2, 3]))
        Array([1, 3, 6], dtype=int32)
    """
    return _run(cumsum_p, operand, axis, reverse)


def cumprod(operand: ArrayLike, axis: int = 0, reverse: bool = False) -> Value:
    """Running products along an axis; arguments as those of `cumsum`."""
    return _run(cumprod_p, operand, axis, reverse)


def cummax(operand: ArrayLike, axis: int = 0, reverse: bool = False) -> Value:
    """Running maxima along an axis; NaN wins. Arguments as those of `cumsum`."""
    return _run(cummax_p, operand, axis, reverse)


def cummin(operand: ArrayLike, axis: int = 0, reverse: bool = False) -> Value:
    """Running minima along an axis; NaN wins. Arguments as those of `cumsum`."""
    return _run(cummin_p, operand, axis, reverse)


def cumlogsumexp(operand: ArrayLike, axis: int = 0, reverse: bool = False) -> Value:
    """Running `log(sum(exp(x)))` along an axis, of inexact numbers; arguments as those of `cumsum`."""
    return _run(cumlogsumexp_p, operand, axis, reverse)
