"""Windows of NumPy arrays, for the definitions of operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.lax.windows.padding import Line


def padded(x: np.ndarray, axis: int, line: Line, fill: Any = 0) -> np.ndarray:  # Any: a number
    """An array dilated and padded along one axis."""
    x = np.moveaxis(x, axis, -1)
    low, high = max(line.low, 0), max(line.high, 0)
    out = np.full((*x.shape[:-1], low + line.base + high), fill, x.dtype)
    out[..., low : low + line.base : line.base_dilation] = x
    cut = out[..., max(-line.low, 0) : out.shape[-1] - max(-line.high, 0)]
    return np.moveaxis(cut, -1, axis)


def windows(x: np.ndarray, axes: Sequence[int], lines: Sequence[Line]) -> np.ndarray:
    """Windows of a padded array along negative axes, which then number them; what is within a window stands
    last.
    """
    if not axes:
        return x
    # NumPy makes no views of dtypes it does not know, such as 8-bit floats; bits are moved all the same.
    bits = x.view(f"u{x.dtype.itemsize}") if x.dtype.itemsize <= 2 else x
    extents = [line.extent for line in lines]
    found = np.lib.stride_tricks.sliding_window_view(bits, extents, axis=tuple(axes))
    cut: list[Any] = [np.s_[:]] * x.ndim + [np.s_[:: line.window_dilation] for line in lines]
    for axis, line in zip(axes, lines, strict=True):
        cut[axis - len(lines)] = np.s_[:: line.stride]
    return found[tuple(cut)].view(x.dtype)


def flat_windows(x: np.ndarray, lines: Sequence[Line], fill: Any) -> np.ndarray:  # Any: a number
    """Windows along the last dimensions, the elements of each along one last dimension."""
    axes = range(-len(lines), 0)
    for axis, line in zip(axes, lines, strict=True):
        x = padded(x, axis, line, fill)
    found = windows(x, list(axes), lines)
    return found.reshape(*found.shape[: found.ndim - len(lines)], -1)
