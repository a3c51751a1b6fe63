"""Batches made ahead by a thread."""

from __future__ import annotations

import threading
import time

import pytest

from infini.data.prefetch import Prefetch


def _num_threads() -> int:
    return sum(thread.name == "infini-prefetch" for thread in threading.enumerate())


def test_items_come_in_order_and_end() -> None:
    with Prefetch(lambda number: number * 10, start=2, stop=5) as items:
        assert list(items) == [20, 30, 40]


def test_no_more_than_the_depth_are_made_ahead() -> None:
    made: list[int] = []
    with Prefetch(made.append, depth=2) as items:
        next(items)
        while len(made) < 4:  # one taken, two that wait, one in hand
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(made) == 4


def test_the_thread_ends_with_the_block_while_it_waits_for_room() -> None:
    before = _num_threads()
    with Prefetch(lambda number: number) as items:
        assert _num_threads() == before + 1
        next(items)
    assert _num_threads() == before
    assert list(items) == []


def test_the_thread_ends_when_the_block_raises() -> None:
    before = _num_threads()
    with pytest.raises(KeyError), Prefetch(lambda number: number):
        raise KeyError
    assert _num_threads() == before


def test_what_goes_wrong_is_raised_where_the_item_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ZeroDivisionError("two")
        return number

    with Prefetch(make) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(ZeroDivisionError, match="two"):
            next(items)
        assert list(items) == []
