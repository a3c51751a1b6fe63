"""Reductions in a form kernels can compute in parallel: over adjacent axes, and in two stages where axes are
long.

The stages are fixed by shape, so results do not depend on threads. The small floats stay in float32 between
the stages. An axis that no good number divides is padded with the neutral element first.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from infini.compiler.passes import rewrite
from infini.compiler.passes.rewrite import Match, Rule
from infini.core import dtypes
from infini.core.ir import Program, Var
from infini.lax import positions, reduction

LONG: Final = 1 << 15  # elements per result from which on two stages pay
TOO_LONG: Final = 1 << 17  # from which on one stage of floats rounds too often
FEW: Final = 8  # independent results (rows, or blocks of columns) that keep all threads busy
_STAGE: Final = 4096
_COLUMNS: Final = 64


def _is_small_float(dtype: np.dtype) -> bool:
    return dtype in dtypes.FLOATS and dtype.itemsize <= 2


def _in_stages(match: Match, x: Var, axes: tuple[int, ...], first: tuple[int, ...]) -> Var:
    """Reduce the axes `first` of `x`, then the others of `axes`."""
    op, dtype = match.equation.op.name, match.out.dtype
    if _is_small_float(dtype):
        x = match.emit("convert_element_type", x, new_dtype=dtypes.float32)
    partial = match.emit(op, x, axes=first)
    kept = [a for a in range(-x.type.ndim, 0) if a not in first]
    rest = tuple(kept.index(a) - len(kept) for a in axes if a not in first)
    result = match.emit(op, partial, axes=rest)
    return match.emit("convert_element_type", result, new_dtype=dtype) if _is_small_float(dtype) else result


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
    return _in_stages(match, match.x, match.attrs["axes"], tuple(dims[start:]))


def _long(match: Match) -> Var | None:
    """Few results of many elements: one stage per axis, or the axis cut in two."""
    shape, dims = match.x.type.shape, _dims(match)
    if not dims or match.x.type.size == 0:
        return None
    count = math.prod(shape[a] for a in dims)
    inner = math.prod(shape[dims[-1] :][1:])
    blocks = match.out.size if inner == 1 else math.prod(shape[: dims[0]]) * -(-inner // _COLUMNS)
    rounds = match.out.dtype in dtypes.INEXACT and inner > 1 and count >= TOO_LONG
    if count < LONG or (blocks >= FEW and not rounds):
        return None
    if len(dims) > 1:
        return _in_stages(match, match.x, match.attrs["axes"], (dims[-1],))
    axis = dims[0]
    x = _cut(match, axis, reduction.identity_of(match.equation.op, match.out.dtype))
    # What is left of the axis is one further to the left, as is whatever stood there.
    axes = tuple(sorted({*(a if a > axis else a - 1 for a in match.attrs["axes"]), axis}))
    return _in_stages(match, x, axes, (axis,))


def _cut(match: Match, axis: int, neutral: complex) -> Var:
    """The operand with one axis as two, the second at most `_STAGE` long."""
    x = match.x
    size = x.type.shape[axis]
    part = next((d for d in range(_STAGE, 63, -1) if size % d == 0), None)
    if part is None:
        part = _STAGE
        x = _padded(match, x, axis, -size % part, neutral)
    position = axis + x.type.ndim
    shape = x.type.shape
    cut = (*shape[:position], shape[position] // part, part, *shape[position + 1 :])
    return match.emit("reshape", x, shape=cut, ndim=x.type.ndim)


def _padded(match: Match, x: Var, axis: int, count: int, neutral: complex) -> Var:
    rank = -axis
    none, high = (0,) * rank, (count, *(0,) * (rank - 1))
    fill = match.literal(np.asarray(neutral).astype(x.type.dtype))
    return match.emit("pad", x, fill, low=none, high=high, interior=none)


def _long_position(match: Match) -> Var | None:
    """A long search: the best of each part, then the best part, and its place there. A tie goes to the first
    part, and in it to the first place; padding comes last, so it never wins."""
    attrs, name = match.attrs, match.equation.op.name
    axis = attrs["axis"]
    if match.x.type.shape[axis] < LONG or match.x.type.size == 0:
        return None
    farthest = reduction.lowest if name == "argmax" else reduction.highest
    parts = _cut(match, axis, farthest(match.x.type.dtype))
    count, size = parts.type.shape[axis - 1], parts.type.shape[axis]
    best = match.emit("reduce_max" if name == "argmax" else "reduce_min", parts, axes=(axis,))
    inside = match.emit(name, parts, axis=axis, index_dtype=dtypes.int32)
    chosen = match.emit(name, best, axis=axis, index_dtype=dtypes.int32)
    # The place inside the chosen part, as the largest of all when those of other parts are -1.
    shape, place = best.type.shape, best.type.ndim + axis
    line = match.emit("iota", shape=shape, dimension=place, dtype=dtypes.int32)
    kept = tuple(d - len(shape) for d in range(len(shape)) if d != place)
    repeated = match.emit("broadcast_in_dim", chosen, shape=shape, dims=kept)
    nothing = match.emit("broadcast_in_dim", match.literal(np.asarray(-1, np.int32)), shape=shape, dims=())
    masked = match.emit("select_n", match.emit("eq", line, repeated), nothing, inside)
    within = match.emit("reduce_max", masked, axes=(axis,))
    start = match.emit("mul", chosen, match.literal(np.asarray(size, np.int32)))
    found = match.emit("add", start, within)
    assert count * size < 1 << 31, "places are int32"
    index_dtype = attrs["index_dtype"]
    if index_dtype == dtypes.int32:
        return found
    return match.emit("convert_element_type", found, new_dtype=index_dtype)


RULES: Final = (
    *(
        rule
        for op in reduction.MONOIDS
        for rule in (
            Rule("adjacent_axes", op, _scattered, "a reduction over scattered axes is one after another"),
            Rule("two_stages", op, _long, "a long reduction is a reduction of partial ones"),
        )
    ),
    *(
        Rule("two_stages", op, _long_position, "the extremum of all is that of the extrema of parts")
        for op in sorted(positions.NAMES)
    ),
)


def canonical_reductions(program: Program) -> Program:
    """Bring every reduction into a form kernels can compute."""
    return rewrite.rewrite(program, RULES, "reductions")
