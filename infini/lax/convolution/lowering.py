"""A convolution by other operations: patches and one contraction.

Patches are the windows of the image, K elements for every one of its own, so they are made as far as
`PATCH_BYTES` allows, and a part at a time beyond it (`parts`). Depthwise convolutions, in which nothing is
contracted but the kernel's own places, are sums of shifted products that one kernel computes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

from infini.core import trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import calls, contraction, elementwise as e, families, reduction, view
from infini.lax.convolution import holes, parts, spec as spec_
from infini.lax.convolution.plain import Convolution, fresh, without_loops
from infini.lax.convolution.spec import Spec
from infini.lax.windows import unfolding

PATCH_BYTES: Final = 32 << 20  # of patches at a time
MAX_PLACES: Final = 64  # places of a kernel that are written out one by one
FEW: Final = 16  # places that may each ask whether they lie in the padding
NARROW: Final = 16  # features of a group that are too few for a product of matrices along them
MAX_MULTIPLIER: Final = 4  # results per feature of a depthwise convolution computed by shifted products


def decompose(x: Value, w: Value, **attrs: Any) -> tuple[Value]:  # Any: those of `spec.analyse`
    """DECOMPOSE of `conv`."""
    problem = spec_.analyse(x.type, w.type, **attrs)
    if 0 in (*problem.shape, *x.shape, *w.shape):
        return (families.zeros(ArrayType(problem.shape, attrs["dtype"])),)
    found = compute(without_loops(x, w, problem, attrs["dtype"]))
    return (view.reshape(found, problem.shape),)


def compute(conv: Convolution) -> Value:
    """The result of a convolution, with dimensions as its spec says."""
    if any(line.base_dilation > 1 for line in conv.lines):
        return holes.closed(conv, compute)
    if conv.size(conv.spec.contracted) == 1 and conv.size(conv.of_kernel) <= MAX_MULTIPLIER:
        if 1 < conv.window <= MAX_PLACES:
            return _shifted_products(conv)
    elif conv.size(conv.of_image) == conv.size(conv.of_kernel) == 1 and 1 < conv.count <= MAX_PLACES:
        return _sums_of_products(conv)
    if _has_narrow_groups(conv):
        return _spatial_last(conv)
    patches = _Patches(conv)
    if patches.nbytes <= PATCH_BYTES:
        return patches.contracted()
    return parts.in_parts(conv, -(-patches.nbytes // PATCH_BYTES), compute)


# --- groups -------------------------------------------------------------------------------------------


def _has_narrow_groups(conv: Convolution) -> bool:
    """Whether the image is contiguous along features, of which each group has only a few."""
    letters = conv.spec.lhs
    has_groups = conv.size(conv.spec.groups) > 1 and conv.spec.rank > 0
    narrow = min(conv.size(conv.of_kernel), conv.size(conv.spec.contracted))
    return has_groups and not letters[-1].isdigit() and narrow < NARROW


def _spatial_last(conv: Convolution) -> Value:
    """The same with spatial dimensions last, along which products of few features are still long."""
    spec = conv.spec
    lhs, out = (
        "".join(sorted(part, key=lambda c: (c.isdigit(), part.index(c)))) for part in (spec.lhs, spec.out)
    )
    moved = view.transpose(conv.x, [spec.lhs.index(c) for c in lhs])
    # Patches are read from the array in its new order, not through it from the old one.
    image = calls.optimization_barrier(moved)
    found = compute(dataclasses.replace(conv, x=image, spec=Spec(lhs, spec.rhs, out)))
    return view.transpose(calls.optimization_barrier(found), [out.index(c) for c in spec.out])


# --- depthwise ---------------------------------------------------------------------------------------


def _shifted(x: Value, conv: Convolution, place: Sequence[int], *, by_result: bool) -> Value:
    """The elements of a padded image that meet one place of the kernel, or make one place of the result."""
    start, limit, strides = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for i, (line, k) in enumerate(zip(conv.lines, place, strict=True)):
        axis = conv.spec.lhs.index(str(i))
        step, other = line.window_dilation, line.stride
        first, size, stride = (k * other, line.window, step) if by_result else (k * step, line.count, other)
        start[axis], strides[axis] = first, stride
        limit[axis] = first + (size - 1) * stride + 1
    return view.slice(x, start, limit, strides)


def _aligned(x: Value, letters: str, order: str) -> Value:
    """An array with its dimensions in an order, of size 1 where it has none, so that it broadcasts."""
    found = view.transpose(x, [letters.index(c) for c in order if c in letters])
    sizes = iter(found.shape)
    return view.reshape(found, [next(sizes) if c in letters else 1 for c in order])


def _without(x: Value, letters: str, gone: str) -> tuple[Value, str]:
    """An array without some dimensions of size 1."""
    kept = [i for i, c in enumerate(letters) if c not in gone]
    return view.reshape(x, [x.shape[i] for i in kept]), "".join(letters[i] for i in kept)


def _image(conv: Convolution, *, is_stored: bool) -> Value:
    """The image with its padding; an array of its own where places would meet bounds too often."""
    found = conv.padded()
    return calls.optimization_barrier(found) if is_stored and found is not conv.x else found


def _shifted_products(conv: Convolution) -> Value:
    """A sum over the places of the kernel, element by element."""
    spec, wide = conv.spec, conv.accumulator
    image = e.convert_element_type(_image(conv, is_stored=conv.window > FEW), wide)
    kernel = e.convert_element_type(conv.w, wide)
    total: Value | None = None
    for place in itertools.product(*(range(line.window) for line in conv.lines)):
        start = [place[int(c)] if c.isdigit() else 0 for c in spec.rhs]
        limit = [s + 1 if c.isdigit() else n for c, s, n in zip(spec.rhs, start, kernel.shape, strict=True)]
        weight, rhs = _without(view.slice(kernel, start, limit), spec.rhs, spec.contracted + spec.digits)
        part, lhs = _without(_shifted(image, conv, place, by_result=False), spec.lhs, spec.contracted)
        product = trace.bind1(e.mul_p, _aligned(part, lhs, spec.out), _aligned(weight, rhs, spec.out))
        total = product if total is None else trace.bind1(e.add_p, total, product)
    assert total is not None, "a kernel has elements"
    return e.convert_element_type(total, conv.dtype)


def _sums_of_products(conv: Convolution) -> Value:
    """One sum for each place of the result: the gradient of a depthwise kernel."""
    spec, wide = conv.spec, conv.accumulator
    image = e.convert_element_type(_image(conv, is_stored=conv.count > FEW), wide)
    kernel = e.convert_element_type(conv.w, wide)
    order = spec.lhs
    unit = conv.of_image + conv.of_kernel
    order = "".join(c for c in order if c not in unit)
    weight, rhs = _without(kernel, spec.rhs, unit)
    weight = _aligned(weight, rhs, order)
    summed = [i for i, c in enumerate(order) if c in spec.contracted or c.isdigit()]
    kept = "".join(c for i, c in enumerate(order) if i not in summed)
    found = []
    for place in itertools.product(*(range(line.count) for line in conv.lines)):
        part, lhs = _without(_shifted(image, conv, place, by_result=True), spec.lhs, unit)
        product = trace.bind1(e.mul_p, _aligned(part, lhs, order), weight)
        found.append(view.expand_dims(reduction.reduce_sum(product, summed), (0,)))
    while len(found) > 1:
        # Three at a time: kernels join no more.
        found = [view.concatenate(found[i : i + 3], 0) for i in range(0, len(found), 3)]
    (stacked,) = found
    shape = [line.count for line in conv.lines]
    split = view.reshape(stacked, (*shape, *stacked.shape[1:]))
    return e.convert_element_type(_aligned(split, spec.digits + kept, spec.out), conv.dtype)


# --- patches -----------------------------------------------------------------------------------------


class _Patches:
    """The windows of an image as one array, and its contraction with the kernel.

    A digit of the spec becomes two letters, one for the places of windows and one for those inside a window.
    """

    def __init__(self, conv: Convolution) -> None:
        self.conv = conv
        names = fresh(conv.spec, 2 * len(conv.lines) + 1)
        self.joint, names = names[0], names[1:]
        self.positions, self.inside = names[: len(conv.lines)], names[len(conv.lines) :]
        self.sizes = {c: n for c, n in conv.sizes.items() if not c.isdigit()}
        self.sizes.update(zip(self.positions, (line.count for line in conv.lines), strict=True))
        self.sizes.update(zip(self.inside, (line.window for line in conv.lines), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the patches; none when every element of the image is in at most one."""
        if not any(line.window > 1 and line.count > 1 for line in self.conv.lines):
            return 0
        letters = {*self.positions, *self.inside, *self.conv.spec.lhs} & self.sizes.keys()
        return math.prod(self.sizes[c] for c in letters) * self.conv.x.dtype.itemsize

    def contracted(self) -> Value:
        """The result of the convolution."""
        conv, spec = self.conv, self.conv.spec
        patches, letters = self._patches()
        rhs = "".join(self.inside[int(c)] if c.isdigit() else c for c in spec.rhs)
        kernel, rhs = _without(conv.w, rhs, "".join(c for c in self.inside if c not in letters))
        out = "".join(self.positions[int(c)] if c.isdigit() else c for c in spec.out)
        out = "".join(c for c in out if c in letters + rhs)
        summed, left = self._order(letters, rhs, out)
        free = "".join(c for c in out if c not in letters)
        right = self._kernel_order(rhs, summed, free)
        x, left = self._merged(patches, letters, left, summed, self.joint)
        w, right = self._merged(kernel, rhs, right, summed, self.joint)
        if free in out:
            # Features side by side are one dimension of a product of matrices.
            w, right = self._merged(w, right, right, free, free[:1])
            out = out.replace(free[1:], "") if len(free) > 1 else out
        found = trace.bind1(contraction.dot_p, x, w, spec=f"{left},{right}->{out}", dtype=conv.dtype)
        return view.reshape(found, conv.shape)

    def _patches(self) -> tuple[Value, str]:
        """Windows and the letters of their dimensions."""
        conv = self.conv
        # Few features side by side are read together with the places of a window, but not across padding.
        is_narrow = not conv.spec.lhs[-1].isdigit() and conv.x.shape[-1] < NARROW
        image = _image(conv, is_stored=is_narrow)
        letters = list(conv.spec.lhs)
        start, limit, strides = [0] * image.ndim, list(image.shape), [1] * image.ndim
        overlapping = []
        for i, line in enumerate(conv.lines):
            axis = conv.spec.lhs.index(str(i))
            letters[axis] = self.positions[i]
            if line.window == 1:
                strides[axis] = line.stride
            elif line.count == 1:
                strides[axis], letters[axis] = line.window_dilation, self.inside[i]
            else:
                overlapping.append((axis, i))
        image = view.slice(image, start, limit, strides)
        if overlapping:
            overlapping.sort()
            lines = [conv.lines[i] for _, i in overlapping]
            image = unfolding.unfold(
                image,
                [axis for axis, _ in overlapping],
                [line.window for line in lines],
                [line.stride for line in lines],
                [line.window_dilation for line in lines],
            )
            letters += [self.inside[i] for _, i in overlapping]
        return image, "".join(letters)

    def _order(self, letters: str, rhs: str, out: str) -> tuple[str, str]:
        """The contracted letters, and all letters of the patches, in the order that reads the image and
        multiplies in order: groups first, contracted letters side by side, and last what is contiguous in
        the image.
        """
        groups = "".join(c for c in out if c in letters and c in rhs)
        free = "".join(c for c in out if c in letters and c not in rhs)
        summed = "".join(c for c in rhs if c in letters and c not in out)
        last = self.conv.spec.lhs[-1]
        if not last.isdigit():
            if last in summed:
                summed = summed.replace(last, "") + last
                return summed, groups + free + summed
            return summed, groups + summed + free.replace(last, "") + last * (last in free)
        line = self.conv.lines[int(last)]
        inner = self.positions if line.count >= line.window else self.inside
        if any(c in free for c in inner):
            tail = "".join(c for c in free if c in inner)
            return summed, groups + "".join(c for c in free if c not in tail) + summed + tail
        tail = "".join(c for c in inner if c in summed)
        summed = "".join(c for c in summed if c not in tail) + tail
        return summed, groups + free + summed

    def _kernel_order(self, rhs: str, summed: str, free: str) -> str:
        """Letters of the kernel with the contracted ones side by side, the last one staying last."""
        groups = "".join(c for c in rhs if c not in summed and c not in free)
        return groups + (free + summed if rhs[-1:] in summed else summed + free)

    def _merged(self, x: Value, letters: str, order: str, run: str, name: str) -> tuple[Value, str]:
        """An array in an order, with a run of its dimensions joined into one."""
        x = view.transpose(x, [letters.index(c) for c in order])
        if not run:
            return x, order
        at = order.index(run)
        after = at + len(run)
        shape = (*x.shape[:at], families.prod(x.shape[at:after]), *x.shape[after:])
        return view.reshape(x, shape), order[:at] + name + order[after:]
