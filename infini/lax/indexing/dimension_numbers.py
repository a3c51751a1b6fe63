"""How the dimensions of an array, of windows taken from it, and of the places of these windows correspond.

The names and meanings are JAX's, which are those of XLA's Gather and Scatter
(https://openxla.org/xla/operation_semantics#gather). A scatter writes where the gather of the same numbers
reads, so everything here speaks of gathers.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.core import dtypes, errors, ir
from infini.core.ir import ArrayType


class GatherScatterMode(enum.Enum):
    """What happens to windows that do not lie inside the array.

    `CLIP` moves them inside, `FILL_OR_DROP` reads a fill value and writes nothing. `PROMISE_IN_BOUNDS` is a
    promise that there are none; a broken one reads as `CLIP` and writes as `FILL_OR_DROP`. `ONE_HOT` is a
    method of `numpy.take_along_axis`, where it reads zeros outside.
    """

    CLIP = "clip"
    FILL_OR_DROP = "fill"
    PROMISE_IN_BOUNDS = "promise_in_bounds"
    ONE_HOT = "one_hot"

    @staticmethod
    def from_any(s: GatherScatterMode | str | None) -> GatherScatterMode:
        """The mode with this name; None means fill or drop, as in JAX.

        Raises:
            ValueMismatchError: there is none.
        """
        if isinstance(s, GatherScatterMode):
            return s
        if s not in _MODES:
            raise errors.ValueMismatchError(
                f"{s!r} is not a gather or scatter mode",
                expected="clip, fill, drop or promise_in_bounds",
            )
        return _MODES[s]


_MODES = {
    "clip": GatherScatterMode.CLIP,
    "fill": GatherScatterMode.FILL_OR_DROP,
    "drop": GatherScatterMode.FILL_OR_DROP,
    "promise_in_bounds": GatherScatterMode.PROMISE_IN_BOUNDS,
    "one_hot": GatherScatterMode.ONE_HOT,
    None: GatherScatterMode.FILL_OR_DROP,
}


@ir.attribute
@dataclass(frozen=True, slots=True)
class GatherDimensionNumbers:
    """How the dimensions of a gather correspond, as `jax.lax.GatherDimensionNumbers`.

    Args:
        offset_dims: dimensions of the result that run over a window.
        collapsed_slice_dims: dimensions of the operand that windows have size 1 along and the result lacks.
        start_index_map: dimension of the operand that each column of the indices counts along.
        operand_batching_dims: dimensions of the operand that go with dimensions of the indices one to one.
        start_indices_batching_dims: those dimensions of the indices.
    """

    offset_dims: tuple[int, ...]
    collapsed_slice_dims: tuple[int, ...]
    start_index_map: tuple[int, ...]
    operand_batching_dims: tuple[int, ...] = ()
    start_indices_batching_dims: tuple[int, ...] = ()

    @property
    def dropped(self) -> frozenset[int]:
        """Dimensions of the operand that windows have no dimension for."""
        return frozenset({*self.collapsed_slice_dims, *self.operand_batching_dims})

    @property
    def as_scatter(self) -> ScatterDimensionNumbers:
        """The scatter that writes where this gather reads."""
        return ScatterDimensionNumbers(
            self.offset_dims,
            self.collapsed_slice_dims,
            self.start_index_map,
            self.operand_batching_dims,
            self.start_indices_batching_dims,
        )

    def window_of(self, slice_sizes: Sequence[int]) -> ir.Shape:
        """Shape of one window as the result has it."""
        return tuple(n for d, n in enumerate(slice_sizes) if d not in self.dropped)

    def result_shape(self, batch: Sequence[int], slice_sizes: Sequence[int]) -> ir.Shape:
        """Shape of the result when `batch` is the shape of the indices without their last dimension."""
        window, places = iter(self.window_of(slice_sizes)), iter(batch)
        ndim = len(self.offset_dims) + len(batch)
        return tuple(next(window) if d in self.offset_dims else next(places) for d in range(ndim))


@ir.attribute
@dataclass(frozen=True, slots=True)
class ScatterDimensionNumbers:
    """How the dimensions of a scatter correspond, as `jax.lax.ScatterDimensionNumbers`.

    Args:
        update_window_dims: dimensions of the updates that run over a window.
        inserted_window_dims: dimensions of the operand that windows have size 1 along and the updates lack.
        scatter_dims_to_operand_dims: dimension of the operand that each column of the indices counts along.
        operand_batching_dims: dimensions of the operand that go with dimensions of the indices one to one.
        scatter_indices_batching_dims: those dimensions of the indices.
    """

    update_window_dims: tuple[int, ...]
    inserted_window_dims: tuple[int, ...]
    scatter_dims_to_operand_dims: tuple[int, ...]
    operand_batching_dims: tuple[int, ...] = ()
    scatter_indices_batching_dims: tuple[int, ...] = ()

    @property
    def as_gather(self) -> GatherDimensionNumbers:
        """The gather that reads where this scatter writes."""
        return GatherDimensionNumbers(
            self.update_window_dims,
            self.inserted_window_dims,
            self.scatter_dims_to_operand_dims,
            self.operand_batching_dims,
            self.scatter_indices_batching_dims,
        )

    def slice_sizes(self, operand: ir.Shape, updates: ir.Shape) -> ir.Shape:
        """Size of one window along each dimension of the operand."""
        window = iter([updates[d] for d in self.update_window_dims])
        dropped = self.as_gather.dropped
        return tuple(1 if d in dropped else next(window) for d in range(len(operand)))


def check_numbers(
    name: str, operand: ArrayType, indices: ArrayType, dn: GatherDimensionNumbers, slice_sizes: ir.Shape
) -> None:
    """Refuse dimension numbers that contradict themselves, or do not fit the operands of `name`.

    Raises:
        ValueMismatchError: the indices are no integers.
        TypeMismatchError: everything else.
    """
    if indices.dtype not in dtypes.INTEGERS:
        raise errors.ValueMismatchError(
            f"{name}: indices must have an integer type", got=str(indices), fix="convert them to int32"
        )
    num_batch = indices.ndim - 1
    ndim = len(dn.offset_dims) + num_batch
    for what, dims, bound, is_sorted in (
        ("dimensions of the windows", dn.offset_dims, ndim, True),
        ("dropped dimensions", dn.collapsed_slice_dims, operand.ndim, True),
        ("batching dimensions of the operand", dn.operand_batching_dims, operand.ndim, True),
        ("indexed dimensions", dn.start_index_map, operand.ndim, False),
        ("batching dimensions of the indices", dn.start_indices_batching_dims, num_batch, False),
    ):
        is_distinct = len(set(dims)) == len(dims)
        if (
            not is_distinct
            or any(not 0 <= d < bound for d in dims)
            or (is_sorted and list(dims) != sorted(dims))
        ):
            order = "different numbers in increasing order" if is_sorted else "different numbers"
            raise _wrong(name, f"{what} {dims}", f"{order}, from 0 to {bound - 1}", operand, indices)
    batching, collapsed = set(dn.operand_batching_dims), set(dn.collapsed_slice_dims)
    if batching & collapsed or batching & set(dn.start_index_map):
        raise _wrong(
            name, f"batching dimensions {dn.operand_batching_dims} that are also dropped or indexed",
            "dimensions that are neither", operand, indices,
        )  # fmt: skip
    if num_batch < 0 or indices.shape[-1] != len(dn.start_index_map):
        raise _wrong(
            name, f"indexed dimensions {dn.start_index_map}",
            "one per element of the last dimension of the indices", operand, indices,
        )  # fmt: skip
    pairs = list(zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=False))
    if len(dn.operand_batching_dims) != len(dn.start_indices_batching_dims) or any(
        operand.shape[d] != indices.shape[where] for d, where in pairs
    ):
        raise _wrong(
            name, f"batching dimensions {dn.operand_batching_dims} and {dn.start_indices_batching_dims}",
            "pairs of dimensions of equal size", operand, indices,
        )  # fmt: skip
    _check_sizes(name, operand, indices, dn, slice_sizes)


def _check_sizes(
    name: str, operand: ArrayType, indices: ArrayType, dn: GatherDimensionNumbers, slice_sizes: ir.Shape
) -> None:
    if len(slice_sizes) != operand.ndim or len(dn.offset_dims) != operand.ndim - len(dn.dropped):
        raise _wrong(
            name, f"windows of {slice_sizes}, of which the result has {len(dn.offset_dims)} dimensions",
            "one size per dimension of the operand, and one dimension for each that is not dropped",
            operand, indices,
        )  # fmt: skip
    for d, (size, length) in enumerate(zip(slice_sizes, operand.shape, strict=True)):
        if not 0 <= size <= length:
            raise _wrong(
                name,
                f"windows of {slice_sizes}",
                f"a size from 0 to {length} along dimension {d}",
                operand,
                indices,
            )
    if any(slice_sizes[d] != 1 for d in dn.collapsed_slice_dims) or any(
        slice_sizes[d] > 1 for d in dn.operand_batching_dims
    ):
        raise _wrong(
            name,
            f"windows of {slice_sizes}",
            "size 1 along dropped and batching dimensions",
            operand,
            indices,
        )


def _wrong(
    name: str, got: str, expected: str, operand: ArrayType, indices: ArrayType
) -> errors.TypeMismatchError:
    return errors.TypeMismatchError(
        f"{name}: the dimension numbers do not fit",
        got=f"{got}; operand {operand}, indices {indices}",
        expected=expected,
    )


def window_positions(
    indices: np.ndarray, dn: GatherDimensionNumbers, operand: ir.Shape, slice_sizes: ir.Shape, clips: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Place in the flattened operand of every element of every window, as (batch..., window...), and whether
    its window lies inside; windows outside are moved inside when `clips`.
    """
    batch, window = indices.shape[:-1], dn.window_of(slice_sizes)
    starts = [np.zeros(batch, np.int64) for _ in operand]
    inside = np.ones(batch, bool)
    for column, d in enumerate(dn.start_index_map):
        limit = operand[d] - slice_sizes[d]
        given = indices[..., column].astype(np.int64)
        if indices.dtype == dtypes.uint64:  # numbers beyond int64 stay beyond every array
            given = np.where(given < 0, np.iinfo(np.int64).max, given)
        starts[d] = np.clip(given, 0, limit)
        inside &= (starts[d] == given) | clips
    for d, where in zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=True):
        count = np.arange(batch[where]).reshape([-1 if i == where else 1 for i in range(len(batch))])
        starts[d] = np.broadcast_to(count, batch)
    offsets = iter(np.indices(window))
    place = np.zeros(batch + window, np.int64)
    for d, length in enumerate(operand):
        start = starts[d].reshape(batch + (1,) * len(window))
        place = place * length + (start if d in dn.dropped else start + next(offsets))
    return place, np.broadcast_to(inside.reshape(batch + (1,) * len(window)), place.shape)


def window_axes(dn: GatherDimensionNumbers, ndim: int) -> list[int]:
    """Dimensions of an array of windows with `ndim` dimensions in the order (batch..., window...)."""
    return [*(d for d in range(ndim) if d not in dn.offset_dims), *dn.offset_dims]
