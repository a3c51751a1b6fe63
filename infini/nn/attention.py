"""Scaled dot-product attention with JAX's signature. Shapes: B batch, T queries, S keys, N heads, K key
heads, H head size."""

from __future__ import annotations

import functools
import math
from typing import Literal

import ml_dtypes

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.composites import attention
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
    groups = (key_heads, heads // key_heads)
    wide = q.dtype if q.dtype.itemsize >= 4 else dtypes.float32
    operands = [view.reshape(q, (batch, queries, *groups, size)), k, v]  # (B, T, K, G, H), (B, S, K, H)
    spec = ["btkgd", "bskd", "bskv"]
    if bias is not None:
        given = convert(as_value("dot_product_attention", bias), wide)
        _append(operands, spec, given, (batch, *groups, queries, keys))
    masks = _masks(mask, query_seq_lengths, key_value_seq_lengths, queries, keys)
    if masks:
        allowed = functools.reduce(lambda a, b: trace.bind1(e.and_p, a, b), masks)
        _append(operands, spec, allowed, (batch, *groups, queries, keys))
    mixed = trace.bind1(
        attention.attention_p,
        *operands,
        spec=f"{','.join(spec)}->btkgv,bkgt",
        scale=1 / math.sqrt(size) if scale is None else float(scale),
        band=_band(is_causal, local_window_size),
        fill=-0.7 * float(ml_dtypes.finfo(wide).max),
        has_bias=bias is not None,
        has_mask=bool(masks),
    )
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


def _append(operands: list[Value], spec: list[str], x: Value, sizes: tuple[int, ...]) -> None:
    """Add a bias or a mask, which broadcasts to (B, N, T, S), without dimensions of size 1; `sizes` has N as
    (K, G)."""
    batch, key_heads, groups, queries, keys = sizes
    full = (batch, key_heads * groups, queries, keys)
    shape = (1,) * (4 - x.ndim) + x.shape
    if x.ndim > 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
        raise errors.TypeMismatchError(
            "dot_product_attention: bias and mask have to broadcast to (B, N, T, S)",
            got=str(x.type),
            expected=str(full),
        )
    letters = ("b", "kg", "t", "s")
    kept = [(n, c) for n, c in zip(shape, letters, strict=True) if n != 1]
    split = [size for n, c in kept for size in ((key_heads, groups) if c == "kg" else (n,))]
    operands.append(view.reshape(x, tuple(split)))
    spec.append("".join(c for _, c in kept))


def _masks(
    mask: ArrayLike | None,
    query_lengths: ArrayLike | None,
    key_lengths: ArrayLike | None,
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
    if key_lengths is not None:
        result.append(view.expand_dims(_before(key_lengths, keys, "key_value_seq_lengths"), (1, 2)))
    if query_lengths is not None:
        result.append(view.expand_dims(_before(query_lengths, queries, "query_seq_lengths"), (1, 3)))
    return result


def _band(is_causal: bool, window: int | tuple[int, int] | None) -> attention.Band:
    """How far keys may lie before and after the query that looks at them."""
    low, high = None, 0 if is_causal else None
    if window is not None:
        left, right = (window, window) if isinstance(window, int) else window
        if left < 0 or right < 0:
            raise errors.ValueMismatchError("dot_product_attention: a window is negative", got=str(window))
        low, high = -left, 0 if is_causal else right
    return low, high


def _before(lengths: ArrayLike, size: int, name: str) -> Value:
    """Which of `size` places lie before each length, (B, size)."""
    ends = as_value("dot_product_attention", lengths)
    if ends.ndim != 1 or ends.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"dot_product_attention: {name} has to be a vector of integers", got=str(ends.type)
        )
    places = view.broadcasted_iota(dtypes.int32, (1, size), 1)
    return trace.bind1(e.lt_p, places, view.expand_dims(convert(ends, dtypes.int32), (1,)))
