"""Arrays with a row per example, cut into microbatches, and where these go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import errors, mesh as mesh_, trace, tree
from infini.core.array import Array
from infini.core.ir import ArrayType
from infini.core.mesh import P, PartitionSpec
from infini.core.sharding import Mesh, NamedSharding
from infini.core.value import Value
from infini.parallel.stages import Operand
from infini.transforms import flat, placement


@dataclass(frozen=True, slots=True)
class Rows:
    """A pytree of arrays with a row per example.

    Args:
        leaves: the arrays: on the host, or as they are when parts of them are elsewhere.
        tree: their structure.
        num_rows: rows of a microbatch.
        spec: how rows are split.
    """

    leaves: tuple[np.ndarray | Array, ...]
    tree: tree.PyTreeDef
    num_rows: int
    spec: PartitionSpec

    @classmethod
    def of(cls, x: Any, what: str, count: int, spec: PartitionSpec) -> Rows:  # Any: a pytree
        """The leaves of `x`.

        Args:
            x: pytree of arrays.
            what: name of the argument, for messages.
            count: number of microbatches.
            spec: how rows are split.

        Raises:
            ValueMismatchError: they differ in their rows, or these do not divide into `count` parts.
        """
        leaves, treedef = tree.flatten(x)
        values = flat.values(leaves, f"{what} of a pipeline")
        sizes = {v.shape[0] if v.ndim else None for v in values}
        if len(sizes) > 1 or None in sizes:
            raise errors.ValueMismatchError(
                f"pipeline: {what} have a row per example in front",
                got=", ".join(str(v.type) for v in values),
                expected="arrays with one leading dimension of one size",
            )
        size = sizes.pop() if sizes else 0
        assert size is not None
        if size % count or (values and not size):
            raise errors.ValueMismatchError(
                f"pipeline: the {what} cannot be cut into {count} equal microbatches",
                got=f"{size} rows",
                expected=f"a multiple of {count} rows",
                fix="change num_microbatches or the size of the batch",
            )
        arrays = map(trace.to_array, values)
        found = tuple(a.to_host() if a.is_fully_addressable else a for a in arrays)
        return cls(found, treedef, size // count, spec)

    def where_even(self, mesh: Mesh) -> Rows:
        """The same rows, whole on each device if the axes that split them do not divide them."""
        parts = mesh.abstract.size_of(self.spec[0]) if len(self.spec) else 1
        return self if self.num_rows % parts == 0 else dataclasses.replace(self, spec=P())

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Types of the leaves of a microbatch."""
        return tuple((ArrayType((self.num_rows, *x.shape[1:]), x.dtype), False) for x in self.leaves)

    @property
    def specs(self) -> tuple[PartitionSpec, ...]:
        """How the leaves of a microbatch are split."""
        return tuple(P(*mesh_.trim(self.spec[: x.ndim])) for x in self.leaves)

    def placed(self, number: int, mesh: Mesh) -> list[Array]:
        """The leaves of a microbatch on the devices of a rank."""
        part = slice(number * self.num_rows, (number + 1) * self.num_rows)
        pairs = zip(self.leaves, self.specs, strict=True)
        return [put(leaf[part], NamedSharding(mesh, spec)) for leaf, spec in pairs]


def put(x: Any, where: NamedSharding) -> Array:  # Any: what an index of an array gives
    """An array somewhere; one of the host keeps its dtype."""
    if isinstance(x, np.ndarray):
        return placement.make_array_from_callback(x.shape, where, lambda index: x[index], x.dtype)
    found: Array = placement.device_put(x, where)
    return found


def spec_on(x: Value, mesh: Mesh) -> PartitionSpec | None:
    """How an array is split over a mesh; None when it is elsewhere."""
    if isinstance(x, Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh:
        return P(*mesh_.trim(x.sharding.spec))
    return None


def placed(values: Sequence[Value], specs: Sequence[PartitionSpec], mesh: Mesh) -> list[Array]:
    """Values on the devices of a rank, those that are there as they are."""
    found = []
    for x, spec in zip(values, specs, strict=True):
        now = spec_on(x, mesh)
        is_there = now is not None and now == spec
        found.append(x if is_there else put(x, NamedSharding(mesh, spec)))
    return found  # type: ignore[return-value]  # what is there is an array
