"""Many prompts at once: an engine fills every step with tokens of all requests that run.

Run: python examples/offline_batch.py MODEL    (a folder in Hugging Face's layout, or a GGUF file)

Without a model it makes a tiny one with random weights, which writes nonsense and shows the rest.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from infini import io
from infini.data import tokenizer
from infini.llm import LLM, SamplingParams, models

PREAMBLE = "You answer briefly and politely, in one sentence. "
QUESTIONS = [
    "Why is the sky blue?",
    "What is the capital of France?",
    "How many legs has a spider?",
    "Name a prime number above one hundred.",
]


def main(model=None, num_copies=4, max_tokens=24):
    with tempfile.TemporaryDirectory() as folder:
        # The cache holds blocks of 16 tokens here; a server of a large model takes 32 or more.
        llm = LLM(model or tiny_model(Path(folder)), block_size=16, max_num_seqs=8, verbose=True)

        # 1. All prompts are handed in together. They begin alike, so that the beginning is computed once.
        prompts = [PREAMBLE + question for question in QUESTIONS] * num_copies
        settings = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=max_tokens, seed=0)
        start = time.perf_counter()
        outputs = llm.generate(prompts, settings)
        seconds = time.perf_counter() - start
        for output in outputs[: len(QUESTIONS)]:
            print(f"{output.prompt!r} -> {output.outputs[0].text!r} ({output.outputs[0].finish_reason})")

        # 2. What the engine did: few steps for many tokens, and what was found in the prefix cache.
        stats = llm.stats()
        print(f"{stats.generation_tokens} tokens in {stats.num_steps} steps and {seconds:.2f} s")
        print(f"{stats.prefix_cache_hits} of {stats.prefix_cache_queries} tokens of prompts were known")

        # 3. Several answers to one prompt, each with the log-probabilities of its tokens.
        (output,) = llm.generate(QUESTIONS[0], SamplingParams(n=3, max_tokens=8, logprobs=1, seed=1))
        best = max(output.outputs, key=lambda completion: completion.cumulative_logprob)
        print(f"likeliest of {len(output.outputs)} answers: {best.text!r}, {best.cumulative_logprob:.2f}")
        return stats


def tiny_model(folder):
    """A folder with a small LLaMA of random weights and a tokenizer for the questions above."""
    words = tokenizer.train([PREAMBLE, *QUESTIONS], vocab_size=320)
    settings = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }  # fmt: skip
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.2, weight.file_shape).astype(np.float32)
        for weight in models.family_of(settings).weights(models.config_from_json(settings))
        for name in weight.names
    }
    io.write_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(words.to_json())
    return folder


if __name__ == "__main__":
    main(*sys.argv[1:2])
