"""Where the tiles of a kernel lie, computed without running it: for people who write arrangements, and for
drawings of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from infini.core.ir import ArrayType
from infini.tile.function import KernelFunction
from infini.tile.program import indices


def simulate(
    kernel: KernelFunction, types: Sequence[ArrayType], **static: Hashable
) -> tuple[np.ndarray, ...]:
    """Which array element each element of each tile is.

    Args:
        kernel: the kernel.
        types: types of the operands.
        **static: keyword arguments of the application.

    Returns:
        Per tensor, results included, an int64 array shaped (grid..., tile...): the position of the element in
        its array, counted in C order, or -1 outside the array.

    Example:
        >>> from infini.core import dtypes
        >>> from infini.tile import Tensor, kernel, simulate
        >>> x = Tensor(1)
        >>> halves = lambda x, y: (x.tile((4,)), y.tile((4,)))
        >>> copy = kernel(halves, tensors=(x, Tensor(shape=x.shape)))(lambda x: x)
        >>> simulate(copy, [ArrayType((6,), dtypes.float32)])[0]
        array([[ 0,  1,  2,  3],
               [ 4,  5, -1, -1]])
    """
    found = kernel.specialize(types, **static)
    shapes = [*(t.shape for t in types), *(t.shape for t in found.outputs)]
    positions = []
    for access, shape in zip((*found.loads, *found.stores), shapes, strict=True):
        tiles = []
        for program in np.ndindex(*found.grid):
            index, inside = indices(access, shape, program)
            safe = tuple(np.where(inside, at, 0) for at in index)
            at = np.ravel_multi_index(safe, shape) if shape else np.zeros(access.tile, np.int64)
            tiles.append(np.where(inside, at, -1))
        positions.append(np.reshape(tiles, (*found.grid, *access.tile)).astype(np.int64))
    return tuple(positions)
