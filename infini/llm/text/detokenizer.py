"""Text of an answer while its tokens arrive: never half a character, never part of a stop string.

For every way of cutting the tokens into pushes, what comes out is the text of all of them. Each token costs
the length of its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from infini.core import errors
from infini.llm.text import pieces
from infini.llm.text.tokenizer import Tokenizer

# Tokens of the prompt that are looked at: a character has at most four bytes, each of which may be a token.
_CONTEXT: Final = 8


class Incremental:
    """Text of one answer.

    Args:
        tokenizer: whose ids they are.
        skip_special_tokens: whether special tokens vanish.
        stop: strings that end the answer, none of them empty. The first is the one that is complete first, as
            if the text came letter by letter; of those that end together, the longest.
        include_stop_str_in_output: whether the text ends with the stop string, or before it.
        prompt: ids before the answer; they are context and are not part of the text.
        min_tokens: number of tokens in whose text no stop string is looked for.

    Raises:
        ValueMismatchError: a stop string is empty.

    Example:
        >>> from infini.data import tokenizer as training
        >>> from infini.llm.text import tokenizer
        >>> tokens = tokenizer.from_json(training.train(["one two"], vocab_size=260).to_json())
        >>> text = Incremental(tokens, stop=["two"])
        >>> "".join(text.push([id]) for id in tokens.encode("one two three"))
        'one '
        >>> text.stopped
        'two'
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        prompt: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stops = _Stops(stop, include_stop_str_in_output) if stop else None
        self._min_tokens = min_tokens
        self._decoder: pieces.Decoder = tokenizer.stream_decoder() or _Whole(tokenizer, skip_special_tokens)
        self._is_whole = isinstance(self._decoder, _Whole)
        self.stopped: str | None = None
        self._is_finished = False
        for token in self._context(prompt):
            self._decoder.push(token)

    def push(self, ids: Iterable[int]) -> str:
        """Text that is new and certain; empty after a stop string was found."""
        if self.stopped is not None or self._is_finished:
            return ""
        found: list[str] = []
        for id in ids:
            token = self._tokenizer.shown(id, self._skip)
            text = "" if token is None else self._decoder.push(str(id) if self._is_whole else token)
            self._min_tokens -= 1
            if self._stops is None or self._min_tokens >= 0:
                found.append(text)
                continue
            found.append(self._stops.push(text))
            if self._stops.found is not None:
                self.stopped = self._stops.found
                break
        return "".join(found)

    def finish(self) -> str:
        """What was held back: the beginning of a stop string that did not come, or bytes that became no
        character, as U+FFFD.
        """
        if self.stopped is not None or self._is_finished:
            return ""
        self._is_finished = True
        text = self._decoder.finish()
        if self._stops is None:
            return text
        text = self._stops.push(text)
        self.stopped = self._stops.found
        return text if self.stopped is not None else text + self._stops.held()

    def _context(self, prompt: Sequence[int]) -> list[str]:
        """The last tokens of the prompt that a decoder sees."""
        found: list[str] = []
        for id in reversed(prompt):
            token = self._tokenizer.shown(id, self._skip)
            if token is not None:
                found.append(str(id) if self._is_whole else token)
            if len(found) == _CONTEXT:
                break
        return found[::-1]


class _Whole:
    """A decoder that the stream has no steps for: the library decodes the last few tokens again, and what
    they add is new. It takes ids, written out.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._decode = tokenizer.decode_from_start
        self._skip = skip_special_tokens
        self._shown: list[int] = []
        self._pending: list[int] = []
        self._before = ""

    def push(self, token: str) -> str:
        self._pending.append(int(token))
        text = self._decode(self._shown + self._pending, self._skip)
        if text.endswith(pieces.REPLACEMENT) and len(self._pending) < _CONTEXT:
            return ""
        return self._accepted(text)

    def finish(self) -> str:
        return self._accepted(self._decode(self._shown + self._pending, self._skip)) if self._pending else ""

    def _accepted(self, text: str) -> str:
        new = text[len(self._before) :]
        self._shown, self._pending = (self._shown + self._pending)[-_CONTEXT:], []
        self._before = self._decode(self._shown, self._skip)
        return new


class _Stops:
    """Looks for strings in a text that comes in pieces, one letter after the other: for each string, how many
    of its letters the text ends with (Knuth, Morris and Pratt).
    """

    def __init__(self, stops: Sequence[str], is_included: bool) -> None:
        if not all(stops):
            raise errors.ValueMismatchError(
                "an empty text cannot end the answer", got=repr(list(stops)), fix="leave the empty string out"
            )
        self._stops = list(dict.fromkeys(stops))
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._first_letters = frozenset(stop[0] for stop in self._stops)
        self._is_included = is_included
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Text that belongs to no stop string."""
        if not self._held and self._first_letters.isdisjoint(text):
            return text
        whole = self._held + text
        for place, letter in enumerate(text, len(self._held) + 1):
            ended = self._step(letter)
            if ended is not None:
                self.found = ended
                self._held = ""
                return whole[: place if self._is_included else place - len(ended)]
        keep = max(self._matched)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def held(self) -> str:
        """What was held back and is no part of a stop string after all."""
        return self._held

    def _step(self, letter: str) -> str | None:
        """The longest string that ends with this letter."""
        ended = None
        for index, stop in enumerate(self._stops):
            matched, borders = self._matched[index], self._borders[index]
            while matched and stop[matched] != letter:
                matched = borders[matched - 1]
            matched += stop[matched] == letter
            if matched == len(stop):
                if ended is None or len(stop) > len(ended):
                    ended = stop
                matched = borders[matched - 1]
            self._matched[index] = matched
        return ended


def _borders(text: str) -> list[int]:
    """For each beginning of a text, the length of its longest end that it also begins with."""
    found = [0] * len(text)
    for index in range(1, len(text)):
        length = found[index - 1]
        while length and text[index] != text[length]:
            length = found[length - 1]
        found[index] = length + (text[index] == text[length])
    return found
