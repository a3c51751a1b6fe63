"""Running sums and products, differences, and the trapezoidal rule, with NumPy's names."""

from __future__ import annotations

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Value
from infini.lax import cumulative, elementwise as e, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison, reductions
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, inexact_operands, operands


def cumsum(a: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, out: None = None) -> Value:
    """Running sums along an axis (of the flattened array when None), as `numpy.cumsum`.

    Booleans are counted in int32; other dtypes stay, and 16-bit floats are summed in float32.
    """
    _axes.no_out("cumsum", out)
    return _running("cumsum", cumulative.cumsum_p, as_value("cumsum", a), axis, dtype)


def cumprod(a: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, out: None = None) -> Value:
    """Running products along an axis (of the flattened array when None), as `numpy.cumprod`."""
    _axes.no_out("cumprod", out)
    return _running("cumprod", cumulative.cumprod_p, as_value("cumprod", a), axis, dtype)


def nancumsum(
    a: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, out: None = None
) -> Value:
    """`cumsum` in which NaN counts as 0."""
    _axes.no_out("nancumsum", out)
    x = _without_nan(as_value("nancumsum", a), 0)
    return _running("nancumsum", cumulative.cumsum_p, x, axis, dtype)


def nancumprod(
    a: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, out: None = None
) -> Value:
    """`cumprod` in which NaN counts as 1."""
    _axes.no_out("nancumprod", out)
    x = _without_nan(as_value("nancumprod", a), 1)
    return _running("nancumprod", cumulative.cumprod_p, x, axis, dtype)


def _without_nan(x: Value, number: int) -> Value:
    if not dtypes.is_inexact(x.dtype):
        return x
    return trace.bind1(e.select_n_p, comparison.isnan(x), x, convert(number, x.dtype))


def _running(
    name: str, op: primitive.Primitive, x: Value, axis: int | None, dtype: DTypeLike | None
) -> Value:
    target = x.dtype if dtype is None else dtypes.canonical(dtype)
    target = dtypes.int32 if target == dtypes.bool_ else target
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one(name, axis, x.ndim)
    return trace.bind1(op, convert(x, target), axis=place - x.ndim, reverse=False)


def cumulative_sum(
    x: ArrayLike,
    /,
    *,
    axis: int | None = None,
    dtype: DTypeLike | None = None,
    include_initial: bool = False,
) -> Value:
    """Running sums along an axis, as the array API's `cumulative_sum`.

    Args:
        x: array with at least one dimension.
        axis: axis to run along; may be left out of one dimension.
        dtype: dtype of the result; small integers become 32 bits wide when absent.
        include_initial: whether the result begins with 0, and so is longer by one.

    Raises:
        ValueMismatchError: the array has no dimension, or several and no axis is given.
    """
    return _cumulative("cumulative_sum", cumulative.cumsum_p, x, axis, dtype, 0 if include_initial else None)


def cumulative_prod(
    x: ArrayLike,
    /,
    *,
    axis: int | None = None,
    dtype: DTypeLike | None = None,
    include_initial: bool = False,
) -> Value:
    """Running products along an axis, beginning with 1 if asked; arguments as those of `cumulative_sum`."""
    return _cumulative(
        "cumulative_prod", cumulative.cumprod_p, x, axis, dtype, 1 if include_initial else None
    )


def _cumulative(
    name: str,
    op: primitive.Primitive,
    x: ArrayLike,
    axis: int | None,
    dtype: DTypeLike | None,
    first: int | None,
) -> Value:
    value = as_value(name, x)
    if value.ndim == 0 or (axis is None and value.ndim != 1):
        raise errors.ValueMismatchError(
            f"{name} needs an axis", got=str(value.type), fix="pass axis=, the axis to run along"
        )
    place = _axes.one(name, 0 if axis is None else axis, value.ndim)
    target = reductions.widened(value.dtype) if dtype is None else dtypes.canonical(dtype)
    result = _running(name, op, value, place, target)
    if first is None:
        return result
    edge = tuple(1 if d == place else n for d, n in enumerate(result.shape))
    return view.concatenate([broadcast_to(convert(first, result.dtype), edge), result], place)


# --- differences --------------------------------------------------------------------------------


def diff(
    a: ArrayLike,
    n: int = 1,
    axis: int = -1,
    prepend: ArrayLike | None = None,
    append: ArrayLike | None = None,
) -> Value:
    """Differences of neighbours along an axis, taken `n` times, as `numpy.diff`.

    Args:
        a: array; of booleans it is told where neighbours differ.
        n: how often, at least 0.
        axis: axis to go along.
        prepend: what to put before `a` first; a number, or an array that fits.
        append: what to put behind it.

    Raises:
        ValueMismatchError: `n` is negative, or `a` has no dimension.
    """
    x = as_value("diff", a)
    if n < 0:
        raise errors.ValueMismatchError("diff: n is negative", got=str(n), expected="at least 0")
    place = _axes.one("diff", axis, x.ndim)
    given = [part for part in (prepend, x, append) if part is not None]
    if len(given) > 1:
        parts = operands("diff", *given)
        edge = tuple(1 if d == place else size for d, size in enumerate(x.shape))
        x = view.concatenate([broadcast_to(p, edge) if p.ndim == 0 else p for p in parts], place)
    op = e.ne_p if x.dtype == dtypes.bool_ else e.sub_p
    for _ in range(min(n, x.shape[place])):
        later = view.slice_in_dim(x, 1, None, axis=place)
        x = trace.bind1(op, later, view.slice_in_dim(x, 0, later.shape[place], axis=place))
    return x


def ediff1d(ary: ArrayLike, to_end: ArrayLike | None = None, to_begin: ArrayLike | None = None) -> Value:
    """Differences of neighbours of the flattened array, as `numpy.ediff1d`.

    Args:
        ary: array.
        to_end: what to put behind them, in the dtype of `ary`.
        to_begin: what to put before them.
    """
    x = as_value("ediff1d", ary)
    line = diff(view.reshape(x, (x.size,)))
    parts = [
        line if part is None else _flat(convert(as_value("ediff1d", part), line.dtype))
        for part in ([to_begin] if to_begin is not None else [])
        + [None]
        + ([to_end] if to_end is not None else [])
    ]
    return parts[0] if len(parts) == 1 else view.concatenate(parts, 0)


def _flat(x: Value) -> Value:
    return view.reshape(x, (x.size,))


def trapezoid(y: ArrayLike, x: ArrayLike | None = None, dx: ArrayLike = 1.0, axis: int = -1) -> Value:
    """Integral along an axis by the trapezoidal rule, as `numpy.trapezoid`.

    Args:
        y: values.
        x: places of the values: of the shape of `y`, or a vector along the axis.
        dx: distance of the places where `x` is absent.
        axis: axis to integrate along.
    """
    if x is None:
        values, step = inexact_operands("trapezoid", y, dx)
        place = _axes.one("trapezoid", axis, values.ndim)
    else:
        values, places = inexact_operands("trapezoid", y, x)
        place = _axes.one("trapezoid", axis, values.ndim)
        step = diff(places, axis=place if places.ndim > 1 else -1)
        if places.ndim == 1:
            step = view.broadcast_in_dim(
                step, tuple(step.size if d == place else 1 for d in range(values.ndim)), (place,)
            )
    before = view.slice_in_dim(values, 0, max(values.shape[place] - 1, 0), axis=place)
    after = view.slice_in_dim(values, min(1, values.shape[place]), None, axis=place)
    areas = bind_scalars(e.mul_p, bind_scalars(e.add_p, after, before), step)
    return bind_scalars(e.mul_p, reductions.sum(areas, place), 0.5)
