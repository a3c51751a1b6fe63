"""Random orthogonal matrices, and vectors with a covariance: samples that decompositions shape. Methods are
JAX's, so equal keys give equal numbers."""

from __future__ import annotations

from typing import Any, Literal

import infini.numpy as inp
from infini.core import errors
from infini.core.value import Value
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, convert, inexact_operands
from infini.random import normal as normal_, streams
from infini.random.keys import KeyLike
from infini.random.streams import Placement


def orthogonal(
    key: KeyLike,
    n: int,
    shape: Any = (),  # Any: sizes
    dtype: DTypeLike | None = None,
    m: int | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:
    """Orthogonal matrices, uniform by Haar's measure; unitary ones for complex dtypes.

    Args:
        key: a key.
        n: number of rows.
        shape: leading dimensions of the result.
        dtype: an inexact dtype, float32 when absent.
        m: number of columns, `n` when absent; the shorter of rows and columns are orthonormal.
        out_sharding: placement of the result.

    Returns:
        Matrices (..., n, m).

    Example:
        >>> import infini.numpy as inp
        >>> from infini import random
        >>> q = random.orthogonal(random.key(0), 3)
        >>> bool(inp.allclose(q @ q.T, inp.eye(3), atol=1e-5))
        True
    """
    columns = n if m is None else m
    sizes = _axes.shape("orthogonal", shape)
    samples = normal_.normal(key, (*sizes, max(n, columns), min(n, columns)), dtype)
    q, r = inp.linalg.qr(samples)
    found = inp.multiply(q, inp.expand_dims(inp.sign(inp.linalg.diagonal(r)), -2))
    turned = inp.matrix_transpose(found) if n < columns else found
    return streams.placed(turned, out_sharding)


def multivariate_normal(
    key: KeyLike,
    mean: ArrayLike,
    cov: ArrayLike,
    shape: Any = None,  # Any: sizes
    dtype: DTypeLike | None = None,
    method: Literal["cholesky", "eigh", "svd"] = "cholesky",
    *,
    out_sharding: Placement = None,
) -> Value:
    """Normal vectors with a mean and a covariance.

    Args:
        key: a key.
        mean: (..., n).
        cov: (..., n, n), positive definite, or semidefinite with another `method` than `"cholesky"`.
        shape: leading dimensions of the result, to which those of `mean` and `cov` broadcast.
        dtype: a float dtype; that of `mean` and `cov` when absent.
        method: how the root of the covariance is found.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: shapes do not go together, or there is no such method.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import random
        >>> random.multivariate_normal(random.key(0), inp.zeros(2), inp.eye(2), (5,)).shape
        (5, 2)
    """
    if method not in ("cholesky", "eigh", "svd"):
        raise errors.ValueMismatchError(
            "multivariate_normal: no such method", got=repr(method), expected="'cholesky', 'eigh' or 'svd'"
        )
    center, spread = inexact_operands("multivariate_normal", mean, cov)
    target = streams.float_dtype("multivariate_normal", center.dtype if dtype is None else dtype)
    center, spread = convert(center, target), convert(spread, target)
    if center.ndim < 1 or spread.ndim < 2 or spread.shape[-2:] != (center.shape[-1],) * 2:
        raise errors.ValueMismatchError(
            "multivariate_normal: shapes do not go together",
            got=f"mean {center.type}, cov {spread.type}",
            expected="mean (..., n) and cov (..., n, n)",
        )
    loop = inp.broadcast_shapes(center.shape[:-1], spread.shape[:-2])
    sizes = loop if shape is None else _axes.shape("multivariate_normal", shape)
    samples = normal_.normal(key, (*sizes, center.shape[-1]), target)
    if method == "cholesky":
        factor = inp.linalg.cholesky(spread)
    elif method == "eigh":
        values, vectors = inp.linalg.eigh(spread)
        factor = inp.multiply(vectors, inp.sqrt(inp.expand_dims(values, -2)))
    else:
        u, s, _ = inp.linalg.svd(spread)
        factor = inp.multiply(u, inp.sqrt(inp.expand_dims(s, -2)))
    found = inp.add(center, inp.einsum("...ij,...j->...i", factor, samples))
    return streams.placed(found, out_sharding)
