"""What the processes of a job tell each other outside of programs, with the names of
`jax.experimental.multihost_utils`. Every process makes the same calls in one order.

In a job of one process all of them return at once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from infini.backends.spmd import turns
from infini.core import comm, errors, tree
from infini.core.array import Array
from infini.core.comm import Comm
from infini.core.mesh import P
from infini.core.sharding import Mesh, NamedSharding
from infini.transforms.placement import device_put, make_array_from_process_local_data


def broadcast_one_to_all(in_tree: Any, is_source: bool | None = None) -> Any:  # Any: a pytree of arrays
    """The arrays of one process, in every process.

    Args:
        in_tree: pytree of arrays; of the others, only its structure counts.
        is_source: whether this process is the one; process 0 when absent.

    Returns:
        The tree with NumPy arrays.

    Raises:
        CollectiveError: not exactly one process is the source, or trees have different structures.

    Example:
        >>> from infini.experimental import multihost_utils
        >>> multihost_utils.broadcast_one_to_all({"seed": 7})
        {'seed': array(7)}
    """
    leaves, structure = tree.flatten(in_tree)
    is_source = comm.processes().index == 0 if is_source is None else is_source
    rows = _told("broadcast_one_to_all", structure, leaves if is_source else None)
    sources = [row for row in rows if row is not None]
    if len(sources) != 1:
        raise errors.CollectiveError(
            "broadcast_one_to_all: one process is the source",
            got=f"{len(sources)} of {len(rows)} processes with is_source=True",
        )
    return tree.unflatten(structure, sources[0])


def process_allgather(in_tree: Any, tiled: bool = False) -> Any:  # Any: a pytree of arrays
    """The arrays of all processes, in every process.

    Args:
        in_tree: pytree of arrays of this process, of equal shapes everywhere; or of global arrays, each
            gathered as the whole that it is.
        tiled: join along the first dimension instead of stacking along a new one.

    Returns:
        The tree with NumPy arrays: of shape (processes, ...), or (processes * n, ...) if tiled, or of the
        shape of a global array.

    Raises:
        CollectiveError: the trees or the shapes of the processes differ.
        ValueMismatchError: a scalar is to be tiled, or a global array is not.

    Example:
        >>> from infini.experimental import multihost_utils
        >>> multihost_utils.process_allgather(3.0)
        array([3.])
    """
    leaves, structure = tree.flatten(in_tree)
    is_alone = comm.processes().count == 1
    is_global = [isinstance(leaf, Array) and not leaf.is_fully_addressable for leaf in leaves]
    for leaf, whole in zip(leaves, is_global, strict=True):
        if whole and not tiled:
            raise errors.ValueMismatchError(
                "process_allgather: an array over several processes is one array already",
                got=f"an array of shape {leaf.shape}, with tiled=False",
                expected="tiled=True",
            )
        if tiled and not whole and not is_alone and np.ndim(leaf) == 0:
            raise errors.ValueMismatchError(
                "process_allgather: a scalar has no dimension to join along", expected="tiled=False"
            )
    own = [leaf for leaf, whole in zip(leaves, is_global, strict=True) if not whole]
    rows = [row for row in _told("process_allgather", structure, own) if row is not None]
    types = [[(item.shape, item.dtype) for item in row] for row in rows]
    if any(found != types[0] for found in types):
        raise errors.CollectiveError(
            "process_allgather: the processes have arrays of different types",
            got="; ".join(f"process {i}: {_types(row)}" for i, row in enumerate(rows)),
        )
    columns = zip(*rows, strict=True)
    gathered = iter([_joined(column, tiled=tiled) for column in columns])
    return tree.unflatten(
        structure,
        [
            np.asarray(device_put(leaf, NamedSharding(leaf.sharding.mesh, P()))) if whole else next(gathered)
            for leaf, whole in zip(leaves, is_global, strict=True)
        ],
    )


def sync_global_devices(name: str) -> None:
    """Wait until every process is here.

    Args:
        name: of the place; the same in every process.

    Raises:
        CollectiveError: other processes are at another place.
    """
    names = [content.decode() for content in _exchanged(name.encode())]
    if len(set(names)) > 1:
        raise errors.CollectiveError(
            "sync_global_devices: the processes are at different places",
            got=", ".join(f"process {i} at {found!r}" for i, found in enumerate(names)),
        )


def assert_equal(in_tree: Any, fail_message: str = "") -> None:  # Any: a pytree of arrays
    """Compare the arrays of all processes.

    Args:
        in_tree: pytree of arrays.
        fail_message: what the error begins with.

    Raises:
        AssertionError: an array differs in a bit, or in its type; it names the leaves and the processes.
    """
    leaves, structure = tree.flatten(in_tree)
    paths = [tree.keystr(path) for path, _ in tree.leaves_with_path(in_tree)]
    rows = [_digest(np.asarray(leaf)) for leaf in leaves]
    found: list[list[Any]] = [
        msgpack.unpackb(content) for content in _exchanged(msgpack.packb([str(structure), *rows]))
    ]
    different = [i for i, row in enumerate(found) if row[0] != found[0][0]]
    if different:
        raise AssertionError(f"{fail_message} Trees differ in process 0 and in {_listed(different)}".strip())
    for number, path in enumerate(paths, 1):
        different = [i for i, row in enumerate(found) if row[number] != found[0][number]]
        if different:
            what = f"Leaf {path or 'the whole'} of process 0 differs in {_listed(different)}"
            raise AssertionError(f"{fail_message} {what}".strip())


def host_local_array_to_global_array(
    local_inputs: Any, global_mesh: Mesh, pspecs: Any
) -> Any:  # Any: pytrees of arrays and of placements
    """Global arrays, from the parts that each process has.

    Args:
        local_inputs: pytree of arrays: the block that lies on the devices of this process.
        global_mesh: mesh over the devices of all.
        pspecs: a `P` each, or a tree of them that may stop early.
    """
    specs = _specs(pspecs, local_inputs)
    leaves, structure = tree.flatten(local_inputs)
    return tree.unflatten(
        structure,
        [
            make_array_from_process_local_data(NamedSharding(global_mesh, spec), np.asarray(leaf))
            for leaf, spec in zip(leaves, specs, strict=True)
        ],
    )


def global_array_to_host_local_array(
    global_inputs: Any, global_mesh: Mesh, pspecs: Any
) -> Any:  # Any: pytrees of arrays and of placements
    """The opposite of `host_local_array_to_global_array`: one block of what lies on the devices of this
    process.

    Args:
        global_inputs: pytree of arrays.
        global_mesh: mesh over the devices of all.
        pspecs: a `P` each, or a tree of them that may stop early; arrays that lie otherwise are moved.
    """
    specs = _specs(pspecs, global_inputs)
    leaves, structure = tree.flatten(global_inputs)
    return tree.unflatten(
        structure,
        [
            _block(device_put(leaf, NamedSharding(global_mesh, spec)))
            for leaf, spec in zip(leaves, specs, strict=True)
        ],
    )


def _block(array: Array) -> np.ndarray:
    """The parts of an array that are here, put together."""
    shards = array.addressable_shards
    starts = [[item.start or 0 for item in shard.index] for shard in shards]
    ends = [
        [first + size for first, size in zip(start, shard.data.shape, strict=True)]
        for start, shard in zip(starts, shards, strict=True)
    ]
    lowest, highest = np.min(starts, axis=0, initial=1 << 62), np.max(ends, axis=0, initial=0)
    block = np.empty(tuple(highest - lowest), array.dtype)
    for start, end, shard in zip(starts, ends, shards, strict=True):
        index = tuple(slice(a - low, b - low) for a, b, low in zip(start, end, lowest, strict=True))
        block[index] = np.asarray(shard.data)
    return block


def _specs(pspecs: Any, arrays: Any) -> list[P]:  # Any: pytrees
    """A placement for each array."""

    def is_leaf(item: object) -> bool:
        return isinstance(item, P)

    return tree.leaves(tree.broadcast(pspecs, arrays, is_leaf=is_leaf), is_leaf=is_leaf)


def _told(
    name: str, structure: Any, leaves: Sequence[Any] | None
) -> list[list[np.ndarray] | None]:  # Any: of optree; arrays
    """What each process tells, None where that is nothing."""
    arrays = None if leaves is None else [_plain(name, leaf) for leaf in leaves]
    packed = (
        None
        if arrays is None
        else [(a.dtype.name, a.shape, np.ascontiguousarray(a).tobytes()) for a in arrays]
    )
    found = [msgpack.unpackb(content) for content in _exchanged(msgpack.packb([str(structure), packed]))]
    if any(row[0] != found[0][0] for row in found):
        raise errors.CollectiveError(
            f"{name}: the processes have trees of different structures",
            got="; ".join(f"process {i}: {row[0]}" for i, row in enumerate(found)),
        )
    return [
        None
        if row[1] is None
        else [np.frombuffer(data, kind).reshape(shape).copy() for kind, shape, data in row[1]]
        for row in found
    ]


def _plain(name: str, leaf: Any) -> np.ndarray:  # Any: what a tree holds
    """A leaf as an array of numbers in the order of bytes of this machine.

    Raises:
        TypeMismatchError: it is none.
    """
    found = np.asarray(leaf)
    if found.dtype.kind in "OSUMm" or found.dtype.fields is not None:
        raise errors.TypeMismatchError(
            f"{name} takes arrays of numbers", got=f"{found.dtype}", fix="encode text as numpy.uint8"
        )
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _joined(column: Sequence[np.ndarray], *, tiled: bool) -> np.ndarray:
    if not tiled:
        return np.stack(column)
    return column[0] if len(column) == 1 else np.concatenate(column)


def _digest(array: np.ndarray) -> str:
    """A type and the hash of the bits."""
    content = np.ascontiguousarray(array).tobytes()
    return f"{array.dtype}{list(array.shape)}:{hashlib.sha256(content).hexdigest()}"


def _types(row: Sequence[np.ndarray]) -> str:
    return ", ".join(f"{item.dtype}{list(item.shape)}" for item in row)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _exchanged(content: bytes) -> list[bytes]:
    """What each process gives."""
    world = _world()
    if world is None:
        return [content]
    with turns.TURNS.meeting("an exchange of multihost_utils"):
        return world.gather_bytes(content)


@functools.cache
def _world() -> Comm | None:
    """A comm of all processes that nothing else uses; the first call makes it, everywhere."""
    found = comm.processes()
    if found.launcher is None or found.count == 1:
        return None
    return found.launcher.comm(tuple(range(found.count))).duplicate()
