"""What the server needs of an engine. `infini.llm.engine.async_llm.AsyncLLM` has this shape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from infini.llm.engine.config import EngineConfig
from infini.llm.engine.outputs import EngineStats, OutputKind, RequestOutput
from infini.llm.engine.requests import Prompt
from infini.llm.sampling.params import SamplingParams
from infini.llm.text.tokenizer import Tokenizer


class Stream(Protocol):
    """Outputs of one request as they come. Leaving it early aborts the request."""

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        """The outputs."""

    async def start(self) -> None:
        """Check the request and queue it. What is wrong with it is raised here."""

    async def aclose(self) -> None:
        """Abort it if it still runs; any number of times."""


class Engine(Protocol):
    """An engine that runs requests beside each other."""

    config: EngineConfig

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; a server needs one."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt and answer."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        output_kind: OutputKind | None = None,
    ) -> Stream:
        """A request."""

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets a last output with the finish reason "abort"."""

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json says."""

    def check_health(self) -> None:
        """Raise if the engine's loop has ended."""

    def stats(self) -> EngineStats:
        """Counts since the engine began; may be called from any thread."""

    async def shutdown(self, *, drain_s: float = 0.0) -> None:
        """End the engine."""
