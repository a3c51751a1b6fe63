"""Choosing tokens of a batch, against definitions in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.llm.sampling import kernels, state
from infini.llm.sampling.params import SamplingParams
from infini.llm.sampling.state import Features, Row
from tests.llm.sampling import oracle

V = 1024
EOS = (3, 900)
FULL = Features(is_random=True, is_edited=True, is_masked=True, is_typical=True)
PLAIN = Features(is_random=True)
probabilities = functools.partial(inf.jit, static_argnames="features")(kernels.probabilities)
edit = functools.partial(inf.jit, static_argnames="features")(kernels.edit)


def _logits(num_rows: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, V)).astype(np.float32) * scale


def _row(params: SamplingParams, output: Sequence[int] = (), **options: Any) -> Row:
    row = Row(params, vocab_size=V, **options)
    for token in output:
        row.push(token)
    return row


def _tokens(logits: np.ndarray, rows: Sequence[Row], features: Features = PLAIN) -> list[int]:
    made = state.build(rows, len(logits), features)
    return np.asarray(kernels.sample_step(logits, made, features=features).tokens)[: len(rows)].tolist()


FORBIDDING = [
    {"allowed_token_ids": [3], "min_tokens": 2},
    {"allowed_token_ids": [900], "temperature": 0.0, "min_tokens": 1},
]


@pytest.mark.parametrize("params", FORBIDDING)
def test_settings_that_forbid_every_token_choose_none(params: dict[str, Any]) -> None:
    rows = [_row(SamplingParams(**params), eos_ids=EOS), _row(SamplingParams(), seed=1)]
    found = _tokens(_logits(2), rows, FULL)
    assert found[0] == kernels.NONE and found[1] >= 0


@pytest.mark.parametrize("features", [PLAIN, FULL, Features()])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_that_are_no_numbers_choose_none(features: Features, value: float) -> None:
    logits = _logits(2)
    logits[0] = value
    params = SamplingParams(temperature=0.7 if features.is_random else 0.0)
    found = _tokens(logits, [_row(params, seed=1), _row(params, seed=2)], features)
    assert found[0] == kernels.NONE and found[1] >= 0


# --- what changes single logits ----------------------------------------------------------------------

PROMPT = [5, 5, 7, 100, 1023]
OUTPUT = [7, 8, 8, 8, 900, 41, 42]
EDITS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.5},
    {"repetition_penalty": 1.2, "presence_penalty": -0.3, "frequency_penalty": 0.4},
    {"logit_bias": {8: -100.0, 11: 100.0, 5: 2.5}, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    {"allowed_token_ids": [0, 8, 31, 32, 1023]},
    {"min_tokens": 8, "stop_token_ids": [77]},
    {"min_tokens": 7, "stop_token_ids": [77]},
    {"bad_words": ["not read here"]},
]
WORDS = [(9,), (42, 17), (41, 42, 18), (40, 42, 19), (42, 42), (41, 20)]


def test_edits_are_those_of_the_definitions() -> None:
    logits = _logits(len(EDITS))
    rows, expected = [], []
    for fields, row in zip(EDITS, logits, strict=True):
        params = SamplingParams(**fields)  # type: ignore[arg-type]
        known = {"bad_words": WORDS if params.bad_words else (), "eos_ids": EOS}
        rows.append(_row(params, OUTPUT, prompt_token_ids=PROMPT, **known))
        expected.append(oracle.edited(row, params, prompt=PROMPT, output=OUTPUT, **known))
    found = edit(logits, state.build(rows, len(rows), FULL), features=FULL)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-6, atol=1e-5)


def test_tokens_taken_back_leave_no_trace() -> None:
    params = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.3)
    row = _row(params, OUTPUT, prompt_token_ids=PROMPT)
    for token in (7, 8, 600, 601):
        row.push(token)
    row.pop(4)
    logits = _logits(1)
    found = edit(logits, state.build([row], 1, FULL), features=FULL)
    fresh = edit(logits, state.build([_row(params, OUTPUT, prompt_token_ids=PROMPT)], 1, FULL), features=FULL)
    np.testing.assert_array_equal(found, fresh)
    assert row.num_output == len(OUTPUT)


def test_counts_grow_beyond_what_was_reserved() -> None:
    output = list(range(500)) * 2
    params = SamplingParams(frequency_penalty=0.5)
    logits = _logits(1)
    found = edit(logits, state.build([_row(params, output)], 1, FULL), features=FULL)
    expected = logits[0].copy()
    expected[:500] -= 1.0
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_a_mask_of_an_odd_vocabulary() -> None:
    params = SamplingParams(allowed_token_ids=[0, 31, 32, 66], temperature=0.0)
    row = Row(params, vocab_size=67)
    masked = Features(is_masked=True)
    logits = np.arange(67, dtype=np.float32)[None]
    found = np.asarray(edit(logits, state.build([row], 1, masked), features=masked))[0]
    assert np.flatnonzero(np.isfinite(found)).tolist() == [0, 31, 32, 66]


# --- which tokens are candidates ---------------------------------------------------------------------

FILTERS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 300},
    {"top_k": 1024},
    {"top_p": 0.1},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    {"top_k": 400, "top_p": 0.99, "temperature": 1.5},
    {"min_p": 0.001, "top_p": 0.5},
]


def _check_candidates(chances: np.ndarray, expected: np.ndarray, params: SamplingParams) -> None:
    """Equal sets; weights below 2**-42 of the largest are no weights, so such tokens may be missing."""
    assert not chances[expected == 0].any(), params
    assert chances[expected > 1e-9].all(), params


@pytest.mark.parametrize("scale", [0.0, 0.05, 1.0, 6.0])
def test_candidates_are_those_of_the_definitions(scale: float) -> None:
    """From equal logits to one that has everything, so that limits are near, far, and beyond all tokens."""
    logits = _logits(len(FILTERS), seed=int(scale * 100), scale=scale)
    all_params = [SamplingParams(**fields) for fields in FILTERS]  # type: ignore[arg-type]
    rows = [_row(params) for params in all_params]
    found = np.asarray(probabilities(logits, state.build(rows, len(rows), PLAIN), features=PLAIN))
    for row, params, chances in zip(logits, all_params, found, strict=True):
        expected = oracle.probabilities(row, params)
        _check_candidates(chances, expected, params)
        np.testing.assert_allclose(chances, expected, atol=2e-6, err_msg=str(params))


@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_typical_candidates_are_those_of_the_definition(scale: float) -> None:
    fields = [
        {"typical_p": p, **more} for p in (0.1, 0.5, 0.95) for more in ({}, {"top_k": 60}, {"top_p": 0.8})
    ]
    logits = _logits(len(fields), seed=3, scale=scale)
    all_params = [SamplingParams(**each) for each in fields]  # type: ignore[arg-type]
    made = state.build([_row(params) for params in all_params], len(fields), FULL)
    found = np.asarray(probabilities(logits, made, features=FULL))
    for row, params, chances in zip(logits, all_params, found, strict=True):
        expected = oracle.probabilities(row, params)
        _check_candidates(chances, expected, params)
        np.testing.assert_allclose(chances, expected, atol=3e-6, err_msg=str(params))


def test_equal_logits_stay_together() -> None:
    logits = np.zeros((2, V), np.float32)
    logits[:, 10:20] = 5.0
    rows = [_row(SamplingParams(top_k=3)), _row(SamplingParams(top_p=0.2))]
    found = np.asarray(probabilities(logits, state.build(rows, 2, PLAIN), features=PLAIN))
    for chances in found:
        assert np.flatnonzero(chances).tolist() == list(range(10, 20))


# --- drawing -----------------------------------------------------------------------------------------


def _chi_square(counts: np.ndarray, chances: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; tokens that are expected less than 5 times count as one."""
    expected = chances * counts.sum()
    rare = expected < 5
    groups = [(counts[~rare], expected[~rare])]
    if rare.any() and expected[rare].sum() > 1:
        groups.append((counts[rare].sum(keepdims=True), expected[rare].sum(keepdims=True)))
    observed, hoped = (np.concatenate(each) for each in zip(*groups, strict=True))
    return float(((observed - hoped) ** 2 / hoped).sum()), observed.size - 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7, "top_k": 30},
        {"top_p": 0.9},
        {"top_p": 0.98, "temperature": 2.0},
        {"min_p": 0.02},
    ],
)
def test_frequencies_are_the_probabilities(fields: dict[str, Any]) -> None:
    """Chi-square within four standard deviations of its mean: 60 draws of 64 rows, of one distribution."""
    params = SamplingParams(**fields)
    logits = np.repeat(_logits(1, seed=11, scale=1.5), 64, axis=0)
    rows = [_row(SamplingParams(**fields, seed=seed)) for seed in range(64)]
    counts = np.zeros(V)
    for _ in range(60):
        drawn = _tokens(logits, rows)
        np.add.at(counts, drawn, 1)
        for row, token in zip(rows, drawn, strict=True):
            row.push(token)
    chances = oracle.probabilities(logits[0], params)
    assert counts[chances < 1e-12].sum() == 0
    statistic, freedom = _chi_square(counts, chances)
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 2.0},
    {"top_k": 20, "min_p": 0.01},
    {"top_k": 500},
    {"repetition_penalty": 1.2, "top_p": 0.8},
    {"typical_p": 0.6},
]


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_a_row_gives_the_same_token_alone_and_in_any_batch(features: Features) -> None:
    settings = [each for each in MIXED if features.is_typical or "typical_p" not in each]
    settings = [each for each in settings if features.is_edited or "repetition_penalty" not in each]
    logits = _logits(40, seed=5, scale=2.0)
    rows = [_row(SamplingParams(**settings[i % len(settings)], seed=i), [i, 7]) for i in range(40)]
    together = _tokens(logits, rows, features)
    turned = _tokens(logits[::-1].copy(), rows[::-1], features)[::-1]
    alone = [_tokens(logits[i : i + 1], rows[i : i + 1], features)[0] for i in range(40)]
    padded = np.zeros((8, V), np.float32)
    beside = []
    for i in range(0, 40, 5):
        padded[:5] = logits[i : i + 5]
        beside += _tokens(padded, rows[i : i + 5], features)
    assert together == turned == alone == beside


@pytest.mark.parametrize("wide", [state.PRESETS[2], FULL, state.PRESETS[-1]])
def test_a_program_that_can_do_more_gives_the_same_tokens(wide: Features) -> None:
    """What a neighbour asks for decides which program runs."""
    logits = _logits(16, seed=6)
    rows = [_row(SamplingParams(seed=i, **FILTERS[i])) for i in range(16)]  # type: ignore[arg-type]
    assert _tokens(logits, rows, PLAIN) == _tokens(logits, rows, wide)


def test_equal_seeds_give_equal_answers_and_others_do_not() -> None:
    logits = np.repeat(_logits(1, scale=0.1), 4, axis=0)
    rows = [_row(SamplingParams(seed=seed)) for seed in (1, 1, 2, -1)]
    answers = []
    for _ in range(8):
        drawn = _tokens(logits, rows)
        for row, token in zip(rows, drawn, strict=True):
            row.push(token)
        answers.append(drawn)
    first, second, third, last = np.array(answers).T.tolist()
    assert first == second
    assert first != third and third != last


def test_a_request_without_a_seed_takes_the_one_of_the_engine() -> None:
    logits = np.repeat(_logits(1, scale=0.1), 2, axis=0)
    rows = [_row(SamplingParams(), seed=2**40 + 5), _row(SamplingParams(seed=2**40 + 5), seed=3)]
    assert len(set(_tokens(logits, rows))) == 1


def test_rows_of_padding_take_the_likeliest() -> None:
    logits = _logits(8)
    made = state.build([_row(SamplingParams(seed=1))], 8, PLAIN)
    found = np.asarray(kernels.sample_step(logits, made, features=PLAIN).tokens)
    assert found[1:].tolist() == logits[1:].argmax(-1).tolist()


@pytest.mark.parametrize("content", [-np.inf, np.nan, np.inf])
def test_a_broken_row_harms_no_other(content: float) -> None:
    logits = _logits(8)
    rows = [_row(SamplingParams(seed=i, top_p=0.9)) for i in range(8)]
    expected = _tokens(logits, rows)
    logits[3] = content
    found = _tokens(logits, rows)
    assert found[:3] + found[4:] == expected[:3] + expected[4:]
    assert found[3] == kernels.NONE


@pytest.mark.parametrize("vocab_size", [1, 2, 67, 257, 640])
def test_vocabularies_of_any_size(vocab_size: int) -> None:
    logits = _logits(2, scale=2.0)[:, :vocab_size]
    rows = [Row(SamplingParams(seed=i, top_p=p), vocab_size=vocab_size) for i, p in enumerate((1.0, 0.999))]
    found = _tokens(logits, rows)
    assert all(0 <= token < vocab_size for token in found)


def test_greedy_programs_have_nothing_random() -> None:
    made = state.build([_row(SamplingParams(temperature=0.0))], 4, Features())
    program = str(inf.make_jaxpr(functools.partial(kernels.sample, features=Features()))(_logits(4), made))
    assert "argmax" in program
    assert not any(name in program for name in ("random", "threefry", "exp", "sort", "top_k"))


# --- what is told about tokens -----------------------------------------------------------------------


def test_logprobs_are_the_models_before_any_setting() -> None:
    features = state.PRESETS[-1]
    logits = _logits(4)
    rows = [
        _row(SamplingParams(seed=i, logprobs=5, temperature=0.5, presence_penalty=2.0), [1, 2])
        for i in range(4)
    ]
    sampled = kernels.sample_step(logits, state.build(rows, 4, features), features=features)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    tokens = np.asarray(sampled.tokens)
    chosen = expected[np.arange(4), tokens]
    np.testing.assert_allclose(sampled.logprobs, chosen, atol=1e-5)
    np.testing.assert_array_equal(sampled.ranks, 1 + (expected > chosen[:, None]).sum(-1))
    order = np.argsort(-expected, axis=-1, kind="stable")[:, :20]
    np.testing.assert_array_equal(sampled.top_ids, order)
    np.testing.assert_allclose(sampled.top_logprobs, np.take_along_axis(expected, order, -1), atol=1e-5)


def test_nothing_is_told_when_nobody_asked() -> None:
    made = state.build([_row(SamplingParams())], 2, PLAIN)
    sampled = kernels.sample_step(_logits(2), made, features=PLAIN)
    assert sampled.logprobs is None and sampled.top_ids is None


def test_logprobs_of_given_tokens() -> None:
    logits, tokens = _logits(3), np.array([0, 5, 9], np.int32)
    described = kernels.describe_step(logits, tokens, num_top=0)
    np.testing.assert_array_equal(described.tokens, tokens)
    assert described.top_ids is None
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(described.logprobs, expected[np.arange(3), tokens], atol=1e-5)
