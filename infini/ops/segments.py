"""Reductions of the rows of an array by segment: rows of one number are reduced to one row.

All four are a scatter into rows of the neutral element. Hints of JAX (`indices_are_sorted`, `bucket_size`)
are accepted and change nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.numpy._promotion import ArrayLike, as_value

Kind = Literal["add", "multiply", "max", "min"]


def segment_sum(
    data: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    bucket_size: int | None = None,
    mode: Any = None,  # Any: `lax.GatherScatterMode` or its name
    out_sharding: Any = None,  # Any: a placement
) -> Value:
    """Sums of the rows of each segment.

    Args:
        data: array of rows.
        segment_ids: integers, the segment of each row; rows of others than 0 to `num_segments - 1` are
            left out.
        num_segments: number of segments; under `jit` it has to be given. The largest number plus one when
            absent.
        indices_are_sorted: a hint without effect.
        unique_indices: promise that no segment occurs twice.
        bucket_size: a hint without effect.
        mode: what happens to rows outside; they are dropped when absent.
        out_sharding: placement of the result; not supported.

    Returns:
        Array (num_segments, ...): zero for empty segments.

    Raises:
        ConcretizationError: `num_segments` is absent while tracing.
        ValueMismatchError: it is negative.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import ops
        >>> print(ops.segment_sum(inp.array([5.0, 1.0, 7.0]), inp.array([0, 0, 2])))
        [6. 0. 7.]
    """
    del indices_are_sorted, bucket_size
    return _reduced("segment_sum", data, segment_ids, num_segments, unique_indices, mode, out_sharding)


def segment_prod(
    data: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    bucket_size: int | None = None,
    mode: Any = None,  # Any: as for `segment_sum`
    out_sharding: Any = None,  # Any: as for `segment_sum`
) -> Value:
    """Products of the rows of each segment, 1 for empty ones; arguments as for `segment_sum`."""
    del indices_are_sorted, bucket_size
    return _reduced("segment_prod", data, segment_ids, num_segments, unique_indices, mode, out_sharding)


def segment_max(
    data: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    bucket_size: int | None = None,
    mode: Any = None,  # Any: as for `segment_sum`
    out_sharding: Any = None,  # Any: as for `segment_sum`
) -> Value:
    """Largest of the rows of each segment, the least number for empty ones; arguments as for
    `segment_sum`."""
    del indices_are_sorted, bucket_size
    return _reduced("segment_max", data, segment_ids, num_segments, unique_indices, mode, out_sharding)


def segment_min(
    data: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    bucket_size: int | None = None,
    mode: Any = None,  # Any: as for `segment_sum`
    out_sharding: Any = None,  # Any: as for `segment_sum`
) -> Value:
    """Smallest of the rows of each segment, the largest number for empty ones; arguments as for
    `segment_sum`."""
    del indices_are_sorted, bucket_size
    return _reduced("segment_min", data, segment_ids, num_segments, unique_indices, mode, out_sharding)


_KINDS: dict[str, Kind] = {
    "segment_sum": "add", "segment_prod": "multiply", "segment_max": "max", "segment_min": "min",
}  # fmt: skip


def _reduced(
    name: str,
    data: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None,
    unique_indices: bool,
    mode: Any,  # Any: as for `segment_sum`
    out_sharding: Any,  # Any: as for `segment_sum`
) -> Value:
    if out_sharding is not None:
        raise errors.UnsupportedError(
            f"{name} does not take out_sharding", fix="use lax.with_sharding_constraint on the result"
        )
    rows, ids = as_value(name, data), as_value(name, segment_ids)
    if num_segments is None:
        if isinstance(ids, trace.Tracer):
            raise errors.ConcretizationError(
                f"{name} needs num_segments while tracing: the shape of its result depends on it",
                got=ids.origin(),
                expected="a known number of segments",
                fix="pass num_segments=",
            )
        num_segments = int(inp.max(ids)) + 1 if ids.size else 0
    if num_segments < 0:
        raise errors.ValueMismatchError(f"{name}: num_segments is negative", got=str(num_segments))
    kind = _KINDS[name]
    start = inp.full((num_segments, *rows.shape[ids.ndim :]), _neutral(kind, rows.dtype), rows.dtype)
    place = start.at[ids]
    options = {"mode": mode, "unique_indices": unique_indices, "wrap_negative_indices": False}
    found: Value = getattr(place, kind)(rows, **options)
    return found


def _neutral(kind: Kind, dtype: np.dtype) -> Any:  # Any: a number
    """What a reduction of nothing gives."""
    if kind in ("add", "multiply"):
        return int(kind == "multiply")
    is_max = kind == "max"
    if dtype == dtypes.bool_:
        return not is_max
    if dtypes.is_inexact(dtype):
        return -np.inf if is_max else np.inf
    return np.iinfo(dtype).min if is_max else np.iinfo(dtype).max
