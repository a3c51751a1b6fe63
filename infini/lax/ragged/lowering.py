"""`ragged_dot` by other operations: a loop over blocks of rows, or a contraction with zeros where a row
belongs to another group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from infini.core import dtypes, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import (
    contraction,
    cumulative,
    elementwise as e,
    families,
    indexing,
    loops,
    reduction,
    sorting,
    view,
)
from infini.lax.families import bind_scalars
from infini.lax.ragged.spec import Spec, parse

BLOCK: Final = 128  # rows that are multiplied by the matrix of one group at a time


def decompose(
    x: Value, y: Value, sizes: Value, *, spec: str, ragged: str, dtype: np.dtype, has_others: bool = False
) -> tuple[Value]:
    """DECOMPOSE of `ragged_dot`."""
    s = parse(spec)
    ends = cumulative.cumsum(sizes, sizes.ndim - 1)
    rows, groups = x.shape[s.x.index(ragged) - len(s.x)], sizes.shape[-1]
    has_loops = x.ndim > len(s.x) or y.ndim > len(s.y) or sizes.ndim > 1
    num_segments = -(-rows // BLOCK) + groups
    is_short = 2 * num_segments * BLOCK > rows * groups and (not has_others or rows < 8 * BLOCK)
    if has_loops or groups == 0 or is_short:
        return (_masked(x, y, sizes, ends, s, ragged, dtype),)
    return (_by_segments(x, y, ends, s, ragged, dtype, has_others),)


def _masked(x: Value, y: Value, sizes: Value, ends: Value, s: Spec, ragged: str, dtype: np.dtype) -> Value:
    """Every row beside every group, zero where it belongs to another one: a plain contraction."""
    count = x.shape[s.x.index(ragged) - len(s.x)]
    starts = trace.bind1(e.sub_p, ends, sizes)
    line = view.iota(sizes.dtype, count)
    low, high = (view.expand_dims(v, (v.ndim,)) for v in (starts, ends))
    inside = trace.bind1(e.and_p, trace.bind1(e.ge_p, line, low), trace.bind1(e.lt_p, line, high))
    # Letters of the mask and of x together; the mask has those of the sizes and the rows.
    prefix = "".join(c for c in s.sizes if c not in s.x)
    letters = prefix + s.x
    mask = _spread(inside, s.sizes + ragged, letters)
    wide = _spread(x, s.x, letters)
    chosen = trace.bind1(e.select_n_p, *_together(mask, families.zeros(ArrayType((), x.dtype)), wide))
    return trace.bind1(contraction.dot_p, chosen, y, spec=f"{letters},{s.y}->{s.out}", dtype=dtype)


def _spread(x: Value, letters: str, wanted: str) -> Value:
    """An array with its core dimensions in the order of `wanted`, of size 1 where it lacks one."""
    loops = x.ndim - len(letters)
    kept = [c for c in wanted if c in letters]
    x = view.transpose(x, [*range(loops), *(loops + letters.index(c) for c in kept)])
    sizes = iter(x.shape[loops:])
    return view.reshape(x, (*x.shape[:loops], *(next(sizes) if c in letters else 1 for c in wanted)))


def _together(mask: Value, zero: Value, x: Value) -> tuple[Value, Value, Value]:
    shape = tuple(np.broadcast_shapes(mask.shape, x.shape))
    mask, zero, x = (families.broadcast_to(v, shape) for v in (mask, zero, x))
    return mask, zero, x


def _by_segments(
    x: Value, y: Value, ends: Value, s: Spec, ragged: str, dtype: np.dtype, has_others: bool
) -> Value:
    """Rows are cut where a group or a block begins, so each segment has one matrix; a loop over these, or
    over those that are of a group if rows of others are many.
    """
    rows, groups = x.shape[s.x.index(ragged)], ends.shape[0]
    num_blocks = -(-rows // BLOCK)
    ends = e.convert_element_type(ends, dtypes.int32)
    firsts = bind_scalars(e.mul_p, view.iota(dtypes.int32, num_blocks), BLOCK)
    cuts = view.concatenate([firsts, bind_scalars(e.min_p, ends, rows)], 0)
    cuts = sorting.sort(cuts)
    stops = view.concatenate([view.slice_in_dim(cuts, 1, None), view.full((1,), rows, dtypes.int32)], 0)
    # A segment belongs to the first group that ends behind it; rows behind all groups to none.
    is_before = trace.bind1(e.le_p, view.expand_dims(ends, (0,)), view.expand_dims(cuts, (1,)))
    owners = reduction.reduce_sum(e.convert_element_type(is_before, dtypes.int32), (1,))
    is_owned = bind_scalars(e.lt_p, owners, groups)
    stops = trace.bind1(e.select_n_p, is_owned, cuts, stops)
    owners = bind_scalars(e.min_p, owners, groups - 1)
    body = _segment_sum if s.is_summed else _segment_product
    used = reduction.reduce_sum(e.convert_element_type(is_owned, dtypes.int32), (0,)) if has_others else None
    return body(x, y, _Segments(cuts, stops, owners, used), s, ragged, dtype, groups)


class _Segments(NamedTuple):
    """Rows that one matrix multiplies.

    Args:
        cuts: where each begins.
        stops: where it ends.
        owners: its group.
        used: how many are of a group, those in front; None to take all.
    """

    cuts: Value
    stops: Value
    owners: Value
    used: Value | None

    def fold(self, step: Callable[[Value, tuple[Value, ...]], Value], start: Value) -> Value:
        """`step(total, (cut, stop, owner))` over the segments."""
        lists = (self.cuts, self.stops, self.owners)

        def turn(i: Value, total: Value) -> Value:
            return step(total, tuple(indexing.dynamic_index_in_dim(x, i, keepdims=False) for x in lists))

        found: Value
        if self.used is None:
            found, _ = loops.scan(lambda total, segment: (step(total, segment), None), start, lists)
        else:
            found = loops.fori_loop(0, self.used, turn, start)
        return found


def _rows_of(x: Value, letters: str, ragged: str) -> Value:
    """An array with its rows in front, padded to whole blocks."""
    at = letters.index(ragged)
    x = view.transpose(x, [at, *(d for d in range(x.ndim) if d != at)])
    missing = -x.shape[0] % BLOCK
    zero = families.zeros(ArrayType((), x.dtype))
    return view.pad(x, zero, [(0, missing, 0), *((0, 0, 0),) * (x.ndim - 1)]) if missing else x


def _block(rows: Value, cut: Value, stop: Value) -> tuple[Value, Value]:
    """The block of a segment with the rows of other segments zero, and where it begins."""
    first = bind_scalars(e.mul_p, bind_scalars(e.div_p, cut, BLOCK), BLOCK)
    block = indexing.dynamic_slice_in_dim(rows, first, BLOCK)
    numbers = trace.bind1(e.add_p, view.iota(dtypes.int32, BLOCK), first)
    inside = trace.bind1(e.and_p, trace.bind1(e.ge_p, numbers, cut), trace.bind1(e.lt_p, numbers, stop))
    mask = view.broadcast_in_dim(inside, block.shape, (0,))
    zero = families.zeros(block.type)
    return trace.bind1(e.select_n_p, mask, zero, block), first


def _segment_product(
    x: Value, y: Value, segments: _Segments, s: Spec, ragged: str, dtype: np.dtype, groups: int
) -> Value:
    rows = _rows_of(x, s.x, ragged)
    at = s.y.index(s.group)
    y = view.transpose(y, [at, *(d for d in range(y.ndim) if d != at)])
    left, right = ragged + s.x.replace(ragged, ""), s.y.replace(s.group, "")
    out = ragged + s.out.replace(ragged, "")
    sizes = dict(zip(left, rows.shape, strict=True)) | dict(zip(right, y.shape[1:], strict=True))

    def step(total: Value, segment: tuple[Value, ...]) -> Value:
        cut, stop, owner = segment
        block, first = _block(rows, cut, stop)
        matrix = indexing.dynamic_index_in_dim(y, owner, keepdims=False)
        product = trace.bind1(contraction.dot_p, block, matrix, spec=f"{left},{right}->{out}", dtype=dtype)
        before = indexing.dynamic_slice_in_dim(total, first, BLOCK)
        return indexing.dynamic_update_slice_in_dim(total, e.add(before, product), first, 0)

    zero = families.zeros(ArrayType(tuple(sizes[c] for c in out), dtype))
    found = segments.fold(step, zero)
    found = view.slice_in_dim(found, 0, x.shape[s.x.index(ragged)])
    return view.transpose(found, [out.index(c) for c in s.out])


def _segment_sum(
    x: Value, y: Value, segments: _Segments, s: Spec, ragged: str, dtype: np.dtype, groups: int
) -> Value:
    x_rows, y_rows = _rows_of(x, s.x, ragged), _rows_of(y, s.y, ragged)
    left, right = ragged + s.x.replace(ragged, ""), ragged + s.y.replace(ragged, "")
    out = s.out.replace(s.group, "")
    sizes = dict(zip(left, x_rows.shape, strict=True)) | dict(zip(right, y_rows.shape, strict=True))
    is_small = dtype in dtypes.FLOATS and dtype.itemsize <= 2
    wide = dtypes.float32 if is_small else dtype

    def step(total: Value, segment: tuple[Value, ...]) -> Value:
        cut, stop, owner = segment
        block, first = _block(x_rows, cut, stop)
        other = indexing.dynamic_slice_in_dim(y_rows, first, BLOCK)
        product = trace.bind1(contraction.dot_p, block, other, spec=f"{left},{right}->{out}", dtype=wide)
        before = indexing.dynamic_slice_in_dim(total, owner, 1)
        added = e.add(before, view.expand_dims(product, (0,)))
        return indexing.dynamic_update_slice_in_dim(total, added, owner, 0)

    zero = families.zeros(ArrayType((groups, *(sizes[c] for c in out)), wide))
    found = segments.fold(step, zero)
    have = s.group + out
    return e.convert_element_type(view.transpose(found, [have.index(c) for c in s.out]), dtype)
