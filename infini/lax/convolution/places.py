"""How a convolution is split over devices.

Batch, features and groups are split as in a contraction. A spatial dimension is split in one of two ways:
with the places of the result, when a device reads the border that its windows reach; or with those of the
kernel, when the kernel is the larger (it is a cotangent, and the result the gradient of a kernel), and
parts of the result add up.
"""

from __future__ import annotations

import math

from infini.core import primitive, trace
from infini.core.ir import Attrs
from infini.core.value import Value
from infini.lax import neighbours
from infini.lax.convolution import spec as spec_
from infini.lax.places import Factors, Part, Types
from infini.lax.windows import halos
from infini.lax.windows.padding import Line


def _is_by_kernel(line: Line) -> bool:
    return line.window > line.count


def _factor(i: int, line: Line) -> str:
    return f"z{i}" if _is_by_kernel(line) else f"y{i}"


def place(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of `conv`."""
    problem = spec_.analyse(*in_types, **attrs)
    renamed: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for i, line in enumerate(problem.lines):
        factor, other = _factor(i, line), f"k{i}" if _is_by_kernel(line) else f"p{i}"
        common = math.gcd(line.size, line.window if _is_by_kernel(line) else line.count)
        if common > 1:
            renamed |= {f"s{i}": factor, other: factor}
            sizes[factor] = common
    signature = spec_.signature(attrs["spec"])
    return halos.shared(signature, in_types, out_types, renamed, sizes, set(problem.spec.letters))


def partition(part: Part, x: Value, w: Value) -> tuple[Value, ...]:
    """PARTITION of `conv`: the convolution of what the windows of this device, or its part of the kernel,
    reach.
    """
    attrs = part.attrs
    problem = spec_.analyse(*part.in_types, **attrs)
    pads, dilations = [*attrs["padding"]], [*attrs["lhs_dilation"]]
    for i, line in enumerate(problem.lines):
        factor = _factor(i, line)
        count = part.count(factor)
        if count == 1:
            continue
        if _is_by_kernel(line):
            own = line.window // count
            origins = [n * own * line.window_dilation - line.low for n in range(count)]
            span = (line.count - 1) * line.stride + (own - 1) * line.window_dilation + 1
        else:
            origins, span = halos.windows_of(line, count)
        axis = x.ndim - len(problem.spec.lhs) + problem.spec.lhs.index(str(i))
        found = halos.seen(part, factor, x, axis, line.base_dilation, origins, span, neighbours.zero(x))
        x, pads[i], dilations[i] = found.value, (found.low, found.high), found.base_dilation
    local = attrs.replace(padding=tuple(pads), lhs_dilation=tuple(dilations))
    return tuple(trace.bind(part.op, x, w, **local))
