"""Continuing a prompt token by token: one prefill, then a jitted step over a donated cache of fixed size.

Prompts are padded to a multiple of `PROMPT_STEP` and caches to one of `CACHE_STEP`, so that few programs
serve many requests.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np

import infini as inf
from infini import Array, lax, random
from infini.core import errors
from infini.llm import sampling as sampling_
from infini.train import gpt

_jit = functools.partial(
    inf.jit, static_argnames=("config", "sampling"), donate_argnames=("cache",), donation="require"
)
PROMPT_STEP = 32
CACHE_STEP = 64
Finished = Literal["length", "end"]


class Generation:
    """Tokens that follow a prompt; iterate over it once.

    Args:
        params: the model's parameters.
        config: its sizes.
        prompt: ids, at least one.
        max_new_tokens: how many to make at most.
        sampling: how to choose them.
        seed: equal seeds give equal tokens.
        end_ids: ids that end the text and are not yielded.

    Raises:
        ValueMismatchError: the prompt is empty or does not fit the model, or an id is not in the vocabulary.

    Attributes:
        num_tokens: tokens made so far.
        prefill_s: seconds until the first token, compilation included.
        decode_s: seconds of the tokens from the third on; the second pays for compilation.
        finished: why it ended, None before that.
    """

    def __init__(
        self,
        params: gpt.Params,
        config: gpt.Config,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: sampling_.Sampling,
        seed: int = 0,
        end_ids: Collection[int] = (),
    ) -> None:
        _check(prompt, max_new_tokens, config)
        self._params, self._config, self._prompt = params, config, list(prompt)
        self._max_new_tokens, self._end_ids = max_new_tokens, frozenset(end_ids)
        self._key = random.PRNGKey(seed)
        self._static = {"config": config, "sampling": sampling}
        self.num_tokens = 0
        self.prefill_s = self.decode_s = 0.0
        self.finished: Finished | None = None

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding, from the third token on."""
        return (self.num_tokens - 2) / self.decode_s if self.decode_s else 0.0

    def __iter__(self) -> Iterator[int]:
        start = time.perf_counter()
        length = len(self._prompt)
        num_slots = _rounded(length + self._max_new_tokens, CACHE_STEP)
        cache = gpt.init_cache(self._config, 1, num_slots, self._params["embed_tokens"].dtype)
        padded = np.zeros((1, _rounded(length, PROMPT_STEP)), np.int32)
        padded[0, :length] = self._prompt
        token, cache = _prefill(self._params, cache, padded, np.int32(length), self._key, **self._static)
        for position in range(length, length + self._max_new_tokens):
            value = int(token[0])
            self._count(time.perf_counter() - start)
            if value in self._end_ids:
                self.finished = "end"
                return
            yield value
            if self.num_tokens == self._max_new_tokens:
                break
            start = time.perf_counter()
            token, cache = _decode(self._params, cache, token, np.int32(position), self._key, **self._static)
        self.finished = "length"

    def _count(self, seconds: float) -> None:
        self.num_tokens += 1
        if self.num_tokens == 1:
            self.prefill_s = seconds
        elif self.num_tokens > 2:
            self.decode_s += seconds


@_jit
def _prefill(
    params: gpt.Params,
    cache: gpt.Cache,
    tokens: Array,
    length: Array,
    key: Array,
    *,
    config: gpt.Config,
    sampling: sampling_.Sampling,
) -> tuple[Array, gpt.Cache]:
    """The token after the first `length` of `tokens` (1, T), and the cache that holds them."""
    logits, cache = gpt.forward_cached(params, cache, tokens, 0, config, num_tokens=length)
    last = lax.dynamic_slice_in_dim(logits, length - 1, 1, axis=1)[:, 0]
    return sampling_.sample(last, random.fold_in(key, length), sampling), cache


@_jit
def _decode(
    params: gpt.Params,
    cache: gpt.Cache,
    token: Array,
    position: Array,
    key: Array,
    *,
    config: gpt.Config,
    sampling: sampling_.Sampling,
) -> tuple[Array, gpt.Cache]:
    """The token after `token` (1,), which stands at `position`, and the cache with it."""
    logits, cache = gpt.forward_cached(params, cache, token[:, None], position, config)
    return sampling_.sample(logits[:, -1], random.fold_in(key, position + 1), sampling), cache


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step


def longest_text(config: gpt.Config) -> int:
    """Most tokens a model can look at: scaled rotary embeddings of the kinds that say so reach further."""
    scaling = config.rope_scaling
    reach = scaling.factor if scaling.kind in ("linear", "dynamic") else 1.0
    return int(config.max_length * reach)


def _check(prompt: Sequence[int], max_new_tokens: int, config: gpt.Config) -> None:
    if not prompt:
        raise errors.ValueMismatchError("the prompt is empty", expected="at least one token")
    if max_new_tokens < 1:
        raise errors.ValueMismatchError("max_new_tokens must be at least 1", got=str(max_new_tokens))
    longest = longest_text(config)
    if len(prompt) + max_new_tokens > longest:
        raise errors.ValueMismatchError(
            "prompt and new tokens are longer than the model was made for",
            got=f"{len(prompt)} + {max_new_tokens} tokens",
            expected=f"at most {longest}",
            fix="shorten the prompt, or ask for fewer tokens with --max-new-tokens",
        )
    if not all(0 <= token < config.vocab_size for token in prompt):
        raise errors.ValueMismatchError(
            "the prompt holds an id that the model does not know",
            got=str(max(prompt)),
            expected=f"ids below {config.vocab_size}",
            fix="use the tokenizer of the model",
        )
