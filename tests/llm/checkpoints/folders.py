"""Model folders with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from infini import io
from infini.llm import checkpoints, models

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "torch_dtype": "float32",
    "tie_word_embeddings": False,
}  # fmt: skip


def tensors_of(config: dict[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of every name that a configuration asks for."""
    random = np.random.default_rng(seed)
    table = models.family_of(config).weights(models.config_from_json(config))
    shapes = {name: weight.file_shape for weight in table for name in weight.names}
    return {name: (random.normal(size=shape) * 0.1).astype(dtype) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    io.write_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def logits_of(found: checkpoints.Checkpoint, tokens: list[int]) -> np.ndarray:
    cache = models.init_cache(found.config, 1, 16)
    batch = models.make_batch([models.Rows(tokens, 0, [0])], block_size=16, num_blocks=1)
    hidden, _ = models.forward(found.params, cache, batch, found.config)
    return np.asarray(models.logits(found.params, hidden, found.config))
