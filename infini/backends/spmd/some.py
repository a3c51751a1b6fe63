"""Communication of some of the ranks of a process, while the others are elsewhere: in a manual program,
devices may take different branches, and turn in loops as often as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from infini.core import errors
from infini.core.comm import Comm, Groups, Pending, ReduceOp, Rows


class SomeRanks:
    """A `Comm` of some ranks of another. Groups are those that have no other ranks in them.

    Args:
        inner: communication of all.
        numbers: which of its local ranks.
    """

    def __init__(self, inner: Comm, numbers: Sequence[int]) -> None:
        self._inner, self._numbers = inner, tuple(numbers)
        self.local_ranks = tuple(inner.local_ranks[i] for i in numbers)

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_reduce`."""
        return self._through(lambda full: self._inner.all_reduce(full, op, groups), rows, groups)

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_gather`."""
        return self._through(lambda full: self._inner.all_gather(full, groups), rows, groups)

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_to_all`."""
        return self._through(lambda full: self._inner.all_to_all(full, groups), rows, groups)

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.reduce_scatter`."""
        return self._through(lambda full: self._inner.reduce_scatter(full, op, groups), rows, groups)

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """As `Comm.permute`."""
        return self._through(lambda full: self._inner.permute(full, pairs, groups), rows, groups)

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """As `Comm.send`."""
        self._inner.send(row, source, destination, tag)

    def start_send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> Pending:
        """As `Comm.start_send`."""
        return self._inner.start_send(row, source, destination, tag)

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """As `Comm.recv`."""
        return self._inner.recv(shape, dtype, source, destination, tag)

    def broadcast(self, content: bytes) -> bytes:
        """As `Comm.broadcast`."""
        return self._inner.broadcast(content)

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """As `Comm.gather_bytes`."""
        return self._inner.gather_bytes(content)

    def barrier(self) -> None:
        """As `Comm.barrier`."""
        self._inner.barrier()

    def duplicate(self) -> SomeRanks:
        """As `Comm.duplicate`."""
        return SomeRanks(self._inner.duplicate(), self._numbers)

    def _through(
        self, call: Callable[[Rows], list[np.ndarray]], rows: Rows, groups: Groups
    ) -> list[np.ndarray]:
        """Results of these ranks; the others, of groups of their own, give zeros that nobody reads."""
        check_present(self.local_ranks, groups)
        full = [np.zeros_like(rows[0])] * len(self._inner.local_ranks)
        for number, row in zip(self._numbers, rows, strict=True):
            full[number] = row
        found = call(full)
        return [found[number] for number in self._numbers]


def check_present(ranks: Sequence[int], groups: Groups) -> None:
    """Refuse a collective for which only some of a group are there.

    Args:
        ranks: those that are.
        groups: who takes part.

    Raises:
        CollectiveError: a group has others, too.
    """
    here = set(ranks)
    for group in groups:
        present = here.intersection(group)
        if present and len(present) < len(group):
            raise errors.CollectiveError(
                "devices that take different branches meet in a collective",
                got=f"of the group {list(group)} only {sorted(present)} are there",
                expected="a condition that is the same for all devices of a group",
                fix="reduce the condition over the axes of the collective first, such as with lax.pmax",
            )
