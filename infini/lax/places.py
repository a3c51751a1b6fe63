"""How the dimensions of an operation correspond: what PLACE rules answer, and what PARTITION rules are told.

A *factor* is a piece of a dimension that operands and results share: a loop dimension, a letter of a
contraction, the leading part of a reshaped dimension. Splitting a factor over a mesh axis splits every
dimension that contains it, so `Factors` is all the partitioner needs to know of an operation. A
dimension without factors is never split. The idea of factors is Shardy's
(https://openxla.org/shardy/propagation).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np

from infini.core import primitive, trace
from infini.core.ir import ArrayType, Attrs, Shape
from infini.core.value import Value

Dimension: TypeAlias = tuple[str, ...]  # factors of one dimension, most significant first
Reducer: TypeAlias = Literal["sum", "max", "min"]
Types: TypeAlias = Sequence[ArrayType]
Linear: TypeAlias = tuple[frozenset[int], ...]
Fill: TypeAlias = Callable[[np.dtype], Any]  # Any: a number of the dtype
Tails: TypeAlias = Mapping[str, tuple[Fill | None, ...]]
WHOLE: Final[Dimension] = ()


@dataclass(frozen=True, slots=True)
class Factors:
    """The dimensions of an equation in factors.

    Args:
        inputs: for each operand the factors of each of its dimensions.
        outputs: the same for the results.
        sizes: number of elements of each factor.
        reduced: factors that results lack, and how the parts that devices compute combine. Of several
            results, those that have the factor are whole there; those that lack it combine. What lacks a
            factor that is not here is the same on every device: its PARTITION sees to that.
        linear: sets of operands in which the operation is linear together, the other operands being equal
            everywhere: what it makes of the terms of a sum are terms of its result.
        tails: the factors that may be split into parts of different sizes. Parts have room for equally many
            elements; those behind the last of a dimension are its *tail*, which holds anything. For each
            operand what its tail is filled with first; None when the tail of a result is all that depends on
            it.
    """

    inputs: tuple[tuple[Dimension, ...], ...]
    outputs: tuple[tuple[Dimension, ...], ...]
    sizes: Mapping[str, int]
    reduced: Mapping[str, Reducer] = field(default_factory=dict)
    linear: Linear = ()
    tails: Tails = field(default_factory=dict)


class Part(Protocol):
    """What a PARTITION rule is told about one device's part of an equation."""

    op: primitive.Primitive
    attrs: Attrs
    in_types: tuple[ArrayType, ...]  # global
    out_types: tuple[ArrayType, ...]  # global
    local_shapes: tuple[Shape, ...]  # of the results, on one device
    reduced: tuple[str, ...]  # factors that results lack and that are split

    def start(self, factor: str, dtype: Any) -> Value | None:
        """First index of this device along a factor, as a scalar; None when the factor is not split."""

    def is_first(self, *factors: str) -> Value | None:
        """Whether this device is the first along all of these factors; None when none of them is split."""

    def is_zero(self, operand: int) -> bool:
        """Whether an operand is known to be zero everywhere."""

    def count(self, factor: str) -> int:
        """Number of parts that a factor is split into; 1 when it is not split."""

    def has_tail(self, factor: str) -> bool:
        """Whether parts of a factor differ in size."""

    def index(self, factor: str) -> Value:
        """Which of the parts of a split factor this device has, as an int32 scalar."""

    def gather(self, x: Value, factor: str, axis: int) -> Value:
        """The parts that devices along a factor have of an array, joined along an axis."""

    def exchange(self, x: Value, factor: str, split: int, concat: int, *, is_back: bool = False) -> Value:
        """An array whose parts lie along `concat`, cut along `split` instead; `is_back` undoes it."""

    def permute(self, x: Value, factor: str, pairs: Sequence[tuple[int, int]]) -> Value:
        """What arrives by (source, destination) pairs of parts; zeros where nothing does."""


def alone(*operands: int) -> Linear:
    """LINEAR of an operation that is linear in each of these operands while the others do not change."""
    return tuple(frozenset({i}) for i in operands)


def together(*operands: int) -> Linear:
    """LINEAR of an operation that is linear in these operands at once, as a sum is in its terms."""
    return (frozenset(operands),)


def linear_of(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Linear:
    """The sets of operands in which an operation is linear together: as its LINEAR says, else its only
    operand when it has a transpose.
    """
    if not op.has(primitive.LINEAR):
        is_linear = op.has(primitive.TRANSPOSE) and len(in_types) == 1 and not op.is_higher_order
        return alone(0) if is_linear else ()
    rule = op.rule(primitive.LINEAR)
    found: Linear = rule(in_types, out_types, attrs) if callable(rule) else rule
    return found


def same_dimensions(type_: ArrayType) -> tuple[tuple[Dimension, ...], dict[str, int]]:
    """Factors of an array, one per dimension, and their sizes."""
    sizes = {f"d{i}": n for i, n in enumerate(type_.shape)}
    return tuple((name,) for name in sizes), sizes


def whole(types: Types) -> tuple[tuple[Dimension, ...], ...]:
    """Operands that are never split."""
    return tuple((WHOLE,) * t.ndim for t in types)


def loop_factors(
    types: Types, core_ranks: Sequence[int], loop: Shape
) -> tuple[list[list[Dimension]], dict[str, int]]:
    """Factors of the loop dimensions of operands; a dimension of size 1 that repeats belongs to none."""
    names = [f"loop{i}" for i in range(len(loop), 0, -1)]
    found = []
    for type_, rank in zip(types, core_ranks, strict=True):
        sizes = type_.shape[: type_.ndim - rank]
        own = zip(sizes, names[len(names) - len(sizes) :], loop[len(loop) - len(sizes) :], strict=True)
        found.append([(name,) if size == full else WHOLE for size, name, full in own])
    return found, dict(zip(names, loop, strict=True))


# --- tails ----------------------------------------------------------------------------------


def zero(dtype: np.dtype) -> int:
    """What adds nothing to a sum, and is an index that every dimension has."""
    return 0


def whole_factors(found: Factors, in_types: Types, out_types: Types) -> frozenset[str]:
    """The factors that are whole dimensions wherever they occur, and so may have parts of different sizes."""
    whole_ = {name for name, size in found.sizes.items() if size > 1}
    arrays = zip((*found.inputs, *found.outputs), (*in_types, *out_types), strict=True)
    for dims, type_ in arrays:
        for names, size in zip(dims, type_.shape, strict=True):
            if len(names) > 1 or any(found.sizes[name] != size for name in names):
                whole_.difference_update(names)
    return frozenset(whole_)


def tails_through(found: Factors, factors: Collection[str], attrs: Attrs | None = None) -> Tails:
    """TAIL of what computes each element of a result from those beside it: tails make tails. Sums are of
    zeros there, if the operation is linear in one of the operands that have the factor.
    """
    linear = frozenset[int]().union(*found.linear)
    tails: dict[str, tuple[Fill | None, ...]] = {}
    for name in sorted(factors):
        own = [any(name in names for names in dims) for dims in found.inputs]
        if all(any(name in names for names in dims) for dims in found.outputs):
            tails[name] = (None,) * len(own)
        elif found.reduced.get(name) == "sum" and any(own[i] for i in linear):
            tails[name] = tuple(zero if has else None for has in own)
    return tails


def tails_kept(found: Factors, factors: Collection[str], attrs: Attrs | None = None) -> Tails:
    """As `tails_through`, of the factors that every result has."""
    tails = tails_through(found, factors)
    return {name: fills for name, fills in tails.items() if not any(fills)}


def tails_of_zeros(found: Factors, factors: Collection[str], attrs: Attrs | None = None) -> Tails:
    """As `tails_kept`, of an operation that searches for what it computes, as library routines do, and may
    not come to an end for any numbers.
    """
    return {
        name: tuple(zero if any(name in names for names in dims) else None for dims in found.inputs)
        for name in tails_kept(found, factors)
    }


def tails_along(found: Factors, factors: Collection[str], axes: Sequence[int], *fills: Fill | None) -> Tails:
    """Tails of an operation that combines elements of its operands along some axes: there each is filled."""
    filled = {name for axis in axes for name in found.inputs[0][axis]}
    nothing = (None,) * len(found.inputs)
    return {name: fills if name in filled else nothing for name in sorted(factors)}


# --- rules that operations name in their blocks ---------------------------------------------


def every_letter(reducer: Reducer | None = "sum") -> Any:  # Any: a PLACE rule
    """PLACE of an operation that may be split along every letter of its signature; contracted ones
    combine by `reducer`.
    """

    def rule(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
        signature = op.signature_for(attrs)
        assert signature is not None
        splittable = signature.letters if reducer else signature.letters - signature.contracted
        return by_signature(signature, in_types, out_types, splittable, reducer or "sum")

    return rule


def every_letter_apart(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """As `every_letter`, of an operation whose PARTITION combines the parts along contracted letters."""
    found: Factors = every_letter()(op, in_types, out_types, attrs)
    return replace(found, reduced={})


def by_signature(
    signature: primitive.Signature,
    in_types: Types,
    out_types: Types,
    splittable: frozenset[str],
    reducer: Reducer,
) -> Factors:
    """Factors from a signature: loop dimensions, and the letters that may be split."""
    ranks = [len(group) for group in signature.inputs]
    out_rank = len(signature.outputs[0])
    loop = out_types[0].shape[: out_types[0].ndim - out_rank]
    loops, sizes = loop_factors(in_types, ranks, loop)
    out_loop: list[Dimension] = [(name,) for name in sizes]
    for group, type_ in zip(signature.inputs + signature.outputs, (*in_types, *out_types), strict=True):
        sizes.update(zip(group, type_.shape[type_.ndim - len(group) :], strict=True))

    def core(group: tuple[str, ...]) -> tuple[Dimension, ...]:
        return tuple((letter,) if letter in splittable else WHOLE for letter in group)

    return Factors(
        tuple((*own, *core(group)) for own, group in zip(loops, signature.inputs, strict=True)),
        tuple((*out_loop, *core(group)) for group in signature.outputs),
        sizes,
        dict.fromkeys(sorted(signature.contracted & splittable), reducer),
    )


def every_dimension(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of an operation whose operands and results have one shape, and whose PARTITION sees to the
    dimensions along which elements depend on each other.
    """
    dims, sizes = same_dimensions(in_types[0])
    kept = tuple(d if sizes[d[0]] else WHOLE for d in dims)
    return Factors((kept,) * len(in_types), (kept,) * len(out_types), sizes)


def place_axes(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of an operation along the negative `axes` or `axis`, which stay whole."""
    axes = attrs["axes"] if "axes" in attrs else (attrs.get("axis", -1),)
    dims, sizes = same_dimensions(in_types[0])
    ndim = in_types[0].ndim
    kept = tuple(WHOLE if i - ndim in axes else d for i, d in enumerate(dims))
    return Factors((kept,) * len(in_types), (kept,) * len(out_types), sizes)


def place_dynamic_slice(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of dynamic_slice: dimensions of unchanged size are split. Other operands are scalars."""
    dims, sizes = same_dimensions(in_types[0])
    kept = tuple(
        d if n == m else WHOLE for d, n, m in zip(dims, in_types[0].shape, out_types[0].shape, strict=True)
    )
    return Factors((kept, *whole(in_types[1:])), (kept,), sizes)


def place_update_slice(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of dynamic_update_slice: dimensions that the update covers are split, and those along which it is
    one row, which the device that has the row writes.
    """
    dims, sizes = same_dimensions(in_types[0])
    pairs = list(zip(dims, in_types[0].shape, in_types[1].shape, strict=True))
    kept = tuple(d if m in (1, n) else WHOLE for d, n, m in pairs)
    update = tuple(d if n == m else WHOLE for d, n, m in pairs)
    return Factors((kept, update, *whole(in_types[2:])), (kept,), sizes)


def partition_dynamic_slice(part: Part, x: Value, *starts: Value) -> tuple[Value]:
    """PARTITION of dynamic_slice: sizes of untouched dimensions become those of the local part."""
    shape = part.local_shapes[0]
    return (trace.bind1(primitive.by_name("dynamic_slice"), x, *starts, slice_sizes=shape),)


def place_reshape(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of reshape: dimensions that split or merge share the factors of their common refinement, the
    leading first.
    """
    (x,), (y,) = in_types, out_types
    left: list[Dimension] = [WHOLE] * x.ndim
    right: list[Dimension] = [WHOLE] * y.ndim
    sizes: dict[str, int] = {}
    if x.size == 0:
        return Factors((tuple(left),), (tuple(right),), sizes)
    for xs, ys in _common_runs(x.shape, y.shape):
        _refine(xs, ys, x.shape, y.shape, left, right, sizes)
    return Factors((tuple(left),), (tuple(right),), sizes)


def _common_runs(x: Shape, y: Shape) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of dimensions with equal products, from the left."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(x) or j < len(y):
        xs, ys, m, n = [], [], 1, 1
        if i < len(x):
            xs, m, i = [i], x[i], i + 1
        if j < len(y):
            ys, n, j = [j], y[j], j + 1
        while m != n:
            if (m < n and i < len(x)) or j == len(y):
                xs.append(i)
                m, i = m * x[i], i + 1
            else:
                ys.append(j)
                n, j = n * y[j], j + 1
        runs.append((xs, ys))
    return runs


def _refine(
    xs: list[int], ys: list[int], x: Shape, y: Shape,
    left: list[Dimension], right: list[Dimension], sizes: dict[str, int],
) -> None:  # fmt: skip
    """Cut the dimensions of a run into factors from the left, for as long as the cuts of both sides nest."""
    a, b = [(d, x[d]) for d in xs if x[d] > 1], [(d, y[d]) for d in ys if y[d] > 1]
    while a and b:
        (i, m), (j, n) = a[0], b[0]
        common = min(m, n)
        if m % common or n % common:
            return
        name = f"f{len(sizes)}"
        sizes[name] = common
        left[i], right[j] = (*left[i], name), (*right[j], name)
        a = [(i, m // common), *a[1:]] if m > common else a[1:]
        b = [(j, n // common), *b[1:]] if n > common else b[1:]


def partition_reshape(part: Part, x: Value) -> tuple[Value]:
    """PARTITION of reshape: to the local shape."""
    return (trace.bind1(primitive.by_name("reshape"), x, shape=part.local_shapes[0], ndim=x.ndim),)


def partition_broadcast(part: Part, x: Value) -> tuple[Value]:
    """PARTITION of broadcast_in_dim: to the local shape."""
    shape = part.local_shapes[0]
    shape = shape[len(shape) - len(part.attrs["shape"]) :]
    return (trace.bind1(primitive.by_name("broadcast_in_dim"), x, shape=shape, dims=part.attrs["dims"]),)


def place_iota(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of iota: every dimension may be split."""
    dims, sizes = same_dimensions(out_types[0])
    return Factors((), (dims,), sizes)


def partition_iota(part: Part) -> tuple[Value]:
    """PARTITION of iota: count from the first index of this device, so random streams do not depend on
    the mesh.
    """
    attrs = part.attrs.replace(shape=part.local_shapes[0])
    count = trace.bind1(primitive.by_name("iota"), **attrs)
    start = part.start(f"d{attrs['dimension']}", attrs["dtype"])
    return (count if start is None else trace.bind1(primitive.by_name("add"), count, start),)
