"""`paged_attention`, `paged_update` and `paged_quantize`: options against NumPy written out for one request,
the transforms, and what is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import dtypes, errors

HEADS, KEY_HEADS, WIDTH, SIZE = 4, 2, 8, 4


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def dense(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, *, window: int | None = None,
    softcap: float | None = None, sinks: np.ndarray | None = None, scale: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Causal attention of (T, H, D), (L, K, D), (L, K, E), whose last tokens are at the last keys."""
    count, heads, width = query.shape
    keys, values = (np.repeat(x.astype(np.float64), heads // x.shape[1], 1) for x in (keys, values))
    scores = np.einsum("thd,shd->hts", query, keys) * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    place = np.arange(len(keys) - count, len(keys))[:, None]
    distance = place - np.arange(len(keys))
    seen = (distance >= 0) & (distance < (window or len(keys)))
    grown = np.where(seen, np.exp(scores), 0.0)
    total = grown.sum(-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks)[:, None, None]
    return np.einsum("hts,shd->thd", grown / total, values)


def one_request(count: int, length: int, width: int = WIDTH) -> tuple[list[Any], list[np.ndarray]]:
    """Operands for one request, and its queries, keys and values one after the other."""
    query, keys = normal(count, HEADS, WIDTH), normal(length, KEY_HEADS, WIDTH)
    values = normal(length, KEY_HEADS, width, seed=1)
    blocks = -(-length // SIZE)
    table = np.random.default_rng(2).permutation(blocks + 2)[:blocks]
    slots = table[np.arange(length) // SIZE] * SIZE + np.arange(length) % SIZE
    caches = [
        lax.paged_update(inp.full((blocks + 2, KEY_HEADS, SIZE, x.shape[2]), inp.nan), x, slots)
        for x in (keys, values)
    ]
    return [query, *caches, table[None], [length], [0, count]], [query, keys, values]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "cap": {"softcap": 0.7},
    "scale": {"scale": 2.0},
    "sinks": {"sinks": np.array([0.5, -1.0, 2.0, 0.0], np.float32)},
    "all": {"window": 5, "softcap": 3.0, "scale": 0.9, "sinks": np.array([0.5, -1.0, 2.0, 0.0], np.float32)},
}


@pytest.mark.parametrize("count, length", [(1, 1), (1, 11), (3, 11), (11, 11)])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_mean_what_they_say(name: str, count: int, length: int) -> None:
    operands, flat = one_request(count, length, width=6)
    found = lax.paged_attention(*map(inp.asarray, operands), **OPTIONS[name])
    np.testing.assert_allclose(np.asarray(found), dense(*flat, **OPTIONS[name]), atol=2e-6)


def test_values_may_be_the_first_numbers_of_the_keys() -> None:
    operands, (query, keys, _) = one_request(3, 11)
    operands[2] = None
    found = lax.paged_attention(*operands, value_width=5)
    np.testing.assert_allclose(np.asarray(found), dense(query, keys, keys[..., :5]), atol=2e-6)


@pytest.mark.parametrize("dtype", [dtypes.int8, dtypes.float8_e4m3fn])
def test_codes_with_scales_are_their_products(dtype: np.dtype) -> None:
    operands, (query, keys, values) = one_request(3, 11)
    table = operands[3][0]
    slots = table[np.arange(11) // SIZE] * SIZE + np.arange(11) % SIZE
    blocks, found, exact = len(operands[1]), [], []
    for x in (keys, values):
        codes, scales = lax.paged_quantize(x, dtype)
        exact.append(np.asarray(codes).astype(np.float32) * np.asarray(scales)[..., None])
        found += [
            lax.paged_update(inp.zeros((blocks, KEY_HEADS, SIZE, WIDTH), dtype), codes, slots),
            lax.paged_update(inp.zeros((blocks, KEY_HEADS, SIZE)), scales, slots),
        ]
    k, k_scales, v, v_scales = found
    out = lax.paged_attention(query, k, v, *operands[3:], key_scales=k_scales, value_scales=v_scales)
    np.testing.assert_allclose(np.asarray(out), dense(query, *exact), atol=2e-6)
    assert np.abs(exact[0] - keys).max() < (0.02 if dtype == dtypes.int8 else 0.15)


def test_rows_of_zeros_have_codes() -> None:
    codes, scales = lax.paged_quantize(inp.zeros((2, 4)), "int8")
    assert not np.asarray(codes).any() and np.isfinite(np.asarray(scales)).all()


def test_tokens_of_no_request_and_without_keys_get_zeros() -> None:
    (_, keys, values, table, _, _), _ = one_request(1, 11)
    query = normal(6, HEADS, WIDTH)
    # A request of two tokens whose first is before its first key, one without keys, and padding.
    found = np.asarray(
        lax.paged_attention(query, keys, values, np.repeat(table, 3, 0), [1, 0, 0], [0, 2, 3, 3])
    )
    assert not found[[0, 2, 3, 4, 5]].any() and found[1].any()


def test_requests_may_share_blocks() -> None:
    operands, (query, keys, values) = one_request(2, 11)
    tables = np.repeat(operands[3], 2, 0)
    found = lax.paged_attention(query, *operands[1:3], tables, [11, 6], [0, 1, 2])
    expected = [dense(query[i : i + 1], keys[:n], values[:n])[0] for i, n in enumerate((11, 6))]
    np.testing.assert_allclose(np.asarray(found), np.stack(expected), atol=2e-6)


def test_a_result_in_sixteen_bits_has_the_dtype_of_the_queries() -> None:
    operands, flat = one_request(3, 11)
    narrow = [inp.asarray(x, dtypes.bfloat16) for x in operands[:3]]
    found = lax.paged_attention(*narrow, *operands[3:])
    assert found.dtype == dtypes.bfloat16
    np.testing.assert_allclose(np.asarray(found).astype(np.float32), dense(*flat), atol=0.03)


# --- transforms -----------------------------------------------------------------------------------


def test_vmap_is_a_loop() -> None:
    operands, _ = one_request(3, 11)
    queries = inp.asarray(normal(2, 3, HEADS, WIDTH))
    rest = [inp.asarray(x) for x in operands[1:]]
    found = inf.vmap(lambda q: lax.paged_attention(q, *rest))(queries)
    looped = np.stack([np.asarray(lax.paged_attention(q, *rest)) for q in queries])
    np.testing.assert_allclose(np.asarray(found), looped, atol=1e-6)


def test_vmap_of_an_update_is_a_loop() -> None:
    caches, rows = inp.zeros((2, 5, 1, 4, 3)), inp.asarray(normal(2, 6, 1, 3))
    slots = inp.asarray([1, 7, 3, -1, 19, 40])
    found = inf.vmap(lax.paged_update, in_axes=(0, 0, None))(caches, rows, slots)
    looped = np.stack([np.asarray(lax.paged_update(c, r, slots)) for c, r in zip(caches, rows, strict=True)])
    np.testing.assert_array_equal(np.asarray(found), looped)


def test_the_derivative_is_that_of_the_definition() -> None:
    operands, (query, keys, values) = one_request(3, 11)
    rest = [inp.asarray(x) for x in operands[1:]]
    weights = normal(3, HEADS, WIDTH, seed=4)
    gradient = inf.grad(lambda q: (lax.paged_attention(q, *rest) * weights).sum())(inp.asarray(query))
    direction = normal(3, HEADS, WIDTH, seed=5)
    step, wide = 1e-5, query.astype(np.float64)
    ends = [(dense(wide + sign * step * direction, keys, values) * weights).sum() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-4)


def test_long_tables_are_gone_through_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition gathers some blocks at a time."""
    from infini.lax.composites import paged_definition

    monkeypatch.setattr(paged_definition, "STEP_ELEMENTS", 3 * 2 * SIZE * KEY_HEADS * WIDTH)
    operands, flat = one_request(3, 21)
    values = [inp.asarray(x, None if np.asarray(x).dtype.kind == "f" else np.int32) for x in operands]
    query, keys, cache, *integers = values
    (out,) = paged_definition.attention(query, keys, *integers, cache, scale=WIDTH**-0.5)
    np.testing.assert_allclose(np.asarray(out), dense(*flat), atol=2e-6)


# --- what is refused --------------------------------------------------------------------------------


def refused(**changes: Any) -> Any:
    operands, _ = one_request(3, 11)
    names = ("query", "keys", "values", "block_tables", "lengths", "query_starts")
    given = {**dict(zip(names, operands, strict=True)), **changes}
    return lax.paged_attention(
        **{k: v if v is None else inp.asarray(v) if k in names else v for k, v in given.items()}
    )


@pytest.mark.parametrize("changes, message", [
    ({"query": np.zeros((3, 3, WIDTH), np.float32)}, "query and keys do not go together"),
    ({"query": np.zeros((3, HEADS, WIDTH + 1), np.float32)}, "query and keys do not go together"),
    ({"query": np.zeros((3, HEADS), np.float32)}, "query has another number of dimensions"),
    ({"query": np.zeros((3, HEADS, WIDTH), np.int32)}, "query is floating"),
    ({"keys": np.zeros((5, KEY_HEADS, SIZE, WIDTH), np.int8)}, "floats or int8 of one dtype"),
    ({"lengths": np.zeros(2, np.int32)}, "different numbers of requests"),
    ({"query_starts": np.zeros(1, np.int32)}, "different numbers of requests"),
    ({"sinks": np.zeros(3, np.float32)}, "one sink for each head"),
    ({"key_scales": np.zeros((1, 1, 1), np.float32), "value_scales": np.zeros((1, 1, 1), np.float32)},
     "one scale for each token and head"),
    ({"values": None, "value_width": 9}, "value_width is no part of the keys"),
])  # fmt: skip
def test_shapes_and_dtypes_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.TypeMismatchError, match=message):
        refused(**changes)


def test_codes_without_scales_are_refused() -> None:
    codes = np.zeros((5, KEY_HEADS, SIZE, WIDTH), np.int8)
    with pytest.raises(errors.TypeMismatchError, match="come with scales"):
        refused(keys=codes, values=codes)


@pytest.mark.parametrize("changes, message", [
    ({"window": 0}, "at least one key"),
    ({"softcap": -1.0}, "softcap is positive"),
    ({"values": None}, "values are an array, or"),
    ({"value_width": 4}, "values are an array, or"),
    ({"key_scales": np.zeros((5, KEY_HEADS, SIZE), np.float32)}, "have scales, or neither"),
])  # fmt: skip
def test_options_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=message):
        refused(**changes)


def test_rows_that_do_not_fit_a_cache_are_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="do not fit the cache"):
        lax.paged_update(inp.zeros((4, 2, 4, 3)), inp.zeros((5, 1, 3)), inp.zeros(5, int))
    with pytest.raises(errors.ValueMismatchError, match="no codes of this dtype"):
        lax.paged_quantize(inp.zeros((4, 3)), "int32")
