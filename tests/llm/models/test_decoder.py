"""The decoder's programs: few kernels, no copies of a cache, nothing traced twice, weights in few bits
everywhere, and experts that nobody chose left alone.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import quantization
from infini.llm import models
from infini.llm.models import Rows, experts, layers, weights

BLOCK, BLOCKS = 16, 6
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mixtral": SIZES | {"num_local_experts": 4},
    "gemma2": SIZES | {"head_dim": 32, "sliding_window": 5},
    "phi3": SIZES,
    "gpt2": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "deepseek_v3": SIZES | LATENT,
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def made(kind: str, scheme: str | None = None, **more: Any) -> tuple[models.Config, dict[str, Any]]:
    """A model with random weights."""
    data = {"model_type": kind} | KINDS.get(kind, SIZES) | more
    config, random = models.config_from_json(data), np.random.default_rng(0)
    params: dict[str, Any] = {}
    for weight in models.family_of(data).weights(config):
        array: Any = inp.asarray(random.normal(size=weight.shape) * 0.15, dtype="float32")
        weights.put(
            params,
            weight.path,
            array if scheme is None or weight.kind == "plain" else quantization.quantize(array, scheme),
        )
    return config, params


@functools.cache
def step_of() -> Any:  # Any: a jitted function
    def step(params: Any, cache: Any, batch: models.Batch, config: models.Config) -> Any:
        hidden, cache = models.forward(params, cache, batch, config)
        return models.logits(params, hidden[batch.last], config), cache

    return inf.jit(step, static_argnames="config", donate_argnames="cache", donation="require")


def batch_of(*requests: Rows, num_tokens: int = 8, num_requests: int = 2) -> models.Batch:
    return models.make_batch(
        requests, block_size=BLOCK, num_blocks=BLOCKS, num_tokens=num_tokens, num_requests=num_requests,
        blocks_per_request=2,
    )  # fmt: skip


def run(config: models.Config, params: Any, *requests: Rows, dtype: Any = "float32") -> np.ndarray:
    cache = models.init_cache(config, BLOCKS, BLOCK, dtype)
    found, _ = step_of()(params, cache, batch_of(*requests), config=config)
    return np.asarray(found)[: len(requests)]


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_in_few_bits_work_everywhere(kind: str) -> None:
    config, params = made(kind)
    exact = run(config, params, Rows(PROMPT, 0, [1]))
    _, stored = made(kind, "Q8_0")
    spread = np.abs(exact).max()
    np.testing.assert_allclose(run(config, stored, Rows(PROMPT, 0, [1])), exact, atol=0.05 * spread)


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.03), ("int8", 0.03), ("float8_e4m3fn", 0.1)])
def test_caches_of_fewer_bits(kind: str, dtype: str, tolerance: float) -> None:
    config, params = made(kind)
    exact = run(config, params, Rows(PROMPT, 0, [1]))
    found = run(config, params, Rows(PROMPT, 0, [1]), dtype=dtype)
    np.testing.assert_allclose(found, exact, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize("dtype, nbytes", [("float32", 4 * 64), ("bfloat16", 2 * 64), ("int8", 64 + 4 * 4)])
def test_bytes_of_a_token_are_those_of_a_cache(dtype: str, nbytes: int) -> None:
    config, _ = made("llama")  # keys and values for 2 heads of width 16
    leaves = inf.tree.leaves(models.init_cache(config, 3, 16, dtype))
    assert models.cache_bytes_per_token(config, dtype) == config.num_layers * nbytes
    assert sum(leaf.nbytes for leaf in leaves) == 3 * 16 * config.num_layers * nbytes


def test_a_compressed_cache_has_one_vector_for_all_heads() -> None:
    config, _ = made("deepseek_v3")
    assert [{name: part.shape for name, part in own.items()} for own in models.init_cache(config, 3, 16)] == [
        {"key": (3, 1, 16, 64)}
    ] * 2


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_a_step_copies_no_cache(kind: str) -> None:
    config, params = made(kind)
    cache = models.init_cache(config, 64, BLOCK)
    batch = batch_of(Rows([7], 3, [1]), num_tokens=1, num_requests=1)
    compiled = step_of().lower(params, cache, batch, config=config).compile()
    assert compiled.cost_analysis()["copied bytes"] < cache[0]["key"].nbytes / 8
    own = [part.unsafe_buffer_pointer() for entry in cache for part in entry.values()]
    _, after = step_of()(params, cache, batch, config=config)
    assert [part.unsafe_buffer_pointer() for entry in after for part in entry.values()] == own


@pytest.mark.parametrize("scheme, kernels", [(None, 15), ("Q8_0", 19)])
def test_a_layer_of_a_decode_step_is_few_kernels(scheme: str | None, kernels: int) -> None:
    """Two norms, seven products, rotations of queries and keys, writing and reading the cache, and the gate;
    with matrices in few bits also the rounding of what four products read.
    """
    counts = {}
    for depth in (2, 4):
        config, params = made("llama", scheme, num_hidden_layers=depth)
        cache = models.init_cache(config, BLOCKS, BLOCK)
        batch = batch_of(Rows([7], 3, [1]), num_tokens=1, num_requests=1)
        compiled = step_of().lower(params, cache, batch, config=config).compile()
        counts[depth] = compiled.cost_analysis()["kernels"]
    assert (counts[4] - counts[2]) / 2 <= kernels


def test_a_layer_of_a_prefill_is_fewer() -> None:
    counts = {}
    for depth in (2, 4):
        config, params = made("llama", num_hidden_layers=depth)
        cache = models.init_cache(config, BLOCKS, BLOCK)
        compiled = step_of().lower(params, cache, batch_of(Rows(PROMPT, 0, [1])), config=config).compile()
        counts[depth] = compiled.cost_analysis()["kernels"]
    assert (counts[4] - counts[2]) / 2 <= 9


def test_one_program_serves_every_mixture() -> None:
    config, params = made("llama")
    traces = []

    def step(params: Any, cache: Any, batch: models.Batch) -> Any:
        traces.append(batch)
        return models.forward(params, cache, batch, config)

    jitted = inf.jit(step, donate_argnames="cache", donation="require")
    cache = models.init_cache(config, BLOCKS, BLOCK)
    for requests in (
        [Rows(PROMPT, 0, [1])],
        [Rows([7], 8, [1]), Rows([4, 5], 0, [2])],
        [Rows([1], 20, [3, 4])],
    ):
        _, cache = jitted(params, cache, batch_of(*requests))
    assert len(traces) == 1


def test_experts_that_nobody_chose_are_not_read() -> None:
    config, params = made("mixtral", num_local_experts=8, num_experts_per_tok=2)
    for layer in params["layers"]:  # a router for which all are equal takes the first two
        layer["mlp"]["gate"] = inp.zeros((8, 64))
    exact = run(config, params, Rows(PROMPT, 0, [1]))
    for layer in params["layers"]:
        own = layer["mlp"]["experts"]
        for name, stack in own.items():
            own[name] = inp.where(inp.arange(8)[:, None, None] < 2, stack, inp.nan)
    np.testing.assert_array_equal(run(config, params, Rows(PROMPT, 0, [1])), exact)


@pytest.mark.parametrize("num_tokens", [1, 3, 8])
def test_experts_are_what_a_loop_over_tokens_makes(num_tokens: int) -> None:
    config, params = made("mixtral", num_local_experts=5, num_experts_per_tok=3)
    own = params["layers"][0]["mlp"]
    x = np.random.default_rng(1).normal(size=(num_tokens, 64)).astype(np.float32)
    found = np.asarray(experts.feed_forward(inp.asarray(x), own, config))
    assert config.experts is not None
    chosen, amounts = (np.asarray(part) for part in experts.route(inp.asarray(x), own, config.experts))
    expected = np.zeros_like(x)
    for token in range(num_tokens):
        for expert, amount in zip(chosen[token], amounts[token], strict=True):
            one = {name: stack[int(expert)] for name, stack in own["experts"].items()}
            made_of = layers.feed_forward(inp.asarray(x[token : token + 1]), one, config)
            expected[token] += amount * np.asarray(made_of)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)
