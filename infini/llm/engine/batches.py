"""Arrays of a step, made of what the scheduler decided: NumPy over whole steps, no loop over tokens.

The block tables of requests stay from step to step and only grow, because a request's list of blocks does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.llm.engine.buckets import Buckets
from infini.llm.engine.requests import Request
from infini.llm.engine.scheduler import Scheduled
from infini.llm.models.batch import Batch


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step as arrays.

    Args:
        batch: what the model takes.
        starts: number of the first token of each request among the tokens of the step.
        wanted: for each request the first of its rows of logits; it has `num_spec + 1` if it makes a token,
            else none.
        num_wanted: rows of logits that are no padding.
    """

    batch: Batch
    starts: list[int]
    wanted: list[int]
    num_wanted: int


class BatchBuilder:
    """Makes the arrays of steps.

    Args:
        buckets: sizes.
        num_blocks: blocks of the cache.
        block_size: tokens of a block.
    """

    def __init__(self, buckets: Buckets, num_blocks: int, block_size: int) -> None:
        self.buckets, self.num_blocks, self.block_size = buckets, num_blocks, block_size
        self._tables = np.zeros((buckets.num_requests, buckets.blocks_per_request), np.int32)
        self._rows: dict[Request, _Place] = {}
        self._free_rows = list(range(buckets.num_requests))[::-1]

    def build(self, scheduled: Sequence[Scheduled]) -> Prepared:
        """Arrays of a step.

        Args:
            scheduled: its requests, at least one.
        """
        size, count = self.block_size, len(scheduled)
        rows = self._rows_of(scheduled)
        first = np.fromiter((item.start for item in scheduled), np.int64, count)
        counts = np.fromiter((item.num_tokens for item in scheduled), np.int64, count)
        ends = counts.cumsum()
        begins, total = ends - counts, int(ends[-1])
        num_tokens = self.buckets.num_tokens(total)
        tokens, positions = np.zeros(num_tokens, np.int32), np.zeros(num_tokens, np.int32)
        slots = np.full(num_tokens, self.num_blocks * size, np.int32)
        flat: list[int] = []
        for item in scheduled:
            _add_tokens(flat, item)
        tokens[:total] = flat
        positions[:total] = np.arange(total) - np.repeat(begins - first, counts)
        place = positions[:total]
        slots[:total] = self._tables[np.repeat(rows, counts), place // size] * size + place % size
        tables = np.zeros_like(self._tables)
        tables[:count] = self._tables[rows]
        starts = np.full(self.buckets.num_requests + 1, total, np.int32)
        starts[:count] = begins
        lengths = np.zeros(self.buckets.num_requests, np.int32)
        lengths[:count] = first + counts
        last = np.zeros(self.buckets.num_wanted(num_tokens), np.int32)
        wanted: list[int] = []
        rows_of_logits: list[int] = []
        for item, end in zip(scheduled, ends.tolist(), strict=True):
            wanted.append(len(rows_of_logits))
            if item.makes_token:
                rows_of_logits += range(end - 1 - item.num_spec, end)
        last[: len(rows_of_logits)] = rows_of_logits
        batch = Batch(tokens, positions, slots, tables, starts, lengths, last)
        return Prepared(batch, begins.tolist(), wanted, len(rows_of_logits))

    def empty(self, num_tokens: int) -> Batch:
        """A step of some size in which there is nothing but padding: it changes no cache."""
        buckets = self.buckets
        return Batch(
            np.zeros(num_tokens, np.int32),
            np.zeros(num_tokens, np.int32),
            np.full(num_tokens, self.num_blocks * self.block_size, np.int32),
            np.zeros_like(self._tables),
            np.zeros(buckets.num_requests + 1, np.int32),
            np.zeros(buckets.num_requests, np.int32),
            np.zeros(buckets.num_wanted(num_tokens), np.int32),
        )

    def forget(self, request: Request) -> None:
        """Give back what is kept of a request that has ended."""
        place = self._rows.pop(request, None)
        if place is not None:
            self._free_rows.append(place.row)

    def _rows_of(self, scheduled: Sequence[Scheduled]) -> list[int]:
        """Rows of `_tables` with the requests' blocks."""
        if len(self._rows) + len(scheduled) > len(self._tables):  # those that lost their blocks make room
            running = {item.request for item in scheduled}
            for request in [
                request for request in self._rows if request not in running and not request.blocks
            ]:
                self.forget(request)
        found = []
        for item in scheduled:
            request = item.request
            place = self._rows.get(request)
            if place is None:
                place = self._rows[request] = _Place(self._free_rows.pop(), -1, 0)
            blocks = request.blocks
            if place.generation != request.num_preemptions:
                place.generation, place.num_blocks = request.num_preemptions, 0
            if place.num_blocks < len(blocks):
                new = [block.index for block in blocks[place.num_blocks :]]
                self._tables[place.row, place.num_blocks : len(blocks)] = new
                place.num_blocks = len(blocks)
            found.append(place.row)
        return found


@dataclass(slots=True)
class _Place:
    """What is kept of a request: its row, and how much of its list of blocks is in it."""

    row: int
    generation: int
    num_blocks: int


def _add_tokens(flat: list[int], item: Scheduled) -> None:
    request, end = item.request, item.start + item.num_tokens
    if item.num_tokens == 1 and end <= request.num_tokens:
        flat.append(request.token_ids[item.start])
    else:
        known = request.num_tokens
        flat += request.token_ids[item.start : end]
        flat += request.spec_token_ids[max(item.start - known, 0) : max(end - known, 0)]
