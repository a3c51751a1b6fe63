"""Where the extremum of each window is: reading there, `select_and_gather_add`, and adding there,
`select_and_scatter_add`.

Each is linear in its first operand and the transpose of the other; the second operand only selects, so they
are differentiable any number of times. Of equal elements the first in row-major order is selected. These are
the derivatives of windowed extrema, of max pooling for example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Literal, Value
from infini.lax import cases, elementwise as e, families, indexing, reduction, view
from infini.lax.cases import Case, Sample
from infini.lax.windows import folds, halos, reductions as windows_, reference
from infini.lax.windows.folds import Parts
from infini.lax.windows.padding import Line

Attributes = Any  # Any: those of `reductions.lines_of`

MAX_TERMS: Final = 64  # windows that an element may lie in before they are scattered one by one


def _extreme(select: str, dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """The number that is never selected before another one."""
    return reduction.lowest(dtype) if select == "ge" else reduction.highest(dtype)


def _positions(x: np.ndarray, lines: Sequence[Line], select: str) -> tuple[np.ndarray, np.ndarray]:
    """For every window the flat position in the padded array of its extremum, and whether it is a number that
    can be selected.
    """
    wide = x.astype(np.float32) if x.dtype.itemsize <= 2 else x
    fill = _extreme(select, x.dtype)
    found = reference.flat_windows(wide, lines, fill)
    chosen = (np.argmax if select == "ge" else np.argmin)(found, axis=-1)[..., None]
    sizes = [line.base + line.low + line.high for line in lines]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    flat = reference.windows(numbers, list(range(-len(lines), 0)), lines)
    flat = np.broadcast_to(flat.reshape(*flat.shape[: len(lines)], -1), found.shape)
    value = np.take_along_axis(found, chosen, -1)[..., 0]
    return np.take_along_axis(flat, chosen, -1)[..., 0], value != wide.dtype.type(fill)


# --- reading ----------------------------------------------------------------------------------------


def _type_gather(g: ArrayType, x: ArrayType, *, select: str, **attrs: Attributes) -> tuple[ArrayType]:
    families.accept("select_and_gather_add", dtypes.FLOATS, [g, x])
    rank = len(attrs["window_dimensions"])
    if g.shape[g.ndim - rank :] != x.shape[x.ndim - rank :]:
        raise errors.TypeMismatchError("select_and_gather_add: shapes differ", got=f"{g}, {x}")
    loops = families.loop_shape("select_and_gather_add", [g, x], [rank, rank])
    found = windows_.result_type(x, **attrs)
    return (ArrayType((*loops, *found.shape[found.ndim - rank :]), g.dtype),)


def _reference_gather(g: np.ndarray, x: np.ndarray, *, select: str, **attrs: Attributes) -> np.ndarray:
    g, x = np.broadcast_arrays(g, x)
    lines = windows_.lines_of(x.shape, **attrs)
    chosen, is_real = _positions(x, lines, select)
    rank = len(lines)
    for axis, line in zip(range(-rank, 0), lines, strict=True):
        g = reference.padded(g, axis, line)
    rows = g.reshape(*g.shape[: g.ndim - rank], -1)
    flat = chosen.reshape(*chosen.shape[: chosen.ndim - rank], -1)
    read = np.take_along_axis(rows, flat, -1).reshape(chosen.shape)
    return np.where(is_real, read, np.zeros((), g.dtype))


def _decompose_gather(g: Value, x: Value, *, select: str, **attrs: Attributes) -> tuple[Value]:
    lines = windows_.lines_of(x.shape, **attrs)
    (out,) = _type_gather(g.type, x.type, select=select, **attrs)
    if 0 in (*g.shape, *x.shape, *out.shape):
        return (families.zeros(out),)
    g, x = _of_one_shape(g, x)
    lowest = _number(_extreme(select, x.dtype), x.dtype)
    monoid = folds.Monoid(_chooser(select), (lowest, _number(0, g.dtype)))
    best, found = folds.fold(monoid, (x, g), lines)
    is_none = trace.bind1(e.eq_p, best, lowest)
    return (trace.bind1(e.select_n_p, is_none, found, _number(0, g.dtype)),)


def _of_one_shape(a: Value, b: Value) -> tuple[Value, Value]:
    shape = tuple(np.broadcast_shapes(a.shape, b.shape))
    return families.broadcast_to(a, shape), families.broadcast_to(b, shape)


def _number(x: Any, dtype: np.dtype) -> Value:  # Any: a number
    return Literal(np.asarray(x).astype(dtype), weak=False)


def _outside(moved: Value, x: Value, *, select: str, **attrs: Attributes) -> tuple[Value, Value]:
    """What stands outside of the two operands."""
    return _number(0, moved.dtype), _number(_extreme(select, x.dtype), x.dtype)


def _chooser(select: str) -> Any:  # Any: joins two tuples of (element, what belongs to it)
    compare = primitive.by_name(select)

    def join(a: Parts, b: Parts) -> Parts:
        is_first = trace.bind1(compare, a[0], b[0])
        return tuple(trace.bind1(e.select_n_p, is_first, y, x) for x, y in zip(a, b, strict=True))

    return join


# --- adding -----------------------------------------------------------------------------------------


def _type_scatter(source: ArrayType, x: ArrayType, *, select: str, **attrs: Attributes) -> tuple[ArrayType]:
    families.accept("select_and_scatter_add", dtypes.FLOATS, [source, x])
    rank = len(attrs["window_dimensions"])
    wanted = windows_.result_type(x, **attrs)
    if source.shape[source.ndim - rank :] != wanted.shape[wanted.ndim - rank :]:
        raise errors.TypeMismatchError(
            "select_and_scatter_add needs one element per window", got=f"{source}, {x}", expected=str(wanted)
        )
    loops = families.loop_shape("select_and_scatter_add", [source, x], [rank, rank])
    return (ArrayType((*loops, *x.shape[x.ndim - rank :]), source.dtype),)


def _reference_scatter(source: np.ndarray, x: np.ndarray, *, select: str, **attrs: Attributes) -> np.ndarray:
    lines = windows_.lines_of(x.shape, **attrs)
    rank = len(lines)
    loops = np.broadcast_shapes(source.shape[: source.ndim - rank], x.shape[: x.ndim - rank])
    source = np.broadcast_to(source, (*loops, *source.shape[source.ndim - rank :]))
    chosen, _ = _positions(np.broadcast_to(x, (*loops, *x.shape[x.ndim - rank :])), lines, select)
    sizes = [line.base + line.low + line.high for line in lines]
    wide = np.float64 if source.dtype == np.float64 else np.float32
    rows = np.zeros((math.prod(loops), math.prod(sizes)), wide)
    flat = chosen.reshape(len(rows), -1)
    np.add.at(rows, (np.arange(len(rows))[:, None], flat), source.reshape(len(rows), -1).astype(wide))
    found = rows.reshape(*loops, *sizes)
    for axis, line in zip(range(-rank, 0), lines, strict=True):
        back = Line(found.shape[axis], 1, 1, -line.low, -line.high)
        found = reference.padded(found, axis, back)
    holes: tuple[Any, ...] = (..., *(np.s_[:: line.base_dilation] for line in lines))
    return np.ascontiguousarray(found[holes]).astype(source.dtype)


def _decompose_scatter(source: Value, x: Value, *, select: str, **attrs: Attributes) -> tuple[Value]:
    lines = windows_.lines_of(x.shape, **attrs)
    (out,) = _type_scatter(source.type, x.type, select=select, **attrs)
    if 0 in (*source.shape, *x.shape):
        return (families.zeros(out),)
    loops = out.shape[: out.ndim - len(lines)]
    source = families.broadcast_to(source, (*loops, *source.shape[source.ndim - len(lines) :]))
    is_small = source.dtype.itemsize <= 2
    wide = e.convert_element_type(source, dtypes.float32) if is_small else source
    holes = [(0, 0, line.base_dilation - 1) for line in lines]
    fills = (_number(_extreme(select, x.dtype), x.dtype),)
    (dense,) = folds.padded(fills, (families.broadcast_to(x, out.shape),), holes)
    plain = [
        Line(line.base, line.window, line.stride, line.low, line.high, 1, line.window_dilation)
        for line in lines
    ]
    added = _added(wide, dense, plain, select)
    strides = [1] * len(loops) + [line.base_dilation for line in lines]
    found = view.slice(added, [0] * added.ndim, added.shape, strides)
    return (e.convert_element_type(found, source.dtype),)


def _added(source: Value, x: Value, lines: Sequence[Line], select: str) -> Value:
    """Every element of `source` at the extremum of its window."""
    lowest = _number(_extreme(select, x.dtype), x.dtype)
    (values,) = folds.filled((lowest,), (x,), lines)
    plain = [Line(n.reach, n.window, n.stride, window_dilation=n.window_dilation) for n in lines]
    # The fold carries the number of each place, so that it says which one it chose. Numbers count whole
    # blocks of as many places as windows are apart.
    sizes = [-(-line.reach // line.stride) * line.stride for line in plain]
    numbers = view.reshape(view.iota(dtypes.int32, math.prod(sizes)), sizes)
    here = view.slice(numbers, [0] * len(sizes), [line.reach for line in plain])
    monoid = folds.Monoid(_chooser(select), (lowest, _number(-1, dtypes.int32)))
    _, chosen = folds.fold(monoid, (values, families.broadcast_to(here, values.shape)), plain)
    num_terms = math.prod(-(-line.extent // line.stride) for line in plain)
    if num_terms <= MAX_TERMS:
        full = _gathered(source, chosen, numbers, plain)
    else:
        full = _scattered(source, chosen, sizes)
    ends = [(-line.low, line.size + line.low - n, 0) for line, n in zip(lines, sizes, strict=True)]
    return folds.padded((_number(0, full.dtype),), (full,), ends)[0]


def _gathered(source: Value, chosen: Value, numbers: Value, lines: Sequence[Line]) -> Value:
    """Each place asks the windows it lies in whether they chose it; a block asks the same ones."""
    loops = source.ndim - len(lines)
    counts = [-(-line.reach // line.stride) for line in lines]
    blocks = [n for c, line in zip(counts, lines, strict=True) for n in (c, line.stride)]
    shape = (*source.shape[:loops], *blocks)
    own = view.reshape(numbers, blocks)
    fills = (_number(0, source.dtype), _number(-1, dtypes.int32))
    total: Value | None = None
    for offsets in folds.places([Line(0, -(-line.extent // line.stride)) for line in lines]):
        # Window q - j begins j blocks before block q.
        ends = [(j, count - line.count - j, 0) for j, count, line in zip(offsets, counts, lines, strict=True)]
        given, which = (_beside(v, loops, shape) for v in folds.padded(fills, (source, chosen), ends))
        part = trace.bind1(e.select_n_p, trace.bind1(e.eq_p, which, own), fills[0], given)
        total = part if total is None else trace.bind1(e.add_p, total, part)
    assert total is not None, "a window has elements"
    return view.reshape(total, (*source.shape[:loops], *numbers.shape))


def _beside(x: Value, loops: int, shape: Sequence[int]) -> Value:
    """Blocks repeated for each of their places."""
    dims = [*range(loops), *range(loops, len(shape), 2)]
    return view.broadcast_in_dim(x, tuple(shape), dims)


def _scattered(source: Value, chosen: Value, sizes: Sequence[int]) -> Value:
    """One addition per window."""
    loops = source.shape[: source.ndim - len(sizes)]
    rows, size = math.prod(loops), math.prod(sizes)
    flat = view.reshape(chosen, (rows, chosen.size // rows))
    start = families.bind_scalars(e.mul_p, view.broadcasted_iota(dtypes.int32, flat.shape, 0), size)
    index = view.reshape(trace.bind1(e.add_p, flat, start), (source.size, 1))
    numbers = indexing.ScatterDimensionNumbers((), (0,), (0,))
    zero = families.zeros(ArrayType((rows * size,), source.dtype))
    found = indexing.scatter_add(zero, index, view.reshape(source, (source.size,)), numbers, mode="clip")
    return view.reshape(found, (*loops, *sizes))


# --- the operations ---------------------------------------------------------------------------------


def _jvp(name: str) -> Any:  # Any: a JVP rule
    """Linear in the first operand; what the second selects is constant almost everywhere."""

    def rule(
        primals: Sequence[Value],
        tangents: Sequence[Value | None],
        results: Sequence[Value],
        **attrs: Attributes,
    ) -> tuple[Value | None]:
        if tangents[0] is None:
            return (None,)
        return (trace.bind1(primitive.by_name(name), tangents[0], primals[1], **attrs),)

    return rule


def _examples(dtype: np.dtype, *, is_gather: bool) -> list[Case]:
    examples: list[tuple[tuple[int, ...], tuple[Line, ...], str]] = [
        ((2, 7, 6), (Line(7, 3, 2, 1, 1), Line(6, 2, 1)), "ge")
    ]
    if dtype in (dtypes.float32, dtypes.float64):
        examples += [
            ((3, 9), (Line(9, 3, 1, 2, -1, 2),), "le"),
            ((2, 24), (Line(24, 11, 3, 0, 2, 1, 2),), "ge"),
        ]
    found = []
    for shape, lines, select in examples:
        counts = (*shape[: len(shape) - len(lines)], *(line.count for line in lines))
        first = Sample(shape if is_gather else counts)
        attrs = {"select": select, **windows_.attributes(lines)}
        found.append(Case((first, Sample(shape)), attrs, "exact" if is_gather else "reduction"))
    return found


_GATHERS: Final = cases.Cases(dtypes.FLOATS, lambda dtype: _examples(dtype, is_gather=True))
_SCATTERS: Final = cases.Cases(dtypes.FLOATS, lambda dtype: _examples(dtype, is_gather=False))


def _signature(*, select: str, **attrs: Attributes) -> primitive.Signature:
    return windows_.signature(2, **attrs)


def _signature_back(*, select: str, **attrs: Attributes) -> primitive.Signature:
    found = windows_.signature(1, **attrs)
    return primitive.Signature((found.outputs[0], found.inputs[0]), (found.inputs[0],))


select_and_gather_add_p: Primitive = primitive.register(
    Primitive(
        "select_and_gather_add",
        _signature,
        {
            primitive.TYPE: _type_gather,
            primitive.REFERENCE: _reference_gather,
            primitive.JVP: _jvp("select_and_gather_add"),
            primitive.TRANSPOSE: lambda ct, g, x, **attrs: (
                trace.bind1(select_and_scatter_add_p, ct, x, **attrs),
                None,
            ),
            primitive.PLACE: halos.place,
            primitive.PARTITION: halos.partition(_outside),
            primitive.TAIL: halos.tails,
            primitive.DECOMPOSE: _decompose_gather,
            primitive.CASES: _GATHERS,
        },
    )
)

select_and_scatter_add_p: Primitive = primitive.register(
    Primitive(
        "select_and_scatter_add",
        _signature_back,
        {
            primitive.TYPE: _type_scatter,
            primitive.REFERENCE: _reference_scatter,
            primitive.JVP: _jvp("select_and_scatter_add"),
            primitive.TRANSPOSE: lambda ct, source, x, **attrs: (
                trace.bind1(select_and_gather_add_p, ct, x, **attrs),
                None,
            ),
            primitive.PLACE: halos.place_scatter,
            primitive.PARTITION: halos.partition_scatter(_outside),
            primitive.TAIL: halos.tails,
            primitive.DECOMPOSE: _decompose_scatter,
            primitive.CASES: _SCATTERS,
        },
    )
)
