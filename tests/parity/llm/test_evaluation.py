"""Perplexity beside transformers' logits on the same windows."""

from __future__ import annotations

import math

import numpy as np
import torch
import transformers

from infini.llm import checkpoints
from infini.llm.benchmarks import evaluation
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams


def test_perplexity_is_that_of_transformers(tmp_path, rng):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    peer = transformers.LlamaForCausalLM(config).eval()
    peer.save_pretrained(tmp_path)
    ids = rng.integers(0, 96, 150).tolist()
    total, count = 0.0, 0
    for begin, end, first in evaluation.windows(len(ids), 32, 16):
        with torch.no_grad():
            logits = peer(torch.tensor([ids[begin:end]])).logits[0].double()
        logs = torch.log_softmax(logits, -1)
        total -= sum(float(logs[i - begin - 1, ids[i]]) for i in range(first, end))
        count += end - first
    options = {"max_model_len": 40, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 1 << 20}
    engine = LLM(checkpoints.load(tmp_path), **options)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)

    def log_likelihood(rows):
        found = engine.generate([{"prompt_token_ids": list(r)} for r in rows], params, use_tqdm=False)
        return [
            [None if e is None else e[i].logprob for e, i in zip(o.prompt_logprobs, r, strict=True)]
            for o, r in zip(found, rows, strict=True)
        ]

    found = evaluation.perplexity(log_likelihood, ids, context=32, stride=16)
    assert found.num_tokens == count == 149
    np.testing.assert_allclose(math.log(found.value), total / count, atol=1e-5)
