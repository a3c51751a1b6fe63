"""The form in which tokens reach a model: those of all requests one after the other.

A request takes part with any number of new tokens, so a prompt, a piece of a prompt and a single token to
decode differ in nothing but that number. All arrays are padded to sizes of which there are few, so that few
programs serve every mixture.

Shapes: T tokens, R requests, B blocks of a request, L tokens whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import errors, tree


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step computes; a pytree of int32 arrays.

    Args:
        tokens: ids (T,); 0 in padding.
        positions: place of each token in its own sequence (T,); 0 in padding.
        slots: block * block_size + offset, where the keys of each token go (T,); in padding a number out of
            range, whose keys are dropped.
        block_tables: blocks of each request in order (R, B); unused ones are 0.
        query_starts: number of the first token of each request, and the end (R + 1,); unused rows repeat the
            end.
        lengths: keys of each request in the cache, those of this step included (R,); 0 in unused rows.
        last: numbers of the tokens whose logits are wanted (L,).
    """

    tokens: Any  # Any: a leaf is an array, and what `tree.map` makes of it
    positions: Any  # Any: as tokens
    slots: Any  # Any: as tokens
    block_tables: Any  # Any: as tokens
    query_starts: Any  # Any: as tokens
    lengths: Any  # Any: as tokens
    last: Any  # Any: as tokens


_FIELDS = ("tokens", "positions", "slots", "block_tables", "query_starts", "lengths", "last")
tree.register_dataclass(Batch, list(_FIELDS), [])


@dataclass(frozen=True, slots=True)
class Rows:
    """One request of a step.

    Args:
        tokens: its new tokens, at least one.
        start: how many of its tokens are in the cache already.
        blocks: its blocks in order, enough for `start + len(tokens)` tokens.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]


def make(
    requests: Sequence[Rows],
    *,
    block_size: int,
    num_blocks: int,
    num_tokens: int | None = None,
    num_requests: int | None = None,
    blocks_per_request: int | None = None,
    is_every_token: bool = False,
    num_wanted: int | None = None,
) -> Batch:
    """A batch of NumPy arrays, padded.

    Args:
        requests: what takes part.
        block_size: tokens of a block.
        num_blocks: blocks of the cache.
        num_tokens: T; as many as there are when absent.
        num_requests: R; as many as there are when absent.
        blocks_per_request: B; as many as the longest has when absent.
        is_every_token: whether logits of every token are wanted, and not only of each request's last one.
        num_wanted: L; as many as are wanted, or R, when absent.

    Raises:
        ValueMismatchError: something does not fit the sizes.

    Example:
        >>> step = make([Rows([5, 6, 7], 0, [0]), Rows([8], 20, [2, 1])], block_size=16, num_blocks=4)
        >>> step.slots.tolist(), step.last.tolist()
        ([0, 1, 2, 20], [2, 3])
    """
    counts = [len(request.tokens) for request in requests]
    total = sum(counts)
    num_tokens = total if num_tokens is None else num_tokens
    num_requests = len(requests) if num_requests is None else num_requests
    longest = max((len(request.blocks) for request in requests), default=1)
    blocks_per_request = longest if blocks_per_request is None else blocks_per_request
    wanted = total if is_every_token else len(requests)
    num_wanted = (num_tokens if is_every_token else num_requests) if num_wanted is None else num_wanted
    for what, size, room in (
        ("tokens", total, num_tokens),
        ("requests", len(requests), num_requests),
        ("blocks of a request", longest, blocks_per_request),
        ("tokens whose logits are wanted", wanted, num_wanted),
    ):
        if size > room:
            raise errors.ValueMismatchError(
                f"a batch has no room for so many {what}", got=str(size), expected=f"at most {room}"
            )
    tokens, positions = np.zeros(num_tokens, np.int32), np.zeros(num_tokens, np.int32)
    slots = np.full(num_tokens, num_blocks * block_size, np.int32)
    tables = np.zeros((num_requests, blocks_per_request), np.int32)
    starts, lengths = np.full(num_requests + 1, total, np.int32), np.zeros(num_requests, np.int32)
    last = np.zeros(num_wanted, np.int32)
    first = 0
    for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
        length = request.start + count
        if count == 0 or length > len(request.blocks) * block_size:
            raise errors.ValueMismatchError(
                "the blocks of a request do not hold its tokens",
                got=f"{length} tokens, {count} of them new, and {len(request.blocks)} blocks of {block_size}",
            )
        place = np.arange(request.start, length)
        new = slice(first, first + count)
        tokens[new], positions[new] = request.tokens, place
        slots[new] = np.asarray(request.blocks)[place // block_size] * block_size + place % block_size
        tables[row, : len(request.blocks)] = request.blocks
        starts[row], lengths[row] = first, length
        first += count
        last[row] = first - 1 if not is_every_token else last[row]
    if is_every_token:
        last[:total] = np.arange(total)
    return Batch(tokens, positions, slots, tables, starts, lengths, last)
