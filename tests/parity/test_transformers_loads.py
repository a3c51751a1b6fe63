"""transformers loads the folders we write, and computes the same; we load those that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from infini import random
from infini.data import tokenizer
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from infini.train import gpt, model_files

TEXT = "def f(x):\n    return x + 1  # naïve 🦉\n"
SIZES = {
    "vocab_size": 280,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_length": 64,
}


def _model(**changes: object) -> model_files.Model:
    config = gpt.Config(**SIZES | changes)
    tokens = tokenizer.train([TEXT * 5], vocab_size=280)
    return model_files.Model(config, gpt.init(random.PRNGKey(0), config), tokens)


def _logits(path: Path, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        return theirs(torch.tensor([ids])).logits.numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "rope_theta": 5e5, "norm_epsilon": 1e-3},
        {"num_experts": 4},
        {"num_experts": 4, "qk_norm": True, "is_router_normalized": False, "experts_per_token": 3},
    ],
)
def test_logits_are_those_of_transformers(tmp_path: Path, changes: dict) -> None:
    model = _model(**changes)
    model_files.save(tmp_path / "model", model)
    ids = model.tokenizer.encode(TEXT)
    found = gpt.forward(model.params, np.array([ids]), model.config)
    np.testing.assert_allclose(found, _logits(tmp_path / "model", ids), atol=2e-4)


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    model = _model()
    model_files.save(tmp_path / "model", model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = model.tokenizer.encode(TEXT)
    assert theirs(TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == TEXT
    assert (theirs.bos_token_id, theirs.eos_token_id) == (model.tokenizer.begin_id, model.tokenizer.end_id)


def test_greedy_generation_is_that_of_transformers(tmp_path: Path) -> None:
    model = _model(tie_embeddings=False)
    model_files.save(tmp_path / "model", model)
    ids = model.tokenizer.encode("def")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)[
        0
    ].tolist()
    engine = LLM(tmp_path / "model", max_num_seqs=1, enforce_eager=True)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    (found,) = engine.generate([ids], params)
    assert [*ids, *found.outputs[0].token_ids] == expected


WITH_EXPERTS = {
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, sliding_window=3,
        )
    ),
    "qwen3 moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            vocab_size=280, hidden_size=32, moe_intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_experts=6, num_experts_per_tok=3, head_dim=8,
        )
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_folders_with_experts_are_read(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    WITH_EXPERTS[name]().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(_model().tokenizer.to_json())
    model = model_files.load(tmp_path)
    ids = [5, 7, 200, 31, 9, 9, 12]
    found = gpt.forward(model.params, np.array([ids]), model.config)
    np.testing.assert_allclose(found, _logits(tmp_path, ids), atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_transformers_is_read(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(_model().tokenizer.to_json())
    model = model_files.load(tmp_path)
    ids = [5, 7, 200, 31]
    found = gpt.forward(model.params, np.array([ids]), model.config)
    np.testing.assert_allclose(found, _logits(tmp_path, ids), atol=2e-4)
