"""What an engine is asked to be: a frozen dataclass whose fields are the keywords of `LLM` and `AsyncLLM`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_args

from infini.core import errors
from infini.llm.sampling.features import NUM_LOGPROBS

if TYPE_CHECKING:
    from infini.llm.checkpoints.loading import Checkpoint

KVCacheDType = Literal["auto", "bfloat16", "float16", "float32", "int8", "fp8", "fp8_e4m3"]
SpeculativeMethod = Literal["ngram", "draft_model"]
CacheMode = Literal["paged", "static"]
Policy = Literal["fcfs", "priority"]
_GIB: Final = 2**30


class Options(TypedDict, total=False):
    """Keywords of `LLM` and `AsyncLLM`; see `EngineConfig` for what each means."""

    dtype: str
    quantization: str | None
    max_model_len: int | None
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_gpu_blocks_override: int | None
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float
    kv_cache_dtype: KVCacheDType
    cache_mode: CacheMode
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    long_prefill_token_threshold: int
    scheduling_policy: Policy
    max_num_queued_reqs: int | None
    seed: int
    speculative_config: Mapping[str, Any] | None
    tensor_parallel_size: int
    enable_expert_parallel: bool
    deterministic: bool
    enforce_eager: bool
    max_logprobs: int
    chat_template: str | None
    generation_config: Literal["auto", "none"]


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """How tokens are proposed ahead of the model.

    Args:
        method: "ngram" looks for the latest tokens earlier in the text; "draft_model" asks a smaller model.
        num_speculative_tokens: tokens proposed at most in a step.
        prompt_lookup_max: longest run of tokens to look for ("ngram").
        prompt_lookup_min: shortest.
        model: the smaller model, as `LLM` takes models ("draft_model").
        quantization: its weights are quantised on load to this scheme; None leaves them.
    """

    method: SpeculativeMethod = "ngram"
    num_speculative_tokens: int = 4
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    model: str | Path | Checkpoint | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:
        _check_choice("method", self.method, get_args(SpeculativeMethod))
        _check_least("num_speculative_tokens", self.num_speculative_tokens, 1)
        _check_least("prompt_lookup_min", self.prompt_lookup_min, 1)
        _check_least("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min)
        if self.method == "draft_model" and not self.model:
            raise errors.ValueMismatchError(
                "a draft model is asked for and none is named",
                got="method='draft_model' without model",
                fix="add 'model': the folder or file of the smaller model",
            )
        if self.method != "draft_model" and self.model:
            raise errors.ValueMismatchError(
                "a draft model is named and not asked for",
                got=f"method={self.method!r} with a model",
                fix="set 'method' to 'draft_model', or leave 'model' out",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All that can be chosen about an engine.

    Args:
        dtype: of weights and activations; "auto" is the checkpoint's.
        quantization: weights are quantised on load to this scheme; None leaves them.
        max_model_len: most tokens of a request, prompt and continuation; None is what the model was made for.
        block_size: tokens of a block of the cache, a multiple of 16.
        max_num_seqs: most requests in a step.
        max_num_batched_tokens: most tokens in a step.
        num_gpu_blocks_override: number of blocks; None computes it from memory.
        kv_cache_memory_bytes: memory of the cache; None takes `gpu_memory_utilization` of what is free, on a
            CPU at most 4 GiB.
        gpu_memory_utilization: share of the device's memory that the engine may use.
        kv_cache_dtype: of the cache; "auto" is that of the activations.
        cache_mode: "paged", or "static": one block of `max_model_len` tokens for each request.
        enable_prefix_caching: blocks of equal beginnings are computed once.
        enable_chunked_prefill: prompts may be computed in pieces; without it a step has to hold them whole.
        long_prefill_token_threshold: most tokens of one prompt in a step; 0 is no limit.
        scheduling_policy: "fcfs", or "priority": lower numbers first, then by arrival.
        max_num_queued_reqs: requests that may wait; more are refused. None is no limit.
        seed: of requests that bring none.
        speculative_config: fields of `SpeculativeConfig`; None proposes nothing.
        tensor_parallel_size: processes that share the model.
        enable_expert_parallel: each of them has some of the experts whole, instead of a part of every expert.
        deterministic: a request's tokens do not depend on what else is in the batch.
        enforce_eager: programs are compiled when first needed instead of all before the first request.
        max_logprobs: most logprobs a request may ask for.
        chat_template: text of a Jinja template used instead of the model's.
        generation_config: "auto" takes defaults of sampling from the checkpoint's generation_config.json.
    """

    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    block_size: int = 32
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_dtype: KVCacheDType = "auto"
    cache_mode: CacheMode = "paged"
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    scheduling_policy: Policy = "fcfs"
    max_num_queued_reqs: int | None = None
    seed: int = 0
    speculative_config: Mapping[str, Any] | None = None
    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False
    deterministic: bool = False
    enforce_eager: bool = False
    max_logprobs: int = 20
    chat_template: str | None = None
    generation_config: Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"):
            _check_least(name, getattr(self, name), 1)
        for name in (
            "max_model_len",
            "num_gpu_blocks_override",
            "kv_cache_memory_bytes",
            "max_num_queued_reqs",
        ):
            if getattr(self, name) is not None:
                _check_least(name, getattr(self, name), 1)
        for name in ("long_prefill_token_threshold", "max_logprobs"):
            _check_least(name, getattr(self, name), 0)
        if self.max_logprobs > NUM_LOGPROBS[-1]:
            raise errors.ValueMismatchError(
                "max_logprobs is more than the engine gives",
                got=str(self.max_logprobs),
                expected=f"at most {NUM_LOGPROBS[-1]}",
            )
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, get_args(KVCacheDType))
        _check_choice("cache_mode", self.cache_mode, get_args(CacheMode))
        _check_choice("scheduling_policy", self.scheduling_policy, get_args(Policy))
        _check_choice("generation_config", self.generation_config, ("auto", "none"))
        if self.block_size % 16:
            raise errors.ValueMismatchError(
                "block_size must be a multiple of 16", got=str(self.block_size), fix="use 16, 32, 64 or 256"
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise errors.ValueMismatchError(
                "gpu_memory_utilization must lie in (0, 1]", got=repr(self.gpu_memory_utilization)
            )
        _ = self.speculation  # says what is wrong with it

    @property
    def speculation(self) -> SpeculativeConfig | None:
        """The fields of `speculative_config`, checked."""
        if self.speculative_config is None:
            return None
        known = {field.name for field in dataclasses.fields(SpeculativeConfig)}
        unknown = sorted(set(self.speculative_config) - known)
        if unknown:
            raise errors.ValueMismatchError(
                "speculative_config has an unknown field", got=unknown[0], expected=", ".join(sorted(known))
            )
        return SpeculativeConfig(**self.speculative_config)


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise errors.ValueMismatchError(f"{name} must be at least {least}", got=repr(value))


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise errors.ValueMismatchError(
            f"{name} has an unknown value", got=repr(value), expected=", ".join(map(str, choices))
        )
