"""A model that infini does not know, in one file: Command R, from its description to its first tokens.

Its blocks differ from LLaMA's in one thing that no setting says: attention and the feed-forward layer read
the same norm, and both results are added to the stream at once. The rest are settings. A folder of
Hugging Face's with `"model_type": "cohere"` loads after `models.register(COHERE)`; here random weights stand
in for it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import io
from infini.llm import checkpoints, models
from infini.llm.models import blocks, layers, llama, weights


def config(data: dict[str, Any]) -> models.Config:
    """What its config.json says. What all such files state, `llama.config` reads."""
    if data.get("use_qk_norm"):
        raise NotImplementedError(
            "norms of queries and keys: read q_norm and k_norm, and use them in `block`"
        )
    return llama.config(
        {**data, "rope_interleaved": True},  # rotations pair neighbours
        defaults={"max_position_embeddings": 8192, "tie_word_embeddings": True},
        norm="layer",
        norm_epsilon=data.get("layer_norm_eps", 1e-5),
        logits_scale=data.get("logit_scale", 0.0625),
    )


def table(model: models.Config) -> list[models.Weight]:
    """Every weight: its place in the parameters, its name in files, its shape."""
    found = llama.ends(model)
    for number in range(model.num_layers):
        path, name = ("layers", number), f"model.layers.{number}"
        found += weights.norm((*path, "attention_norm"), f"{name}.input_layernorm", model.hidden_size)
        found += llama.attention(model, number)
        found += llama.feed_forward((*path, "mlp"), f"{name}.mlp", model, model.intermediate_size)
    return found


def block(layer: Any, entry: Any, x: Any, step: blocks.Step, number: int, model: models.Config) -> Any:
    """One block on tokens (T, M), and its part of the cache."""
    inner = layers.norm(x, layer, "attention_norm", model)
    mixed, entry = blocks.attention(layer["self_attn"], entry, inner, step, number, model)
    return x + mixed + layers.feed_forward(inner, layer["mlp"], model), entry


COHERE = models.Family(
    names=("cohere",), architectures=("CohereForCausalLM",), config=config, weights=table, block=block
)


def main(steps: int = 12) -> list[int]:
    """Register the family, write a small model, load it, and let it speak."""
    models.register(COHERE)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        loaded = checkpoints.load(folder, quantization="q8_0")
        size = sum(leaf.nbytes for leaf in inf.tree.leaves(loaded.params))
        print(f"{loaded.config.family}: {loaded.config.num_layers} blocks, {size} bytes of weights")
        tokens = greedy(loaded, [3, 1, 4, 1, 5], steps)
    print(*tokens)
    return tokens


def write_model(folder: Path) -> None:
    """A folder as Hugging Face has them, with random weights."""
    data = {
        "model_type": "cohere", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data))
    random = np.random.default_rng(0)
    shapes = {name: weight.file_shape for weight in table(config(data)) for name in weight.names}
    io.write_tensors(
        folder / "model.safetensors",
        {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()},
    )


def greedy(loaded: checkpoints.Checkpoint, prompt: list[int], steps: int) -> list[int]:
    """The likeliest token after each, over a cache of one block."""
    size = 64

    @inf.jit(donate_argnames="cache", donation="require")
    def step(cache: Any, batch: models.Batch) -> Any:
        hidden, cache = models.forward(loaded.params, cache, batch, loaded.config)
        return inp.argmax(models.logits(loaded.params, hidden[batch.last], loaded.config), axis=-1), cache

    cache = models.init_cache(loaded.config, 1, size)
    tokens, done = list(prompt), 0
    for _ in range(steps):
        rows = models.Rows(tokens[done:], start=done, blocks=[0])
        found, cache = step(cache, models.make_batch([rows], block_size=size, num_blocks=1))
        done = len(tokens)
        tokens.append(int(found[0]))
    return tokens


if __name__ == "__main__":
    main()
