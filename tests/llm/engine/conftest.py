"""A tiny model with a tokenizer, and engines that share their compiled programs between tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import infini.numpy as inp
from infini import io
from infini.data import tokenizer as training
from infini.llm import models
from infini.llm.checkpoints import Checkpoint
from infini.llm.engine.llm import LLM
from infini.llm.models import weights
from infini.llm.text import tokenizer as tokenizer_
from tests.llm.engine.oracle import Oracle

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "one two three four five six seven eight nine ten",
    "pack my box with five dozen liquor jugs",
]
CONFIG = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# Small enough for tests to reach every limit.
OPTIONS = {"block_size": 16, "max_num_seqs": 4, "max_num_batched_tokens": 32, "kv_cache_memory_bytes": 2**22}


def make_tokenizer() -> tokenizer_.Tokenizer:
    trained = training.train(TEXT, vocab_size=300)
    config = {"eos_token": "<|end|>", "added_tokens_decoder": {}}
    return tokenizer_.from_json(trained.to_json(), config)


def make_checkpoint(seed: int = 0, scale: float = 1.0, **fields) -> Checkpoint:
    """A model with random weights, large enough that its tokens differ. With a small scale of its layers and
    tied embeddings it repeats the last token.
    """
    config_json = CONFIG | fields
    config = models.config_from_json(config_json)
    random = np.random.default_rng(seed)
    params: dict = {}
    for weight in models.family_of(config_json).weights(config):
        shape = weight.shape
        values = 1.0 + 0.1 * random.standard_normal(shape)
        if len(shape) > 1:
            values = random.standard_normal(shape) * (2.0 / shape[-1]) ** 0.5
            values *= scale if "layers" in weight.path else 1.0
        weights.put(params, weight.path, inp.asarray(values.astype(np.float32)))
    return Checkpoint(
        config_json=config_json,
        config=config,
        params=params,
        tokenizer_files={},
        generation_config={},
        chat_template=None,
        nbytes=0,
        seconds=0.0,
    )


def write_folder(folder: Path, checkpoint: Checkpoint) -> Path:
    """A folder with the weights of a checkpoint."""
    tensors = {}
    for weight in models.family_of(checkpoint.config_json).weights(checkpoint.config):
        value = checkpoint.params
        for key in weight.path:
            value = value[key]
        tensors[weight.names[0]] = np.asarray(value)
    config = checkpoint.config_json | {"torch_dtype": "float32"}
    io.write_model(folder, io.ModelFiles(config, tensors, make_tokenizer().to_json(), {}, {}))
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> tokenizer_.Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="session")
def llm(checkpoint, tokenizer) -> LLM:
    return LLM(checkpoint, tokenizer=tokenizer, **OPTIONS)


@pytest.fixture(scope="session")
def oracle(checkpoint) -> Oracle:
    return Oracle(checkpoint)


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Prompts of random lengths, some with a common beginning."""
    random = np.random.default_rng(seed)
    shared = random.integers(0, 300, 32).tolist()
    found = []
    for number in range(count):
        own = random.integers(0, 300, int(random.integers(1, longest - 32))).tolist()
        found.append(own if number % 2 else shared + own)
    return found
