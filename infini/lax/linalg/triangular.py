"""Equations with triangular matrices. The operation reads one triangle, and is linear in the right-hand
side."""

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
from infini.lax.linalg import matrices as m

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _signature(*, left_side: bool, **_: bool) -> Signature:
    right = ("n", "k") if left_side else ("k", "n")
    return Signature((("n", "n"), right), (right,))


def _type(a: ArrayType, b: ArrayType, **attrs: bool) -> tuple[ArrayType, ...]:
    m.check_dtype("triangular_solve", (a, b))
    families.core_sizes("triangular_solve", _signature(**attrs), (a, b))
    if a.shape[:-2] != b.shape[:-2] or a.dtype != b.dtype:
        raise errors.TypeMismatchError(
            "triangular_solve needs operands of one dtype with equal leading dimensions", got=f"{a}, {b}"
        )
    return (b,)


def _reference(
    a: np.ndarray, b: np.ndarray, *, left_side: bool, lower: bool, transpose_a: bool, unit_diagonal: bool
) -> np.ndarray:
    triangle = np.tril(a) if lower else np.triu(a)
    if unit_diagonal:
        triangle = triangle - triangle * np.eye(a.shape[-1]) + np.eye(a.shape[-1])
    triangle = triangle.astype(a.dtype)
    is_lower = lower != transpose_a
    triangle = np.swapaxes(triangle, -1, -2) if transpose_a else triangle
    if not left_side:
        triangle, b, is_lower = np.swapaxes(triangle, -1, -2), np.swapaxes(b, -1, -2), not is_lower
    found = np.array(b)
    size = a.shape[-1]
    with np.errstate(all="ignore"):
        for i in range(size) if is_lower else reversed(range(size)):
            known = slice(0, i) if is_lower else slice(i + 1, size)
            rest = np.einsum("...k,...kn->...n", triangle[..., i, known], found[..., known, :])
            found[..., i, :] = (found[..., i, :] - rest) / triangle[..., i, i, None]
    return found if left_side else np.swapaxes(found, -1, -2)


def _jvp(
    primals: Sequence[Value], tangents: Sequence[Value | None], results: Sequence[Value], **attrs: bool
) -> tuple[Value | None]:
    a, _ = primals
    matrix_change, change = tangents
    if matrix_change is not None:
        # op(A) X = B gives op(A) dX = dB - op(dA) X, of the triangle that is read.
        strict = m.strictly_lower if attrs["lower"] else m.strictly_upper
        whole = m.lower if attrs["lower"] else m.upper
        moved = (strict if attrs["unit_diagonal"] else whole)(matrix_change)
        moved = m.turned(moved) if attrs["transpose_a"] else moved
        x = results[0]
        term = m.product(moved, x) if attrs["left_side"] else m.product(x, moved)
        change = e.neg(term) if change is None else e.sub(change, term)
    return (None,) if change is None else (trace.bind1(triangular_solve_p, a, change, **attrs),)


def _transpose(ct: Value, a: Any, b: Any, **attrs: bool) -> tuple[None, Value]:
    if families.is_linear(a):
        a.__infini_array__()
    turned = {**attrs, "transpose_a": not attrs["transpose_a"]}
    return None, trace.bind1(triangular_solve_p, a, ct, **turned)


def _batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    moved = families.whole_batches(ctx.size, args, batched)
    return trace.bind(triangular_solve_p, *moved, **attrs), (True,)


def _steady(x: np.ndarray) -> np.ndarray:
    """A matrix whose triangles are well conditioned."""
    return (x / 4 + 3 * np.eye(x.shape[-1])).astype(x.dtype)


def _case(size: int, count: int, *flags: bool) -> Case:
    names = ("left_side", "lower", "transpose_a", "unit_diagonal")
    attrs = dict(zip(names, flags, strict=True))
    shape = (size, count) if attrs["left_side"] else (count, size)
    return Case((Sample((size, size), made=_steady), Sample(shape)), attrs, "program")


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """A multiply-add for each element of the triangle and each vector."""
    a, b = types
    return m.flops(b, float(a.shape[-1] * families.prod(b.shape[-2:])))


triangular_solve_p: Primitive = primitive.register(
    Primitive(
        "triangular_solve",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.always(
                m.SUPPORTED,
                _case(4, 3, True, True, False, False),
                _case(3, 2, True, False, False, False),
                _case(3, 2, True, True, True, False),
                _case(3, 2, True, False, True, True),
                _case(3, 2, False, True, False, False),
                _case(3, 2, False, False, False, True),
                _case(3, 1, False, True, True, True),
                _case(3, 4, False, False, True, False),
            ),
        },
    )
)


def solve(
    a: Value, b: Value, *, is_left: bool, is_lower: bool, is_adjoint: bool = False, is_unit: bool = False
) -> Value:
    """The operation with values that fit; `is_adjoint` takes `a^H` for `a`, `is_unit` ones for its
    diagonal."""
    return trace.bind1(
        triangular_solve_p,
        m.conj(a) if is_adjoint else a,
        b,
        left_side=is_left,
        lower=is_lower,
        transpose_a=is_adjoint,
        unit_diagonal=is_unit,
    )


def triangular_solve(
    a: ArrayLike,
    b: ArrayLike,
    *,
    left_side: bool = False,
    lower: bool = False,
    transpose_a: bool = False,
    conjugate_a: bool = False,
    unit_diagonal: bool = False,
) -> Value:
    """Solve `op(a) @ x = b`, or `x @ op(a) = b`, for a triangular matrix `a`.

    Args:
        a: matrices (..., n, n), of which one triangle is read.
        b: matrices (..., n, k) when `left_side`, else (..., k, n); with one dimension less, vectors.
        left_side: whether `a` stands left of `x`.
        lower: whether the lower triangle is read.
        transpose_a: take the transposed matrix.
        conjugate_a: take the conjugated matrix.
        unit_diagonal: take ones for the diagonal.

    Returns:
        `x`, of the shape of `b`.

    Raises:
        TypeMismatchError: shapes or dtypes do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> a = inp.array([[2.0, 0.0], [1.0, 4.0]])
        >>> print(lax.linalg.triangular_solve(a, inp.array([[2.0], [9.0]]), left_side=True, lower=True))
        [[1.]
         [2.]]
    """
    matrix, right = m.operand("triangular_solve", a, is_square=True), trace.as_value(b)
    conjugated = m.conj(matrix) if conjugate_a and matrix.dtype in dtypes.COMPLEX else matrix
    is_vector = matrix.ndim == right.ndim + 1
    if is_vector:
        right = m.columns(right) if left_side else m.rows(right)
    if right.ndim != matrix.ndim:
        raise errors.TypeMismatchError(
            "triangular_solve needs operands of equal rank, or vectors for b",
            got=f"{matrix.type}, {right.type}",
        )
    found = trace.bind1(
        triangular_solve_p,
        conjugated,
        right,
        left_side=left_side,
        lower=lower,
        transpose_a=transpose_a,
        unit_diagonal=unit_diagonal,
    )
    if not is_vector:
        return found
    shape = found.shape[:-1] if left_side else (*found.shape[:-2], found.shape[-1])
    return trace.bind1(primitive.by_name("reshape"), found, shape=shape, ndim=found.ndim)
