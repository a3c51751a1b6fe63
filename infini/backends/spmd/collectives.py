"""Collective equations on rows of host arrays: which ranks take part, and how blocks are cut and joined
around a `Comm`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.backends.spmd import activity
from infini.backends.spmd.lockstep import reduce_rows
from infini.core.comm import Comm, Groups, Rows
from infini.core.ir import Equation
from infini.core.mesh import AbstractMesh


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh, and the ranks of it that this process holds."""

    abstract: AbstractMesh
    local_ranks: tuple[int, ...]

    def groups(self, axes: tuple[str, ...]) -> Groups:
        """Ranks that differ along these axes only, in the order of their index there."""
        found: dict[tuple[int, ...], list[tuple[tuple[int, ...], int]]] = {}
        for rank in range(self.abstract.size):
            at = self.abstract.coordinates(rank)
            rest = tuple(i for name, i in at.items() if name not in axes)
            found.setdefault(rest, []).append((tuple(at[name] for name in axes), rank))
        return tuple(tuple(rank for _, rank in sorted(members)) for members in found.values())


def run(equation: Equation, rows: Rows, mesh: Mesh, comm: Comm) -> list[np.ndarray]:
    """Results of a collective for each rank of this process."""
    with activity.of_equation(equation):
        return _COLLECTIVES[equation.op.name](rows, mesh, comm, **equation.attrs)


def _all_reduce(op: Any) -> Callable[..., list[np.ndarray]]:  # Any: a ReduceOp
    def reduce(rows: Rows, mesh: Mesh, comm: Comm, *, axes: tuple[str, ...], sizes: Any) -> list[np.ndarray]:
        return comm.all_reduce(rows, op, mesh.groups(axes))

    return reduce


def _all_gather(
    rows: Rows, mesh: Mesh, comm: Comm, *, axis_name: str, size: int, dimension: int
) -> list[np.ndarray]:
    return [
        np.concatenate(list(stacked), axis=dimension)
        for stacked in comm.all_gather(rows, mesh.groups((axis_name,)))
    ]


def _blocks(row: np.ndarray, size: int, dimension: int) -> np.ndarray:
    return np.stack(np.split(row, size, axis=dimension))


def _psum_scatter(
    rows: Rows, mesh: Mesh, comm: Comm, *, axis_name: str, size: int, dimension: int
) -> list[np.ndarray]:
    blocks = [_blocks(row, size, dimension) for row in rows]
    return [reduce_rows(list(found), "sum") for found in comm.all_to_all(blocks, mesh.groups((axis_name,)))]


def _all_to_all(
    rows: Rows, mesh: Mesh, comm: Comm, *, axis_name: str, size: int, split: int, concat: int
) -> list[np.ndarray]:
    blocks = [_blocks(row, size, split) for row in rows]
    found = comm.all_to_all(blocks, mesh.groups((axis_name,)))
    return [np.concatenate(list(stacked), axis=concat) for stacked in found]


def _ppermute(
    rows: Rows, mesh: Mesh, comm: Comm, *, axis_name: str, size: int, permutation: tuple[tuple[int, int], ...]
) -> list[np.ndarray]:
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    return comm.permute(rows, permutation, mesh.groups(axes))


def _axis_index(rows: Rows, mesh: Mesh, comm: Comm, *, axis_name: str, size: int) -> list[np.ndarray]:
    return [np.asarray(mesh.abstract.coordinates(rank)[axis_name], np.int32) for rank in mesh.local_ranks]


_COLLECTIVES: Final[dict[str, Callable[..., list[np.ndarray]]]] = {
    "psum": _all_reduce("sum"),
    "pmax": _all_reduce("max"),
    "pmin": _all_reduce("min"),
    "all_gather": _all_gather,
    "psum_scatter": _psum_scatter,
    "all_to_all": _all_to_all,
    "ppermute": _ppermute,
    "axis_index": _axis_index,
}
