"""`LLM`: a model and its engine, for prompts that are all there at once.

Names and results are vLLM's.
"""

from __future__ import annotations

import numbers
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from infini.core import errors
from infini.llm.checkpoints.loading import Checkpoint
from infini.llm.engine import opening
from infini.llm.engine.config import EngineConfig, Options
from infini.llm.engine.jobs import Job
from infini.llm.engine.outputs import EngineStats, RequestOutput
from infini.llm.engine.progress import OpeningBars, PromptsBar
from infini.llm.engine.requests import EngineDeadError, Prompt
from infini.llm.sampling.params import SamplingParams
from infini.llm.text import chat
from infini.llm.text.tokenizer import Tokenizer

Message = Mapping[str, Any]  # Any: as OpenAI's messages


class LLM:
    """A model that continues prompts, many at a time.

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
        self._lock = threading.Lock()  # held for a turn of the loop, and never while a caller has the word
        self._inboxes: dict[str, deque[RequestOutput]] = {}
        self._left: deque[str] = deque()  # jobs that nobody waits for any more
        with OpeningBars(is_spoken=verbose, is_shown=None if verbose else False) as bars:
            self._engine: opening.Engine | None = opening.open_engine(
                model,
                self.config,
                tokenizer=tokenizer,
                on_progress=bars.on_progress,
                on_line=bars.on_line,
            )

    @property
    def engine(self) -> opening.Engine:
        """The parts of the engine.

        Raises:
            EngineDeadError: it was closed.
        """
        if self._engine is None:
            raise EngineDeadError("this engine is closed", fix="make a new LLM")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where there is none."""
        return self.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt and continuation."""
        return self.engine.cache_size.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts.

        Args:
            prompts: one or several: text, `{"prompt": ...}`, `{"prompt_token_ids": [...]}` or ids.
            sampling_params: for all of them, or one for each; None is `get_default_sampling_params()`.
            use_tqdm: show a bar on standard error where that is a terminal.
            priority: one number for each prompt.

        Returns:
            The finished outputs in the order of the prompts.

        Raises:
            ValueMismatchError: a prompt or a setting cannot be served; nothing runs then.
        """
        given = _prompts(prompts)
        params = _for_each(sampling_params, len(given), "sampling_params")
        places = [0] * len(given) if priority is None else list(priority)
        if len(places) != len(given):
            _raise_count("priority", len(places), len(given))
        inputs = self.engine.inputs
        jobs = [
            inputs.make(prompt, one, priority=place, kind="final")
            for prompt, one, place in zip(given, params, places, strict=True)
        ]
        return self._run(jobs, use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Continue one prompt and tell of it as it comes.

        Args:
            prompt: as for `generate`.
            sampling_params: None is `get_default_sampling_params()`.

        Returns:
            An iterator over outputs of kind "delta": each has what is new. Leaving it ends the request.

        Raises:
            ValueMismatchError: the prompt or a setting cannot be served.
        """
        return self._stream(self.engine.inputs.make(prompt, sampling_params, kind="delta"))

    def _stream(self, job: Job) -> Iterator[RequestOutput]:
        inbox: deque[RequestOutput] = deque()
        try:
            self._add([job], inbox)
            is_finished = False
            while not is_finished:
                self._step(inbox)
                while inbox:
                    output = inbox.popleft()
                    is_finished = output.finished
                    yield output
        finally:
            self._end([job])

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,  # Any: JSON
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,  # Any: JSON
    ) -> list[RequestOutput]:
        """Answer one conversation or several.

        Args:
            messages: `[{"role": "user", "content": "..."}]`, or a list of such lists.
            sampling_params: as for `generate`.
            use_tqdm: as for `generate`.
            chat_template: text of a template used instead of the model's.
            tools: what the model may call, in OpenAI's form.
            add_generation_prompt: whether the prompt ends with the beginning of an answer.
            chat_template_kwargs: values for variables of the template.

        Returns:
            The finished outputs in the order of the conversations.

        Raises:
            ValueMismatchError: the model has no tokenizer, or the messages are wrong.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise errors.ValueMismatchError("chat needs a tokenizer", got="a model without one")
        is_one = not messages or isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if is_one else messages  # Any: messages
        prompts: list[Prompt] = []
        for conversation in conversations:
            text = chat.render(
                conversation,
                tokenizer=tokenizer,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template or self.config.chat_template,
                **(chat_template_kwargs or {}),
            )
            ids = tokenizer.encode(text, add_special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json says, and defaults for the rest."""
        return self.engine.inputs.default_params

    def get_tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where there is none."""
        return self.tokenizer

    def stats(self) -> EngineStats:
        """Counts since the engine began."""
        return self.engine.core.stats()

    def reset_prefix_cache(self) -> bool:
        """Forget the blocks of earlier prompts; False while requests hold blocks."""
        return self.engine.core.reset_prefix_cache()

    def close(self) -> None:
        """Give the cache and the weights back. May be called any number of times."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def _run(self, jobs: Sequence[Job], use_tqdm: bool) -> list[RequestOutput]:
        found: dict[str, RequestOutput] = {}
        inbox: deque[RequestOutput] = deque()
        with PromptsBar(len(jobs), is_shown=use_tqdm) as bar:
            try:
                self._add(jobs, inbox)
                while len(found) < len(jobs):
                    self._step(inbox)
                    while inbox:
                        output = inbox.popleft()
                        found[output.request_id] = output
                        bar.add(output)
            finally:  # after an interrupt nothing may stay behind
                self._end(jobs)
        return [found[job.request_id] for job in jobs]

    # Several callers may be at work: threads, or one that reads a stream and generates in between. Whoever
    # waits lets the loop turn for all of them.

    def _add(self, jobs: Sequence[Job], inbox: deque[RequestOutput]) -> None:
        """Put jobs into the queue; their outputs will be in `inbox`."""
        with self._lock:
            for job in jobs:
                self._inboxes[job.request_id] = inbox
                self.engine.core.add(job)

    def _step(self, inbox: deque[RequestOutput]) -> None:
        """Let the loop turn once, unless another caller's turn has filled this one's inbox."""
        with self._lock:
            self._abort_left()
            if inbox:
                return
            for output in self.engine.core.step():
                self._inboxes[output.request_id].append(output)

    def _end(self, jobs: Sequence[Job]) -> None:
        """Leave nothing of jobs behind. A stream may end where an object is collected, in the middle of a
        turn: then the next turn does it.
        """
        self._left.extend(job.request_id for job in jobs)
        while self._left and self._lock.acquire(blocking=False):
            try:
                self._abort_left()
            finally:
                self._lock.release()

    def _abort_left(self) -> None:
        while self._left:
            request_id = self._left.popleft()
            if self._inboxes.pop(request_id, None) is not None and self._engine is not None:
                self._engine.core.abort(request_id)


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    several: Any = prompts.tolist() if hasattr(prompts, "tolist") else prompts  # Any: whatever was given
    if isinstance(several, bytes) or not isinstance(several, Iterable):
        raise errors.ValueMismatchError(
            "prompts are neither one prompt nor several",
            got=repr(prompts)[:200],
            expected='a text, {"prompt": text}, {"prompt_token_ids": ids}, ids, or a list of these',
        )
    given: list[Any] = list(several)  # Any: prompts, or the ids of one
    return [given] if given and all(isinstance(item, numbers.Integral) for item in given) else given


def _for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, name: str
) -> list[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        _raise_count(name, len(params), count)
    wrong = next((one for one in params if not isinstance(one, SamplingParams)), None)
    if wrong is not None:
        raise errors.ValueMismatchError(
            f"{name} are no SamplingParams",
            got=repr(wrong)[:200],
            expected="SamplingParams, or a list of them",
        )
    return list(params)


def _raise_count(name: str, got: int, expected: int) -> None:
    raise errors.ValueMismatchError(
        f"there are as many {name} as prompts", got=str(got), expected=str(expected)
    )
