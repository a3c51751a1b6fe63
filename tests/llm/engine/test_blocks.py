"""The pool of blocks: who holds what, what is known, and in which order it is forgotten."""

from __future__ import annotations

import pytest

from infini.llm.engine import blocks

SIZE = 4


def filled(pool: blocks.BlockPool, tokens: list[int], salt: str = "") -> list[blocks.Block]:
    hashes = hashes_of(tokens, salt)
    held = pool.allocate(pool.num_needed(len(tokens)))
    for number, key in enumerate(hashes):
        pool.make_known(held[number], key, tuple(tokens[number * SIZE : (number + 1) * SIZE]))
    return held


def hashes_of(tokens: list[int], salt: str = "") -> list[blocks.BlockHash]:
    hashes: list[blocks.BlockHash] = []
    blocks.extend_hashes(hashes, tokens, SIZE, salt=salt)
    return hashes


@pytest.fixture
def pool() -> blocks.BlockPool:
    return blocks.BlockPool(6, SIZE)


def test_a_block_leaves_the_middle_of_the_free_list():
    items = [blocks.Block(index) for index in range(4)]
    free = blocks.FreeList(items)
    free.remove(items[2])
    assert [block.index for block in free] == [0, 1, 3]
    free.append(items[2])
    assert [free.pop().index for _ in range(len(free))] == [0, 1, 3, 2]


def test_what_was_released_first_is_handed_out_first_and_ends_before_beginnings(pool):
    first, second = pool.allocate(3), pool.allocate(3)
    pool.release(second)
    pool.release(first)
    assert [block.index for block in pool.allocate(6)] == [5, 4, 3, 2, 1, 0]


def test_only_full_blocks_are_known(pool):
    filled(pool, list(range(10)))
    assert pool.num_known == 2


def test_a_released_block_is_found_until_it_is_handed_out(pool):
    tokens = list(range(8))
    held = filled(pool, tokens)
    pool.release(held)
    assert pool.find(hashes_of(tokens), tokens) == held
    pool.allocate(5)
    assert pool.find(hashes_of(tokens), tokens) == held[:1]
    pool.allocate(1)
    assert pool.find(hashes_of(tokens), tokens) == []


def test_a_found_block_is_held_once_more_and_counted_once(pool):
    held = filled(pool, list(range(8)))
    pool.hold(held)
    assert [block.num_holders for block in held] == [2, 2]
    pool.release(held)
    assert pool.num_free == 4
    pool.release(held)
    assert pool.num_free == 6


def test_a_block_behind_another_beginning_is_another_block(pool):
    filled(pool, [1, 1, 1, 1, 5, 5, 5, 5])
    tokens = [2, 2, 2, 2, 5, 5, 5, 5]
    assert pool.find(hashes_of(tokens), tokens) == []


def test_salts_separate(pool):
    tokens = list(range(4))
    filled(pool, tokens, salt="a")
    assert pool.find(hashes_of(tokens, "b"), tokens) == []
    assert len(pool.find(hashes_of(tokens, "a"), tokens)) == 1


def test_an_equal_hash_of_other_tokens_is_no_hit(pool):
    (held,) = filled(pool, [1, 2, 3, 4])
    held.tokens = (1, 2, 3, 5)  # as if two texts had one hash
    assert pool.find(hashes_of([1, 2, 3, 4]), [1, 2, 3, 4]) == []


def test_the_second_block_of_equal_content_stays_unknown(pool):
    first, second = filled(pool, [1, 2, 3, 4]), filled(pool, [1, 2, 3, 4])
    assert (first[0].hash is not None, second[0].hash) == (True, None)
    assert pool.num_known == 1


def test_forgetting_all_leaves_holders_alone(pool):
    held = filled(pool, list(range(8)))
    pool.forget_all()
    assert (pool.num_known, pool.num_free) == (0, 4)
    assert [block.num_holders for block in held] == [1, 1]


def test_hashes_are_extended_and_not_made_again():
    hashes = hashes_of(list(range(9)))
    first = list(hashes)
    blocks.extend_hashes(hashes, list(range(12)), SIZE)
    assert hashes[:2] == first
    assert hashes == hashes_of(list(range(12)))
