"""`AsyncLLM`: the engine for a server: requests come and go while others are being continued.

The loop runs in a thread of its own; coroutines hand it requests and receive outputs through queues.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from infini.llm.engine.config import EngineConfig, Options
from infini.llm.engine.outputs import EngineStats, OutputKind, RequestOutput
from infini.llm.engine.requests import Prompt

if TYPE_CHECKING:
    from infini.llm.sampling.params import SamplingParams


class RequestStream(AsyncIterator[RequestOutput]):
    """Outputs of one request as they come. Iterate over it once.

    Leaving the iteration early (`aclose`, cancellation of the task, or the object's end) aborts the request.
    """

    request_id: str

    async def start(self) -> None:
        """Check the request and put it in the queue; iteration does so by itself if this was not called.

        Call it before an answer's headers are sent: what is wrong with a request is raised here.

        Raises:
            ValueMismatchError: the request cannot be served: too long, unknown ids, a grammar that is none.
            QueueFullError: as many requests wait as may.
            EngineDeadError: the loop has ended.
        """
        raise NotImplementedError

    async def __anext__(self) -> RequestOutput:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Abort the request if it still runs. May be called any number of times."""
        raise NotImplementedError


class AsyncLLM:
    """An engine in a thread of its own.

    Args:
        model: a folder in Hugging Face's layout, a GGUF file, or a loaded `Checkpoint`.
        tokenizer: folder of the tokenizer; None is the model's own.
        options: fields of `EngineConfig`.
    """

    config: EngineConfig

    def __init__(
        self, model: Any, *, tokenizer: str | Path | None = None, **options: Unpack[Options]
    ) -> None:
        raise NotImplementedError

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        output_kind: OutputKind = "cumulative",
    ) -> RequestStream:
        """A request; iterate over the result (`async for output in engine.generate(...)`).

        Args:
            prompt: text, `{"prompt": ...}`, `{"prompt_token_ids": [...]}` or ids.
            sampling_params: None is `get_default_sampling_params()`.
            request_id: unique among those running; None makes one.
            priority: lower goes first under the policy "priority".
            output_kind: whether outputs hold all text so far, what is new, or come once at the end.
        """
        raise NotImplementedError

    async def abort(self, request_id: str) -> None:
        """End a request: its stream gets a last output, finish reason "abort". Unknown ids are ignored."""
        raise NotImplementedError

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json says, and defaults for the rest."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """The model's `infini.llm.text.tokenizer.Tokenizer`."""
        raise NotImplementedError

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt and continuation."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: warm, alive, not draining."""
        raise NotImplementedError

    def check_health(self) -> None:
        """Raise EngineDeadError if the loop has ended."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Counts since the engine began; may be called from any thread."""
        raise NotImplementedError

    async def reset_prefix_cache(self) -> bool:
        """Forget the blocks of earlier prompts; False while requests hold blocks."""
        raise NotImplementedError

    async def shutdown(self, *, drain_s: float = 0.0) -> None:
        """End the engine: nothing new is taken, what runs has `drain_s` seconds, the rest is aborted."""
        raise NotImplementedError
