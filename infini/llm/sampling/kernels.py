"""Choosing the next tokens of a batch, every row by its own settings, as pure functions of arrays.

The order is vLLM's: mask and forbidden tokens, biases, penalties, temperature, min-p, top-k, top-p, then
typical sampling. A row's result depends on its logits and its own settings only, not on its place or on the
number of rows. Equal logits stay or go together. Letters: R rows, V tokens in the vocabulary.

References: nucleus sampling (arXiv:1904.09751), min-p (arXiv:2407.01082), typical sampling
(arXiv:2202.00666), repetition penalty (arXiv:1909.05858).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import Array, lax, random
from infini.core import tree
from infini.llm.sampling import choice, rows as rows_
from infini.llm.sampling.features import Features
from infini.llm.sampling.state import State

NONE: Final = -1  # in the place of a token


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was chosen; a pytree. What nobody asked for is None.

    Args:
        tokens: int32 (R,); NONE where no token can be chosen.
        logprobs: float32 (R,), log-probabilities of the tokens under the model, before any setting.
        ranks: int32 (R,), 1 for the likeliest token of the model.
        top_ids: int32 (R, P), its likeliest tokens in falling order.
        top_logprobs: float32 (R, P).
    """

    tokens: Array
    logprobs: Array | None = None
    ranks: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None


tree.register_dataclass(Sampled, [field.name for field in dataclasses.fields(Sampled)], [])


def sample(logits: Array, state: State, features: Features) -> Sampled:
    """The next token of each row.

    Args:
        logits: float32 (R, V).
        state: settings of the rows, from `state.build`.
        features: what the program has to be able to do; static.

    Returns:
        Tokens, and what is told about them.
    """
    edited = edit(logits, state, features)
    if features.is_random:
        tokens = choice.draw(edited, state.scales, state.numbers, uniforms(state.numbers, 1)[:, 0], features)
    else:
        tokens = inp.argmax(edited, axis=-1).astype(inp.int32)
    tokens = possible(tokens, edited)
    if features.num_logprobs is None:
        return Sampled(tokens)
    return describe(logits, tokens, features.num_logprobs)


def possible(tokens: Array, edited: Array) -> Array:
    """Tokens (R,) as they are, and NONE where the choice means nothing: the settings of a row forbid all
    tokens, or the model gave no numbers.

    Args:
        tokens: int32 (R,), chosen.
        edited: float32 (R, V), what they were chosen from.
    """
    chosen = inp.take_along_axis(edited, inp.maximum(tokens, 0)[:, None], axis=-1)[:, 0]
    return inp.where(inp.isfinite(chosen), tokens, NONE)


def edit(logits: Array, state: State, features: Features) -> Array:
    """Logits (R, V) after masks, forbidden tokens, biases and penalties; -inf for what may not come."""
    edited = logits
    if features.is_edited:
        edited = _penalised(edited, state)
    if features.is_masked:
        edited = _masked(edited, state.mask)
    return edited


def probabilities(logits: Array, state: State, features: Features) -> Array:
    """Probabilities float32 (R, V) with which `sample` chooses; 1 for the token that greedy rows take.

    Args:
        logits: float32 (R, V).
        state: settings of the rows.
        features: as in `sample`.
    """
    edited = edit(logits, state, features)
    return choice.probabilities(edited, state.scales, state.numbers, features)


def uniforms(numbers: Array, count: int) -> Array:
    """Random numbers float64 (R, count) in [0, 1) of the tokens that `State.numbers` (R, 4) tells of."""
    return inf.vmap(functools.partial(_uniforms_of_row, count=count))(numbers)


def _uniforms_of_row(numbers: Array, count: int) -> Array:
    key = random.fold_in(numbers[: rows_.INDEX], numbers[rows_.INDEX])
    return random.uniform(key, (count,), inp.float64)


def describe(logits: Array, tokens: Array, num_top: int) -> Sampled:
    """Log-probabilities and ranks of given tokens, and of the likeliest ones.

    Args:
        logits: float32 (R, V), as the model gave them.
        tokens: int32 (R,).
        num_top: P.
    """
    chosen = inp.take_along_axis(logits, tokens[:, None], axis=-1)
    largest = inp.max(logits, axis=-1, keepdims=True)
    total = largest + inp.log(inp.sum(inp.exp(logits - largest), axis=-1, keepdims=True))
    ranks = 1 + inp.sum(logits > chosen, axis=-1, dtype=inp.int32)
    top_ids = top_logprobs = None
    if num_top:
        top, top_ids = lax.top_k(logits, min(num_top, logits.shape[-1]))
        top_logprobs = top - total
    return Sampled(tokens, (chosen - total)[:, 0], ranks, top_ids, top_logprobs)


sample_step = functools.partial(inf.jit, static_argnames=("features",))(sample)
describe_step = functools.partial(inf.jit, static_argnames=("num_top",))(describe)


def _penalised(logits: Array, state: State) -> Array:
    """The few logits that change are taken out, changed and put back; rows of padding are out of range."""
    rows, tokens, occurrences = state.edits[0], state.edits[1], state.edits[2]
    inside = inp.minimum(rows, logits.shape[0] - 1)
    old = logits[inside, tokens] + state.biases
    of_row = state.scales[inside]
    repetition = of_row[:, rows_.REPETITION]
    repeated = inp.where(old > 0, old / repetition, old * repetition)
    count = (occurrences >> 1).astype(inp.float32)
    new = inp.where(occurrences > 0, repeated, old)
    new = new - of_row[:, rows_.FREQUENCY] * count
    new = new - inp.where(count > 0, of_row[:, rows_.PRESENCE], 0.0)
    changed = logits.at[rows, tokens].set(new, mode="drop")
    return changed.at[state.forbidden[0], state.forbidden[1]].set(-np.inf, mode="drop")


def _masked(logits: Array, mask: Array) -> Array:
    """A word of the mask has a row of 32 tokens, so that a bit is a shift by the column."""
    num_rows, vocab_size = logits.shape
    is_allowed = (mask[:, :, None] >> inp.arange(32, dtype=inp.uint32)) & np.uint32(1) == 1
    if vocab_size % 32:
        return inp.where(is_allowed.reshape(num_rows, -1)[:, :vocab_size], logits, -np.inf)
    words = logits.reshape(num_rows, -1, 32)
    return inp.where(is_allowed, words, -np.inf).reshape(num_rows, vocab_size)
