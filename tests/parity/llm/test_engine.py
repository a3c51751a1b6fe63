"""The engine beside transformers' generate: greedy tokens of every way to run a request.

Tokens are compared with `generate`; and every step is held against transformers computing the same text at
once, so that a near tie, where two runs may part, is told from an error.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 2e-4
LENGTH = 32
OPTIONS = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 16, "kv_cache_memory_bytes": 2**22}
PARAMS = SamplingParams(temperature=0.0, max_tokens=LENGTH, logprobs=0, ignore_eos=True)
VARIANTS = {
    "paged": {},
    "one at a time": {"max_num_seqs": 1},
    "static": {"cache_mode": "static"},
    "chunks of 1": {"max_num_batched_tokens": 1},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "whole prompts": {"enable_chunked_prefill": False, "max_num_batched_tokens": 128},
    "no prefix cache": {"enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 9, "max_model_len": 112},
    "speculative": {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1}},
    "deterministic": {"deterministic": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=160, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.25, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Of many lengths; some begin alike, and some repeat themselves."""
    random = np.random.default_rng(0)
    shared = random.integers(3, 160, 40).tolist()
    own = [random.integers(3, 160, length).tolist() for length in (1, 5, 17, 50)]
    return [*own, shared + own[1], shared[:20], (own[1] * 8)[:37]]


@pytest.fixture(scope="module")
def expected(theirs, prompts) -> list[list[int]]:
    return [
        theirs.generate(
            torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def logprobs(model, token_ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].double(), dim=-1).numpy()


def check(model, outputs, expected: list[list[int]]) -> float:
    """Every step of every output; gives the share of steps that are no near ties."""
    num_clear = num_steps = 0
    for output, tokens in zip(outputs, expected, strict=True):
        prompt, made = output.prompt_token_ids, output.outputs[0]
        assert len(made.token_ids) == LENGTH
        rows = logprobs(model, prompt + made.token_ids)[len(prompt) - 1 : -1]
        is_same = True
        for place, (token, row) in enumerate(zip(made.token_ids, rows, strict=True)):
            assert abs(made.logprobs[place][token].logprob - row[token]) < TOLERANCE
            second, best = np.sort(row)[-2:]
            num_steps += 1
            if best - second > 2 * TOLERANCE:
                num_clear += 1
                assert token == row.argmax()
                if is_same:
                    assert token == tokens[place]
            is_same &= token == tokens[place]
    return num_clear / num_steps


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(name, folder, theirs, prompts, expected):
    llm = LLM(folder, enforce_eager=True, **(OPTIONS | VARIANTS[name]))
    outputs = llm.generate(prompts, PARAMS)
    share = check(theirs, outputs, expected)
    print(f"{name}: {share:.1%} of the steps are no near ties")
    assert share > 0.9
    stats = llm.stats()
    assert (stats.num_preemptions > 0) == (name == "preempted")
    assert (stats.spec_num_accepted_tokens > 0) == (name == "speculative")
    assert stats.num_free_blocks == stats.num_blocks


def test_a_known_beginning_gives_the_same_tokens(folder, theirs, prompts, expected):
    llm = LLM(folder, enforce_eager=True, **OPTIONS)
    for _ in range(2):
        check(theirs, llm.generate(prompts, PARAMS), expected)
    assert llm.stats().prefix_cache_hits > 100


def test_an_end_token_ends_as_in_transformers(folder, theirs, prompts):
    llm = LLM(folder, enforce_eager=True, **OPTIONS)
    params = dataclasses.replace(PARAMS, ignore_eos=False, max_tokens=64)
    for output in llm.generate(prompts[:4], params):
        prompt = output.prompt_token_ids
        wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, pad_token_id=0)
        assert output.outputs[0].token_ids == wanted[0, len(prompt) :].tolist()


def test_logprobs_of_prompts_are_those_of_transformers(folder, theirs, prompts):
    llm = LLM(folder, enforce_eager=True, **OPTIONS)
    params = dataclasses.replace(PARAMS, max_tokens=1, prompt_logprobs=3)
    for output in llm.generate(prompts[2:5], params):
        rows = logprobs(theirs, output.prompt_token_ids)
        for place, told in enumerate(output.prompt_logprobs[1:]):
            token = output.prompt_token_ids[place + 1]
            assert abs(told[token].logprob - rows[place, token]) < TOLERANCE
            assert max(told.values(), key=lambda entry: entry.logprob).rank == 1
