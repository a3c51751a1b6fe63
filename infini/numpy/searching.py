"""Places in sorted arrays, and counts of numbers, with NumPy's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e, loops, sorting, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison, creation, ordering, reductions, updates
from infini.numpy._promotion import ArrayLike, as_value, convert, operands, with_weak

_FEW: Final = 32  # sorted elements up to which every one is compared

# --- places ---------------------------------------------------------------------------------------


def searchsorted(
    a: ArrayLike,
    v: ArrayLike,
    side: str = "left",
    sorter: ArrayLike | None = None,
    *,
    method: str = "scan",
) -> Value:
    """Where elements of `v` would be inserted into sorted `a` to keep it sorted, int32, as
    `numpy.searchsorted`; NaN is larger than every number.

    Args:
        a: sorted vector.
        v: elements to find a place for.
        side: whether equal elements stand right (`left`) or left (`right`) of the place.
        sorter: positions that sort `a`, where it is not sorted.
        method: `scan` is a binary search in a loop, `scan_unrolled` one without, `sort` sorts all elements
            together, `compare_all` compares every pair; results are the same.

    Raises:
        ValueMismatchError: `a` is no vector, or `side` or `method` is unknown.
    """
    if side not in ("left", "right"):
        raise errors.ValueMismatchError(
            "searchsorted: unknown side", got=repr(side), expected="'left' or 'right'"
        )
    if method not in _SEARCHES:
        raise errors.ValueMismatchError(
            "searchsorted: unknown method", got=repr(method), expected=", ".join(sorted(_SEARCHES))
        )
    line, values = operands("searchsorted", a, v)
    if line.ndim != 1:
        raise errors.ValueMismatchError("searchsorted needs a sorted vector", got=str(line.type))
    if sorter is not None:
        line = sorting.take_last(line, convert(as_value("searchsorted", sorter), dtypes.int32))
    line, values = with_weak(line, False), with_weak(values, False)
    if line.size == 0 or values.size == 0:
        return creation.zeros(values.shape, dtypes.int32)
    search = _compare_all if method == "scan" and line.size <= _FEW else _SEARCHES[method]
    return search(line, values, side == "left")


def _is_before(x: Value, y: Value, is_left: bool) -> Value:
    """Whether elements of the sorted vector stand before the place of others."""
    if x.dtype not in dtypes.INEXACT:
        return bind_scalars(e.lt_p if is_left else e.le_p, x, y)
    y_nan = comparison.isnan(y)
    if is_left:
        nan_last = bind_scalars(e.and_p, y_nan, comparison.logical_not(comparison.isnan(x)))
        return bind_scalars(e.or_p, bind_scalars(e.lt_p, x, y), nan_last)
    return bind_scalars(e.or_p, bind_scalars(e.le_p, x, y), y_nan)


def _compare_all(line: Value, values: Value, is_left: bool) -> Value:
    pairs = _is_before(line, view.expand_dims(values, (values.ndim,)), is_left)
    return reductions.sum(pairs, -1)


def _step(line: Value, values: Value, is_left: bool, low: Value, high: Value) -> tuple[Value, Value]:
    """Halve the range in which each place lies."""
    total = bind_scalars(e.add_p, low, high)
    middle = bind_scalars(e.shift_right_logical_p, total, 1)
    at = bind_scalars(e.min_p, middle, line.size - 1)
    found = view.reshape(sorting.take_last(line, view.reshape(at, (at.size,))), values.shape)
    goes_right = bind_scalars(e.and_p, _is_before(found, values, is_left), bind_scalars(e.lt_p, low, high))
    next_low = bind_scalars(e.select_n_p, goes_right, low, bind_scalars(e.add_p, middle, 1))
    return next_low, bind_scalars(e.select_n_p, goes_right, middle, high)


def _bounds(line: Value, values: Value) -> tuple[Value, Value]:
    low, high = (convert(n, dtypes.int32) for n in (0, line.size))
    return broadcast_to(low, values.shape), broadcast_to(high, values.shape)


def _scan(line: Value, values: Value, is_left: bool) -> Value:
    found = loops.fori_loop(
        0,
        line.size.bit_length(),
        lambda _, bounds: _step(line, values, is_left, *bounds),
        _bounds(line, values),
    )
    result: Value = found[0]
    return result


def _scan_unrolled(line: Value, values: Value, is_left: bool) -> Value:
    low, high = _bounds(line, values)
    for _ in range(line.size.bit_length()):
        low, high = _step(line, values, is_left, low, high)
    return low


def _by_sorting(line: Value, values: Value, is_left: bool) -> Value:
    """The rank among all elements, less that among the values themselves."""
    flat = view.reshape(values, (values.size,))
    together = view.concatenate([flat, line] if is_left else [line, flat], 0)
    ranks = _inverse(ordering.argsort(together))
    first = 0 if is_left else line.size
    mine = view.slice_in_dim(ranks, first, first + flat.size)
    among = _inverse(ordering.argsort(flat))
    return view.reshape(bind_scalars(e.sub_p, mine, among), values.shape)


def _inverse(order: Value) -> Value:
    """The inverse of a permutation."""
    line = view.iota(dtypes.int32, order.size)
    return updates.IndexUpdateHelper(line)[order].set(line)


_SEARCHES: Final[dict[str, Callable[[Value, Value, bool], Value]]] = {
    "compare_all": _compare_all,
    "scan": _scan,
    "scan_unrolled": _scan_unrolled,
    "sort": _by_sorting,
}


def digitize(x: ArrayLike, bins: ArrayLike, right: bool = False, *, method: str | None = None) -> Value:
    """In which bin each element lies, int32, as `numpy.digitize`.

    Args:
        x: elements.
        bins: edges, rising or falling.
        right: whether a bin includes its right edge rather than its left.
        method: as that of `searchsorted`.

    Raises:
        ValueMismatchError: `bins` is no vector.
    """
    edges = as_value("digitize", bins)
    if edges.ndim != 1:
        raise errors.ValueMismatchError("digitize: bins has to be a vector", got=str(edges.type))
    value = as_value("digitize", x)
    if edges.size == 0:
        return creation.zeros(value.shape, dtypes.int32)
    how = "scan" if method is None else method
    rising = searchsorted(edges, value, "left" if right else "right", method=how)
    falling = searchsorted(view.rev(edges, (0,)), value, "left" if right else "right", method=how)
    first, last = view.slice_in_dim(edges, 0, 1), view.slice_in_dim(edges, edges.size - 1, None)
    rises = view.reshape(bind_scalars(e.ge_p, last, first), ())
    return bind_scalars(e.select_n_p, rises, bind_scalars(e.sub_p, edges.size, falling), rising)


# --- counts ---------------------------------------------------------------------------------------


def bincount(
    x: ArrayLike, weights: ArrayLike | None = None, minlength: int = 0, *, length: int | None = None
) -> Value:
    """How often each number from 0 occurs, as `numpy.bincount`.

    Args:
        x: vector of integers; negative ones count as 0.
        weights: what each element counts; 1 when absent.
        minlength: least length of the result.
        length: length of the result; larger elements are left out. Needed while tracing.

    Returns:
        int32 counts, or sums of weights.

    Raises:
        TypeMismatchError: `x` is no array of integers.
        ValueMismatchError: it is no vector, or the weights do not fit.
        ConcretizationError: `x` is being traced and `length` is absent.
    """
    value = as_value("bincount", x)
    if value.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError("bincount takes integers", got=str(value.type))
    if value.ndim != 1:
        raise errors.ValueMismatchError("bincount takes a vector", got=str(value.type))
    places = with_weak(bind_scalars(e.max_p, value, 0), False)
    if length is None:
        length = max(
            int(minlength),
            (_axes.known_size("bincount", reductions.max(places), "length") + 1) if value.size else 0,
        )
    if weights is None:
        ones = broadcast_to(convert(1, dtypes.int32), value.shape)
    else:
        ones = with_weak(as_value("bincount", weights), False)
        if ones.shape != value.shape:
            raise errors.ValueMismatchError(
                "bincount: weights do not fit", got=f"{value.type} and {ones.type}", expected="one shape"
            )
    return summed(places, ones, length)


def summed(places: Value, weights: Value, length: int) -> Value:
    """Sums of weights by place; places outside are left out."""
    zeros = broadcast_to(convert(0, weights.dtype), (length,))
    if places.size == 0 or length == 0:
        return zeros
    return updates.IndexUpdateHelper(zeros)[places].add(weights, mode="drop")
