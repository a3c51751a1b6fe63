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
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, prompts, write_folder
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
