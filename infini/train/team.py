"""The devices that share a run, and where each thing of the run lies: a mesh and a recipe for it.

A run is shared when it was started under `mpirun` (see `infini.parallel.initialize`), or when one process
simulates several devices. The partitioner finds what has to be sent; this file only says where arrays lie,
and lets the processes agree on what each finds out for itself: its clock, and Ctrl-C.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import parallel, tree
from infini.core import config
from infini.parallel import recipes
from infini.sharding import Mesh, NamedSharding, P, make_mesh
from infini.train.layouts import Layout as Layout

WHOLE: Final = P()


@dataclass(frozen=True, slots=True)
class Team:
    """Who takes part.

    Args:
        mesh: all devices; None for the default one alone.
        recipe: what the axes of the mesh split.
        index: number of this process.
        count: number of processes.
    """

    mesh: Mesh | None = None
    recipe: recipes.Recipe = recipes.Recipe()  # noqa: RUF009  # immutable
    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks, and writes what all have."""
        return self.index == 0

    @property
    def num_parts(self) -> int:
        """Parts of a batch."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self._batch_axes)

    @property
    def is_pipelined(self) -> bool:
        """Whether the model is cut into stages."""
        return self.mesh is not None and "pp" in self.mesh.axis_names

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many equal shares of a batch this process has to give: those of processes that hold
        other parts of the same rows are equal. Of a pipeline all give all: its microbatches are cut from the
        whole batch, and the first and the last stage read different things of them.
        """
        if self.mesh is None or self.is_pipelined:
            return 0, 1
        abstract, axes = self.mesh.abstract, self._batch_axes
        own = set()
        for rank in self.mesh.local_ranks:
            number, at = 0, abstract.coordinates(rank)
            for axis in axes:
                number = number * abstract.shape[axis] + at[axis]
            own.add(number)
        return min(own) // len(own), self.num_parts // len(own)

    @property
    def _batch_axes(self) -> tuple[str, ...]:
        return self.recipe.batch[0] if self.recipe.batch else ()

    def specs(self, state: Any, mesh: Mesh | None = None) -> Any:  # Any: a state, or types of one
        """Where the state of a run lies.

        Args:
            state: {"params": ..., "optimizer": ...}
            mesh: the devices of a stage, where it is that of one.
        """
        mesh = self.mesh if mesh is None else mesh
        return {
            "params": self.recipe.params(state["params"], mesh),
            "optimizer": self.recipe.optimizer(state["optimizer"], mesh),
        }

    def jit(self, function: Callable[..., Any], in_specs: Any, out_specs: Any, **options: Any) -> Any:
        """Compile a function for the team.

        Args:
            function: what to compile.
            in_specs: a `P`, or a tree of them, for each argument.
            out_specs: the same for the results.
            **options: options of `jit`.
        """
        if self.mesh is None:
            return inf.jit(function, **options)
        return inf.shard(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            named=self.recipe.of_names(),
            strategies=self.recipe.strategies,
            **options,
        )

    def placed(self, state: Any) -> Any:  # Any: a state, which each process has
        """The state where it lies."""
        if self.mesh is None:
            return state
        return tree.map(inf.device_put, state, self._places(state))

    def types(self, state: Any) -> Any:  # Any: a state of types of arrays
        """Types of the arrays of a state that is placed."""
        if self.mesh is None:
            return state
        return tree.map(lambda leaf, place: leaf.update(sharding=place), state, self._places(state))

    def _places(self, state: Any) -> Any:  # Any: trees
        assert self.mesh is not None
        mesh, is_spec = self.mesh, lambda x: isinstance(x, P)
        return tree.map(lambda spec: NamedSharding(mesh, spec), self.specs(state), is_leaf=is_spec)

    def whole(self, leaves: Any) -> Any:  # Any: a tree of arrays
        """The arrays with all their elements in every process."""
        if self.mesh is None:
            return leaves
        return inf.shard(lambda x: x, mesh=self.mesh, out_specs=WHOLE)(leaves)

    def rows(self, own: np.ndarray) -> Any:  # Any: an array
        """One batch of the rows that the processes give, each its `share`."""
        if self.mesh is None:
            return own
        place = NamedSharding(self.mesh, self.recipe.of_batch(1))
        return inf.make_array_from_process_local_data(place, own)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The largest of each value that a process has found; call it in all of them."""
        if self.count == 1 or self.mesh is None:
            return values
        everyone = NamedSharding(self.mesh, P(self.mesh.axis_names))
        own = np.tile(np.array(values, np.float64), (len(self.mesh.local_ranks), 1))
        rows = inf.make_array_from_process_local_data(everyone, own)
        return tuple(np.asarray(_largest(self.mesh)(rows)).tolist())


def find(layout: Layout = Layout()) -> Team:  # noqa: B008  # immutable
    """The team that this process is in.

    Args:
        layout: how its devices are arranged.

    Raises:
        ValueMismatchError: there are more or fewer devices than the layout has.
    """
    count = parallel.process_count()
    if count == 1 and config.get("cpu_devices") == 1:
        layout.axes(1)
        return Team()
    devices = inf.devices()
    axes = layout.axes(len(devices))
    mesh = make_mesh(tuple(axes.values()), tuple(axes))
    return Team(mesh, layout.recipe(axes), parallel.process_index(), count)


@functools.lru_cache(maxsize=8)
def _largest(mesh: Mesh) -> Callable[..., Any]:
    rows = P(mesh.axis_names)
    return inf.shard(lambda rows: inp.max(rows, axis=0), mesh=mesh, in_specs=rows, out_specs=WHOLE)
