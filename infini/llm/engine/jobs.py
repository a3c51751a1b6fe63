"""What the engine keeps of a user's request while it runs: its completions, their texts and logprobs, and
what was already told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from infini.llm.engine.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    OutputKind,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from infini.llm.engine.requests import Request
from infini.llm.sampling.kernels import Sampled
from infini.llm.sampling.params import SamplingParams
from infini.llm.sampling.speculative import History
from infini.llm.sampling.state import Row
from infini.llm.text.detokenizer import Incremental
from infini.llm.text.tokenizer import Tokenizer


@dataclass(eq=False, slots=True)
class Completion:
    """One continuation of a job's prompt.

    Args:
        request: its tokens and blocks, the scheduler's.
        row: its record of sampling.
        index: its number among the job's.
        detokenizer: makes its text; None where only tokens are wanted.
        eos_ids: tokens that end it without being asked for.
        stop_ids: tokens that end it because they were asked for.
    """

    request: Request
    row: Row
    index: int
    detokenizer: Incremental | None
    eos_ids: frozenset[int]
    stop_ids: frozenset[int]
    history: History | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    num_told_tokens: int = 0
    num_told_letters: int = 0
    is_told: bool = False  # that it has ended

    def push(self, token: int, params: SamplingParams) -> bool:
        """Take a token over.

        Returns:
            Whether it ended the completion; `finish_reason` says how.
        """
        self.token_ids.append(token)
        is_allowed = self.row.push(token)
        is_end = token in self.eos_ids
        is_stop = token in self.stop_ids
        shown = not (is_end or is_stop) or params.include_stop_str_in_output
        if self.detokenizer is not None and shown:
            self.text += self.detokenizer.push((token,))
        grammar = self.row.grammar
        fault = getattr(grammar, "error", None)
        if fault is not None:  # only the end may come then, and the answer would look as if it had its form
            self.error = f"the form of the answer cannot be followed any further: {fault}"
            self.end("error")
        elif is_end or is_stop:
            self.end("stop", token if is_stop else None)
        elif self.detokenizer is not None and self.detokenizer.stopped is not None:
            self.end("stop", self.detokenizer.stopped)
        elif not is_allowed:
            stated = None if grammar is None else grammar.error
            self.error = stated or "the form of the answer does not allow the token that was chosen"
            self.end("error")
        elif grammar is not None and getattr(grammar, "is_finished", False):
            self.end("stop")
        elif len(self.token_ids) >= self.request.max_tokens:
            self.end("length")
        return self.finish_reason is not None

    def end(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Say how it ended; text that was held back comes out."""
        if self.detokenizer is not None and reason != "error":
            self.text += self.detokenizer.finish()
            if self.detokenizer.stopped is not None and reason == "length":  # its last letters ended it
                reason, stop_reason = "stop", self.detokenizer.stopped
        self.finish_reason, self.stop_reason = reason, stop_reason

    def output(self, kind: OutputKind) -> CompletionOutput:
        """What it has given so far, or since it was last asked."""
        tokens, text, logprobs = self.token_ids, self.text, self.logprobs
        if kind == "delta":
            tokens, text = tokens[self.num_told_tokens :], text[self.num_told_letters :]
            logprobs = None if logprobs is None else logprobs[self.num_told_tokens :]
        self.num_told_tokens, self.num_told_letters = len(self.token_ids), len(self.text)
        self.is_told = self.finish_reason is not None
        return CompletionOutput(
            self.index,
            text,
            list(tokens),
            self.cumulative_logprob,
            None if logprobs is None else list(logprobs),
            self.finish_reason,
            self.stop_reason,
            self.error,
        )

    @property
    def has_news(self) -> bool:
        """Whether something happened since it was last asked."""
        return len(self.token_ids) > self.num_told_tokens or (
            self.finish_reason is not None and not self.is_told
        )


@dataclass(eq=False, slots=True)
class Job:
    """A user's request.

    Args:
        request_id: its name.
        prompt: its text; None where ids were given.
        prompt_token_ids: its ids.
        params: what was asked for.
        kind: which outputs are wanted.
        completions: `params.n` of them.
        arrival_time: when it came, by `time.monotonic`.
        arrival_wall_time: the same since the epoch.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    kind: OutputKind
    completions: list[Completion]
    arrival_time: float
    arrival_wall_time: float
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    has_told_prompt: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether all completions have ended."""
        return all(completion.finish_reason is not None for completion in self.completions)

    def output(self) -> RequestOutput:
        """What it has given, in the form that was asked for."""
        told = self.completions
        prompt_logprobs = self.prompt_logprobs
        if self.kind == "delta":
            told = [completion for completion in told if completion.has_news]
            prompt_logprobs = None if self.has_told_prompt else prompt_logprobs
        self.has_told_prompt = True
        cached = self.completions[0].request.num_cached_tokens
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            prompt_logprobs,
            [completion.output(self.kind) for completion in told],
            self.is_finished,
            max(cached, 0),
            self.metrics(),
        )

    def metrics(self) -> RequestMetrics:
        """When what happened."""
        return RequestMetrics(
            self.arrival_time,
            self.arrival_wall_time,
            self.first_scheduled_time,
            self.first_token_time,
            self.last_token_time,
            self.finished_time,
            sum(completion.request.num_preemptions for completion in self.completions),
        )


def logprobs_of(sampled: Sampled, row: int, count: int, tokenizer: Tokenizer | None) -> TokenLogprobs:
    """What is told about the token of one row: itself first, then the likeliest."""
    assert sampled.logprobs is not None and sampled.ranks is not None
    token = int(sampled.tokens[row])
    found = {token: Logprob(float(sampled.logprobs[row]), int(sampled.ranks[row]), _text(tokenizer, token))}
    if count and sampled.top_ids is not None and sampled.top_logprobs is not None:
        ids = np.asarray(sampled.top_ids[row])[:count].tolist()
        values = np.asarray(sampled.top_logprobs[row])[:count].tolist()
        for place, (other, value) in enumerate(zip(ids, values, strict=True), 1):
            found.setdefault(other, Logprob(value, place, _text(tokenizer, other)))
    return found


def prompt_logprobs_of(
    sampled: Sampled, count: int, tokenizer: Tokenizer | None
) -> Sequence[TokenLogprobs | None]:
    """The same for every row."""
    return [logprobs_of(sampled, row, count, tokenizer) for row in range(sampled.tokens.shape[0])]


def _text(tokenizer: Tokenizer | None, token: int) -> str | None:
    return None if tokenizer is None else tokenizer.decode((token,), skip_special_tokens=False)
