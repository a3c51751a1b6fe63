"""Communication between the devices of one program: the protocol that backends implement.

The collectives of a program are cut out by the backend and handed to a `Comm`, which knows the ranks but
not the mesh:
a `Group` lists the ranks that take part. Buffers here are host arrays or device buffers of the backend
that made the Comm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

ReduceOp: TypeAlias = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that take part in a collective, in the order of their index along the axis."""

    ranks: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


class Comm(Protocol):
    """Collectives among processes, each rank holding one device. All calls are blocking and in program
    order per group.
    """

    rank: int
    size: int

    def all_reduce(self, array: np.ndarray, op: ReduceOp, group: Group) -> np.ndarray:
        """Elementwise reduction over the group; bfloat16 and float16 sums accumulate in float32."""

    def all_gather(self, array: np.ndarray, group: Group) -> np.ndarray:
        """Arrays of the group stacked along a fresh leading axis."""

    def all_to_all(self, array: np.ndarray, group: Group) -> np.ndarray:
        """Block i of the leading axis goes to member i; blocks received are stacked in the order of the
        members.
        """

    def permute(self, array: np.ndarray, pairs: Sequence[tuple[int, int]], group: Group) -> np.ndarray:
        """Send along (source, destination) pairs of group indices; a member that receives nothing gets
        zeros.
        """

    def barrier(self) -> None:
        """Wait for every rank."""
