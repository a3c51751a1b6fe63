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


class Mailbox:
    """Where the engine puts the outputs of a request. The engine holds it, and not the stream, whose end it
    would else not see. Everything but `__init__` runs in the event loop.

    Args:
        request_id: name of the request.
        loop: the event loop that reads.
    """

    def __init__(self, request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id, self.loop = request_id, loop
        self.kind: OutputKind = "cumulative"
        self._pending: deque[RequestOutput] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        """Take an output over; with one that was not read yet it becomes one."""
        if self._pending:
            before = self._pending.pop()
            output = _merged(before, output) if self.kind == "delta" else output
        self._pending.append(output)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """What the reader gets when there is nothing more to read."""
        self._error = error
        self._wake()

    async def get(self) -> RequestOutput:
        """The next output."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._pending.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RequestStream(AsyncIterator[RequestOutput]):
    """Outputs of one request as they come. Iterate over it once.

    Leaving the iteration early aborts the request: `aclose`, cancellation of a task that waits for the next
    output, or the end of the object. One who reads slowly gets fewer and larger outputs.

    Attributes:
        request_id: its name.
    """

    def __init__(self, engine: AsyncLLM, make: Callable[[], Job], request_id: str) -> None:
        self._engine, self._make = engine, make
        self.request_id = request_id
        self._mailbox: Mailbox | None = None
        self._is_ended = False

    async def start(self) -> None:
        """Check the request and put it in the queue; iteration does so by itself if this was not called.

        Call it before an answer's headers are sent: what is wrong with a request is raised here.

        Raises:
            ValueMismatchError: the request cannot be served: too long, unknown ids, a grammar that is none.
            QueueFullError: as many requests wait as may.
            EngineDeadError: the loop has ended.
        """
        if self._mailbox is not None:
            return
        mailbox = self._mailbox = Mailbox(self.request_id, asyncio.get_running_loop())
        try:
            self._engine.check_taking()
            job = await asyncio.to_thread(self._make)
            mailbox.kind = job.kind
            await self._engine.submit(job, mailbox)
        except BaseException:
            await self.aclose()
            raise

    async def __anext__(self) -> RequestOutput:
        await self.start()
        if self._is_ended:
            raise StopAsyncIteration
        assert self._mailbox is not None
        try:
            output = await self._mailbox.get()
        except BaseException:
            await self.aclose()
            raise
        self._is_ended |= output.finished
        return output

    async def aclose(self) -> None:
        """Abort the request if it still runs. May be called any number of times."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if not self._is_ended and self._mailbox is not None:
            self._engine.drop(self._mailbox)
        self._is_ended = True


class AsyncLLM:
    """An engine in a thread of its own.

    Args:
        model: a folder in Hugging Face's layout, a GGUF file, the name of a pulled model, or a loaded
            `Checkpoint`.
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
        self._mailboxes: dict[str, Mailbox] = {}
        self._stats = self._core.stats()
        self._death: BaseException | None = None
        self._is_taking, self._has_ended = True, False
        self._stop_at: float | None = None
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
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ValueMismatchError: it has none.
        """
        if self._engine.tokenizer is None:
            raise errors.ValueMismatchError(
                "the model has no tokenizer", got="no tokenizer.json", fix="name one with tokenizer="
            )
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
        return self._is_taking and not self._has_ended

    def check_health(self) -> None:
        """Raise EngineDeadError if the loop has ended."""
        if self._has_ended:
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
        return dataclasses.replace(self._stats, is_healthy=not self._has_ended)

    async def submit(self, job: Job, mailbox: Mailbox) -> None:
        """Hand a job to the loop, and wait until it is in the queue."""

        def add() -> None:
            self._core.add(job)
            self._mailboxes[job.request_id] = mailbox

        await self._call(add)

    def drop(self, mailbox: Mailbox) -> None:
        """End a request that nobody reads any more; may be called from any thread, and while objects end."""

        def end() -> None:
            # What is left at the end is ended by the engine's thread, and this may run in another.
            if not self._has_ended and self._mailboxes.get(mailbox.request_id) is mailbox:
                del self._mailboxes[mailbox.request_id]
                self._core.abort(mailbox.request_id)

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
            self._engine.close()

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
        self._is_taking, self._has_ended = False, True
        for job in self._core.jobs:
            try:
                output = self._core.abort(job.request_id)
            except Exception as error:  # noqa: BLE001  # after a death anything may be wrong, and all are told
                self._death = self._death or error
                continue
            if output is not None and self._death is None:
                self._deliver([output])
        dead = self._dead()
        for mailbox in list(self._mailboxes.values()):
            _tell(mailbox.loop, functools.partial(mailbox.fail, dead))
        self._mailboxes.clear()
        self._obey_rest()
        self._engine.close()  # processes that share the model need not wait for the end of this one
        self._stats = self._core.stats()

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        """Outputs to their readers: one call into each event loop for a whole step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, RequestOutput]]] = {}
        for output in outputs:
            mailbox = self._mailboxes.get(output.request_id)
            if mailbox is None:
                continue
            if output.finished:
                del self._mailboxes[output.request_id]
            by_loop.setdefault(mailbox.loop, []).append((mailbox, output))
        for loop, items in by_loop.items():
            if not _tell(loop, functools.partial(_put_all, items)):  # its event loop has ended
                for mailbox, _ in items:
                    self.drop(mailbox)

    async def _call(self, function: Callable[[], Any]) -> Any:  # Any: what the function gives
        """Run something in the engine's thread.

        Raises:
            EngineDeadError: the loop has ended.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            error, found = None, None
            try:
                if self._has_ended:
                    raise self._dead()
                found = function()
            except Exception as refused:  # noqa: BLE001  # who called is told, and the loop goes on
                error = refused
            _tell(loop, functools.partial(_set, done, error, found))

        self._commands.put(run)
        if self._has_ended:  # perhaps before it saw the command
            self._obey_rest()
        return await done

    def _dead(self) -> EngineDeadError:
        return EngineDeadError(
            "the engine's loop has ended",
            got=None if self._death is None else f"{type(self._death).__name__}: {self._death}",
            fix="start the engine again",
        )

    def _obey_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> bool:
    """Run something in an event loop; False if that loop is closed."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True


def _put_all(items: list[tuple[Mailbox, RequestOutput]]) -> None:
    for mailbox, output in items:
        mailbox.put(output)


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
