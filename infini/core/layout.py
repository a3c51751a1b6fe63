"""How the elements of an array lie in memory, as data: `Layout`, and where its elements go.

A layout belongs to memory, never to a shape or a type: a program is written for logical arrays, and an
array whose memory is laid out otherwise has the same type as any other. Row-major memory is the absence
of a layout (None). What a layout does to a program is in `core.physical`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from infini.core import errors, ir


class AutoLayout:
    """Stands for the layout that the compiler would like best; there is one, `Layout.AUTO`."""

    def __repr__(self) -> str:
        return "AUTO"


AUTO: Final = AutoLayout()


@dataclass(frozen=True, slots=True)
class Layout:
    """Order and tiling of the elements of an array in memory, as `jax.experimental.layout.Layout`.

    Args:
        major_to_minor: dimensions from the one with the largest stride to the contiguous one.
        tiling: None, or a tuple with one tile: sizes of blocks of the last dimensions in that order. A tile
            (a, b) of a matrix [K, N] stores [K/a, N/b, a, b], padded with zeros where it does not divide.
        sub_byte_element_size_in_bits: 0; there are no dtypes of less than a byte.

    Raises:
        ValueMismatchError: dimensions are no permutation, or the tiling is not one this library has.

    Example:
        >>> Layout((1, 0)).major_to_minor
        (1, 0)
    """

    major_to_minor: tuple[int, ...]
    tiling: tuple[tuple[int, ...], ...] | None = None
    sub_byte_element_size_in_bits: int = 0

    AUTO: ClassVar[AutoLayout] = AUTO

    def __post_init__(self) -> None:
        order = tuple(int(d) for d in self.major_to_minor)
        tiling = None if self.tiling is None else tuple(tuple(int(n) for n in t) for t in self.tiling)
        object.__setattr__(self, "major_to_minor", order)
        object.__setattr__(self, "tiling", tiling)
        if sorted(order) != list(range(len(order))):
            raise errors.ValueMismatchError(
                "major_to_minor must name every dimension once",
                got=str(order),
                expected=f"a permutation of {tuple(range(len(order)))}",
            )
        if tiling and (len(tiling) > 1 or len(tiling[0]) > len(order) or min(tiling[0], default=0) < 1):
            raise errors.ValueMismatchError(
                "a layout has at most one tile, of positive sizes and of no more dimensions than the array",
                got=f"tiling {tiling} of {len(order)} dimensions",
                expected="for example ((256, 32),)",
            )
        if self.sub_byte_element_size_in_bits:
            raise errors.ValueMismatchError(
                "there are no dtypes of less than a byte",
                got=f"sub_byte_element_size_in_bits={self.sub_byte_element_size_in_bits}",
                fix="store packed integers as uint8",
            )

    # Written out because calls with arrays in layouts hash them.
    def __hash__(self) -> int:
        return hash(self.major_to_minor)

    @property
    def tile(self) -> tuple[int, ...]:
        """Sizes of the blocks of the last dimensions; nothing when there are none."""
        return self.tiling[0] if self.tiling else ()

    def update(self, **changes: object) -> Layout:
        """The same layout with some fields changed."""
        fields: dict[str, object] = {
            "major_to_minor": self.major_to_minor,
            "tiling": self.tiling,
            "sub_byte_element_size_in_bits": self.sub_byte_element_size_in_bits,
        }
        return Layout(**{**fields, **changes})  # type: ignore[arg-type]  # checked by the constructor

    def check_compatible_aval(self, aval_shape: ir.Shape) -> None:
        """Refuse a shape of another rank.

        Raises:
            ValueMismatchError: the numbers of dimensions differ.
        """
        if len(self.major_to_minor) != len(aval_shape):
            raise errors.ValueMismatchError(
                "length of major_to_minor and the rank of the value should match",
                got=f"major_to_minor={self.major_to_minor} and shape={tuple(aval_shape)}",
                fix="give one entry per dimension",
            )


def row_major(ndim: int) -> Layout:
    """The layout of memory in C order, as it is shown to people."""
    return Layout(tuple(range(ndim)), ())


def shown(layout: Layout | None, ndim: int) -> Layout:
    """A layout for people: row-major memory has one, too."""
    return layout if layout is not None else row_major(ndim)


def normal(layout: Layout | None) -> Layout | None:
    """The one form of a layout by which memory is compared: None for row-major, `()` for no tiling."""
    if layout is None:
        return None
    order = layout.major_to_minor
    if not layout.tile:
        return None if order == tuple(range(len(order))) else Layout(order, ())
    return layout


# --- shapes in memory -------------------------------------------------------------------------------


def ordered_shape(layout: Layout, shape: ir.Shape) -> ir.Shape:
    """Sizes of the dimensions in the order in which they lie in memory."""
    return tuple(shape[d] for d in layout.major_to_minor)


def num_tiles(layout: Layout, shape: ir.Shape) -> ir.Shape:
    """Blocks along each tiled dimension."""
    tile = layout.tile
    tiled = ordered_shape(layout, shape)[len(shape) - len(tile) :]
    return tuple(-(-size // block) for size, block in zip(tiled, tile, strict=True))


def padded_shape(layout: Layout, shape: ir.Shape) -> ir.Shape:
    """`ordered_shape` with tiled dimensions rounded up to whole blocks."""
    tile = layout.tile
    counts = num_tiles(layout, shape)
    padded = tuple(count * block for count, block in zip(counts, tile, strict=True))
    return (*ordered_shape(layout, shape)[: len(shape) - len(tile)], *padded)


def physical_type(layout: Layout, type_: ir.ArrayType) -> ir.ArrayType:
    """The row-major array that has these elements in this order."""
    leading = ordered_shape(layout, type_.shape)[: type_.ndim - len(layout.tile)]
    return type_.update(shape=(*leading, *num_tiles(layout, type_.shape), *layout.tile))


def interleaved(layout: Layout) -> tuple[int, ...]:
    """Permutation of physical dimensions that puts each block size behind the number of its blocks."""
    rank = len(layout.tile)
    leading = len(layout.major_to_minor) - rank
    pairs = [(leading + i, leading + rank + i) for i in range(rank)]
    return (*range(leading), *(d for pair in pairs for d in pair))


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes another one."""
    return tuple(sorted(range(len(permutation)), key=lambda i: permutation[i]))


def logical_host(layout: Layout, shape: ir.Shape, physical: np.ndarray) -> np.ndarray:
    """The logical array of physical memory; a view unless the layout has tiles."""
    found = physical
    if layout.tile:
        found = found.transpose(interleaved(layout)).reshape(padded_shape(layout, shape))
        found = found[tuple(slice(0, n) for n in ordered_shape(layout, shape))]
    return found.transpose(inverse(layout.major_to_minor))


def size_in_bytes(layout: Layout | None, type_: ir.ArrayType) -> int:
    """Bytes that an array takes in memory."""
    return (
        type_.nbytes
        if layout is None
        else math.prod(padded_shape(layout, type_.shape)) * type_.dtype.itemsize
    )
