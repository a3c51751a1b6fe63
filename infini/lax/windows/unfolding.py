"""`unfold`: an array of all windows along some axes, which may overlap; its transpose adds them up.

It moves elements without computing and its index map is affine, so kernels read through it and the array of
windows exists only where something asks for it: the patches of a convolution, the windows of a reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Literal, Value
from infini.lax import cases, elementwise as e, families, indexing, view
from infini.lax.cases import Case, Sample
from infini.lax.windows import halos, reference
from infini.lax.windows.padding import Line

MAX_TERMS: Final = 64  # sums of more shifted arrays are a scatter instead


def _lines(
    x: ArrayType, axes: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[Line]:
    return [
        Line(x.shape[a], k, s, window_dilation=d)
        for a, k, s, d in zip(axes, sizes, strides, dilations, strict=True)
    ]


def _signature(
    *, axes: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> Signature:
    names = families.letters(max((-a for a in axes), default=0))
    positions = tuple(f"p{i}" if i - len(names) in axes else name for i, name in enumerate(names))
    return Signature((names,), (positions + families.letters(len(axes), "k"),))


def _type(x: ArrayType, *, axes: Any, sizes: Any, strides: Any, dilations: Any) -> tuple[ArrayType]:
    found = _lines(x, axes, sizes, strides, dilations)
    if any(line.count < 1 or line.window < 1 for line in found):
        raise errors.TypeMismatchError(
            "unfold: a window is empty or larger than its dimension",
            got=f"{x}, axes {axes}, sizes {sizes}, dilations {dilations}",
        )
    shape = list(x.shape)
    for a, line in zip(axes, found, strict=True):
        shape[a] = line.count
    return (x.update(shape=(*shape, *sizes)),)


def _reference(x: np.ndarray, *, axes: Any, sizes: Any, strides: Any, dilations: Any) -> np.ndarray:
    lines = _lines(ArrayType(x.shape, x.dtype), axes, sizes, strides, dilations)
    return np.ascontiguousarray(reference.windows(x, list(axes), lines))


def _transpose(ct: Value, x: Any, *, axes: Any, sizes: Any, strides: Any, dilations: Any) -> tuple[Value]:
    lines = _lines(x.type, axes, sizes, strides, dilations)
    # The window dimensions stand last; the innermost is folded first.
    for number in range(len(axes) - 1, -1, -1):
        ct = fold(ct, axes[number] - (number + 1), lines[number])
    return (ct,)


def _case(shape: tuple[int, ...], axes: Any, sizes: Any, strides: Any, dilations: Any) -> Case:
    attrs = {"axes": axes, "sizes": sizes, "strides": strides, "dilations": dilations}
    return Case((Sample(shape),), attrs, "exact")


unfold_p: Primitive = primitive.register(
    Primitive(
        "unfold",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: families.linear_jvp("unfold"),
            primitive.TRANSPOSE: _transpose,
            primitive.PLACE: halos.place_unfold,
            primitive.PARTITION: halos.partition_unfold,
            primitive.TAIL: halos.tails_unfold,
            primitive.CASES: cases.always(dtypes.ALL, _case((7, 6, 3), (-3, -2), (2, 3), (2, 1), (2, 1))),
        },
    )
)


def unfold(
    x: Value, axes: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Value:
    """Every window along some axes.

    Args:
        x: array.
        axes: axes to take windows along, in order.
        sizes: elements of a window along each of them.
        strides: distance of the first elements of neighbouring windows.
        dilations: distance of neighbouring elements of a window.

    Returns:
        An array whose `axes` number the windows, with the dimensions of the windows added at the end.

    Raises:
        TypeMismatchError: a window does not fit.
    """
    negative = tuple(families.normalize_axis(a, x.ndim) - x.ndim for a in axes)
    return trace.bind1(
        unfold_p, x, axes=negative, sizes=tuple(sizes), strides=tuple(strides), dilations=tuple(dilations)
    )


def fold(x: Value, axis: int, line: Line) -> Value:
    """The transpose of `unfold` along one axis: windows added where they came from.

    Args:
        x: windows; `axis` numbers them, and the last dimension is that within a window.
        axis: negative axis of the windows.
        line: how they lie in the result.

    Returns:
        The array of size `line.size` along the axis, without the last dimension.
    """
    if x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2:
        wide = e.convert_element_type(x, dtypes.float32)
        return e.convert_element_type(fold(wide, axis, line), x.dtype)
    flipped = Line(line.size, line.count, line.window_dilation, window_dilation=line.stride)
    if min(_num_terms(line), _num_terms(flipped)) > MAX_TERMS:
        return _scattered(x, axis, line)
    if _num_terms(flipped) < _num_terms(line):
        return _shifted(view.transpose(x, _exchanged(x.ndim, axis)), axis, flipped)
    return _shifted(x, axis, line)


def _num_terms(line: Line) -> int:
    """Shifted arrays to add: parts of a window that fill the distance to the next one count as one."""
    return -(-line.window // line.stride) if line.window_dilation == 1 else line.window


def _exchanged(ndim: int, axis: int) -> list[int]:
    order = list(range(ndim))
    order[axis], order[-1] = order[-1], order[axis]
    return order


def _shifted(x: Value, axis: int, line: Line) -> Value:
    """The sum over offsets within a window of what lies there, shifted to its place."""
    total: Value | None = None
    # A block of a window fills the distance to the next window, so blocks of all windows are one dense array.
    block = line.stride if line.window_dilation == 1 else 1
    for start in range(0, line.window, block):
        width = min(block, line.window - start)
        part = view.slice_in_dim(x, start, start + width, axis=-1)
        part = _side_by_side(part, axis, line.stride, width)
        part = _placed(part, axis, start * line.window_dilation, line)
        total = part if total is None else trace.bind1(e.add_p, total, part)
    assert total is not None, "a window has elements"
    return total


def _side_by_side(x: Value, axis: int, stride: int, width: int) -> Value:
    """Parts of windows, each in a row of `stride` places, one after another along the axis."""
    position = axis + x.ndim
    if width < stride:
        x = _padded(x, -1, 0, stride - width)
    order = [d for d in range(x.ndim - 1) if d <= position] + [x.ndim - 1]
    order += [d for d in range(x.ndim - 1) if d > position]
    moved = view.transpose(x, order)
    shape = (*moved.shape[:position], moved.shape[position] * stride, *moved.shape[position + 2 :])
    return view.reshape(moved, shape)


def _placed(x: Value, axis: int, start: int, line: Line) -> Value:
    axis += 1  # the dimension within the window is gone
    return _padded(x, axis, start, line.size - start - x.shape[axis])


def _padded(x: Value, axis: int, low: int, high: int) -> Value:
    if low == high == 0:
        return x
    rank = -axis
    zero = Literal(np.zeros((), x.dtype), weak=False)
    ends = [(low, high), *((0, 0),) * (rank - 1)]
    return trace.bind1(
        view.pad_p,
        x,
        zero,
        low=tuple(a for a, _ in ends),
        high=tuple(b for _, b in ends),
        interior=(0,) * rank,
    )


def _scattered(x: Value, axis: int, line: Line) -> Value:
    """Windows added one element at a time; for long windows of many positions."""
    position = axis + x.ndim
    order = [position, x.ndim - 1, *(d for d in range(x.ndim - 1) if d != position)]
    rows = view.transpose(x, order)
    kept = rows.shape[2:]
    rows = view.reshape(rows, (line.count * line.window, *kept))
    first = view.broadcasted_iota(dtypes.int32, (line.count, line.window), 0)
    offset = view.broadcasted_iota(dtypes.int32, (line.count, line.window), 1)
    index = e.add(
        families.bind_scalars(e.mul_p, first, line.stride),
        families.bind_scalars(e.mul_p, offset, line.window_dilation),
    )
    numbers = indexing.ScatterDimensionNumbers(tuple(range(1, len(kept) + 1)), (0,), (0,))
    target = families.zeros(ArrayType((line.size, *kept), x.dtype))
    added = indexing.scatter_add(
        target, view.reshape(index, (line.count * line.window, 1)), rows, numbers, mode="clip"
    )
    back = [*range(1, position + 1), 0, *range(position + 1, added.ndim)]
    return view.transpose(added, back)
