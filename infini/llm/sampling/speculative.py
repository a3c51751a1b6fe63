"""Guessing several tokens ahead and keeping those that the model would have chosen.

A model looks at all guesses in one step. Guesses without probabilities (`NgramProposer`) are kept as long as
they are what the model draws itself, so an answer is the same with and without them. Guesses of a draft
model, drawn from its own distribution, are kept by rejection sampling: what comes out has exactly the
distribution of the model. Letters: R rows, K guesses of a request at most, V tokens in the vocabulary.

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
from infini import Array, lax
from infini.core import errors
from infini.llm.sampling import choice, kernels, rows as rows_
from infini.llm.sampling.features import PRESETS as _PRESETS, Features
from infini.llm.sampling.kernels import Sampled
from infini.llm.sampling.state import State

# Of the features that programs are compiled for, those with guesses of a draft model: sizes are many then.
PRESETS: Final = (*_PRESETS[:2], _PRESETS[-1])
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


def verify(
    logits: Array,
    state: State,
    guesses: Array,
    draft_probs: Array,
    features: Features,
    is_matched: Array | None = None,
) -> Sampled:
    """Keep guesses by rejection sampling, and draw a token where one is not kept.

    A guess x is kept with probability min(1, p(x) / q(x)), where p is the model's distribution with all
    settings of the request and q the one the guess was drawn from. One that is not kept is replaced by a draw
    from max(p - q, 0), which is never x; a row without a guess is drawn from p. So a request goes on by the
    tokens of its rows up to the first that is not its guess: `num_matching` counts them.

    Args:
        logits: float32 (R, V); each request has a row before its first guess and one after each.
        state: settings of these rows, `state.build` with `drafts`.
        guesses: int32 (R,), the guess for the token after each row; -1 where there is none.
        draft_probs: float32 (R, V), `kernels.probabilities` of the draft model with `draft_state`; what rows
            without a guess have does not matter.
        features: as in `kernels.sample`.
        is_matched: bool (R,), rows whose token is drawn as without guesses; a guess that is the token counts.
    """
    edited = kernels.edit(logits, state, features)
    probs = choice.probabilities(edited, state.scales, state.numbers, features)
    uniforms = kernels.uniforms(state.numbers, 2)
    is_guessed = guesses >= 0
    place = inp.maximum(guesses, 0)[:, None]
    wanted = inp.take_along_axis(probs, place, axis=1)[:, 0]
    proposed = inp.take_along_axis(draft_probs, place, axis=1)[:, 0]
    is_kept = is_guessed & (uniforms[:, 1] * proposed < wanted)
    rest = inp.maximum(probs - draft_probs, 0.0)
    # Without a guess, or where rounding left nothing of the difference, p itself is meant.
    has_rest = is_guessed[:, None] & (inp.sum(rest, axis=1, keepdims=True) > 0)
    weights = choice.whole(inp.where(has_rest, rest, probs), probs.shape[-1])
    drawn = choice.draw_by_weight(weights, uniforms[:, 0])
    tokens = inp.where(is_kept, guesses, drawn)
    if is_matched is not None:
        tokens = lax.cond(
            inp.any(is_matched),
            lambda: inp.where(is_matched, kernels.sample(logits, state, _tokens_of(features)).tokens, tokens),
            lambda: tokens,
        )
    tokens = kernels.possible(tokens, edited)
    if features.num_logprobs is None:
        return Sampled(tokens)
    return kernels.describe(logits, tokens, features.num_logprobs)


verify_step = functools.partial(inf.jit, static_argnames=("features",))(verify)


def _tokens_of(features: Features) -> Features:
    return dataclasses.replace(features, num_logprobs=None)


def draft_state(state: State, is_matched: np.ndarray | None = None) -> State:
    """Settings with which a draft model draws: the same, by random numbers of their own.

    Args:
        state: settings of the model's rows.
        is_matched: rows (R,) that keep the model's numbers, so that the likeliest guess is what it will draw.
    """
    numbers = state.numbers.copy()
    own = slice(None) if is_matched is None else ~is_matched
    numbers[own, rows_.KEY_HIGH] ^= _DRAFT_STREAM
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
