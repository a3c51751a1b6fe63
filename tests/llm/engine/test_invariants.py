"""Invariants 5, 6 and 9 on a model: whatever happens to a request, its tokens are its model's.

Every token of a continuation is held against the model computing the whole text at once, so nothing depends
on where two runs part.
"""

from __future__ import annotations

import dataclasses

import pytest

from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, prompts
from tests.llm.engine.oracle import Oracle

PARAMS = SamplingParams(temperature=0.0, max_tokens=16, logprobs=0, ignore_eos=True)

VARIANTS = {
    "chunks of one": {"max_num_batched_tokens": 1},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "whole prompts": {"max_num_batched_tokens": 128, "enable_chunked_prefill": False},
    "threshold": {"long_prefill_token_threshold": 8},
    "no prefix cache": {"enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 8, "max_model_len": 96},
    "by priority": {"num_gpu_blocks_override": 8, "max_model_len": 96, "scheduling_policy": "priority"},
    "static": {"cache_mode": "static"},
    "large blocks": {"block_size": 64},
    "one at a time": {"max_num_seqs": 1},
    "proposals": {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1}},
    "proposals, preempted": {
        "speculative_config": {"method": "ngram", "prompt_lookup_min": 1},
        "num_gpu_blocks_override": 8, "max_model_len": 96,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_the_models(name, checkpoint, oracle):
    llm = LLM(checkpoint, enforce_eager=True, **(OPTIONS | VARIANTS[name]))
    outputs = llm.generate(prompts(8), PARAMS, priority=[n % 3 for n in range(8)])
    for output in outputs:
        assert len(output.outputs[0].token_ids) == 16
        oracle.check_greedy(output)
    stats = llm.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert (stats.num_preemptions > 0) == ("num_gpu_blocks_override" in VARIANTS[name])


def test_a_text_that_repeats_itself_takes_fewer_steps_with_proposals():
    repeating = make_checkpoint(scale=0.05, tie_word_embeddings=True)
    llm = LLM(repeating, enforce_eager=True, **(OPTIONS | VARIANTS["proposals"]))
    (output,) = llm.generate([[5, 6, 7]], dataclasses.replace(PARAMS, max_tokens=31))
    Oracle(repeating).check_greedy(output)
    stats = llm.stats()
    assert len(output.outputs[0].token_ids) == 31
    assert stats.num_steps < 16
    assert stats.spec_num_accepted_tokens > 20
    assert sum(stats.spec_accepted_per_position) == stats.spec_num_accepted_tokens


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bfloat16", "bfloat16"), ("float16", "float16"), ("int8", "int8"), ("fp8", "float8_e4m3fn")],
)
def test_smaller_dtypes_of_the_cache_give_what_the_model_gives_with_them(name, dtype, checkpoint):
    llm = LLM(checkpoint, enforce_eager=True, kv_cache_dtype=name, **OPTIONS)
    oracle = Oracle(checkpoint, dtype)
    for output in llm.generate(prompts(4), PARAMS):
        oracle.check_greedy(output, 2e-3)


def test_drawn_tokens_do_not_depend_on_proposals_or_preemption(checkpoint, llm):
    params = [SamplingParams(seed=n, temperature=0.7, max_tokens=16, ignore_eos=True) for n in range(6)]
    given = prompts(6)
    expected = [output.outputs[0].token_ids for output in llm.generate(given, params)]
    for name in ("proposals", "preempted"):
        other = LLM(checkpoint, enforce_eager=True, **(OPTIONS | VARIANTS[name]))
        assert [output.outputs[0].token_ids for output in other.generate(given, params)] == expected
