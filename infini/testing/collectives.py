"""Counting what programs over a mesh really send, to compare with what the partitioner predicts.

with count_collectives() as counts:
    step(params, batch)
assert counts == predicted(partitioned)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from infini.compiler import partition
from infini.core import comm as comm_
from infini.core.comm import Comm, Groups, PassingComm, ReduceOp, Rows
from infini.core.mesh import AbstractMesh

_REDUCTIONS: Final[dict[str, str]] = {"sum": "psum", "max": "pmax", "min": "pmin"}


@dataclass(frozen=True, slots=True)
class Count:
    """How often something was sent, and how many bytes each device gave to it in all."""

    calls: int
    nbytes: int


Counts: TypeAlias = dict[tuple[str, tuple[str, ...]], Count]  # by the name of a collective, and its axes


class CountingComm(PassingComm):
    """A `Comm` that counts the collectives that go through it, under JAX's names.

    Args:
        inner: what runs them.
        mesh: the mesh of the program, whose axes the counts are named by; axes of one device are left out.
        counts: where the counts are added.
    """

    def __init__(self, inner: Comm, mesh: AbstractMesh, counts: Counts | None = None) -> None:
        super().__init__(inner)
        self.mesh = mesh
        self.counts: Counts = {} if counts is None else counts
        self._axes = _axes_of_groups(mesh)

    def _note(self, name: str, rows: Rows, groups: Groups) -> None:
        key = name, self._axes[groups]
        before = self.counts.get(key, Count(0, 0))
        self.counts[key] = Count(before.calls + 1, before.nbytes + rows[0].nbytes)

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """Counts as `psum`, `pmax` or `pmin`."""
        self._note(_REDUCTIONS[op], rows, groups)
        return self.inner.all_reduce(rows, op, groups)

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Counts as `all_gather`."""
        self._note("all_gather", rows, groups)
        return self.inner.all_gather(rows, groups)

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Counts as `all_to_all`."""
        self._note("all_to_all", rows, groups)
        return self.inner.all_to_all(rows, groups)

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """Counts as `psum_scatter`."""
        self._note("psum_scatter", rows, groups)
        return self.inner.reduce_scatter(rows, op, groups)

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """Counts as `ppermute`."""
        self._note("ppermute", rows, groups)
        return self.inner.permute(rows, pairs, groups)

    def duplicate(self) -> Comm:
        """Another one that counts into the same table."""
        return CountingComm(self.inner.duplicate(), self.mesh, self.counts)


def _axes_of_groups(mesh: AbstractMesh) -> dict[Groups, tuple[str, ...]]:
    """The axes that groups of ranks stand for, in the order in which their members are counted."""
    large = [axis for axis, size in mesh.shape.items() if size > 1]
    found: dict[Groups, tuple[str, ...]] = {}
    for count in range(len(large) + 1):
        for axes in itertools.permutations(large, count):
            found.setdefault(mesh.groups(axes), axes)
    return found


@contextlib.contextmanager
def count_collectives() -> Iterator[Counts]:
    """Count the collectives of every program over a mesh that runs inside the block, in this process.

    Returns:
        A table that is filled while programs run.
    """
    counts: Counts = {}

    def observe(comm: Comm, mesh: AbstractMesh) -> Comm:
        return CountingComm(comm, mesh, counts)

    comm_.observers.append(observe)
    try:
        yield counts
    finally:
        comm_.observers.remove(observe)


def predicted(found: partition.Partitioned | Iterable[partition.Partitioned]) -> Counts:
    """What one run of each program will count.

    Raises:
        AssertionError: a collective stands in a loop or branch whose trips depend on values.
    """
    counts: Counts = {}
    for program in [found] if isinstance(found, partition.Partitioned) else found:
        sizes = program.mesh.shape
        for made in program.collectives:
            assert made.times is not None, f"{made} runs as often as values say"
            if not made.times:
                continue
            key = made.name, tuple(axis for axis in made.axes if sizes[axis] > 1)
            before = counts.get(key, Count(0, 0))
            counts[key] = Count(before.calls + made.times, before.nbytes + made.nbytes * made.times)
    return counts
