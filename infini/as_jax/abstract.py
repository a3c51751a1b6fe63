"""What JAX's own modules ask about abstract values, for libraries that ask it too."""

from __future__ import annotations

from dataclasses import dataclass

from infini.core import trace
from infini.core.abstract import AbstractValue as AbstractValue, ShapedArray as ShapedArray, typeof


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
