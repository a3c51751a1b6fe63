"""The shuffled order that needs no memory."""

from __future__ import annotations

import numpy as np
import pytest

from infini.data import permutation


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65537])
def test_every_item_comes_once(size: int) -> None:
    found = permutation.shuffled(np.arange(size), size=size, seed=3, epoch=2)
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


def test_an_item_is_found_alone_as_among_all() -> None:
    whole = permutation.shuffled(np.arange(1000), size=1000, seed=1)
    for item in (0, 1, 500, 999):
        assert permutation.shuffled(np.array([item]), size=1000, seed=1) == whole[item]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [
        tuple(permutation.shuffled(np.arange(100), size=100, seed=seed, epoch=epoch))
        for seed in (0, 1, 2**64, 2**70)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 8


def test_neighbours_are_scattered() -> None:
    """Places are spread evenly; in a random order neighbours are a third of the range apart on average."""
    size = 10000
    found = permutation.shuffled(np.arange(size), size=size, seed=0)
    counts = np.histogram(found[:1000], bins=10, range=(0, size))[0]
    assert counts.min() > 60 and counts.max() < 140
    assert abs(np.abs(np.diff(found)).mean() / size - 1 / 3) < 0.02
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.04


def test_large_ranges_need_no_memory() -> None:
    found = permutation.shuffled(np.arange(4), size=10**15, seed=0)
    assert found.max() > 10**12 and len(set(found.tolist())) == 4
