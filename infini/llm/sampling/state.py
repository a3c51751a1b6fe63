"""What a step has to know about its requests in order to choose tokens: arrays made from their records.

`build` lays the rows of a step side by side in a few NumPy arrays of fixed sizes, so that few programs are
compiled. Letters: R rows, V tokens in the vocabulary, N edits or forbidden tokens, W = ceil(V / 32)
words of a mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import tree
from infini.llm.sampling import guided
from infini.llm.sampling.features import (
    NUM_LOGPROBS as NUM_LOGPROBS,
    PRESETS as PRESETS,
    Features as Features,
    preset_of as preset_of,
)
from infini.llm.sampling.params import SamplingParams as SamplingParams
from infini.llm.sampling.rows import ALL, INDEX, NUM_NUMBERS, NUM_SCALES, PADDING, Row as Row

# Lengths of the lists of edits and of forbidden tokens: a step takes the first that is large enough for both.
LIST_SIZES: Final = (4096, 65536)
_LIST_GROWTH: Final = 16  # beyond them; such programs are compiled when they are first needed


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


def build(
    rows: Sequence[Row],
    size: int,
    features: Features,
    *,
    drafts: Sequence[Sequence[int]] | None = None,
    vocab_size: int | None = None,
) -> State:
    """Lay the rows of a step side by side.

    Args:
        rows: records in the order of the logits.
        size: rows of the logits, at least as many; the rest is padding that takes the likeliest token.
        features: what the program can do, at least what the rows ask for.
        drafts: guesses of each record (`Row.possible`), whose logits are wanted, too: the record has a row
            before the first guess and one after each.
        vocab_size: V, asked for only when there are no records.

    Returns:
        NumPy arrays; lists of edits and forbidden tokens have one of few lengths, the same for both.
    """
    lines = _Lines(size, features, rows[0].vocab_size if rows else vocab_size or 1)
    start = 0
    for at, row in enumerate(rows):
        guesses = drafts[at] if drafts is not None else ()
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
        self.scales[:] = PADDING
        self.numbers = np.zeros((size, NUM_NUMBERS), np.uint32)
        self.edits: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self.forbidden: list[tuple[int, np.ndarray]] = []
        self.mask: np.ndarray | None = None
        self.guided: list[tuple[int, Row]] = []
        if features.is_masked:
            self.mask = np.full((size, -(-vocab_size // 32)), ALL)

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
            if is_passing or row.grammar is None:
                row.fill_mask(self.mask[at])
            else:
                self.guided.append((at, row))

    def finish(self) -> State:
        if self.guided and self.mask is not None:
            guided.fill_masks([(at, row.grammar) for at, row in self.guided if row.grammar], self.mask)
            for at, row in self.guided:
                row.restrict(self.mask[at])
        if not self.features.is_edited:
            return State(self.scales, self.numbers, mask=self.mask)
        length = _list_size(
            max(
                sum(tokens.size for _, tokens, _, _ in self.edits),
                sum(tokens.size for _, tokens in self.forbidden),
            )
        )
        edits, biases = self._edits(length)
        return State(self.scales, self.numbers, edits, biases, self._forbidden(length), self.mask)

    def _edits(self, length: int) -> tuple[np.ndarray, np.ndarray]:
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

    def _forbidden(self, length: int) -> np.ndarray:
        forbidden = np.zeros((2, length), np.int32)
        start = 0
        for at, tokens in self.forbidden:
            end = start + tokens.size
            forbidden[0, start:end] = at
            forbidden[1, start:end] = tokens
            start = end
        forbidden[0, start:] = self.size
        return forbidden


def programs(
    size: int, vocab_size: int, presets: Sequence[Features] = PRESETS
) -> Iterator[tuple[Features, State]]:
    """What to compile so that no step of `size` rows waits for it: features, and arrays of padding."""
    for features in presets:
        state = build([], size, features, vocab_size=vocab_size)
        yield features, state
        if features.is_edited:
            for length in LIST_SIZES[1:]:
                edits = np.full((3, length), size, np.int32)
                biases = np.zeros(length, np.float32)
                yield features, dataclasses.replace(state, edits=edits, biases=biases, forbidden=edits[:2])


def _list_size(count: int) -> int:
    size = next((size for size in LIST_SIZES if count <= size), LIST_SIZES[-1])
    while size < count:
        size *= _LIST_GROWTH
    return size
