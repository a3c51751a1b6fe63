"""What a model wrote, taken apart: what it thought, says and calls; whole, or while it arrives."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field

from infini.llm.text import reasoning, tools
from infini.llm.text.tools import CallPiece, ToolCall


@dataclass(frozen=True, slots=True)
class Piece:
    """New parts of an answer."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """How the answers of a call are taken apart.

    Args:
        reasoning: splits off what the model thought.
        tools: finds calls.
        forced: the function that the answer is the arguments of; "" for a list of calls; None for neither.
        is_single: whether only the first call counts.
        prompt: what the model went on from.
    """

    reasoning: reasoning.ReasoningParser | None = None
    tools: tools.ToolParser | None = None
    forced: str | None = None
    is_single: bool = False
    prompt: str = ""

    def whole(self, text: str) -> tuple[str, str, tuple[ToolCall, ...]]:
        """Thought, answer and calls of a whole text.

        Args:
            text: what the model wrote.
        """
        thought = ""
        if self.reasoning is not None:
            parts = self.reasoning.parse(text, prompt=self.prompt)
            thought, text = parts.reasoning, parts.content
        if self.forced is not None:
            calls = self._forced(text)
            return thought, "" if calls else text, calls
        if self.tools is None:
            return thought, text, ()
        parsed = self.tools.parse(text)
        return thought, parsed.content, parsed.calls[:1] if self.is_single else parsed.calls

    def _forced(self, text: str) -> tuple[ToolCall, ...]:
        if self.forced:
            return (ToolCall(self.forced, text.strip()),) if text.strip() else ()
        reader = _List()
        return tuple(
            ToolCall(piece.name, piece.arguments) for piece in reader.push(text) if piece.name is not None
        )

    def stream(self) -> Reader:
        """A reader at the beginning of an answer."""
        return Reader(self)


class Reader:
    """Takes an answer apart while it arrives; made by `Form.stream`."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._reasoning = None if form.reasoning is None else form.reasoning.stream(prompt=form.prompt)
        self._tools = None if form.tools is None or form.forced is not None else form.tools.stream()
        self._list = _List() if form.forced == "" else None
        self.num_calls = 0

    @property
    def is_in_reasoning(self) -> bool:
        """Whether the model thinks."""
        return self._reasoning is not None and self._reasoning.is_in_reasoning

    def push(self, text: str) -> Piece:
        """What is certain now."""
        thought = ""
        if self._reasoning is not None:
            parts = self._reasoning.push(text)
            thought, text = parts.reasoning, parts.content
        return self._piece(thought, *self._calls(text))

    def finish(self) -> Piece:
        """What was held back."""
        thought = text = ""
        if self._reasoning is not None:
            parts = self._reasoning.finish()
            thought, text = parts.reasoning, parts.content
        content, calls = self._calls(text)
        if self._tools is not None:
            delta = self._tools.finish()
            content, calls = content + delta.content, (*calls, *delta.calls)
        return self._piece(thought, content, calls)

    def _piece(self, thought: str, content: str, calls: tuple[CallPiece, ...]) -> Piece:
        if self._form.is_single:
            calls = tuple(call for call in calls if call.index == 0)
        self.num_calls = max(self.num_calls, *(call.index + 1 for call in calls), 0)
        return Piece(thought, content, calls)

    def _calls(self, text: str) -> tuple[str, tuple[CallPiece, ...]]:
        if self._form.forced:
            if not text:
                return "", ()
            if self.num_calls:
                return "", (CallPiece(0, None, text),)
            return "", (CallPiece(0, self._form.forced, text, _call_id()),)
        if self._list is not None:
            return "", tuple(self._list.push(text))
        if self._tools is not None and text:
            delta = self._tools.push(text)
            return delta.content, delta.calls
        return text, ()


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


@dataclass(slots=True)
class _List:
    """Reads `[{"name": ..., "parameters": {...}}, ...]`, the form of "required", call by call."""

    text: str = ""
    at: int = 0
    count: int = 0
    _decoder: json.JSONDecoder = field(default_factory=json.JSONDecoder)

    def push(self, text: str) -> list[CallPiece]:
        self.text += text
        found: list[CallPiece] = []
        while "}" in text:  # nothing can have ended without one
            start = self.text.find("{", self.at)
            if start < 0:
                break
            try:
                call, self.at = self._decoder.raw_decode(self.text, start)
            except ValueError:
                break
            arguments = json.dumps(call.get("parameters", {}), ensure_ascii=False)
            found.append(CallPiece(self.count, str(call.get("name", "")), arguments, _call_id()))
            self.count += 1
        return found
