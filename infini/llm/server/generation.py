"""The tokens of one call: prompts handed to the engine, outputs as they come, and everything given back.

A call is a set of the engine's requests, one for each prompt. `Generation.start` queues all of them or raises
before anything was answered; `updates` yields outputs; `close` aborts what still runs. Times are observed on
the way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from infini.core import errors
from infini.llm.engine.outputs import OutputKind, RequestMetrics, RequestOutput
from infini.llm.engine.requests import EngineDeadError, QueueFullError, TokensPrompt
from infini.llm.sampling.params import SamplingParams
from infini.llm.server import failures
from infini.llm.server.metrics import Metrics
from infini.llm.server.protocol import Engine, Stream
from infini.llm.server.settings import Settings


@dataclass(slots=True)
class Usage:
    """Tokens of a call.

    Args:
        prompt: of its prompts.
        completion: made.
        cached: of its prompts, found in the prefix cache.
        reasoning: made, before the answer itself.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0

    def body(self) -> dict[str, object]:
        """OpenAI's object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass(slots=True)
class _Prompt:
    """One of the engine's requests."""

    request_id: str
    stream: Stream
    num_tokens: int
    num_made: list[int]
    num_cached: int = 0
    last_s: float | None = None
    times: RequestMetrics | None = None
    is_finished: bool = False


@dataclass(slots=True, eq=False)
class Generation:
    """One call.

    Args:
        engine: what makes the tokens.
        metrics: what observes them.
        settings: limits.
        call_id: names of the engine's requests begin with it.
        prompts: ids of each prompt.
        params: how to choose tokens, for all prompts.
        kind: "delta" for a stream, "final" for one output.
        cache_salt: calls with another one share no blocks.
        priority: lower goes first.
        open: where the call is entered while it runs.
    """

    engine: Engine
    metrics: Metrics
    settings: Settings
    call_id: str
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    kind: OutputKind
    cache_salt: str = ""
    priority: int = 0
    open: set[Generation] = field(default_factory=set)
    _running: list[_Prompt] = field(default_factory=list)
    _start_s: float = 0.0
    _is_late: bool = False
    _ending: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Queue all prompts, or none.

        Raises:
            ApiError: the engine takes no requests, or not these.
        """
        self._start_s = time.monotonic()
        self.open.add(self)
        try:
            if not self.engine.is_ready:
                raise failures.overloaded("The server takes no calls now.", retry_after_s=5)
            for index, ids in enumerate(self.prompts):
                request_id = f"{self.call_id}-{index}"
                prompt = TokensPrompt(prompt_token_ids=ids)
                if self.cache_salt:
                    prompt["cache_salt"] = self.cache_salt
                stream = self.engine.generate(
                    prompt, self.params, request_id=request_id, priority=self.priority, output_kind=self.kind
                )
                self._running.append(_Prompt(request_id, stream, len(ids), [0] * self.params.n))
                await stream.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, errors.InfiniError):
                raise refusal(error) from error
            raise

    async def close(self) -> None:
        """Give everything back; what still runs is aborted."""
        self.open.discard(self)
        for prompt in self._running:
            await prompt.stream.aclose()

    async def abort(self) -> None:
        """End what still runs; the reader of `updates` is told by an error."""
        for prompt in self._running:
            if not prompt.is_finished:
                await self.engine.abort(prompt.request_id)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt=sum(prompt.num_tokens for prompt in self._running),
            completion=sum(sum(prompt.num_made) for prompt in self._running),
            cached=sum(prompt.num_cached for prompt in self._running),
        )

    def timings(self) -> dict[str, float]:
        """llama.cpp's object: tokens and milliseconds of the first prompt and of its answers."""
        first = self._running[0]
        times = first.times
        begin = self._start_s
        if times is not None and times.first_token_time is not None and times.last_token_time is not None:
            started = times.first_scheduled_time or times.arrival_time
            prompt_s, made_s = (
                times.first_token_time - started,
                times.last_token_time - times.first_token_time,
            )
        else:
            prompt_s, made_s = 0.0, time.monotonic() - begin
        computed, made = max(first.num_tokens - first.num_cached, 0), sum(first.num_made)
        return {
            "cache_n": first.num_cached,
            "prompt_n": computed,
            "prompt_ms": 1000 * prompt_s,
            "prompt_per_second": computed / prompt_s if prompt_s > 0 else 0.0,
            "predicted_n": made,
            "predicted_ms": 1000 * made_s,
            "predicted_per_second": max(made - 1, 0) / made_s if made_s > 0 else 0.0,
        }

    async def updates(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Outputs with the number of their prompt, in the order in which they come.

        Raises:
            ApiError: the engine failed, or made no token for too long.
        """
        # At the end of the call's time the engine's requests are ended; their last outputs come as ever.
        late = asyncio.get_running_loop().call_later(self.settings.limits.request_s, self._end_late)
        source = self._one(0) if len(self._running) == 1 else self._many()
        try:
            async for index, output in source:
                yield index, self._checked(output)
        except errors.InfiniError as error:
            raise refusal(error, is_running=True) from error
        finally:
            late.cancel()
            await source.aclose()

    def _end_late(self) -> None:
        self._is_late = True
        self._ending = asyncio.ensure_future(self.abort())

    async def _one(self, index: int) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        prompt = self._running[index]
        outputs = aiter(prompt.stream)
        limit_s = self.settings.limits.idle_stream_s
        try:
            while True:
                try:
                    # Only a stream shows when tokens come; the time before the first belongs to the queue.
                    async with asyncio.timeout(None if prompt.last_s is None else limit_s):
                        output = await anext(outputs)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise failures.ApiError(
                        504, f"no token came for {limit_s:g} s", type=failures.SERVER, code="timeout"
                    ) from None
                self._observe(prompt, output)
                yield index, output
        finally:
            await prompt.stream.aclose()

    async def _many(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        queue: asyncio.Queue[tuple[int, RequestOutput] | BaseException | None] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                async for item in self._one(index):
                    queue.put_nowait(item)
            except Exception as error:  # noqa: BLE001  # raised again where the outputs are read
                queue.put_nowait(error)
            finally:
                queue.put_nowait(None)

        tasks = [asyncio.ensure_future(pump(index)) for index in range(len(self._running))]
        try:
            num_open = len(tasks)
            while num_open:
                item = await queue.get()
                if item is None:
                    num_open -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _observe(self, prompt: _Prompt, output: RequestOutput) -> None:
        now = time.monotonic()
        num_new = 0
        for choice in output.outputs:
            num_new += len(choice.token_ids)
            prompt.num_made[choice.index] += len(choice.token_ids)
        prompt.num_cached = output.num_cached_tokens
        prompt.times = output.metrics or prompt.times
        if num_new and self.kind == "delta":
            if prompt.last_s is None:
                self.metrics.observe_first_token(now - self._start_s)
            else:
                self.metrics.observe_token(now - prompt.last_s)
            prompt.last_s = now
        if output.finished:
            prompt.is_finished = True
            times = prompt.times
            if self.kind != "delta" and times is not None and times.first_token_time is not None:
                self.metrics.observe_first_token(times.first_token_time - times.arrival_time)
            self.metrics.observe_request(
                num_prompt=prompt.num_tokens,
                num_cached=prompt.num_cached,
                num_made=tuple(prompt.num_made),
                max_tokens=self.params.max_tokens or 0,
                seconds=now - self._start_s,
                times=times,
            )

    def _checked(self, output: RequestOutput) -> RequestOutput:
        """The output, unless the engine gave up on it. What ended because it was late ended by length."""
        if all(choice.finish_reason in (None, "stop", "length") for choice in output.outputs):
            return output
        choices = []
        for choice in output.outputs:
            if choice.finish_reason == "error":
                raise failures.ApiError(
                    500, choice.error or "the engine failed", type=failures.SERVER, code="engine_error"
                )
            if choice.finish_reason == "abort":
                if not self._is_late:
                    raise failures.ApiError(
                        503, "the call was aborted by the server", type=failures.SERVER, code="aborted"
                    )
                choice = replace(choice, finish_reason="length")
            choices.append(choice)
        return replace(output, outputs=choices)


def refusal(error: errors.InfiniError, *, is_running: bool = False) -> failures.ApiError:
    """What a client is told about an error of the engine.

    Args:
        error: the engine's.
        is_running: whether the engine had taken the request: then the fault is ours.
    """
    if isinstance(error, QueueFullError):
        return failures.overloaded("The queue is full; try again later.")
    if isinstance(error, EngineDeadError):
        return failures.ApiError(
            503, "The engine has stopped.", type=failures.SERVER, code="engine_dead",
        )  # fmt: skip
    if is_running or not isinstance(error, (ValueError, NotImplementedError)):
        return failures.ApiError(
            500, failures.of_infini(error).message, type=failures.SERVER, code="engine_error"
        )
    return failures.of_infini(error)
