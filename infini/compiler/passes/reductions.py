"""Reductions in a form kernels can compute in parallel: over adjacent axes, and in two stages where results
are few.

The stages are fixed by shape, so results do not depend on threads. 16-bit sums stay in float32 between the
stages.
"""

from __future__ import annotations

import math
from typing import Final

from infini.compiler.passes import rewrite
from infini.compiler.passes.rewrite import Match, Rule
from infini.core import dtypes
from infini.core.ir import Program, Var

LONG: Final = 1 << 15  # elements per result from which on two stages pay
FEW: Final = 8  # independent results (rows, or blocks of columns) that keep all threads busy
_STAGE: Final = 4096
_COLUMNS: Final = 64


def _in_stages(match: Match, first: tuple[int, ...], shape: tuple[int, ...] | None = None) -> Var:
    """Reduce the axes `first` (of the operand reshaped to `shape`), then the axes that are left."""
    op, dtype = match.equation.op.name, match.out.dtype
    x = match.x
    is_narrow = dtype in dtypes.FLOATS and dtype.itemsize <= 2
    axes = match.attrs["axes"]
    if shape is not None:
        axes = tuple(
            sorted(
                {
                    *(a for a in axes if a > first[0]),
                    first[0],
                    first[0] - 1,
                    *(a - 1 for a in axes if a < first[0]),
                }
            )
        )
        x = match.emit("reshape", x, shape=shape, ndim=x.type.ndim)
    if is_narrow:
        x = match.emit("convert_element_type", x, new_dtype=dtypes.float32)
    partial = match.emit(op, x, axes=first)
    kept = [a for a in range(-x.type.ndim, 0) if a not in first]
    rest = tuple(kept.index(a) - len(kept) for a in axes if a not in first)
    result = match.emit(op, partial, axes=rest)
    return match.emit("convert_element_type", result, new_dtype=dtype) if is_narrow else result


def _dims(match: Match) -> list[int]:
    shape = match.x.type.shape
    return sorted(a for a in match.attrs["axes"] if shape[a] != 1)


def _scattered(match: Match) -> Var | None:
    """Axes with others between them: the last adjacent ones first."""
    shape, dims = match.x.type.shape, _dims(match)
    start = len(dims) - 1
    while start > 0 and all(shape[a] == 1 for a in range(dims[start - 1] + 1, dims[start])):
        start -= 1
    if start <= 0:
        return None
    return _in_stages(match, tuple(dims[start:]))


def _long(match: Match) -> Var | None:
    """Few results of many elements: one stage per axis, or the axis cut in two."""
    shape, dims = match.x.type.shape, _dims(match)
    if not dims or match.x.type.size == 0:
        return None
    count = math.prod(shape[a] for a in dims)
    inner = math.prod(shape[dims[-1] :][1:])
    blocks = match.out.size if inner == 1 else math.prod(shape[: dims[0]]) * -(-inner // _COLUMNS)
    if count < LONG or blocks >= FEW:
        return None
    if len(dims) > 1:
        return _in_stages(match, (dims[-1],))
    size = shape[dims[0]]
    part = next((d for d in range(_STAGE, 63, -1) if size % d == 0), None)
    if part is None:
        return None
    position = dims[0] + len(shape)
    return _in_stages(match, (dims[0],), (*shape[:position], size // part, part, *shape[position + 1 :]))


RULES: Final = tuple(
    rule
    for op in ("reduce_sum", "reduce_max", "reduce_min")
    for rule in (
        Rule("adjacent_axes", op, _scattered, "a reduction over scattered axes is one after another"),
        Rule("two_stages", op, _long, "a long reduction is a reduction of partial ones"),
    )
)


def canonical_reductions(program: Program) -> Program:
    """Bring every reduction into a form kernels can compute."""
    return rewrite.rewrite(program, RULES, "reductions")
