"""How slice, pad, rev and concatenate are split along the dimensions that they change.

Elements change their device there, so PARTITION rules read windows of split dimensions (`lax.neighbours`).
Sizes before and after differ: a factor that both share has the size of their common divisor, so that both
divide by every number of devices that divides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from infini.core import dtypes, primitive, trace
from infini.core.ir import Attrs
from infini.core.value import Value
from infini.lax import neighbours, places
from infini.lax.places import WHOLE, Dimension, Factors, Part, Reducer, Types

MANY: Final = 8  # elements of a divisor that most numbers of devices divide
FEW: Final = 4  # a slice of this part of a dimension is added up; adding more costs as much as a gather


def _share(size: int, other: int) -> bool:
    """Whether two sizes of one dimension are split together. A small one is whole instead."""
    common = math.gcd(size, other) if size and other else 0
    return common >= MANY or (common > 1 and 2 * min(size, other) >= max(size, other))


# --- slice ----------------------------------------------------------------------------------------


def place_slice(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of slice. Few elements of a split dimension are added up from the parts, most of which are
    zero.
    """
    (x,), (y,) = in_types, out_types
    ours: list[Dimension] = [WHOLE] * x.ndim
    theirs: list[Dimension] = [WHOLE] * x.ndim
    sizes: dict[str, int] = {}
    reduced: dict[str, Reducer] = {}
    for d, (n, m) in enumerate(zip(x.shape, y.shape, strict=True)):
        name = f"d{d}"
        if n == m or _share(n, m):
            ours[d], theirs[d], sizes[name] = (name,), (name,), math.gcd(n, m)
        elif m == 0:
            ours[d], sizes[name] = (name,), n
        elif FEW * m <= n and x.dtype != dtypes.bool_:
            ours[d], sizes[name], reduced[name] = (name,), n, "sum"
    return Factors((tuple(ours),), (tuple(theirs),), sizes, reduced)


def partition_slice(part: Part, x: Value) -> tuple[Value]:
    """PARTITION of slice: windows of split dimensions, of which the step takes its elements."""
    shape, result = part.in_types[0].shape, part.out_types[0].shape
    rank = len(part.attrs["limit"])
    bounds = {name: [*part.attrs[name]] for name in ("start", "limit", "strides")}
    for number, d in enumerate(range(x.ndim - rank, x.ndim)):
        name = f"d{d}"
        count, length = part.count(name), x.shape[d]
        if count == 1:
            continue
        if shape[d] == result[d]:
            bounds["limit"][number] = length
            continue
        if result[d] == 0:
            bounds["start"][number] = bounds["limit"][number] = 0
            continue
        first, stride = bounds["start"][number], bounds["strides"][number]
        kept = result[d] if name in part.reduced else result[d] // count
        size, zero = (kept - 1) * stride + 1, neighbours.zero(x)
        if name in part.reduced:
            starts = [first - i * length for i in range(count)]
            x = neighbours.from_whole(part, name, x, d, starts, size, zero)
        else:
            starts = [first + i * kept * stride for i in range(count)]
            x = neighbours.window(part, name, x, d, starts, size, zero)
        bounds["start"][number], bounds["limit"][number] = 0, size
    ends = {name: tuple(numbers) for name, numbers in bounds.items()}
    if ends["limit"] == x.shape[x.ndim - rank :] and not any(ends["start"]) and set(ends["strides"]) <= {1}:
        return (x,)
    return (trace.bind1(part.op, x, **ends),)


# --- pad ------------------------------------------------------------------------------------------


def place_pad(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of pad. What is small beside the result is whole, and each device places its part of it."""
    (x, fill), (y,) = in_types, out_types
    ours: list[Dimension] = [WHOLE] * x.ndim
    theirs: list[Dimension] = [WHOLE] * x.ndim
    sizes: dict[str, int] = {}
    changed = _changed(x.ndim, attrs)
    for d, (n, m) in enumerate(zip(x.shape, y.shape, strict=True)):
        name = f"d{d}"
        if d not in changed or _share(n, m):
            ours[d], theirs[d], sizes[name] = (name,), (name,), math.gcd(n, m)
        elif m:
            theirs[d], sizes[name] = (name,), m
    return Factors((tuple(ours), *places.whole([fill])), (tuple(theirs),), sizes)


def _changed(ndim: int, attrs: Attrs) -> set[int]:
    columns = zip(attrs["low"], attrs["high"], attrs["interior"], strict=True)
    first = ndim - len(attrs["low"])
    return {first + i for i, column in enumerate(columns) if any(column)}


def partition_pad(part: Part, x: Value, fill: Value) -> tuple[Value]:
    """PARTITION of pad: the elements that lie in a device's part of the result, moved to their places."""
    rank = len(part.attrs["low"])
    ends = {name: [*part.attrs[name]] for name in ("low", "high", "interior")}
    changed = _changed(x.ndim, part.attrs)
    for number, d in enumerate(range(x.ndim - rank, x.ndim)):
        name = f"d{d}"
        count = part.count(name)
        if count == 1 or d not in changed:
            continue
        step, size = ends["interior"][number] + 1, part.local_shapes[0][d]
        # Places of the result, counted from the first element: this device's begin there.
        origins = [i * size - ends["low"][number] for i in range(count)]
        starts, offsets = [n // step for n in origins], [n % step for n in origins]
        length = (max(offsets) + size - 1) // step + 1
        read = neighbours.window if x.shape[d] != part.in_types[0].shape[d] else neighbours.from_whole
        x = read(part, name, x, d, starts, length, fill)
        beyond = max(offsets) + size - ((length - 1) * step + 1)
        x = neighbours.pad(x, d, 0, max(beyond, 0), fill, step - 1)
        x = neighbours.cut(x, d, neighbours.by_device(part, name, offsets), size)
        for numbers in ends.values():
            numbers[number] = 0
    if not any(any(numbers) for numbers in ends.values()):
        return (x,)
    return (trace.bind1(part.op, x, fill, **{name: tuple(numbers) for name, numbers in ends.items()}),)


# --- rev ------------------------------------------------------------------------------------------


def partition_rev(part: Part, x: Value) -> tuple[Value]:
    """PARTITION of rev: the part at the other end, backwards. Its PLACE is `places.every_dimension`."""
    for axis in part.attrs["axes"]:
        d = x.ndim + axis
        count, length = part.count(f"d{d}"), x.shape[d]
        if count > 1:
            size = part.in_types[0].shape[d]
            starts = [size - (i + 1) * length for i in range(count)]
            x = neighbours.window(part, f"d{d}", x, d, starts, length, neighbours.zero(x))
    return (trace.bind1(part.op, x, **part.attrs),)


# --- concatenate ----------------------------------------------------------------------------------


def place_concatenate(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of concatenate. Along the joined dimension the large operands are split with the result; the
    others are whole.
    """
    dims, sizes = places.same_dimensions(out_types[0])
    at = out_types[0].ndim + attrs["axis"]
    lengths = [t.shape[at] for t in in_types]
    (name,) = dims[at]
    split = set()
    for number, length in sorted(enumerate(lengths), key=lambda item: -item[1]):
        common = math.gcd(sizes[name], length)
        if length and common > 1 and (common >= MANY or 4 * length >= sum(lengths)):
            sizes[name] = common
            split.add(number)
    inputs = [_with(dims, at, dims[at] if k in split else WHOLE) for k in range(len(lengths))]
    return Factors(tuple(inputs), (dims if sizes[name] else _with(dims, at, WHOLE),), sizes)


def _with(dims: Sequence[Dimension], at: int, factors: Dimension) -> tuple[Dimension, ...]:
    return (*dims[:at], factors, *dims[at + 1 :])


def partition_concatenate(part: Part, *xs: Value) -> tuple[Value]:
    """PARTITION of concatenate: what lies in a device's part of the result, of each operand."""
    at = xs[0].ndim + part.attrs["axis"]
    name = f"d{at}"
    count = part.count(name)
    if count == 1:
        return (trace.bind1(part.op, *xs, **part.attrs),)
    size, position = part.local_shapes[0][at], 0
    found: list[neighbours.Piece] = []
    for x, type_ in zip(xs, part.in_types, strict=True):
        starts = [i * size - position for i in range(count)]
        if x.shape[at] != type_.shape[at]:
            found += neighbours.pieces(part, name, x, at, starts, size)
        elif x.shape[at]:
            found.append(neighbours.Piece(x, [-start for start in starts]))
        position += type_.shape[at]
    return (neighbours.assemble(part, name, found, at, size, neighbours.zero(xs[0])),)
