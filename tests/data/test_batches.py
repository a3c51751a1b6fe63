"""Windows of tokens, token files, entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infini.core import errors
from infini.data import batches

TOKENS = np.arange(100, dtype=np.uint16)


def test_random_windows_depend_on_seed_and_step_only() -> None:
    first = batches.random_windows(TOKENS, batch_size=4, length=8, seed=1, step=7)
    again = batches.random_windows(TOKENS, batch_size=4, length=8, seed=1, step=7)
    other = batches.random_windows(TOKENS, batch_size=4, length=8, seed=1, step=8)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_random_windows_are_runs_of_the_tokens() -> None:
    windows = batches.random_windows(TOKENS, batch_size=50, length=8, seed=0, step=0)
    assert windows.shape == (50, 9)
    assert windows.dtype == np.int32
    assert (np.diff(windows, axis=1) == 1).all()


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
        batches.random_windows(TOKENS, batch_size=1, length=100, seed=0, step=0)


def test_unigram_entropy_of_equal_shares() -> None:
    assert batches.unigram_entropy(np.tile(np.arange(8), 5)) == pytest.approx(np.log(8))


@pytest.mark.parametrize(("largest", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_token_files_round_trip(tmp_path: Path, largest: int, dtype: type) -> None:
    tokens = np.array([0, 5, largest], np.int64)
    batches.write_tokens(tmp_path / "t.npy", tokens)
    read = batches.read_tokens(tmp_path / "t.npy")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, tokens)


def test_a_file_that_holds_no_ids_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((2, 2)))
    with pytest.raises(errors.ValueMismatchError, match="not a token file"):
        batches.read_tokens(tmp_path / "t.npy")
