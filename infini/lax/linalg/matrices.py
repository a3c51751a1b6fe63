"""What the rules of this folder are written with: matrices are the last two dimensions, all others are loop
dimensions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, families

SUPPORTED: Final = frozenset({dtypes.float32, dtypes.float64, dtypes.complex64, dtypes.complex128})
REAL_OF: Final = {
    dtypes.float32: dtypes.float32,
    dtypes.float64: dtypes.float64,
    dtypes.complex64: dtypes.float32,
    dtypes.complex128: dtypes.float64,
}


def turned(x: Value) -> Value:
    """Rows and columns exchanged."""
    return trace.bind1(primitive.by_name("transpose"), x, permutation=(-1, -2))


def adjoint(x: Value) -> Value:
    """Rows and columns exchanged, and conjugated."""
    return conj(turned(x))


def conj(x: Value) -> Value:
    """The conjugate; real numbers as they are."""
    return e.conj(x) if x.dtype in dtypes.COMPLEX else x


def symmetrized(x: Value) -> Value:
    """`(x + x^H) / 2`."""
    return e.mul(e.add(x, adjoint(x)), 0.5)


def real(x: Value) -> Value:
    """The real part; real numbers as they are."""
    return e.real(x) if x.dtype in dtypes.COMPLEX else x


def product(x: Value, y: Value) -> Value:
    """Matrix product."""
    return trace.bind1(primitive.by_name("dot"), x, y, spec="mk,kn->mn", dtype=x.dtype)


def chosen(x: Value, keep: Callable[[Value, Value], Value]) -> Value:
    """The elements whose row and column pass a comparison, zero elsewhere."""
    rows, columns = places(x.shape[-2], x.shape[-1])
    return trace.bind1(primitive.by_name("select_n"), keep(rows, columns), families.zeros(x.type), x)


def places(num_rows: int, num_columns: int) -> tuple[Value, Value]:
    """The row and the column of every element of a matrix, int32."""
    iota = primitive.by_name("iota")
    shape = (num_rows, num_columns)
    rows, columns = (trace.bind1(iota, shape=shape, dimension=d, dtype=dtypes.int32) for d in (0, 1))
    return rows, columns


def lower(x: Value) -> Value:
    """The lower triangle with the diagonal."""
    return chosen(x, e.ge)


def strictly_lower(x: Value) -> Value:
    """The lower triangle without the diagonal."""
    return chosen(x, e.gt)


def upper(x: Value) -> Value:
    """The upper triangle with the diagonal."""
    return chosen(x, e.le)


def strictly_upper(x: Value) -> Value:
    """The upper triangle without the diagonal."""
    return chosen(x, e.lt)


def diagonal(x: Value) -> Value:
    """The diagonal as a matrix: zero elsewhere."""
    return chosen(x, e.eq)


def diagonal_of(x: Value) -> Value:
    """The diagonal of square matrices as vectors."""
    return trace.bind1(primitive.by_name("reduce_sum"), diagonal(x), axes=(-1,))


def identity(size: int, dtype: np.dtype) -> Value:
    """The identity matrix."""
    return diagonal(families.full(ArrayType((size, size), dtype), 1))


def columns(x: Value) -> Value:
    """Vectors as matrices of one column."""
    return trace.bind1(primitive.by_name("reshape"), x, shape=(*x.shape, 1), ndim=x.ndim)


def rows(x: Value) -> Value:
    """Vectors as matrices of one row."""
    return trace.bind1(primitive.by_name("reshape"), x, shape=(*x.shape[:-1], 1, x.shape[-1]), ndim=x.ndim)


def cut(x: Value, num_rows: int, num_columns: int) -> Value:
    """The upper left corner."""
    if x.shape[-2:] == (num_rows, num_columns):
        return x
    return trace.bind1(
        primitive.by_name("slice"), x, start=(0, 0), limit=(num_rows, num_columns), strides=(1, 1)
    )


def operand(name: str, x: Any, *, is_square: bool = False) -> Value:  # Any: what operations take
    """The operand of a function of this folder, checked.

    Raises:
        TypeMismatchError: it is no matrix, not square where it must be, or of another dtype.
    """
    given = trace.as_value(x)
    value = trace.to_array(given) if isinstance(given, Literal) else given
    if value.ndim < 2:
        raise errors.TypeMismatchError(
            f"{name} needs a matrix", got=str(value.type), expected="at least 2 dimensions"
        )
    if is_square and value.shape[-1] != value.shape[-2]:
        raise errors.TypeMismatchError(
            f"{name} needs square matrices", got=str(value.type), expected="the last two dimensions equal"
        )
    check_dtype(name, (value.type,))
    return value


def check_dtype(name: str, types: Collection[ArrayType]) -> None:
    """Refuse dtypes that the library has no routines for.

    Raises:
        TypeMismatchError: one is not float32, float64, complex64 or complex128.
    """
    for type_ in types:
        if type_.dtype not in SUPPORTED:
            raise errors.TypeMismatchError(
                f"{name} does not take this dtype",
                got=str(type_),
                expected="float32, float64, complex64 or complex128",
                fix="convert the operand, for example with x.astype('float32')",
            )


def flops(x: ArrayType, one: float) -> float:
    """Real operations for all matrices of an operand.

    Args:
        x: the operand.
        one: operations for one matrix of real numbers. A multiply-add of complex numbers is eight instead of
            two.
    """
    return one * families.prod(x.shape[:-2]) * (4.0 if x.dtype in dtypes.COMPLEX else 1.0)


def reflecting(size: int, num_vectors: int, num_reflections: int) -> float:
    """Operations to apply reflections, each shorter by one than the one before, to vectors of a size."""
    return 2.0 * num_vectors * num_reflections * (2 * size - num_reflections)


def each(function: Callable[..., Any], *arrays: np.ndarray) -> list[Any]:  # Any: results of the function
    """A NumPy function of matrices for every index of the loop dimensions, all results of a kind stacked."""
    loops = arrays[0].shape[:-2]
    flat = [a.reshape(-1, *a.shape[len(loops) :]) for a in arrays]
    found = [function(*items) for items in zip(*flat, strict=True)]
    return [np.stack(column).reshape(*loops, *np.shape(column[0])) for column in zip(*found, strict=True)]
