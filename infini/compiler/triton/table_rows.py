"""Rows of a table by computed numbers: pointers from a block of them, so only those rows are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from infini.compiler import table_rows
from infini.compiler.triton import scalar
from infini.compiler.triton.body import Body, Rule, refused
from infini.compiler.triton.source import language_name, literal
from infini.compiler.triton.writer import Operand, Tile, Walked
from infini.core import dtypes
from infini.core.ir import Equation
from infini.lax.indexing.gather import fill_of


def gather(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """Rows of an operand that is a level along its first dimension."""
    table, type_ = operands[0], equation.output.type
    if not table_rows.is_rows(equation) or not isinstance(table, Walked):
        raise refused(
            equation,
            "a kernel can pick rows of a level of its operands only",
            "make the operand's first dimension a level, tile((1, -1)).tile((-1, 1)), and index it alone",
        )
    numbers, size = body.tile(operands[1]), table.type.shape[0]
    num_places, row_rank = numbers.type.ndim - 1, table.type.ndim - 1
    places = numbers.type.update(shape=numbers.type.shape[:-1])
    number = body.writer.tile(
        f"tl.max({numbers.name}, {num_places})", places
    )  # of one: the last dimension goes
    row = body.writer.tile(
        f"tl.minimum(tl.maximum({number.name}, 0), {size - 1}).to(tl.int32)",
        places.update(dtype=dtypes.int32),
    )
    # Places come before the dimensions of a row.
    index = f"[{', '.join([':'] * num_places + ['None'] * row_rank)}]" if num_places and row_rank else ""
    found = body.load(Walked(table.operand, (*table.positions, row.name + index), type_, num_places))
    if equation.attrs["mode"] != "fill":
        return found
    inside = f"({number.name} >= 0) & ({number.name} < {size})"
    is_inside = body.writer.tile(inside, places.update(dtype=dtypes.bool_))
    fill = fill_of(type_.dtype, equation.attrs["fill_value"]).item()
    name = language_name(type_.dtype) if scalar.is_wide(type_.dtype) else "tl.float32"
    outside = f"tl.full((), {literal(fill, type_.dtype)}, {name})"
    return body.rounded(f"tl.where({is_inside.name}{index}, {body.wide(found)}, {outside})", type_)


RULES: Final[Mapping[str, Rule]] = {"gather": gather}
