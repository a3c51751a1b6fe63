"""One element of each row: a gather of it, and the scatter of a gradient back, as comparisons that fuse.

`x[i, index[i]]` is the maximum of the row with everything but that element masked by the smallest number,
exactly; its transpose is the value where the position equals the index, and zero elsewhere. Inside a kernel
that reads the row anyway (softmax cross-entropy, the choice of a token) both cost nothing, while the row need
not become an array for their sake.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.compiler.passes import rewrite
from infini.compiler.passes.rewrite import Match, Rule
from infini.core import dtypes
from infini.core.ir import Program, Var
from infini.lax import families, reduction

_PLAIN: Final = dtypes.INTEGERS | dtypes.FLOATS


def _index_of_rows(match: Match, operand: Var, indices: Var, numbers: Any) -> Var | None:
    """The index into the last dimension, one per row of the operand, when that is all a gather looks up."""
    rows = operand.type.shape[:-1]
    last = operand.type.ndim - 1
    is_row_wise = (
        numbers.start_index_map == (last,)
        and numbers.collapsed_slice_dims == (last,)
        and numbers.operand_batching_dims == tuple(range(last))
        and numbers.start_indices_batching_dims == tuple(range(last))
        and indices.type.size == families.prod(rows)
        and operand.type.dtype in _PLAIN
        # Rows of one element have nothing to reduce, and the index has to be able to count a row.
        and 1 < operand.type.shape[last] <= np.iinfo(indices.type.dtype).max
    )
    return match.emit("reshape", indices, shape=rows, ndim=indices.type.ndim) if is_row_wise else None


def _is_chosen(match: Match, index: Var, shape: tuple[int, ...]) -> Var:
    """Whether each place of a row is the one its index names."""
    ndim = len(shape)
    places = match.emit("iota", shape=shape, dimension=ndim - 1, dtype=index.type.dtype)
    repeated = match.emit("broadcast_in_dim", index, shape=shape, dims=tuple(range(-ndim, -1)))
    return match.emit("eq", places, repeated)


def _filled(match: Match, number: Any, like: Var) -> Var:
    scalar = match.literal(np.asarray(number).astype(like.type.dtype))
    return (
        match.emit("broadcast_in_dim", scalar, shape=like.type.shape, dims=()) if like.type.shape else scalar
    )


def _clamped(match: Match, index: Var, size: int, mode: str) -> Var:
    if mode != "clip":
        return index
    low = match.emit("max", index, match.literal(np.zeros((), index.type.dtype)))
    return match.emit("min", low, match.literal(np.asarray(size - 1).astype(index.type.dtype)))


def _gather(match: Match) -> Var | None:
    operand, indices = match.inputs
    if match.attrs["dimension_numbers"].offset_dims or match.num_uses(operand) < 2:
        return None  # nothing else reads the rows, so looking up one element is cheaper
    index = _index_of_rows(match, operand, indices, match.attrs["dimension_numbers"])
    if index is None:
        return None
    size, mode = operand.type.shape[-1], match.attrs["mode"]
    # A broken promise reads the nearest element.
    clamped = _clamped(match, index, size, "fill" if mode == "fill" else "clip")
    chosen = _is_chosen(match, clamped, operand.type.shape)
    lowest = reduction.identity_of(reduction.reduce_max_p, operand.type.dtype)
    masked = match.emit("select_n", chosen, _filled(match, lowest, operand), operand)
    found = match.emit("reduce_max", masked, axes=(-1,))
    if mode == "fill":
        fill = match.attrs["fill_value"]
        outside = families.default_fill(operand.type.dtype) if fill is None else fill
        low = match.emit("ge", index, match.literal(np.zeros((), index.type.dtype)))
        high = match.emit("lt", index, match.literal(np.asarray(size).astype(index.type.dtype)))
        found = match.emit("select_n", match.emit("and", low, high), _filled(match, outside, found), found)
    return match.emit("reshape", found, shape=match.out.shape, ndim=found.type.ndim)


def _scatter_add(match: Match) -> Var | None:
    operand, indices, updates = match.inputs
    numbers = match.attrs["dimension_numbers"]
    if numbers.update_window_dims or not match.is_scalar(operand, 0.0):
        return None
    index = _index_of_rows(match, operand, indices, numbers.as_gather)
    if index is None:
        return None
    shape = operand.type.shape
    chosen = _is_chosen(match, _clamped(match, index, shape[-1], match.attrs["mode"]), shape)
    rows = match.emit("reshape", updates, shape=shape[:-1], ndim=updates.type.ndim)
    repeated = match.emit("broadcast_in_dim", rows, shape=shape, dims=tuple(range(-len(shape), -1)))
    placed = match.emit("select_n", chosen, _filled(match, 0, operand), repeated)
    # A sum starts from +0, which turns -0 into +0.
    return match.emit("add", placed, match.literal(np.zeros((), operand.type.dtype)))


RULES: Final = (
    Rule("gather_one", "gather", _gather, "the chosen element is the largest when all others are masked"),
    Rule("scatter_one", "scatter_add", _scatter_add, "one value per row added to zeros is a selection"),
)


def one_per_row(program: Program) -> Program:
    """Bring gathers and scatters of one element per row into a form that kernels compute."""
    return rewrite.rewrite(program, RULES, "one_hot")
