"""POST /v1/responses without a store: items in, items out, and a stream of typed events.

A call is turned into a conversation (`response_items.chat_of`) and answered as `chat` does.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from infini.llm.engine.outputs import CompletionOutput, TokenLogprobs
from infini.llm.server import (
    answers,
    bodies,
    chat,
    failures,
    likely,
    response_items as items,
    service as service_,
    streams,
)
from infini.llm.server.generation import Generation, Usage
from infini.llm.server.requests import ResponsesRequest
from infini.llm.server.response_items import Json


async def create(request: Request) -> streams.Answer:
    """Answer input items."""
    service = service_.of(request)
    call = await bodies.read(
        request, ResponsesRequest, service.settings.limits, seconds=service.settings.body_s
    )
    name = service.model_name(call.model)
    call_id = service_.new_id("resp_")
    prepared = await chat.prepare(request, items.chat_of(call), call_id)
    most = prepared.call.top_logprobs if prepared.call.logprobs else None
    frame = items.frame(call, call_id, name, int(time.time()), service)
    answer = _Answer(service, frame, prepared.generation, prepared.form, most)
    if not call.stream:
        body = await streams.whole(request, answer.whole())
        return Response(streams.encode(body), media_type="application/json")
    await prepared.generation.start()
    return streams.EventStream(
        answer.events(), close=prepared.generation.close,
        request_id=service_.request_id(request), settings=service.settings, ending=b"", error_name="error",
    )  # fmt: skip


@dataclass(slots=True)
class _Answer:
    """The answer to one call, whole or in events."""

    service: service_.Service
    frame: Json
    generation: Generation
    form: answers.Form
    most_logprobs: int | None
    num_reasoning: int = 0
    number: int = 0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return dataclasses.replace(self.generation.usage, reasoning=self.num_reasoning)

    def _usage(self) -> Json:
        usage = self.usage
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        }

    def _ended(self, reason: str | None, output: list[Json]) -> Json:
        is_cut = reason == "length"
        return {
            **self.frame,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": output,
            "usage": self._usage(),
        }

    def _logprobs(self, ids: list[int], entries: list[TokenLogprobs] | None) -> list[Json]:
        if self.most_logprobs is None or entries is None:
            return []
        found: list[Json] = likely.chat(ids, entries, self.most_logprobs, self.service.tokenizer)["content"]
        return found

    async def whole(self) -> Json:
        """All items at once."""
        await self.generation.start()
        choice: CompletionOutput | None = None
        try:
            async for _, update in self.generation.updates():
                choice = update.outputs[0]
        finally:
            await self.generation.close()
        assert choice is not None
        thought, content, calls = self.form.whole(choice.text)
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        output: list[Json] = []
        if thought:
            ids = self.service.tokenizer.encode(thought, add_special_tokens=False)
            self.num_reasoning += len(ids)
            output.append(items.thought(service_.new_id("rs_"), thought))
        if content or not calls:
            logprobs = self._logprobs(choice.token_ids, choice.logprobs)
            output.append(items.message(service_.new_id("msg_"), content, status=status, logprobs=logprobs))
        output += [
            items.function_call(service_.new_id("fc_"), one.id, one.name, one.arguments, status="completed")
            for one in calls
        ]
        return self._ended(choice.finish_reason, output)

    def _event(self, type: str, **fields: Any) -> bytes:  # Any: JSON
        number, self.number = self.number, self.number + 1
        return streams.event({"type": type, "sequence_number": number, **fields}, type)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Items in events, in OpenAI's order."""
        yield self._event("response.created", response=self.frame)
        yield self._event("response.in_progress", response=self.frame)
        writer = _Writer(self)
        reader = self.form.stream()
        reason = None
        try:
            async for _, output in self.generation.updates():
                for choice in output.outputs:
                    was_thinking = reader.is_in_reasoning
                    piece = reader.push(choice.text)
                    if was_thinking or reader.is_in_reasoning:
                        self.num_reasoning += len(choice.token_ids)
                    logprobs = self._logprobs(choice.token_ids, choice.logprobs)
                    for event in writer.write(piece, logprobs):
                        yield event
                    if choice.finished:
                        reason = choice.finish_reason
                        for event in writer.write(reader.finish(), []):
                            yield event
        except failures.ApiError as error:
            fault = {"code": "server_error", "message": error.message}
            failed = {**self.frame, "status": "failed", "error": fault, "output": writer.output}
            yield self._event("response.failed", response=failed)
            return
        finally:
            await self.generation.close()
        status: Literal["incomplete", "completed"] = "incomplete" if reason == "length" else "completed"
        for event in writer.end(status):
            yield event
        yield self._event(f"response.{status}", response=self._ended(reason, writer.output))


@dataclass(slots=True)
class _Writer:
    """Turns pieces of an answer into events: one item after the other, each begun, filled and ended."""

    answer: _Answer
    output: list[Json] = field(default_factory=list)
    kind: str | None = None
    id: str = ""
    text: str = ""
    logprobs: list[Json] = field(default_factory=list)
    waiting: list[Json] = field(default_factory=list)  # logprobs of tokens whose text was held back
    call_id: str = ""
    name: str = ""
    call_index: int = -1

    def write(self, piece: answers.Piece, logprobs: list[Json]) -> Iterator[bytes]:
        """Events of the next piece.

        Args:
            piece: the piece.
            logprobs: of the tokens that it came with.
        """
        self.waiting += logprobs
        if piece.reasoning:
            self.waiting.clear()
            yield from self._begin("reasoning")
            yield from self._add("response.reasoning_text.delta", piece.reasoning)
        if piece.content:
            yield from self._begin("message")
            logprobs, self.waiting = self.waiting, []
            self.logprobs += logprobs
            yield from self._add("response.output_text.delta", piece.content, logprobs=logprobs)
        for call in piece.calls:
            if call.name is not None or call.index != self.call_index:
                yield from self.end("completed", is_last=False)
                self.call_index, self.call_id, self.name = call.index, call.id or "", call.name or ""
                yield from self._begin("function_call")
            if call.arguments:
                yield from self._add("response.function_call_arguments.delta", call.arguments)

    def _event(self, type: str, **fields: Any) -> bytes:  # Any: JSON
        return self.answer._event(type, output_index=len(self.output), **fields)

    def _add(self, type: str, delta: str, **fields: Any) -> Iterator[bytes]:  # Any: JSON
        self.text += delta
        place = {} if self.kind == "function_call" else {"content_index": 0}
        yield self._event(type, item_id=self.id, delta=delta, **place, **fields)

    def _begin(self, kind: str) -> Iterator[bytes]:
        if self.kind == kind:
            return
        yield from self.end("completed", is_last=False)
        self.kind, self.text, self.logprobs = kind, "", []
        self.id = service_.new_id({"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}[kind])
        yield self._event("response.output_item.added", item=self._item("in_progress"))
        if kind != "function_call":
            yield self._event(
                "response.content_part.added", item_id=self.id, content_index=0, part=self._part("")
            )

    def _item(self, status: str) -> Json:
        if self.kind == "reasoning":
            return items.thought(self.id, None if status == "in_progress" else self.text)
        if self.kind == "function_call":
            return items.function_call(self.id, self.call_id, self.name, self.text, status=status)
        return items.message(self.id, self.text, status=status, logprobs=self.logprobs)

    def _part(self, text: str) -> Json:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return items.text_part(text, self.logprobs)

    def end(self, status: str, *, is_last: bool = True) -> Iterator[bytes]:
        """End the item that is open; an answer without any has an empty message.

        Args:
            status: of the item.
            is_last: whether the answer ends.
        """
        if self.kind is None:
            if not is_last or self.output:
                return
            yield from self._begin("message")
        if self.kind == "function_call":
            yield self._event(
                "response.function_call_arguments.done", item_id=self.id, name=self.name, arguments=self.text
            )
        else:
            if self.kind == "message":
                self.logprobs += self.waiting
                self.waiting = []
            done = "reasoning_text" if self.kind == "reasoning" else "output_text"
            more = {} if self.kind == "reasoning" else {"logprobs": self.logprobs}
            yield self._event(
                f"response.{done}.done", item_id=self.id, content_index=0, text=self.text, **more
            )
            yield self._event(
                "response.content_part.done", item_id=self.id, content_index=0, part=self._part(self.text)
            )
        item = self._item(status if self.kind == "message" else "completed")
        yield self._event("response.output_item.done", item=item)
        self.output.append(item)
        self.kind = None
