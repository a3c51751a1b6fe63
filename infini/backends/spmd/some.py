"""Communication of some of the ranks of a process, while the others are elsewhere: in a manual program,
devices may take different branches, and turn in loops as often as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from infini.core import errors
from infini.core.comm import Comm, Groups, PassingComm, ReduceOp, Rows


class SomeRanks(PassingComm):
    """A `Comm` of some ranks of another. Groups are those that have no other ranks in them.

    Args:
        inner: communication of all.
        numbers: which of its local ranks.
    """

    def __init__(self, inner: Comm, numbers: Sequence[int]) -> None:
        super().__init__(inner)
        self._numbers = tuple(numbers)
        self.local_ranks = tuple(inner.local_ranks[i] for i in numbers)

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_reduce`."""
        return self._through(lambda full: self.inner.all_reduce(full, op, groups), rows, groups)

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_gather`."""
        return self._through(lambda full: self.inner.all_gather(full, groups), rows, groups)

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_to_all`."""
        return self._through(lambda full: self.inner.all_to_all(full, groups), rows, groups)

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.reduce_scatter`."""
        return self._through(lambda full: self.inner.reduce_scatter(full, op, groups), rows, groups)

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """As `Comm.permute`."""
        return self._through(lambda full: self.inner.permute(full, pairs, groups), rows, groups)

    def duplicate(self) -> SomeRanks:
        """As `Comm.duplicate`."""
        return SomeRanks(self.inner.duplicate(), self._numbers)

    def _through(
        self, call: Callable[[Rows], list[np.ndarray]], rows: Rows, groups: Groups
    ) -> list[np.ndarray]:
        """Results of these ranks; the others, of groups of their own, give zeros that nobody reads."""
        check_present(self.local_ranks, groups)
        full = [np.zeros_like(rows[0])] * len(self.inner.local_ranks)
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
