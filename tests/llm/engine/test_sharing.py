"""One engine in several processes: equal tokens, and ends that leave nobody waiting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infini.core import errors
from infini.llm import models
from infini.llm.engine import sharing
from infini.llm.engine.llm import LLM
from infini.llm.models import placement
from infini.llm.sampling.params import SamplingParams
from tests.llm.checkpoints import folders
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, make_tokenizer, prompts, write_folder
from tests.parallel import jobs

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=0)
DRAWN = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True, seed=5, prompt_logprobs=0)


def generate(folder: str, size: int) -> dict | str:
    """What process 0 makes; the others end when it closes its engine."""
    try:
        llm = LLM(folder, tensor_parallel_size=size, **OPTIONS)
    except SystemExit as ended:
        return f"ended with {ended.code}"
    greedy = llm.generate(prompts(6), GREEDY)
    drawn = llm.generate(prompts(3, seed=1), DRAWN)
    llm.close()
    return {
        "tokens": [o.outputs[0].token_ids for o in (*greedy, *drawn)],
        "logprobs": [next(iter(p.values())).logprob for o in greedy for p in o.outputs[0].logprobs],
        "of_prompts": [next(iter(p.values())).logprob for o in drawn for p in o.prompt_logprobs[1:]],
    }


EXPERTS = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "torch_dtype": "float32",
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
# Models by their files, and how they are shared.
SHARED = {
    "mixtral": (EXPERTS | {"num_local_experts": 4}, {"enable_expert_parallel": True}),
    "qwen3_moe": (
        EXPERTS | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        {"enable_expert_parallel": True, "quantization": "q8_0"},
    ),
    "deepseek_v3": (EXPERTS | LATENT, {"enable_expert_parallel": True}),
    "llama": (EXPERTS, {"quantization": "q4_0", "speculative_config": {"num_speculative_tokens": 2}}),
}


def generate_all(place: str, size: int) -> list[dict] | str:
    """What models of several kinds give one after the other; the draft of each is itself."""
    found: list[dict] = []
    for name, (_, options) in SHARED.items():
        given = {**OPTIONS, **options, "max_num_batched_tokens": 16, "enforce_eager": True}
        folder = str(Path(place, name))
        if "speculative_config" in given:
            own = {"method": "draft_model", "model": folder, "quantization": given["quantization"]}
            given["speculative_config"] = {**given["speculative_config"], **own}
        if size == 1:
            given.pop("enable_expert_parallel", None)
        try:
            llm = LLM(folder, tensor_parallel_size=size, **given)
        except SystemExit as ended:
            found.append({"ended": ended.code})
            continue
        outputs = llm.generate(prompts(4), GREEDY)
        stats = llm.stats()
        llm.close()
        found.append(
            {
                "tokens": [o.outputs[0].token_ids for o in outputs],
                "logprobs": [next(iter(p.values())).logprob for o in outputs for p in o.outputs[0].logprobs],
                "proposals": [stats.spec_num_draft_tokens, stats.spec_num_accepted_tokens],
            }
        )
    return found


def leave(folder: str) -> str:
    """Process 0 ends without a word."""
    try:
        LLM(folder, tensor_parallel_size=2, enforce_eager=True, **OPTIONS)
    except SystemExit:
        return "let go"
    return "left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shared") / "model", make_checkpoint(3))


@pytest.mark.multi
def test_two_processes_make_the_tokens_of_one(folder, mpirun_path, tmp_path):
    alone = generate(str(folder), 1)
    first, second = jobs.found(mpirun_path, 2, generate, tmp_path, [str(folder), 2], INFINI_DEVICE="cpu")
    assert second == "ended with 0"
    assert first["tokens"] == alone["tokens"]
    np.testing.assert_allclose(first["logprobs"], alone["logprobs"], atol=1e-5)
    np.testing.assert_allclose(first["of_prompts"], alone["of_prompts"], atol=1e-5)


@pytest.mark.multi
def test_experts_bits_and_drafts_are_shared_by_two_processes(mpirun_path, tmp_path):
    for name, (config, _) in SHARED.items():
        config = {"model_type": name} | config
        tensors = folders.tensors_of(config)
        tokenizer = make_tokenizer().to_json()
        folders.write(tmp_path / name, config, tensors, tokenizer__json=tokenizer)
    alone = generate_all(str(tmp_path), 1)
    first, second = jobs.found(
        mpirun_path, 2, generate_all, tmp_path, [str(tmp_path), 2], INFINI_DEVICE="cpu"
    )
    assert second == [{"ended": 0}] * len(SHARED)
    for one, two in zip(alone, first, strict=True):
        assert two["tokens"] == one["tokens"]
        np.testing.assert_allclose(two["logprobs"], one["logprobs"], atol=1e-5)
        assert two["proposals"] == one["proposals"]
    num_drafted, num_kept = first[-1]["proposals"]
    assert num_drafted == num_kept > 0


@pytest.mark.multi
def test_processes_are_let_go_when_process_0_ends_without_closing(folder, mpirun_path, tmp_path):
    found = jobs.found(mpirun_path, 2, leave, tmp_path, [str(folder)], INFINI_DEVICE="cpu")
    assert found == ["left", "let go"]


def test_more_devices_than_there_are_is_an_error_that_says_how_to_start(folder):
    with pytest.raises(errors.ValueMismatchError, match="fewer devices") as caught:
        sharing.mesh_of(64)
    assert "mpirun -n 64" in caught.value.fix


def test_a_loaded_model_cannot_be_shared_afterwards(checkpoint, monkeypatch):
    monkeypatch.setattr(sharing, "mesh_of", lambda count: object())
    with pytest.raises(errors.ValueMismatchError, match="loaded model"):
        LLM(checkpoint, tensor_parallel_size=2, **OPTIONS)


def config_of(**fields) -> models.Config:
    return make_checkpoint(**fields).config


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("layers.0.self_attn.q_proj", "outputs"),
        ("layers.0.self_attn.q_proj_bias", "outputs"),
        ("layers.1.self_attn.k_proj", "outputs"),
        ("layers.1.self_attn.o_proj", "inputs"),
        ("layers.1.self_attn.o_proj_bias", None),
        ("layers.0.mlp.gate_proj", "outputs"),
        ("layers.0.mlp.experts.down_proj", "inputs"),
        ("layers.0.attention_norm", None),
        ("lm_head", "outputs"),
        ("embed_tokens", None),
        ("norm", None),
    ],
)
def test_weights_are_split_by_what_they_are(name, split):
    assert placement.split_of(name, config_of(), 2) == split


def test_keys_stay_whole_where_there_are_fewer_heads_than_devices():
    assert placement.split_of("layers.0.self_attn.k_proj", config_of(), 4) is None
    assert placement.split_of("layers.0.self_attn.q_proj", config_of(), 4) == "outputs"


def test_a_tied_table_is_split_by_the_vocabulary():
    assert placement.split_of("embed_tokens", config_of(tie_word_embeddings=True), 2) == "outputs"
