"""A contraction as a kernel: tiles of two free dimensions, loops over all contracted ones, everything else on
the grid.

It takes operands in any order of dimensions, so it is the route where a library does not take the layout, or
is not there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, trace
from infini.core.ir import ArrayType
from infini.core.source import Where
from infini.lax import contraction, elementwise as e, loops, view
from infini.tile.program import Access, Kernel

NOWHERE: Final = Where("", 0)
_SMALL: Final = 16
_MATRIX_UNITS: Final = frozenset({dtypes.float32, dtypes.float16, dtypes.bfloat16})
# Largest tiles as (rows, columns, contracted): for dtypes that the matrix units take, the first unless
# another was measured to be faster; and for the others.
EDGES: Final = ((64, 64, 32), (128, 128, 32), (128, 64, 32), (16, 128, 64))
_OTHER_EDGES: Final = ((_SMALL, _SMALL, _SMALL),)


def edges_of(dtype: np.dtype) -> tuple[tuple[int, int, int], ...]:
    """Largest tiles that are worth trying for operands of a dtype, the usual one first."""
    return EDGES if dtype in _MATRIX_UNITS else _OTHER_EDGES


@functools.lru_cache(maxsize=1024)
def matmul_kernel(
    x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, edges: tuple[int, int, int] | None = None
) -> Kernel:
    """The kernel of a contraction without loop dimensions.

    Args:
        x: left operand.
        y: right operand.
        spec: letters, such as `bmk,bkn->bmn`.
        dtype: dtype of the result.
        edges: largest tile as (rows, columns, contracted); see `edges_of`.
    """
    a, b, out = contraction.parse_spec(spec)
    sizes = dict(zip(a, x.shape, strict=True)) | dict(zip(b, y.shape, strict=True))
    batch = [c for c in out if c in a and c in b]
    rows = [c for c in a if c not in b and c in out]
    columns = [c for c in b if c not in a and c in out]
    summed = [c for c in dict.fromkeys(a + b) if c not in out]
    edges = edges_of(x.dtype)[0] if edges is None else edges
    groups = zip((rows, columns, summed), edges, strict=True)
    cut = {c: _tile(sizes[c], edge) for letters, edge in groups for c in letters[-1:]}
    on_grid = [*batch, *rows[:-1], *columns[:-1], *rows[-1:], *columns[-1:]]
    grid = [-(-sizes[c] // cut.get(c, 1)) for c in on_grid]

    def access(letters: str, tile: Sequence[str], walked: Sequence[str]) -> Access:
        walks = [-(-sizes[c] // cut.get(c, 1)) for c in walked]
        is_ragged = any(sizes[c] % cut.get(c, 1) for c in letters)
        return Access(
            (*walks, *(cut[c] for c in tile)),
            tuple(tuple(cut.get(c, 1) if g == c else 0 for g in on_grid) for c in letters),
            tuple(
                (*(cut.get(c, 1) if w == c else 0 for w in walked), *(int(t == c) for t in tile))
                for c in letters
            ),
            (0,) * len(letters),
            0 if is_ragged else None,
            len(walked),
        )

    # Letters of one operand alone that are summed away are walked in that operand only, as its own levels.
    x_tile = [*rows[-1:], *summed[-1:]] if summed and summed[-1] in a else rows[-1:]
    y_tile = [*summed[-1:], *columns[-1:]] if summed and summed[-1] in b else columns[-1:]
    loads = (
        access(a, x_tile, [c for c in summed if c in a]),
        access(b, y_tile, [c for c in summed if c in b]),
    )
    out_tile = [*rows[-1:], *columns[-1:]]
    store = access(out, out_tile, ())
    compute = dtypes.float32 if dtype in dtypes.FLOATS and dtype.itemsize <= 4 else dtype
    product = f"{''.join(x_tile)},{''.join(y_tile)}->{''.join(out_tile)}"

    def body(x_blocks: Any, y_blocks: Any, *_: Any) -> list[Any]:  # Any: traced tiles
        start = view.full([cut[c] for c in out_tile], 0, compute)
        return [e.convert_element_type(walk(summed, start, x_blocks, y_blocks), dtype)]

    def walk(letters: Sequence[str], total: Any, x_part: Any, y_part: Any) -> Any:  # Any: traced tiles
        if not letters:
            return e.add(total, contraction.contract(product, x_part, y_part, preferred_element_type=compute))
        letter, inner = letters[0], letters[1:]
        walked = tuple(part for part, side in ((x_part, a), (y_part, b)) if letter in side)

        def step(carry: Any, found: Any) -> tuple[Any, None]:  # Any: traced tiles
            parts = iter(found)
            next_x = next(parts) if letter in a else x_part
            next_y = next(parts) if letter in b else y_part
            return walk(inner, carry, next_x, next_y), None

        return loops.scan(step, total, walked)[0]

    ids = [ArrayType((), dtypes.int32)] * len(grid)
    tiles = [ArrayType(access_.tile, t.dtype) for access_, t in zip(loads, (x, y), strict=True)]
    with trace.at_line(NOWHERE):  # the kernel is that of any product of these types
        program = trace.stage(body, [*tiles, *ids], name="matmul").program
    result = ArrayType(tuple(sizes[c] for c in out), dtype)
    return Kernel(tuple(grid), loads, (store,), (result,), program, name="matmul")


def _tile(size: int, edge: int) -> int:
    """Edge of a tile: no larger than the dimension needs, at least what a matrix unit takes."""
    return min(edge, max(_SMALL, 1 << max(0, size - 1).bit_length())) if size > 1 else 1
