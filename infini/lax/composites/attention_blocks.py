"""Attention a block of keys at a time: what each block counts for, and how results of several join.

Keys and queries are cut into equally many blocks. A block of queries that meets a block of keys sees a band
that depends only on how far apart the two are, so it is known before anything runs. The softmax is carried
along by the largest score and the sum of every row (M. Milakov and N. Gimelshein,
https://arxiv.org/abs/1805.02867).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.core import dtypes, trace
from infini.core.value import Value
from infini.lax import elementwise as e, families
from infini.lax.composites import attention_letters as letters_
from infini.lax.composites.attention_letters import Band, Letters
from infini.lax.families import bind_scalars

# A fill below this gives masked keys the weight 0 next to any score.
UNSEEN: Final = -1e8
# Of a block: the band that is left of it, or None when no score in it counts.
Seen: TypeAlias = Band | None
# Result, largest score and sum of every row: floats of at least 32 bits.
Rows: TypeAlias = tuple[Value, Value, Value]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a ring: every device has the keys of the device so far before it.

    Args:
        distance: how far.
        before: what a device sees of keys that lie before its queries.
        after: what it sees when they lie behind them, because the ring has begun anew.
    """

    distance: int
    before: Seen
    after: Seen


def turns(num_blocks: int, size: int, band: Band, *, may_skip: bool) -> list[Turn]:
    """The turns in which any device sees something, its own keys first.

    Args:
        num_blocks: devices in the ring.
        size: queries, and keys, of each.
        band: which keys a query looks at.
        may_skip: whether keys outside the band have the weight 0 in every row.
    """
    found = []
    for distance in range(num_blocks):
        before = _seen(band, -distance * size, size, may_skip=may_skip)
        after = _seen(band, (num_blocks - distance) * size, size, may_skip=may_skip) if distance else before
        if not distance or before is not None or after is not None:
            found.append(Turn(distance, before, after))
    return found


def _seen(band: Band, offset: int, size: int, *, may_skip: bool) -> Seen:
    """The band of a block whose keys begin `offset` after its queries."""
    low, high = (None if end is None else end - offset for end in band)
    farthest = size - 1
    if may_skip and ((low is not None and low > farthest) or (high is not None and high < -farthest)):
        return None
    return (
        None if low is None or low <= -farthest else low,
        None if high is None or high >= farthest else high,
    )


def may_skip(band: Band, num_queries: int, num_keys: int, fill: float, *, num_extras: int) -> bool:
    """Whether keys outside the band may be left out: their weight is 0 in every row."""
    low, high = band
    has_key = (high is None or high >= 0) and (low is None or num_queries - 1 + low <= num_keys - 1)
    is_alone = not num_extras or fill == -math.inf
    return band != (None, None) and has_key and is_alone and fill <= UNSEEN


def share(band: Band, num_queries: int, num_keys: int) -> float:
    """Part of the scores that a band leaves."""
    low, high = band
    seen = 0
    for row in range(num_queries):
        first = 0 if low is None else max(0, row + low)
        last = num_keys if high is None else min(num_keys, row + high + 1)
        seen += max(0, last - first)
    return seen / (num_queries * num_keys) if num_queries * num_keys else 1.0


def wide(x: Value) -> Value:
    """A float of at least 32 bits."""
    return e.convert_element_type(x, dtypes.float32 if x.dtype.itemsize <= 2 else x.dtype)


def joined(first: Rows, second: Rows, letters: Letters, *, may_be_empty: bool) -> Rows:
    """Attention over the keys of both.

    Args:
        first: over some keys.
        second: over others.
        letters: of the operands.
        may_be_empty: whether scores may be minus infinity, so that a row of one of them may have no key and
            be no number.
    """
    largest = trace.bind1(e.max_p, first[1], second[1])
    parts = []
    for out, top, total in (first, second):
        if may_be_empty:
            has_key = bind_scalars(e.gt_p, top, -math.inf)
            total = _where(has_key, total)
            out = _where(_beside(has_key, letters), out)
        parts.append((out, trace.bind1(e.mul_p, e.exp(trace.bind1(e.sub_p, top, largest)), total)))
    total = trace.bind1(e.add_p, parts[0][1], parts[1][1])
    terms = [
        trace.bind1(e.mul_p, out, _beside(trace.bind1(e.div_p, own, total), letters)) for out, own in parts
    ]
    return trace.bind1(e.add_p, *terms), largest, total


def _where(condition: Value, x: Value) -> Value:
    """`x` where the condition holds, 0 elsewhere."""
    return trace.bind1(e.select_n_p, condition, families.like(0.0, x), x)


def _beside(rows: Value, letters: Letters) -> Value:
    """What there is one of per row, beside the result."""
    return letters_.spread(rows, letters.rows, letters.out)
