"""Contractions of tiles: Triton's `dot` where shape and dtype allow, a product and a sum elsewhere.

float32 products are exact (`input_precision="ieee"`): TF32 would be a choice of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from infini.compiler.triton import access, shapes
from infini.compiler.triton.body import Body, Rule, refused
from infini.compiler.triton.source import language_name
from infini.compiler.triton.writer import Operand, Tile
from infini.core import dtypes
from infini.core.ir import ArrayType, Equation
from infini.lax import contraction

# Smallest sizes that Triton's dot takes; contracted dimensions of bytes are longer.
_MIN_DOT: Final = 16
_MIN_DOT_BYTES: Final = 32
# Elements of the product space above which a small contraction is refused instead of multiplied out.
_MAX_OUTER: Final = 1 << 16
_DOT_RESULTS: Final[dict[np.dtype, np.dtype]] = {
    dtypes.float16: dtypes.float32,
    dtypes.bfloat16: dtypes.float32,
    dtypes.float32: dtypes.float32,
    dtypes.int8: dtypes.int32,
}


def dot(body: Body, equation: Equation, operands: Sequence[Operand]) -> Tile:
    """A product on the matrix units where its shape allows, multiplied out and summed elsewhere."""
    tiles = [body.tile(x) for x in operands]
    a, b, out = contraction.parse_spec(equation.attrs["spec"])
    if any(t.type.ndim != len(letters) for t, letters in zip(tiles, (a, b), strict=True)):
        return multiplied_out(body, equation, tiles, a, b, out)
    batch = [x for x in out if x in a and x in b]
    m = [x for x in a if x not in b]
    n = [x for x in b if x not in a]
    k = [x for x in a if x in b and x not in out]
    dtype = tiles[0].type.dtype
    fits = len(m) == len(n) == len(k) == 1 and len(batch) <= 1 and set(m + n) <= set(out)
    sizes = [dict(zip(s, t.shape, strict=True)) for s, t in zip((a, b), tiles, strict=True)]
    least = _MIN_DOT_BYTES if dtype.itemsize == 1 else _MIN_DOT
    fits = fits and dtype in _DOT_RESULTS and min(sizes[0][m[0]], sizes[1][n[0]]) >= _MIN_DOT
    fits = fits and sizes[0][k[0]] >= least
    if not fits:
        return multiplied_out(body, equation, tiles, a, b, out)
    left = arranged(body, tiles[0], a, batch + m + k, k)
    right = arranged(body, tiles[1], b, batch + k + n, k)
    precision = ', input_precision="ieee"' if dtype == dtypes.float32 else ""
    result_dtype = _DOT_RESULTS[dtype]
    body.writer.has_dot = True
    lengths = {
        **dict(zip(a, tiles[0].type.shape, strict=True)),
        **dict(zip(b, tiles[1].type.shape, strict=True)),
    }
    order = batch + m + n
    raw_type = ArrayType(tuple(lengths[x] for x in order), result_dtype)
    raw = body.writer.tile(
        f"tl.dot({left}, {right}{precision}, out_dtype={language_name(result_dtype)})", raw_type
    )
    raw = shapes.transposed(
        body, raw, [order.index(x) for x in out], raw_type.update(shape=equation.output.type.shape)
    )
    return converted(body, raw, equation.output.type)


def arranged(body: Body, tile: Tile, letters: str, order: Sequence[str], contracted: Sequence[str]) -> str:
    """An operand of a product with zeros in the padding of contracted dimensions, its dimensions in this
    order.
    """
    axes = [letters.index(x) for x in contracted]
    cut = [i for i in axes if tile.shape[i] != tile.type.shape[i]]
    if cut and tile.padding != 0:
        inside = " & ".join(f"({access.lane(tile.shape, i)} < {tile.type.shape[i]})" for i in cut)
        zero = f"tl.full((), 0, tl.float32).to({language_name(tile.type.dtype)})"
        tile = body.writer.tile(f"tl.where({inside}, {tile.name}, {zero})", tile.type)
    turned = [letters.index(x) for x in order]
    return shapes.transposed(
        body, tile, turned, tile.type.update(shape=tuple(tile.type.shape[i] for i in turned))
    ).name


def multiplied_out(body: Body, equation: Equation, tiles: Sequence[Tile], a: str, b: str, out: str) -> Tile:
    """A contraction as a broadcast product and sums, in float32 for small floats."""
    loops = max(t.type.ndim - len(s) for t, s in zip(tiles, (a, b), strict=True))
    summed = [x for x in dict.fromkeys(a + b) if x not in out]
    order = [*out, *summed]
    texts = []
    total = 1
    shape: dict[str, int] = {}
    for tile, letters in zip(tiles, (a, b), strict=True):
        own = tile.type.ndim - len(letters)
        axes = [own + letters.index(x) for x in summed if x in letters]
        text = body.filled(tile, axes, 0)
        turned = [*range(own), *(own + letters.index(x) for x in order if x in letters)]
        if turned != list(range(len(turned))):
            text = f"tl.trans({text})" if len(turned) == 2 else f"tl.permute({text}, {turned})"
        index = ["None"] * (loops - own) + [":"] * own + [":" if x in letters else "None" for x in order]
        texts.append(f"{text}[{', '.join(index)}]" if "None" in index else text)
        shape |= dict(zip(letters, tile.shape[own:], strict=True))
    for n in shape.values():
        total *= n
    if total > _MAX_OUTER:
        raise refused(
            equation,
            "this contraction fits no matrix unit and is too large to multiply out",
            "use tiles of at least 16 in every dimension",
        )
    dtype = equation.attrs["dtype"]
    if dtype in dtypes.INTEGERS:
        texts = [f"{t}.to({language_name(dtype)})" for t in texts]
    text = " * ".join(f"({t})" for t in texts)
    for axis in reversed(range(loops + len(out), loops + len(order))):
        text = f"tl.sum({text}, {axis})"
    return body.rounded(
        f"({text}).to({language_name(dtype)})" if dtype in dtypes.INTEGERS else f"({text})",
        equation.output.type,
    )


def converted(body: Body, tile: Tile, type_: ArrayType) -> Tile:
    """A value in another dtype."""
    if tile.type.dtype == type_.dtype:
        return tile
    return body.writer.tile(f"{tile.name}.to({language_name(type_.dtype)})", type_)


RULES: Final[Mapping[str, Rule]] = {"dot": dot}
