"""Triton sources of operations that move elements by run-time indices: dynamic slices, gather, scatter;
of interior padding, and of joining more arrays than a kernel takes.

One program handles a block of elements of the result (of the updates, for scatters), takes its position apart
by constant divisions and computes where the element comes from. Parameters are x0, x1 ... for operands and y0
for the result; the result of an update starts as a copy of its first operand. Scatters that combine use an
atomic operation where the device has one, and compare-and-swap elsewhere; dtypes of fewer than 32 bits are
combined in the memory `scratch`, in float32 or 32-bit integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from infini.compiler.triton.access import c_strides
from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import TritonSource, language_name, literal
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs, Shape
from infini.lax.indexing import KINDS, GatherDimensionNumbers, fill_of

_BLOCK = 1024
# Dtypes of fewer than 32 bits are combined in these.
_WIDE: Final = {
    dtypes.bool_: dtypes.int32,
    dtypes.int8: dtypes.int32,
    dtypes.int16: dtypes.int32,
    dtypes.uint8: dtypes.uint32,
    dtypes.uint16: dtypes.uint32,
    dtypes.float16: dtypes.float32,
    dtypes.bfloat16: dtypes.float32,
}
_PLAIN_INTEGERS: Final = frozenset({dtypes.int32, dtypes.int64, dtypes.uint32, dtypes.uint64})
# Atomic operations of the device, with the dtypes they take.
_ATOMIC: Final = {
    "add": ("tl.atomic_add", _PLAIN_INTEGERS | {dtypes.float32, dtypes.float64}),
    "min": ("tl.atomic_min", _PLAIN_INTEGERS),
    "max": ("tl.atomic_max", _PLAIN_INTEGERS),
}
_FLOAT8: Final = (dtypes.float8_e4m3fn, dtypes.float8_e5m2)


class _Text(FunctionText):
    """A function whose programs take one block of elements each; positions are 64-bit only where an array of
    `others` needs that.
    """

    def __init__(self, shape: Shape, target: Target, *others: ArrayType) -> None:
        super().__init__(target)
        self.shape = shape
        self.size = math.prod(shape)
        self.index = index_dtype(self.size, *(t.size for t in others))
        self.line(f"i = pid * {_BLOCK} + tl.arange(0, {_BLOCK})")
        self.line(f"inside = i < {self.size}")

    def positions(self) -> list[str]:
        """Position of each element along each dimension."""
        if self.size:
            self.note(f"the element's place in {list(self.shape)}")
        places = []
        lead = True  # the slowest dimension of more than one element needs no remainder
        for d, stride in enumerate(c_strides(self.shape)):
            if self.shape[d] == 1:
                places.append("0")
                continue
            whole = f"i // {stride}" if stride > 1 else "i"
            self.line(f"d{d} = {whole}" if lead else f"d{d} = {whole} % {self.shape[d]}")
            places.append(f"d{d}")
            lead = False
        return places

    def start(self, name: str, place: str, type_: ArrayType, mask: str = "") -> None:
        """A variable for positions from memory: of the dtype of positions, or of 64 bits where they may be
        larger.
        """
        loaded = f"tl.load({place}, mask={mask}, other=0)" if mask else f"tl.load({place})"
        fits = type_.dtype.itemsize < 4 or type_.dtype == dtypes.int32
        self.line(f"{name} = {loaded}.to({self.index if fits else 'tl.int64'})")

    def elements(self, name: str, parameters: Sequence[tuple[str, ArrayType]]) -> TritonSource:
        """The finished source."""
        about = [f"{name}: {self.size} elements, {_BLOCK} for each program"]
        return self.source(name, parameters, -(-self.size // _BLOCK), about=about, index=self.index)


def dynamic_slice(
    types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """A slice at run-time starts, which are clamped."""
    operand = types[0]
    out = operand.update(shape=attrs["slice_sizes"])
    text = _Text(out.shape, target, operand)
    at = _clamped_starts(text, types, out.shape, 1)
    offset = _offset([_sum(d, s) for d, s in zip(text.positions(), at, strict=True)], operand.shape)
    text.line(f"tl.store(y0 + i, tl.load(x0 + {offset}, mask=inside), mask=inside)")
    return (text.elements("dynamic_slice", _parameters(types, out)),)


def dynamic_update_slice(
    types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """Write a block at run-time starts, which are clamped."""
    operand, update, *_ = types
    text = _Text(update.shape, target, operand)
    at = _clamped_starts(text, types, update.shape, 2)
    offset = _offset([_sum(d, s) for d, s in zip(text.positions(), at, strict=True)], operand.shape)
    text.line(f"tl.store(y0 + {offset}, tl.load(x1 + i, mask=inside), mask=inside)")
    return (text.elements("dynamic_update_slice", _parameters(types, operand)),)


def gather(types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC) -> tuple[TritonSource, ...]:
    """Windows at indices read from an array."""
    operand, indices = types
    numbers: GatherDimensionNumbers = attrs["dimension_numbers"]
    sizes, mode = attrs["slice_sizes"], attrs["mode"]
    out = operand.update(shape=numbers.result_shape(indices.shape[:-1], sizes))
    text = _Text(out.shape, target, operand, indices)
    offset = _window(text, operand.shape, indices, numbers, sizes, clips=mode != "fill")
    number = fill_of(operand.dtype, attrs["fill_value"])
    if operand.dtype in _FLOAT8 or operand.dtype == dtypes.bool_:
        other = str(int(number.view(np.uint8)))
    else:
        other = literal(number.item(), operand.dtype)
    text.line(f"tl.store(y0 + i, tl.load(x0 + {offset}, mask=valid, other={other}), mask=inside)")
    return (text.elements("gather", _parameters(types, out)),)


def scatter(name: str) -> Callable[..., tuple[TritonSource, ...]]:
    """Sources of the scatter `name`. Which of several writes to one place stays is unspecified, as is the
    order in which they combine.
    """
    combine = KINDS[name].combine

    def sources(
        types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
    ) -> tuple[TritonSource, ...]:
        operand, indices, updates = types
        dn = attrs["dimension_numbers"]
        text = _Text(updates.shape, target, operand, indices)
        sizes = dn.slice_sizes(operand.shape, updates.shape)
        offset = _window(text, operand.shape, indices, dn.as_gather, sizes, clips=attrs["mode"] == "clip")
        if combine is None:
            text.line(f"tl.store(y0 + {offset}, tl.load(x2 + i, mask=inside), mask=valid)")
            return (text.elements(name, _parameters(types, operand)),)
        wide = operand.update(dtype=_WIDE.get(operand.dtype, operand.dtype))
        text.line(f"value = tl.load(x2 + i, mask=inside, other=0).to({language_name(wide.dtype)})")
        parameters = _parameters(types, operand)
        if attrs["unique_indices"]:
            _combine_once(text, combine, offset, operand, wide)
            return (text.elements(name, parameters),)
        place = "y0" if wide == operand else "scratch"
        _combine_atomically(text, combine, f"{place} + {offset}", wide)
        if wide == operand:
            return (text.elements(name, parameters),)
        return (
            _converted("widen", ("y0", operand), ("scratch", wide), target),
            text.elements(name, [*parameters, ("scratch", wide)]),
            _converted("round", ("scratch", wide), ("y0", operand), target),
        )

    return sources


def _combined(combine: str, a: str, b: str, dtype: np.dtype) -> str:
    """Text of what is there and an update taken together; NaN wins comparisons."""
    if combine in ("add", "mul"):
        return f"{a} {'+' if combine == 'add' else '*'} {b}"
    if dtype in dtypes.FLOATS:
        return f"{combine}_with_nan({a}, {b})"
    return f"tl.{combine}imum({a}, {b})"


def _combine_once(text: _Text, combine: str, offset: str, operand: ArrayType, wide: ArrayType) -> None:
    """Where no place repeats, what is there can be read and written back."""
    text.line(f"old = tl.load(y0 + {offset}, mask=valid, other=0).to({language_name(wide.dtype)})")
    back = "tl.int8" if operand.dtype == dtypes.bool_ else language_name(operand.dtype)
    new = _combined(combine, "old", "value", wide.dtype)
    text.line(f"tl.store(y0 + {offset}, ({new}).to({back}), mask=valid)")


def _combine_atomically(text: _Text, combine: str, place: str, wide: ArrayType) -> None:
    function, taken = _ATOMIC.get(combine, ("", frozenset()))
    if wide.dtype in taken:
        text.line(f'{function}({place}, value, mask=valid, sem="relaxed")')
        return
    # Lanes without a place look at the first element and never change it. A lane is done when what it saw is
    # what it combined with; then it swaps equal bits until all are done.
    bits = "tl.int32" if wide.dtype.itemsize == 4 else "tl.int64"
    own = language_name(wide.dtype)
    head, _, rest = place.partition(" + ")
    for line in (
        f"place = ({head} + tl.where(valid, {rest}, 0)).to(tl.pointer_type({bits}), bitcast=True)",
        "old = tl.load(place)",
        "left = valid",
        "while tl.max(left.to(tl.int32), 0) > 0:",
        f"    was = old.to({own}, bitcast=True)",
        f"    new = ({_combined(combine, 'was', 'value', wide.dtype)}).to({bits}, bitcast=True)",
        '    seen = tl.atomic_cas(place, old, tl.where(left, new, old), sem="relaxed")',
        "    left = left & (seen != old)",
        "    old = seen",
    ):
        text.line(line)


def pad(types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC) -> tuple[TritonSource, ...]:
    """Padding with elements between."""
    operand = types[0]
    loops = operand.ndim - len(attrs["low"])
    none = (0,) * loops
    low, high, inner = (none + tuple(attrs[name]) for name in ("low", "high", "interior"))
    shape = tuple(
        n + max(n - 1, 0) * k + a + b for n, k, a, b in zip(operand.shape, inner, low, high, strict=True)
    )
    text = _Text(shape, target, operand)
    places, moved, checks = text.positions(), [], ["inside"]
    text.note("the operand's element that lies there, if one does")
    for d, place in enumerate(places):
        if shape[d] == operand.shape[d] and not low[d] and not inner[d]:
            moved.append(place)
            continue
        step, moved_to, place = inner[d] + 1, f"k{d}", place if place != "0" else "i * 0"
        text.line(f"k{d} = {place} - {low[d]}" if low[d] > 0 else f"k{d} = {place} + {-low[d]}")
        checks.append(f"(k{d} >= 0)")
        if step > 1:
            checks.append(f"(k{d} % {step} == 0)")
            moved_to = f"(k{d} // {step})"
        checks.append(f"(k{d} < {(operand.shape[d] - 1) * step + 1})")
        moved.append(moved_to)
    text.line(f"valid = {' & '.join(checks)}")
    text.line(f"found = tl.load(x0 + {_offset(moved, operand.shape)}, mask=valid)")
    text.line("tl.store(y0 + i, tl.where(valid, found, tl.load(x1)), mask=inside)")
    return (text.elements("pad", _parameters(types, operand.update(shape=shape))),)


def concatenate(
    types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """Join many arrays: a function per operand, which copies it to where it begins in the result."""
    axis = attrs["axis"] + types[0].ndim
    joined = sum(t.shape[axis] for t in types)
    out = types[0].update(shape=(*types[0].shape[:axis], joined, *types[0].shape[axis + 1 :]))
    row, start, sources = math.prod(out.shape[axis:]), 0, []
    for number, type_ in enumerate(types):
        run = math.prod(type_.shape[axis:])
        if not type_.size:
            continue
        text = _Text(type_.shape, target, out)
        text.note(f"rows of {run} elements, from place {start} on of rows of {row}")
        begin = f" + {start}" if start else ""
        place = "i" if type_.size == run else f"i // {run} * {row} + i % {run}"
        text.line(f"tl.store(y0 + {place}{begin}, tl.load(x{number} + i, mask=inside), mask=inside)")
        sources.append(text.elements("concatenate", [(f"x{number}", type_), ("y0", out)]))
        start += run
    return tuple(sources)


def scratch_bytes(name: str, types: Sequence[ArrayType]) -> int:
    """Scratch memory that the sources of an operation use."""
    operand = types[0]
    is_small = name in KINDS and KINDS[name].combine is not None and operand.dtype in _WIDE
    return operand.size * _WIDE[operand.dtype].itemsize if is_small else 0


# --- parts -----------------------------------------------------------------------------------


def _parameters(types: Sequence[ArrayType], out: ArrayType) -> list[tuple[str, ArrayType]]:
    return [*((f"x{n}", t) for n, t in enumerate(types)), ("y0", out)]


def _offset(places: Sequence[str], shape: Shape, *, is_block: bool = False) -> str:
    """Where an element lies; `is_block` says that some of the places differ from element to element."""
    terms = [p if w == 1 else f"{p} * {w}" for p, w in zip(places, c_strides(shape), strict=True) if p != "0"]
    is_block = is_block or any(re.search(r"\b[dk]\d", term) for term in terms)
    return " + ".join(terms if is_block and terms else [*terms, "i * 0"])


def _sum(place: str, start: str) -> str:
    """The place of an element in a window that starts somewhere."""
    parts = [part for part in (start, place) if part != "0"]
    return f"({' + '.join(parts)})" if len(parts) > 1 else "".join(parts) or "0"


def _clamped_starts(text: _Text, types: Sequence[ArrayType], sizes: Shape, first: int) -> list[str]:
    """Starts of a window, moved so far that the window lies inside; '0' where there is only one place."""
    names = []
    text.note("starts, moved so that everything lies inside")
    for d, (n, size) in enumerate(zip(types[0].shape, sizes, strict=True)):
        if n == size:
            names.append("0")
            continue
        text.start(f"s{d}", f"x{first + d}", types[first + d])
        text.line(f"s{d} = tl.minimum(tl.maximum(s{d}, 0), {n - size}).to({text.index})")
        names.append(f"s{d}")
    return names


def _window(
    text: _Text,
    shape: Shape,
    indices: ArrayType,
    numbers: GatherDimensionNumbers,
    sizes: Shape,
    *,
    clips: bool,
) -> str:
    """Write the start of each element's window; returns its offset in the operand and defines `valid`."""
    places = text.positions()
    batch = [p for d, p in enumerate(places) if d not in numbers.offset_dims]
    columns = len(numbers.start_index_map)
    row = _offset(batch, indices.shape[:-1]) if batch else "i * 0"
    text.note("the indices of its window, and whether it lies inside the operand")
    text.line(f"row = {row}" if columns == 1 else f"row = ({row}) * {columns}")
    starts = ["0"] * len(shape)
    for column, d in enumerate(numbers.start_index_map):
        text.start(f"s{d}", f"x1 + row + {column}" if column else "x1 + row", indices, "inside")
        starts[d] = f"s{d}"
    for d, where in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        starts[d] = batch[where]
    valid = ["inside"]
    for d in numbers.start_index_map:
        limit = shape[d] - sizes[d]
        if clips:
            text.line(f"s{d} = tl.minimum(tl.maximum(s{d}, 0), {limit})")
        else:
            valid.append(f"(s{d} >= 0) & (s{d} <= {limit})")
    text.line(f"valid = {' & '.join(valid)}")
    if indices.dtype.itemsize == 8 and text.index == "tl.int32":
        for d in numbers.start_index_map:
            text.line(f"s{d} = s{d}.to(tl.int32)")
    window = iter(numbers.offset_dims)
    full = [
        starts[d] if d in numbers.dropped else _sum(places[next(window)], starts[d])
        for d in range(len(shape))
    ]
    return _offset(full, shape, is_block=columns > 0)


def _converted(
    name: str, source: tuple[str, ArrayType], result: tuple[str, ArrayType], target: Target
) -> TritonSource:
    """A copy in another dtype."""
    (from_, from_type), (to, type_) = source, result
    text = _Text(from_type.shape, target)
    name_of = "tl.int8" if type_.dtype == dtypes.bool_ else language_name(type_.dtype)
    value = f"tl.load({from_} + i, mask=inside).to({name_of})"
    text.line(f"tl.store({to} + i, {value}, mask=inside)")
    return text.elements(name, [source, result])
