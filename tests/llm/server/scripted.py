"""An engine that says what a test tells it to: real tokens, stop strings and grammars, no model.

It has the shape of `infini.llm.server.protocol.Engine`. Every byte is a token, so characters come in pieces.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import tokenizers

from infini.core import errors
from infini.llm.engine.config import EngineConfig
from infini.llm.engine.outputs import (
    ITERATION_TOKEN_BUCKETS,
    CompletionOutput,
    EngineStats,
    FinishReason,
    Logprob,
    OutputKind,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from infini.llm.engine.requests import EngineDeadError, Prompt, QueueFullError
from infini.llm.sampling import guided
from infini.llm.sampling.params import SamplingParams
from infini.llm.text import detokenizer
from infini.llm.text.tokenizer import Tokenizer

BEGIN, END, MARK, TURN = "<s>", "</s>", "<|im_start|>", "<|im_end|>"


@functools.cache
def make_tokenizer(chat_template: str | None = None) -> Tokenizer:
    """Bytes and four special tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([BEGIN, END, MARK, TURN])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=[BEGIN, "$A"], special_tokens=[(BEGIN, inner.token_to_id(BEGIN))]
    )
    return Tokenizer(
        inner,
        special_tokens={"bos_token": BEGIN, "eos_token": END},
        eos_ids=[inner.token_to_id(END)],
        chat_templates={} if chat_template is None else {"default": chat_template},
    )


@dataclass(frozen=True)
class Script:
    """What one choice says: its text, then the end of the text or nothing until `max_tokens`."""

    text: str
    is_endless: bool = False
    error: str | None = None
    fault: BaseException | None = None


Reply = Callable[[str, SamplingParams, int], Script | str]


def letters(prompt: str, params: SamplingParams, index: int) -> Script:
    """A text that depends on the seed alone, without an end."""
    start = (params.seed or 0) * 7 + index
    return Script("".join(chr(97 + (start + i * i) % 26) for i in range(64)), is_endless=True)


class ScriptedEngine:
    """The engine.

    Args:
        reply: what to say: a text, or a function of prompt, parameters and number of the choice.
        delay_s: seconds before each token.
        chat_template: of the model; None has ChatML.
    """

    def __init__(
        self, reply: Reply | str = "Hello!", *, delay_s: float = 0.0, chat_template: str | None = None,
        max_model_len: int = 1024, num_blocks: int = 64, **options: object,
    ) -> None:  # fmt: skip
        self.reply, self.delay_s = reply, delay_s
        self._tokenizer = make_tokenizer(chat_template)
        self.config = EngineConfig(**options)  # type: ignore[arg-type]
        self._max_model_len, self.num_blocks = max_model_len, num_blocks
        self.running: dict[str, ScriptedStream] = {}
        self.aborted: list[str] = []
        self.finished: Counter[FinishReason] = Counter()
        self.seen: list[tuple[list[int], SamplingParams, dict[str, object]]] = []
        self.num_prompt = self.num_made = 0
        self.is_dead, self.is_loading, self.was_shut_down = False, False, False
        self.defaults = SamplingParams()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def is_ready(self) -> bool:
        return not (self.is_dead or self.is_loading or self.was_shut_down)

    def get_default_sampling_params(self) -> SamplingParams:
        return self.defaults

    def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, request_id: str | None = None,
        priority: int = 0, output_kind: OutputKind = "cumulative",
    ) -> ScriptedStream:  # fmt: skip
        assert isinstance(prompt, dict) and sampling_params is not None and request_id is not None
        self.seen.append(
            (list(prompt["prompt_token_ids"]), sampling_params, {"priority": priority, **prompt})  # type: ignore[typeddict-item]
        )
        return ScriptedStream(self, self.seen[-1][0], sampling_params, request_id, output_kind)

    async def abort(self, request_id: str) -> None:
        stream = self.running.get(request_id)
        if stream is not None:
            stream.was_aborted = True

    def check_health(self) -> None:
        if self.is_dead:
            raise EngineDeadError("the loop has ended")

    def stats(self) -> EngineStats:
        held = min(len(self.running), self.num_blocks)
        return EngineStats(
            num_running=len(self.running), num_waiting=0, num_blocks=self.num_blocks,
            num_free_blocks=self.num_blocks - held, block_size=32, kv_cache_usage=held / self.num_blocks,
            num_steps=self.num_made, prompt_tokens=self.num_prompt, prompt_tokens_cached=0,
            generation_tokens=self.num_made, prefix_cache_queries=self.num_prompt, prefix_cache_hits=0,
            num_preemptions=0, finished=dict(self.finished), rejected={},
            iteration_tokens=(self.num_made, *[0] * len(ITERATION_TOKEN_BUCKETS)),
            is_healthy=not self.is_dead,
        )  # fmt: skip

    async def shutdown(self, *, drain_s: float = 0.0) -> None:
        self.was_shut_down = True

    def script(self, prompt: str, params: SamplingParams, index: int) -> Script:
        said = self.reply(prompt, params, index) if callable(self.reply) else self.reply
        return Script(said) if isinstance(said, str) else said


class ScriptedStream(AsyncIterator[RequestOutput]):
    """One request."""

    def __init__(
        self,
        engine: ScriptedEngine,
        ids: list[int],
        params: SamplingParams,
        request_id: str,
        kind: OutputKind,
    ) -> None:
        self.engine, self.ids, self.params, self.request_id, self.kind = engine, ids, params, request_id, kind
        self.was_aborted = self.is_over = False
        self._outputs = self._run()
        self._arrival, self._first, self._last = time.monotonic(), 0.0, 0.0

    async def start(self) -> None:
        engine, most = self.engine, self.engine.config.max_num_queued_reqs
        engine.check_health()
        if most is not None and len(engine.running) >= engine.config.max_num_seqs + most:
            raise QueueFullError("as many requests wait as may")
        self.params.check_vocabulary(engine.tokenizer.vocab_size)
        if self.params.structured_outputs is not None:
            guided.compile(self.params.structured_outputs, engine.tokenizer)
        if self.request_id in engine.running:
            raise errors.ValueMismatchError("the id of a request is in use", got=self.request_id)
        engine.running[self.request_id] = self
        engine.num_prompt += len(self.ids)

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> RequestOutput:
        return await anext(self._outputs)

    async def aclose(self) -> None:
        await self._outputs.aclose()
        if not self.is_over and self.engine.running.pop(self.request_id, None) is not None:
            self.engine.aborted.append(self.request_id)
            self.engine.finished["abort"] += 1
        self.is_over = True

    async def _run(self) -> AsyncIterator[RequestOutput]:
        prompt = self.engine.tokenizer.decode(self.ids, skip_special_tokens=False)
        scripts = [self.engine.script(prompt, self.params, index) for index in range(self.params.n)]
        choices = [_Choice(self, index, script) for index, script in enumerate(scripts)]
        is_first = True
        for _ in itertools.count():
            await asyncio.sleep(self.engine.delay_s)
            self._first = self._first or time.monotonic()
            self._last = time.monotonic()
            changed = [output for choice in choices if (output := choice.step()) is not None]
            is_over = all(choice.reason is not None for choice in choices)
            if is_over:
                self.is_over = True
                self.engine.running.pop(self.request_id, None)
                self.engine.finished.update(choice.reason for choice in choices if choice.reason)
            if self.kind != "final" or is_over:
                outputs = changed if self.kind == "delta" else [choice.whole() for choice in choices]
                yield self._output(outputs, is_over, is_first)
                is_first = False
            if is_over:
                return

    def _output(self, outputs: list[CompletionOutput], is_over: bool, is_first: bool) -> RequestOutput:
        count = self.params.prompt_logprobs
        prompt_logprobs = None
        if count is not None and (is_first or self.kind != "delta"):
            prompt_logprobs = [None, *(likely(id, count) for id in self.ids[1:])]
        metrics = RequestMetrics(
            arrival_time=self._arrival, arrival_wall_time=time.time(), first_scheduled_time=self._arrival,
            first_token_time=self._first, last_token_time=self._last,
        )  # fmt: skip
        return RequestOutput(
            self.request_id, None, self.ids, prompt_logprobs, outputs, is_over, metrics=metrics
        )


@functools.cache
def likely(id: int, count: int) -> TokenLogprobs:
    """The token itself is the second likeliest; the others from the third on have no chance at all."""
    decode = make_tokenizer().decode
    others = [other for other in range(40, 40 + count + 1) if other != id][:count]
    found = {id: Logprob(-1.0, 2, decode([id], skip_special_tokens=False))}
    for place, other in enumerate(others):
        logprob = (-0.5, -3.0)[place] if place < 2 else float("-inf")
        found[other] = Logprob(logprob, place + 1 + (place > 0), decode([other]))
    return found


class _Choice:
    """One continuation."""

    def __init__(self, stream: ScriptedStream, index: int, script: Script) -> None:
        self.stream, self.index, self.script, params = stream, index, script, stream.params
        tokenizer = stream.engine.tokenizer
        self.planned = tokenizer.encode(script.text, add_special_tokens=False) if script.text else []
        if not script.is_endless:
            self.planned = [*self.planned, tokenizer.eos_ids[0]]
        self.text = detokenizer.Incremental(
            tokenizer, stop=params.stop or (), skip_special_tokens=params.skip_special_tokens,
            include_stop_str_in_output=params.include_stop_str_in_output,
        )  # fmt: skip
        self.ids: list[int] = []
        self.said = ""
        self.reason: FinishReason | None = None
        self.stopped: int | str | None = None
        self.error: str | None = None

    def step(self) -> CompletionOutput | None:
        if self.reason is not None:
            return None
        params = self.stream.params
        if self.script.fault is not None and len(self.ids) >= len(self.script.text):
            raise self.script.fault
        if self.stream.was_aborted:
            return self._end("abort", [], self.text.finish())
        if self.script.error is not None and len(self.ids) >= len(self.script.text):
            self.error = self.script.error
            return self._end("error", [], "")
        id = self.planned[len(self.ids) % len(self.planned)]
        self.ids.append(id)
        self.stream.engine.num_made += 1
        if id == self.stream.engine.tokenizer.eos_ids[0] and not params.ignore_eos:
            return self._end("stop", [id], self.text.finish())
        text = self.text.push([id])
        if self.text.stopped is not None:
            self.stopped = self.text.stopped
            return self._end("stop", [id], text)
        if id in (params.stop_token_ids or ()):
            self.stopped = id
            return self._end("stop", [id], text + self.text.finish())
        if len(self.ids) >= (params.max_tokens or 1 << 30):
            return self._end("length", [id], text + self.text.finish())
        self.said += text
        return self._output(text, [id])

    def _end(self, reason: FinishReason, ids: list[int], text: str) -> CompletionOutput:
        self.reason = reason
        self.said += text
        return self._output(text, ids)

    def whole(self) -> CompletionOutput:
        return self._output(self.said, self.ids)

    def _output(self, text: str, ids: list[int]) -> CompletionOutput:
        count = self.stream.params.logprobs
        return CompletionOutput(
            self.index, text, list(ids),
            logprobs=None if count is None else [likely(id, count) for id in ids],
            finish_reason=self.reason, stop_reason=self.stopped, error=self.error,
        )  # fmt: skip
