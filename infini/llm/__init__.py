"""Running language models: load a checkpoint, generate, chat, serve.

Names and results of the engine are vLLM's. What is here is loaded when it is asked for.

Example:
    >>> from infini.llm import SamplingParams
    >>> SamplingParams(temperature=0.0, max_tokens=8).max_tokens
    8
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from infini.llm.engine.async_llm import AsyncLLM as AsyncLLM
    from infini.llm.engine.llm import LLM as LLM
    from infini.llm.engine.outputs import (
        CompletionOutput as CompletionOutput,
        Logprob as Logprob,
        RequestOutput as RequestOutput,
    )
    from infini.llm.sampling.params import (
        SamplingParams as SamplingParams,
        StructuredOutputsParams as StructuredOutputsParams,
    )

_PLACES: Final = {
    "AsyncLLM": "engine.async_llm",
    "CompletionOutput": "engine.outputs",
    "LLM": "engine.llm",
    "Logprob": "engine.outputs",
    "RequestOutput": "engine.outputs",
    "SamplingParams": "sampling.params",
    "StructuredOutputsParams": "sampling.params",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
]


def __getattr__(name: str) -> Any:  # Any: what a module holds
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
