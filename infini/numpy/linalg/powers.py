"""Products of many matrices, and the names that the array API standard gives to products."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from infini.core import errors
from infini.core.value import Value
from infini.numpy import _axes, manipulation, matrices, products
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, operands
from infini.numpy.linalg import solving


def matrix_power(a: ArrayLike, n: int) -> Value:
    """Powers of square matrices; negative ones of the inverses.

    Args:
        a: matrices (..., n, n).
        n: exponent, known while tracing.

    Raises:
        TypeMismatchError: they are not square, or `n` is no integer.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.matrix_power(inp.array([[1, 1], [1, 0]]), 10))
        [[89 55]
         [55 34]]
    """
    x = as_value("matrix_power", a)
    exponent = _axes.integer("matrix_power", "n", n)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise errors.TypeMismatchError(
            "matrix_power needs square matrices", got=str(x.type), expected="shape (..., n, n)"
        )
    if exponent == 0:
        return manipulation.broadcast_to(matrices.eye(x.shape[-1], dtype=x.dtype), x.shape)
    if exponent < 0:
        x, exponent = solving.inv(x), -exponent
    found: Value | None = None
    while exponent:
        if exponent % 2:
            found = x if found is None else products.matmul(found, x)
        exponent //= 2
        x = products.matmul(x, x) if exponent else x
    assert found is not None
    return found


def multi_dot(arrays: Sequence[ArrayLike], *, precision: Any = None) -> Value:
    """The product of several matrices, in the order that takes the fewest multiplications.

    Args:
        arrays: two or more matrices; the first and the last may be vectors.
        precision: see `lax.Precision`.

    Raises:
        ValueMismatchError: there are fewer than two.

    Example:
        >>> import infini.numpy as inp
        >>> inp.linalg.multi_dot([inp.ones((2, 3)), inp.ones((3, 4)), inp.ones((4, 5))]).shape
        (2, 5)
    """
    values = operands("multi_dot", *arrays)
    if len(values) < 2:
        raise errors.ValueMismatchError("multi_dot needs at least two arrays", got=f"{len(values)}")
    # A vector counts as a row in front and as a column at the end.
    sizes = [values[0].shape[0] if values[0].ndim > 1 else 1, values[0].shape[-1]]
    sizes += [value.shape[-1] if value.ndim > 1 else 1 for value in values[1:]]

    @functools.cache
    def best(first: int, last: int) -> tuple[int, int]:
        """Multiplications for a range of operands, and where it is cut."""
        if first == last:
            return 0, first
        return min(
            (
                best(first, cut)[0]
                + best(cut + 1, last)[0]
                + sizes[first] * sizes[cut + 1] * sizes[last + 1],
                cut,
            )
            for cut in range(first, last)
        )

    def product(first: int, last: int) -> Value:
        if first == last:
            return values[first]
        cut = best(first, last)[1]
        return products.matmul(product(first, cut), product(cut + 1, last), precision=precision)

    return product(0, len(values) - 1)


def cross(x1: ArrayLike, x2: ArrayLike, /, *, axis: int = -1) -> Value:
    """Cross products of vectors of three elements, as `numpy.linalg.cross`."""
    a, b = as_value("cross", x1), as_value("cross", x2)
    if a.shape[axis] != 3 or b.shape[axis] != 3:
        raise errors.ValueMismatchError(
            "linalg.cross needs vectors of three elements", got=f"{a.type}, {b.type}, axis={axis}"
        )
    return products.cross(a, b, axis=axis)


def diagonal(x: ArrayLike, /, *, offset: int = 0) -> Value:
    """Diagonals of the matrices in the last two dimensions."""
    return products.diagonal(x, offset, -2, -1)


def matmul(
    x1: ArrayLike, x2: ArrayLike, /, *, precision: Any = None, preferred_element_type: DTypeLike | None = None
) -> Value:
    """Matrix product: `infini.numpy.matmul`."""
    return products.matmul(x1, x2, precision=precision, preferred_element_type=preferred_element_type)


def outer(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Products of every element of one vector with every element of another.

    Raises:
        ValueMismatchError: an operand is no vector.
    """
    a, b = as_value("outer", x1), as_value("outer", x2)
    if a.ndim != 1 or b.ndim != 1:
        raise errors.ValueMismatchError("linalg.outer needs vectors", got=f"{a.type}, {b.type}")
    return products.outer(a, b)


def tensordot(
    x1: ArrayLike,
    x2: ArrayLike,
    /,
    *,
    axes: Any = 2,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Value:
    """Contraction of several axes: `infini.numpy.tensordot`."""
    return products.tensordot(
        x1,
        x2,
        axes,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def trace(x: ArrayLike, /, *, offset: int = 0, dtype: DTypeLike | None = None) -> Value:
    """Sums of the diagonals of the matrices in the last two dimensions."""
    return products.trace(x, offset, -2, -1, dtype)


def vecdot(
    x1: ArrayLike,
    x2: ArrayLike,
    /,
    *,
    axis: int = -1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Inner products of vectors, the first conjugated: `infini.numpy.vecdot`."""
    return products.vecdot(
        x1, x2, axis=axis, precision=precision, preferred_element_type=preferred_element_type
    )
