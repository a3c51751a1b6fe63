"""The LU decomposition with row exchanges.

The operation takes and gives matrices by columns, as LAPACK keeps them: `x[j, i]` is row i, column j. What
turns them round is an ordinary transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, loops, places, sorting
from infini.lax.cases import Case, Sample
from infini.lax.linalg import matrices as m, triangular

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _type(x: ArrayType) -> tuple[ArrayType, ...]:
    m.check_dtype("lu", (x,))
    *loop, n, rows = x.shape
    return (
        x,
        ArrayType((*loop, min(rows, n)), dtypes.int32),
        ArrayType((*loop, rows), dtypes.int32),
    )


def _reference(x: np.ndarray) -> list[np.ndarray]:
    return m.each(_factors, x)


def _factors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = np.array(x.T)
    num_rows, num_columns = a.shape
    pivots = np.zeros(min(a.shape), np.int32)
    order = np.arange(num_rows, dtype=np.int32)
    size = np.abs(a.real) + np.abs(a.imag)
    for k in range(len(pivots)):
        size = np.abs(a.real) + np.abs(a.imag)
        pivots[k] = p = k + int(np.argmax(size[k:, k]))
        a[[k, p]], order[[k, p]] = a[[p, k]], order[[p, k]]
        if a[k, k] != 0:
            a[k + 1 :, k] /= a[k, k]
        a[k + 1 :, k + 1 : num_columns] -= np.outer(a[k + 1 :, k], a[k, k + 1 :])
    return np.ascontiguousarray(a.T), pivots, order


def _jvp(primals: Any, tangents: Any, results: Any) -> tuple[Value, None, None]:  # Any: sequences of values
    # With A[order] = L U: L^-1 dA[order] U^-1 is strictly lower (from dL) plus upper (from dU). Where A is
    # not square, L is filled up with the identity on the right, or U below.
    factors, _, order = results
    packed, change = m.turned(factors), m.turned(tangents[0])
    num_rows, num_columns = packed.shape[-2:]
    change = _rows_in(change, order)
    lower = (
        m.strictly_lower(packed) if num_rows <= num_columns else _widened(m.strictly_lower(packed), num_rows)
    )
    lower = m.cut(lower, num_rows, num_rows)
    lower = e.add(lower, families.broadcast_to(m.identity(num_rows, packed.dtype), lower.shape))
    upper = _upper(packed)
    inner = triangular.solve(lower, change, is_left=True, is_lower=True, is_unit=True)
    inner = triangular.solve(upper, inner, is_left=False, is_lower=False)
    moved = e.add(m.product(lower, m.strictly_lower(inner)), m.product(m.upper(inner), upper))
    return m.turned(moved), None, None


def _widened(x: Value, num_columns: int) -> Value:
    """Columns of zeros added on the right."""
    extra = families.zeros(ArrayType((*x.shape[:-1], num_columns - x.shape[-1]), x.dtype))
    return trace.bind1(primitive.by_name("concatenate"), x, extra, axis=-1)


def _upper(packed: Value) -> Value:
    """The factor U as a square matrix, with ones where A has no rows for it."""
    num_rows, num_columns = packed.shape[-2:]
    upper = m.upper(packed)
    if num_rows >= num_columns:
        return m.cut(upper, num_columns, num_columns)
    extra = families.zeros(ArrayType((*packed.shape[:-2], num_columns - num_rows, num_columns), packed.dtype))
    whole = trace.bind1(primitive.by_name("concatenate"), upper, extra, axis=-2)
    rows, columns = m.places(num_columns, num_columns)
    is_added = e.bitwise_and(e.eq(rows, columns), e.ge(rows, num_rows))
    ones = families.full(ArrayType(whole.shape, packed.dtype), 1)
    return trace.bind1(primitive.by_name("select_n"), is_added, whole, ones)


def _rows_in(x: Value, order: Value) -> Value:
    """Rows in an order that each matrix has for itself."""
    by_column = m.turned(x)
    wide = families.broadcast_to(m.rows(order), by_column.shape)
    return m.turned(sorting.take_last(by_column, wide))


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations of Gaussian elimination, the leading terms."""
    (x,) = types
    short, long = sorted(x.shape[-2:])
    return m.flops(x, short**2 * (long - short / 3))


lu_p: Primitive = primitive.register(
    Primitive(
        "lu",
        Signature((("n", "m"),), (("n", "m"), ("k",), ("m",))),
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.always(
                m.SUPPORTED,
                Case((Sample((4, 4)),), kind="program"),
                Case((Sample((3, 5)),), kind="program"),
                Case((Sample((5, 3)),), kind="program"),
                Case((Sample((1, 1)),), kind="program"),
            ),
        },
    )
)


def lu(x: ArrayLike) -> tuple[Value, Value, Value]:
    """The LU decomposition with partial pivoting.

    Args:
        x: matrices (..., m, n).

    Returns:
        The factors in one array (..., m, n): `U` on and above the diagonal, `L` without its ones below it;
        the row that was exchanged with row i at step i, int32 (..., min(m, n)); and the order of the rows,
        int32 (..., m), with `x[order] = L @ U`.

    Raises:
        TypeMismatchError: `x` is no matrix, or of another dtype than float32, float64 and their complex
            pairs.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> factors, pivots, order = lax.linalg.lu(inp.array([[1.0, 2.0], [4.0, 4.0]]))
        >>> print(factors)
        [[4.   4.  ]
         [0.25 1.  ]]
        >>> print(order)
        [1 0]
    """
    value = m.operand("lu", x)
    if 0 in value.shape:
        count = min(value.shape[-2:])
        loop, num_rows = value.shape[:-2], value.shape[-2]
        line = trace.bind1(primitive.by_name("iota"), shape=(num_rows,), dimension=0, dtype=dtypes.int32)
        order = families.broadcast_to(line, (*loop, num_rows))
        return value, families.zeros(ArrayType((*loop, count), dtypes.int32)), order
    factors, pivots, order = trace.bind(lu_p, m.turned(value))
    return m.turned(factors), pivots, order


def lu_pivots_to_permutation(pivots: ArrayLike, permutation_size: int) -> Value:
    """The order of the rows after the exchanges of a decomposition.

    Args:
        pivots: int32 (..., k), the row exchanged with row i at step i.
        permutation_size: number of rows.

    Returns:
        The order, int32 (..., permutation_size).

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> print(lax.linalg.lu_pivots_to_permutation(inp.array([1, 1]), 3))
        [1 0 2]
    """
    value = e.convert_element_type(trace.as_value(pivots), dtypes.int32)
    shape = (*value.shape[:-1], permutation_size)
    line = trace.bind1(primitive.by_name("iota"), shape=(permutation_size,), dimension=0, dtype=dtypes.int32)
    places = families.broadcast_to(line, shape)
    steps = trace.bind1(primitive.by_name("iota"), shape=value.shape[-1:], dimension=0, dtype=dtypes.int32)

    def exchange(order: Value, step: tuple[Value, Value]) -> tuple[Value, None]:
        number, pivot = step
        other = families.broadcast_to(m.columns(pivot), shape)
        here, there = e.eq(places, number), e.eq(places, other)
        select = primitive.by_name("select_n")
        nothing = families.zeros(order.type)
        total = primitive.by_name("reduce_sum")
        mine = trace.bind1(total, trace.bind1(select, here, nothing, order), axes=(-1,))
        theirs = trace.bind1(total, trace.bind1(select, there, nothing, order), axes=(-1,))
        moved = trace.bind1(select, there, order, families.broadcast_to(m.columns(mine), shape))
        return trace.bind1(select, here, moved, families.broadcast_to(m.columns(theirs), shape)), None

    in_front = (-1, *range(-value.ndim, -1))
    by_step = trace.bind1(primitive.by_name("transpose"), value, permutation=in_front)
    order, _ = loops.scan(exchange, places, (steps, by_step))
    found: Value = order
    return found
