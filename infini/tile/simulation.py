"""Where the tiles of a kernel lie, computed without running it: for people who write arrangements, and for
drawings of them.

The kernel that emitters see has a grid and tiles cut into parts (`lowering`); what is shown here has those of
the arrangement.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import errors
from infini.core.ir import ArrayType, Shape
from infini.tile import function
from infini.tile.binding import Bound
from infini.tile.function import KernelFunction
from infini.tile.program import Access


@dataclass(frozen=True, slots=True)
class Placement:
    """How one tensor of a kernel is cut, at concrete sizes.

    Args:
        name: of the parameter of the application, or `result`.
        type: of the array.
        access: where its tiles lie.
        levels: shapes of its levels: the grid, those that a loop walks, the tile.
        parts: sizes that each dimension of the grid is the product of, as `access` counts them.
        is_result: whether it is stored.
    """

    name: str
    type: ArrayType
    access: Access
    levels: tuple[Shape, ...]
    parts: tuple[Shape, ...]
    is_result: bool

    @property
    def grid(self) -> Shape:
        """Number of programs along each dimension of the arrangement."""
        return self.levels[0]

    @property
    def walked(self) -> Shape:
        """Sizes of the levels between the grid and the tile, outer ones first."""
        return tuple(itertools.chain.from_iterable(self.levels[1:-1]))

    @property
    def tile(self) -> Shape:
        """Shape of the tile that the application sees at one step."""
        return self.levels[-1]

    def indices(self, program: Sequence[int] | None = None) -> tuple[np.ndarray, ...]:
        """Array indices of every element, per dimension of the array; they may lie outside of it.

        Args:
            program: number of a program along each dimension of the grid; all when absent.

        Returns:
            int64 arrays shaped (walked..., tile...), with the grid in front when all programs are asked for.
        """
        sizes = tuple(itertools.chain.from_iterable(self.parts))
        if program is None:
            ids = np.indices(sizes, np.int64, sparse=True)
        else:
            split = (
                np.unravel_index(g, part) if part else () for g, part in zip(program, self.parts, strict=True)
            )
            ids = tuple(np.asarray(i, np.int64) for i in itertools.chain.from_iterable(split))
        grid = sizes if program is None else ()
        tile = self.access.tile
        places = np.indices(tile, np.int64, sparse=True)
        found = []
        for offset, by_grid, by_tile in zip(
            self.access.offsets, self.access.grid_strides, self.access.tile_strides, strict=True
        ):
            outer = sum((f * i for f, i in zip(by_grid, ids, strict=True)), np.int64(offset))
            inner = sum((f * i for f, i in zip(by_tile, places, strict=True)), np.int64(0))
            outer = np.reshape(outer, np.shape(outer) + (1,) * len(tile)) if np.ndim(outer) else outer
            at = np.broadcast_to(outer + inner, (*grid, *tile))
            shape = (*(self.grid if program is None else ()), *self.walked, *self.tile)
            found.append(at.reshape(shape))
        return tuple(found)

    def inside(self, indices: Sequence[np.ndarray]) -> np.ndarray:
        """Which of `indices` lie inside the array."""
        found = np.ones(np.shape(indices[0]) if indices else (), bool)
        for at, size in zip(indices, self.type.shape, strict=True):
            found &= (at >= 0) & (at < size)
        return found


def placements(
    kernel: KernelFunction, operands: Sequence[Any], **static: Hashable
) -> tuple[Placement, ...]:  # Any: operands of a call, or types in their place
    """How the tensors of a kernel are cut: operands, then results."""
    return placed(kernel, bound(kernel, operands, static, "simulate"))


def placed(kernel: KernelFunction, call: Bound) -> tuple[Placement, ...]:
    """As `placements`, for a call."""
    types = call.types
    outputs = kernel.as_program(types, **call.static).out_types
    lowered, _ = kernel.lower(types, call.static)
    parts = tuple(tuple(lowered.grid[i] for i in part) for part in lowered.grid_parts)
    grid = tuple(int(np.prod(part, dtype=np.int64)) for part in parts)
    num_loads = len(types)
    found = []
    for number, (tensor, type_) in enumerate(zip(kernel.arranged, (*types, *outputs), strict=True)):
        inner, rest = [], list(lowered.tiles[number])
        for level in tensor.levels[1:]:
            inner.append(tuple(rest[: len(level)]))
            rest = rest[len(level) :]
        levels = (grid, *(inner or [()]))
        name, access = str(tensor.source.name), lowered.accesses[number]
        found.append(Placement(name, type_, access, levels, parts, number >= num_loads))
    return tuple(found)


def simulate(
    kernel: KernelFunction, types: Sequence[Any], **static: Hashable
) -> tuple[np.ndarray, ...]:  # Any: operands of a call, or types in their place
    """Which array element each element of each tile is.

    Args:
        kernel: the kernel.
        types: types of the operands, or the operands themselves.
        **static: keyword arguments of the application.

    Returns:
        Per tensor, results included, an int64 array shaped (grid..., walked levels..., tile...) as arranged:
        the position of the element in its array, counted in C order, or -1 outside the array.

    Complexity:
        Memory for every element of every tile of every program; `draw` shows one program of large arrays.

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
    found = []
    for placement in placements(kernel, types, **static):
        index = placement.indices()
        inside = placement.inside(index)
        shape = (*placement.grid, *placement.walked, *placement.tile)
        at = np.zeros(shape, np.int64)
        for coordinate, size in zip(index, placement.type.shape, strict=True):
            at = at * size + coordinate
        found.append(np.where(inside, at, -1))
    return tuple(found)


def bound(
    kernel: KernelFunction,
    operands: Sequence[Any],
    static: Mapping[str, Any],
    tool: str,
    written: str = "[operand, ...]",
) -> Bound:  # Any: as of `KernelFunction.bind`
    """What a tool takes for a call, see `KernelFunction.bind`.

    Args:
        kernel: the kernel.
        operands: list of the operands, or of their types.
        static: keyword arguments.
        tool: its name, for messages.
        written: how the list is written, likewise.

    Raises:
        TypeMismatchError: this is no kernel, or no list of what it may be called with.
    """
    kernel = function.checked(kernel, tool)
    if isinstance(operands, ArrayType) or hasattr(operands, "dtype"):
        raise errors.TypeMismatchError(
            f"{tool} takes a list of all operands of {kernel.name}, and this is one operand",
            got=type(operands).__name__,
            fix=f"write {written}",
        )
    return kernel.bind(operands, static)
