"""What a model thinks before it answers, split from the answer: `<think> ... </think>` and its relatives.

Only the beginning of an answer is looked at, so a model may write about the marks later. Where the chat
template opens the thought itself (the prompt ends with the mark), the answer begins inside. Space at the ends
of the thought and line breaks before the answer vanish. Every way of cutting the text gives the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from infini.llm.text import parsers
from infini.llm.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """Pieces of an answer: what belongs to the thought, and what to the answer."""

    reasoning: str = ""
    content: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningParser:
    """How a family marks its thoughts.

    Args:
        name: name of the format.
        start: mark before a thought.
        end: mark after it.
        is_open: whether an answer always begins inside a thought.
    """

    name: str
    start: str
    end: str
    is_open: bool = False

    def parse(self, text: str, *, prompt: str = "") -> Parts:
        """Both parts of a whole answer.

        Args:
            text: the answer.
            prompt: what the template wrote before it; one that ends with `start` opens the thought.
        """
        stream = self.stream(prompt=prompt)
        first, last = stream.push(text), stream.finish()
        return Parts(first.reasoning + last.reasoning, first.content + last.content)

    def stream(self, *, prompt: str = "") -> ReasoningStream:
        """A parser at the beginning of an answer."""
        return ReasoningStream(self, is_open=self.is_open or prompt.rstrip().endswith(self.start))


class ReasoningStream:
    """Splits an answer that arrives in pieces; made by `ReasoningParser.stream`."""

    def __init__(self, parser: ReasoningParser, *, is_open: bool) -> None:
        self._parser = parser
        self._state = "opened" if is_open else "start"
        self._held = ""

    @property
    def is_in_reasoning(self) -> bool:
        """Whether the next piece belongs to the thought, as far as is known."""
        return self._state in ("opened", "thought")

    def push(self, text: str) -> Parts:
        """What is certain now."""
        reasoning, content = [], []
        self._held += text
        while self._held:
            state, held = self._state, self._held
            if state == "start":
                self._begin()
            elif state == "opened":  # space after the mark vanishes, and so does a mark that is written twice
                self._held = self._held.lstrip()
                if self._held.startswith(self._parser.start):
                    self._held = self._held[len(self._parser.start) :]
                elif self._held and not self._parser.start.startswith(self._held):
                    self._state = "thought"
            elif state == "thought":
                reasoning.append(self._think())
            elif state == "closed":
                self._held = self._held.lstrip("\r\n")
                self._state = "content" if self._held else "closed"
            else:
                content.append(self._held)
                self._held = ""
            if self._state == state and (self._held == held or state == "thought"):
                break
        return Parts("".join(reasoning), "".join(content))

    def finish(self) -> Parts:
        """What was held back."""
        held, self._held = self._held, ""
        if self._state in ("opened", "thought"):
            return Parts(reasoning=held.rstrip() if self._state == "thought" else held.strip())
        return Parts(content="" if self._state == "closed" else held)

    def _begin(self) -> None:
        seen = self._held.lstrip()
        if seen.startswith(self._parser.start):
            self._held = seen[len(self._parser.start) :]
            self._state = "opened"
        elif seen and not self._parser.start.startswith(seen):
            self._state = "content"

    def _think(self) -> str:
        """Text of the thought that is certain; goes on to the answer when its mark is there."""
        at = self._held.find(self._parser.end)
        if at >= 0:
            text = self._held[:at].rstrip()
            self._held = self._held[at + len(self._parser.end) :]
            self._state = "closed"
            return text
        end = len(self._held) - _num_open(self._held, self._parser.end)
        end = len(self._held[:end].rstrip())
        text, self._held = self._held[:end], self._held[end:]
        return text


def _num_open(text: str, mark: str) -> int:
    """Length of the longest end of a text with which a mark begins."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


PARSERS: Final[Mapping[str, ReasoningParser]] = {
    parser.name: parser
    for parser in (
        ReasoningParser("think", "<think>", "</think>"),
        ReasoningParser("deepseek_r1", "<think>", "</think>", is_open=True),
        ReasoningParser("mistral", "[THINK]", "[/THINK]"),
        ReasoningParser("seed_oss", "<seed:think>", "</seed:think>"),
    )
}
# Names that other servers use for the same marks.
_ALIASES: Final = {"qwen3": "think", "deepseek_v3": "think", "glm45": "think", "minicpm": "think"}


def parser_of(source: Tokenizer | str | None, *, name: str | None = None) -> ReasoningParser | None:
    """The parser of a model, from the marks that its chat template writes.

    Args:
        source: the model's tokenizer, or a template.
        name: name of a parser; stands above the template. `none` for no parser.

    Returns:
        The parser, None when the template marks no thoughts.

    Raises:
        ValueMismatchError: there is no parser of this name.
    """
    if name is not None:
        return parsers.named(name, PARSERS, _ALIASES, kind="reasoning")
    template = source.chat_template if isinstance(source, Tokenizer) else source
    if not template:
        return None
    for parser in PARSERS.values():
        if not parser.is_open and parser.end in template:
            return parser
    # Some templates know nothing of the thought, which the vocabulary has a token for.
    if isinstance(source, Tokenizer):
        for parser in PARSERS.values():
            if (
                not parser.is_open
                and source.token_id(parser.start) is not None
                and source.token_id(parser.end) is not None
            ):
                return parser
    return None
