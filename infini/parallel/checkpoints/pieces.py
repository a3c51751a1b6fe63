"""What a tree of arrays consists of: leaves with names, each of pieces that some processes hold, and who
writes which.

Everything but the contents follows from the placements, which all processes know, so they share the work out
without a word. Of the processes that hold a piece the one with the least to write takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.core import (
    array as array_,
    dtypes,
    errors,
    ir,
    mesh as mesh_,
    sharding as sharding_,
    tree,
    value,
)
from infini.transforms import placement

Slices: TypeAlias = tuple[tuple[int, int], ...]  # (start, stop) in each dimension


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an array that is stored in one place.

    Args:
        slices: which part.
        holders: numbers of the processes that hold it, in ascending order.
    """

    slices: Slices
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array of a tree.

    Args:
        name: its place in the tree, such as `params/layers/0/mlp/up_proj`.
        type: its shape and dtype.
        placement: how it is split, for people.
        pieces: its pieces; they cover it and do not overlap.
        read: contents of a piece that this process holds.
    """

    name: str
    type: ir.ArrayType
    placement: str
    pieces: tuple[Piece, ...]
    read: Callable[[Slices], np.ndarray]

    def __str__(self) -> str:
        return f"{self.name}: {self.type} {self.placement}".rstrip()


def named(x: Any) -> dict[str, Any]:  # Any: a pytree, and its leaves
    """Leaves by the names of their places.

    Raises:
        ValueMismatchError: two places have one name.
    """
    found: dict[str, Any] = {}
    for path, leaf in tree.flatten_with_path(x)[0]:
        name = tree.keystr(path, simple=True, separator="/")
        if name in found:
            raise errors.ValueMismatchError(
                "two arrays of a tree have one name in a checkpoint",
                got=name,
                expected="keys without '/', so that the path says where an array is",
                fix="rename one of the keys",
            )
        found[name] = leaf
    return found


def leaves_of(x: Any) -> list[Leaf]:  # Any: a pytree of arrays
    """The leaves of a tree.

    Raises:
        TypeMismatchError: a leaf is no array and no number.
        DeletedBufferError: an array was donated or deleted.
        DeviceError: an array is whole on a device of another process.
        ValueMismatchError: two leaves have one name.
    """
    return [_leaf(name, leaf) for name, leaf in named(x).items()]


def deal(leaves: Sequence[Leaf], num_processes: int) -> list[list[tuple[int, int]]]:
    """Who writes what: for each process, the numbers of leaves and of their pieces, in order.

    The largest pieces are dealt first, so that the processes write about equally many bytes.
    """
    pieces = [(i, j) for i, leaf in enumerate(leaves) for j in range(len(leaf.pieces))]
    sizes = {(i, j): num_bytes(leaves[i].type.dtype, leaves[i].pieces[j].slices) for i, j in pieces}
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(num_processes)]
    total = [0] * num_processes
    for piece in sorted(pieces, key=lambda piece: (-sizes[piece], piece)):
        i, j = piece
        writer = min(leaves[i].pieces[j].holders, key=lambda process: (total[process], process))
        total[writer] += sizes[piece]
        dealt[writer].append(piece)
    return [sorted(own) for own in dealt]


def shape_of(slices: Slices) -> tuple[int, ...]:
    """Shape of a part."""
    return tuple(stop - start for start, stop in slices)


def num_bytes(dtype: np.dtype, slices: Slices) -> int:
    """Bytes of a part."""
    return math.prod(shape_of(slices)) * dtype.itemsize


def whole(shape: Sequence[int]) -> Slices:
    """The part that is everything."""
    return tuple((0, size) for size in shape)


def of_rank(shape: Sequence[int], where: sharding_.NamedSharding, rank: int) -> Slices:
    """The part of an array that a device holds."""
    index = mesh_.shard_index(tuple(shape), where.spec, where.mesh.abstract, rank)
    return tuple((part.start, part.stop) for part in index)


def _leaf(name: str, leaf: Any) -> Leaf:  # Any: what a tree may hold
    if isinstance(leaf, array_.Array):
        return _of_array(name, leaf)
    if isinstance(leaf, (np.ndarray, np.generic)):  # as they are, with all their bits
        dtype = dtypes.canonical(leaf.dtype)
        return _whole(name, ir.ArrayType(leaf.shape, dtype), lambda slices: np.array(leaf, dtype, order="C"))
    if isinstance(leaf, (bool, int, float, complex)):
        number = value.literal(leaf)
        return _whole(name, number.type, lambda slices: np.array(number.host))
    raise errors.TypeMismatchError(
        f"{name or 'the tree'} is nothing that a checkpoint can hold",
        got=f"{leaf!r} of type {type(leaf).__name__}",
        expected="arrays and numbers",
        fix="leave it out of the tree; words and numbers about the run go into `position`",
    )


def _of_array(name: str, array: array_.Array) -> Leaf:
    if array.is_deleted():
        raise errors.DeletedBufferError(
            f"{name or 'the array'} was donated or deleted before it could be saved",
            got=str(array.type),
            fix="save what the step returned, not what it was given",
        )
    if isinstance(array.sharding, sharding_.NamedSharding):
        where = array.sharding
        if where.unreduced:  # the parts are terms of a sum, and the sum is what is kept
            where = sharding_.NamedSharding(where.mesh, mesh_.P(*where.spec))
            array = placement.device_put(array, where)
        return _split(name, array, where)
    device = array.sharding.device
    if not device.backend.owns(device):
        raise errors.DeviceError(
            f"{name or 'the array'} lies on a device of another process, which only that one can read",
            got=f"{array.type} on {device}",
            expected="arrays on a mesh, or on a device of each process",
            fix="put it on a mesh with infini.device_put(x, NamedSharding(mesh, P()))",
        )
    return _whole(
        name, array.type, lambda slices: array.block_until_ready().memory.host(0, array.type, device)
    )


def _whole(name: str, type_: ir.ArrayType, read: Callable[[Slices], np.ndarray]) -> Leaf:
    """An array that every process has for itself: that of process 0 is written."""
    pieces = (Piece(whole(type_.shape), (0,)),) if type_.size else ()
    return Leaf(name, type_, "", pieces, read)


def _split(name: str, array: array_.Array, where: sharding_.NamedSharding) -> Leaf:
    holders: dict[Slices, set[int]] = {}
    own: dict[Slices, int] = {}  # the first buffer of this process that holds it
    local = array.addressable_devices
    for rank, device in enumerate(where.devices if array.size else ()):
        slices = of_rank(array.shape, where, rank)
        if not all(shape_of(slices)):
            continue
        holders.setdefault(slices, set()).add(device.process_index)
        if device in local:
            own.setdefault(slices, local.index(device))
    part = array.type.update(shape=where.shard_shape(array.shape))

    def read(slices: Slices) -> np.ndarray:
        number = own[slices]
        host = array.block_until_ready().memory.host(number, part, local[number])
        return host[tuple(slice(size) for size in shape_of(slices))]

    pieces = tuple(Piece(slices, tuple(sorted(found))) for slices, found in holders.items())
    return Leaf(name, array.type, f"{where.spec!r} over {where.mesh!r}", pieces, read)
