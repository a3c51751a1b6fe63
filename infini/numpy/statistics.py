"""Covariance, correlation and finite differences of samples."""

from __future__ import annotations

from collections.abc import Sequence

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import families, view
from infini.numpy import elementwise, joining, manipulation, products, transcendental
from infini.numpy._promotion import ArrayLike, as_value, convert
from infini.numpy.complex_numbers import conj


def cov(
    m: ArrayLike,
    y: ArrayLike | None = None,
    rowvar: bool = True,
    bias: bool = False,
    ddof: int | None = None,
    fweights: ArrayLike | None = None,
    aweights: ArrayLike | None = None,
) -> Value:
    """Covariance of variables, as `jax.numpy.cov`.

    Args:
        m: observations, at most two dimensions; a row is a variable.
        y: more variables, in the same form.
        rowvar: whether rows are variables; otherwise columns are.
        bias: divide by the number of observations instead of one less.
        ddof: what is subtracted from the number of observations; decides over `bias`.
        fweights: how often each observation counts, integers.
        aweights: weight of each observation.

    Returns:
        Matrix of covariances, or a number for one variable.

    Raises:
        ValueMismatchError: an array has more than two dimensions, or weights have not one.
        TypeMismatchError: `fweights` are no integers.

    Example:
        >>> import infini.numpy as inp
        >>> inp.cov(inp.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]))
        Array([[ 1., -1.],
               [-1.,  1.]], dtype=float32)
    """
    x = _variables(m, rowvar)
    if y is not None:
        x = joining.concatenate([x, _variables(y, rowvar)], axis=0)
    correction = (0 if bias else 1) if ddof is None else ddof
    weights: Value | None = None
    if fweights is not None:
        counts = _weights("fweights", fweights)
        if counts.dtype not in dtypes.INTEGERS:
            raise errors.TypeMismatchError("cov: fweights are integers", got=str(counts.type))
        weights = convert(counts, x.real.dtype)
    total: ArrayLike = x.shape[1] if weights is None else weights.sum()
    if aweights is not None:
        given = convert(_weights("aweights", aweights), x.real.dtype)
        weights = given if weights is None else given * weights
        total = weights.sum()
        norm = total - correction * (weights * given).sum() / total if correction else total
    else:
        norm = total - correction
    mean = (
        x.mean(axis=1, keepdims=True) if weights is None
        else (x * weights).sum(axis=1, keepdims=True) / weights.sum()
    )  # fmt: skip
    moved = x - mean
    weighted = moved if weights is None else moved * weights
    return manipulation.squeeze(products.matmul(weighted, conj(moved).T) / norm)


def _variables(m: ArrayLike, rowvar: bool) -> Value:
    x = as_value("cov", m)
    if x.ndim > 2:
        raise errors.ValueMismatchError("cov: an array has more than two dimensions", got=str(x.type))
    if not dtypes.is_inexact(x.dtype):
        x = convert(x, dtypes.float32)
    x = x.reshape((1, -1)) if x.ndim < 2 else x
    return x if rowvar or x.shape[0] == 1 else x.T


def _weights(name: str, weights: ArrayLike) -> Value:
    found = as_value("cov", weights)
    if found.ndim != 1:
        raise errors.ValueMismatchError(f"cov: {name} have one dimension", got=str(found.type))
    return found


def corrcoef(x: ArrayLike, y: ArrayLike | None = None, rowvar: bool = True) -> Value:
    """Pearson correlation of variables, as `jax.numpy.corrcoef`; NaN for a variable that is constant.

    Args:
        x: observations, at most two dimensions; a row is a variable.
        y: more variables, in the same form.
        rowvar: whether rows are variables; otherwise columns are.
    """
    c = cov(x, y, rowvar)
    if c.ndim == 0:
        return c / c
    deviation = transcendental.sqrt(products.diagonal(c).real)
    found = c / deviation[:, None] / deviation[None, :]
    # Rounding may lead a little past 1.
    return found if found.dtype in dtypes.COMPLEX else elementwise.clip(found, -1, 1)


def gradient(
    f: ArrayLike,
    *varargs: ArrayLike,
    axis: int | Sequence[int] | None = None,
    edge_order: int | None = None,
) -> Value | list[Value]:
    """Slopes by central differences inside and by one-sided ones at the ends, as `jax.numpy.gradient`.

    Args:
        f: samples.
        varargs: distance between samples: one for all axes, or one per axis, or the places along each axis.
        axis: axes to go along; all of them when absent.
        edge_order: None or 1; JAX has no other.

    Returns:
        An array of the shape of `f` for one axis, a list of them for several.

    Raises:
        ValueMismatchError: an axis has fewer than two samples, or the distances do not fit the axes.
    """
    x = as_value("gradient", f)
    if not dtypes.is_inexact(x.dtype):
        x = convert(x, dtypes.float32)
    if edge_order not in (None, 1):
        raise errors.ValueMismatchError("gradient: edge_order is 1", got=str(edge_order))
    given = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = [families.normalize_axis(a, x.ndim) for a in given]
    if any(x.shape[a] < 2 for a in axes):
        raise errors.ValueMismatchError("gradient: an axis has fewer than two samples", got=str(x.type))
    steps = list(varargs) or [1.0]
    steps = steps * len(axes) if len(steps) == 1 else steps
    if len(steps) != len(axes):
        raise errors.ValueMismatchError(
            "gradient: one distance per axis", got=f"{len(varargs)} for {len(axes)} axes"
        )
    found = [_slope(x, step, a) for step, a in zip(steps, axes, strict=True)]
    return found[0] if len(axes) == 1 else found


def _slope(x: Value, step: ArrayLike, axis: int) -> Value:
    def cut(start: int, stop: int) -> Value:
        return view.slice_in_dim(x, start, stop, axis=axis)

    n = x.shape[axis]
    places = as_value("gradient", step)
    first, last = cut(1, 2) - cut(0, 1), cut(n - 1, n) - cut(n - 2, n - 1)
    if places.ndim == 0:
        inner = (cut(2, n) - cut(0, n - 2)) / 2
        return joining.concatenate([first, inner, last], axis=axis) / places
    if places.shape != (n,):
        raise errors.ValueMismatchError(
            "gradient: places of another number than the samples",
            got=str(places.type),
            expected=f"{n} places",
        )
    gaps = (places[1:] - places[:-1]).reshape((-1, *(1,) * (x.ndim - 1 - axis)))

    def gap(start: int, stop: int) -> Value:
        return gaps[start:stop]

    before, after = gap(0, n - 2), gap(1, n - 1)
    inner = (
        cut(0, n - 2) * (-after / (before * (before + after)))
        + cut(1, n - 1) * ((after - before) / (before * after))
        + cut(2, n) * (before / (after * (before + after)))
    )
    return joining.concatenate([first / gap(0, 1), inner, last / gap(n - 2, n - 1)], axis=axis)
