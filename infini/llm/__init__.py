"""Running language models: `LLM` for prompts that are all there, `AsyncLLM` for those that come and go.

Names and results are vLLM's. What has not been asked for is not loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from infini.llm.engine.async_llm import AsyncLLM as AsyncLLM, RequestStream as RequestStream
    from infini.llm.engine.config import EngineConfig as EngineConfig, SpeculativeConfig as SpeculativeConfig
    from infini.llm.engine.llm import LLM as LLM
    from infini.llm.engine.outputs import (
        CompletionOutput as CompletionOutput,
        EngineStats as EngineStats,
        Logprob as Logprob,
        RequestMetrics as RequestMetrics,
        RequestOutput as RequestOutput,
    )
    from infini.llm.engine.requests import (
        EngineDeadError as EngineDeadError,
        QueueFullError as QueueFullError,
    )
    from infini.llm.sampling.params import (
        SamplingParams as SamplingParams,
        StructuredOutputsParams as StructuredOutputsParams,
    )

_PLACES: Final = {
    "LLM": "engine.llm",
    "AsyncLLM": "engine.async_llm",
    "CompletionOutput": "engine.outputs",
    "EngineConfig": "engine.config",
    "EngineDeadError": "engine.requests",
    "EngineStats": "engine.outputs",
    "Logprob": "engine.outputs",
    "QueueFullError": "engine.requests",
    "RequestMetrics": "engine.outputs",
    "RequestOutput": "engine.outputs",
    "RequestStream": "engine.async_llm",
    "SamplingParams": "sampling.params",
    "SpeculativeConfig": "engine.config",
    "StructuredOutputsParams": "sampling.params",
}
__all__ = [
    "LLM", "AsyncLLM", "CompletionOutput", "EngineConfig", "EngineDeadError", "EngineStats", "Logprob",
    "QueueFullError", "RequestMetrics", "RequestOutput", "RequestStream", "SamplingParams",
    "SpeculativeConfig", "StructuredOutputsParams",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: what a module holds
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
