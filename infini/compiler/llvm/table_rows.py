"""Rows of a table by computed numbers, inside a kernel: the row where all lanes read the same one, and lane
by lane where each reads its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.indexing import ZERO, Index
from infini.compiler.llvm.types import I64
from infini.core import dtypes, ir
from infini.core.ir import Equation
from infini.lax.indexing.gather import fill_of

if TYPE_CHECKING:
    from infini.compiler.llvm.evaluate import Evaluator


def value(e: Evaluator, equation: Equation, index: tuple[Index, ...]) -> Value:
    """The value of a gather of rows at an index."""
    shape = equation.output.type.shape
    if not any(place.stride for place in index[: equation.inputs[1].type.ndim - 1]):
        return _row(e, equation, index)
    lanes, mask = e.lanes, e.mask
    e.lanes, e.mask = 1, None
    parts = [_row(e, equation, _of_lane(e.f, index, lane, shape)) for lane in range(lanes)]
    e.lanes, e.mask = lanes, mask
    type_ = parts[0].type.with_lanes(lanes)
    result = e.f.constant(0, type_)
    for lane, part in enumerate(parts):
        text = f"insertelement {type_} {result}, {part.type} {part}, i64 {lane}"
        result = e.f.pure(text, type_, result, part)
    return result


def _row(e: Evaluator, equation: Equation, index: tuple[Index, ...]) -> Value:
    """The value where all lanes read the same row."""
    f, (table, numbers) = e.f, equation.inputs
    num_places, size, dtype = numbers.type.ndim - 1, table.type.shape[0], numbers.type.dtype
    number = e.value(numbers, (*index[:num_places], ZERO))
    wide = f.convert("sext" if dtype in dtypes.SIGNED else "zext", number, I64)
    row = f.minimum(f.maximum(wide, 0), size - 1)
    found = e.value(table, (Index(row), *index[num_places:]))
    if equation.attrs["mode"] != "fill":
        return found
    is_inside = f.compare("ult", wide, f.integer(size))
    fill = fill_of(table.type.dtype, equation.attrs["fill_value"]).item()
    outside = registers.constant(f, fill, table.type.dtype)
    return f.select(f.splat(is_inside, found.type.lanes), found, f.splat(outside, found.type.lanes))


def _of_lane(f: Function, index: tuple[Index, ...], lane: int, shape: ir.Shape) -> tuple[Index, ...]:
    """The place of one lane; of one beyond the end, whose value nobody uses, the last there is."""
    return tuple(
        Index(f.minimum(f.add(place.base, lane * place.stride), size - 1)) if place.stride else place
        for place, size in zip(index, shape, strict=True)
    )
