"""Padding: elements added before, after and between those of an array, or taken away at its ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, families, places
from infini.lax.cases import Sample
from infini.lax.families import is_linear, letters, linear_jvp
from infini.lax.view import borders
from infini.lax.view.declare import ArrayLike, moves
from infini.lax.view.slices import slice_p


def _grown(core: ir.Shape, low: ir.Shape, high: ir.Shape, interior: ir.Shape) -> ir.Shape:
    return tuple(
        lo + hi + n + max(n - 1, 0) * inner
        for lo, hi, inner, n in zip(low, high, interior, core, strict=True)
    )


def _type(
    x: ArrayType, fill: ArrayType, *, low: ir.Shape, high: ir.Shape, interior: ir.Shape
) -> tuple[ArrayType, ...]:
    families.same_dtype("pad")(x, fill)
    loops = x.ndim - len(low)
    grown = _grown(x.shape[loops:], low, high, interior)
    if any(n < 0 for n in (*grown, *interior)) or fill.ndim:
        raise errors.TypeMismatchError(
            "pad needs a scalar and sizes of at least 0",
            got=f"{x}, value {fill}, low {low}, high {high}, interior {interior}",
        )
    return (x.update(shape=x.shape[:loops] + grown),)


def _reference(
    x: np.ndarray, fill: np.ndarray, *, low: ir.Shape, high: ir.Shape, interior: ir.Shape
) -> np.ndarray:
    rank = len(low)
    (result_type,) = _type(
        ArrayType(x.shape, x.dtype), ArrayType((), x.dtype), low=low, high=high, interior=interior
    )
    out = np.full(result_type.shape, fill.reshape(()), x.dtype)
    source: list[Any] = [np.s_[:]] * (x.ndim - rank)
    target: list[Any] = [np.s_[:]] * (x.ndim - rank)
    for lo, inner, n, m in zip(
        low, interior, x.shape[x.ndim - rank :], out.shape[x.ndim - rank :], strict=True
    ):
        step = inner + 1
        first = max(0, -(lo // step)) if lo < 0 else 0
        last = min(n, (m - 1 - lo) // step + 1) if m else first
        source.append(np.s_[first : max(first, last)])
        target.append(
            np.s_[lo + first * step : lo + max(first, last - 1) * step + 1 : step]
            if last > first
            else np.s_[0:0]
        )
    out[tuple(target)] = x[tuple(source)]
    return out


def _transpose(
    ct: Value, x: Any, fill: Any, *, low: ir.Shape, high: ir.Shape, interior: ir.Shape
) -> tuple[Value | None, Value | None]:
    negative_low, negative_high = tuple(-n for n in low), tuple(-n for n in high)
    cropped = trace.bind1(
        pad_p, ct, families.like(0, ct), low=negative_low, high=negative_high, interior=(0,) * len(low)
    )
    core = cropped.shape[cropped.ndim - len(low) :]
    x_ct = trace.bind1(
        slice_p, cropped, start=(0,) * len(low), limit=core, strides=tuple(n + 1 for n in interior)
    )
    if not is_linear(fill):
        return x_ct, None
    total, inside = (
        trace.bind1(primitive.by_name("reduce_sum"), y, axes=tuple(range(-y.ndim, 0))) if y.ndim else y
        for y in (ct, x_ct)
    )
    return x_ct if is_linear(x) else None, trace.bind1(primitive.by_name("sub"), total, inside)


def _batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    x, fill = args
    if not batched[1]:
        return trace.bind(pad_p, x, fill, **attrs), (True,)
    # One value per element of the batch: pad with zeros and choose.
    (x,) = families.whole_batches(ctx.size, (x,), (batched[0],))
    core = x.shape[x.ndim - len(attrs["low"]) :]
    padded = trace.bind1(pad_p, x, families.like(0, x), **attrs)
    ones = families.full(ArrayType(core, dtypes.bool_), True)
    inside = trace.bind1(pad_p, ones, families.like(False, ones), **attrs)
    shape = (ctx.size, *(1,) * (padded.ndim - 1))
    repeated = trace.bind1(primitive.by_name("reshape"), fill, shape=shape, ndim=fill.ndim)
    return trace.bind(primitive.by_name("select_n"), inside, repeated, padded), (True,)


pad_p: Primitive = primitive.register(
    Primitive(
        "pad",
        lambda *, low, high, interior: Signature((letters(len(low)), ()), (letters(len(low), "p"),)),
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: linear_jvp("pad", num_linear=2),
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
            primitive.LINEAR: places.together(0, 1),
            primitive.PLACE: borders.place_pad,
            primitive.PARTITION: borders.partition_pad,
            primitive.TAIL: places.tails_through,
            primitive.CASES: cases.always(
                dtypes.ALL,
                moves(Sample((3, 4)), Sample(()), low=(1, -1), high=(2, 0), interior=(0, 2)),
                moves(Sample((5,)), Sample(()), low=(0,), high=(3,), interior=(0,)),
            ),
        },
    )
)


def pad(
    operand: ArrayLike, padding_value: ArrayLike, padding_config: Sequence[tuple[int, int, int]]
) -> Value:
    """Add elements before, after and between; negative numbers remove them.

    Args:
        operand: array to pad.
        padding_value: scalar of the same dtype.
        padding_config: (low, high, interior) per dimension; interior counts elements between neighbours and
            is not negative.

    Raises:
        ValueMismatchError: there is not one triple per dimension, an interior or a resulting size is
            negative, or the value is no scalar.
        TypeMismatchError: the dtypes differ.
    """
    x = trace.as_value(operand)
    fill = families.like(padding_value, x)
    triples = [tuple(int(n) for n in triple) for triple in padding_config]
    if len(triples) != x.ndim or any(len(t) != 3 or t[2] < 0 for t in triples) or fill.ndim:
        raise errors.ValueMismatchError(
            "pad needs a scalar and one (low, high, interior) per dimension",
            got=f"{x.type}, value {fill.type}, padding_config {triples}",
            expected="interior numbers of at least 0",
        )
    low, high, interior = (tuple(t[i] for t in triples) for i in range(3))
    grown = _grown(x.shape, low, high, interior)
    if any(n < 0 for n in grown):
        raise errors.ValueMismatchError(
            "pad: more elements are removed than there are", got=f"{x.type}, padding_config {triples}"
        )
    return trace.bind1(pad_p, x, fill, low=low, high=high, interior=interior)
