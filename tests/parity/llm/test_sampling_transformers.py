"""Settings of sampling beside transformers' LogitsProcessors, on random logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.llm.sampling import kernels, state
from infini.llm.sampling.params import SamplingParams
from infini.llm.sampling.state import Row

torch = pytest.importorskip("torch")
processors = pytest.importorskip("transformers.generation.logits_process")

V = 1024
PROMPT, OUTPUT = [5, 5, 7, 100], [7, 8, 8, 900, 41, 42]
FEATURES = state.Features(is_random=True, is_edited=True, is_masked=True, is_typical=True)
probabilities = functools.partial(inf.jit, static_argnames="features")(kernels.probabilities)


def _theirs(logits: np.ndarray, tokens: list[int], chain: list[Any]) -> np.ndarray:  # Any: processors
    scores = torch.from_numpy(logits[None].astype(np.float64))
    for processor in chain:
        scores = processor(torch.tensor([tokens]), scores)
    return np.asarray(torch.softmax(scores, -1)[0])


def _ours(logits: np.ndarray, params: SamplingParams, **options: Any) -> np.ndarray:  # Any: options of Row
    row = Row(params, vocab_size=V, prompt_token_ids=PROMPT, **options)
    for token in OUTPUT:
        row.push(token)
    return np.asarray(probabilities(logits[None], state.build([row], 1, FEATURES), features=FEATURES))[0]


CASES: list[tuple[dict[str, Any], Callable[[], list[Any]]]] = [
    ({"temperature": 0.7}, lambda: [processors.TemperatureLogitsWarper(0.7)]),
    ({"top_k": 40}, lambda: [processors.TopKLogitsWarper(40)]),
    ({"top_p": 0.8}, lambda: [processors.TopPLogitsWarper(0.8)]),
    ({"top_p": 0.9999}, lambda: [processors.TopPLogitsWarper(0.9999)]),
    ({"min_p": 0.03}, lambda: [processors.MinPLogitsWarper(0.03)]),
    ({"typical_p": 0.5}, lambda: [processors.TypicalLogitsWarper(mass=0.5)]),
    ({"typical_p": 0.95}, lambda: [processors.TypicalLogitsWarper(mass=0.95)]),
    (
        {"temperature": 1.4, "top_k": 100, "top_p": 0.9},
        lambda: [
            processors.TemperatureLogitsWarper(1.4),
            processors.TopKLogitsWarper(100),
            processors.TopPLogitsWarper(0.9),
        ],
    ),
    ({"repetition_penalty": 1.3}, lambda: [processors.RepetitionPenaltyLogitsProcessor(1.3)]),
    ({"repetition_penalty": 0.8}, lambda: [processors.RepetitionPenaltyLogitsProcessor(0.8)]),
    (
        {"logit_bias": {3: 5.0, 900: -7.5}},
        lambda: [processors.SequenceBiasLogitsProcessor([[[3], 5.0], [[900], -7.5]])],
    ),
    (
        {"repetition_penalty": 1.2, "temperature": 0.6, "top_p": 0.7},
        lambda: [
            processors.RepetitionPenaltyLogitsProcessor(1.2),
            processors.TemperatureLogitsWarper(0.6),
            processors.TopPLogitsWarper(0.7),
        ],
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_probabilities_are_those_of_transformers(case: int, scale: float) -> None:
    fields, chain = CASES[case]
    logits = np.random.default_rng(case).normal(size=V).astype(np.float32) * scale
    expected = _theirs(logits, PROMPT + OUTPUT, chain())
    found = _ours(logits, SamplingParams(**fields))
    assert not found[expected == 0].any()
    assert found[expected > 1e-9].all()  # far below it, whole weights are 0
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_bad_words_are_those_of_transformers() -> None:
    words = [[9], [42, 17], [41, 42, 18], [40, 42, 19]]
    logits = np.random.default_rng(0).normal(size=V).astype(np.float32)
    expected = _theirs(logits, OUTPUT, [processors.NoBadWordsLogitsProcessor(words, eos_token_id=3)])
    found = _ours(logits, SamplingParams(bad_words=["given as tokens"]), bad_words=words)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("min_tokens", [6, 7])
def test_min_tokens_are_those_of_transformers(min_tokens: int) -> None:
    logits = np.random.default_rng(0).normal(size=V).astype(np.float32)
    chain = [processors.MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, eos_token_id=[3, 17])]
    expected = _theirs(logits, PROMPT + OUTPUT, chain)
    found = _ours(logits, SamplingParams(min_tokens=min_tokens), eos_ids=[3, 17])
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
