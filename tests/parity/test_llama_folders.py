"""Model folders that transformers writes, in many configurations: equal logits, and equal greedy tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import infini.numpy as inp
from infini.data import tokenizer
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from infini.train import gpt, model_files

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 5e5,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
FULL, SLIDING = "full_attention", "sliding_attention"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "one key head": ("llama", {"num_key_value_heads": 1}),
    "as many key heads as heads": ("llama", {"num_key_value_heads": None}),
    "width of heads from the sizes": ("llama", {"head_dim": None}),
    "wide heads": ("llama", {"head_dim": 20}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2}),
    "another base": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "dynamic, short text": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
    "dynamic, long text": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 24},
    ),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "yarn, everything given": (
        "llama",
        {
            "rope_parameters": YARN
            | {"attention_factor": 1.3, "beta_fast": 4.0, "beta_slow": 2.0, "truncate": False}
        },
    ),
    "yarn, scales of attention": (
        "llama",
        {"rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows in later layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, windows by layer": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL],
            "attention_bias": True,
        },
    ),
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
IDS = np.random.default_rng(0).integers(3, 96, (2, 40)).astype(np.int32)


def _theirs(kind: str, changes: dict[str, Any]) -> Any:
    config_class, model_class = CLASSES[kind]
    sizes = {
        name: value
        for name, value in (SIZES | changes).items()
        if value is not None or name == "sliding_window"
    }
    if kind == "qwen2":
        del sizes["head_dim"]
    torch.manual_seed(0)
    model = model_class(config_class(**sizes)).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # biases start at 0 and norms at 1, which would hide a mistake
            weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    return model


def _folder(path: Path, model: Any, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    (path / "tokenizer.json").write_text(tokenizer.train(["def f(x): pass\n"], vocab_size=258).to_json())
    return path


def _logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long)).logits.float().numpy()


@pytest.mark.parametrize("name", CASES)
def test_folders_of_transformers_compute_the_same(tmp_path: Path, name: str) -> None:
    kind, changes = CASES[name]
    theirs = _theirs(kind, changes)
    folder = _folder(tmp_path / "theirs", theirs)
    ours = model_files.load(folder)
    expected = _logits(theirs, IDS)
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(gpt.forward(ours.params, IDS, ours.config), expected, atol=2e-4, rtol=1e-4)

    if name == "dynamic, long text":
        return  # transformers leaves old keys as they are when a text grows; ours are all for one length
    prompt = IDS[0, :20].tolist()
    wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert _continued(folder, prompt, 12, ignore_eos=True) == wanted[0, 20:].tolist()


# One of each layout and of each kind of rotary scaling.
WRITTEN = [
    "biases", "linear", "dynamic, long text", "llama3", "yarn, everything given", "mistral",
    "mistral, window", "qwen2, windows in later layers", "qwen3, windows by layer",
]  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_folders_of_ours_compute_the_same_in_transformers(tmp_path: Path, name: str) -> None:
    kind, changes = CASES[name]
    ours = model_files.load(_folder(tmp_path / "theirs", _theirs(kind, changes)))
    model_files.save(tmp_path / "ours", ours)
    assert model_files.load(tmp_path / "ours").config == ours.config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    has_layout_of_its_own = name != "mistral"  # without a window it is a LLaMA
    assert again.config.model_type == (kind if has_layout_of_its_own else "llama")
    expected = gpt.forward(ours.params, IDS, ours.config)
    np.testing.assert_allclose(_logits(again, IDS), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_read_as_they_are_and_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = _theirs("llama", {}).to(dtype)
    folder = _folder(tmp_path / "model", theirs)
    ours = model_files.load(folder)
    assert str(ours.params["norm"].dtype) == str(dtype).removeprefix("torch.")
    np.testing.assert_allclose(gpt.forward(ours.params, IDS, ours.config), _logits(theirs, IDS), atol=0.5)
    wide = model_files.load(folder, dtype=inp.float32)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.testing.assert_allclose(
        gpt.forward(wide.params, IDS, wide.config), _logits(again, IDS), atol=2e-4, rtol=1e-4
    )


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    theirs = _theirs("llama", {})
    folder = _folder(tmp_path / "model", theirs, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    ours = model_files.load(folder)
    np.testing.assert_allclose(
        gpt.forward(ours.params, IDS, ours.config), _logits(theirs, IDS), atol=2e-4, rtol=1e-4
    )


def test_every_id_that_ends_a_text_is_read(tmp_path: Path) -> None:
    theirs = _theirs("llama", {})
    theirs.generation_config.eos_token_id = [9, 11]
    ours = model_files.load(_folder(tmp_path / "model", theirs))
    assert ours.tokenizer.end_ids == (9, 11)
    assert ours.tokenizer.begin_id == 1
    prompt = IDS[0, :4].tolist()
    made = _continued(tmp_path / "model", prompt, 8, ignore_eos=True)
    theirs.generation_config.eos_token_id = [95, made[3]]
    ending = _folder(tmp_path / "ending", theirs)
    assert _continued(ending, prompt, 8) == made[: made.index(made[3]) + 1]


def _continued(folder: Path, prompt: list[int], count: int, **fields: Any) -> list[int]:
    """Greedy tokens of the engine after a prompt."""
    engine = LLM(folder, max_num_seqs=1, max_model_len=len(prompt) + count, enforce_eager=True)
    params = SamplingParams(temperature=0.0, max_tokens=count, **fields)
    (found,) = engine.generate([prompt], params)
    return found.outputs[0].token_ids
