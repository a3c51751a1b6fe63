"""Convolutions whose image has holes between its elements, as in a transposed convolution, without
multiplying the holes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import families, view
from infini.lax.convolution.plain import Compute, Convolution, fresh, padded
from infini.lax.convolution.spec import Spec
from infini.lax.windows.padding import Line


def closed(conv: Convolution, compute: Compute) -> Value:
    """The result of a convolution whose image is dilated.

    Args:
        conv: the convolution.
        compute: computes convolutions without holes.
    """
    dilated = [i for i, line in enumerate(conv.lines) if line.base_dilation > 1]
    lines = [conv.lines[i] for i in dilated]
    if all(line.window_dilation == 1 for line in conv.lines) and any(n.window > n.count for n in lines):
        return _exchanged(conv, compute)
    if all(line.stride == line.window_dilation == 1 for line in lines):
        return _in_phases(conv, dilated, compute)
    return compute(_filled(conv))


def _filled(conv: Convolution) -> Convolution:
    """The same with zeros in the holes."""
    config = [(0, 0, 0)] * conv.x.ndim
    lines = []
    for i, line in enumerate(conv.lines):
        config[conv.spec.lhs.index(str(i))] = (0, 0, line.base_dilation - 1)
        lines.append(dataclasses.replace(line, size=line.base, base_dilation=1))
    return dataclasses.replace(conv, x=padded(conv.x, config), lines=tuple(lines))


def _exchanged(conv: Convolution, compute: Compute) -> Value:
    """Image and kernel change places, so the holes are in the kernel; the result comes out reversed.

    Elements q and k meet where base_dilation * q = stride * p + window_dilation * k - low, which is symmetric
    in q and k when p counts from the other end.
    """
    lines = []
    for line in conv.lines:
        span = (line.count - 1) * line.stride
        turned = Line(
            line.window, line.size, line.stride, span - line.low, 0, line.window_dilation, line.base_dilation
        )
        high = span + turned.extent - turned.base - turned.low
        lines.append(dataclasses.replace(turned, high=high))
    spec = Spec(conv.spec.rhs, conv.spec.lhs, conv.spec.out)
    found = compute(Convolution(conv.w, conv.x, spec, tuple(lines), conv.dtype))
    return view.rev(found, [spec.out.index(c) for c in spec.digits])


def _in_phases(conv: Convolution, dilated: list[int], compute: Compute) -> Value:
    """Results that lie equally between elements of the image meet the same part of the kernel: one output
    feature for each place between, interleaved afterwards.

    With L the dilation and p - low = L a - b, 0 <= b < L, for result p, element L j + b of the kernel meets
    element a + j of the image.
    """
    names = dict(zip(dilated, fresh(conv.spec, len(dilated)), strict=True))
    cuts = {}
    for i in dilated:
        line, step = conv.lines[i], conv.lines[i].base_dilation
        first = step - 1 - (step * _start(line) + line.low)
        cuts[i] = (first, first + line.count, _num_steps(line) * step)
    # New features stand beside those of the kernel, where contractions write them in order.
    anchor = next((c for c in conv.spec.out if c in conv.of_kernel), "")
    at = conv.spec.out.index(anchor) if anchor else len(conv.spec.out)
    out = conv.spec.out[:at] + "".join(names.values()) + conv.spec.out[at:]

    def found(rest: list[int], places: dict[int, range]) -> Value:
        if not rest:
            return _phases(conv, places, names, out, compute)
        i, *others = rest
        pieces = [found(others, {**places, i: some}) for some in _places(conv, i)]
        return view.concatenate(pieces, out.index(names[i])) if len(pieces) > 1 else pieces[0]

    wanted = "".join(c + names.get(int(c), "") if c.isdigit() else c for c in conv.spec.out)
    result = view.transpose(found(dilated, {}), [out.index(c) for c in wanted])
    shape = [
        cuts[int(c)][2] if c.isdigit() and int(c) in cuts else n
        for c, n in zip(conv.spec.out, conv.shape, strict=True)
    ]
    result = view.reshape(result, shape)
    offsets = [cuts[int(c)][0] if c.isdigit() and int(c) in cuts else 0 for c in conv.spec.out]
    return view.slice(result, offsets, [s + n for s, n in zip(offsets, conv.shape, strict=True)])


def _start(line: Line) -> int:
    """The element a of the first result: ceil(-low / L)."""
    return -(line.low // line.base_dilation)


def _num_steps(line: Line) -> int:
    """Elements a of all results."""
    step = line.base_dilation
    return -(-(step - 1 - (step * _start(line) + line.low) + line.count) // step)


def _places(conv: Convolution, i: int) -> list[range]:
    """Places b between elements that meet equally many of the kernel, from the last one on.

    Zeros in the kernel would make them all one, but also NaN of infinite elements that are not met.
    """
    line = conv.lines[i]
    step, more = line.base_dilation, line.window % line.base_dilation
    if not more or not dtypes.is_inexact(conv.dtype):
        return [range(step)]
    return [range(more, step), range(more)]


def _phases(
    conv: Convolution, places: Mapping[int, range], names: Mapping[int, str], out: str, compute: Compute
) -> Value:
    """The results at some places between elements, with a dimension for these."""
    w, rhs, lines = conv.w, conv.spec.rhs, list(conv.lines)
    counts: dict[str, int] = {}
    for i, some in places.items():
        line, step = conv.lines[i], conv.lines[i].base_dilation
        length = -(-(line.window - some.start) // step)
        axis, count = rhs.index(str(i)), _num_steps(line)
        ends = length * step - line.window
        w = padded(w, [(0, ends if d == axis else 0, 0) for d in range(w.ndim)])
        w = view.reshape(w, (*w.shape[:axis], length, step, *w.shape[axis + 1 :]))
        w = view.slice_in_dim(w, some.start, some.stop, axis=axis + 1)
        w = view.rev(w, (axis + 1,))
        rhs = rhs[: axis + 1] + names[i] + rhs[axis + 1 :]
        start = _start(line)
        lines[i] = Line(line.size, length, 1, -start, count + length - 1 - line.size + start)
        counts |= {names[i]: len(some), str(i): count}
    found = Convolution(conv.x, w, Spec(conv.spec.lhs, rhs, out), tuple(lines), conv.dtype)
    if 0 in w.shape:  # nothing of the kernel is met
        sizes = conv.sizes | counts
        return families.zeros(ArrayType(tuple(sizes[c] for c in out), conv.dtype))
    return compute(found)
