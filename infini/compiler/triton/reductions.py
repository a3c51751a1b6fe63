"""Reductions of tiles. Padding along reduced axes gets the identity first; NaN wins, as in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from infini.compiler.triton.body import Body, Rule
from infini.compiler.triton.source import language_name
from infini.compiler.triton.writer import Operand, Tile
from infini.core import dtypes
from infini.core.ir import Equation
from infini.lax import positions, reduction

# Functions of two elements of reductions that Triton has no name for, see `scalar.HELPERS`.
_FUNCTIONS: Final[Mapping[str, str]] = {
    "reduce_prod": "times",
    "reduce_and": "both_bits",
    "reduce_or": "either_bits",
    "reduce_xor": "unequal_bits",
}


def reduce(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """A reduction: one axis after the other, from the right."""
    tile = body.tile(operands[0])
    dtype = tile.type.dtype
    axes = sorted((a + tile.type.ndim for a in equation.attrs["axes"]), reverse=True)
    text = body.filled(tile, axes, reduction.identity_of(equation.op, dtype))
    is_bool = dtype == dtypes.bool_
    for axis in axes:
        text = reduced(equation.op.name, f"{text}.to(tl.int32)" if is_bool else text, axis, dtype)
    if dtype in dtypes.INTEGERS:
        text = f"{text}.to({language_name(dtype)})"
    return body.rounded(f"({text} != 0)" if is_bool else text, equation.output.type)


def position(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """Position of the first largest or smallest element; a NaN beats everything."""
    tile = body.tile(operands[0])
    type_, name = equation.output.type, equation.op.name
    dtype, axis = tile.type.dtype, equation.attrs["axis"] + tile.type.ndim
    farthest = reduction.lowest if name == "argmax" else reduction.highest
    text = body.filled(tile, [axis], farthest(dtype))
    text = f"{text}.to(tl.int32)" if dtype == dtypes.bool_ else text
    found = f"tl.{name}({text}, {axis})"
    if dtype in dtypes.FLOATS:
        named = body.writer.tile(text, tile.type)
        is_nan = body.writer.tile(
            f"({named.name} != {named.name}).to(tl.int32)", tile.type.update(dtype=dtypes.int32)
        )
        found = f"tl.{name}({named.name}, {axis})"
        found = f"tl.where(tl.max({is_nan.name}, {axis}) != 0, tl.argmax({is_nan.name}, {axis}), {found})"
    return body.writer.tile(f"{found}.to({language_name(type_.dtype)})", type_)


def reduced(name: str, text: str, axis: int, dtype: np.dtype) -> str:
    """A reduction of an expression along one axis."""
    if name == "reduce_sum":
        return f"tl.sum({text}, {axis})"
    if name in _FUNCTIONS:
        return f"tl.reduce({text}, {axis}, {_FUNCTIONS[name]})"
    if dtype in dtypes.FLOATS:
        return f"tl.reduce({text}, {axis}, {'max_with_nan' if name == 'reduce_max' else 'min_with_nan'})"
    return f"tl.{'max' if name == 'reduce_max' else 'min'}({text}, {axis})"


RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(reduction.MONOIDS, reduce),
    **dict.fromkeys(sorted(positions.NAMES), position),
}
