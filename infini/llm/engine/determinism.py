"""Sizes of steps that give the same bits: numbers of tokens that are computed with one order of sums.

Within one program a row's result does not depend on the other rows. Two things make it depend on more than
itself. Programs of different sizes take other kernels for few rows of a matrix product than for many; and
attention computes a request with many tokens in a step in another way than one with few: it matters where a
prompt is cut. An engine that is to give a request the same tokens whatever else is in the batch uses only
sizes and cuts that agree. It finds them by running one text through all of them: the logits must be equal
bit for bit.

What it costs: steps are padded to the smallest size that agrees, and prompts are computed in pieces of so few
tokens as agree with decoding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.core import errors
from infini.llm import models
from infini.llm.engine.buckets import Buckets
from infini.llm.engine.runner import ModelRunner

_PROBE_TOKENS: Final = 48
_PIECES: Final = (2, 3, 4, 5, 7, 8, 9, 12, 16, 24, 32)
_SEED: Final = 20240229


@dataclass(frozen=True, slots=True)
class Agreement:
    """What gives the same bits.

    Args:
        buckets: sizes of steps.
        most_tokens: most tokens of one request in a step.
    """

    buckets: Buckets
    most_tokens: int


def find(runner: ModelRunner, max_num_seqs: int) -> Agreement:
    """The sizes that give the same bits as the one for `max_num_seqs` requests that decode.

    Args:
        runner: its cache is written to, and must hold nothing.
        max_num_seqs: most requests of a step, or rows of logits when tokens are proposed.

    Raises:
        UnsupportedError: the kernels of one size do not agree with themselves.
    """
    buckets = runner.buckets
    base = buckets.num_tokens(min(max_num_seqs, buckets.tokens[-1]))
    probe = _Probe(runner, base)
    expected = probe.logits(base, 1, has_neighbours=False)
    if not np.array_equal(expected, probe.logits(base, 1, has_neighbours=True)):
        raise errors.UnsupportedError(
            "results of this device depend on neighbours in the batch",
            got=f"two arrangements of {base} tokens with different logits",
            fix="leave deterministic out",
        )

    def agrees(size: int, piece: int) -> bool:
        return all(
            np.array_equal(expected, probe.logits(size, piece, has_neighbours=flag)) for flag in (True, False)
        )

    sizes = tuple(size for size in buckets.tokens if size == base or agrees(size, 1))
    most = 1
    for piece in _PIECES:
        if piece > sizes[-1] or piece >= probe.length:
            break
        if not agrees(min(size for size in sizes if size >= piece), piece):
            break
        most = piece
    return Agreement(dataclasses.replace(buckets, tokens=sizes), most)


class _Probe:
    """One text whose last tokens are computed in several ways.

    Args:
        runner: computes.
        base: size of the steps that compute what is before, token by token.
    """

    def __init__(self, runner: ModelRunner, base: int) -> None:
        self._runner, self._base = runner, base
        capacity = runner.buckets.blocks_per_request * runner.block_size
        self.length = min(_PROBE_TOKENS, capacity)
        random = np.random.default_rng(_SEED)
        self._tokens = random.integers(0, runner.config.vocab_size, self.length).tolist()
        self._blocks = list(range(-(-self.length // runner.block_size)))
        self._num_computed = 0

    def logits(self, size: int, piece: int, *, has_neighbours: bool) -> np.ndarray:
        """Logits at the end of the text; its last `piece` + 1 tokens come in two steps."""
        begin = max(self.length - piece - 1, 0)
        for place in range(min(self._num_computed, begin), begin):
            self._step(self._base, place, place + 1, has_neighbours=False)
        self._num_computed = begin
        self._step(size, begin, begin + piece, has_neighbours=has_neighbours)
        return self._step(size, begin + piece, self.length, has_neighbours=has_neighbours)

    def _step(self, size: int, start: int, end: int, *, has_neighbours: bool) -> np.ndarray:
        runner, buckets = self._runner, self._runner.buckets
        rows = [models.Rows(self._tokens[start:end], start, self._blocks)]
        if has_neighbours:
            room = min(
                size - (end - start), buckets.num_requests - 1, runner.num_blocks - len(self._blocks), 3
            )
            others = [models.Rows([self._tokens[n]], 0, [len(self._blocks) + n]) for n in range(room)]
            rows = [*others[:1], *rows, *others[1:]]
        batch = models.make_batch(
            rows,
            block_size=runner.block_size,
            num_blocks=runner.num_blocks,
            num_tokens=size,
            num_requests=buckets.num_requests,
            blocks_per_request=buckets.blocks_per_request,
            num_wanted=buckets.num_wanted(size),
        )
        return runner.compute(batch)[min(len(rows) - 1, 1) if has_neighbours else 0]
