"""A smaller model proposes tokens: answers stay what they are, and a model that agrees saves steps."""

from __future__ import annotations

import dataclasses

import pytest

from infini.core import errors, events
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams, StructuredOutputsParams
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, prompts

RANDOM = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=16, ignore_eos=True)
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def small():
    return make_checkpoint(seed=1, num_hidden_layers=1)


def with_draft(checkpoint, draft, **options) -> LLM:
    spec = {"method": "draft_model", "model": draft, "num_speculative_tokens": 3}
    return LLM(checkpoint, enforce_eager=True, speculative_config=spec, **(OPTIONS | options))


def tokens(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("params", [GREEDY, RANDOM, dataclasses.replace(RANDOM, presence_penalty=1.5)])
def test_a_model_that_agrees_is_always_accepted(checkpoint, llm, params):
    engine = with_draft(checkpoint, checkpoint)
    given = prompts(4)
    assert tokens(engine.generate(given, params)) == tokens(llm.generate(given, params))
    stats = engine.stats()
    assert stats.spec_num_accepted_tokens == stats.spec_num_draft_tokens == 4 * 11
    assert stats.spec_accepted_per_position == (16, 16, 12)


@pytest.mark.parametrize("options", [{}, {"num_gpu_blocks_override": 8, "max_model_len": 96}])
def test_a_model_that_disagrees_changes_nothing(checkpoint, small, llm, options):
    engine = with_draft(checkpoint, small, **options)
    given = prompts(8)
    params = [GREEDY, RANDOM] * 4
    assert tokens(engine.generate(given, params)) == tokens(llm.generate(given, params))
    stats = engine.stats()
    assert stats.spec_num_accepted_tokens < stats.spec_num_draft_tokens
    assert (stats.num_preemptions > 0) == bool(options)


def test_proposals_have_the_form_of_the_answer(checkpoint, small, tokenizer):
    spec = {"method": "draft_model", "model": small, "num_speculative_tokens": 3}
    engine = LLM(checkpoint, tokenizer=tokenizer, enforce_eager=True, speculative_config=spec, **OPTIONS)
    form = StructuredOutputsParams(choice=["one two three", "four five six"])
    (output,) = engine.generate("say", dataclasses.replace(GREEDY, structured_outputs=form, ignore_eos=False))
    assert output.outputs[0].text in form.choice
    assert engine.stats().spec_num_draft_tokens > 0


def test_answers_go_on_when_proposing_fails(checkpoint, small, llm, monkeypatch):
    engine = with_draft(checkpoint, small)
    proposer = engine.engine.core.proposer

    def fail(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(proposer._runner, "run", fail)
    given = prompts(3)
    told = []
    with events.listen(told.append):
        found = engine.generate(given, RANDOM)
    assert [event.message for event in told if event.code == "proposals-failed"] == [
        "no more tokens are proposed: RuntimeError: out of memory"
    ]
    assert tokens(found) == tokens(llm.generate(given, RANDOM))


def test_nothing_is_kept_of_requests_that_have_ended(checkpoint, small):
    engine = with_draft(checkpoint, small)
    for seed in range(2):
        engine.generate(prompts(6, seed=seed), GREEDY)
    proposer = engine.engine.core.proposer
    assert not proposer._drafts
    assert len(proposer._free) == OPTIONS["max_num_seqs"]
    assert not proposer._runner.builder._rows


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"vocab_size": 200}, "another vocabulary"), ({"max_position_embeddings": 64}, "shorter texts")],
)
def test_a_model_that_does_not_fit_is_refused(checkpoint, changes, words):
    with pytest.raises(errors.ValueMismatchError, match=words):
        with_draft(checkpoint, make_checkpoint(**changes))


def test_a_draft_model_has_to_be_named(checkpoint):
    with pytest.raises(errors.ValueMismatchError, match="none is named"):
        LLM(checkpoint, speculative_config={"method": "draft_model"}, **OPTIONS)
