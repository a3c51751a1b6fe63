"""POST /v1/completions: prompts as text or ids, continued; OpenAI's first form of the API."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from infini.llm.engine.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from infini.llm.server import bodies, chat, failures, likely, sampled, service as service_, streams
from infini.llm.server.generation import Generation, Usage
from infini.llm.server.requests import CompletionRequest

DEFAULT_MAX_TOKENS: Final = 16


async def create(request: Request) -> streams.Answer:
    """Continue prompts."""
    service = service_.of(request)
    call = await bodies.read(
        request, CompletionRequest, service.settings.limits, seconds=service.settings.body_s
    )
    name = service.model_name(call.model)
    prompts, texts = await _prompts(call, service)
    # A call for nothing but the prompt's logprobs: the engine makes at least one token, which is left out.
    makes_nothing = call.max_tokens == 0
    if makes_nothing and not call.echo:
        raise failures.invalid("max_tokens must be at least 1 without echo", "max_tokens")
    asked = 1 if makes_nothing else call.max_tokens
    max_tokens = min(
        service.max_tokens(asked, len(ids), "prompt", default=DEFAULT_MAX_TOKENS) for ids in prompts
    )
    defaults = service.defaults
    if call.echo and call.logprobs is not None and call.prompt_logprobs is None:
        defaults = {**defaults, "prompt_logprobs": call.logprobs}
    params = sampled.params(
        call, defaults=defaults, settings=service.settings, max_tokens=max_tokens, logprobs=call.logprobs
    )
    call_id = service_.new_id("cmpl-")
    generation = service.generation(
        request, call_id, prompts, params,
        is_streamed=bool(call.stream), cache_salt=call.cache_salt, priority=call.priority,
    )  # fmt: skip
    answer = _Answer(service, call, call_id, name, generation, texts, makes_nothing)
    if not call.stream:
        body = await streams.whole(request, answer.whole())
        return Response(streams.encode(body), media_type="application/json")
    await generation.start()
    return streams.EventStream(
        answer.events(), close=generation.close,
        request_id=service_.request_id(request), settings=service.settings,
    )  # fmt: skip


async def _prompts(
    call: CompletionRequest, service: service_.Service
) -> tuple[list[list[int]], list[str | None]]:
    """Ids of the prompts, and their texts where they came as text."""
    given = call.prompt
    is_one = isinstance(given, str) or (given and isinstance(given[0], int))
    several: list[Any] = [given] if is_one else list(given)  # Any: texts or lists of ids
    most = service.settings.limits.num_prompts
    if not several:
        raise failures.invalid("there is no prompt", "prompt", code="empty_prompt")
    if len(several) > most:
        raise failures.invalid(f"there are more than {most} prompts", "prompt")
    tokenizer = service.tokenizer
    ids = []
    for prompt in several:
        if not isinstance(prompt, str):
            wrong = next((id for id in prompt if id >= tokenizer.vocab_size), None)
            if wrong is not None:
                raise failures.invalid(f"the vocabulary has no token {wrong}", "prompt")
            ids.append(list(prompt))
        elif len(prompt) > chat.LONG:
            ids.append(await run_in_threadpool(tokenizer.encode, prompt, call.add_special_tokens))
        else:
            ids.append(tokenizer.encode(prompt, call.add_special_tokens))
    return ids, [prompt if isinstance(prompt, str) else None for prompt in several]


@dataclass(slots=True)
class _Answer:
    """The answer to one call, whole or in pieces."""

    service: service_.Service
    call: CompletionRequest
    call_id: str
    name: str
    generation: Generation
    texts: list[str | None]
    makes_nothing: bool
    created: int = field(default_factory=lambda: int(time.time()))
    makers: dict[int, likely.Completion] = field(default_factory=dict)
    prompt_entries: dict[int, list[TokenLogprobs | None]] = field(default_factory=dict)

    def _frame(self) -> dict[str, Any]:  # Any: JSON
        return {
            "id": self.call_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
        }

    @property
    def _usage(self) -> Usage:
        usage = self.generation.usage
        return Usage(prompt=usage.prompt, cached=usage.cached) if self.makes_nothing else usage

    async def whole(self) -> dict[str, Any]:  # Any: JSON
        """All choices at once."""
        await self.generation.start()
        choices: list[dict[str, Any]] = []  # Any: JSON
        try:
            async for index, output in self.generation.updates():
                choices += [self._choice(index, output, choice, is_first=True) for choice in output.outputs]
        finally:
            await self.generation.close()
        body = {
            **self._frame(),
            "choices": sorted(choices, key=lambda choice: choice["index"]),
            "usage": self._usage.body(),
        }
        if self.call.timings_per_token:
            body["timings"] = self.generation.timings()
        return body

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Choices in pieces."""
        options = self.call.stream_options
        counts = bool(options and options.include_usage)
        always = bool(options and options.continuous_usage_stats)
        seen: set[int] = set()
        try:
            async for index, output in self.generation.updates():
                for choice in output.outputs:
                    number = index * self.generation.params.n + choice.index
                    body = self._choice(index, output, choice, is_first=number not in seen)
                    seen.add(number)
                    if not (body["text"] or body["logprobs"] or body["finish_reason"]):
                        continue
                    piece = {**self._frame(), "choices": [body]}
                    if always:
                        piece["usage"] = self._usage.body()
                    elif counts:
                        piece["usage"] = None
                    if self.call.timings_per_token:
                        piece["timings"] = self.generation.timings()
                    yield streams.event(piece)
        finally:
            await self.generation.close()
        if counts:
            yield streams.event({**self._frame(), "choices": [], "usage": self._usage.body()})

    def _choice(
        self, index: int, output: RequestOutput, choice: CompletionOutput, *, is_first: bool
    ) -> dict[str, Any]:  # Any: JSON
        tokenizer = self.service.tokenizer
        number = index * self.generation.params.n + choice.index
        if output.prompt_logprobs is not None:  # a stream has them once, for all choices
            self.prompt_entries[index] = output.prompt_logprobs
        text, ids = choice.text, list(choice.token_ids)
        entries: list[Any] = list(choice.logprobs or ())  # Any: entries, the first of a prompt None
        if self.makes_nothing:
            text, ids, entries = "", [], []
        if self.call.echo and is_first:
            given = self.texts[index]
            text = (tokenizer.decode(output.prompt_token_ids) if given is None else given) + text
            if self.call.logprobs is not None:
                ids = [*output.prompt_token_ids, *ids]
                entries = [*self.prompt_entries[index], *entries]
        logprobs = None
        if self.call.logprobs is not None and ids:
            maker = self.makers.get(number)
            if maker is None:
                maker = self.makers[number] = likely.Completion(
                    self.call.logprobs, tokenizer, skips_special=self.call.skip_special_tokens is not False
                )
            logprobs = maker.body(ids, entries)
        body = {
            "index": number,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": "length" if self.makes_nothing else choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self.call.prompt_logprobs is not None:
            body["prompt_logprobs"] = likely.prompt(output.prompt_logprobs)
        if self.call.return_token_ids:
            body["token_ids"] = list(choice.token_ids)
            if is_first:
                body["prompt_token_ids"] = list(output.prompt_token_ids)
        return body
