"""Scaled dot-product attention with JAX's signature. Shapes: B batch, T queries, S keys, N heads, K key
heads, H head size."""

from __future__ import annotations

import math
from typing import Literal

import ml_dtypes

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import contraction, elementwise as e, view
from infini.lax.families import bind_scalars
from infini.nn import activations
from infini.numpy._promotion import ArrayLike, as_value, convert


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla"] | None = None,
    return_residual: Literal[False] = False,
) -> Value:
    """Attention: softmax of scaled products of queries and keys, times the values. Scores and softmax are
    float32 or wider.

    Args:
        query: (B, T, N, H), or (T, N, H).
        key: (B, S, K, H); K divides N, and each key head serves N / K query heads in turn.
        value: (B, S, K, H).
        bias: added to the scores; broadcasts to (B, N, T, S).
        mask: boolean, true where a query may look at a key; broadcasts to (B, N, T, S).
        scale: factor of the scores, `1 / sqrt(H)` when absent.
        is_causal: query t only looks at keys up to t.
        query_seq_lengths: (B,) integers; later queries give zeros.
        key_value_seq_lengths: (B,) integers; later keys are not looked at.
        local_window_size: how many keys to the left and right of its own place a query may look at.
        implementation: accepted for JAX's sake; None or `xla`.
        return_residual: accepted for JAX's sake; only False.

    Returns:
        (B, T, N, H) in the dtype of `query`.

    Raises:
        TypeMismatchError: shapes or dtypes do not go together.
        ValueMismatchError: an option is not supported.
    """
    if implementation not in (None, "xla") or return_residual:
        raise errors.ValueMismatchError(
            "dot_product_attention: this option is not supported",
            got=f"implementation={implementation!r}, return_residual={return_residual!r}",
            expected="implementation=None, return_residual=False",
            fix="leave it out; the backend chooses the kernel",
        )
    q, k, v = (as_value("dot_product_attention", x) for x in (query, key, value))
    is_single = q.ndim == 3
    if is_single:
        q, k, v = (view.expand_dims(x, (0,)) for x in (q, k, v))
    _check(q, k, v)
    batch, queries, heads, size = q.shape
    keys, key_heads = k.shape[1:3]
    grouped = view.reshape(q, (batch, queries, key_heads, heads // key_heads, size))  # (B, T, K, G, H)
    wide = q.dtype if q.dtype.itemsize >= 4 else dtypes.float32
    scores = contraction.contract("btkgh,bskh->bkgts", grouped, k, preferred_element_type=wide)
    scores = view.reshape(scores, (batch, heads, queries, keys))  # (B, N, T, S)
    scores = bind_scalars(e.mul_p, scores, 1 / math.sqrt(size) if scale is None else scale)
    if bias is not None:
        scores = trace.bind1(e.add_p, scores, convert(as_value("dot_product_attention", bias), wide))
    allowed = _allowed(
        mask, is_causal, query_seq_lengths, key_value_seq_lengths, local_window_size, queries, keys
    )
    for one in allowed:
        lowest = convert(-0.7 * float(ml_dtypes.finfo(wide).max), wide)
        scores = trace.bind1(e.select_n_p, one, lowest, scores)
    weights = convert(activations.softmax(scores), k.dtype)
    weights = view.reshape(weights, (batch, key_heads, heads // key_heads, queries, keys))
    mixed = contraction.contract("bkgts,bskh->btkgh", weights, v)
    result = view.reshape(mixed, (batch, queries, heads, size))
    if query_seq_lengths is not None:
        inside = _before(query_seq_lengths, queries, "query_seq_lengths")  # (B, T)
        kept = view.expand_dims(inside, (2, 3))
        result = trace.bind1(e.select_n_p, kept, convert(0, result.dtype), result)
    return view.squeeze(result, (0,)) if is_single else result


def _check(q: Value, k: Value, v: Value) -> None:
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
    )
    if (
        not fits
        or q.shape[2] % k.shape[2]
        or not q.dtype == k.dtype == v.dtype
        or q.dtype not in dtypes.FLOATS
    ):
        raise errors.TypeMismatchError(
            "dot_product_attention: query, key and value do not go together",
            got=f"{q.type}, {k.type}, {v.type}",
            expected="floats of one dtype: (B, T, N, H), (B, S, K, H), (B, S, K, H), where K divides N",
        )


def _allowed(
    mask: ArrayLike | None,
    is_causal: bool,
    query_lengths: ArrayLike | None,
    key_lengths: ArrayLike | None,
    window: int | tuple[int, int] | None,
    queries: int,
    keys: int,
) -> list[Value]:
    """Boolean arrays that broadcast to (B, N, T, S); a score counts where all of them hold."""
    result = []
    if mask is not None:
        given = as_value("dot_product_attention", mask)
        if given.dtype != dtypes.bool_:
            raise errors.TypeMismatchError(
                "dot_product_attention: the mask has to be boolean",
                got=str(given.type),
                fix="pass it as bias=",
            )
        result.append(given)
    row = view.broadcasted_iota(dtypes.int32, (queries, 1), 0)
    column = view.broadcasted_iota(dtypes.int32, (1, keys), 1)
    if is_causal:
        result.append(trace.bind1(e.ge_p, row, column))
    if window is not None:
        left, right = (window, window) if isinstance(window, int) else window
        if left < 0 or right < 0:
            raise errors.ValueMismatchError("dot_product_attention: a window is negative", got=str(window))
        result.append(trace.bind1(e.le_p, row, bind_scalars(e.add_p, column, left)))
        result.append(trace.bind1(e.ge_p, row, bind_scalars(e.sub_p, column, right)))
    if key_lengths is not None:
        result.append(view.expand_dims(_before(key_lengths, keys, "key_value_seq_lengths"), (1, 2)))
    if query_lengths is not None:
        result.append(view.expand_dims(_before(query_lengths, queries, "query_seq_lengths"), (1, 3)))
    return result


def _before(lengths: ArrayLike, size: int, name: str) -> Value:
    """Which of `size` places lie before each length, (B, size)."""
    ends = as_value("dot_product_attention", lengths)
    if ends.ndim != 1 or ends.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"dot_product_attention: {name} has to be a vector of integers", got=str(ends.type)
        )
    places = view.broadcasted_iota(dtypes.int32, (1, size), 1)
    return trace.bind1(e.lt_p, places, view.expand_dims(convert(ends, dtypes.int32), (1,)))
