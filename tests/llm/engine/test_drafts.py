"""A smaller model that proposes tokens: what it may change (the number of steps) and what not (all else)."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

import infini.numpy as inp
from infini.core import errors, events, tree
from infini.llm.engine import drafting
from infini.llm.engine.config import EngineConfig
from infini.llm.engine.drafts import DraftModel
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams, StructuredOutputsParams
from infini.llm.text import tokenizer as tokenizer_
from infini.testing import assert_max_traces
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, make_tokenizer, prompts

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, logprobs=0, ignore_eos=True)
SMALL = OPTIONS | {"max_num_batched_tokens": 16, "enforce_eager": True}
K = 3


def drafted(checkpoint, draft, **options) -> LLM:
    spec = {"method": "draft_model", "model": draft, "num_speculative_tokens": K}
    return LLM(checkpoint, speculative_config=spec, **(SMALL | options))


def nearly(checkpoint, amount: float, seed: int = 1):
    """A model that mostly agrees with another one."""
    random = np.random.default_rng(seed)
    params = tree.map(
        lambda leaf: inp.asarray(
            np.asarray(leaf) + amount * np.std(leaf) * random.standard_normal(leaf.shape).astype(np.float32)
        ),
        checkpoint.params,
    )
    return dataclasses.replace(checkpoint, params=params)


@pytest.fixture(scope="module")
def twin(checkpoint, tokenizer) -> LLM:
    """The draft model is the model itself, and the cache is too small for all that runs."""
    return drafted(checkpoint, checkpoint, tokenizer=tokenizer, num_gpu_blocks_override=7, max_model_len=96)


@pytest.fixture(scope="module")
def similar(checkpoint) -> LLM:
    return drafted(checkpoint, nearly(checkpoint, 0.03), max_num_seqs=8)


def counts(llm: LLM) -> tuple[int, int]:
    stats = llm.stats()
    return stats.spec_num_draft_tokens, stats.spec_num_accepted_tokens


def test_a_draft_that_is_the_model_is_always_right(twin, oracle):
    twin.reset_prefix_cache()
    before = twin.stats()
    (output,) = twin.generate([prompts(1)[0]], GREEDY)
    oracle.check_greedy(output)
    after = twin.stats()
    assert counts(twin)[0] == counts(twin)[1] > 0
    # One token after the prompt, then K + 1 at a time; chunks of the prompt are steps, too.
    assert after.num_steps - before.num_steps == -(-len(output.prompt_token_ids) // 16) + 4
    assert after.spec_accepted_per_position == (4, 4, 3)
    assert after.propose_s > before.propose_s


def test_greedy_tokens_are_the_models_with_a_draft_that_errs(similar, oracle):
    before = counts(similar)
    for output in similar.generate(prompts(8), GREEDY):
        assert len(output.outputs[0].token_ids) == 16
        oracle.check_greedy(output)
    num_drafted, num_kept = (now - then for now, then in zip(counts(similar), before, strict=True))
    assert 0.2 < num_kept / num_drafted < 0.95


def test_drawn_tokens_have_the_distribution_of_the_model(similar, oracle):
    """All continuations of three tokens against their chances; the first is drawn without a proposal."""
    prompt, length, count, temperature = [5, 6, 7], 3, 900, 0.7
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for made, chance in chances.items():
            logits = oracle.logprobs([*prompt, *made])[-1]
            best = np.argsort(-logits)[:3]
            odds = np.exp((logits[best] - logits[best[0]]) / temperature)
            for token, share in zip(best.tolist(), odds / odds.sum(), strict=True):
                longer[(*made, token)] = chance * share
        chances = longer
    before = counts(similar)
    params = SamplingParams(temperature=temperature, top_k=3, max_tokens=length, ignore_eos=True)
    outputs = similar.generate([prompt] * count, params)
    num_drafted, num_kept = (now - then for now, then in zip(counts(similar), before, strict=True))
    assert 0.2 < num_kept / num_drafted < 0.95
    found = [tuple(output.outputs[0].token_ids) for output in outputs]
    assert set(found) <= set(chances)
    expected = np.array(list(chances.values())) * count
    seen = np.array([found.count(made) for made in chances])
    frequent = expected >= 5
    parts = [*((seen - expected) ** 2 / expected)[frequent]]
    if not frequent.all():
        parts.append((seen[~frequent].sum() - expected[~frequent].sum()) ** 2 / expected[~frequent].sum())
    freedom = len(parts) - 1
    assert freedom > 8
    assert abs(sum(parts) - freedom) < 4 * np.sqrt(2 * freedom)


MIXTURE = (
    GREEDY,
    dataclasses.replace(GREEDY, max_tokens=1),
    SamplingParams(temperature=1.0, max_tokens=3, n=3, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=9, n=2, ignore_eos=True, seed=3),
    SamplingParams(temperature=0.9, presence_penalty=0.5, min_p=0.02, max_tokens=12, ignore_eos=True),
    SamplingParams(
        temperature=0.7,
        max_tokens=20,
        structured_outputs=StructuredOutputsParams(regex="(one|two) (three|four five) [a-z ]*"),
    ),
    dataclasses.replace(GREEDY, prompt_logprobs=0, max_tokens=24),
)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_cache_of_the_draft_follows(seed, twin, oracle):
    """Requests come, are cut, preempted, forked and given up. A draft that is the model then proposes what
    the model chooses, so a single wrong key in its cache shows.
    """
    random = np.random.default_rng(seed)
    core, inputs = twin.engine.core, twin.engine.inputs
    before = twin.stats()
    arriving = []
    for prompt in prompts(12, seed, longest=70):
        params = MIXTURE[int(random.integers(len(MIXTURE)))]
        arriving.append((int(random.integers(0, 12)), prompt, params))
    arriving.sort(key=lambda each: each[0])
    finished = []
    for step in itertools.count():
        while arriving and arriving[0][0] <= step:
            _, prompt, params = arriving.pop(0)
            core.add(inputs.make(prompt, params, kind="final"))
        for job in core.jobs:
            if random.random() < 0.01:
                core.abort(job.request_id)
        finished += core.step()
        if not arriving and not core.has_requests:
            break
        assert step < 2000
    stats = twin.stats()
    num_drafted = stats.spec_num_draft_tokens - before.spec_num_draft_tokens
    assert num_drafted == stats.spec_num_accepted_tokens - before.spec_num_accepted_tokens
    assert num_drafted > 20
    for output in finished:
        assert all(completion.finish_reason in ("length", "stop") for completion in output.outputs)
        if output.outputs[0].logprobs is not None:
            oracle.check_greedy(output)
    assert stats.num_free_blocks == stats.num_blocks
    draft = core.proposer
    assert not draft._computed
    assert not draft.runner.builder._rows
    assert not core._owners


def test_requests_lost_their_blocks_in_the_tests_above(twin):
    assert twin.stats().num_preemptions > 0
    assert twin.stats().prefix_cache_hits > 0


@pytest.mark.parametrize("more", [{}, {"presence_penalty": 1.5}, {"logprobs": 2}])
def test_a_seed_gives_the_tokens_that_it_gives_without_a_draft(similar, llm, more):
    """Beside requests without seeds, whose tokens are drawn otherwise."""
    own = SamplingParams(temperature=0.7, max_tokens=12, ignore_eos=True)
    params = [dataclasses.replace(own, seed=seed, **more) for seed in range(4)]
    given = prompts(4)
    expected = [output.outputs[0].token_ids for output in llm.generate(given, params)]
    before = counts(similar)
    found = similar.generate([p for p in given for _ in range(2)], [p for q in params for p in (q, own)])
    assert [output.outputs[0].token_ids for output in found[::2]] == expected
    num_drafted, num_kept = (now - then for now, then in zip(counts(similar), before, strict=True))
    assert 0.2 < num_kept / num_drafted < 0.95


def test_seeds_give_the_plain_tokens_in_deterministic_mode(checkpoint):
    params = SamplingParams(temperature=0.7, max_tokens=12, ignore_eos=True)
    plain = LLM(checkpoint, deterministic=True, **SMALL).generate(prompts(4), params)
    llm = drafted(checkpoint, nearly(checkpoint, 0.1), deterministic=True)
    found = llm.generate(prompts(4), params)
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in plain]
    assert counts(llm)[1] > 0


def test_texts_longer_than_the_draft_was_made_for_go_on_without_it(checkpoint, oracle):
    llm = drafted(checkpoint, make_checkpoint(max_position_embeddings=24))
    params = dataclasses.replace(GREEDY, max_tokens=24)
    for output in llm.generate([[5, 6, 7], list(range(30, 52)), list(range(60, 90))], params):
        oracle.check_greedy(output)
    draft = llm.engine.core.proposer
    assert isinstance(draft, DraftModel)
    assert 0 < counts(llm)[0] == counts(llm)[1] <= 24


def test_nothing_is_traced_after_the_engine_is_warm(checkpoint):
    llm = drafted(
        checkpoint,
        nearly(checkpoint, 0.1),
        enforce_eager=False, max_num_seqs=1, max_num_batched_tokens=4,
    )  # fmt: skip
    runner, draft = llm.engine.core.runner, llm.engine.core.proposer
    programs = (runner.forward, runner.sample, draft.runner.forward, draft.draw, draft.verify)
    mixture = [
        GREEDY,
        SamplingParams(max_tokens=9, seed=1),
        SamplingParams(max_tokens=9, presence_penalty=1.0, logit_bias={3: 1.0}),
        SamplingParams(max_tokens=9, logprobs=3, typical_p=0.5),
    ]
    tracers = [assert_max_traces(program, 0) for program in programs]
    with tracers[0], tracers[1], tracers[2], tracers[3], tracers[4]:
        llm.generate([[5, 6, 7]] * 8, mixture * 2)
    assert counts(llm)[1] > 0


def test_answers_go_on_without_a_draft_that_fails(checkpoint, oracle, monkeypatch):
    llm = drafted(checkpoint, checkpoint)
    runner = llm.engine.core.proposer.runner
    advance, calls = runner.advance, []

    def fail(*arrays):
        calls.append(arrays)
        if len(calls) < 8:
            return advance(*arrays)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "advance", fail)
    told = []
    with events.listen(told.append):
        outputs = llm.generate(prompts(6), GREEDY)
    assert [event.message for event in told if event.code == "proposals-failed"] == [
        "no more tokens are proposed: RuntimeError: out of memory"
    ]
    for output in outputs:
        assert output.outputs[0].finish_reason == "length"
        oracle.check_greedy(output)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_the_memory_of_both_caches_is_counted(checkpoint):
    plain = LLM(checkpoint, **SMALL)
    llm = drafted(checkpoint, make_checkpoint(num_hidden_layers=1))
    size = llm.engine.cache_size
    assert size.bytes_per_token == plain.engine.cache_size.bytes_per_token * 3 // 2
    draft = llm.engine.core.proposer
    assert isinstance(draft, DraftModel)
    total = llm.engine.core.runner.cache_nbytes + draft.runner.cache_nbytes
    assert total == size.num_tokens * size.bytes_per_token


def test_a_draft_with_another_vocabulary_is_refused(checkpoint):
    with pytest.raises(errors.ValueMismatchError, match="another vocabulary") as caught:
        drafted(checkpoint, make_checkpoint(vocab_size=384))
    assert "384 tokens, and 320 of the model" in str(caught.value)


def test_a_draft_with_other_tokens_is_refused(checkpoint):
    ours = make_tokenizer()
    data = json.loads(ours.to_json())
    vocabulary = data["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (280, 281))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    other = tokenizer_.from_json(json.dumps(data), {})
    drafting.check(checkpoint, ours, checkpoint, make_tokenizer())
    with pytest.raises(errors.ValueMismatchError, match="has other tokens") as caught:
        drafting.check(checkpoint, ours, checkpoint, other)
    assert "token 280" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"method": "draft_model"}, "none is named"), ({"method": "ngram", "model": "x"}, "not asked for")],
)
def test_methods_and_models_go_together(fields, message):
    with pytest.raises(errors.ValueMismatchError, match=message):
        EngineConfig(speculative_config=fields)
