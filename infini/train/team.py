"""The devices that share a run: each takes its rows of the batch, everything else is on all of them.

A run is shared when it was started under `mpirun` (see `infini.parallel.initialize`), or when one process
simulates several devices. The partitioner sums the gradients; this file only says where arrays lie, and lets
the processes agree on what each finds out for itself: its clock, and Ctrl-C.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import parallel, tree
from infini.core import config
from infini.sharding import Mesh, NamedSharding, P, make_mesh

_SPLIT: Final = P("data")
_WHOLE: Final = P()


@dataclass(frozen=True, slots=True)
class Team:
    """Who takes part.

    Args:
        mesh: all devices; None for the default one alone.
        index: number of this process.
        count: number of processes.
    """

    mesh: Mesh | None = None
    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks, and writes what all have."""
        return self.index == 0

    @property
    def num_devices(self) -> int:
        """Devices that share a batch."""
        return 1 if self.mesh is None else self.mesh.devices.size

    def jit(
        self, function: Callable[..., Any], *, split: Sequence[bool], **options: Any
    ) -> Callable[..., Any]:
        """Compile a function for the team. Its results are whole everywhere.

        Args:
            function: of as many arguments as `split` has.
            split: which arguments each device has its rows of.
            **options: options of `jit`.
        """
        if self.mesh is None:
            return inf.jit(function, **options)
        specs = tuple(_SPLIT if is_split else _WHOLE for is_split in split)
        return inf.shard(function, mesh=self.mesh, in_specs=specs, out_specs=_WHOLE, **options)

    def whole(self, leaves: Any) -> Any:  # Any: a tree of arrays
        """Arrays that each process has, on every device."""
        if self.mesh is None:
            return leaves
        place = NamedSharding(self.mesh, _WHOLE)
        return tree.map(lambda leaf: inf.device_put(leaf, place), leaves)

    def types(self, leaves: Any) -> Any:  # Any: a tree of types of arrays
        """Types of arrays that `whole` has placed."""
        if self.mesh is None:
            return leaves
        place = NamedSharding(self.mesh, _WHOLE)
        return tree.map(lambda leaf: leaf.update(sharding=place), leaves)

    def rows(self, own: np.ndarray) -> Any:  # Any: an array
        """One array of the rows that the processes have."""
        if self.mesh is None:
            return own
        return inf.make_array_from_process_local_data(NamedSharding(self.mesh, _SPLIT), own)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The largest of each value that a process has found; call it in all of them."""
        if self.count == 1 or self.mesh is None:
            return values
        own_devices = self.num_devices // self.count
        rows = self.rows(np.tile(np.array(values, np.float64), (own_devices, 1)))
        return tuple(np.asarray(_largest(self)(rows)).tolist())


def find() -> Team:
    """The team that this process is in."""
    count = parallel.process_count()
    if count == 1 and config.get("cpu_devices") == 1:
        return Team()
    devices = inf.devices()
    return Team(make_mesh((len(devices),), ("data",)), parallel.process_index(), count)


@functools.lru_cache(maxsize=8)
def _largest(team: Team) -> Callable[..., Any]:
    return team.jit(lambda rows: inp.max(rows, axis=0), split=(True,))
