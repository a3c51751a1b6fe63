"""Models that transformers writes, of every family: equal logits, whole, in pieces, and beside each other."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import infini as inf
from infini.llm import checkpoints, models
from infini.llm.models import registry

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT, STEPS = 20, 32
BLOCK, BLOCKS, TOKENS, REQUESTS = 16, 14, 24, 3
TOLERANCE = 2e-4
SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 5e5,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [2.0, 2.5, 3.0, 4.0, 6.0, 8.0],
}  # fmt: skip
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16,
}  # fmt: skip
DEEPSEEK = {
    "moe_intermediate_size": 48, "n_routed_experts": 8, "n_shared_experts": 2, "kv_lora_rank": 24,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 4,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "q_lora_rank": 32,
}  # fmt: skip
V3 = {**DEEPSEEK, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}
GRANITE = {
    "embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 2**0.5, "logits_scaling": 4.0,
    "attention_multiplier": 0.25, "tie_word_embeddings": True,
}  # fmt: skip
# What config.json says where transformers has no such model, or says it in another way.
STATED: dict[str, dict[str, Any]] = {
    "minicpm": {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16},
    "9g": {"model_type": "fm9g7b"},
    "older files": {
        "rope_parameters": None, "rope_theta": LLAMA3["rope_theta"],
        "rope_scaling": {("type" if key == "rope_type" else key): value for key, value in LLAMA3.items()},
    },
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 20}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
         "max_position_embeddings": 24},
    ),
    "yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mixtral": ("Mixtral", MIXTRAL),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3 moe": ("Qwen3Moe", {**QWEN_MOE, "norm_topk_prob": True}),
    "qwen3 moe, some dense": ("Qwen3Moe", {**QWEN_MOE, "mlp_only_layers": [0]}),
    "gemma2": ("Gemma2", {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 6,
                          "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "phi3": ("Phi3", {"sliding_window": 11}),
    "phi3, long": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16}),
    "phi3, short": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 60}),
    "gpt2": ("GPT2", {}),
    "deepseek v2": ("DeepseekV2", {**DEEPSEEK, "rope_parameters": MSCALE}),
    "deepseek v2, groups": (
        "DeepseekV2",
        {**DEEPSEEK, "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 4,
         "topk_group": 2, "routed_scaling_factor": 1.7},
    ),
    "deepseek v3": ("DeepseekV3", {**V3, "rope_parameters": MSCALE}),
    "minicpm": ("Granite", GRANITE),
    "9g": ("Qwen2", {}),
    "older files": ("Llama", {"rope_parameters": LLAMA3}),
    "deepseek v3, halves": ("DeepseekV3", {**V3, "rope_interleave": False, "attention_bias": True}),
}  # fmt: skip


@functools.cache
def _step() -> Callable[..., Any]:
    def step(params: Any, cache: Any, batch: models.Batch, config: models.Config) -> Any:
        hidden, cache = models.forward(params, cache, batch, config)
        return models.logits(params, hidden[batch.last], config), cache

    return inf.jit(step, static_argnames="config", donate_argnames="cache", donation="require")


class Engine:
    """A model with a cache; one program serves whatever is asked for."""

    def __init__(self, params: Any, config: models.Config, dtype: Any = "float32") -> None:
        self.params, self.config = params, config
        self.cache = models.init_cache(config, BLOCKS, BLOCK, dtype)

    def run(self, *requests: models.Rows) -> np.ndarray:
        """Logits of every token."""
        batch = models.make_batch(
            requests, block_size=BLOCK, num_blocks=BLOCKS, num_tokens=TOKENS, num_requests=REQUESTS,
            blocks_per_request=4, is_every_token=True,
        )  # fmt: skip
        found, self.cache = _step()(self.params, self.cache, batch, config=self.config)
        return np.asarray(found)[: sum(len(request.tokens) for request in requests)]


@dataclasses.dataclass
class Peer:
    """A model of transformers, and where its files are."""

    model: Any
    folder: Path
    tokens: list[int]
    logits: np.ndarray


def _write(kind: str, options: dict[str, Any], folder: Path) -> Any:
    options = SIZES | options
    if kind == "GPT2":
        options = {
            "vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64,
            "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": None,
        }  # fmt: skip
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**options, attn_implementation="eager")
    names = {"GPT2": "GPT2LMHeadModel"}
    model = getattr(transformers, names.get(kind, f"{kind}ForCausalLM"))(config).eval()
    with torch.no_grad():  # norms, biases and corrections that show
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.ndim == 1 and "inv_freq" not in name:
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peer]:
    @functools.cache
    def of(name: str) -> Peer:
        folder = tmp_path_factory.mktemp("model")
        model = _write(*CASES[name], folder)
        stated = json.loads((folder / "config.json").read_text()) | STATED.get(name, {})
        (folder / "config.json").write_text(json.dumps(stated))
        tokens = torch.arange(1, PROMPT + 1)[None] * 5 % 128
        with torch.no_grad():
            tokens = model.generate(tokens, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
            return Peer(model, folder, tokens[0].tolist(), model(tokens).logits[0].float().numpy())

    return of


@pytest.fixture(scope="module")
def engines(peers: Callable[[str], Peer]) -> Callable[[str], Engine]:
    @functools.cache
    def of(name: str) -> Engine:
        loaded = checkpoints.load(peers(name).folder)
        return Engine(loaded.params, loaded.config.served(PROMPT + STEPS))

    return of


@pytest.mark.parametrize("name", CASES)
def test_logits_of_prefill_and_of_single_steps_are_those_of_transformers(
    name: str, peers: Callable[[str], Peer], engines: Callable[[str], Engine]
) -> None:
    peer, engine, blocks = peers(name), engines(name), [3, 0, 5, 1]
    found = [engine.run(models.Rows(peer.tokens[:PROMPT], 0, blocks))]
    found += [
        engine.run(models.Rows([peer.tokens[place]], place, blocks))
        for place in range(PROMPT, PROMPT + STEPS)
    ]
    np.testing.assert_allclose(np.concatenate(found), peer.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_pieces_and_neighbours_change_nothing(
    name: str, peers: Callable[[str], Peer], engines: Callable[[str], Engine]
) -> None:
    peer, engine = peers(name), engines(name)
    tokens, other = peer.tokens, [7, 3, 11, 90, 4, 8]
    first = engine.run(models.Rows(tokens[:9], 0, [2, 7]), models.Rows(other, 0, [6]))
    second = engine.run(models.Rows([5], 6, [6]), models.Rows(tokens[9:28], 9, [2, 7]))
    third = engine.run(
        models.Rows(other, 0, [4]), models.Rows(tokens[28:29], 28, [2, 7]), models.Rows([6], 7, [6])
    )
    own = np.concatenate([first[:9], second[1:], third[6:7]])
    np.testing.assert_allclose(own, peer.logits[:29], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(third[:6], first[9:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", {kind: name for name, (kind, _) in reversed(CASES.items())}.values())
def test_bfloat16_is_as_near_as_that_of_transformers(name: str, peers: Callable[[str], Peer]) -> None:
    peer = peers(name)
    tokens = torch.tensor(peer.tokens[:PROMPT])[None]
    with torch.no_grad():
        rounded = copy.deepcopy(peer.model).to(torch.bfloat16)
        theirs = rounded(tokens).logits[0].float().numpy()
        exact = rounded.float()(tokens).logits[0].numpy()
    loaded = checkpoints.load(peer.folder, dtype="bfloat16")
    own = Engine(loaded.params, loaded.config.served(PROMPT), "bfloat16")
    found = own.run(models.Rows(peer.tokens[:PROMPT], 0, [0, 1]))
    assert np.sqrt(np.mean((found - exact) ** 2)) < 1.5 * np.sqrt(np.mean((theirs - exact) ** 2)) + 1e-3


def test_the_example_of_a_new_model_is_that_of_transformers(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[3] / "examples" / "add_model.py"
    spec = importlib.util.spec_from_file_location("add_model", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before = list(registry._FAMILIES)
    try:
        models.register(example.COHERE)
        model = _write("Cohere", {"logit_scale": 0.3}, tmp_path)
        loaded = checkpoints.load(tmp_path)
        tokens = list(range(5, 5 + PROMPT))
        found = Engine(loaded.params, loaded.config).run(models.Rows(tokens, 0, [2, 1]))
        with torch.no_grad():
            np.testing.assert_allclose(found, model(torch.tensor([tokens])).logits[0].numpy(), atol=TOLERANCE)
    finally:
        registry._FAMILIES[:] = before
