"""Guesses: where they come from, which are kept, and that the distribution stays the model's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infini.core import errors
from infini.llm.sampling import kernels, speculative, state
from infini.llm.sampling.params import SamplingParams
from infini.llm.sampling.speculative import AcceptanceStatistics, History, NgramProposer
from infini.llm.sampling.state import Features, Row

V, K = 64, 3
PLAIN = Features(is_random=True)


# --- n-grams -----------------------------------------------------------------------------------------


def _proposed_by_definition(tokens: list[int], count: int, shortest: int, longest: int) -> list[int]:
    for length in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - length):
            if length < len(tokens) and tokens[start : start + length] == tokens[-length:]:
                return tokens[start + length : start + length + count]
    return []


@given(
    st.lists(st.sampled_from([0, 1, 2, 2**24]), max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_guesses_follow_the_first_earlier_run(
    tokens: list[int], count: int, shortest: int, more: int
) -> None:
    proposer = NgramProposer(count, prompt_lookup_max=shortest + more, prompt_lookup_min=shortest)
    expected = _proposed_by_definition(tokens, count, shortest, shortest + more)
    assert proposer.propose(tokens) == expected
    history = History(tokens[:10])
    history.extend(tokens[10:])
    assert len(history) == len(tokens)
    assert proposer.propose(history) == expected


def test_no_more_guesses_than_are_of_use() -> None:
    proposer = NgramProposer(4)
    assert proposer.propose([1, 2, 3, 4, 5, 1], max_tokens=2) == [2, 3]
    assert proposer.propose([1, 2, 3, 4, 5, 1], max_tokens=0) == []


@pytest.mark.parametrize("numbers", [(0, 5, 1), (1, 1, 2), (1, 3, 0)])
def test_numbers_that_do_not_go_together(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(errors.ValueMismatchError, match="do not go together"):
        NgramProposer(*numbers)


def test_matching_ends_at_the_first_difference() -> None:
    assert speculative.num_matching([1, 2, 3], [1, 2, 9, 4]) == 2
    assert speculative.num_matching([1, 2], [1, 2, 5]) == 2
    assert speculative.num_matching([], [5]) == 0


def test_matched_guesses_change_no_answer() -> None:
    """A model whose logits depend on the last token: with guesses of any quality the same tokens come out."""
    table = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32) * 2
    params = SamplingParams(seed=4, top_p=0.9, frequency_penalty=0.3)
    features = state.PRESETS[2]

    def choose(row: Row, last: int, guesses: list[int]) -> list[int]:
        made = state.build([row], 4, features, drafts=[guesses])
        logits = np.zeros((4, V), np.float32)
        for at, token in enumerate([last, *guesses]):
            logits[at] = table[token]
        return np.asarray(kernels.sample_step(logits, made, features=features).tokens).tolist()

    plain, row = [7], Row(params, vocab_size=V)
    while len(plain) < 25:
        plain.append(choose(row, plain[-1], [])[0])
        row.push(plain[-1])
    rng = np.random.default_rng(1)
    guessed, row, num_kept = [7], Row(params, vocab_size=V), 0
    while len(guessed) < 25:
        guesses = plain[len(guessed) : len(guessed) + 3]
        guesses = [token if rng.random() < 0.7 else (token + 1) % V for token in guesses]
        drawn = choose(row, guessed[-1], guesses)
        count = speculative.num_matching(guesses, drawn)
        num_kept += count
        for token in drawn[: count + 1]:
            guessed.append(token)
            row.push(token)
    assert guessed[:25] == plain
    assert num_kept > 5


# --- rejection sampling --------------------------------------------------------------------------------


def _speculated(
    fields: dict[str, float], target: np.ndarray, draft: np.ndarray, num_requests: int, num_drafts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (R, K + 1) and accepted counts of requests that all see the same logits at every place."""
    rows = [Row(SamplingParams(seed=seed, **fields), vocab_size=V) for seed in range(num_requests)]  # type: ignore[arg-type]
    drafts = np.zeros((num_requests, K), np.int32)
    probs = np.zeros((num_requests, K, V), np.float32)
    for place in range(K):
        made = speculative.draft_state(state.build(rows, num_requests, PLAIN))
        logits = np.repeat(draft[place : place + 1], num_requests, axis=0)
        drafts[:, place] = np.asarray(kernels.sample_step(logits, made, features=PLAIN).tokens)
        probs[:, place] = np.asarray(kernels.probabilities(logits, made, PLAIN))
        for row, token in zip(rows, drafts[:, place].tolist(), strict=True):
            row.push(token)
    for row in rows:
        row.pop(K)
    guesses = [each[:count].tolist() for each, count in zip(drafts, num_drafts, strict=True)]
    size = num_requests * (K + 1)
    made = state.build(rows, size, PLAIN, drafts=guesses)
    # Rows of a request follow each other: one before its first guess, and one after each.
    has_row = np.arange(K + 1) <= num_drafts[:, None]
    count = int(has_row.sum())
    guessed, draft_probs = np.full(size, -1, np.int32), np.zeros((size, V), np.float32)
    is_guess = (np.arange(K + 1) < num_drafts[:, None])[has_row]
    guessed[:count][is_guess] = np.concatenate(guesses)
    draft_probs[:count][is_guess] = probs[np.arange(K) < num_drafts[:, None]]
    logits = np.zeros((size, V), np.float32)
    logits[:count] = np.broadcast_to(target, (num_requests, K + 1, V))[has_row]
    sampled = speculative.verify_step(logits, made, guessed, draft_probs, features=PLAIN)
    tokens = np.full((num_requests, K + 1), -1)
    tokens[has_row] = np.asarray(sampled.tokens)[:count]
    accepted = [speculative.num_matching(*each) for each in zip(guesses, tokens.tolist(), strict=True)]
    return tokens, np.array(accepted)


def _chi_square_is_usual(tokens: np.ndarray, chances: np.ndarray) -> bool:
    counts, expected = np.bincount(tokens, minlength=V).astype(float), chances * tokens.size
    assert counts[expected == 0].sum() == 0
    is_frequent = expected >= 5
    parts = [((counts - expected) ** 2 / np.maximum(expected, 1e-9))[is_frequent]]
    rest, hoped = counts[~is_frequent].sum(), expected[~is_frequent].sum()
    if hoped > 1:
        parts.append(np.array([(rest - hoped) ** 2 / hoped]))
    terms = np.concatenate(parts)
    freedom = terms.size - 1
    return abs(terms.sum() - freedom) < 4.5 * np.sqrt(2 * max(freedom, 1))


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6, "top_p": 0.9}, {"top_k": 5}])
def test_what_is_kept_has_the_distribution_of_the_model(fields: dict[str, float]) -> None:
    """Logits at a place do not depend on the tokens before it, so every place has a known distribution."""
    rng = np.random.default_rng(3)
    target = rng.normal(size=(K + 1, V)).astype(np.float32) * 1.5
    draft = target[:K] + rng.normal(size=(K, V)).astype(np.float32)
    num_requests = 3000
    tokens, accepted = _speculated(fields, target, draft, num_requests, np.full(num_requests, K))
    made = state.build([Row(SamplingParams(**fields), vocab_size=V)] * (K + 1), K + 1, PLAIN)  # type: ignore[arg-type]
    chances = np.asarray(kernels.probabilities(target, made, PLAIN)).astype(np.float64)
    chances /= chances.sum(-1, keepdims=True)
    assert 0 < accepted.mean() < K
    for place in range(K + 1):
        is_there = accepted >= place
        if is_there.sum() > 300:
            assert _chi_square_is_usual(tokens[is_there, place], chances[place]), place


def test_the_share_that_is_kept_is_what_both_have_in_common() -> None:
    rng = np.random.default_rng(5)
    target = rng.normal(size=(K + 1, V)).astype(np.float32)
    draft = rng.normal(size=(K, V)).astype(np.float32)
    _, accepted = _speculated({}, target, draft, 3000, np.full(3000, K))
    p, q = (np.exp(each[0]) / np.exp(each[0]).sum() for each in (target, draft))
    expected = np.minimum(p, q).sum()
    assert abs((accepted > 0).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 3000)


def test_a_perfect_draft_is_always_kept() -> None:
    target = np.random.default_rng(6).normal(size=(K + 1, V)).astype(np.float32)
    _, accepted = _speculated({"top_p": 0.8}, target, target[:K], 64, np.full(64, K))
    assert accepted.tolist() == [K] * 64


def test_greedy_keeps_what_the_model_takes() -> None:
    target = np.random.default_rng(7).normal(size=(K + 1, V)).astype(np.float32)
    draft = target[:K].copy()
    draft[2] = -target[2]
    tokens, accepted = _speculated({"temperature": 0.0}, target, draft, 4, np.full(4, K))
    assert accepted.tolist() == [2] * 4
    assert tokens[:, :3].tolist() == [target[:3].argmax(-1).tolist()] * 4


def test_requests_may_have_fewer_guesses() -> None:
    target = np.random.default_rng(8).normal(size=(K + 1, V)).astype(np.float32)
    counts = np.array([0, 1, 2, 3])
    _, accepted = _speculated({}, target, target[:K], 4, counts)
    assert accepted.tolist() == counts.tolist()


def test_logprobs_of_what_is_kept() -> None:
    logits = np.random.default_rng(9).normal(size=(2, V)).astype(np.float32)
    features = Features(is_random=True, num_logprobs=20)
    row = Row(SamplingParams(temperature=0.0, logprobs=2), vocab_size=V)
    best = int(logits[0].argmax())
    made = state.build([row], 2, features, drafts=[[best]])
    probs = np.zeros((2, V), np.float32)
    probs[0, best] = 1.0
    sampled = speculative.verify_step(logits, made, np.array([best, -1], np.int32), probs, features=features)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(sampled.logprobs, expected.max(-1), atol=1e-5)
    assert np.asarray(sampled.ranks).tolist() == [1, 1]


def test_statistics_of_guesses() -> None:
    statistics = AcceptanceStatistics()
    for guessed, kept in ((3, 3), (3, 1), (0, 0), (2, 0)):
        statistics.observe(guessed, kept)
    assert (statistics.num_drafts, statistics.num_draft_tokens, statistics.num_accepted_tokens) == (3, 8, 4)
    assert statistics.num_accepted_per_position == [2, 1, 1]
    assert statistics.acceptance_rate == 0.5
    assert statistics.mean_acceptance_length == pytest.approx(1 + 4 / 3)
    assert AcceptanceStatistics().acceptance_rate == 0.0
