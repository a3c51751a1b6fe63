"""Sums and extrema of windows: `reduce_window_sum`, `reduce_window_max` and `reduce_window_min`.

Attributes describe the last dimensions, one entry each, under JAX's names; dimensions left of them are loops.
The derivative of a sum is the sum again, with strides and dilations exchanged; that of an extremum selects
(`selection`). 16- and 8-bit floats are summed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Literal, Value
from infini.lax import cases, elementwise as e, families, reduction
from infini.lax.cases import Case, Sample
from infini.lax.windows import folds, halos, padding as padding_, reference
from infini.lax.windows.padding import Line, Pads

Attributes = Any  # Any: the attributes of `lines_of`, and those of one operation


def lines_of(
    shape: Sequence[int],
    *,
    window_dimensions: tuple[int, ...],
    window_strides: tuple[int, ...],
    padding: Pads,
    base_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> list[Line]:
    """How windows lie along the last dimensions of an array."""
    rank = len(window_dimensions)
    sizes = tuple(shape)[len(shape) - rank :]
    return padding_.lines(sizes, window_dimensions, window_strides, padding, base_dilation, window_dilation)


def attributes(lines: Sequence[Line]) -> dict[str, Any]:  # Any: attributes are of many types
    """The attributes that `lines_of` reads."""
    return {
        "window_dimensions": tuple(line.window for line in lines),
        "window_strides": tuple(line.stride for line in lines),
        "padding": tuple((line.low, line.high) for line in lines),
        "base_dilation": tuple(line.base_dilation for line in lines),
        "window_dilation": tuple(line.window_dilation for line in lines),
    }


def result_type(x: ArrayType, **attrs: Attributes) -> ArrayType:
    """Type of a reduction over windows.

    Raises:
        TypeMismatchError: the array has too few dimensions.
    """
    rank = len(attrs["window_dimensions"])
    if x.ndim < rank:
        raise errors.TypeMismatchError(
            "an array has fewer dimensions than its windows", got=f"{x}, windows {attrs['window_dimensions']}"
        )
    counts = (line.count for line in lines_of(x.shape, **attrs))
    return x.update(shape=(*x.shape[: x.ndim - rank], *counts))


def signature(num_operands: int, **attrs: Attributes) -> Signature:
    """Dimensions along which windows are single elements keep their letter."""
    columns = zip(*(attrs[name] for name in attributes([])), strict=True)
    trivial = [Line(1, k, s, low, high, b, d).is_trivial for k, s, (low, high), b, d in columns]
    names = families.letters(len(trivial))
    out = tuple(name if same else f"w{name}" for name, same in zip(names, trivial, strict=True))
    return Signature((names,) * num_operands, (out,))


# --- declaring one -----------------------------------------------------------------------------------


def _cases(dtype: np.dtype) -> list[Case]:
    examples: list[tuple[tuple[int, ...], tuple[Line, ...]]] = [
        ((2, 7, 6), (Line(7, 3, 2, 1, 1), Line(6, 2, 1)))
    ]
    if dtype in (dtypes.float32, dtypes.float64):
        examples += [((3, 9), (Line(9, 3, 1, 2, -1, 2),)), ((2, 24), (Line(24, 11, 3, 0, 2, 1, 2),))]
    return [Case((Sample(shape),), attributes(lines), "reduction") for shape, lines in examples]


def cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations: each window joins its elements."""
    x = types[-1]
    size = families.prod(result_type(x, **attrs).shape)
    return float(size * families.prod([line.window for line in lines_of(x.shape, **attrs)]))


def windowed(
    name: str,
    allowed: Collection[np.dtype],
    reduce: Primitive,
    *,
    jvp: Callable[..., Any],
    transpose: Callable[..., Any] | None = None,
) -> Primitive:
    """Declare the reduction over windows that a reduction over axes stands for."""
    join = reduction.MONOIDS[reduce.name]
    ufunc = {"add": np.add, "max": np.maximum, "min": np.minimum}[join.name]

    def type_rule(x: ArrayType, **attrs: Attributes) -> tuple[ArrayType]:
        families.accept(name, allowed, [x])
        return (result_type(x, **attrs),)

    def run(x: np.ndarray, **attrs: Attributes) -> np.ndarray:
        wide = x.astype(np.float32) if x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2 else x
        fill = np.asarray(reduction.identity_of(reduce, x.dtype)).astype(wide.dtype)
        found = reference.flat_windows(wide, lines_of(x.shape, **attrs), fill)
        with np.errstate(all="ignore"):
            return np.asarray(ufunc.reduce(found, axis=-1, dtype=wide.dtype, initial=fill)).astype(x.dtype)

    def fills(x: Value, **attrs: Attributes) -> tuple[Value]:
        return (families.like(reduction.identity_of(reduce, x.dtype), x),)

    def decompose(x: Value, **attrs: Attributes) -> tuple[Value]:
        return (fold(reduce, x, lines_of(x.shape, **attrs)),)

    rules: dict[primitive.RuleKey, Any] = {  # Any: each key has its own kind of rule
        primitive.TYPE: type_rule,
        primitive.REFERENCE: run,
        primitive.JVP: jvp,
        primitive.PLACE: halos.place,
        primitive.PARTITION: halos.partition(fills),
        primitive.TAIL: halos.tails,
        primitive.DECOMPOSE: decompose,
        primitive.COST: cost,
        primitive.CASES: cases.Cases(frozenset(allowed), _cases),
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    return primitive.register(Primitive(name, functools.partial(signature, 1), rules))


def monoid_of(reduce: Primitive, dtype: np.dtype) -> folds.Monoid:
    """A reduction over axes as a way to join elements."""
    op = reduction.MONOIDS[reduce.name]
    fill = Literal(np.asarray(reduction.identity_of(reduce, dtype)).astype(dtype), weak=False)

    def over(x: Value, axes: Sequence[int]) -> Value:
        return trace.bind1(reduce, x, axes=tuple(a - x.ndim for a in axes))

    return folds.Monoid(lambda a, b: (trace.bind1(op, a[0], b[0]),), (fill,), over)


def fold(reduce: Primitive, x: Value, lines: Sequence[Line]) -> Value:
    """The reduction of every window by other operations."""
    shape = (*x.shape[: x.ndim - len(lines)], *(line.count for line in lines))
    if 0 in x.shape or 0 in shape:
        return families.full(ArrayType(shape, x.dtype), reduction.identity_of(reduce, x.dtype))
    is_rounded = reduce is reduction.reduce_sum_p and x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2
    wide = e.convert_element_type(x, dtypes.float32) if is_rounded else x
    (found,) = folds.fold(monoid_of(reduce, wide.dtype), (wide,), lines)
    return e.convert_element_type(found, x.dtype)


# --- the operations ---------------------------------------------------------------------------------


def towards_operand(line: Line) -> Line:
    """Windows over a cotangent whose sums are the cotangent of a sum over windows."""
    low = line.extent - 1 - line.low
    high = line.base + line.extent - 1 - padding_.dilated(line.count, line.stride) - low
    return Line(line.count, line.window, line.base_dilation, low, high, line.stride, line.window_dilation)


def _transpose_sum(ct: Value, x: Any, **attrs: Attributes) -> tuple[Value]:
    lines = [towards_operand(line) for line in lines_of(x.shape, **attrs)]
    return (trace.bind1(reduce_window_sum_p, ct, **attributes(lines)),)


def _jvp_extremum(select: str) -> Callable[..., tuple[Value | None]]:
    def rule(
        primals: Sequence[Value],
        tangents: Sequence[Value | None],
        results: Sequence[Value],
        **attrs: Attributes,
    ) -> tuple[Value | None]:
        (x,), (g,) = primals, tangents
        if g is None:
            return (None,)
        return (trace.bind1(primitive.by_name("select_and_gather_add"), g, x, select=select, **attrs),)

    return rule


reduce_window_sum_p: Primitive = windowed(
    "reduce_window_sum",
    dtypes.NUMERIC,
    reduction.reduce_sum_p,
    jvp=families.linear_jvp("reduce_window_sum"),
    transpose=_transpose_sum,
)
reduce_window_max_p: Primitive = windowed(
    "reduce_window_max", reduction.ORDERED, reduction.reduce_max_p, jvp=_jvp_extremum("ge")
)
reduce_window_min_p: Primitive = windowed(
    "reduce_window_min", reduction.ORDERED, reduction.reduce_min_p, jvp=_jvp_extremum("le")
)
