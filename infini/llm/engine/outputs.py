"""What comes out of the engine: outputs of requests, with vLLM's names, and what was measured about them.

Plain frozen data. A streamed request yields many `RequestOutput`s, `LLM.generate` the last one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# How a completion ended; None while it goes on. The names of OpenAI, with "abort" and "error" of the engine.
FinishReason = Literal["stop", "length", "abort", "error"]
# What each output of a stream holds: all so far, only what is new, or one output at the end.
OutputKind = Literal["cumulative", "delta", "final"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely one token was.

    Args:
        logprob: natural logarithm of its probability, by the model's logits before they are sampled from.
        rank: its place among all tokens, 1 for the likeliest.
        decoded_token: its text.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# For each position the tokens asked for by id; the first is the token that stands there.
TokenLogprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When what happened to a request, in seconds of `time.monotonic`; None: not yet.

    Args:
        arrival_time: handed to the engine.
        arrival_wall_time: the same moment in seconds since the epoch.
        first_scheduled_time: its first step began.
        first_token_time: its first token was emitted.
        last_token_time: its latest token was.
        finished_time: it ended.
        num_preemptions: how often it lost its blocks and was computed again.
    """

    arrival_time: float
    arrival_wall_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One continuation of a prompt.

    Args:
        index: its number among the `n` of the request.
        text: made so far, or what is new in an output of kind "delta".
        token_ids: likewise.
        cumulative_logprob: sum of the logarithms of its tokens' probabilities so far; None if not asked for.
        logprobs: one entry for each of `token_ids`; None if not asked for.
        finish_reason: how it ended; None while it goes on.
        stop_reason: the stop string or stop token that ended it; None for the end token of the model.
        error: why, where the finish reason is "error".
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What a request has given so far.

    Args:
        request_id: the name under which it was handed in.
        prompt: its text; None where the prompt was given as ids.
        prompt_token_ids: the prompt's ids.
        prompt_logprobs: an entry for each of them, the first None; None if not asked for, and in a stream of
            kind "delta" only in the first output.
        outputs: the completions, by index; in a stream of kind "delta" only those that changed.
        finished: whether all of them ended.
        num_cached_tokens: tokens of the prompt that were found in the prefix cache.
        metrics: when what happened.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts of an engine since it began, and its state now: what metrics are made of.

    Args:
        num_running: requests in the batch now.
        num_waiting: requests in the queue now.
        num_blocks: blocks of the cache.
        num_free_blocks: blocks that no request holds.
        block_size: tokens of a block.
        kv_cache_usage: share of the blocks that requests hold, from 0 to 1.
        num_steps: steps run.
        prompt_tokens: tokens of prompts whose first token was made.
        prompt_tokens_cached: those of them found in the prefix cache.
        generation_tokens: tokens made.
        prefix_cache_queries: tokens looked up in the prefix cache.
        prefix_cache_hits: tokens found there.
        num_preemptions: times that a request lost its blocks.
        finished: completed requests by finish reason.
        rejected: refused requests by reason: "queue_full", "too_long", "invalid".
        iteration_tokens: how many steps had at most 1, 8, 16, 32 ... 16384 tokens (not cumulative; the last
            entry counts those with more).
        spec_num_drafts: times that tokens were proposed for a request.
        spec_num_draft_tokens: tokens proposed.
        spec_num_accepted_tokens: tokens of those that were accepted.
        spec_accepted_per_position: accepted tokens by their place in the proposal.
        schedule_s: seconds spent scheduling.
        prepare_s: seconds spent building the arrays of steps.
        run_s: seconds in which programs ran and tokens were proposed.
        emit_s: seconds spent on tokens after they were sampled.
        propose_s: seconds spent on proposing tokens, those of a draft model included.
        is_healthy: whether the loop runs.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    block_size: int
    kv_cache_usage: float
    num_steps: int
    prompt_tokens: int
    prompt_tokens_cached: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    finished: Mapping[FinishReason, int]
    rejected: Mapping[str, int]
    iteration_tokens: tuple[int, ...]
    spec_num_drafts: int = 0
    spec_num_draft_tokens: int = 0
    spec_num_accepted_tokens: int = 0
    spec_accepted_per_position: tuple[int, ...] = ()
    schedule_s: float = 0.0
    prepare_s: float = 0.0
    run_s: float = 0.0
    emit_s: float = 0.0
    propose_s: float = 0.0
    is_healthy: bool = True


# Upper ends of `EngineStats.iteration_tokens`.
ITERATION_TOKEN_BUCKETS = (1, 8, *(2**n for n in range(4, 15)))
