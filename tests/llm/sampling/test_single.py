"""Choosing tokens from logits with one setting for all rows."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import infini as inf
from infini import random
from infini.core import errors
from infini.llm.sampling import Sampling, sample

PROBABILITIES = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
LOGITS = np.log(PROBABILITIES).astype(np.float32)[None]


def _chosen(sampling: Sampling, count: int = 300) -> np.ndarray:
    keys = random.split(random.PRNGKey(0), count)
    choose = functools.partial(sample, sampling=sampling)
    return np.asarray(inf.jit(inf.vmap(choose, in_axes=(None, 0)))(LOGITS, keys))[:, 0]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(_chosen(Sampling(temperature=0.0), 5)) == {1}


def test_frequencies_are_the_probabilities() -> None:
    counts = np.bincount(_chosen(Sampling(temperature=1.0), 4000), minlength=5)
    np.testing.assert_allclose(counts / 4000, PROBABILITIES, atol=0.03)


def test_a_low_temperature_sharpens() -> None:
    sharp = PROBABILITIES**4 / (PROBABILITIES**4).sum()
    counts = np.bincount(_chosen(Sampling(temperature=0.25), 4000), minlength=5)
    np.testing.assert_allclose(counts / 4000, sharp, atol=0.03)


@pytest.mark.parametrize(
    ("top_k", "candidates"), [(1, {1}), (3, {1, 2, 3}), (0, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})]
)
def test_top_k_leaves_the_likeliest(top_k: int, candidates: set[int]) -> None:
    assert set(_chosen(Sampling(temperature=1.0, top_k=top_k))) == candidates


@pytest.mark.parametrize(
    ("top_p", "candidates"), [(0.01, {1}), (0.39, {1}), (0.6, {1, 2}), (0.85, {1, 2, 3})]
)
def test_top_p_leaves_the_smallest_sufficient_set(top_p: float, candidates: set[int]) -> None:
    assert set(_chosen(Sampling(temperature=1.0, top_p=top_p))) == candidates


def test_top_k_and_top_p_together() -> None:
    assert set(_chosen(Sampling(temperature=1.0, top_k=3, top_p=0.5))) == {1, 2}


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_wrong_options_are_errors(wrong: dict) -> None:
    with pytest.raises(errors.ValueMismatchError, match="must"):
        Sampling(**wrong)
