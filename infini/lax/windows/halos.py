"""How operations over windows are split along the dimensions that windows slide over.

Each device computes its part of the windows (or, going back, of the elements), for which it reads the
elements that they reach: its own and a border of its neighbours'. What a `Line` says of the whole dimension
becomes what it says of that part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import primitive, trace
from infini.core.ir import Attrs
from infini.core.primitive import Signature
from infini.core.value import Value
from infini.lax import neighbours, places
from infini.lax.places import Factors, Part, Tails, Types
from infini.lax.windows import padding as padding_
from infini.lax.windows.padding import Line

Fills = Callable[
    ..., Sequence[Value]
]  # what stands outside of each operand, from the operands and attributes


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The elements that some places of a padded, dilated dimension hold, and how they lie in these places.

    Args:
        value: the array, with these elements along the dimension.
        low: places before the first element; negative ones are removed.
        high: places behind the last one.
        base_dilation: distance of neighbouring elements.
    """

    value: Value
    low: int
    high: int
    base_dilation: int


def seen(
    part: Part, factor: str, x: Value, axis: int, dilation: int,
    origins: Sequence[int], span: int, fill: Value,
) -> Seen:  # fmt: skip
    """Places `origins[i]` to `origins[i] + span` of a split dimension on device i.

    Args:
        part: the part of the equation.
        factor: the factor that splits the dimension.
        x: the part that this device has.
        axis: the dimension.
        dilation: distance of neighbouring elements; the first is at place 0.
        origins: first place for each device.
        span: number of places.
        fill: scalar that stands outside of the array and between elements.
    """
    if len({n % dilation for n in origins}) == 1:
        starts = [-(-n // dilation) for n in origins]
        low = starts[0] * dilation - origins[0]
        size = max((span - 1 - low) // dilation + 1, 1)
        value = neighbours.window(part, factor, x, axis, starts, size, fill)
        return Seen(value, low, span - padding_.dilated(size, dilation) - low, dilation)
    # The first element is at another place on each device, so the holes are filled here.
    starts, offsets = [n // dilation for n in origins], [n % dilation for n in origins]
    size = (max(offsets) + span - 1) // dilation + 1
    value = neighbours.window(part, factor, x, axis, starts, size, fill)
    beyond = max(offsets) + span - padding_.dilated(size, dilation)
    value = neighbours.pad(value, axis, 0, max(beyond, 0), fill, dilation - 1)
    return Seen(neighbours.cut(value, axis, neighbours.by_device(part, factor, offsets), span), 0, 0, 1)


def windows_of(line: Line, count: int) -> tuple[list[int], int]:
    """Places that each of `count` equal parts of the windows reaches: the first ones, and how many."""
    own = line.count // count
    return [i * own * line.stride - line.low for i in range(count)], (own - 1) * line.stride + line.extent


# --- places ----------------------------------------------------------------------------------------


def place(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of reductions over windows and of reading where an extremum is."""
    return _place(op, in_types, out_types, attrs, lambda line: True)


def place_scatter(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of adding where an extremum is; a dilated dimension is whole."""
    return _place(op, in_types, out_types, attrs, lambda line: line.base_dilation == 1)


def _place(
    op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs,
    can_split: Callable[[Line], bool],
) -> Factors:  # fmt: skip
    """Dimensions without windows are split as they are, the others where elements and windows both divide."""
    signature = op.signature_for(attrs)
    assert signature is not None
    # The windowed array is the last operand. Where it has a letter, arrays of windows have it behind a "w".
    names = signature.inputs[-1]
    letters = {c for group in signature.inputs + signature.outputs for c in group}
    renamed: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for i, (name, line) in enumerate(zip(names, _lines(in_types[-1].shape, attrs), strict=True)):
        common = math.gcd(line.size, line.count)
        if f"w{name}" in letters and common > 1 and can_split(line):
            renamed |= {name: f"y{i}", f"w{name}": f"y{i}"}
            sizes[f"y{i}"] = common
    return shared(
        signature, in_types, out_types, renamed, sizes, {c for c in names if f"w{c}" not in letters}
    )


def shared(
    signature: Signature, in_types: Types, out_types: Types,
    renamed: Mapping[str, str], sizes: Mapping[str, int], kept: set[str],
) -> Factors:  # fmt: skip
    """Factors of a signature of which some letters stand for one factor, though their sizes differ.

    Args:
        signature: dimensions.
        in_types: types of the operands.
        out_types: types of the results.
        renamed: factor that such a letter stands for.
        sizes: common divisor of the sizes of the letters of each such factor.
        kept: other letters that may be split.
    """

    def factors(groups: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(renamed.get(c, c) for c in group) for group in groups)

    joined = Signature(factors(signature.inputs), factors(signature.outputs))
    found = places.by_signature(joined, in_types, out_types, frozenset(kept | set(sizes)), "sum")
    return dataclasses.replace(found, sizes={**found.sizes, **sizes})


def tails(found: Factors, factors: Collection[str], attrs: Attrs) -> Tails:
    """TAIL of operations over windows, convolutions too: of dimensions that windows do not slide over."""
    return places.tails_through(found, [n for n in factors if n[0] not in "yz" or not n[1:].isdigit()])


def _lines(shape: Sequence[int], attrs: Mapping[str, Any]) -> list[Line]:  # Any: attributes by name
    rank = len(attrs["window_dimensions"])
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return padding_.lines(tuple(shape)[len(shape) - rank :], *(attrs[name] for name in names))


# --- rules -----------------------------------------------------------------------------------------


def partition(fills: Fills) -> Callable[..., tuple[Value, ...]]:
    """PARTITION of an operation that makes one element of each window."""

    def rule(part: Part, *xs: Value) -> tuple[Value, ...]:
        outside = fills(*xs, **part.attrs)
        values = list(xs)
        ends = {name: [*part.attrs[name]] for name in ("padding", "base_dilation")}
        lines = _lines(part.in_types[-1].shape, part.attrs)
        for i, line in enumerate(lines):
            factor, count = f"y{i}", part.count(f"y{i}")
            if count == 1:
                continue
            origins, span = windows_of(line, count)
            for number, (x, fill) in enumerate(zip(values, outside, strict=True)):
                axis = x.ndim - len(lines) + i
                found = seen(part, factor, x, axis, line.base_dilation, origins, span, fill)
                values[number] = found.value
                ends["padding"][i], ends["base_dilation"][i] = (found.low, found.high), found.base_dilation
        changed = {name: tuple(entries) for name, entries in ends.items()}
        return tuple(trace.bind(part.op, *values, **part.attrs.replace(**changed)))

    return rule


def partition_scatter(fills: Fills) -> Callable[..., tuple[Value, ...]]:
    """PARTITION of adding elements where the extrema of windows are: all windows that reach a device's part
    are looked at again there, and what belongs to other parts is dropped.
    """

    def rule(part: Part, source: Value, x: Value) -> tuple[Value, ...]:
        nothing, outside = fills(source, x, **part.attrs)
        pads = [*part.attrs["padding"]]
        lines = _lines(part.in_types[-1].shape, part.attrs)
        kept = []
        for i, line in enumerate(lines):
            factor, count = f"y{i}", part.count(f"y{i}")
            if count == 1:
                continue
            own = line.size // count
            first = [-((line.extent - 1 - line.low - n * own) // line.stride) for n in range(count)]
            last = [((n + 1) * own - 1 + line.low) // line.stride for n in range(count)]
            size = max(1, *(b - a + 1 for a, b in zip(first, last, strict=True)))
            starts = [n * line.stride - line.low for n in first]
            axes = [y.ndim - len(lines) + i for y in (source, x)]
            source = neighbours.window(part, factor, source, axes[0], first, size, nothing)
            span = (size - 1) * line.stride + line.extent
            x = neighbours.window(part, factor, x, axes[1], starts, span, outside)
            pads[i] = (0, 0)
            kept.append((factor, i - len(lines), [n * own - start for n, start in enumerate(starts)], own))
        (found,) = trace.bind(part.op, source, x, **part.attrs.replace(padding=tuple(pads)))
        for factor, axis, starts, own in kept:
            found = neighbours.from_whole(part, factor, found, found.ndim + axis, starts, own, nothing)
        return (found,)

    return rule


# --- unfold ----------------------------------------------------------------------------------------


def place_unfold(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of unfold: its windows are split with the elements; what is within a window is whole."""
    dims, sizes = places.same_dimensions(in_types[0])
    windowed = [a + len(dims) for a in attrs["axes"]]
    for d in windowed:
        sizes[f"d{d}"] = math.gcd(in_types[0].shape[d], out_types[0].shape[d])
    return Factors((dims,), ((*dims, *(places.WHOLE for _ in windowed)),), sizes)


def tails_unfold(found: Factors, factors: Collection[str], attrs: Attrs) -> Tails:
    """TAIL of unfold."""
    windowed = {name for axis in attrs["axes"] for name in found.inputs[0][axis]}
    return places.tails_through(found, [name for name in factors if name not in windowed])


def partition_unfold(part: Part, x: Value) -> tuple[Value, ...]:
    """PARTITION of unfold."""
    attrs = part.attrs
    columns = zip(attrs["axes"], attrs["sizes"], attrs["strides"], attrs["dilations"], strict=True)
    for axis, size, stride, dilation in columns:
        d = x.ndim + axis
        count = part.count(f"d{d}")
        if count > 1:
            line = Line(part.in_types[0].shape[d], size, stride, window_dilation=dilation)
            origins, span = windows_of(line, count)
            x = neighbours.window(part, f"d{d}", x, d, origins, span, neighbours.zero(x))
    return tuple(trace.bind(part.op, x, **attrs))
