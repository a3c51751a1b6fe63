"""Tokens proposed ahead of the model: from the text itself, or by a smaller model.

A proposal is kept as long as it is what the model draws itself at its place, so an answer is the same with
and without proposals. The smaller model draws with the random numbers with which the model will draw: where
the two agree about a distribution they choose the same token, at any temperature.

References: arXiv:2211.17192, arXiv:2302.01318; prompt lookup,
https://github.com/apoorvumang/prompt-lookup-decoding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from infini.llm.engine.blocks import Block
from infini.llm.engine.config import SpeculativeConfig
from infini.llm.engine.jobs import Completion
from infini.llm.engine.requests import Request, Status
from infini.llm.engine.runner import ModelRunner
from infini.llm.engine.scheduler import Scheduled
from infini.llm.sampling import speculative


class Proposer(Protocol):
    """Proposes tokens ahead of the model."""

    def propose(self, completions: Sequence[Completion], counts: Sequence[int]) -> list[list[int]]:
        """Proposals for completions that go on, at most so many for each."""

    def forget(self, completion: Completion) -> None:
        """Give back what is kept of a completion that has ended."""


class NgramProposals:
    """Proposals from what a text already says.

    Args:
        config: lengths to look for.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self._inner = speculative.NgramProposer(
            config.num_speculative_tokens, config.prompt_lookup_max, config.prompt_lookup_min
        )

    def propose(self, completions: Sequence[Completion], counts: Sequence[int]) -> list[list[int]]:
        """As `Proposer.propose`."""
        found = []
        for completion, count in zip(completions, counts, strict=True):
            history = completion.history
            assert history is not None
            history.extend(completion.request.token_ids[len(history) :])
            found.append(self._inner.propose(history, count) if count > 0 else [])
        return found

    def forget(self, completion: Completion) -> None:
        """Nothing is kept."""


class DraftProposals:
    """Proposals of a smaller model, which has a static cache of its own: a block for each running request.

    Args:
        runner: computes it.
        num_tokens: tokens proposed at most.
    """

    def __init__(self, runner: ModelRunner, num_tokens: int) -> None:
        self._runner, self._num_tokens = runner, num_tokens
        self._budget = runner.buckets.tokens[-1]
        self._drafts: dict[Completion, _Draft] = {}
        self._free = [Block(index) for index in range(runner.num_blocks)]

    def propose(self, completions: Sequence[Completion], counts: Sequence[int]) -> list[list[int]]:
        """As `Proposer.propose`."""
        active = []
        for completion, count in zip(completions, counts, strict=True):
            if count > 0:
                draft = self._draft_of(completion)
                draft.take_over(completion.request.token_ids, min(count, self._num_tokens))
                active.append(draft)
        try:
            while todo := [draft for draft in active if not draft.is_done]:
                self._step(todo)
        finally:
            for draft in active:
                draft.completion.row.pop(len(draft.guesses))
        found = {draft.completion: draft.guesses for draft in active}
        return [found.get(completion, []) for completion in completions]

    def forget(self, completion: Completion) -> None:
        """As `Proposer.forget`."""
        draft = self._drafts.pop(completion, None)
        if draft is not None:
            self._free += draft.shadow.blocks
            self._runner.forget(draft.shadow)

    def _step(self, drafts: Sequence[_Draft]) -> None:
        """One step of the smaller model for those that it has room for."""
        scheduled, room = [], self._budget
        for draft in drafts:
            missing = draft.shadow.num_tokens - draft.num_computed
            count = min(missing, room)
            if count:
                item = Scheduled(draft.shadow, draft.num_computed, count, 0, count == missing)
                scheduled.append((draft, item))
            room -= count
        prepared = self._runner.prepare([item for _, item in scheduled])
        ends = [draft for draft, item in scheduled if item.makes_token]
        sampled = self._runner.run(prepared, [draft.completion.row for draft in ends]).sampled
        for draft, item in scheduled:
            draft.num_computed += item.num_tokens
        if sampled is not None:
            for draft, token in zip(ends, sampled.tokens[: len(ends)].tolist(), strict=True):
                draft.push(token)

    def _draft_of(self, completion: Completion) -> _Draft:
        draft = self._drafts.get(completion)
        if draft is None:
            if not self._free:  # some have been preempted since
                stale = next(c for c in self._drafts if c.request.status is not Status.RUNNING)
                self.forget(stale)
            request = completion.request
            shadow = Request(request.request_id, request.prompt_token_ids, request.max_tokens)
            shadow.blocks = [self._free.pop()]
            draft = self._drafts[completion] = _Draft(completion, shadow)
        return draft


@dataclass(eq=False, slots=True)
class _Draft:
    """How far the smaller model is with a completion.

    Args:
        completion: whose tokens are proposed.
        shadow: its text as the smaller model knows it, with the proposals.
        num_computed: tokens of it whose keys are in the cache.
        guesses: what is proposed now.
        most: how many tokens may be.
    """

    completion: Completion
    shadow: Request
    num_computed: int = 0
    guesses: list[int] = field(default_factory=list)
    most: int = 0

    @property
    def is_done(self) -> bool:
        """Whether as many tokens are proposed as may be, or the form of the answer ends here."""
        grammar = self.completion.row.grammar
        return len(self.guesses) >= self.most or (
            bool(self.guesses) and getattr(grammar, "is_finished", False)
        )

    def take_over(self, token_ids: Sequence[int], most: int) -> None:
        """Go on from a text: what was proposed and accepted is computed already."""
        known = self.shadow.token_ids
        place = len(known) - len(self.guesses)
        while place < min(len(known), len(token_ids)) and known[place] == token_ids[place]:
            place += 1
        del known[place:]
        known += token_ids[place:]
        # The last token is computed again, for what follows it.
        self.num_computed = min(self.num_computed, place, len(known) - 1)
        self.guesses, self.most = [], most

    def push(self, token: int) -> None:
        """Propose a token."""
        self.guesses.append(token)
        self.shadow.token_ids.append(token)
        self.completion.row.push(token)
