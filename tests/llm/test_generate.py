"""Continuing prompts: the cached steps choose what the whole forward pass would."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import infini as inf
from infini import random
from infini.core import errors
from infini.llm.generate import Generation
from infini.llm.sampling import Sampling
from infini.train import gpt

CONFIG = gpt.Config(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_length=96,
    tie_embeddings=False,
)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def params() -> gpt.Params:
    # Larger weights than at the start of training, so that choices differ from place to place.
    return inf.tree.map(lambda p: p * 10.0 if p.ndim > 1 else p, gpt.init(random.PRNGKey(3), CONFIG))


def _whole(params: gpt.Params, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(np.asarray(gpt.forward(params, np.array([ids]), CONFIG))[0, -1])))
    return ids[len(prompt) :]


def test_greedy_generation_equals_repeated_forward_passes(params: gpt.Params) -> None:
    made = list(Generation(params, CONFIG, [7, 3, 11], max_new_tokens=8, sampling=GREEDY))
    assert made == _whole(params, [7, 3, 11], 8)


def test_a_prompt_as_long_as_its_padding(params: gpt.Params) -> None:
    prompt = list(range(32))
    assert list(Generation(params, CONFIG, prompt, max_new_tokens=2, sampling=GREEDY)) == _whole(
        params, prompt, 2
    )


def test_equal_seeds_give_equal_tokens(params: gpt.Params) -> None:
    runs = [
        list(Generation(params, CONFIG, [1], max_new_tokens=12, sampling=Sampling(1.0), seed=seed))
        for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_end_token_ends_the_text(params: gpt.Params) -> None:
    whole = _whole(params, [7, 3, 11], 4)
    end = whole[2]
    made = Generation(params, CONFIG, [7, 3, 11], max_new_tokens=8, sampling=GREEDY, end_ids=[49, end])
    assert list(made) == whole[: whole.index(end)]
    assert made.finished == "end"


def test_counts_and_times_are_kept(params: gpt.Params) -> None:
    made = Generation(params, CONFIG, [1, 2], max_new_tokens=5, sampling=GREEDY)
    assert len(list(made)) == made.num_tokens == 5
    assert made.finished == "length"
    assert made.prefill_s > 0
    assert made.tokens_per_s > 0


@pytest.mark.parametrize(
    ("prompt", "count", "problem"),
    [
        ([], 1, "prompt is empty"),
        ([1], 0, "at least 1"),
        ([1] * 90, 7, "longer than the model"),
        ([50], 1, "does not know"),
    ],
)
def test_wrong_requests_are_errors(params: gpt.Params, prompt: list[int], count: int, problem: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=problem):
        Generation(params, CONFIG, prompt, max_new_tokens=count, sampling=GREEDY)


def test_tied_models_generate() -> None:
    config = replace(CONFIG, tie_embeddings=True)
    params = gpt.init(random.PRNGKey(0), config)
    assert len(list(Generation(params, config, [1], max_new_tokens=3, sampling=GREEDY))) == 3
