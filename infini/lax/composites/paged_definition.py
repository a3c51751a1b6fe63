"""What attention over keys in blocks means: its operands and options, the definition by other operations,
and the same with NumPy.

The definition gathers the blocks of every token, some at a time, and carries the softmax along by the
largest score and the sum of every row (M. Milakov and N. Gimelshein, https://arxiv.org/abs/1805.02867), so
memory does not grow with the lengths. Letters are those of `paged_attention`; `g` queries share a key head,
and `c` blocks are looked at together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np

from infini.core import dtypes, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import contraction, elementwise as e, families, indexing, loops, reduction, view
from infini.lax.families import bind_scalars

STEP_ELEMENTS: Final = 1 << 22  # of the keys that are gathered at once
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The attributes of `paged_attention`, whose options those without a comment are.

    Args:
        scale: factor of the products.
        window: see there.
        softcap: see there.
        value_width: see there.
        has_values: whether there are values; otherwise the keys are.
        has_scales: whether keys, and values where there are, have scales.
        has_sinks: whether there are sinks.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    value_width: int | None = None
    has_values: bool = True
    has_scales: bool = False
    has_sinks: bool = False

    def attrs(self) -> dict[str, Any]:  # Any: numbers, flags and None
        """As attributes of the operation."""
        return dataclasses.asdict(self)

    def width_of(self, values: ArrayType | Value | np.ndarray) -> int:
        """Width of the result."""
        return int(values.shape[-1]) if self.value_width is None else self.value_width


@dataclass(frozen=True, slots=True)
class Operands(Generic[_T]):
    """What there is one of per operand of `paged_attention`, in their order; None for those that are not."""

    query: _T
    keys: _T
    tables: _T
    lengths: _T
    starts: _T
    values: _T | None = None
    key_scales: _T | None = None
    value_scales: _T | None = None
    sinks: _T | None = None

    def in_order(self) -> tuple[_T, ...]:
        """Those that there are."""
        found = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(x for x in found if x is not None)


def operands_of(items: Sequence[_T], options: Options) -> Operands[_T]:
    """Items, one per operand, by name."""
    names = ["query", "keys", "tables", "lengths", "starts"]
    names += ["values"] * options.has_values
    names += ["key_scales"] * options.has_scales
    names += ["value_scales"] * (options.has_scales and options.has_values)
    names += ["sinks"] * options.has_sinks
    found: Mapping[str, _T] = dict(zip(names, items, strict=True))
    return Operands(**found)


# --- attention by other operations ---------------------------------------------------------------------


def _bind(op: Any, *operands: Value, **attrs: Any) -> Value:  # Any: a primitive, and its attributes
    return trace.bind1(op, *operands, **attrs)


def _rows(x: Value, numbers: Value) -> Value:
    """What an array has at some numbers along its first dimension, the nearest where it ends."""
    dims = tuple(range(numbers.ndim, numbers.ndim + x.ndim - 1))
    dn = indexing.GatherDimensionNumbers(dims, (0,), (0,))
    indices = view.expand_dims(numbers, (numbers.ndim,))
    return indexing.gather(x, indices, dn, (1, *x.shape[1:]), mode="clip")


def _column(x: Value, ndim: int) -> Value:
    """An array with dimensions of size 1 behind its own."""
    return view.reshape(x, (*x.shape, *(1,) * (ndim - x.ndim)))


def _where(condition: Value, x: Value, fill: float) -> Value:
    return _bind(e.select_n_p, condition, families.like(fill, x), x)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Of each token: its request, whether it is of one, and its last key."""

    owner: Value
    has_owner: Value
    place: Value


def _tokens(count: int, lengths: Value, starts: Value) -> _Tokens:
    numbers = view.iota(dtypes.int32, count)
    ends = view.slice_in_dim(starts, 1, None)
    is_behind = _bind(e.le_p, view.expand_dims(ends, (0,)), view.expand_dims(numbers, (1,)))
    owner = reduction.reduce_sum(e.convert_element_type(is_behind, dtypes.int32), (1,))
    has_owner = bind_scalars(e.lt_p, owner, lengths.shape[0])
    has_owner = _bind(
        e.and_p, has_owner, _bind(e.ge_p, numbers, view.index_in_dim(starts, 0, keepdims=False))
    )
    own_end = _rows(ends, owner)
    # The last token of a request is at the last key.
    back = _bind(e.sub_p, own_end, numbers)
    return _Tokens(owner, has_owner, _bind(e.sub_p, _rows(lengths, owner), back))


def attention(*operands: Value, **attrs: Any) -> tuple[Value]:  # Any: as `Options`
    """DECOMPOSE of `paged_attention`."""
    options = Options(**attrs)
    o = operands_of(operands, options)
    (count, heads, depth), (_, key_heads, size, _) = o.query.shape, o.keys.shape
    group, num_blocks = heads // key_heads, o.tables.shape[1]
    wide = dtypes.float64 if dtypes.float64 in (o.query.dtype, o.keys.dtype) else dtypes.float32
    width = options.width_of(o.values if o.values is not None else o.keys)
    tokens = _tokens(count, o.lengths, o.starts)
    query = view.reshape(e.convert_element_type(o.query, wide), (count, key_heads, group, depth))
    query = bind_scalars(e.mul_p, query, options.scale)
    step = max(1, min(num_blocks, STEP_ELEMENTS // max(1, count * size * key_heads * depth)))
    turns = -(-num_blocks // step)
    tables = _rows(o.tables, tokens.owner)  # (T, B)
    if turns * step > num_blocks:
        zero = families.zeros(ArrayType((), dtypes.int32))
        tables = view.pad(tables, zero, [(0, 0, 0), (0, turns * step - num_blocks, 0)])

    def turn(carry: Sequence[Value], number: Any) -> tuple[Sequence[Value], None]:  # Any: a number or a value
        blocks = indexing.dynamic_slice_in_dim(tables, number * step, step, 1)
        first = bind_scalars(e.mul_p, trace.as_value(number), step * size)
        return _turn(carry, o, options, tokens, query, blocks, first, wide, width), None

    rows = (count, key_heads, group)
    start = (
        families.zeros(ArrayType((*rows, width), wide)),
        families.full(ArrayType(rows, wide), -math.inf),
        families.zeros(ArrayType(rows, wide)),
    )
    if turns == 1:
        carry, _ = turn(start, 0)
    elif turns:
        carry, _ = loops.scan(turn, start, view.iota(dtypes.int32, turns))
    else:
        carry = start
    out, largest, total = carry
    if o.sinks is not None:
        sinks = view.reshape(e.convert_element_type(o.sinks, wide), (1, key_heads, group))
        top = e.stop_gradient(_bind(e.max_p, largest, sinks))
        share = e.exp(_bind(e.sub_p, largest, top))
        total = _bind(e.add_p, _bind(e.mul_p, total, share), e.exp(_bind(e.sub_p, sinks, top)))
        out = _bind(e.mul_p, out, _column(share, 4))
    has_key = _bind(e.and_p, bind_scalars(e.gt_p, largest, -math.inf), _column(tokens.has_owner, 3))
    total = _bind(e.select_n_p, has_key, families.like(1.0, total), total)
    out = _where(_column(has_key, 4), _bind(e.div_p, out, _column(total, 4)), 0.0)
    return (view.reshape(e.convert_element_type(out, o.query.dtype), (count, heads, width)),)


def _turn(
    carry: Sequence[Value], o: Operands[Value], options: Options, tokens: _Tokens, query: Value,
    blocks: Value, first: Value, wide: np.dtype, width: int,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """The softmax with some blocks (T, c) more, the first of whose keys has the number `first`."""
    out, largest, total = carry
    step, size = blocks.shape[1], o.keys.shape[2]
    numbers = view.reshape(view.iota(dtypes.int32, step * size), (1, step, size))
    numbers = bind_scalars(e.add_p, numbers, first)
    place = _column(tokens.place, 3)
    seen = _bind(e.le_p, numbers, place)  # (T, c, s)
    if options.window is not None:
        seen = _bind(
            e.and_p, seen, bind_scalars(e.gt_p, numbers, bind_scalars(e.sub_p, place, options.window))
        )
    # What lies in a block behind the keys of a request may be anything.
    inside = view.expand_dims(seen, (2, 4))
    keys = _where(inside, e.convert_element_type(_rows(o.keys, blocks), wide), 0.0)  # (T, c, K, s, D)
    if o.values is None:
        values = view.slice_in_dim(keys, 0, width, axis=4)
    else:
        values = _where(inside, e.convert_element_type(_rows(o.values, blocks), wide), 0.0)
    scores = _bind(contraction.dot_p, query, keys, spec="tkgd,tcksd->tkgcs", dtype=wide)
    if o.key_scales is not None:
        scores = _bind(e.mul_p, scores, _factors(o.key_scales, blocks, wide))
    if options.softcap is not None:
        capped = e.tanh(bind_scalars(e.div_p, scores, options.softcap))
        scores = bind_scalars(e.mul_p, capped, options.softcap)
    scores = _where(view.expand_dims(seen, (1, 2)), scores, -math.inf)
    # What scores are compared with changes no result, so it needs no derivative.
    top = e.stop_gradient(_bind(e.max_p, largest, reduction.reduce_max(scores, (3, 4))))
    base = _where(bind_scalars(e.gt_p, top, -math.inf), top, 0.0)
    share = e.exp(_bind(e.sub_p, largest, base))
    weights = e.exp(_bind(e.sub_p, scores, _column(base, 5)))
    total = _bind(e.add_p, _bind(e.mul_p, total, share), reduction.reduce_sum(weights, (3, 4)))
    value_scales = o.value_scales if o.values is not None else o.key_scales
    if value_scales is not None:
        weights = _bind(
            e.mul_p,
            weights,
            _where(view.expand_dims(seen, (1, 2)), _factors(value_scales, blocks, wide), 0.0),
        )
    found = _bind(contraction.dot_p, weights, values, spec="tkgcs,tcksv->tkgv", dtype=wide)
    return _bind(e.add_p, _bind(e.mul_p, out, _column(share, 4)), found), top, total


def _factors(scales: Value, blocks: Value, wide: np.dtype) -> Value:
    """Scales of some blocks, beside scores (T, K, 1, c, s)."""
    found = view.transpose(_rows(scales, blocks), (0, 2, 1, 3))
    return view.expand_dims(e.convert_element_type(found, wide), (2,))


def update(cache: Value, new: Value, slots: Value) -> tuple[Value]:
    """DECOMPOSE of `paged_update`."""
    size = cache.shape[2]
    block, place = bind_scalars(e.div_p, slots, size), bind_scalars(e.rem_p, slots, size)
    # Division is towards zero, so a slot below 0 would be one of the first block.
    block = _bind(e.select_n_p, bind_scalars(e.lt_p, slots, 0), block, families.like(-1, block))
    indices = view.concatenate([view.expand_dims(block, (1,)), view.expand_dims(place, (1,))], 1)
    dn = indexing.ScatterDimensionNumbers(tuple(range(1, new.ndim)), (0, 2), (0, 2))
    return (indexing.scatter(cache, indices, new, dn, mode="drop"),)


# --- the same with NumPy ---------------------------------------------------------------------------------


def attention_in_numpy(*operands: np.ndarray, **attrs: Any) -> np.ndarray:  # Any: as `Options`
    """REFERENCE of `paged_attention`."""
    options = Options(**attrs)
    o = operands_of(operands, options)
    wide = np.float64 if np.float64 in (o.query.dtype, o.keys.dtype) else np.float32
    width = options.width_of(o.values if o.values is not None else o.keys)
    out = np.zeros((*o.query.shape[:2], width), wide)
    count, size = o.query.shape[0], o.keys.shape[2]
    for request, length in enumerate(o.lengths):
        first, stop = (int(n) for n in o.starts[request : request + 2])
        for token in range(max(first, 0), min(stop, count)):
            end = min(int(length) - (stop - token) + 1, o.tables.shape[1] * size)
            start = 0 if options.window is None else max(0, int(length) - (stop - token) + 1 - options.window)
            if end > start:
                out[token] = _token_in_numpy(o, options, request, token, (start, end), wide)
    return out.astype(o.query.dtype)


def _token_in_numpy(
    o: Operands[np.ndarray], options: Options, request: int, token: int, seen: tuple[int, int], wide: Any
) -> np.ndarray:  # Any: a dtype
    size = o.keys.shape[2]
    numbers = np.arange(*seen)
    blocks = np.clip(o.tables[request, numbers // size], 0, o.keys.shape[0] - 1)

    def stored(cache: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        found = cache[blocks, :, numbers % size].astype(wide)
        return found if scales is None else found * scales[blocks, :, numbers % size].astype(wide)[..., None]

    keys = stored(o.keys, o.key_scales)  # (s, K, D)
    values = keys if o.values is None else stored(o.values, o.value_scales)
    values = values[:, :, : options.width_of(values)]
    group = o.query.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x, group, axis=1) for x in (keys, values))
    scores = np.einsum("hd,shd->hs", o.query[token].astype(wide), keys) * wide(options.scale)
    if options.softcap is not None:
        scores = wide(options.softcap) * np.tanh(scores / wide(options.softcap))
    largest = scores.max(1, keepdims=True)
    if o.sinks is not None:
        largest = np.maximum(largest, o.sinks.astype(wide)[:, None])
    weights = np.exp(scores - largest)
    total = weights.sum(1, keepdims=True)
    if o.sinks is not None:
        total = total + np.exp(o.sinks.astype(wide)[:, None] - largest)
    return np.einsum("hs,shv->hv", weights / total, values)


def update_in_numpy(cache: np.ndarray, new: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """REFERENCE of `paged_update`."""
    out, size = cache.copy(), cache.shape[2]
    for row, slot in zip(new, slots, strict=True):
        if 0 <= slot < cache.shape[0] * size:
            out[slot // size, :, slot % size] = row
    return out
