"""What all processes of a pipeline learn of arrays that some of them have: sums of squares, and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import primitive, trace, tree
from infini.core.array import Array
from infini.core.ir import ArrayType
from infini.core.mesh import P
from infini.core.sharding import Mesh
from infini.core.value import Value
from infini.lax import elementwise
from infini.parallel import microbatches, stages
from infini.parallel.transport import Transport
from infini.transforms import staging


def total(number: float, transport: Transport) -> float:
    """The sum of a number over the ranks."""
    if not transport.is_distributed:
        return number
    found = transport.everywhere(np.float64(number).tobytes())
    return sum(float(np.frombuffer(x, np.float64)[0]) for x in found)


def of_rank(number: float, rank: int, transport: Transport) -> float:
    """The number that a rank has."""
    if not transport.is_distributed:
        return number
    return float(np.frombuffer(transport.everywhere(np.float64(number).tobytes())[rank], np.float64)[0])


def sum_of_squares(leaves: Sequence[Array]) -> float:
    """The sum of the squares of arrays on the devices of one rank."""
    return sum(float(x) for x in _squares(leaves))


@staging.jit
def _squares(leaves: Sequence[Array]) -> list[Value]:
    """The sum of squares of each array, in float32 at least."""
    found = []
    for x in leaves:
        wide = elementwise.convert_element_type(x, stages.sum_type(x.type).dtype)
        square = trace.bind1(primitive.by_name("mul"), wide, wide)
        found.append(trace.bind1(primitive.by_name("reduce_sum"), square, axes=tuple(range(-x.ndim, 0))))
    return found


def values(parts: Sequence[Any], meshes: Sequence[Mesh], transport: Transport) -> list[Any]:  # Any: pytrees
    """The values of the arrays of every stage, in every process.

    Args:
        parts: one pytree of arrays per stage, on the devices of the stage.
        meshes: the devices of each stage.
        transport: between the ranks.
    """
    found: list[Any] = []
    num_ranks = len(transport.meshes)
    for first in range(0, len(parts), num_ranks):  # the stages of one round, one of each rank
        here = {rank: _hosts(parts[first + rank], meshes[first + rank]) for rank in transport.ranks}
        if transport.is_distributed:
            (own,) = here.values()
            contents = transport.everywhere(b"".join(x.tobytes() for x in own))
        for rank in range(num_ranks):
            leaves, treedef = tree.flatten(parts[first + rank])
            if transport.is_distributed:
                here[rank] = _cut(contents[rank], [x.type for x in leaves])
            found.append(tree.unflatten(treedef, here[rank]))
    return found


def _hosts(part: Any, mesh: Mesh) -> list[np.ndarray]:  # Any: a pytree of arrays
    leaves = tree.leaves(part)
    whole = microbatches.placed(leaves, [P()] * len(leaves), mesh)
    return [x.addressable_shards[0].data.to_host() for x in whole]


def _cut(content: bytes, types: Sequence[ArrayType]) -> list[np.ndarray]:
    """The arrays of which `content` is made."""
    found, at = [], 0
    for type_ in types:
        array = np.frombuffer(content, type_.dtype, type_.size, at)
        found.append(array.reshape(type_.shape))
        at += array.nbytes
    return found
