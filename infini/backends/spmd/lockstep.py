"""Communication inside one process: every rank is local, so a collective is arithmetic over the rows.
Deterministic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from infini.core import dtypes
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

    def broadcast(self, content: bytes) -> bytes:
        """The content."""
        return content

    def barrier(self) -> None:
        """Nothing to wait for."""

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
