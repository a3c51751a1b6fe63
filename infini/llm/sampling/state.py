"""What a step has to know about its requests in order to choose tokens: arrays made from records.

A `Row` lives as long as its request and is told of every token, in constant time. `build` lays the rows of a
step side by side in a few NumPy arrays of fixed sizes, so that few programs are compiled. Letters: R rows,
V tokens in the vocabulary, N edits, M forbidden tokens, W = ceil(V / 32) words of a mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from infini.core import errors, tree
from infini.llm.sampling.params import SamplingParams

# Columns of State.scales.
TEMPERATURE, TOP_P, MIN_P, TYPICAL_P, REPETITION, PRESENCE, FREQUENCY = range(7)
NUM_SCALES: Final = 8
# Columns of State.numbers.
KEY_HIGH, KEY_LOW, INDEX, TOP_K = range(4)
NUM_NUMBERS: Final = 4
# Sizes of the lists of edits and of forbidden tokens: a step takes the first that is large enough.
LIST_SIZES: Final = (256, 4096, 65536, 1048576)
NUM_LOGPROBS: Final = (0, 20)  # numbers of alternatives that programs are compiled for


class Mask(Protocol):
    """What a grammar is to a row; see `guided.Grammar`."""

    def fill_mask(self, out: np.ndarray) -> None:
        """Set the bits of the tokens that may come next; `out` is uint32 of shape (W,)."""

    def accept(self, token: int) -> bool:
        """Go on by a token; False if it may not come here."""

    def rollback(self, count: int) -> None:
        """Take the last tokens back."""

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of some tokens may come one after the other."""


@dataclass(frozen=True, slots=True)
class State:
    """The arrays of a step; a pytree. What nobody asked for is None.

    Args:
        scales: float32 (R, 8): temperature, top_p, min_p, typical_p, repetition, presence, frequency, unused.
        numbers: uint32 (R, 4): the two words of the key, number of the token in its answer, top_k.
        edits: int32 (3, N): row, token, 2 * occurrences in the answer + (1 if in the prompt). Rows of padding
            are R.
        biases: float32 (N,), what is added to the logits of the edits.
        forbidden: int32 (2, M): row, token.
        mask: uint32 (R, W), bit `token % 32` of word `token // 32` says whether it may be chosen.
    """

    scales: Any  # Any: NumPy's array on the host, a traced one in a program; so are all
    numbers: Any
    edits: Any = None
    biases: Any = None
    forbidden: Any = None
    mask: Any = None


tree.register_dataclass(State, [field.name for field in dataclasses.fields(State)], [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What any request of a step asks for; static, so programs have no code for the rest.

    Args:
        is_random: some request does not take the likeliest token.
        is_edited: some has penalties, biases, or tokens that may not come.
        is_masked: some has a grammar, or a list of tokens that may come.
        is_typical: some has `typical_p`.
        num_logprobs: how many alternatives are told with each token; None tells nothing about tokens.
    """

    is_random: bool = False
    is_edited: bool = False
    is_masked: bool = False
    is_typical: bool = False
    num_logprobs: int | None = None

    def covers(self, other: Features) -> bool:
        """Whether a program with these features can do what `other` asks."""
        flags = ("is_random", "is_edited", "is_masked", "is_typical")
        if any(getattr(other, flag) and not getattr(self, flag) for flag in flags):
            return False
        return _rank(self) >= _rank(other)


def _rank(features: Features) -> int:
    return -1 if features.num_logprobs is None else features.num_logprobs


# What an engine compiles before it is ready: the first that covers a step is used.
PRESETS: Final = (
    Features(),
    Features(is_random=True),
    Features(is_random=True, is_edited=True, is_masked=True),
    Features(is_random=True, is_edited=True, is_masked=True, is_typical=True, num_logprobs=NUM_LOGPROBS[-1]),
)


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
        grammar: Mask | None = None,
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
            self._biases[self._place_of(token)] = bias
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
            self._occurrences[self._place_of(token)] += 2
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
            out[:] = _ALL if self._allowed is None else self._allowed
            return
        self.grammar.fill_mask(out)
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


_ALL: Final = np.uint32(0xFFFFFFFF)


def features_of(rows: Sequence[Row]) -> Features:
    """What the rows of a step ask for together."""
    features = [row.features for row in rows]
    known = [each.num_logprobs for each in features if each.num_logprobs is not None]
    return Features(
        is_random=any(each.is_random for each in features),
        is_edited=any(each.is_edited for each in features),
        is_masked=any(each.is_masked for each in features),
        is_typical=any(each.is_typical for each in features),
        num_logprobs=max(known) if known else None,
    )


def preset_of(features: Features, presets: Sequence[Features] = PRESETS) -> Features:
    """The first of some features that covers what a step asks for, or these themselves."""
    return next((preset for preset in presets if preset.covers(features)), features)


def build(
    rows: Sequence[Row],
    size: int,
    features: Features,
    *,
    drafts: Sequence[Sequence[int]] | None = None,
    stride: int | None = None,
) -> State:
    """Lay the rows of a step side by side.

    Args:
        rows: records in the order of the logits.
        size: rows of the logits, at least as many; the rest is padding that takes the likeliest token.
        features: what the program can do, at least what the rows ask for.
        drafts: guesses of each record (`Row.possible`), whose logits are wanted, too: the record has a row
            before the first guess and one after each.
        stride: rows of logits that each record has, when they are not one after the other.

    Returns:
        NumPy arrays; lists of edits and forbidden tokens have one of the lengths `LIST_SIZES`.
    """
    lines = _Lines(size, features, rows[0].vocab_size if rows else 1)
    start = 0
    for at, row in enumerate(rows):
        guesses = drafts[at] if drafts is not None else ()
        if stride is not None:
            start = at * stride
        lines.add(start, row, is_passing=bool(guesses))
        start += 1
        for guess in guesses:
            row.push(guess)
            lines.add(start, row, is_passing=True)
            start += 1
        row.pop(len(guesses))
    return lines.finish()


class _Lines:
    """Arrays of a step while they are filled."""

    def __init__(self, size: int, features: Features, vocab_size: int) -> None:
        self.size, self.features = size, features
        self.scales = np.empty((size, NUM_SCALES), np.float32)
        self.scales[:] = _PADDING
        self.numbers = np.zeros((size, NUM_NUMBERS), np.uint32)
        self.edits: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self.forbidden: list[tuple[int, np.ndarray]] = []
        self.mask: np.ndarray | None = None
        if features.is_masked:
            self.mask = np.full((size, -(-vocab_size // 32)), _ALL)

    def add(self, at: int, row: Row, is_passing: bool = False) -> None:
        """Write line `at`; what is passing changes before `finish`, so it is copied."""
        self.scales[at] = row.scales
        numbers = self.numbers[at]
        numbers[:] = row.numbers
        numbers[INDEX] = len(row.output)
        if self.features.is_edited and row.features.is_edited:
            if row.is_edited:
                tokens, occurrences, biases = row.edits()
                self.edits.append((at, tokens, occurrences.copy() if is_passing else occurrences, biases))
            forbidden = row.forbidden()
            if forbidden.size:
                self.forbidden.append((at, forbidden))
        if self.mask is not None and row.features.is_masked:
            row.fill_mask(self.mask[at])

    def finish(self) -> State:
        if not self.features.is_edited:
            return State(self.scales, self.numbers, mask=self.mask)
        edits, biases = self._edits()
        return State(self.scales, self.numbers, edits, biases, self._forbidden(), self.mask)

    def _edits(self) -> tuple[np.ndarray, np.ndarray]:
        length = _list_size(sum(tokens.size for _, tokens, _, _ in self.edits))
        edits, biases = np.zeros((3, length), np.int32), np.zeros(length, np.float32)
        start = 0
        for at, tokens, occurrences, added in self.edits:
            end = start + tokens.size
            edits[0, start:end] = at
            edits[1, start:end] = tokens
            edits[2, start:end] = occurrences
            biases[start:end] = added
            start = end
        edits[0, start:] = self.size
        return edits, biases

    def _forbidden(self) -> np.ndarray:
        length = _list_size(sum(tokens.size for _, tokens in self.forbidden))
        forbidden = np.zeros((2, length), np.int32)
        start = 0
        for at, tokens in self.forbidden:
            end = start + tokens.size
            forbidden[0, start:end] = at
            forbidden[1, start:end] = tokens
            start = end
        forbidden[0, start:] = self.size
        return forbidden


def _list_size(count: int) -> int:
    for size in LIST_SIZES:
        if count <= size:
            return size
    raise errors.ValueMismatchError(
        "the requests of one step change too many logits",
        got=f"{count} tokens",
        expected=f"at most {LIST_SIZES[-1]}",
        fix="run fewer requests with penalties at a time",
    )


def _scales(params: SamplingParams) -> np.ndarray:
    temperature = 0.0 if params.is_greedy else params.temperature
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    return np.array([temperature, params.top_p, params.min_p, params.typical_p, *penalties, 0.0], np.float32)


_PADDING: Final = _scales(SamplingParams(temperature=0.0))


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
