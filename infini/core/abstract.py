"""What is known of a value without its elements: `ShapedArray`, and `typeof`, which asks for it. The types of
what functions take, to annotate with.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from infini.core import array_class, dtypes, ir, mesh as mesh_, trace
from infini.core.value import Value


class AbstractValue(abc.ABC):  # noqa: B024  # JAX's base class has nothing abstract either
    """JAX's base of types; infini's `ArrayType` is one."""


@dataclass(frozen=True, slots=True)
class ManualAxisType:
    """Along which manual axes of a mesh devices hold different values; see `shard_map`. Sums that are still
    to be made (`unreduced`) and their cotangents (`reduced`) are the partitioner's in infini.
    """

    varying: frozenset[str] = frozenset()
    unreduced: frozenset[str] = frozenset()
    reduced: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ShapedArray(AbstractValue):
    """Shape, dtype, weak flag and placement. infini's `ArrayType` counts as one."""

    shape: tuple[int, ...]
    dtype: np.dtype | dtypes.ExtendedDType
    weak_type: bool = False
    sharding: Any = field(default=None, compare=False)  # Any: a sharding of infini, or nothing
    vma: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not isinstance(self.dtype, dtypes.ExtendedDType):
            object.__setattr__(self, "dtype", dtypes.canonical(self.dtype))

    @property
    def mat(self) -> ManualAxisType:
        """Along which manual axes devices hold different values."""
        return ManualAxisType(self.vma)

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
        name = (
            dtypes.short(kind)
            if short_dtypes and isinstance(kind, np.dtype)
            else getattr(kind, "name", str(kind))
        )
        return f"{name}[{','.join(map(str, self.shape))}]"

    def __str__(self) -> str:
        return self.str_short()


AbstractValue.register(ir.ArrayType)
ShapedArray.register(ir.ArrayType)


def typeof(x: object) -> ShapedArray:
    """Shape, dtype and weak flag of anything that an operation takes.

    Placement is no part of types in infini: the field `sharding` is that of JAX outside every mesh.

    Raises:
        TypeMismatchError: no operation takes it.

    Example:
        >>> import infini
        >>> print(infini.typeof(infini.numpy.ones((2, 3))))
        float32[2,3]
    """
    if isinstance(x, array_class.Array) and not isinstance(x, Value):  # typed keys
        return ShapedArray(x.shape, x.dtype, False, _unplaced(x.ndim))
    item = trace.as_value(x)
    varying = trace.varying_axes(item)
    return ShapedArray(item.shape, item.dtype, item.weak, _unplaced(item.ndim), varying)


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
    spec: mesh_.PartitionSpec

    def update(self, *, spec: mesh_.PartitionSpec) -> Unplaced:
        """The same for another number of dimensions."""
        return Unplaced(self.mesh, spec)


def _unplaced(ndim: int) -> Unplaced:
    return Unplaced(EmptyMesh(), mesh_.PartitionSpec(*[None] * ndim))


@runtime_checkable
class HasDtype(Protocol):
    """Anything with a dtype may stand for it."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype."""


# What functions of arrays take, and what names a dtype.
ArrayLike: Final = Value | np.ndarray | np.bool_ | np.number | bool | int | float | complex
DTypeLike: Final = str | type[Any] | np.dtype | HasDtype
