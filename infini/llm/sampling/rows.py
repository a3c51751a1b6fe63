"""The record of a request: what it asked for, and what it has to remember of its tokens.

It lives as long as the request and is told of every token, in constant time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from infini.llm.sampling.features import NUM_LOGPROBS, Features
from infini.llm.sampling.guided import Grammar
from infini.llm.sampling.params import SamplingParams

# Columns of State.scales.
TEMPERATURE, TOP_P, MIN_P, TYPICAL_P, REPETITION, PRESENCE, FREQUENCY = range(7)
NUM_SCALES: Final = 8
# Columns of State.numbers.
KEY_HIGH, KEY_LOW, INDEX, TOP_K = range(4)
NUM_NUMBERS: Final = 4
ALL: Final = np.uint32(0xFFFFFFFF)  # words of a mask that allows everything


class Row:
    """A request's record: what it asked for, and what it has to remember of its tokens.

    Args:
        params: the request.
        vocab_size: V.
        prompt_token_ids: tokens of the prompt; read only for a repetition penalty.
        eos_ids: tokens that end a text, which `min_tokens` keeps away.
        seed: taken when the request has none.
        bad_words: tokens of each forbidden word (`bad_words.token_ids`).
        grammar: form of the answer, told of every token by `push`.

    Attributes:
        num_output: tokens of the answer so far.

    Example:
        >>> row = Row(SamplingParams(seed=3), vocab_size=128)
        >>> row.push(17)
        True
        >>> row.num_output
        1
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        prompt_token_ids: Sequence[int] = (),
        eos_ids: Sequence[int] = (),
        seed: int = 0,
        bad_words: Sequence[Sequence[int]] = (),
        grammar: Grammar | None = None,
    ) -> None:
        params.check_vocabulary(vocab_size)
        self.params, self.vocab_size, self.grammar = params, vocab_size, grammar
        self.output: list[int] = []
        self.scales = _scales(params)
        self.numbers = _numbers(params, seed, vocab_size)
        self._counts_output = bool(params.presence_penalty or params.frequency_penalty) or (
            params.repetition_penalty != 1.0
        )
        biases = params.logit_bias or {}
        self.is_edited = self._counts_output or bool(biases)
        self._place: dict[int, int] = {}
        self._tokens = np.zeros(64, np.int32)
        self._occurrences = np.zeros(64, np.int32)
        self._biases = np.zeros(64, np.float32)
        if params.repetition_penalty != 1.0:
            self._add_prompt(prompt_token_ids)
        for token, bias in biases.items():
            place = self._place_of(token)
            self._biases[place] = bias
        self._ends = np.array(sorted({*eos_ids, *(params.stop_token_ids or ())}), np.int32)
        self._forbidden = np.array(sorted({word[0] for word in bad_words if len(word) == 1}), np.int32)
        self._words: dict[int, list[tuple[int, ...]]] = {}
        for word in bad_words:
            if len(word) > 1:
                self._words.setdefault(word[-2], []).append(tuple(word))
        self._allowed = _bits(params.allowed_token_ids, vocab_size)
        self.features = Features(
            is_random=not params.is_greedy,
            is_edited=self.is_edited or bool(bad_words) or bool(params.min_tokens and self._ends.size),
            is_masked=grammar is not None or self._allowed is not None,
            is_typical=params.typical_p < 1.0 and not params.is_greedy,
            num_logprobs=_num_logprobs(params.logprobs),
        )

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return len(self.output)

    @property
    def num_edits(self) -> int:
        """Tokens whose logits are changed."""
        return len(self._place)

    def push(self, token: int) -> bool:
        """Go on by one token.

        Args:
            token: the token that was chosen.

        Returns:
            Whether the grammar allows it here; True without one.
        """
        self.output.append(token)
        if self._counts_output:
            place = self._place_of(token)  # may replace the arrays
            self._occurrences[place] += 2
        return self.grammar is None or self.grammar.accept(token)

    def pop(self, count: int = 1) -> None:
        """Take the last tokens back, as if they had never come."""
        if count <= 0:
            return
        if self._counts_output:
            for token in self.output[-count:]:
                self._occurrences[self._place[token]] -= 2
        del self.output[-count:]
        if self.grammar is not None:
            self.grammar.rollback(count)

    def possible(self, guesses: Sequence[int]) -> list[int]:
        """The first of some guesses that the grammar allows; all of them without one."""
        if self.grammar is None:
            return list(guesses)
        return list(guesses[: self.grammar.count_allowed(guesses)])

    def forbidden(self) -> np.ndarray:
        """int32 tokens that may not come next."""
        found = [self._forbidden]
        if len(self.output) < self.params.min_tokens:
            found.append(self._ends)
        if self._words and self.output:
            last = [
                word[-1]
                for word in self._words.get(self.output[-1], ())
                if self.output[1 - len(word) :] == list(word[:-1])
            ]
            found.append(np.array(last, np.int32))
        return np.concatenate(found) if len(found) > 1 else self._forbidden

    def edits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens whose logits are changed, their occurrences (see `State.edits`), and biases."""
        end = len(self._place)
        return self._tokens[:end], self._occurrences[:end], self._biases[:end]

    def fill_mask(self, out: np.ndarray) -> None:
        """Write which tokens may come next into a row of `State.mask`."""
        if self.grammar is None:
            out[:] = ALL
        else:
            self.grammar.fill_mask(out)
        self.restrict(out)

    def restrict(self, out: np.ndarray) -> None:
        """Clear the bits of tokens that are not among `allowed_token_ids`."""
        if self._allowed is not None:
            out &= self._allowed

    def _add_prompt(self, prompt: Sequence[int]) -> None:
        tokens = np.unique(np.asarray(prompt, np.int32))
        self._grow(tokens.size + 64)
        self._tokens[: tokens.size] = tokens
        self._occurrences[: tokens.size] = 1
        self._place = dict(zip(tokens.tolist(), range(tokens.size), strict=True))

    def _place_of(self, token: int) -> int:
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = len(self._place)
            if place >= self._tokens.size:
                self._grow(2 * place)
            self._tokens[place] = token
        return place

    def _grow(self, size: int) -> None:
        for name in ("_tokens", "_occurrences", "_biases"):
            old = getattr(self, name)
            new = np.zeros(max(size, old.size), old.dtype)
            new[: old.size] = old
            setattr(self, name, new)


def _scales(params: SamplingParams) -> np.ndarray:
    temperature = 0.0 if params.is_greedy else params.temperature
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    return np.array([temperature, params.top_p, params.min_p, params.typical_p, *penalties, 0.0], np.float32)


PADDING: Final = _scales(SamplingParams(temperature=0.0))


def _numbers(params: SamplingParams, seed: int, vocab_size: int) -> np.ndarray:
    word = (seed if params.seed is None else params.seed) & 0xFFFFFFFFFFFFFFFF
    top_k = params.top_k if 0 < params.top_k < vocab_size else 0
    return np.array([word >> 32, word & 0xFFFFFFFF, 0, top_k], np.uint32)


def _num_logprobs(count: int | None) -> int | None:
    return None if count is None else next(size for size in NUM_LOGPROBS if count <= size)


def _bits(tokens: Sequence[int] | None, vocab_size: int) -> np.ndarray | None:
    if tokens is None:
        return None
    flags = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    flags[list(tokens)] = 1
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)
