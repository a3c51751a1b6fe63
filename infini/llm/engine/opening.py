"""From a model's path and an engine's configuration to an engine that is ready to run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infini.core import backend, comm, dtypes, errors
from infini.io import tensors
from infini.llm import checkpoints, hub, models
from infini.llm.checkpoints.loading import Checkpoint
from infini.llm.engine import buckets as buckets_, determinism, drafting, memory, sharing
from infini.llm.engine.blocks import BlockPool
from infini.llm.engine.config import EngineConfig
from infini.llm.engine.core import EngineCore
from infini.llm.engine.drafts import DraftModel
from infini.llm.engine.inputs import InputProcessor
from infini.llm.engine.memory import CacheSize
from infini.llm.engine.proposals import NgramProposals, Proposer
from infini.llm.engine.runner import ModelRunner
from infini.llm.engine.scheduler import Limits, Scheduler
from infini.llm.engine.sharing import Channel
from infini.llm.models import placement
from infini.llm.text import tokenizer as tokenizer_
from infini.llm.text.tokenizer import Tokenizer
from infini.sharding import Mesh

# What is going on, how much of it is done, and how much there is; and lines to be shown.
OnProgress = Callable[[str, int, int], None]
OnLine = Callable[[str], None]
_CACHE_DTYPES = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn"}
_BLOCK_STEP = 16


@dataclass(frozen=True, slots=True)
class Engine:
    """All parts of an engine.

    Args:
        core: the loop.
        inputs: makes jobs.
        checkpoint: the model.
        cache_size: what was decided about the cache.
    """

    core: EngineCore
    inputs: InputProcessor
    checkpoint: Checkpoint
    cache_size: CacheSize

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where there is none."""
        return self.inputs.tokenizer

    def close(self) -> None:
        """Let other processes that share the model go."""
        self.core.runner.close()


def open_engine(
    model: str | Path | Checkpoint,
    config: EngineConfig,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    on_progress: OnProgress | None = None,
    on_line: OnLine | None = None,
) -> Engine:
    """Load a model, size its cache and compile its programs.

    Args:
        model: a folder, a GGUF file, the name of a pulled model, or a model that is loaded.
        config: what is asked for.
        tokenizer: a folder, or a tokenizer; None for the model's own.
        on_progress: told of bytes read and programs compiled.
        on_line: given lines for people.

    Raises:
        ValueMismatchError: the model or the configuration cannot be served.
    """
    say = on_line or (lambda line: None)
    begin = time.perf_counter()
    mesh, channel = _devices(config)
    if channel is not None and not channel.is_leader:
        on_progress, say = None, _silent
    model = model if isinstance(model, Checkpoint) else hub.place_of(model)
    checkpoint = _checkpoint(model, config, mesh, on_progress, say)
    words = _tokenizer(model, checkpoint, tokenizer)
    params, model_config = checkpoint.params, _apart(checkpoint.config, config)
    model_len = _model_len(config, model_config)
    block_size = config.block_size
    if config.cache_mode == "static":
        block_size = -(-model_len // _BLOCK_STEP) * _BLOCK_STEP
    dtype = cache_dtype(config, params["norm"].dtype)
    spec, draft, draft_dtype = config.speculation, None, None
    if spec is not None and spec.model is not None and (channel is None or channel.is_leader):
        place = drafting.place_of(spec)
        draft = drafting.load(place, spec, config, on_progress)
        drafting.check(checkpoint, words, draft, _tokenizer(place, draft, None))
        draft_dtype = cache_dtype(config, draft.params["norm"].dtype)
    size = memory.decide(
        config,
        bytes_per_token=models.cache_bytes_per_token(model_config, dtype)
        + drafting.bytes_per_token(draft, draft_dtype),
        block_size=block_size,
        model_len=model_len,
        device=backend.default_device(),
    )
    if channel is not None:
        size = dataclasses.replace(size, num_blocks=channel.agreed(size.num_blocks))
    for line in size.lines():
        say(line)
    num_spec = 0 if spec is None else spec.num_speculative_tokens
    limits = _limits(config, size)
    runner = ModelRunner(
        params,
        model_config.served(size.max_model_len),
        buckets=buckets_.choose(
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            blocks_per_request=-(-size.max_model_len // block_size),
            num_spec=num_spec,
        ),
        num_blocks=size.num_blocks,
        block_size=block_size,
        cache_dtype=dtype,
        mesh=mesh,
        channel=channel,
    )
    if channel is not None and not channel.is_leader:
        runner.follow()
        raise SystemExit(0)
    if config.deterministic:
        found = determinism.find(runner, config.max_num_seqs * (1 + num_spec))
        runner.use(found.buckets)
        limits = _deterministic(limits, found)
        sizes = ", ".join(map(str, found.buckets.tokens))
        say(
            f"Deterministic mode: steps of {sizes} tokens, and at most {found.most_tokens} of one request, "
            "give the same bits; no others are used"
        )
    scheduler = Scheduler(limits, BlockPool(size.num_blocks, block_size))
    proposer: Proposer | None = None if spec is None else NgramProposals(spec)
    if spec is not None and draft is not None:
        proposer = drafting.make(draft, spec, config, size, draft_dtype)
    if not config.enforce_eager:
        runner.warm_up(on_progress)
        if isinstance(proposer, DraftModel):
            proposer.warm_up(runner.buckets.wanted, on_progress)
        say(f"init engine (create kv cache, warmup model) took {time.perf_counter() - begin:.1f} s")
    inputs = InputProcessor(
        config,
        tokenizer=words,
        vocab_size=model_config.vocab_size,
        max_model_len=size.max_model_len,
        scheduler=scheduler,
        generation_config=checkpoint.generation_config,
    )
    return Engine(EngineCore(scheduler, runner, tokenizer=words, proposer=proposer), inputs, checkpoint, size)


def cache_dtype(config: EngineConfig, dtype: Any) -> Any:  # Any: dtypes
    """The dtype of a cache beside activations of some dtype."""
    if config.kv_cache_dtype == "auto":
        return dtype
    return dtypes.canonical(_CACHE_DTYPES.get(config.kv_cache_dtype, config.kv_cache_dtype))


def _model_len(config: EngineConfig, model: models.Config) -> int:
    """Most tokens of a request: what was asked for, or what the model was made for.

    Scaled rotary embeddings of the kinds that say so reach further. Dynamic ones change with the length that
    is served, so they do it only where it is asked for.
    """
    scaling = None if model.rope is None else model.rope.scaling
    longest = model.max_length
    if scaling is not None and scaling.kind in ("linear", "dynamic"):
        longest = int(longest * scaling.factor)
    if config.max_model_len is None:
        return longest if scaling is not None and scaling.kind == "linear" else model.max_length
    if config.max_model_len > longest:
        raise errors.ValueMismatchError(
            "max_model_len is more than the model was made for",
            got=str(config.max_model_len),
            expected=f"at most {longest}",
        )
    return config.max_model_len


def _deterministic(limits: Limits, found: determinism.Agreement) -> Limits:
    if not limits.enable_chunked_prefill:
        raise errors.ValueMismatchError(
            "deterministic mode computes prompts in pieces",
            got="enable_chunked_prefill=False",
            fix="leave enable_chunked_prefill on",
        )
    most = min(limits.long_prefill_token_threshold or found.most_tokens, found.most_tokens)
    return dataclasses.replace(
        limits, max_num_batched_tokens=found.buckets.tokens[-1], long_prefill_token_threshold=most
    )


def _limits(config: EngineConfig, size: CacheSize) -> Limits:
    if not config.enable_chunked_prefill and config.max_num_batched_tokens < size.max_model_len:
        raise errors.ValueMismatchError(
            "without chunked prefill a step has to hold the longest request",
            got=f"max_num_batched_tokens={config.max_num_batched_tokens}",
            expected=f"at least max_model_len, {size.max_model_len}",
            fix="raise max_num_batched_tokens, lower max_model_len, or enable chunked prefill",
        )
    return Limits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=size.max_model_len,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        enable_chunked_prefill=config.enable_chunked_prefill,
        max_num_queued_reqs=config.max_num_queued_reqs,
        policy=config.scheduling_policy,
    )


def _devices(config: EngineConfig) -> tuple[Mesh | None, Channel | None]:
    """What shares the model, and the line between its processes."""
    sharing.join(config.tensor_parallel_size)
    if config.tensor_parallel_size == 1:
        if comm.processes().count > 1:
            raise errors.ValueMismatchError(
                "this job has several processes, and the engine should run in one",
                got=f"tensor_parallel_size=1 in a job of {comm.processes().count} processes",
                fix=f"set tensor_parallel_size={comm.processes().count}, or start it without mpirun",
            )
        return None, None
    return sharing.mesh_of(config.tensor_parallel_size), sharing.channel()


def _apart(model: models.Config, config: EngineConfig) -> models.Config:
    """The model with its experts divided as the engine is asked to."""
    if not config.enable_expert_parallel or config.tensor_parallel_size == 1:
        return model
    return placement.apart(model, config.tensor_parallel_size)


def _silent(line: str) -> None:
    """Lines are told by process 0."""


def _checkpoint(
    model: str | Path | Checkpoint,
    config: EngineConfig,
    mesh: Mesh | None,
    on_progress: OnProgress | None,
    say: OnLine,
) -> Checkpoint:
    if isinstance(model, Checkpoint):
        if mesh is not None:
            raise errors.ValueMismatchError(
                "a loaded model lies on its devices already",
                got=f"a Checkpoint, and tensor_parallel_size={config.tensor_parallel_size}",
                fix="give the path of the model",
            )
        return model
    place = None
    if mesh is not None:
        source = checkpoints.read(model)
        place = placement.weights(_apart(models.config_from_json(source.config_json), config), mesh)

    def on_bytes(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress("Loading weights", done, total)

    found = checkpoints.load(
        model,
        dtype=config.dtype,
        quantization=config.quantization,
        sharding=place,
        on_progress=on_bytes,
    )
    say(f"Model loading took {memory.size_text(found.nbytes)} memory and {found.seconds:.1f} seconds")
    return found


def _tokenizer(
    model: str | Path | Checkpoint, checkpoint: Checkpoint, tokenizer: str | Path | Tokenizer | None
) -> Tokenizer | None:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer is not None:
        return tokenizer_.load(tokenizer)
    if not isinstance(model, Checkpoint):
        try:
            return tokenizer_.load(model)
        except tensors.MissingFileError:  # prompts may be ids
            return None
    text = checkpoint.tokenizer_files.get("tokenizer.json")
    if text is None:
        return None
    stated = checkpoint.tokenizer_files.get("tokenizer_config.json")
    found = tokenizer_.from_json(text, json.loads(stated) if stated else {})
    if checkpoint.chat_template is not None:
        found.chat_templates.setdefault(tokenizer_.DEFAULT, checkpoint.chat_template)
    return found
