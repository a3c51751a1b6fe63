"""`AsyncLLM`: the engine for a server: requests come and go while others are being continued.

The loop runs in a thread of its own, in which a step gives the interpreter's lock back; coroutines hand it
commands through a queue and receive outputs through their event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Unpack

from infini.core import errors
from infini.llm.checkpoints.loading import Checkpoint
from infini.llm.engine import opening
from infini.llm.engine.config import EngineConfig, Options
from infini.llm.engine.jobs import Job
from infini.llm.engine.outputs import CompletionOutput, EngineStats, OutputKind, RequestOutput
from infini.llm.engine.progress import OpeningBars
from infini.llm.engine.requests import EngineDeadError, Prompt
from infini.llm.sampling.params import SamplingParams
from infini.llm.text.tokenizer import Tokenizer

_JOIN_S: Final = 30.0


class RequestStream(AsyncIterator[RequestOutput]):
    """Outputs of one request as they come. Iterate over it once.

    Leaving the iteration early aborts the request: `aclose`, cancellation of a task that waits for the next
    output, or the end of the object. One who reads slowly gets fewer and larger outputs.

    Attributes:
        request_id: its name; known after `start`.
    """

    def __init__(self, engine: AsyncLLM, make: Callable[[], Job], request_id: str) -> None:
        self._engine, self._make = engine, make
        self.request_id = request_id
        self._pending: deque[RequestOutput] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_started = self._is_ended = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Check the request and put it in the queue; iteration does so by itself if this was not called.

        Call it before an answer's headers are sent: what is wrong with a request is raised here.

        Raises:
            ValueMismatchError: the request cannot be served: too long, unknown ids, a grammar that is none.
            QueueFullError: as many requests wait as may.
            EngineDeadError: the loop has ended.
        """
        if self._is_started:
            return
        self._is_started = True
        self._loop = asyncio.get_running_loop()
        taken: asyncio.Future[None] = self._loop.create_future()
        try:
            self._engine.check_taking()
            job = await asyncio.to_thread(self._make)
            self._engine.submit(job, self, taken)
            await taken
        except BaseException:
            await self.aclose()
            raise

    async def __anext__(self) -> RequestOutput:
        await self.start()
        while not self._pending:
            if self._error is not None:
                error, self._error = self._error, None
                self._is_ended = True
                raise error
            if self._is_ended:
                raise StopAsyncIteration
            assert self._loop is not None
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                await self.aclose()
                raise
            finally:
                self._waiter = None
        output = self._pending.popleft()
        self._is_ended |= output.finished
        return output

    async def aclose(self) -> None:
        """Abort the request if it still runs. May be called any number of times."""
        if self._is_started and not self._is_ended:
            self._is_ended = True
            self._engine.drop(self.request_id)

    def __del__(self) -> None:
        if self._is_started and not self._is_ended:
            self._engine.drop(self.request_id)

    def put(self, output: RequestOutput | BaseException, kind: OutputKind) -> None:
        """Take an output over; called in the event loop."""
        if isinstance(output, BaseException):
            self._error = output
        elif not self._pending:
            self._pending.append(output)
        else:  # what came before was not read yet
            before = self._pending.pop()
            self._pending.append(_merged(before, output) if kind == "delta" else output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that reads it."""
        return self._loop


class AsyncLLM:
    """An engine in a thread of its own.

    Args:
        model: a folder in Hugging Face's layout, a GGUF file, or a loaded `Checkpoint`.
        tokenizer: a tokenizer or the folder of one; None is the model's own.
        verbose: whether loading says what it does on standard error.
        options: fields of `EngineConfig`.

    Raises:
        ValueMismatchError: the model or an option cannot be served; the error names it.
    """

    def __init__(
        self,
        model: str | Path | Checkpoint,
        *,
        tokenizer: str | Path | Tokenizer | None = None,
        verbose: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self.config = EngineConfig(**options)
        with OpeningBars(is_spoken=verbose, is_shown=None if verbose else False) as bars:
            self._engine = opening.open_engine(
                model,
                self.config,
                tokenizer=tokenizer,
                on_progress=bars.on_progress,
                on_line=bars.on_line,
            )
        self._core = self._engine.core
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, tuple[RequestStream, OutputKind]] = {}
        self._stats = self._core.stats()
        self._death: BaseException | None = None
        self._is_taking, self._stop_at = True, None  # type: bool, float | None
        self._ids = 0
        self._thread = threading.Thread(target=self._run, name="infini-engine", daemon=True)
        self._thread.start()

    # --- for coroutines ------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        output_kind: OutputKind | None = None,
    ) -> RequestStream:
        """A request; iterate over the result (`async for output in engine.generate(...)`).

        Args:
            prompt: text, `{"prompt": ...}`, `{"prompt_token_ids": [...]}` or ids.
            sampling_params: None is `get_default_sampling_params()`.
            request_id: unique among those running; None makes one.
            priority: lower goes first under the policy "priority".
            output_kind: whether outputs hold all text so far, what is new, or come once at the end; None is
                what the settings say.
        """
        if request_id is None:
            self._ids += 1
            request_id = f"infini-{self._ids}"
        name = request_id

        def make() -> Job:
            try:
                return self._engine.inputs.make(
                    prompt, sampling_params, request_id=name, priority=priority, kind=output_kind
                )
            except errors.InfiniError:
                self._commands.put(lambda: self._core.reject("invalid"))
                raise

        return RequestStream(self, make, request_id)

    async def abort(self, request_id: str) -> None:
        """End a request: its stream gets a last output, finish reason "abort". Unknown ids are ignored."""

        def end() -> None:
            output = self._core.abort(request_id)
            if output is not None:
                self._deliver([output])

        await self._call(end)

    async def reset_prefix_cache(self) -> bool:
        """Forget the blocks of earlier prompts; False while requests hold blocks."""
        return bool(await self._call(self._core.reset_prefix_cache))

    async def shutdown(self, *, drain_s: float = 0.0) -> None:
        """End the engine: nothing new is taken, what runs has `drain_s` seconds, the rest is aborted."""
        self._is_taking = False
        deadline = time.monotonic() + drain_s

        def stop() -> None:
            self._stop_at = deadline

        self._commands.put(stop)
        await asyncio.to_thread(self._thread.join, drain_s + _JOIN_S)

    # --- for anybody ---------------------------------------------------------------------------------------

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json says, and defaults for the rest."""
        return self._engine.inputs.default_params

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where there is none."""
        return self._engine.tokenizer

    @property
    def engine(self) -> opening.Engine:
        """The parts of the engine. Its loop belongs to the thread: look, and call nothing that changes it."""
        return self._engine

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt and continuation."""
        return self._engine.cache_size.max_model_len

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: warm, alive, not draining."""
        return self._is_taking and self._thread.is_alive()

    def check_health(self) -> None:
        """Raise EngineDeadError if the loop has ended."""
        if not self._thread.is_alive():
            raise EngineDeadError(
                "the engine's loop has ended",
                got=None if self._death is None else f"{type(self._death).__name__}: {self._death}",
                fix="start the engine again",
            )

    def check_taking(self) -> None:
        """Raise EngineDeadError if no requests are taken."""
        self.check_health()
        if not self._is_taking:
            raise EngineDeadError("the engine is shutting down", fix="try another one")

    def stats(self) -> EngineStats:
        """Counts since the engine began; may be called from any thread."""
        return dataclasses.replace(self._stats, is_healthy=self._thread.is_alive())

    def submit(self, job: Job, stream: RequestStream, taken: asyncio.Future[None]) -> None:
        """Hand a job to the loop; `taken` is done when it is in the queue."""
        loop = stream.loop
        assert loop is not None

        def add() -> None:
            try:
                self._core.add(job)
                self._streams[job.request_id] = (stream, job.kind)
                error = None
            except errors.InfiniError as found:
                error = found
            _tell(loop, lambda: _set(taken, error))

        self._commands.put(add)
        if not self._thread.is_alive():
            _set(taken, EngineDeadError("the engine's loop has ended"))

    def drop(self, request_id: str) -> None:
        """End a request that nobody reads any more; may be called from any thread, and while objects end."""

        def end() -> None:
            if self._streams.pop(request_id, None) is not None:
                self._core.abort(request_id)

        self._commands.put(end)

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_over():
                if self._core.has_requests:
                    self._deliver(self._core.step())
                self._stats = self._core.stats()
                self._obey(wait=not self._core.has_requests and self._stop_at is None)
        except BaseException as error:
            self._death = error
            raise
        finally:
            self._end()

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        return not self._core.has_requests or time.monotonic() >= self._stop_at

    def _obey(self, *, wait: bool) -> None:
        """Do what was asked for; wait for something if there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            command = self._commands.get(block=wait)
            while True:
                command()
                command = self._commands.get_nowait()
        self._stats = self._core.stats()

    def _end(self) -> None:
        """Nobody may wait for what never comes."""
        self._is_taking = False
        for job in self._core.jobs:
            output = self._core.abort(job.request_id)
            if output is not None and self._death is None:
                self._deliver([output])
        dead = EngineDeadError("the engine's loop has ended", fix="start the engine again")
        for stream, kind in list(self._streams.values()):
            _tell(stream.loop, functools.partial(stream.put, dead, kind))
        self._streams.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()
        self._stats = self._core.stats()

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        """Outputs to their streams: one call into each event loop for a whole step."""
        by_loop: dict[
            asyncio.AbstractEventLoop | None, list[tuple[RequestStream, RequestOutput, OutputKind]]
        ] = {}
        for output in outputs:
            found = self._streams.get(output.request_id)
            if found is None:
                continue
            stream, kind = found
            if output.finished:
                del self._streams[output.request_id]
            by_loop.setdefault(stream.loop, []).append((stream, output, kind))
        for loop, items in by_loop.items():
            if not _tell(loop, functools.partial(_put_all, items)):
                for _, output, _ in items:
                    self.drop(output.request_id)

    async def _call(self, function: Callable[[], Any]) -> Any:  # Any: what the function gives
        """Run something in the engine's thread."""
        self.check_health()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            found = function()
            _tell(loop, functools.partial(_set, done, None, found))

        self._commands.put(run)
        return await done


def _tell(loop: asyncio.AbstractEventLoop | None, function: Callable[[], object]) -> bool:
    """Run something in an event loop; False if that loop is closed."""
    if loop is None:
        return False
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True


def _put_all(items: list[tuple[RequestStream, RequestOutput, OutputKind]]) -> None:
    for stream, output, kind in items:
        stream.put(output, kind)


def _set(future: asyncio.Future[Any], error: BaseException | None, result: Any = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _merged(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two outputs of kind "delta" as one."""
    completions = {completion.index: completion for completion in first.outputs}
    for completion in second.outputs:
        before = completions.get(completion.index)
        completions[completion.index] = completion if before is None else _joined(before, completion)
    return dataclasses.replace(
        second,
        outputs=[completions[index] for index in sorted(completions)],
        prompt_logprobs=first.prompt_logprobs if second.prompt_logprobs is None else second.prompt_logprobs,
    )


def _joined(first: CompletionOutput, second: CompletionOutput) -> CompletionOutput:
    logprobs = None
    if first.logprobs is not None and second.logprobs is not None:
        logprobs = first.logprobs + second.logprobs
    return dataclasses.replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=logprobs,
    )
