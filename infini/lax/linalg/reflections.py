"""The QR decomposition by Householder reflections. The operation takes and gives matrices by columns (see
`elimination`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places
from infini.lax.cases import Case, Sample
from infini.lax.linalg import matrices as m, triangular

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _type(x: ArrayType, *, full_matrices: bool) -> tuple[ArrayType, ...]:
    m.check_dtype("qr", (x,))
    *loop, n, rows = x.shape
    count = rows if full_matrices else min(rows, n)
    return ArrayType((*loop, count, rows), x.dtype), ArrayType((*loop, n, count), x.dtype)


def _reference(x: np.ndarray, *, full_matrices: bool) -> tuple[np.ndarray, ...]:
    a: Any = np.swapaxes(x, -1, -2)  # Any: NumPy's stubs list the dtypes one by one
    found = np.linalg.qr(a, "complete") if full_matrices else np.linalg.qr(a, "reduced")
    return tuple(np.ascontiguousarray(np.swapaxes(y, -1, -2)).astype(x.dtype) for y in found)


def _jvp(
    primals: Any,
    tangents: Any,
    results: Any,
    *,
    full_matrices: bool,  # Any: sequences of values
) -> tuple[Value, Value]:
    # dA R^-1 = dQ + Q dR R^-1; Q^H dQ is skew-Hermitian, dR R^-1 upper with a real diagonal.
    change = m.turned(tangents[0])
    rows, n = change.shape[-2:]
    if full_matrices and rows > n:
        raise errors.UnsupportedError(
            "the derivative of a complete QR decomposition is not implemented",
            got=f"matrices of {rows} rows and {n} columns, full_matrices=True",
            fix="use full_matrices=False",
        )
    q, r = (m.turned(y) for y in results)
    if rows >= n:
        q_change, r_change = _square_jvp(q, r, change)
        return m.turned(q_change), m.turned(r_change)
    # The first columns decide Q; the others of R are Q^H A.
    q_change, r_change = _square_jvp(q, m.cut(r, rows, rows), m.cut(change, rows, rows))
    x = m.turned(primals[0])
    others = e.add(
        m.product(m.adjoint(q_change), _from_column(x, rows)),
        m.product(m.adjoint(q), _from_column(change, rows)),
    )
    r_change = trace.bind1(primitive.by_name("concatenate"), r_change, others, axis=-1)
    return m.turned(q_change), m.turned(r_change)


def _square_jvp(q: Value, r: Value, change: Value) -> tuple[Value, Value]:
    """Tangents of Q and of a square R."""
    scaled = triangular.solve(r, change, is_left=False, is_lower=False)
    inner = m.product(m.adjoint(q), scaled)
    below = m.strictly_lower(inner)
    skew = e.sub(below, m.adjoint(below))
    if q.dtype in dtypes.COMPLEX:
        imaginary = e.sub(inner, e.convert_element_type(e.real(inner), inner.dtype))
        skew = e.add(skew, m.diagonal(imaginary))
    return e.add(m.product(q, e.sub(skew, inner)), scaled), m.product(e.sub(inner, skew), r)


def _from_column(x: Value, first: int) -> Value:
    shape = x.shape[-2:]
    return trace.bind1(primitive.by_name("slice"), x, start=(0, first), limit=shape, strides=(1, 1))


def _signature(*, full_matrices: bool) -> Signature:
    return Signature((("n", "m"),), (("k", "m"), ("n", "k")))


def _case(n: int, rows: int, *, is_full: bool) -> Case:
    is_smooth = not is_full or rows <= n
    moving = None if is_smooth else ()
    return Case((Sample((n, rows)),), {"full_matrices": is_full}, "program", is_smooth, moving)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations, the leading terms: the reflections that leave R, and their product, of which `Q` is the
    first columns.
    """
    (x,) = types
    n, rows = x.shape[-2:]
    count = min(n, rows)
    columns = rows if attrs["full_matrices"] else count
    factor = 2.0 * count**2 * (max(n, rows) - count / 3)
    product = 4.0 * rows * columns * count - 2.0 * (rows + columns) * count**2 + 4 / 3 * count**3
    return m.flops(x, factor + product)


qr_p: Primitive = primitive.register(
    Primitive(
        "qr",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.always(
                m.SUPPORTED,
                _case(3, 5, is_full=False),
                _case(4, 4, is_full=True),
                _case(3, 5, is_full=True),
                _case(5, 3, is_full=False),
                _case(40, 60, is_full=False),
            ),
        },
    )
)


def qr(
    x: ArrayLike, *, pivoting: bool = False, full_matrices: bool = True, use_magma: bool | None = None
) -> tuple[Value, Value]:
    """The QR decomposition `x = Q @ R`, with `Q` unitary and `R` upper triangular.

    Args:
        x: matrices (..., m, n).
        pivoting: exchange columns; not implemented.
        full_matrices: give `Q` (..., m, m) and `R` (..., m, n); else the first min(m, n) columns and rows.
        use_magma: accepted for JAX's sake; without effect.

    Raises:
        TypeMismatchError: `x` is no matrix, or of another dtype than float32, float64 and their complex
            pairs.
        UnsupportedError: `pivoting`, or a derivative of `full_matrices` with more rows than columns.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> q, r = lax.linalg.qr(inp.array([[0.0, 1.0], [2.0, 3.0]]))
        >>> print(inp.round(q @ r, 4))
        [[0. 1.]
         [2. 3.]]
    """
    del use_magma
    if pivoting:
        raise errors.UnsupportedError(
            "lax.linalg.qr with pivoting is not implemented", fix="use pivoting=False"
        )
    value = m.operand("qr", x)
    rows, n = value.shape[-2:]
    if 0 in value.shape:
        count = rows if full_matrices else min(rows, n)
        q = families.broadcast_to(
            m.cut(m.identity(rows, value.dtype), rows, count), (*value.shape[:-2], rows, count)
        )
        return q, families.zeros(ArrayType((*value.shape[:-2], count, n), value.dtype))
    q, r = trace.bind(qr_p, m.turned(value), full_matrices=full_matrices)
    return m.turned(q), m.turned(r)
