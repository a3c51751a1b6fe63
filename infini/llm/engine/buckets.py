"""Sizes for which programs are compiled: every step is padded to one of them, so that few programs serve all.

Only the number of tokens varies, and with it the number of rows of logits; tables are as large as they can
become, because a kernel that reads them skips what is padding.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes of steps.

    Args:
        tokens: numbers of tokens T, rising.
        num_requests: requests R of every step.
        blocks_per_request: width B of block tables.
        most_wanted: most rows of logits L in a step.
    """

    tokens: tuple[int, ...]
    num_requests: int
    blocks_per_request: int
    most_wanted: int

    def num_tokens(self, count: int) -> int:
        """T of a step with so many tokens."""
        return self.tokens[bisect.bisect_left(self.tokens, count)]

    def num_wanted(self, num_tokens: int) -> int:
        """L of the program of a size T: as many rows as a step that only decodes has."""
        return min(num_tokens, self.most_wanted)

    @property
    def wanted(self) -> tuple[int, ...]:
        """All numbers of rows of logits."""
        return tuple(sorted({self.num_wanted(size) for size in self.tokens}))


def powers_up_to(count: int) -> tuple[int, ...]:
    """1, 2, 4 ... and the first that is not below a number.

    Example:
        >>> powers_up_to(20)
        (1, 2, 4, 8, 16, 32)
    """
    return tuple(1 << n for n in range((count - 1).bit_length() + 1))


def choose(
    *, max_num_batched_tokens: int, max_num_seqs: int, blocks_per_request: int, num_spec: int = 0
) -> Buckets:
    """Sizes for the limits of an engine.

    Args:
        max_num_batched_tokens: most tokens of a step.
        max_num_seqs: most requests of a step.
        blocks_per_request: blocks of the longest request.
        num_spec: most proposed tokens of a request.
    """
    tokens = powers_up_to(max_num_batched_tokens)
    return Buckets(
        (*tokens[:-1], max(max_num_batched_tokens, 1)),
        max_num_seqs,
        blocks_per_request,
        min(powers_up_to(max_num_seqs * (1 + num_spec))[-1], max_num_batched_tokens),
    )
