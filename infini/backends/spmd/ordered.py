"""Reductions in the order of the ranks, made of exchanges that add nothing up: each member of a group folds
one part, and the parts are gathered. They travel in the dtype of the arrays, as many bytes as for a sum on
the way, and the result has the same bits on every comm.
"""

from __future__ import annotations

import numpy as np

from infini.backends.spmd.lockstep import reduce_rows
from infini.core.comm import Comm, Groups, PassingComm, ReduceOp, Rows


def all_reduce(comm: Comm, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
    """As `Comm.all_reduce`, by `all_to_all` and `all_gather`."""
    (size,) = {len(group) for group in groups}
    shape, count = rows[0].shape, rows[0].size
    parts = reduce_scatter(comm, [_blocks(row, size) for row in rows], op, groups)
    return [found.reshape(-1)[:count].reshape(shape) for found in comm.all_gather(parts, groups)]


def reduce_scatter(comm: Comm, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
    """As `Comm.reduce_scatter`, by `all_to_all`."""
    return [reduce_rows(list(blocks), op) for blocks in comm.all_to_all(rows, groups)]


def _blocks(row: np.ndarray, size: int) -> np.ndarray:
    """The elements of a row in `size` equal blocks; the last one is filled up."""
    flat = row.reshape(-1)
    missing = -flat.size % size
    padded = np.concatenate([flat, np.zeros(missing, flat.dtype)]) if missing else flat
    return padded.reshape(size, -1)


class OrderedComm(PassingComm):
    """A comm whose reductions have one order; everything else is that of another comm.

    Args:
        inner: the other comm.
    """

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """In the order of the members."""
        return all_reduce(self.inner, rows, op, groups)

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """In the order of the members."""
        return reduce_scatter(self.inner, rows, op, groups)

    def duplicate(self) -> OrderedComm:
        """An ordered one of a duplicate of the other comm."""
        return OrderedComm(self.inner.duplicate())
