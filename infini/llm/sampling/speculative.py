"""Guessing several tokens ahead and keeping those that the model would have chosen.

A model looks at all guesses in one step. Guesses without probabilities (`NgramProposer`) are kept as long as
they are what the model draws itself, so an answer is the same with and without them. Guesses of a draft
model, drawn from its own distribution, are kept by rejection sampling: what comes out has exactly the
distribution of the model. Letters: R requests, K guesses of each at most, V tokens in the vocabulary.

References: arXiv:2211.17192, arXiv:2302.01318; prompt lookup,
https://github.com/apoorvumang/prompt-lookup-decoding
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import Array
from infini.core import errors, tree
from infini.llm.sampling import choice, kernels, rows as rows_
from infini.llm.sampling.features import Features
from infini.llm.sampling.kernels import Sampled
from infini.llm.sampling.state import State

_DRAFT_STREAM: Final = np.uint32(0x9E3779B9)  # draws of a draft model are independent of the model's


class History:
    """Tokens of a text in the form in which `NgramProposer` searches; grows with it.

    Args:
        tokens: the text so far.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._room = np.array(tokens, np.int32)
        self._length = len(self._room)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add what came."""
        end = self._length + len(tokens)
        if end > self._room.size:
            self._room = np.concatenate([self.tokens, np.zeros(max(end, 64), np.int32)])
        self._room[self._length : end] = tokens
        self._length = end

    @property
    def tokens(self) -> np.ndarray:
        """int32, all tokens."""
        return self._room[: self._length]

    def __len__(self) -> int:
        return self._length


@dataclass(frozen=True, slots=True)
class NgramProposer:
    """Guesses that a text goes on as it did after an earlier occurrence of its last few tokens.

    Args:
        num_speculative_tokens: K, guesses at most.
        prompt_lookup_max: the longest run of last tokens that is looked for.
        prompt_lookup_min: the shortest.

    Raises:
        ValueMismatchError: a number is below 1, or the shortest is longer than the longest.

    Example:
        >>> NgramProposer(3, prompt_lookup_max=2).propose([1, 2, 3, 4, 1, 2])
        [3, 4, 1]
    """

    num_speculative_tokens: int
    prompt_lookup_max: int = 5
    prompt_lookup_min: int = 1

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 1 or not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max:
            raise errors.ValueMismatchError(
                "the numbers of an n-gram proposer do not go together",
                got=f"num_speculative_tokens={self.num_speculative_tokens}, "
                f"prompt_lookup_min={self.prompt_lookup_min}, prompt_lookup_max={self.prompt_lookup_max}",
                expected="all at least 1, and the minimum not above the maximum",
            )

    def propose(self, tokens: Sequence[int] | History, max_tokens: int | None = None) -> list[int]:
        """Tokens that may follow a text.

        The longest run of last tokens that occurred before decides, and of its occurrences the first.

        Args:
            tokens: prompt and answer so far; a `History` saves translating them every time.
            max_tokens: guesses at most, when fewer than K are of use.

        Returns:
            At most K tokens, none when no run occurred before.
        """
        count = self.num_speculative_tokens if max_tokens is None else max_tokens
        count = min(count, self.num_speculative_tokens)
        text = (tokens if isinstance(tokens, History) else History(tokens)).tokens
        longest = min(self.prompt_lookup_max, text.size - 1)
        if count < 1 or longest < self.prompt_lookup_min:
            return []
        # Places where a run may end; each more token of the run, from the last one backwards, leaves fewer.
        ends, length = np.flatnonzero(text[:-1] == text[-1]), 1
        while ends.size and length < longest:
            longer = ends[np.searchsorted(ends, length) :]
            longer = longer[text[longer - length] == text[-1 - length]]
            if not longer.size:
                break
            ends, length = longer, length + 1
        if not ends.size or length < self.prompt_lookup_min:
            return []
        start = int(ends[0]) + 1
        found: list[int] = text[start : start + count].tolist()
        return found


def num_matching(guesses: Sequence[int], drawn: Sequence[int]) -> int:
    """How many guesses are what the model drew at their places, up to the first that is not.

    Args:
        guesses: K tokens.
        drawn: what `kernels.sample` drew in the K + 1 rows of the request.

    Returns:
        n; the request goes on by the first n + 1 of `drawn`.
    """
    count = 0
    for guess, token in zip(guesses, drawn, strict=False):
        if guess != token:
            break
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Verified:
    """What a step with guesses of a draft model gave; a pytree.

    Args:
        sampled: of R * (K + 1) rows. A request goes on by the tokens of its first `num_accepted` + 1 rows;
            the others mean nothing.
        num_accepted: int32 (R,), guesses that were kept.
    """

    sampled: Sampled
    num_accepted: Array


tree.register_dataclass(Verified, ["sampled", "num_accepted"], [])


def verify(
    logits: Array, state: State, drafts: Array, draft_probs: Array, num_drafts: Array, features: Features
) -> Verified:
    """Keep guesses by rejection sampling, and draw the token after the last one that is kept.

    A guess x is kept with probability min(1, p(x) / q(x)), where p is the model's distribution with all
    settings of the request and q the one the guess was drawn from. The first that is not kept is replaced
    by a draw from max(p - q, 0); when all are kept, one more is drawn from p.

    Args:
        logits: float32 (R * (K + 1), V); row j of a request follows its first j guesses.
        state: settings of these rows, `state.build` with `drafts`.
        drafts: int32 (R, K).
        draft_probs: float32 (R, K, V), `kernels.probabilities` of the draft model with `draft_state`.
        num_drafts: int32 (R,), guesses of each request; at most K.
        features: as in `kernels.sample`.
    """
    num_requests, num_guesses = drafts.shape
    edited = kernels.edit(logits, state, features)
    probs = choice.probabilities(edited, state.scales, state.numbers, features)
    probs = probs.reshape(num_requests, num_guesses + 1, -1)
    uniforms = kernels.uniforms(state.numbers, 2).reshape(num_requests, num_guesses + 1, 2)
    kept = _is_kept(probs[:, :-1], draft_probs, drafts, uniforms[:, :-1, 1])
    kept = kept & (inp.arange(num_guesses) < num_drafts[:, None])
    num_accepted = inp.sum(inp.cumprod(kept.astype(inp.int32), axis=1), axis=1, dtype=inp.int32)

    at = num_accepted[:, None, None]
    chosen = inp.take_along_axis(probs, at, axis=1)[:, 0]  # (R, V)
    guess_at = inp.minimum(at, num_guesses - 1)
    guessed = inp.take_along_axis(draft_probs, guess_at, axis=1)[:, 0]
    rest = inp.maximum(chosen - guessed, 0.0)
    # Without a rejected guess, or where rounding left nothing of the difference, p itself is meant.
    has_rest = (num_accepted < num_drafts)[:, None] & (inp.sum(rest, axis=1, keepdims=True) > 0)
    weights = choice.whole(inp.where(has_rest, rest, chosen), chosen.shape[-1])
    last = choice.draw_by_weight(weights, inp.take_along_axis(uniforms, at, axis=1)[:, 0, 0])
    padded = inp.concatenate([drafts, drafts[:, -1:]], axis=1)
    is_guess = inp.arange(num_guesses + 1) < num_accepted[:, None]
    tokens = inp.where(is_guess, padded, last[:, None]).reshape(-1)
    if features.num_logprobs is None:
        return Verified(Sampled(tokens), num_accepted)
    return Verified(kernels.describe(logits, tokens, features.num_logprobs), num_accepted)


verify_step = functools.partial(inf.jit, static_argnames=("features",))(verify)


def _is_kept(probs: Array, draft_probs: Array, drafts: Array, uniforms: Array) -> Array:
    """Whether each guess (R, K) is kept, whatever became of those before it."""
    place = drafts[:, :, None]
    wanted = inp.take_along_axis(probs, place, axis=2)[:, :, 0]
    proposed = inp.take_along_axis(draft_probs, place, axis=2)[:, :, 0]
    return uniforms * proposed < wanted


def draft_state(state: State) -> State:
    """Settings with which a draft model draws: the same, by random numbers of their own."""
    numbers = state.numbers.copy()
    numbers[:, rows_.KEY_HIGH] ^= _DRAFT_STREAM
    return dataclasses.replace(state, numbers=numbers)


@dataclass(slots=True)
class AcceptanceStatistics:
    """What became of guesses; the numbers that the metrics show.

    Attributes:
        num_drafts: times that something was guessed.
        num_draft_tokens: tokens guessed.
        num_accepted_tokens: tokens kept.
        num_accepted_per_position: of them, how many were first, second and so on among their guesses.
    """

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_per_position: list[int] = field(default_factory=list)

    def observe(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Count one request of one step; without guesses it does not count."""
        if num_draft_tokens == 0:
            return
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted_tokens
        missing = num_draft_tokens - len(self.num_accepted_per_position)
        self.num_accepted_per_position += [0] * missing
        for position in range(num_accepted_tokens):
            self.num_accepted_per_position[position] += 1

    @property
    def acceptance_rate(self) -> float:
        """Share of guesses that were kept; 0 before the first."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens of a step in which something was guessed, the one the model draws itself included."""
        return 1.0 + (self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0)
