"""Matrix products and contractions, with NumPy's names. All of them become `lax.contract`, whose attribute
is an einsum.

Loop dimensions broadcast inside the contraction, so batched products need neither transposes nor explicit
broadcasts. 16- and 8-bit floats accumulate in float32 and are rounded once.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import contraction, elementwise as e, families, precision as precision_, view
from infini.numpy import _axes, reductions
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, operands

PrecisionLike = precision_.PrecisionLike


def _contract(
    spec: str, x: Value, y: Value, precision: PrecisionLike = None, dtype: DTypeLike | None = None
) -> Value:
    return contraction.contract(spec, x, y, precision=precision, preferred_element_type=dtype)


def _conj(x: Value) -> Value:
    return e.conj(x) if x.dtype in dtypes.COMPLEX else x


def matmul(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Value:
    """Matrix product of the last two dimensions, as `numpy.matmul`.

    Args:
        a: (..., m, k), or a vector (k,).
        b: (..., k, n), or a vector (k,). Leading dimensions broadcast.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; the common dtype when absent.
        out_sharding: placement of the result.

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
    found = _contract(f"{left},{right}->{out}", x, y, precision, preferred_element_type)
    return contraction.placed(found, out_sharding)


def dot(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Value:
    """Product over the last dimension of `a` and the last but one of `b`, as `numpy.dot`.

    Unlike `matmul` it multiplies by scalars, and keeps the leading dimensions of both operands.

    Args:
        a: left operand.
        b: right operand.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; the common dtype when absent.
        out_sharding: placement of the result.

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
    spec = f"{''.join(left)},{''.join(right)}->{out}"
    return contraction.placed(_contract(spec, x, y, precision, preferred_element_type), out_sharding)


def _check_sizes(name: str, x: Value, y: Value, pairs: Sequence[tuple[int, int]]) -> None:
    for i, j in pairs:
        if x.shape[i] != y.shape[j]:
            raise errors.TypeMismatchError(
                f"{name}: contracted dimensions have different sizes",
                got=f"{x.type}, {y.type}: dimension {i} of the first has {x.shape[i]} elements, "
                f"dimension {j} of the second {y.shape[j]}",
                expected="equal sizes",
            )


def vdot(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Sum of products of two flattened arrays of equal size, the first conjugated, as `numpy.vdot`."""
    x, y = (view.reshape(v, (v.size,)) for v in operands("vdot", a, b))
    _check_sizes("vdot", x, y, ((0, 0),))
    return _contract("k,k->", _conj(x), y, precision, preferred_element_type)


def vecdot(
    x1: ArrayLike,
    x2: ArrayLike,
    /,
    *,
    axis: int = -1,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Sum of products along one axis, the first operand conjugated, other dimensions broadcast, as
    `numpy.vecdot`.

    Args:
        x1: first operand.
        x2: second operand.
        axis: axis of both operands to sum over.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; the common dtype when absent.

    Raises:
        ValueMismatchError: there is no such axis, or the sizes along it differ.
    """
    x, y = operands("vecdot", x1, x2)
    rows = []
    for value in (x, y):
        place = _axes.one("vecdot", axis, value.ndim)
        rows.append(view.transpose(value, [d for d in range(value.ndim) if d != place] + [place]))
    if rows[0].shape[-1] != rows[1].shape[-1]:
        raise errors.ValueMismatchError(
            "vecdot: sizes along the axis differ", got=f"{x.type}, {y.type}, axis {axis}"
        )
    return _contract("k,k->", _conj(rows[0]), rows[1], precision, preferred_element_type)


def matvec(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Product of matrices (..., m, k) and vectors (..., k), leading dimensions broadcast, as `numpy.matvec`.

    Raises:
        ValueMismatchError: an operand has too few dimensions, or the sizes k differ.
    """
    x, y = operands("matvec", x1, x2)
    if x.ndim < 2 or y.ndim < 1 or x.shape[-1] != y.shape[-1]:
        raise errors.ValueMismatchError(
            "matvec takes matrices and vectors", got=f"{x.type}, {y.type}", expected="(..., m, k), (..., k)"
        )
    return _contract("mk,k->m", x, y)


def vecmat(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Product of vectors (..., k), conjugated, and matrices (..., k, n), as `numpy.vecmat`.

    Raises:
        ValueMismatchError: an operand has too few dimensions, or the sizes k differ.
    """
    x, y = operands("vecmat", x1, x2)
    if x.ndim < 1 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise errors.ValueMismatchError(
            "vecmat takes vectors and matrices", got=f"{x.type}, {y.type}", expected="(..., k), (..., k, n)"
        )
    return _contract("k,kn->n", _conj(x), y)


def inner(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Product over the last dimension of both, as `numpy.inner`; scalars multiply."""
    x, y = operands("inner", a, b)
    axes = ((-1,), (-1,)) if x.ndim and y.ndim else 0
    return tensordot(x, y, axes, precision=precision, preferred_element_type=preferred_element_type)


def outer(a: ArrayLike, b: ArrayLike, out: None = None) -> Value:
    """Every product of elements of two flattened arrays, as `numpy.outer`.

    Raises:
        UnsupportedError: `out` is given; arrays do not change.
    """
    _axes.no_out("outer", out)
    x, y = (view.reshape(v, (v.size,)) for v in operands("outer", a, b))
    return _contract("m,n->mn", x, y)


def tensordot(
    a: ArrayLike,
    b: ArrayLike,
    axes: Any = 2,
    *,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Value:
    """Contraction over pairs of axes, as `numpy.tensordot`.

    Args:
        a: left operand.
        b: right operand.
        axes: a number n (the last n axes of `a` with the first n of `b`), or a pair of axes or sequences
            of axes.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; the common dtype when absent.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: an axis does not exist.
        TypeMismatchError: paired sizes differ, or the two sequences differ in length.
    """
    x, y = operands("tensordot", a, b)
    if isinstance(axes, (int, np.integer)):
        if axes > min(x.ndim, y.ndim) or axes < 0:
            raise errors.TypeMismatchError(
                "tensordot: operands have fewer axes than it contracts",
                got=f"axes={axes}, {x.type}, {y.type}",
            )
        pairs = [(x.ndim - int(axes) + i, i) for i in range(int(axes))]
    else:
        left, right = (
            [int(a) for a in ([side] if isinstance(side, (int, np.integer)) else side)] for side in axes
        )
        if len(left) != len(right):
            raise errors.TypeMismatchError(
                "tensordot: operands name different numbers of axes", got=str(axes)
            )
        pairs = list(zip(left, right, strict=True))
    pairs = [(_axes.one("tensordot", i, x.ndim), _axes.one("tensordot", j, y.ndim)) for i, j in pairs]
    _check_sizes("tensordot", x, y, pairs)
    numbers = ((tuple(i for i, _ in pairs), tuple(j for _, j in pairs)), ((), ()))
    return contraction.dot_general(
        x, y, numbers, precision, preferred_element_type, out_sharding=out_sharding
    )


def kron(a: ArrayLike, b: ArrayLike) -> Value:
    """Kronecker product, as `numpy.kron`."""
    x, y = operands("kron", a, b)
    ndim = max(x.ndim, y.ndim)
    x, y = (view.reshape(v, (1,) * (ndim - v.ndim) + v.shape) for v in (x, y))
    left, right = string.ascii_lowercase[:ndim], string.ascii_uppercase[:ndim]
    out = "".join(pair for both in zip(left, right, strict=True) for pair in both)
    product = _contract(f"{left},{right}->{out}", x, y)
    return view.reshape(product, tuple(int(n) for n in np.multiply(x.shape, y.shape)))


def cross(
    a: ArrayLike, b: ArrayLike, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None
) -> Value:
    """Cross product of vectors of two or three elements, other dimensions broadcast, as `numpy.cross`.

    Args:
        a: first vectors.
        b: second vectors.
        axisa: axis of the elements of `a`.
        axisb: axis of the elements of `b`.
        axisc: axis of the elements of the result; there is none when all vectors have two elements.
        axis: all three at once.

    Raises:
        ValueMismatchError: an axis does not exist, or has other than two or three elements.
    """
    x, y = operands("cross", a, b)
    if axis is not None:
        axisa = axisb = axisc = axis
    rows = []
    for value, place in ((x, axisa), (y, axisb)):
        at = _axes.one("cross", place, value.ndim)
        rows.append(view.transpose(value, [d for d in range(value.ndim) if d != at] + [at]))
    if any(row.shape[-1] not in (2, 3) for row in rows):
        raise errors.ValueMismatchError(
            "cross takes vectors of two or three elements",
            got=f"{x.type}, {y.type}, axes {axisa} and {axisb}",
        )
    if rows[0].shape[-1] == rows[1].shape[-1] == 2:
        return _minor(rows[0], rows[1], 0, 1)
    first, second = (_three_elements(row) for row in rows)
    parts = [_minor(first, second, i, j) for i, j in ((1, 2), (2, 0), (0, 1))]
    found = view.concatenate([view.expand_dims(part, (part.ndim,)) for part in parts], parts[0].ndim)
    at = _axes.one("cross", axisc, found.ndim)
    order = list(range(found.ndim - 1))
    order.insert(at, found.ndim - 1)
    return view.transpose(found, order)


def _three_elements(x: Value) -> Value:
    if x.shape[-1] == 3:
        return x
    zero = convert(0, x.dtype)
    return view.pad(x, zero, [*((0, 0, 0),) * (x.ndim - 1), (0, 1, 0)])


def _minor(x: Value, y: Value, i: int, j: int) -> Value:
    """x[i] y[j] - x[j] y[i] along the last axes."""

    def product(k: int, n: int) -> Value:
        left, right = (
            view.squeeze(view.slice_in_dim(v, at, at + 1, axis=-1), (v.ndim - 1,))
            for v, at in ((x, k), (y, n))
        )
        return families.bind_scalars(e.mul_p, left, right)

    return families.bind_scalars(e.sub_p, product(i, j), product(j, i))


def diagonal(a: ArrayLike, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Value:
    """A diagonal of two axes as a new last dimension, as `numpy.diagonal`.

    Args:
        a: array of at least two dimensions.
        offset: how many columns above the main diagonal; negative ones are below.
        axis1: axis of the rows.
        axis2: axis of the columns.

    Raises:
        ValueMismatchError: the axes are the same, or do not exist.
    """
    x = as_value("diagonal", a)
    if x.ndim < 2:
        raise errors.ValueMismatchError("diagonal needs an array of at least two dimensions", got=str(x.type))
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


def trace(
    a: ArrayLike,
    offset: int = 0,
    axis1: int = 0,
    axis2: int = 1,
    dtype: DTypeLike | None = None,
    out: None = None,
) -> Value:
    """Sum of a diagonal, as `numpy.trace`.

    Args:
        a: array of at least two dimensions.
        offset: how many columns above the main diagonal; negative ones are below.
        axis1: axis of the rows.
        axis2: axis of the columns.
        dtype: dtype of the sum; when absent that of `a`, and int32 for booleans and smaller integers.
        out: accepted for NumPy's sake; only None.

    Raises:
        ValueMismatchError: the axes are the same, or do not exist.
        UnsupportedError: `out` is given.
    """
    _axes.no_out("trace", out)
    return reductions.sum(diagonal(a, offset, axis1, axis2), -1, dtype)
