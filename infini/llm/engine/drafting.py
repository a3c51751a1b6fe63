"""From the path of a smaller model to its proposals: loading it, and what it must have in common with the
model that is served.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from infini.core import errors
from infini.llm import checkpoints, hub, models
from infini.llm.checkpoints.loading import Checkpoint
from infini.llm.engine import buckets as buckets_
from infini.llm.engine.config import EngineConfig, SpeculativeConfig
from infini.llm.engine.drafts import DraftModel
from infini.llm.engine.memory import CacheSize
from infini.llm.engine.runner import ModelRunner, Progress
from infini.llm.text.tokenizer import Tokenizer


def place_of(spec: SpeculativeConfig) -> Path | Checkpoint:
    """Where the smaller model is."""
    assert spec.model is not None
    return spec.model if isinstance(spec.model, Checkpoint) else hub.place_of(spec.model)


def load(
    place: Path | Checkpoint, spec: SpeculativeConfig, config: EngineConfig, on_progress: Progress | None
) -> Checkpoint:
    """Read the smaller model.

    Args:
        place: where it is.
        spec: how it is stored in memory.
        config: of the engine, whose dtype it takes.
        on_progress: told of bytes read.
    """
    if isinstance(place, Checkpoint):
        return place

    def on_bytes(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress("Loading draft model", done, total)

    return checkpoints.load(place, dtype=config.dtype, quantization=spec.quantization, on_progress=on_bytes)


def check(
    served: Checkpoint, words: Tokenizer | None, draft: Checkpoint, draft_words: Tokenizer | None
) -> None:
    """Both models mean the same by a token.

    Args:
        served: the model that is served.
        words: its tokenizer.
        draft: the smaller model.
        draft_words: its tokenizer; what is not there is not compared.

    Raises:
        ValueMismatchError: they do not.
    """
    sizes = served.config.vocab_size, draft.config.vocab_size
    if sizes[0] != sizes[1]:
        raise errors.ValueMismatchError(
            "the draft model has another vocabulary than the model",
            got=f"{sizes[1]} tokens, and {sizes[0]} of the model",
            expected="a model of the same family, with the same tokens",
            fix='choose another draft model, or speculative_config={"method": "ngram"}',
        )
    if words is None or draft_words is None:
        return
    if _digest(words) != _digest(draft_words):
        raise errors.ValueMismatchError(
            "the tokenizer of the draft model has other tokens than the model's",
            got=_difference(words, draft_words),
            expected="a model of the same family, with the same tokens",
            fix='choose another draft model, or speculative_config={"method": "ngram"}',
        )


def make(
    draft: Checkpoint,
    spec: SpeculativeConfig,
    config: EngineConfig,
    size: CacheSize,
    cache_dtype: Any,  # Any: a dtype
) -> DraftModel:
    """The smaller model beside one whose cache was decided on.

    Args:
        draft: its weights.
        spec: how much it proposes.
        config: of the engine.
        size: of the cache of the model served: its own has as many blocks.
        cache_dtype: of its cache.
    """
    runner = ModelRunner(
        draft.params,
        draft.config.served(min(size.max_model_len, draft.config.max_length)),
        buckets=buckets_.choose(
            # A request may bring one token more than to the model: see `DraftModel`.
            max_num_batched_tokens=config.max_num_batched_tokens + config.max_num_seqs,
            max_num_seqs=config.max_num_seqs,
            blocks_per_request=-(-size.max_model_len // size.block_size),
        ),
        num_blocks=size.num_blocks,
        block_size=size.block_size,
        cache_dtype=cache_dtype,
    )
    return DraftModel(
        runner,
        num_speculative_tokens=spec.num_speculative_tokens,
        max_length=draft.config.max_length,
        is_matched=config.deterministic,
    )


def bytes_per_token(draft: Checkpoint | None, cache_dtype: Any) -> int:  # Any: a dtype
    """Bytes that a token takes in the cache of the smaller model, where there is one."""
    return 0 if draft is None else models.cache_bytes_per_token(draft.config, cache_dtype)


def _digest(words: Tokenizer) -> tuple[int, bytes]:
    found = hashlib.blake2b(digest_size=16)
    for token in range(words.vocab_size):
        found.update(repr(words.token_text(token)).encode("utf-8", "surrogatepass"))
    return words.vocab_size, found.digest()


def _difference(words: Tokenizer, others: Tokenizer) -> str:
    for token in range(min(words.vocab_size, others.vocab_size)):
        if words.token_text(token) != others.token_text(token):
            return f"token {token} is {others.token_text(token)!r}, and {words.token_text(token)!r} there"
    return f"{others.vocab_size} tokens, and {words.vocab_size} there"
