"""Which requests run in the next step, and with how many tokens.

There are no phases: every request has tokens whose keys are computed and tokens that are not, and a step lets
the first number run after the second within one budget of tokens. Requests that run come first, oldest
first, then those that wait. Out of blocks, the newest that runs gives its blocks back and waits again; a step
in which that happened admits nobody. Plain Python: nothing here knows of arrays or devices.

References: vLLM's scheduler (github.com/vllm-project/vllm) for the idea of one budget without phases.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from infini.core import errors
from infini.llm.engine.blocks import Block, BlockPool, extend_hashes
from infini.llm.engine.config import Policy
from infini.llm.engine.outputs import FinishReason
from infini.llm.engine.requests import QueueFullError, Request, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a scheduler keeps to.

    Args:
        max_num_seqs: most requests that run.
        max_num_batched_tokens: most tokens in a step.
        max_model_len: most tokens of a request.
        long_prefill_token_threshold: most tokens of one request in a step; 0 is no limit.
        enable_chunked_prefill: whether a prompt may be computed in pieces.
        max_num_queued_reqs: most requests that wait; None is no limit.
        policy: in which order requests are admitted, and who gives blocks back.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_token_threshold: int = 0
    enable_chunked_prefill: bool = True
    max_num_queued_reqs: int | None = None
    policy: Policy = "fcfs"


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One request in a step.

    Args:
        request: the request.
        start: its first token of the step: the tokens before it are computed.
        num_tokens: its tokens in the step, proposed ones included.
        num_spec: how many of them are proposed.
        makes_token: whether they reach the end of what is known, so that a token follows.
    """

    request: Request
    start: int
    num_tokens: int
    num_spec: int
    makes_token: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What runs next.

    Args:
        scheduled: the requests, those that ran before first.
        preempted: requests that gave their blocks back.
        num_tokens: all tokens of the step.
    """

    scheduled: tuple[Scheduled, ...]
    preempted: tuple[Request, ...]
    num_tokens: int


class Scheduler:
    """Requests that wait and that run, and the blocks they hold.

    Args:
        limits: what it keeps to.
        pool: the blocks.
    """

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits, self.pool = limits, pool
        self.waiting: list[Request] = []  # in the order of admission
        self.running: list[Request] = []  # in the order in which they were admitted
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0

    @property
    def has_requests(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.running)

    def check(self, request: Request) -> None:
        """Refuse a request that can never run to its end.

        Raises:
            ValueMismatchError: it is longer than the model, the cache or, without chunks, a step.
        """
        limits, length = self.limits, request.num_prompt_tokens
        if length < 1:
            raise errors.ValueMismatchError("the prompt is empty", expected="at least one token")
        if request.max_tokens < 1:
            raise errors.ValueMismatchError("max_tokens must be at least 1", got=str(request.max_tokens))
        if length + request.max_tokens > limits.max_model_len:
            raise errors.ValueMismatchError(
                "prompt and new tokens are longer than the model allows",
                got=f"{length} tokens in the prompt and {request.max_tokens} to be made",
                expected=f"together at most {limits.max_model_len} (max_model_len)",
                fix="shorten the prompt, or ask for fewer tokens",
            )
        keys = length + request.max_tokens - 1  # the last token's are never needed
        capacity = self.pool.num_blocks * self.pool.block_size
        if keys > capacity:
            raise errors.ValueMismatchError(
                "the request does not fit into the key/value cache",
                got=f"{length} tokens in the prompt and {request.max_tokens} to be made",
                expected=f"together at most {capacity + 1}",
                fix="shorten the prompt, ask for fewer tokens, or give the cache more memory",
            )
        if not limits.enable_chunked_prefill and keys > limits.max_num_batched_tokens:
            raise errors.ValueMismatchError(
                "without chunked prefill a request has to fit into one step",
                got=f"{length} tokens in the prompt and {request.max_tokens} to be made",
                expected=f"together at most {limits.max_num_batched_tokens + 1} (max_num_batched_tokens)",
                fix="enable chunked prefill, or allow more tokens in a step",
            )

    def check_queue(self, count: int = 1) -> None:
        """Refuse requests for which the queue has no place.

        Raises:
            QueueFullError: it has none.
        """
        most = self.limits.max_num_queued_reqs
        if most is not None and len(self.waiting) + count > most:
            raise QueueFullError(
                "too many requests wait",
                got=f"{len(self.waiting)} in the queue and {count} more",
                expected=f"at most {most} (max_num_queued_reqs)",
                fix="try again later",
            )

    def add(self, request: Request) -> None:
        """Let a request wait for its turn; `check` and `check_queue` come before."""
        assert request.status is Status.WAITING
        self._enqueue(request)

    def schedule(self) -> Step:
        """Decide on the next step; the tokens count as computed from here on."""
        budget = self.limits.max_num_batched_tokens
        counts: dict[Request, int] = {}
        preempted: list[Request] = []
        for request in list(self.running):
            if request.status is not Status.RUNNING or budget == 0:  # one that gave its blocks back
                continue
            count = self._num_tokens(request, budget)
            if count and self._make_room(request, count, counts, preempted):
                counts[request] = min(count, request.num_tokens_with_spec - request.num_computed_tokens)
            budget = self.limits.max_num_batched_tokens - sum(counts.values())
        # Only now is it certain that they run: a later one may have taken an earlier one's blocks.
        for request in counts:
            self._make_known(request, request.num_computed_tokens + counts[request])
        if not preempted:
            self._admit(budget, counts)
        scheduled = tuple(self._advance(request, count) for request, count in counts.items())
        return Step(scheduled, tuple(preempted), sum(counts.values()))

    def withdraw(self, item: Scheduled, num_spec: int) -> Scheduled:
        """Take the last proposals of a request out of a step that has not run yet.

        Args:
            item: the request in the step.
            num_spec: how many proposals it keeps.
        """
        count = item.num_spec - num_spec
        if not count:
            return item
        item.request.num_computed_tokens -= count
        del item.request.spec_token_ids[num_spec:]
        return dataclasses.replace(item, num_tokens=item.num_tokens - count, num_spec=num_spec)

    def append(self, request: Request, token_ids: Sequence[int], *, num_rejected: int = 0) -> None:
        """Take over what a step made for a request.

        Args:
            request: one that ran in the step.
            token_ids: its new tokens, accepted proposals included.
            num_rejected: proposed tokens of the step that were not accepted: their keys are void.
        """
        request.token_ids.extend(token_ids)
        request.num_computed_tokens -= num_rejected
        request.spec_token_ids = []

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request, whether it waits or runs: its blocks are free."""
        if request.is_finished:
            return
        if request.status is Status.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._give_back(request)
        request.status, request.finish_reason = Status.FINISHED, reason

    def lose_all_blocks(self) -> None:
        """The content of the cache is gone: what runs is computed again, and no beginning is known."""
        for request in reversed(self.running.copy()):
            self._preempt(request)
        self.pool.forget_all()

    def _num_tokens(self, request: Request, budget: int) -> int:
        """How many tokens of a request the step takes."""
        count = min(request.num_tokens_with_spec - request.num_computed_tokens, budget)
        threshold = self.limits.long_prefill_token_threshold
        return min(count, threshold) if threshold and self.limits.enable_chunked_prefill else count

    def _make_room(
        self, request: Request, count: int, counts: dict[Request, int], preempted: list[Request]
    ) -> bool:
        """Blocks for `count` more tokens, if need be those of others. False: it lost its own."""
        while not self._grow(request, request.num_computed_tokens + count):
            if request.spec_token_ids:  # proposals are worth nobody's blocks
                request.spec_token_ids = []
                count = min(count, request.num_tokens - request.num_computed_tokens)
                continue
            victim = self.running[-1]
            if self.limits.policy == "priority":
                victim = max(self.running, key=_place)
            counts.pop(victim, None)
            self._preempt(victim)
            preempted.append(victim)
            if victim is request:
                return False
        return True

    def _grow(self, request: Request, num_tokens: int) -> bool:
        missing = self.pool.num_needed(num_tokens) - len(request.blocks)
        if missing > self.pool.num_free:
            return False
        if missing > 0:
            request.blocks += self.pool.allocate(missing)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._give_back(request)
        request.status = Status.PREEMPTED
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._enqueue(request)

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.spec_token_ids = [], []
        request.num_computed_tokens = request.num_known_blocks = 0

    def _enqueue(self, request: Request) -> None:
        bisect.insort(self.waiting, request, key=_place if self.limits.policy == "priority" else _arrival)

    def _admit(self, budget: int, counts: dict[Request, int]) -> None:
        """Let those that wait run, in order, as long as there is room for the first of them."""
        limits, pool = self.limits, self.pool
        while self.waiting and budget and len(self.running) < limits.max_num_seqs:
            request = self.waiting[0]
            cached = self._cached(request)
            request.num_computed_tokens = len(cached) * pool.block_size
            count = self._num_tokens(request, budget)
            is_whole = request.num_computed_tokens + count == request.num_tokens
            # All of its tokens must find room now, not only those of this step: else it would soon give
            # back what it computed.
            missing = pool.num_needed(request.num_tokens) - len(cached)
            if missing + pool.num_free_of(cached) > pool.num_free or not (
                is_whole or limits.enable_chunked_prefill
            ):
                request.num_computed_tokens = 0
                return
            self.waiting.pop(0)
            pool.hold(cached)
            request.blocks, request.num_known_blocks = list(cached), len(cached)
            self._grow(request, request.num_computed_tokens + count)
            self._count_hits(request)
            request.status = Status.RUNNING
            self.running.append(request)
            counts[request] = count
            budget -= count
            # Others admitted in this step find these blocks: a layer writes all keys before it reads any.
            self._make_known(request, request.num_computed_tokens + count)

    def _cached(self, request: Request) -> list[Block]:
        """Blocks that hold the beginning of a request; its last token is always computed."""
        if not request.is_cached or request.wants_prompt_logprobs:
            return []
        extend_hashes(request.block_hashes, request.token_ids, self.pool.block_size, salt=request.cache_salt)
        most = (request.num_tokens - 1) // self.pool.block_size
        return self.pool.find(request.block_hashes[:most], request.token_ids)

    def _count_hits(self, request: Request) -> None:
        if request.num_cached_tokens >= 0:  # it came back after a preemption
            return
        request.num_cached_tokens = request.num_computed_tokens
        if request.is_cached:
            self.prefix_cache_queries += request.num_tokens
            self.prefix_cache_hits += request.num_computed_tokens

    def _make_known(self, request: Request, num_computed: int) -> None:
        """Tell the prefix cache of the blocks that are full after this step, proposals not counted."""
        if not request.is_cached:
            return
        size = self.pool.block_size
        num_full = min(num_computed, request.num_tokens) // size
        if num_full <= request.num_known_blocks:
            return
        extend_hashes(request.block_hashes, request.token_ids, size, salt=request.cache_salt)
        for number in range(request.num_known_blocks, num_full):
            tokens = tuple(request.token_ids[number * size : (number + 1) * size])
            self.pool.make_known(request.blocks[number], request.block_hashes[number], tokens)
        request.num_known_blocks = num_full

    def _advance(self, request: Request, count: int) -> Scheduled:
        start = request.num_computed_tokens
        request.num_computed_tokens += count
        num_spec = max(request.num_computed_tokens - request.num_tokens, 0)
        request.spec_token_ids = request.spec_token_ids[:num_spec]
        makes_token = request.num_computed_tokens >= request.num_tokens
        return Scheduled(request, start, count, num_spec, makes_token)


def _arrival(request: Request) -> int:
    return request.arrival


def _place(request: Request) -> tuple[int, int]:
    return request.place
