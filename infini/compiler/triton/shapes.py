"""Operations that move elements of tiles, where Triton can: broadcasts, dimensions of size 1, permutations,
positions of levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from infini.compiler import views
from infini.compiler.triton import access, scalar
from infini.compiler.triton.body import Body, Rule, refused
from infini.compiler.triton.source import is_padded, language_name, padded
from infini.compiler.triton.writer import Counter, Operand, Tile, Walked
from infini.core import dtypes
from infini.core.ir import ArrayType, Equation, Shape


def broadcast(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """Repeat along new dimensions."""
    tile = body.tile(operands[0])
    type_ = equation.output.type
    kept = views.kept(equation)
    if not tile.type.shape:
        return repeated_scalar(body, tile, type_)
    shape = padded(type_.shape)
    text = tile.name
    if tile.type.ndim < type_.ndim:
        text = f"{text}[{', '.join(':' if d in kept else 'None' for d in range(type_.ndim))}]"
    return body.writer.tile(
        text
        if _with_ones(tile.shape, kept, len(shape)) == shape
        else f"tl.broadcast_to({text}, {list(shape)})",
        type_,
    )


def repeated_scalar(body: Body, tile: Tile, type_: ArrayType) -> Tile:
    """A block from a scalar."""
    if not type_.shape:
        return tile
    if tile.number:
        return body.repeated(scalar.value_of(tile.number), type_)
    shape = list(padded(type_.shape))
    if scalar.is_wide(type_.dtype):
        return body.writer.tile(f"tl.full({shape}, {tile.name}, {language_name(type_.dtype)})", type_)
    return body.rounded(f"tl.full({shape}, {body.wide(tile)}, tl.float32)", type_)


def reshape(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """Add and drop dimensions of size 1, or reorder a block without padding."""
    tile = body.tile(operands[0])
    type_ = equation.output.type
    if not tile.type.shape:
        return repeated_scalar(body, tile, type_)
    is_same_padded = [n for n in tile.shape if n != 1] == [n for n in padded(type_.shape) if n != 1]
    if not is_same_padded and (tile.is_padded or is_padded(type_.shape)):
        raise refused(
            equation,
            "a tile whose sizes are no powers of two cannot be reshaped",
            "choose tile sizes that are powers of two",
        )
    if not type_.shape:
        text = f"{body.wide(tile)}.to(tl.int32)" if type_.dtype == dtypes.bool_ else body.wide(tile)
        for _ in tile.shape:
            text = f"tl.max({text}, 0)"
        if type_.dtype == dtypes.bool_:
            return body.writer.tile(f"({text} != 0)", type_)
        return body.rounded(
            f"{text}.to({language_name(type_.dtype)})" if type_.dtype in dtypes.INTEGERS else text, type_
        )
    return body.writer.tile(
        f"tl.reshape({tile.name}, {list(padded(type_.shape))})", type_, padding=tile.padding
    )


def transpose(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """Permute dimensions."""
    tile = body.tile(operands[0])
    ndim, order = tile.type.ndim, equation.attrs["permutation"]
    full = [*range(ndim - len(order)), *(p + ndim for p in order)]
    return transposed(body, tile, full, equation.output.type)


def transposed(body: Body, tile: Tile, order: Sequence[int], type_: ArrayType) -> Tile:
    """The block with its dimensions in another order."""
    if list(order) == sorted(order):
        return tile
    text = f"tl.trans({tile.name})" if len(order) == 2 else f"tl.permute({tile.name}, {list(order)})"
    return body.writer.tile(text, type_, padding=tile.padding)


def slice_(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """A static position of a level, or everything."""
    attrs, (value,) = equation.attrs, operands
    ndim = value.type.ndim
    start = (0,) * (ndim - len(attrs["start"])) + attrs["start"]
    if equation.output.type == value.type:
        return body.tile(value)
    return at_level(body, equation, value, [str(n) for n in start])


def dynamic_slice(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """A position of a level that is computed, kept inside the level."""
    value, *starts = operands
    last = [n - m for n, m in zip(value.type.shape, equation.output.type.shape, strict=True)]
    names = [
        f"tl.minimum(tl.maximum({body.tile(s).name}, 0), {n})" for s, n in zip(starts, last, strict=True)
    ]
    return at_level(body, equation, value, names)


def at_level(body: Body, equation: Equation, value: Operand, starts: Sequence[str]) -> Tile:
    """Load one position of the leading dimensions that a slice makes of size 1."""
    type_ = equation.output.type
    picked = [n == 1 for n in type_.shape]
    lead = picked.index(False) if False in picked else len(picked)
    if not isinstance(value, Walked) or value.type.shape[lead:] != type_.shape[lead:]:
        raise refused(
            equation, "a kernel can slice levels of its operands only", "express the slice in the arrangement"
        )
    positions = []
    for start in starts[:lead]:
        positions.append(body.writer.fresh("k"))
        body.writer.line(f"{positions[-1]} = tl.full((), 0, tl.int32) + {start}")
    inner = type_.update(shape=type_.shape[lead:])
    tile = body.load(Walked(value.operand, (*value.positions, *positions), inner))
    if not inner.shape:
        return repeated_scalar(body, tile, type_)
    return body.writer.tile(
        f"tl.reshape({tile.name}, {list(padded(type_.shape))})", type_, padding=tile.padding
    )


def iota(body: Body, equation: Equation, operands: Sequence[Operand]) -> Operand:
    """Positions along one dimension."""
    type_, dimension = equation.output.type, equation.attrs["dimension"]
    if type_.ndim == 1:
        return Counter(type_)
    shape = padded(type_.shape)
    if shape[dimension] == 1:
        return body.writer.tile(f"tl.zeros({list(shape)}, {language_name(type_.dtype)})", type_)
    text = f"tl.broadcast_to({access.lane(shape, dimension)}, {list(shape)})"
    if type_.dtype == dtypes.int32:
        return body.writer.tile(text, type_)
    return body.writer.tile(f"{text}.to({language_name(type_.dtype)})", type_)


def _with_ones(shape: Shape, kept: Sequence[int], ndim: int) -> Shape:
    result = [1] * ndim
    for d, n in zip(kept, shape, strict=True):
        result[d] = n
    return tuple(result)


RULES: Final[Mapping[str, Rule]] = {
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "transpose": transpose,
    "slice": slice_,
    "dynamic_slice": dynamic_slice,
    "iota": iota,
}
