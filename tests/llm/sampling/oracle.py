"""Sampling written from the definitions, row by row, in float64 NumPy with sorts and loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infini.llm.sampling.params import SamplingParams


def edited(
    logits: np.ndarray,
    params: SamplingParams,
    *,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    bad_words: Sequence[Sequence[int]] = (),
    eos_ids: Sequence[int] = (),
) -> np.ndarray:
    """Logits (V,) after everything that changes single tokens."""
    changed = logits.astype(np.float64).copy()
    for token, bias in (params.logit_bias or {}).items():
        changed[token] += bias
    for token in range(changed.size):
        if token in prompt or token in output:
            r = params.repetition_penalty
            changed[token] = changed[token] / r if changed[token] > 0 else changed[token] * r
        changed[token] -= params.frequency_penalty * list(output).count(token)
        changed[token] -= params.presence_penalty * (token in output)
    if params.allowed_token_ids is not None:
        changed[[token for token in range(changed.size) if token not in params.allowed_token_ids]] = -np.inf
    for word in bad_words:
        before = list(word[:-1])
        if not before or list(output)[-len(before) :] == before:
            changed[word[-1]] = -np.inf
    if len(output) < params.min_tokens:
        changed[list(eos_ids) + list(params.stop_token_ids or ())] = -np.inf
    return changed


def probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities (V,) with which a token is chosen from edited logits; equal logits stay together."""
    if params.temperature == 0:
        return np.eye(logits.size)[np.argmax(logits)]
    chances = _softmax(logits.astype(np.float64) / params.temperature)
    chances = _renormalised(chances, chances >= params.min_p * chances.max())
    if 0 < params.top_k < chances.size:
        chances = _renormalised(chances, chances >= np.sort(chances)[-params.top_k])
    if params.top_p < 1:
        chances = _renormalised(chances, _smallest_set(chances, -chances, params.top_p))
    if params.typical_p < 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            information = -np.log(chances)
            entropy = np.nansum(chances * information)
        strangeness = np.where(chances > 0, np.abs(information - entropy), np.inf)
        chances = _renormalised(chances, _smallest_set(chances, strangeness, params.typical_p))
    return chances


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _renormalised(chances: np.ndarray, stays: np.ndarray) -> np.ndarray:
    left = np.where(stays, chances, 0.0)
    return left / left.sum()


def _smallest_set(chances: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """The first tokens by `order` that together have at least a share, and all equal to the last."""
    places = np.argsort(order, kind="stable")
    count = int(np.searchsorted(np.cumsum(chances[places]), share - 1e-12)) + 1
    return order <= order[places[min(count, places.size) - 1]]
