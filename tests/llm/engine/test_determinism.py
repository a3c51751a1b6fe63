"""Deterministic mode: bits do not depend on the batch, on chunks, on the prefix cache or on preemption."""

from __future__ import annotations

import pytest

from infini.core import errors
from infini.llm.engine import determinism
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, prompts

PARAMS = SamplingParams(temperature=0.8, seed=5, max_tokens=12, logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def wide():
    """Wide enough for few rows and many to be computed by different kernels."""
    return make_checkpoint(hidden_size=128, intermediate_size=256)


def run(llm: LLM, given: list[list[int]]) -> list:
    return [output.outputs[0] for output in llm.generate(given, PARAMS)]


def test_bits_do_not_depend_on_what_else_is_in_the_batch(wide):
    llm = LLM(wide, enforce_eager=True, deterministic=True, **OPTIONS)
    given = prompts(8)
    alone = [run(llm, [prompt])[0] for prompt in given]
    llm.reset_prefix_cache()
    assert run(llm, given) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpu_blocks_override": 8, "max_model_len": 96},
        {"enable_prefix_caching": False, "long_prefill_token_threshold": 7},
        {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1}},
    ],
)
def test_bits_do_not_depend_on_preemption_chunks_or_proposals(wide, options):
    given = prompts(8)
    plain = run(LLM(wide, enforce_eager=True, deterministic=True, **OPTIONS), given)
    other = LLM(wide, enforce_eager=True, deterministic=True, **(OPTIONS | options))
    assert run(other, given) == plain
    assert (other.stats().num_preemptions > 0) == ("max_model_len" in options)


def with_logits(monkeypatch, change):
    """As if kernels differed: `change` of what steps of one size give."""
    logits = determinism._Probe.logits

    def changed(probe, size, piece, *, has_neighbours):
        return logits(probe, 8, 1, has_neighbours=False) + change(size, piece, has_neighbours)

    monkeypatch.setattr(determinism._Probe, "logits", changed)


def test_sizes_that_do_not_agree_are_left_out_and_told(wide, monkeypatch, capsys):
    with_logits(monkeypatch, lambda size, piece, _: size < 4 or size > 16 or piece > 7)
    llm = LLM(wide, enforce_eager=True, deterministic=True, verbose=True, **OPTIONS)
    assert llm.engine.core.runner.buckets.tokens == (4, 8, 16)
    limits = llm.engine.core.scheduler.limits
    assert (limits.max_num_batched_tokens, limits.long_prefill_token_threshold) == (16, 7)
    assert "steps of 4, 8, 16 tokens, and at most 7 of one request" in capsys.readouterr().err


def test_a_device_that_does_not_agree_with_itself_is_refused(wide, monkeypatch):
    with_logits(monkeypatch, lambda size, piece, has_neighbours: has_neighbours)
    with pytest.raises(errors.UnsupportedError, match="neighbours"):
        LLM(wide, enforce_eager=True, deterministic=True, **OPTIONS)


def test_prompts_have_to_be_cut(wide):
    with pytest.raises(errors.ValueMismatchError, match="in pieces"):
        LLM(
            wide,
            enforce_eager=True,
            deterministic=True,
            **(
                OPTIONS
                | {
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": 128,
                }
            ),
        )
