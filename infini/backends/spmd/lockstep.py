"""Communication inside one process: every rank is local, so a collective is arithmetic over the rows.
Deterministic.
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from infini.core import dtypes, errors
from infini.core.comm import Groups, ReduceOp, Rows

_UFUNCS: Final[dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
}


class LockstepComm:
    """All ranks of a program in one process."""

    def __init__(self, size: int) -> None:
        self.local_ranks = tuple(range(size))
        # Messages on their way, by source, destination and tag.
        self._sent: defaultdict[tuple[int, int, int], deque[np.ndarray]] = defaultdict(deque)

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """Fold the rows of each group from its first member on."""
        return self._by_group(groups, lambda group: [reduce_rows([rows[r] for r in group], op)] * len(group))

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Stack the rows of each group."""
        return self._by_group(groups, lambda group: [np.stack([rows[r] for r in group])] * len(group))

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Block i of each member goes to member i."""
        return self._by_group(
            groups, lambda group: [np.stack([rows[r][i] for r in group]) for i in range(len(group))]
        )

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """Fold block i of the rows of each group for member i."""
        return self._by_group(
            groups,
            lambda group: [reduce_rows([rows[r][i] for r in group], op) for i in range(len(group))],
        )

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """Rows by (source, destination); zeros for the others."""
        source = {target: origin for origin, target in pairs}
        return self._by_group(
            groups,
            lambda group: [
                rows[group[source[i]]] if i in source else np.zeros_like(rows[rank])
                for i, rank in enumerate(group)
            ],
        )

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """Keep a copy until it is received; never waits."""
        self._sent[source, destination, tag].append(np.array(row))

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """The oldest message that was not received yet.

        Raises:
            CollectiveError: there is none; or it has another type.
        """
        waiting = self._sent.get((source, destination, tag))
        if not waiting:
            raise errors.CollectiveError(
                f"device {destination} would wait for ever for a message of device {source}",
                got=f"no message with tag {tag} was sent",
                fix="devices of one process take turns: send before the other side receives",
            )
        found = waiting.popleft()
        if (found.shape, found.dtype) != (shape, dtype):
            raise errors.CollectiveError(
                f"device {source} sent another array than device {destination} receives",
                got=f"{found.dtype}{list(found.shape)}",
                expected=f"{dtype}{list(shape)}",
            )
        return found

    def broadcast(self, content: bytes) -> bytes:
        """The content."""
        return content

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """The content: there is one process."""
        return [content]

    def barrier(self) -> None:
        """Nothing to wait for."""

    def duplicate(self) -> LockstepComm:
        """One without messages on their way."""
        return LockstepComm(len(self.local_ranks))

    def _by_group(
        self, groups: Groups, results: Callable[[tuple[int, ...]], list[np.ndarray]]
    ) -> list[np.ndarray]:
        found = {rank: row for group in groups for rank, row in zip(group, results(group), strict=True)}
        return [found[rank] for rank in self.local_ranks]


def reduce_rows(rows: Sequence[np.ndarray], op: ReduceOp) -> np.ndarray:
    """Fold arrays in order; sums of 16-bit floats accumulate in float32 and are rounded once."""
    dtype = rows[0].dtype
    is_small = dtype in dtypes.FLOATS and dtype.itemsize <= 2
    wide = [row.astype(np.float32) for row in rows] if is_small else rows
    with np.errstate(all="ignore"):
        return np.asarray(functools.reduce(_UFUNCS[op], wide)).astype(dtype, copy=False)
