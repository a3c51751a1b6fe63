"""How windows lie along a dimension: sizes after dilation and striding, and the names of paddings.

Shared by convolutions and windowed reductions. Plain arithmetic on sizes; nothing here is traced.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from infini.core import errors

Pads: TypeAlias = tuple[tuple[int, int], ...]


class UnknownPaddingError(errors.ValueMismatchError, RuntimeError):
    """A padding has a name that does not exist; a RuntimeError in JAX."""


def dilated(size: int, dilation: int) -> int:
    """Size of a dimension after inserting `dilation - 1` places between its elements."""
    return (size - 1) * dilation + 1 if size else 0


def num_windows(size: int, window: int, stride: int) -> int:
    """How many windows of `window` places fit into `size` places, `stride` apart."""
    return (size - window) // stride + 1 if size >= window else 0


@dataclass(frozen=True, slots=True)
class Line:
    """Windows along one dimension.

    Element `p * stride + k * window_dilation - low` of the dilated array is element `k` of window `p`.

    Args:
        size: elements of the array.
        window: elements of a window.
        stride: distance of the first elements of neighbouring windows.
        low: places added before the first element; negative ones are removed.
        high: places added behind the last element.
        base_dilation: distance of neighbouring elements of the array.
        window_dilation: distance of neighbouring elements of a window.
    """

    size: int
    window: int
    stride: int = 1
    low: int = 0
    high: int = 0
    base_dilation: int = 1
    window_dilation: int = 1

    @property
    def base(self) -> int:
        """Places of the dilated array, without padding."""
        return dilated(self.size, self.base_dilation)

    @property
    def extent(self) -> int:
        """Places from the first to the last element of a window."""
        return dilated(self.window, self.window_dilation)

    @property
    def count(self) -> int:
        """Number of windows."""
        return num_windows(self.base + self.low + self.high, self.extent, self.stride)

    @property
    def reach(self) -> int:
        """Places from the first element of the first window to the last element of the last one."""
        return (self.count - 1) * self.stride + self.extent if self.count else 0

    @property
    def is_trivial(self) -> bool:
        """Whether each window is the element of its number."""
        return (self.window, self.stride, self.low, self.high, self.base_dilation) == (1, 1, 0, 0, 1)


def lines(
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> list[Line]:
    """One `Line` per dimension."""
    return [
        Line(n, k, s, low, high, b, d)
        for n, k, s, (low, high), b, d in zip(
            sizes, windows, strides, pads, base_dilation, window_dilation, strict=True
        )
    ]


def padtype_to_pads(
    in_shape: Sequence[int], window_shape: Sequence[int], window_strides: Sequence[int], padding: Any
) -> list[tuple[int, int]]:
    """The padding that a name stands for, per dimension as (low, high).

    Args:
        in_shape: sizes of the dimensions that windows slide over.
        window_shape: sizes of the window, dilated.
        window_strides: strides of the window.
        padding: `VALID` adds nothing; `SAME` gives ceil(size / stride) windows, an odd place going behind
            the last element; `SAME_LOWER` puts it before the first. Upper or lower case.

    Returns:
        As many pairs as `in_shape` has entries.

    Raises:
        UnknownPaddingError: there is no padding of that name.
        TypeMismatchError: `padding` is no name.

    Example:
        >>> from infini import lax
        >>> lax.padtype_to_pads((10,), (3,), (2,), "SAME")
        [(0, 1)]
    """
    if not isinstance(padding, str):
        raise errors.TypeMismatchError(
            "a padding by name is a string", got=repr(padding), expected="'VALID', 'SAME' or 'SAME_LOWER'"
        )
    name = padding.upper()
    if name not in ("VALID", "SAME", "SAME_LOWER"):
        raise UnknownPaddingError(
            "there is no padding of this name", got=repr(padding), expected="'VALID', 'SAME' or 'SAME_LOWER'"
        )
    if name == "VALID":
        return [(0, 0)] * len(in_shape)
    pads = []
    for size, window, stride in zip(in_shape, window_shape, window_strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        less, more = int(total // 2), int(total - total // 2)
        pads.append((less, more) if name == "SAME" else (more, less))
    return pads


def explicit(name: str, padding: Any) -> Pads:
    """Padding given as pairs of integers.

    Raises:
        ValueMismatchError: it is something else.
    """
    try:
        return tuple((operator.index(low), operator.index(high)) for low, high in padding)
    except (TypeError, ValueError):
        raise errors.ValueMismatchError(
            f"{name}: this is no padding",
            got=repr(padding),
            expected="'SAME', 'SAME_LOWER', 'VALID', or one (low, high) pair of integers per dimension",
        ) from None


def sizes(
    name: str,
    argument: str,
    given: Sequence[int],
    count: int,
    *,
    error: type[errors.InfiniError] = errors.ValueMismatchError,
) -> tuple[int, ...]:
    """A sequence of `count` positive integers.

    Args:
        name: function to name in errors.
        argument: argument to name in errors.
        given: the integers.
        count: how many there should be.
        error: class of the error for another number of them, which differs in JAX.

    Raises:
        ValueMismatchError: one is not positive.
        TypeMismatchError: they are no integers.
    """
    try:
        found = tuple(operator.index(n) for n in given)
    except TypeError:
        raise errors.TypeMismatchError(
            f"{name}: {argument} are integers", got=repr(given), expected=f"{count} integers"
        ) from None
    if len(found) != count:
        raise error(
            f"{name}: {argument} has another number of entries than there are windowed dimensions",
            got=f"{argument}={found}",
            expected=f"{count} entries",
        )
    if any(n < 1 for n in found):
        raise errors.ValueMismatchError(
            f"{name}: an entry of {argument} is not positive",
            got=f"{argument}={found}",
            expected="positive integers",
        )
    return found
