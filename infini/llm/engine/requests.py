"""Requests: what a user hands in (prompts), what the scheduler keeps about each, and why one is refused."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from infini.core import errors
from infini.llm.engine.outputs import FinishReason

if TYPE_CHECKING:
    from infini.llm.engine.blocks import Block, BlockHash


class TextPrompt(TypedDict, total=False):
    """A prompt as text: `{"prompt": "Once", "cache_salt": "user 7"}`."""

    prompt: str
    cache_salt: str


class TokensPrompt(TypedDict, total=False):
    """A prompt as ids: `{"prompt_token_ids": [1, 2], "cache_salt": "user 7"}`."""

    prompt_token_ids: Sequence[int]
    prompt: str
    cache_salt: str


Prompt = str | TextPrompt | TokensPrompt | Sequence[int]


class QueueFullError(errors.InfiniError):
    """As many requests wait as may: try later (HTTP 503)."""


class EngineDeadError(errors.InfiniError):
    """The engine's loop has ended: nothing is served any more (HTTP 503)."""


class Status(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """One sequence of tokens as the scheduler sees it. A user's request with n > 1 is n of these.

    Args:
        request_id: unique among those in the engine.
        prompt_token_ids: at least one.
        max_tokens: tokens to make at most.
        priority: lower goes first under the policy "priority".
        arrival: a growing number; equal priorities go in this order.
        cache_salt: only requests with an equal salt share blocks.
        is_cached: whether its blocks are looked up in the prefix cache and put there.
        wants_prompt_logprobs: its prompt is computed in full: nothing of it is taken from the cache.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    priority: int = 0
    arrival: int = 0
    cache_salt: str = ""
    is_cached: bool = True
    wants_prompt_logprobs: bool = False

    status: Status = Status.WAITING
    token_ids: list[int] = field(default_factory=list)  # prompt and what was made
    spec_token_ids: list[int] = field(default_factory=list)  # proposed, not yet verified
    num_computed_tokens: int = 0  # tokens whose keys are in the cache, or will be after the scheduled step
    num_cached_tokens: int = -1  # of the prompt, found in the prefix cache when first scheduled; -1 before
    num_preemptions: int = 0
    blocks: list[Block] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)  # of the full blocks of `token_ids`
    num_known_blocks: int = 0  # of `blocks`, those that the prefix cache was told of
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Length of the prompt and of what was made."""
        return len(self.token_ids)

    @property
    def num_tokens_with_spec(self) -> int:
        """The same and what is proposed: the length that `num_computed_tokens` runs after."""
        return len(self.token_ids) + len(self.spec_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens made so far."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def is_finished(self) -> bool:
        """Whether it has left the scheduler."""
        return self.status is Status.FINISHED

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the order of the policy "priority": smaller goes first, greater is preempted first."""
        return (self.priority, self.arrival)
