"""The model's forward pass: causality, the cache, grouped heads, the loss."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

import infini as inf
from infini import random
from infini.train import gpt

CONFIG = gpt.Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_length=64,
)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> gpt.Params:
    return inf.jit(functools.partial(gpt.init, config=CONFIG))(random.PRNGKey(0))


@pytest.fixture(scope="module")
def logits(params: gpt.Params) -> np.ndarray:
    return np.asarray(inf.jit(functools.partial(gpt.forward, config=CONFIG))(params, TOKENS))


def test_untrained_loss_is_that_of_guessing(params: gpt.Params) -> None:
    assert float(gpt.loss(params, TOKENS, CONFIG)) == pytest.approx(np.log(61), abs=0.05)


def test_later_tokens_do_not_change_earlier_logits(params: gpt.Params, logits: np.ndarray) -> None:
    changed = TOKENS.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 61
    other = np.asarray(gpt.forward(params, changed, CONFIG))
    np.testing.assert_allclose(other[:, :7], logits[:, :7], atol=1e-5)
    assert np.abs(other[:, 7:] - logits[:, 7:]).max() > 1e-3


def test_token_by_token_with_a_cache_gives_the_logits_of_the_whole(
    params: gpt.Params, logits: np.ndarray
) -> None:
    forward = inf.jit(functools.partial(gpt.forward_cached, config=CONFIG), donate_argnums=1)
    cache = gpt.init_cache(CONFIG, 2, 16)
    for position in range(12):
        step, cache = forward(params, cache, TOKENS[:, position : position + 1], np.int32(position))
        np.testing.assert_allclose(step[:, 0], logits[:, position], atol=1e-5)


def test_padding_behind_a_prompt_is_never_read(params: gpt.Params, logits: np.ndarray) -> None:
    padded = np.zeros((2, 8), np.int32)
    padded[:, :5] = TOKENS[:, :5]
    prompt, cache = gpt.forward_cached(params, gpt.init_cache(CONFIG, 2, 16), padded, 0, CONFIG)
    rest, _ = gpt.forward_cached(params, cache, TOKENS[:, 5:], 5, CONFIG)
    np.testing.assert_allclose(prompt[:, :5], logits[:, :5], atol=1e-5)
    np.testing.assert_allclose(rest, logits[:, 5:], atol=1e-5)


def test_grouped_heads_equal_repeated_ones(params: gpt.Params, logits: np.ndarray) -> None:
    wide = inf.tree.map(lambda x: x, params)
    for layer in wide["layers"]:
        for name in ("k_proj", "v_proj"):
            heads = np.asarray(layer["self_attn"][name]).reshape(2, 8, 32)
            layer["self_attn"][name] = np.repeat(heads, 2, axis=0).reshape(32, 32)
    found = gpt.forward(wide, TOKENS, replace(CONFIG, num_kv_heads=4))
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_untied_embeddings_have_a_projection_of_their_own() -> None:
    config = replace(CONFIG, tie_embeddings=False)
    params = gpt.init(random.PRNGKey(0), config)
    assert params["lm_head"].shape == (61, 32)
    assert gpt.forward(params, TOKENS, config).shape == (2, 12, 61)


def test_cross_entropy_of_large_logits_is_finite() -> None:
    logits = np.array([[1e4, 0.0, -1e4]], np.float32)
    np.testing.assert_allclose(gpt.cross_entropy(logits, np.array([1])), [1e4])
