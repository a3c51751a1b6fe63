"""What JAX calls abstract values: `ShapedArray`, and the questions libraries ask about one."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from infini.core import dtypes, ir, sharding as sharding_, trace
from infini.random import key_array


class AbstractValue(abc.ABC):  # noqa: B024  # JAX's base class has nothing abstract either
    """JAX's base of types; infini's `ArrayType` is one."""


@dataclass(frozen=True, slots=True)
class ShapedArray(AbstractValue):
    """`jax.core.ShapedArray`: shape, dtype, weak flag and placement. infini's `ArrayType` counts as one."""

    shape: tuple[int, ...]
    dtype: np.dtype | key_array.KeyDType
    weak_type: bool = False
    sharding: Any = field(default=None, compare=False)  # Any: a sharding of infini, or nothing
    vma: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not isinstance(self.dtype, key_array.KeyDType):
            object.__setattr__(self, "dtype", dtypes.canonical(self.dtype))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def update(self, **changes: Any) -> ShapedArray:  # Any: as the fields
        """The same with some fields changed."""
        names = ("shape", "dtype", "weak_type", "sharding", "vma")
        return ShapedArray(**{**{name: getattr(self, name) for name in names}, **changes})

    def str_short(self, short_dtypes: bool = False) -> str:
        """`float32[2,3]`, or `f32[2,3]`."""
        kind = self.dtype
        name = dtypes.short(kind) if short_dtypes and isinstance(kind, np.dtype) else kind.name
        return f"{name}[{','.join(map(str, self.shape))}]"

    def __str__(self) -> str:
        return self.str_short()


AbstractValue.register(ir.ArrayType)
ShapedArray.register(ir.ArrayType)


def typeof(x: object) -> ShapedArray:
    """`jax.typeof`: shape, dtype and weak flag of anything that an operation takes.

    Placement is no part of types in infini: the field `sharding` is that of JAX outside every mesh.
    """
    if isinstance(x, key_array.KeyArray):
        return ShapedArray(x.shape, x.dtype, False, _unplaced(x.ndim))
    item = trace.as_value(x)
    return ShapedArray(item.shape, item.dtype, item.weak, _unplaced(item.ndim))


@dataclass(frozen=True, slots=True)
class EmptyMesh:
    """The mesh of values that are on none."""

    axis_names: tuple[str, ...] = ()
    axis_sizes: tuple[int, ...] = ()
    empty: bool = True
    are_all_axes_explicit: bool = False


@dataclass(frozen=True, slots=True)
class Unplaced:
    """What JAX says of the placement of a value outside every mesh."""

    mesh: EmptyMesh
    spec: sharding_.PartitionSpec

    def update(self, *, spec: sharding_.PartitionSpec) -> Unplaced:
        """The same for another number of dimensions."""
        return Unplaced(self.mesh, spec)


def _unplaced(ndim: int) -> Unplaced:
    return Unplaced(EmptyMesh(), sharding_.PartitionSpec(*[None] * ndim))


def get_aval(x: object) -> ShapedArray:
    """`jax.core.get_aval`: as `typeof`."""
    return typeof(x)


def mapped_aval(size: int, axis: int | None, aval: ShapedArray) -> ShapedArray:
    """The type of one item along an axis."""
    if axis is None:
        return aval
    if aval.shape[axis] != size:
        raise ValueError(f"axis {axis} of {aval} does not have {size} items")
    return ShapedArray(aval.shape[:axis] + aval.shape[axis + 1 :], aval.dtype)


def unmapped_aval(size: int, axis: int | None, aval: ShapedArray) -> ShapedArray:
    """The type of `size` items stacked along an axis."""
    if axis is None:
        return aval
    return ShapedArray((*aval.shape[:axis], size, *aval.shape[axis:]), aval.dtype)


def get_opaque_trace_state(convention: str = "flax") -> OpaqueTraceState:
    """`jax.core.get_opaque_trace_state`: a mark of the transformation being traced, to compare with later."""
    del convention  # JAX asks who wants to know
    return OpaqueTraceState(trace.current())


@dataclass(frozen=True, slots=True)
class OpaqueTraceState:
    """Equal to another when no transformation began or ended between the two."""

    interpreter: object


def is_concrete(x: object) -> bool:
    """`jax.core.is_concrete`: whether the elements are known now."""
    return not isinstance(x, trace.Tracer)


@runtime_checkable
class HasDtype(Protocol):
    """Anything with a dtype may stand for it."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype."""
