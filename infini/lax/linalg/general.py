"""Eigenvalues and eigenvectors of matrices of any kind. The operation takes and gives matrices by columns
(see `elimination`); results are complex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places
from infini.lax.cases import Case, Sample
from infini.lax.linalg import matrices as m

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_COMPLEX_OF: Final[dict[np.dtype, np.dtype]] = {
    dtypes.float32: dtypes.complex64,
    dtypes.float64: dtypes.complex128,
    dtypes.complex64: dtypes.complex64,
    dtypes.complex128: dtypes.complex128,
}


def _type(x: ArrayType, *, left: bool, right: bool, has_derivatives: bool) -> tuple[ArrayType, ...]:
    m.check_dtype("eig", (x,))
    families.core_sizes("eig", Signature((("n", "n"),), (("n",),)), (x,))
    vectors = x.update(dtype=_COMPLEX_OF[x.dtype])
    return (ArrayType(x.shape[:-1], vectors.dtype), *((vectors,) * (left + right)))


def _signature(*, left: bool, right: bool, has_derivatives: bool) -> Signature:
    return Signature((("n", "n"),), (("n",), *((("n", "n"),) * (left + right))))


def _reference(x: np.ndarray, *, left: bool, right: bool, has_derivatives: bool) -> list[np.ndarray]:
    return m.each(lambda a: _factors(a, left, right), x)


def _factors(x: np.ndarray, left: bool, right: bool) -> list[np.ndarray]:
    dtype = _COMPLEX_OF[x.dtype]
    try:
        values, vectors = np.linalg.eig(x.T)
        inverse = np.linalg.inv(vectors) if left else vectors
    except np.linalg.LinAlgError:
        return [np.full(len(x), np.nan, dtype), *([np.full_like(x, np.nan, dtype)] * (left + right))]
    found = [values.astype(dtype)]
    if left:
        found.append(_normal(inverse.conj()).astype(dtype))
    if right:
        found.append(np.ascontiguousarray(vectors.T).astype(dtype))
    return found


def _normal(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1 whose largest element is real."""
    largest = np.take_along_axis(rows, np.argmax(np.abs(rows), -1, keepdims=True), -1)
    turned: np.ndarray = rows * (np.abs(largest) / largest) / np.linalg.norm(rows, axis=-1, keepdims=True)
    return turned


def _jvp(
    primals: Any,
    tangents: Any,
    results: Any,
    *,
    left: bool,
    right: bool,
    has_derivatives: bool,  # Any: sequences of values
) -> tuple[Value, ...]:
    # With A V = V W and L^H A = W L^H: M = V^-1 dA V, where the rows of V^-1 are those of L^H over
    # L[i]^H V[i].
    if (left or right) and not has_derivatives:
        raise errors.UnsupportedError(
            "the derivative of eigenvectors needs what cannot be checked before the program runs",
            expected="eigenvalues that all differ, vectors with one largest element",
            fix="pass enable_eigvec_derivs=True to lax.linalg.eig where this holds; eigenvalues alone always"
            " have a derivative",
        )
    if not (left and right):
        attrs = {"left": True, "right": True, "has_derivatives": True}
        results = trace.bind(eig_p, primals[0], **attrs)
    values, left_vectors, right_vectors = results[0], m.turned(results[1]), m.turned(results[2])
    change = m.turned(e.convert_element_type(tangents[0], values.dtype))
    inner = _inner(left_vectors, right_vectors, change)
    moved = [m.diagonal_of(inner)]
    if left:
        mirrored = _inner(right_vectors, left_vectors, m.adjoint(change))
        moved.append(m.turned(_vectors_change(left_vectors, e.conj(values), mirrored)))
    if right:
        moved.append(m.turned(_vectors_change(right_vectors, values, inner)))
    return tuple(moved)


def _inner(left: Value, right: Value, change: Value) -> Value:
    """`V^-1 dA V` from the vectors of both sides."""
    lengths = trace.bind1(primitive.by_name("reduce_sum"), e.mul(e.conj(left), right), axes=(-2,))
    whole = m.product(m.product(m.adjoint(left), change), right)
    return e.div(whole, families.broadcast_to(m.columns(lengths), whole.shape))


def _vectors_change(vectors: Value, values: Value, inner: Value) -> Value:
    """The tangent of vectors of norm 1 whose largest element is real."""
    shape = inner.shape
    gaps = e.sub(
        families.broadcast_to(m.rows(values), shape), families.broadcast_to(m.columns(values), shape)
    )
    unit = families.broadcast_to(m.identity(shape[-1], gaps.dtype), shape)
    inverse = e.sub(e.reciprocal(e.add(gaps, unit)), unit)
    change = m.product(vectors, e.mul(inverse, inner))
    # What lies along a vector itself follows from its norm and from the phase of its largest element.
    along = _column_sums(e.real(e.mul(e.conj(vectors), change)))
    sizes = e.real(e.mul(e.conj(vectors), vectors))
    largest = trace.bind1(primitive.by_name("reduce_max"), sizes, axes=(-2,))
    is_largest = e.eq(sizes, families.broadcast_to(m.rows(largest), sizes.shape))
    zero = families.zeros(sizes.type)
    select = primitive.by_name("select_n")
    turning = trace.bind1(select, is_largest, zero, e.imag(change))
    lengths = trace.bind1(select, is_largest, zero, e.real(vectors))
    phase = e.div(_column_sums(turning), _column_sums(lengths))
    own = e.complex(m.rows(along), m.rows(phase))
    return e.sub(change, e.mul(vectors, families.broadcast_to(own, vectors.shape)))


def _column_sums(x: Value) -> Value:
    return trace.bind1(primitive.by_name("reduce_sum"), x, axes=(-2,))


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations, as counted for the QR iteration: 10 n^3 for the values alone, 25 n^3 with vectors."""
    size = types[0].shape[-1]
    return m.flops(types[0], (25.0 if attrs["left"] or attrs["right"] else 10.0) * size**3)


def _apart(x: np.ndarray) -> np.ndarray:
    """A matrix with eigenvalues far from each other, two of them conjugate to each other."""
    found = x + np.diag(9.0 * np.arange(len(x)))
    if len(x) > 1:
        found[:2, :2] += np.array([[0, 30], [-10, 0]])
    return found.astype(x.dtype)


def _examples(dtype: np.dtype) -> tuple[Case, ...]:
    # The vectors of real matrices may come with either sign. NumPy computes in float64, so only there the
    # sign is the same; tests of left vectors look at equations.
    def case(*, right: bool) -> Case:
        attrs = {"left": False, "right": right, "has_derivatives": right}
        return Case((Sample((3, 3), made=_apart),), attrs, "program")

    return (case(right=dtype != dtypes.float32), case(right=False))


eig_p: Primitive = primitive.register(
    Primitive(
        "eig",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.Cases(m.SUPPORTED, _examples),
        },
    )
)


def eig(
    x: ArrayLike,
    *,
    compute_left_eigenvectors: bool = True,
    compute_right_eigenvectors: bool = True,
    enable_eigvec_derivs: bool = False,
    implementation: object = None,
    use_magma: bool | None = None,
) -> list[Value]:
    """Eigenvalues and eigenvectors of square matrices of any kind.

    Args:
        x: matrices (..., n, n).
        compute_left_eigenvectors: give the vectors with `vl^H x = w vl^H`.
        compute_right_eigenvectors: give the vectors with `x vr = w vr`.
        enable_eigvec_derivs: allow the derivative of vectors. It is right where all eigenvalues differ and
            each vector has one largest element, which is made real.
        implementation: accepted for JAX's sake; without effect.
        use_magma: accepted for JAX's sake; without effect.

    Returns:
        Complex eigenvalues (..., n) in no order, then the vectors asked for as columns of matrices (..., n,
        n), of norm 1. NaN where LAPACK does not converge.

    Raises:
        TypeMismatchError: `x` is not square, or of another dtype than float32, float64 and their complex
            pairs.
        UnsupportedError: a derivative of vectors without `enable_eigvec_derivs`.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> w, vl, vr = lax.linalg.eig(inp.array([[0.0, 1.0], [-1.0, 0.0]]))
        >>> print(w)
        [0.+1.j 0.-1.j]
    """
    del implementation, use_magma
    value = m.operand("eig", x, is_square=True)
    left, right = bool(compute_left_eigenvectors), bool(compute_right_eigenvectors)
    if 0 in value.shape:
        types = _type(value.type, left=left, right=right, has_derivatives=False)
        return [families.zeros(type_) for type_ in types]
    attrs = {"left": left, "right": right, "has_derivatives": bool(enable_eigvec_derivs)}
    values, *vectors = trace.bind(eig_p, m.turned(value), **attrs)
    return [values, *map(m.turned, vectors)]
