"""The singular value decomposition. The operation takes and gives matrices by columns (see `elimination`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places
from infini.lax.cases import Case, Sample
from infini.lax.linalg import matrices as m

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _type(x: ArrayType, *, full_matrices: bool, compute_uv: bool) -> tuple[ArrayType, ...]:
    m.check_dtype("svd", (x,))
    *loop, n, rows = x.shape
    count = min(n, rows)
    values = ArrayType((*loop, count), m.REAL_OF[x.dtype])
    if not compute_uv:
        return (values,)
    left, right = (rows, n) if full_matrices else (count, count)
    return values, ArrayType((*loop, left, rows), x.dtype), ArrayType((*loop, n, right), x.dtype)


def _signature(*, full_matrices: bool, compute_uv: bool) -> Signature:
    outputs = (("k",), ("l", "m"), ("n", "r")) if compute_uv else (("k",),)
    return Signature((("n", "m"),), outputs)


def _reference(x: np.ndarray, *, full_matrices: bool, compute_uv: bool) -> Any:  # Any: arrays
    a = np.swapaxes(x, -1, -2)
    if not compute_uv:
        return (np.linalg.svd(a, compute_uv=False),)
    u, s, v = np.linalg.svd(a, full_matrices=full_matrices)
    return s, *(np.ascontiguousarray(np.swapaxes(y, -1, -2)) for y in (u, v))


def _jvp(
    primals: Any,
    tangents: Any,
    results: Any,
    *,
    full_matrices: bool,
    compute_uv: bool,  # Any: values
) -> tuple[Value, ...]:
    # With M = U^H dA V: ds is the real diagonal of M; off it, U^H dU and V^H dV solve two equations with
    # M and M^H, whose determinant is s[j]^2 - s[i]^2. What dU has outside of the columns of U comes from dA.
    rows, n = primals[0].shape[-1], primals[0].shape[-2]
    if compute_uv and full_matrices and rows != n:
        raise errors.UnsupportedError(
            "the derivative of a full singular value decomposition is not implemented",
            got=f"matrices of {rows} rows and {n} columns",
            fix="use full_matrices=False",
        )
    if not compute_uv:
        results = trace.bind(svd_p, primals[0], full_matrices=False, compute_uv=True)
    s, u, vh = results[0], m.turned(results[1]), m.turned(results[2])
    uh, v, change = m.adjoint(u), m.adjoint(vh), m.turned(tangents[0])
    inner = m.product(m.product(uh, change), v)
    s_change = m.diagonal_of(m.real(inner))
    if not compute_uv:
        return (s_change,)
    shape, dtype = inner.shape, inner.dtype
    own, other = families.broadcast_to(m.columns(s), shape), families.broadcast_to(m.rows(s), shape)
    inverse = e.convert_element_type(_inverse(e.mul(e.sub(other, own), e.add(other, own))), dtype)
    own, other = (e.convert_element_type(x, dtype) for x in (own, other))
    by_column, by_row = e.mul(inner, other), e.mul(own, inner)
    left = e.mul(inverse, e.add(by_column, m.adjoint(by_column)))
    right = e.mul(inverse, e.add(by_row, m.adjoint(by_row)))
    turn = m.diagonal(e.mul(e.sub(inner, m.adjoint(inner)), 0.5))  # of complex vectors, by their phase
    left = e.add(left, e.mul(turn, _inverse(own)))
    u_change, v_change = m.product(u, left), m.product(v, right)
    if rows > n:
        u_change = e.add(u_change, _outside(m.product(change, v), u, s))
    if n > rows:
        v_change = e.add(v_change, _outside(m.product(m.adjoint(change), u), v, s))
    return s_change, m.turned(u_change), m.turned(m.adjoint(v_change))


def _inverse(x: Value) -> Value:
    """`1 / x`, and zero where `x` is."""
    is_zero = e.eq(x, families.zeros(x.type))
    select = primitive.by_name("select_n")
    safe = trace.bind1(select, is_zero, x, families.full(x.type, 1))
    return trace.bind1(select, is_zero, e.reciprocal(safe), families.zeros(x.type))


def _outside(x: Value, basis: Value, s: Value) -> Value:
    """The part of `x` orthogonal to a basis, over the singular values."""
    rest = e.sub(x, m.product(basis, m.product(m.adjoint(basis), x)))
    return e.div(rest, e.convert_element_type(families.broadcast_to(m.rows(s), rest.shape), rest.dtype))


def _case(n: int, rows: int, *, is_full: bool, has_vectors: bool = True) -> Case:
    is_smooth = not has_vectors or not is_full or rows == n
    attrs = {"full_matrices": is_full, "compute_uv": has_vectors}
    return Case((Sample((n, rows), made=_spread),), attrs, "program", is_smooth, None if is_smooth else ())


def _spread(x: np.ndarray) -> np.ndarray:
    """A matrix with singular values far from each other."""
    return (x + 9.0 * np.eye(*x.shape) * np.arange(1, x.shape[1] + 1)).astype(x.dtype)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations, the leading terms: the bidiagonal form; with vectors, those of this form by divide and
    conquer where nothing is deflated, and the reflections that turn them back on both sides.
    """
    (x,) = types
    sizes = x.shape[-2:]
    count = min(sizes)
    found = 4.0 * count**2 * (max(sizes) - count / 3)
    if attrs["compute_uv"]:
        found += 8 / 3 * count**3
        found += sum(m.reflecting(n, n if attrs["full_matrices"] else count, count) for n in sizes)
    return m.flops(x, found)


svd_p: Primitive = primitive.register(
    Primitive(
        "svd",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.always(
                m.SUPPORTED,
                _case(3, 4, is_full=False),
                _case(4, 3, is_full=False),
                _case(3, 3, is_full=True),
                _case(3, 4, is_full=True),
                _case(3, 4, is_full=False, has_vectors=False),
            ),
        },
    )
)


def svd(
    x: ArrayLike,
    *,
    full_matrices: bool = True,
    compute_uv: bool = True,
    subset_by_index: tuple[int, int] | None = None,
    algorithm: object = None,
) -> Any:  # Any: one array, or three
    """The singular value decomposition `x = (U * s) @ V^H`.

    Args:
        x: matrices (..., m, n).
        full_matrices: give `U` (..., m, m) and `V^H` (..., n, n); else min(m, n) columns and rows of them.
        compute_uv: give `U` and `V^H` too.
        subset_by_index: first and end of a range of singular values; only all of them are implemented.
        algorithm: accepted for JAX's sake; it is LAPACK's divide and conquer.

    Returns:
        `U`, the singular values (..., min(m, n)), descending, and `V^H`; without `compute_uv` the values
        alone. NaN where LAPACK does not converge.

    Raises:
        TypeMismatchError: `x` is no matrix, or of another dtype than float32, float64 and their complex
            pairs.
        UnsupportedError: `subset_by_index` is a part, or a derivative of full matrices that are not square.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> print(lax.linalg.svd(inp.array([[3.0, 0.0], [0.0, 4.0]]), compute_uv=False))
        [4. 3.]
    """
    del algorithm
    value = m.operand("svd", x)
    rows, n = value.shape[-2:]
    count = min(rows, n)
    if subset_by_index is not None and tuple(subset_by_index) != (0, count):
        raise errors.UnsupportedError(
            "svd of a range of singular values is not implemented",
            got=f"subset_by_index={subset_by_index}",
            fix="take all of them and cut the results",
        )
    if 0 in value.shape:
        return _nothing(value, full_matrices, compute_uv)
    found = trace.bind(svd_p, m.turned(value), full_matrices=full_matrices, compute_uv=compute_uv)
    return (m.turned(found[1]), found[0], m.turned(found[2])) if compute_uv else found[0]


def _nothing(x: Value, full_matrices: bool, compute_uv: bool) -> Any:  # Any: as of `svd`
    loop, (rows, n) = x.shape[:-2], x.shape[-2:]
    count = min(rows, n)
    values = families.zeros(ArrayType((*loop, count), m.REAL_OF[x.dtype]))
    if not compute_uv:
        return values
    left, right = (rows, n) if full_matrices else (count, count)
    u = families.broadcast_to(m.cut(m.identity(rows, x.dtype), rows, left), (*loop, rows, left))
    vh = families.broadcast_to(m.cut(m.identity(n, x.dtype), right, n), (*loop, right, n))
    return u, values, vh
