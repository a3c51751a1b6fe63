"""`LLM`: a model and its engine, for prompts that are all there at once.

Names and results are vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from infini.llm.engine.config import EngineConfig, Options
from infini.llm.engine.outputs import EngineStats, RequestOutput
from infini.llm.engine.requests import Prompt

if TYPE_CHECKING:
    from infini.llm.sampling.params import SamplingParams


class LLM:
    """A model that continues prompts, many at a time.

    Args:
        model: a folder in Hugging Face's layout, a GGUF file, or a loaded `Checkpoint`.
        tokenizer: folder of the tokenizer; None is the model's own.
        options: fields of `EngineConfig`.
    """

    def __init__(
        self, model: Any, *, tokenizer: str | Path | None = None, **options: Unpack[Options]
    ) -> None:
        self.config = EngineConfig(**options)
        raise NotImplementedError

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
        """
        raise NotImplementedError

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several."""
        raise NotImplementedError

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json says, and defaults for the rest."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Counts since the engine began."""
        raise NotImplementedError

    def reset_prefix_cache(self) -> bool:
        """Forget the blocks of earlier prompts; False while requests hold blocks."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the cache and the weights back."""
        raise NotImplementedError
