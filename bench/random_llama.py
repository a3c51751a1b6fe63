"""Write a LLaMA with random weights as a Hugging Face folder, to measure with: `random_llama.py FOLDER`.

The sizes are those of TinyLlama 1.1B (https://github.com/jzhang38/TinyLlama); the weights are bfloat16. Speed
does not depend on what a model knows. `infini gguf convert FOLDER FILE` and `infini gguf quantize` make GGUF
files of it.
"""

import json
import sys

import ml_dtypes
import numpy as np

from infini import io

VOCAB_SIZE = 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}


def tensors() -> dict[str, np.ndarray]:
    """Weights by their names."""
    rng = np.random.default_rng(0)
    width, hidden = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shared = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns), np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    ones = np.ones(width, ml_dtypes.bfloat16)
    found = {
        "model.embed_tokens.weight": matrix(VOCAB_SIZE, width),
        "lm_head.weight": matrix(VOCAB_SIZE, width),
    }
    found["model.norm.weight"] = ones
    for number in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        found[f"{layer}.input_layernorm.weight"] = ones
        found[f"{layer}.post_attention_layernorm.weight"] = ones
        for name, rows, columns in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", shared, width),
            ("self_attn.v_proj", shared, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", hidden, width),
            ("mlp.up_proj", hidden, width),
            ("mlp.down_proj", width, hidden),
        ):
            found[f"{layer}.{name}.weight"] = matrix(rows, columns)
    return found


def tokenizer() -> str:
    """A byte-level tokenizer whose other tokens no text gives: ids are what is measured with."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, "<s>", "</s>", *(f"<unused{i}>" for i in range(VOCAB_SIZE - 258))]
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    return inner.to_str()


def main() -> None:
    """Write the folder."""
    files = io.ModelFiles(
        config=CONFIG,
        tensors=tensors(),
        tokenizer=tokenizer(),
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
        generation_config={"bos_token_id": 256, "eos_token_id": 257},
    )
    io.write_model(sys.argv[1], files)
    print(json.dumps({"folder": sys.argv[1], "num_params": sum(t.size for t in files.tensors.values())}))


if __name__ == "__main__":
    main()
