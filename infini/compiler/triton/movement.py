"""Triton sources of operations that move elements by run-time indices: dynamic slices, gather, scatter,
interior padding.

One program handles a block of elements of the result (of the updates, for scatters), takes its position apart
by constant divisions and computes where the element comes from. Parameters are x0, x1 ... for operands and y0
for the result; the result of an update starts as a copy of its first operand. Scatter-add of 16-bit floats
sums in float32 in the memory `scratch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from infini.compiler.triton.access import c_strides
from infini.compiler.triton.source import SIGNATURE_NAMES, TritonSource, language_name, literal
from infini.core import dtypes, errors
from infini.core.ir import ArrayType, Attrs, Shape
from infini.lax import families
from infini.lax.indexing import GatherDimensionNumbers, scatter_slice_sizes

_BLOCK = 1024
_ATOMIC = frozenset(
    {dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int64, dtypes.uint32, dtypes.uint64}
)


class _Text:
    """Lines of a function whose programs take one block of elements each."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.size = math.prod(shape)
        self.lines = [
            "i = tl.program_id(0).to(tl.int64) * 1024 + tl.arange(0, 1024)",
            f"inside = i < {self.size}",
        ]

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append(text)

    def positions(self) -> list[str]:
        """Position of each element along each dimension."""
        places = []
        for d, stride in enumerate(c_strides(self.shape)):
            whole = f"i // {stride}" if stride > 1 else "i"
            self.line(f"d{d} = {whole} % {self.shape[d]}" if d else f"d{d} = {whole}")
            places.append(f"d{d}")
        return places

    def source(self, name: str, parameters: Sequence[tuple[str, ArrayType]]) -> TritonSource:
        """The finished source."""
        names = [p for p, _ in parameters]
        head = (
            f"import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef {name}({', '.join(names)}):\n"
        )
        return TritonSource(
            text=head + "".join(f"    {line}\n" for line in self.lines),
            function_name=name,
            signature=tuple((p, f"*{_signature(t.dtype)}") for p, t in parameters),
            constexprs=(),
            divisibility=tuple(names),
            grid=(-(-self.size // _BLOCK),),
            num_warps=4,
            num_stages=2,
        )


def dynamic_slice(types: Sequence[ArrayType], attrs: Attrs) -> tuple[TritonSource, ...]:
    """A slice at run-time starts, which are clamped."""
    operand = types[0]
    out = operand.update(shape=attrs["slice_sizes"])
    text = _Text(out.shape)
    at = _clamped_starts(text, operand.shape, out.shape, 1)
    offset = _offset([f"({d} + {s})" for d, s in zip(text.positions(), at, strict=True)], operand.shape)
    text.line(f"tl.store(y0 + i, tl.load(x0 + {offset}, mask=inside), mask=inside)")
    return (text.source("dynamic_slice", _parameters(types, out)),)


def dynamic_update_slice(types: Sequence[ArrayType], attrs: Attrs) -> tuple[TritonSource, ...]:
    """Write a block at run-time starts, which are clamped."""
    operand, update, *_ = types
    text = _Text(update.shape)
    at = _clamped_starts(text, operand.shape, update.shape, 2)
    offset = _offset([f"({d} + {s})" for d, s in zip(text.positions(), at, strict=True)], operand.shape)
    text.line(f"tl.store(y0 + {offset}, tl.load(x1 + i, mask=inside), mask=inside)")
    return (text.source("dynamic_update_slice", _parameters(types, operand)),)


def gather(types: Sequence[ArrayType], attrs: Attrs) -> tuple[TritonSource, ...]:
    """Windows at indices read from an array."""
    operand, indices = types
    numbers: GatherDimensionNumbers = attrs["dimension_numbers"]
    sizes, mode, fill = attrs["slice_sizes"], attrs["mode"], attrs["fill_value"]
    out = operand.update(shape=_gathered_shape(indices, numbers, sizes))
    text = _Text(out.shape)
    offset = _window(text, operand.shape, indices, numbers, sizes, mode)
    number = families.default_fill(operand.dtype) if fill is None else fill
    other = literal(np.asarray(number).astype(operand.dtype).item(), operand.dtype)
    other = str(int(other == "True")) if operand.dtype == dtypes.bool_ else other
    text.line(f"tl.store(y0 + i, tl.load(x0 + {offset}, mask=valid, other={other}), mask=inside)")
    return (text.source("gather", _parameters(types, out)),)


def scatter(types: Sequence[ArrayType], attrs: Attrs) -> tuple[TritonSource, ...]:
    """Write windows at indices; which of several writes to one place stays is unspecified."""
    text, offset = _scattered(types, attrs)
    text.line(f"tl.store(y0 + {offset}, tl.load(x2 + i, mask=inside), mask=valid)")
    return (text.source("scatter", _parameters(types, types[0])),)


def scatter_add(types: Sequence[ArrayType], attrs: Attrs) -> tuple[TritonSource, ...]:
    """Add windows at indices by atomic additions, whose order is not fixed.

    Raises:
        LoweringError: the dtype has no atomic addition.
    """
    operand = types[0]
    is_small = operand.dtype in (dtypes.float16, dtypes.bfloat16)
    if not is_small and operand.dtype not in _ATOMIC:
        raise errors.LoweringError(
            f"scatter_add of {dtypes.short(operand.dtype)} has no atomic addition on the device",
            fix="convert to int32 or float32 first",
        )
    target = "scratch" if is_small else "y0"
    text, offset = _scattered(types, attrs)
    value = "tl.load(x2 + i, mask=inside)" + (".to(tl.float32)" if is_small else "")
    text.line(f'tl.atomic_add({target} + {offset}, {value}, mask=valid, sem="relaxed")')
    wide = operand.update(dtype=dtypes.float32)
    parameters = _parameters(types, operand)
    add = text.source("scatter_add", [*parameters, ("scratch", wide)] if is_small else parameters)
    if not is_small:
        return (add,)
    return (
        _converted("widen", "y0", operand, "scratch", wide),
        add,
        _converted("round", "scratch", wide, "y0", operand),
    )


def pad(types: Sequence[ArrayType], attrs: Attrs) -> tuple[TritonSource, ...]:
    """Padding with elements between."""
    operand = types[0]
    loops = operand.ndim - len(attrs["low"])
    none = (0,) * loops
    low, high, inner = (none + tuple(attrs[name]) for name in ("low", "high", "interior"))
    shape = tuple(
        n + max(n - 1, 0) * k + a + b for n, k, a, b in zip(operand.shape, inner, low, high, strict=True)
    )
    text = _Text(shape)
    moved = []
    for d, place in enumerate(text.positions()):
        step = inner[d] + 1
        text.line(f"p{d} = {place} - {low[d]}")
        text.line(f"k{d} = p{d} // {step}")
        moved.append((f"k{d}", f"(p{d} >= 0) & (p{d} % {step} == 0) & (k{d} < {operand.shape[d]})"))
    text.line(f"valid = {' & '.join(['inside', *(check for _, check in moved)])}")
    text.line(f"found = tl.load(x0 + {_offset([k for k, _ in moved], operand.shape)}, mask=valid)")
    text.line("tl.store(y0 + i, tl.where(valid, found, tl.load(x1)), mask=inside)")
    return (text.source("pad", _parameters(types, operand.update(shape=shape))),)


def scratch_bytes(name: str, types: Sequence[ArrayType]) -> int:
    """Scratch memory that the sources of an operation use."""
    operand = types[0]
    is_small = operand.dtype in (dtypes.float16, dtypes.bfloat16)
    return operand.size * dtypes.float32.itemsize if name == "scatter_add" and is_small else 0


# --- parts -----------------------------------------------------------------------------------


def _parameters(types: Sequence[ArrayType], out: ArrayType) -> list[tuple[str, ArrayType]]:
    return [*((f"x{n}", t) for n, t in enumerate(types)), ("y0", out)]


def _signature(dtype: np.dtype) -> str:
    language_name(dtype)  # refuses dtypes without a Triton form
    return SIGNATURE_NAMES[dtype]


def _offset(places: Sequence[str], shape: Shape) -> str:
    terms = [p if w == 1 else f"{p} * {w}" for p, w in zip(places, c_strides(shape), strict=True)]
    return " + ".join(terms) or "i * 0"


def _clamped_starts(text: _Text, shape: Shape, sizes: Shape, first: int) -> list[str]:
    names = []
    for d, (n, size) in enumerate(zip(shape, sizes, strict=True)):
        text.line(f"s{d} = tl.minimum(tl.maximum(tl.load(x{first + d}).to(tl.int64), 0), {n - size})")
        names.append(f"s{d}")
    return names


def _gathered_shape(indices: ArrayType, numbers: GatherDimensionNumbers, sizes: Shape) -> Shape:
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    window = iter([s for d, s in enumerate(sizes) if d not in dropped])
    batch = iter(indices.shape[:-1])
    ndim = len(numbers.offset_dims) + indices.ndim - 1
    return tuple(next(window) if d in numbers.offset_dims else next(batch) for d in range(ndim))


def _window(
    text: _Text, shape: Shape, indices: ArrayType, numbers: GatherDimensionNumbers, sizes: Shape, mode: str
) -> str:
    """Write the start of each element's window; returns its offset in the operand and defines `valid`."""
    places = text.positions()
    batch = [p for d, p in enumerate(places) if d not in numbers.offset_dims]
    columns = len(numbers.start_index_map)
    row = _offset(batch, indices.shape[:-1]) if batch else "i * 0"
    text.line(f"row = ({row}) * {columns}")
    starts = ["0"] * len(shape)
    for column, d in enumerate(numbers.start_index_map):
        text.line(f"s{d} = tl.load(x1 + row + {column}, mask=inside, other=0).to(tl.int64)")
        starts[d] = f"s{d}"
    for d, where in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        starts[d] = batch[where]
    valid = ["inside"]
    for d in numbers.start_index_map:
        limit = shape[d] - sizes[d]
        if mode == "fill":
            valid.append(f"(s{d} >= 0) & (s{d} <= {limit})")
        else:
            text.line(f"s{d} = tl.minimum(tl.maximum(s{d}, 0), {limit})")
    text.line(f"valid = {' & '.join(valid)}")
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    window = iter(numbers.offset_dims)
    full = [
        starts[d] if d in dropped else f"({starts[d]} + {places[next(window)]})" for d in range(len(shape))
    ]
    return _offset(full, shape)


def _scattered(types: Sequence[ArrayType], attrs: Attrs) -> tuple[_Text, str]:
    operand, indices, updates = types
    dn = attrs["dimension_numbers"]
    numbers = GatherDimensionNumbers(
        dn.update_window_dims,
        dn.inserted_window_dims,
        dn.scatter_dims_to_operand_dims,
        dn.operand_batching_dims,
        dn.scatter_indices_batching_dims,
    )
    text = _Text(updates.shape)
    sizes = scatter_slice_sizes(operand, updates, dn)
    return text, _window(text, operand.shape, indices, numbers, sizes, attrs["mode"])


def _converted(name: str, source: str, from_: ArrayType, target: str, to: ArrayType) -> TritonSource:
    text = _Text(from_.shape)
    value = f"tl.load({source} + i, mask=inside).to({language_name(to.dtype)})"
    text.line(f"tl.store({target} + i, {value}, mask=inside)")
    return text.source(name, [(source, from_), (target, to)])
