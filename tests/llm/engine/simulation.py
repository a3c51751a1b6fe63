"""A scheduler with a model that is none: it writes tokens into the slots it is told and reads back what the
block tables lead to, so that every wrong block shows as a wrong token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from infini.llm.engine import blocks, requests, scheduler

VOCABULARY = 50


def next_token(token_ids: list[int]) -> int:
    """What the pretended model says after a text."""
    return hashlib.blake2b(repr(token_ids).encode(), digest_size=4).digest()[0] % VOCABULARY


def continuation(prompt: tuple[int, ...], count: int) -> list[int]:
    """All it says after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class Simulation:
    """A scheduler, the memory of a cache and how steps go.

    Args:
        limits: of the scheduler.
        num_blocks: of the cache.
        block_size: tokens of each.
        num_spec: tokens proposed in each step; every third of them is wrong.
    """

    limits: scheduler.Limits
    num_blocks: int
    block_size: int
    num_spec: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    requests: list[requests.Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = blocks.BlockPool(self.num_blocks, self.block_size)
        self.scheduler = scheduler.Scheduler(self.limits, self.pool)

    def add(self, prompt: tuple[int, ...], max_tokens: int, **fields) -> requests.Request:
        number = len(self.requests)
        request = requests.Request(f"r{number}", prompt, max_tokens, arrival=number, **fields)
        self.scheduler.check(request)
        self.scheduler.check_queue()
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def step(self) -> scheduler.Step:
        """Schedule, compute, take over; every invariant is looked at in between."""
        ran_before = list(self.scheduler.running)
        plan = self.scheduler.schedule()
        self.check(plan)
        if plan.preempted:
            assert all(item.request in ran_before for item in plan.scheduled)
        size = self.block_size
        for item in plan.scheduled:
            request = item.request
            known = request.token_ids + request.spec_token_ids
            for position in range(item.start, item.start + item.num_tokens):
                slot = request.blocks[position // size].index * size + position % size
                self.memory[slot] = known[position]
        for item in plan.scheduled:
            self._take_over(item)
        return plan

    def _take_over(self, item: scheduler.Scheduled) -> None:
        request, size = item.request, self.block_size
        num_read = item.start + item.num_tokens
        read = [
            self.memory[request.blocks[position // size].index * size + position % size]
            for position in range(num_read)
        ]
        assert read == (request.token_ids + request.spec_token_ids)[:num_read]
        if not item.makes_token:
            return
        made: list[int] = []
        for proposed in [*request.spec_token_ids, None]:
            made.append(next_token(request.token_ids + made))
            if made[-1] != proposed:
                break
        num_rejected = item.num_spec - (len(made) - 1)
        made = made[: request.max_tokens - request.num_output_tokens]
        self.scheduler.append(request, made, num_rejected=num_rejected)
        if request.num_output_tokens == request.max_tokens:
            self.scheduler.finish(request, "length")
        elif self.num_spec:
            self._propose(request)

    def _propose(self, request: requests.Request) -> None:
        room = request.max_tokens - request.num_output_tokens - 1
        tokens = list(request.token_ids)
        for number in range(min(self.num_spec, room)):
            tokens.append((next_token(tokens) + (number % 3 == 2)) % VOCABULARY)
        request.spec_token_ids = tokens[request.num_tokens :]

    def check(self, plan: scheduler.Step) -> None:
        """Invariants 1 and 2, and that no step is empty while there is something to do."""
        assert plan.num_tokens == sum(item.num_tokens for item in plan.scheduled)
        assert plan.num_tokens <= self.limits.max_num_batched_tokens
        assert len(self.scheduler.running) <= self.limits.max_num_seqs
        assert plan.num_tokens > 0 or plan.preempted or not self.scheduler.has_requests
        self.check_blocks()

    def check_blocks(self) -> None:
        held: dict[int, list[requests.Request]] = {}
        for request in self.requests:
            assert not request.blocks or request.status is requests.Status.RUNNING
            for block in request.blocks:
                held.setdefault(block.index, []).append(request)
        assert len(held) + self.pool.num_free == self.pool.num_blocks
        assert {block.index for block in self.pool.free_blocks()}.isdisjoint(held)
        for block in self.pool.blocks:
            holders = held.get(block.index, [])
            assert block.num_holders == len(holders)
            if len(holders) > 1:
                assert block.hash is not None
                assert len(block.tokens) == self.block_size
                places = {request.blocks.index(block) for request in holders}
                assert len(places) == 1
