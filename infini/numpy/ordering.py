"""Sorting and searching, with NumPy's names. NaN comes last; every sort is stable."""

from __future__ import annotations

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, sorting, view
from infini.numpy import _axes, reductions
from infini.numpy._promotion import ArrayLike, as_value, operands, with_weak


def sort(a: ArrayLike, axis: int | None = -1, *, stable: bool = True, descending: bool = False) -> Value:
    """Sorted elements along an axis (of the flattened array when None), as `numpy.sort`."""
    x = as_value("sort", a)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one("sort", axis, x.ndim)
    ordered = sorting.sort(x, place)
    return view.rev(ordered, (place,)) if descending else ordered


def argsort(a: ArrayLike, axis: int | None = -1, *, stable: bool = True, descending: bool = False) -> Value:
    """Positions that sort an axis (of the flattened array when None), int32, as `numpy.argsort`; ties keep
    their order."""
    x = with_weak(as_value("argsort", a), False)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one("argsort", axis, x.ndim)
    if descending:
        # Reversed input and output: equal elements keep their order and NaN comes first, as in JAX.
        positions = _positions(x, place)
        _, order = sorting.sort([view.rev(x, (place,)), view.rev(positions, (place,))], place)
        return view.rev(order, (place,))
    _, order = sorting.sort([x, _positions(x, place)], place)
    return order


def _positions(x: Value, axis: int) -> Value:
    return view.broadcasted_iota(dtypes.int32, x.shape, axis)


def searchsorted(a: ArrayLike, v: ArrayLike, side: str = "left") -> Value:
    """Where elements of `v` would be inserted into sorted `a` to keep it sorted, int32, as
    `numpy.searchsorted`.

    Compares every pair, so it takes `a.size * v.size` steps and no loop.

    Raises:
        ValueMismatchError: `a` is no vector, or `side` is neither left nor right.
    """
    line, values = operands("searchsorted", a, v)
    if line.ndim != 1 or side not in ("left", "right"):
        raise errors.ValueMismatchError(
            "searchsorted needs a sorted vector and side 'left' or 'right'", got=f"{line.type}, side {side!r}"
        )
    op = e.lt_p if side == "left" else e.le_p
    is_before = trace.bind1(op, line, view.expand_dims(values, (values.ndim,)))
    return reductions.sum(is_before, -1)
