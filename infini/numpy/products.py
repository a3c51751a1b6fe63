"""Matrix products and contractions, with NumPy's names. All of them become `lax.contract`, whose attribute
is an einsum.

Loop dimensions broadcast inside the contraction, so batched products need neither transposes nor explicit
broadcasts. 16-bit floats accumulate in float32 and are rounded once.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import contraction, view
from infini.numpy import _axes, reductions
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, operands


def _contract(spec: str, x: Value, y: Value, dtype: DTypeLike | None = None) -> Value:
    if x.dtype == dtypes.bool_:
        found = contraction.contract(spec, convert(x, dtypes.int32), convert(y, dtypes.int32))
        return convert(found, dtypes.bool_ if dtype is None else dtypes.canonical(dtype))
    return contraction.contract(spec, x, y, preferred_element_type=dtype)


def matmul(
    a: ArrayLike, b: ArrayLike, *, precision: None = None, preferred_element_type: DTypeLike | None = None
) -> Value:
    """Matrix product of the last two dimensions, as `numpy.matmul`.

    Args:
        a: (..., m, k), or a vector (k,).
        b: (..., k, n), or a vector (k,). Leading dimensions broadcast.
        precision: accepted for JAX's sake; infini always accumulates 16-bit floats in float32.
        preferred_element_type: dtype of the result; the common dtype when absent.

    Returns:
        (..., m, n), without m or n where an operand is a vector.

    Raises:
        ValueMismatchError: an operand is a scalar.
        TypeMismatchError: the contracted sizes differ.

    Example:
        >>> import infini.numpy as inp
        >>> inp.matmul(inp.ones((2, 3)), inp.ones((3, 4))).shape
        (2, 4)
    """
    x, y = operands("matmul", a, b)
    if x.ndim == 0 or y.ndim == 0:
        raise errors.ValueMismatchError(
            "matmul does not take scalars", got=f"{x.type}, {y.type}", fix="use * to multiply by a number"
        )
    if x.shape[-1] != y.shape[-2 if y.ndim > 1 else -1]:
        raise errors.TypeMismatchError(
            "matmul: the last dimension of the first operand and the last but one of the second differ",
            got=f"{x.type} @ {y.type}",
            expected="(..., m, k) @ (..., k, n)",
            fix="transpose an operand with .T or .mT",
        )
    left, right = "mk" if x.ndim > 1 else "k", "kn" if y.ndim > 1 else "k"
    out = left.replace("k", "") + right.replace("k", "")
    return _contract(f"{left},{right}->{out}", x, y, preferred_element_type)


def dot(
    a: ArrayLike, b: ArrayLike, *, precision: None = None, preferred_element_type: DTypeLike | None = None
) -> Value:
    """Product over the last dimension of `a` and the last but one of `b`, as `numpy.dot`.

    Unlike `matmul` it multiplies by scalars, and keeps the leading dimensions of both operands.

    Raises:
        TypeMismatchError: the contracted sizes differ.
    """
    x, y = operands("dot", a, b)
    letters = iter(string.ascii_letters)
    left, right = ([next(letters) for _ in range(v.ndim)] for v in (x, y))
    contracted = ""
    if x.ndim and y.ndim:
        place = -2 if y.ndim > 1 else -1
        _check_sizes("dot", x, y, ((-1, place),))
        right[place] = contracted = left[-1]
    out = "".join(letter for letter in left + right if letter != contracted)
    return _contract(f"{''.join(left)},{''.join(right)}->{out}", x, y, preferred_element_type)


def _check_sizes(name: str, x: Value, y: Value, pairs: Sequence[tuple[int, int]]) -> None:
    for i, j in pairs:
        if x.shape[i] != y.shape[j]:
            raise errors.TypeMismatchError(
                f"{name}: contracted dimensions have different sizes",
                got=f"{x.type}, {y.type}: {x.shape[i]} and {y.shape[j]}",
                expected="equal sizes",
            )


def vdot(a: ArrayLike, b: ArrayLike) -> Value:
    """Sum of products of two flattened arrays of equal size, as `numpy.vdot` of real arrays."""
    x, y = (view.reshape(v, (v.size,)) for v in operands("vdot", a, b))
    _check_sizes("vdot", x, y, ((0, 0),))
    return _contract("k,k->", x, y)


def vecdot(x1: ArrayLike, x2: ArrayLike, /, *, axis: int = -1) -> Value:
    """Sum of products along one axis, other dimensions broadcast, as `numpy.vecdot`."""
    x, y = operands("vecdot", x1, x2)
    rows = []
    for value in (x, y):
        place = _axes.one("vecdot", axis, value.ndim)
        rows.append(view.transpose(value, [d for d in range(value.ndim) if d != place] + [place]))
    _check_sizes("vecdot", rows[0], rows[1], ((-1, -1),))
    return _contract("k,k->", rows[0], rows[1])


def inner(a: ArrayLike, b: ArrayLike) -> Value:
    """Product over the last dimension of both, as `numpy.inner`; scalars multiply."""
    x, y = operands("inner", a, b)
    if x.ndim == 0 or y.ndim == 0:
        return dot(x, y)
    return tensordot(x, y, axes=((-1,), (-1,)))


def outer(a: ArrayLike, b: ArrayLike) -> Value:
    """Every product of elements of two flattened arrays, as `numpy.outer`."""
    x, y = (view.reshape(v, (v.size,)) for v in operands("outer", a, b))
    return _contract("m,n->mn", x, y)


def tensordot(
    a: ArrayLike, b: ArrayLike, axes: Any = 2, *, preferred_element_type: DTypeLike | None = None
) -> Value:
    """Contraction over pairs of axes, as `numpy.tensordot`.

    Args:
        a: left operand.
        b: right operand.
        axes: a number n (the last n axes of `a` with the first n of `b`), or a pair of axes or sequences
            of axes.
        preferred_element_type: dtype of the result; the common dtype when absent.

    Raises:
        ValueMismatchError: the two sequences differ in length, or name an axis that does not exist.
        TypeMismatchError: paired sizes differ.
    """
    x, y = operands("tensordot", a, b)
    if isinstance(axes, int):
        pairs = [(x.ndim - axes + i, i) for i in range(axes)]
    else:
        left, right = ([side] if isinstance(side, int) else list(side) for side in axes)
        if len(left) != len(right):
            raise errors.ValueMismatchError(
                "tensordot: operands name different numbers of axes", got=str(axes)
            )
        pairs = list(zip(left, right, strict=True))
    pairs = [(_axes.one("tensordot", i, x.ndim), _axes.one("tensordot", j, y.ndim)) for i, j in pairs]
    _check_sizes("tensordot", x, y, pairs)
    numbers = ((tuple(i for i, _ in pairs), tuple(j for _, j in pairs)), ((), ()))
    return contraction.dot_general(x, y, numbers, preferred_element_type=preferred_element_type)


def trace(a: ArrayLike, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Value:
    """Sum of a diagonal, as `numpy.trace`."""
    return reductions.sum(diagonal(a, offset, axis1, axis2), -1)


def diagonal(a: ArrayLike, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Value:
    """A diagonal of two axes as a new last dimension, as `numpy.diagonal`."""
    x = as_value("diagonal", a)
    first, second = _axes.one("diagonal", axis1, x.ndim), _axes.one("diagonal", axis2, x.ndim)
    if first == second:
        raise errors.ValueMismatchError("diagonal needs two different axes", got=f"{axis1}, {axis2}")
    rest = [d for d in range(x.ndim) if d not in (first, second)]
    x = view.transpose(x, [*rest, first, second])
    rows, columns = x.shape[-2:]
    row, column = max(-offset, 0), max(offset, 0)
    size = max(0, min(rows - row, columns - column))
    # In the flattened matrix the elements of a diagonal are columns + 1 apart.
    flat = view.reshape(x, (*x.shape[:-2], rows * columns))
    start = row * columns + column if size else 0
    stop = start + (size - 1) * (columns + 1) + 1 if size else 0
    return view.slice_in_dim(flat, start, stop, columns + 1, axis=-1)


def kron(a: ArrayLike, b: ArrayLike) -> Value:
    """Kronecker product, as `numpy.kron`."""
    x, y = operands("kron", a, b)
    ndim = max(x.ndim, y.ndim)
    x, y = (view.reshape(v, (1,) * (ndim - v.ndim) + v.shape) for v in (x, y))
    left, right = string.ascii_lowercase[:ndim], string.ascii_uppercase[:ndim]
    out = "".join(pair for both in zip(left, right, strict=True) for pair in both)
    product = _contract(f"{left},{right}->{out}", x, y)
    return view.reshape(product, tuple(int(n) for n in np.multiply(x.shape, y.shape)))
