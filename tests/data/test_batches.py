"""Windows of tokens, and which of them a step sees."""

from __future__ import annotations

import numpy as np
import pytest

from infini.core import errors
from infini.data import batches
from infini.data.batches import Batches

TOKENS = np.arange(100, dtype=np.uint16)
ORDERS: tuple[batches.Order, ...] = ("shuffled", "sequential", "random")


@pytest.mark.parametrize("order", ORDERS)
def test_windows_are_runs_of_the_tokens(order: batches.Order) -> None:
    windows = Batches(TOKENS, 50, 8, order=order).at(3)
    assert windows.shape == (50, 9) and windows.dtype == np.int32
    assert (np.diff(windows, axis=1) == 1).all()


@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_batches_depend_on_seed_and_step_only(order: batches.Order) -> None:
    first = Batches(TOKENS, 4, 8, seed=1, order=order)
    np.testing.assert_array_equal(first.at(7), Batches(TOKENS, 4, 8, seed=1, order=order).at(7))
    assert (first.at(7) != first.at(8)).any()
    assert (first.at(7) != Batches(TOKENS, 4, 8, seed=2, order=order).at(7)).any()


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_an_epoch_predicts_every_token_once(order: batches.Order) -> None:
    made = Batches(TOKENS, 4, 9, seed=5, order=order)
    assert made.num_windows == 11
    windows = np.concatenate([made.at(step) for step in range(11)])  # 44 windows are 4 epochs
    for epoch in range(4):
        predicted = windows[epoch * 11 : (epoch + 1) * 11, 1:].ravel()
        np.testing.assert_array_equal(np.sort(predicted), np.arange(1, 100))


def test_each_epoch_is_shuffled_anew() -> None:
    made = Batches(TOKENS, 11, 9)
    assert (made.at(0) != made.at(1)).any()


@pytest.mark.parametrize("order", ORDERS)
def test_processes_share_out_the_batch(order: batches.Order) -> None:
    whole = Batches(TOKENS, 6, 8, order=order).at(2)
    parts = [Batches(TOKENS, 6, 8, order=order, shard=(index, 3)).at(2) for index in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_processes_must_divide_the_batch() -> None:
    with pytest.raises(errors.ValueMismatchError, match="do not divide the batch"):
        Batches(TOKENS, 4, 8, shard=(0, 3))


def test_random_windows_reach_both_ends() -> None:
    windows = batches.random_windows(TOKENS, batch_size=4000, length=90, seed=0, step=0)
    assert windows.min() == 0
    assert windows.max() == 99


def test_spaced_windows_cover_the_tokens_without_overlap() -> None:
    windows = batches.spaced_windows(TOKENS, count=1000, length=9)
    assert windows.shape == (11, 10)
    assert windows[0, 0] == 0
    assert windows[-1, -1] == 99
    assert (windows[1:, 0] >= windows[:-1, -1]).all()


def test_too_few_tokens_are_an_error() -> None:
    with pytest.raises(errors.ValueMismatchError, match="too short"):
        Batches(TOKENS, 1, 100)


def test_unigram_entropy_of_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_COUNTED", 7)
    assert batches.unigram_entropy(np.tile(np.arange(8), 5)) == pytest.approx(np.log(8))
