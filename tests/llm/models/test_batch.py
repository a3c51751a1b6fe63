"""Batches: where tokens go, and what padding does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.llm import models
from infini.llm.models import Rows


def test_requests_one_after_the_other() -> None:
    found = models.make_batch(
        [Rows([5, 6, 7], 15, [4, 2]), Rows([8], 0, [1])], block_size=16, num_blocks=8, num_tokens=6,
        num_requests=3, blocks_per_request=3,
    )  # fmt: skip
    assert found.tokens.tolist() == [5, 6, 7, 8, 0, 0]
    assert found.positions.tolist() == [15, 16, 17, 0, 0, 0]
    assert found.slots.tolist() == [79, 32, 33, 16, 128, 128]
    assert found.block_tables.tolist() == [[4, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert found.query_starts.tolist() == [0, 3, 4, 4]
    assert found.lengths.tolist() == [18, 1, 0]
    assert found.last.tolist() == [2, 3, 0]
    assert all(leaf.dtype == np.int32 for leaf in inf.tree.leaves(found))


def test_every_token() -> None:
    found = models.make_batch(
        [Rows([5, 6], 0, [0])], block_size=16, num_blocks=1, num_tokens=4, is_every_token=True
    )
    assert found.last.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("options, words", [
    ({"num_tokens": 2}, "no room for so many tokens"),
    ({"num_requests": 0}, "no room for so many requests"),
    ({"blocks_per_request": 1}, "no room for so many blocks"),
    ({"num_wanted": 0}, "no room for so many tokens whose logits"),
])  # fmt: skip
def test_what_does_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(inf.errors.ValueMismatchError, match=words):
        models.make_batch([Rows([5, 6, 7], 0, [0, 1])], block_size=16, num_blocks=2, **options)


@pytest.mark.parametrize("rows", [Rows([], 3, [0]), Rows([1, 2], 15, [0])])
def test_tokens_without_a_place(rows: Rows) -> None:
    with pytest.raises(inf.errors.ValueMismatchError, match="do not hold its tokens"):
        models.make_batch([rows], block_size=16, num_blocks=2)
