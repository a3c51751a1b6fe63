"""Norms of vectors and matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e, linalg as factors, view
from infini.numpy import _axes, elementwise, reductions, transcendental
from infini.numpy._promotion import ArrayLike
from infini.numpy.linalg import _operands as o

Order = int | float | str | None


def norm(
    x: ArrayLike, ord: Order = None, axis: tuple[int, ...] | int | None = None, keepdims: bool = False
) -> Value:
    """Norm of vectors or matrices, as `numpy.linalg.norm`.

    Args:
        x: array of any dtype; integers become floats.
        ord: of vectors a number, `inf`, `-inf` or 0 (elements that are not zero); of matrices `"fro"`,
            `"nuc"`, 1, -1, 2, -2, `inf` or `-inf`. None is the root of the sum of squares.
        axis: one axis for norms of vectors, two for norms of matrices. None takes all axes.
        keepdims: keep the axes with size 1.

    Returns:
        Norms, in the real dtype.

    Raises:
        ValueMismatchError: there is no such order, or `axis` names neither one nor two axes.

    Example:
        >>> import infini.numpy as inp
        >>> x = inp.array([[3.0, 4.0], [0.0, 0.0]])
        >>> print(inp.linalg.norm(x), inp.linalg.norm(x, axis=0), inp.linalg.norm(x, 1))
        5.0 [3. 4.] 4.0
    """
    value = o.inexact("norm", x)
    if axis is None and ord is None:
        return transcendental.sqrt(reductions.sum(_squares(value), keepdims=keepdims))
    given = tuple(range(value.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(_axes.one("norm", a, value.ndim) for a in given)
    if len(axes) == 1:
        return _of_vectors(value, ord, axes, keepdims)
    if len(axes) == 2:
        return _of_matrices(value, ord, (axes[0], axes[1]), keepdims)
    raise errors.ValueMismatchError(
        "norm: an improper number of axes",
        got=f"axis={axes}" + (f" of {value.type}" if axis is None else ""),
        expected="one axis for norms of vectors, two for norms of matrices",
        fix="name one axis or two, or leave ord out",
    )


def _squares(x: Value) -> Value:
    return e.real(e.mul(x, e.conj(x))) if x.dtype in dtypes.COMPLEX else e.mul(x, x)


def _of_vectors(x: Value, ord: Order, axes: tuple[int, ...], keepdims: bool) -> Value:
    if ord is None or (not isinstance(ord, str) and ord == 2):
        return transcendental.sqrt(reductions.sum(_squares(x), axes, keepdims=keepdims))
    if isinstance(ord, str):
        raise errors.ValueMismatchError(
            "norm: no such order of a norm of vectors", got=repr(ord), expected="a number, or None"
        )
    if ord == 0:
        size = elementwise.abs(x)
        counted = elementwise.astype(e.ne(x, view.full_like(x, 0)), size.dtype)
        return reductions.sum(counted, axes, keepdims=keepdims)
    size = elementwise.abs(x)
    if math.isinf(ord):
        reduce = reductions.max if ord > 0 else reductions.min
        return reduce(size, axes, keepdims=keepdims)
    if ord == 1:
        return reductions.sum(size, axes, keepdims=keepdims)
    total = reductions.sum(elementwise.power(size, ord), axes, keepdims=keepdims)
    return elementwise.power(total, 1.0 / ord)


def _of_matrices(x: Value, ord: Order, axes: tuple[int, int], keepdims: bool) -> Value:
    if ord is None or ord == "fro":
        return transcendental.sqrt(reductions.sum(_squares(x), axes, keepdims=keepdims))
    if ord in (1, -1) or ord in (math.inf, -math.inf):
        along, across = axes if abs(float(ord)) == 1 else axes[::-1]
        sums = reductions.sum(elementwise.abs(x), along, keepdims=True)
        reduce = reductions.max if float(ord) > 0 else reductions.min
        found = reduce(sums, across, keepdims=True)
    elif ord in (2, -2, "nuc"):
        order = [axis for axis in range(x.ndim) if axis not in axes]
        values = factors.svd(view.transpose(x, (*order, *axes)), compute_uv=False)
        by_order: dict[Order, Callable[..., Value]] = {
            2: reductions.max,
            -2: reductions.min,
            "nuc": reductions.sum,
        }
        found = view.expand_dims(by_order[ord](values, -1), axes)
    else:
        raise errors.ValueMismatchError(
            "norm: no such order of a norm of matrices",
            got=repr(ord),
            expected="'fro', 'nuc', 1, -1, 2, -2, inf, -inf or None",
        )
    return found if keepdims else view.squeeze(found, axes)


def vector_norm(
    x: ArrayLike,
    /,
    *,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    ord: int | float | str = 2,
) -> Value:
    """Norm of vectors, as `numpy.linalg.vector_norm`; several axes count as one vector.

    Args:
        x: array.
        axis: axes of the vectors; all of them when None.
        keepdims: keep the axes with size 1.
        ord: as for `norm`.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.vector_norm(inp.ones((3, 3))))
        3.0
    """
    value = o.inexact("vector_norm", x)
    axes = _axes.several("vector_norm", axis, value.ndim)
    return _of_vectors(value, ord, axes, keepdims)


def matrix_norm(x: ArrayLike, /, *, keepdims: bool = False, ord: str | int | float = "fro") -> Value:
    """Norm of the matrices in the last two dimensions, as `numpy.linalg.matrix_norm`; `ord` as for `norm`."""
    return norm(x, ord, (-2, -1), keepdims)
