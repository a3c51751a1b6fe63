"""POST /v1/chat/completions: conversations, answered whole or in pieces."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from infini.core import errors
from infini.llm.engine.outputs import CompletionOutput, TokenLogprobs
from infini.llm.sampling import tool_schemas
from infini.llm.sampling.params import StructuredOutputsParams
from infini.llm.server import (
    answers,
    bodies,
    conversations,
    failures,
    likely,
    sampled,
    service as service_,
    streams,
)
from infini.llm.server.generation import Generation, Usage
from infini.llm.server.requests import ChatRequest, NamedTool
from infini.llm.text.tools import CallPiece

# Longer texts are cut into tokens beside the event loop, which would stand still.
LONG: Final = 20_000


async def create(request: Request) -> streams.Answer:
    """Answer a conversation."""
    service = service_.of(request)
    call = await bodies.read(request, ChatRequest, service.settings.limits, seconds=service.settings.body_s)
    name = service.model_name(call.model)
    call_id = service_.new_id("chatcmpl-")
    prepared = await prepare(request, call, call_id)
    answer = Answer(service, call, call_id, name, prepared.generation, prepared.form)
    if not call.stream:
        body = await streams.whole(request, answer.whole())
        return Response(streams.encode(body), media_type="application/json")
    await prepared.generation.start()
    return streams.EventStream(
        answer.events(), close=prepared.generation.close,
        request_id=service_.request_id(request), settings=service.settings,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation whose answer can begin: everything that can be refused was."""

    call: ChatRequest
    generation: Generation
    form: answers.Form


async def prepare(request: Request, call: ChatRequest, call_id: str) -> Prepared:
    """From a conversation to a call that can be started.

    Args:
        request: the request.
        call: its body.
        call_id: name of the call.

    Raises:
        ApiError: the call cannot be served.
    """
    service = service_.of(request)
    text = await conversations.prompt_of(call, service)
    encode = service.tokenizer.encode
    if len(text) > LONG:
        ids = await run_in_threadpool(encode, text, call.add_special_tokens)
    else:
        ids = encode(text, call.add_special_tokens)
    asked = call.max_completion_tokens if call.max_completion_tokens is not None else call.max_tokens
    max_tokens = service.max_tokens(asked, len(ids), "messages", default=None)
    form, structure = _form(call, text, service)
    params = sampled.params(
        call, defaults=service.defaults, settings=service.settings, max_tokens=max_tokens,
        logprobs=(call.top_logprobs or 0) if call.logprobs else None, structure=structure,
    )  # fmt: skip
    if form.tools is not None and form.tools.is_special:
        params = dataclasses.replace(params, skip_special_tokens=False)  # the marks of calls are such tokens
    generation = service.generation(
        request, call_id, [ids], params,
        is_streamed=bool(call.stream), cache_salt=call.cache_salt, priority=call.priority,
    )  # fmt: skip
    return Prepared(call, generation, form)


def _form(
    call: ChatRequest, prompt: str, service: service_.Service
) -> tuple[answers.Form, StructuredOutputsParams | None]:
    """How the answer is taken apart, and the form that it must have for that."""
    thought, spoken = service.parsers
    choice = call.tool_choice or "auto"
    is_single = call.parallel_tool_calls is False
    has_form = _structured(call) is not None
    if not call.tools or choice in ("none", "auto"):
        parser = spoken if call.tools and choice == "auto" else None
        # A form holds from the first token on, so that nothing is thought before it.
        return answers.Form(None if has_form else thought, parser, None, is_single, prompt), None
    if has_form:
        raise failures.invalid(
            "a tool_choice that forces a call is a form of the answer; give no other one", "tool_choice"
        )
    functions = {tool.function.name: tool.function.parameters for tool in call.tools}
    if isinstance(choice, NamedTool):
        name = choice.function.name
        structure = StructuredOutputsParams(json=functions[name] or {"type": "object"})
        return answers.Form(None, None, name, is_single, prompt), structure
    structure = tool_schemas.forced_calls(list(functions.items()), "required", is_single=is_single)
    return answers.Form(None, None, "", is_single, prompt), structure


def _structured(call: ChatRequest) -> StructuredOutputsParams | None:
    """The form that a call asks for by itself."""
    try:
        return sampled.structured(call)
    except errors.InfiniError as error:
        raise failures.of_infini(error, "structured_outputs") from None


@dataclass(slots=True)
class _Streamed:
    """One choice of a stream."""

    reader: answers.Reader
    has_begun: bool = False


@dataclass(slots=True)
class Answer:
    """The answer to one call, whole or in pieces."""

    service: service_.Service
    call: ChatRequest
    call_id: str
    name: str
    generation: Generation
    form: answers.Form
    created: int = field(default_factory=lambda: int(time.time()))
    num_reasoning: int = 0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return dataclasses.replace(self.generation.usage, reasoning=self.num_reasoning)

    async def whole(self) -> dict[str, Any]:  # Any: JSON
        """All choices at once."""
        await self.generation.start()
        choices: list[dict[str, Any]] = []  # Any: JSON
        prompt_logprobs = prompt_ids = None
        try:
            async for _, output in self.generation.updates():
                choices += [self._choice(choice) for choice in output.outputs]
                prompt_logprobs, prompt_ids = output.prompt_logprobs, output.prompt_token_ids
        finally:
            await self.generation.close()
        body: dict[str, Any] = {  # Any: JSON
            "id": self.call_id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.name,
            "choices": sorted(choices, key=lambda choice: choice["index"]),
            "usage": self.usage.body(),
            "system_fingerprint": None,
        }
        if self.call.prompt_logprobs is not None:
            body["prompt_logprobs"] = likely.prompt(prompt_logprobs)
        if self.call.return_token_ids:
            body["prompt_token_ids"] = prompt_ids
        if self.call.timings_per_token:
            body["timings"] = self.generation.timings()
        return body

    def _choice(self, choice: CompletionOutput) -> dict[str, Any]:  # Any: JSON
        thought, content, calls = self.form.whole(choice.text)
        if thought:
            self.num_reasoning += len(self.service.tokenizer.encode(thought, add_special_tokens=False))
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
        message["refusal"] = None
        if calls:
            message["tool_calls"] = [
                {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
                for one in calls
            ]
        message |= self._thought(thought)
        found = {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.token_ids, choice.logprobs),
            "finish_reason": self._reason(choice, bool(calls)),
            "stop_reason": choice.stop_reason,
        }
        if self.call.return_token_ids:
            found["token_ids"] = list(choice.token_ids)
        return found

    def _thought(self, text: str) -> dict[str, str]:
        if not text:
            return {}
        found = {"reasoning_content": text}
        return found | {"reasoning": text} if self.service.settings.sends_reasoning else found

    def _logprobs(
        self, ids: list[int], entries: list[TokenLogprobs] | None
    ) -> dict[str, Any] | None:  # Any: JSON
        if not self.call.logprobs or not ids or entries is None:
            return None
        return likely.chat(ids, entries, self.call.top_logprobs or 0, self.service.tokenizer)

    def _reason(self, choice: CompletionOutput, has_calls: bool) -> str | None:
        """A model that stopped by itself after calling; a call that was forced on it ends as any answer."""
        is_called = has_calls and choice.finish_reason == "stop" and not self.form.forced
        return "tool_calls" if is_called else choice.finish_reason

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Choices in pieces."""
        options = self.call.stream_options
        counts = bool(options and options.include_usage)
        always = bool(options and options.continuous_usage_stats)
        frame = {
            "id": self.call_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.name,
        }
        streamed = {index: _Streamed(self.form.stream()) for index in range(self.generation.params.n)}
        try:
            async for _, output in self.generation.updates():
                for choice in output.outputs:
                    for body in self._pieces(choice, streamed[choice.index]):
                        chunk = {**frame, "choices": [body]}
                        if always:
                            chunk["usage"] = self.usage.body()
                        elif counts:
                            chunk["usage"] = None
                        if self.call.timings_per_token:
                            chunk["timings"] = self.generation.timings()
                        yield streams.event(chunk)
        finally:
            await self.generation.close()
        if counts:
            yield streams.event({**frame, "choices": [], "usage": self.usage.body()})

    def _pieces(self, choice: CompletionOutput, streamed: _Streamed) -> list[dict[str, Any]]:  # Any: JSON
        """The chunks that one output of the engine becomes."""
        deltas: list[dict[str, Any]] = []  # Any: JSON
        if not streamed.has_begun:
            streamed.has_begun = True
            deltas.append({"role": "assistant", "content": ""})
        reader, start = streamed.reader, len(deltas)
        was_thinking = reader.is_in_reasoning
        piece = reader.push(choice.text)
        deltas += self._deltas(piece)
        if was_thinking or reader.is_in_reasoning:
            self.num_reasoning += len(choice.token_ids)
        if choice.finished:
            deltas += self._deltas(reader.finish())
        logprobs = self._logprobs(choice.token_ids, choice.logprobs)
        if (logprobs is not None or choice.finished) and len(deltas) == start:
            deltas.append({})
        found: list[dict[str, Any]] = [  # Any: JSON
            {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            for delta in deltas
        ]
        if logprobs is not None:
            found[start]["logprobs"] = logprobs
        if choice.finished:
            found[-1]["finish_reason"] = self._reason(choice, reader.num_calls > 0)
            found[-1]["stop_reason"] = choice.stop_reason
        if self.call.return_token_ids and found:
            found[-1]["token_ids"] = list(choice.token_ids)
        return found

    def _deltas(self, piece: answers.Piece) -> list[dict[str, Any]]:  # Any: JSON
        found: list[dict[str, Any]] = []  # Any: JSON
        if piece.reasoning:
            found.append(self._thought(piece.reasoning))
        if piece.content:
            found.append({"content": piece.content})
        for call in piece.calls:
            found += [{"tool_calls": [part]} for part in call_parts(call)]
        return found


def call_parts(call: CallPiece) -> list[dict[str, Any]]:  # Any: JSON
    """A piece of a call as OpenAI's stream has it: its name alone first, then its arguments.

    Args:
        call: the piece.
    """
    found: list[dict[str, Any]] = []  # Any: JSON
    if call.name is not None:
        head = {"name": call.name, "arguments": ""}
        found.append({"index": call.index, "id": call.id, "type": "function", "function": head})
    if call.arguments:
        found.append({"index": call.index, "function": {"arguments": call.arguments}})
    return found
