"""Collective equations on rows of host arrays: which ranks take part, and how blocks are cut and joined
around a `Comm`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.backends.spmd import activity
from infini.core import memory
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
        return self.abstract.groups(axes)


def run(equation: Equation, columns: Sequence[Rows], mesh: Mesh, comm: Comm) -> list[list[np.ndarray]]:
    """Results of a collective: for each one array per rank of this process, like the operands.

    Operands of one equation travel in one message, those that are added up in one for each dtype.
    """
    with activity.of_equation(equation):
        return _COLLECTIVES[equation.op.name](columns, mesh, comm, **equation.attrs)


Columns = list[list[np.ndarray]]


def _together(columns: Sequence[Rows], keep: int, send: Callable[[Rows], list[np.ndarray]]) -> Columns:
    """Results of `send` for several operands of one dtype in one message.

    Args:
        columns: operands, each with one array per rank.
        keep: leading dimensions of a message that are blocks for other ranks.
        send: a collective over messages. It may drop or add leading dimensions of blocks.
    """
    if len(columns) == 1:
        return [send(columns[0])]
    shapes = [column[0].shape[keep:] for column in columns]
    sizes = [math.prod(shape) for shape in shapes]
    messages = [
        np.concatenate([row.reshape(*row.shape[:keep], -1) for row in rows], axis=keep)
        for rows in zip(*columns, strict=True)
    ]
    found = send(messages)
    edges = [0, *itertools.accumulate(sizes)]
    return [
        [row[..., start:end].reshape((*row.shape[:-1], *shape)) for row in found]
        for start, end, shape in zip(edges, edges[1:], shapes, strict=False)
    ]


def _by_dtype(columns: Sequence[Rows], keep: int, send: Callable[[Rows], list[np.ndarray]]) -> Columns:
    """`_together` for operands of several dtypes, one message for each."""
    numbers: dict[np.dtype, list[int]] = {}
    for i, column in enumerate(columns):
        numbers.setdefault(column[0].dtype, []).append(i)
    found: dict[int, list[np.ndarray]] = {}
    for group in numbers.values():
        found.update(zip(group, _together([columns[i] for i in group], keep, send), strict=True))
    return [found[i] for i in range(len(columns))]


def _all_reduce(op: Any) -> Callable[..., Columns]:  # Any: a ReduceOp
    def reduce(
        columns: Sequence[Rows], mesh: Mesh, comm: Comm, *, axes: tuple[str, ...], sizes: Any
    ) -> Columns:
        groups = mesh.groups(axes)
        return _by_dtype(columns, 0, lambda rows: comm.all_reduce(rows, op, groups))

    return reduce


def _all_gather(
    columns: Sequence[Rows],
    mesh: Mesh,
    comm: Comm,
    *,
    axes: tuple[str, ...],
    sizes: Any,
    dimensions: tuple[int, ...],
) -> Columns:
    groups = mesh.groups(axes)
    stacked = _by_dtype(columns, 0, lambda rows: comm.all_gather(rows, groups))
    return [
        [_joined(parts, dimension) for parts in column]
        for column, dimension in zip(stacked, dimensions, strict=True)
    ]


def _blocks(row: np.ndarray, size: int, dimension: int) -> np.ndarray:
    """Equal parts along a dimension, stacked along a new first one; a view where they lie so."""
    dimension %= row.ndim
    before, after = row.shape[:dimension], row.shape[dimension + 1 :]
    parts = row.reshape(*before, size, row.shape[dimension] // size, *after)
    return np.moveaxis(parts, dimension, 0)


def _joined(parts: np.ndarray, dimension: int) -> np.ndarray:
    """The opposite of `_blocks`."""
    size, *block = parts.shape
    dimension %= len(block)
    apart = np.moveaxis(parts, 0, dimension)
    shape = (*block[:dimension], size * block[dimension], *block[dimension + 1 :])
    if apart.flags.c_contiguous:
        return apart.reshape(shape)
    joined = memory.empty(shape, parts.dtype)
    joined.reshape(apart.shape)[...] = apart
    return joined


def _psum_scatter(
    columns: Sequence[Rows],
    mesh: Mesh,
    comm: Comm,
    *,
    axes: tuple[str, ...],
    sizes: tuple[int, ...],
    dimensions: tuple[int, ...],
) -> Columns:
    groups, size = mesh.groups(axes), math.prod(sizes)
    blocks = [
        [_blocks(row, size, dimension) for row in column]
        for column, dimension in zip(columns, dimensions, strict=True)
    ]
    return _by_dtype(blocks, 1, lambda rows: comm.reduce_scatter(rows, "sum", groups))


def _all_to_all(
    columns: Sequence[Rows],
    mesh: Mesh,
    comm: Comm,
    *,
    axes: tuple[str, ...],
    sizes: tuple[int, ...],
    split: int,
    concat: int,
) -> Columns:
    (rows,) = columns
    blocks = [_blocks(row, math.prod(sizes), split) for row in rows]
    found = comm.all_to_all(blocks, mesh.groups(axes))
    return [[_joined(stacked, concat) for stacked in found]]


def _ppermute(
    columns: Sequence[Rows],
    mesh: Mesh,
    comm: Comm,
    *,
    axes: tuple[str, ...],
    sizes: Any,
    permutation: tuple[tuple[int, int], ...],
) -> Columns:
    groups = mesh.groups(axes)
    return _by_dtype(columns, 0, lambda rows: comm.permute(rows, permutation, groups))


def _axis_index(columns: Sequence[Rows], mesh: Mesh, comm: Comm, *, axis_name: str, size: int) -> Columns:
    return [[np.asarray(mesh.abstract.coordinates(rank)[axis_name], np.int32) for rank in mesh.local_ranks]]


_COLLECTIVES: Final[dict[str, Callable[..., Columns]]] = {
    "psum": _all_reduce("sum"),
    "pmax": _all_reduce("max"),
    "pmin": _all_reduce("min"),
    "all_gather": _all_gather,
    "psum_scatter": _psum_scatter,
    "all_to_all": _all_to_all,
    "ppermute": _ppermute,
    "axis_index": _axis_index,
}
