"""Attention over keys and values that lie in blocks (W. Kwon et al., https://arxiv.org/abs/2309.06180).

Tokens of all requests lie one after the other; a table says which blocks of the cache a request has, in
order. The operation is one primitive, so that a backend may read the blocks where they are; the definition in
`paged_definition` is what the others take.

T tokens, H query heads, K key heads, N blocks of S keys, D width of keys, E width of values, R requests, B
blocks of a request at most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases, families, places
from infini.lax.cases import Case, Sample, Span
from infini.lax.composites import paged_definition as definition
from infini.lax.composites.paged_definition import Options, operands_of
from infini.lax.composites.paged_update import batch_by, int32, partition
from infini.lax.places import Factors, Types

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
CODES: Final = frozenset({dtypes.int8})  # mean nothing without scales
STORED: Final = dtypes.FLOATS | CODES


def _attention_type(*types: ArrayType, **attrs: Any) -> tuple[ArrayType]:  # Any: as `Options`
    options = Options(**attrs)
    o = operands_of(types, options)
    query, keys, values = o.query, o.keys, o.values if o.values is not None else o.keys
    named = {"query": (query, 3), "keys": (keys, 4), "values": (values, 4), "block_tables": (o.tables, 2),
             "lengths": (o.lengths, 1), "query_starts": (o.starts, 1)}  # fmt: skip
    for name, (type_, ndim) in named.items():
        if type_.ndim != ndim:
            raise errors.TypeMismatchError(
                f"paged_attention: {name} has another number of dimensions",
                got=str(type_),
                expected=f"{ndim} dimensions",
            )
    if query.dtype not in dtypes.FLOATS:
        raise errors.TypeMismatchError("paged_attention: query is floating", got=str(query))
    if keys.dtype not in STORED or values.dtype != keys.dtype:
        raise errors.TypeMismatchError(
            "paged_attention: keys and values are floats or int8 of one dtype", got=f"{keys}, {values}"
        )
    if keys.dtype in CODES and not options.has_scales:
        raise errors.TypeMismatchError(
            "paged_attention: keys of int8 come with scales", got=str(keys), fix="pass key_scales="
        )
    heads, width = query.shape[1:]
    if width != keys.shape[3] or not keys.shape[1] or heads % keys.shape[1]:
        raise errors.TypeMismatchError(
            "paged_attention: query and keys do not go together",
            got=f"{query}, {keys}",
            expected="query (T, H, D) and keys (N, K, S, D) with H a multiple of K",
        )
    if values.shape[:3] != keys.shape[:3]:
        raise errors.TypeMismatchError(
            "paged_attention: keys and values differ in blocks, heads or block size", got=f"{keys}, {values}"
        )
    if not keys.shape[0] or not keys.shape[2]:
        raise errors.TypeMismatchError("paged_attention: the cache has no block", got=str(keys))
    if not 0 < options.width_of(values) <= values.shape[3]:
        raise errors.TypeMismatchError(
            "paged_attention: value_width is no part of the keys", got=f"{options.value_width} of {keys}"
        )
    requests = o.tables.shape[0]
    if o.lengths.shape != (requests,) or o.starts.shape != (requests + 1,):
        raise errors.TypeMismatchError(
            "paged_attention: tables, lengths and starts are of different numbers of requests",
            got=f"{o.tables}, {o.lengths}, {o.starts}",
            expected="block_tables (R, B), lengths (R,), query_starts (R + 1,)",
        )
    families.accept("paged_attention", {dtypes.int32}, [o.tables, o.lengths, o.starts])
    for scales in filter(None, (o.key_scales, o.value_scales)):
        if scales.shape != keys.shape[:3] or scales.dtype not in dtypes.FLOATS:
            raise errors.TypeMismatchError(
                "paged_attention: there is one scale for each token and head",
                got=str(scales),
                expected=f"floats {list(keys.shape[:3])}",
            )
    if o.sinks is not None and (o.sinks.shape != (heads,) or o.sinks.dtype not in dtypes.FLOATS):
        raise errors.TypeMismatchError(
            "paged_attention: there is one sink for each head", got=str(o.sinks), expected=f"floats [{heads}]"
        )
    return (query.update(shape=(*query.shape[:2], options.width_of(values))),)


def _place_attention(op: Primitive, in_types: Types, out_types: Types, attrs: ir.Attrs) -> Factors:
    """Heads are split: key heads together with the queries that share them, or queries of one key head."""
    options = Options(**attrs)
    types = operands_of(in_types, options)
    count = types.keys.shape[1]
    group = types.query.shape[1] // count
    shared = ("k",) if count > 1 else ()
    heads = shared + (("g",) if group > 1 else ())
    block = (places.WHOLE, shared, places.WHOLE)
    found = dataclasses.replace(
        operands_of(places.whole(in_types), options),
        query=(places.WHOLE, heads, places.WHOLE),
        keys=(*block, places.WHOLE),
        values=None if types.values is None else (*block, places.WHOLE),
        key_scales=None if types.key_scales is None else block,
        value_scales=None if types.value_scales is None else block,
        sinks=None if types.sinks is None else (heads,),
    )
    sizes = {name: n for name, n in (("k", count), ("g", group)) if n > 1}
    return Factors(found.in_order(), ((places.WHOLE, heads, places.WHOLE),), sizes)


def _cost(types: Sequence[ArrayType], attrs: ir.Attrs) -> float:
    options = Options(**attrs)
    o = operands_of(types, options)
    tokens, heads, depth = o.query.shape
    width = options.width_of(o.values if o.values is not None else o.keys)
    # Every token as if its request had all the blocks that the table has room for.
    keys = o.tables.shape[1] * o.keys.shape[2]
    return 2.0 * tokens * heads * keys * (depth + width)


def _case(
    dtype: np.dtype, *, heads: int = 4, key_heads: int = 2, stored: np.dtype | None = None, **options: Any
) -> Case:  # Any: as `Options`
    """Three requests of 5, 1 and no tokens, and one token of padding."""
    chosen = Options(scale=0.5, **options)
    size, width = 4, chosen.value_width or 6
    blocks = Sample((7, key_heads, size, 8), stored)
    lengths = Sample((3,), dtypes.int32, made=lambda x: np.array([9, 6, 0], np.int32))
    starts = Sample((4,), dtypes.int32, made=lambda x: np.array([0, 5, 6, 6], np.int32))
    operands = [Sample((7, heads, 8)), blocks, Sample((3, 3), dtypes.int32, Span(0, 6)), lengths, starts]
    if chosen.has_values:
        operands.append(Sample((7, key_heads, size, width), stored))
    scales = Sample((7, key_heads, size), dtypes.float32, Span(0.1, 1.0))
    operands += [scales] * (chosen.has_scales * (1 + chosen.has_values))
    operands += [Sample((heads,), dtypes.float32)] * chosen.has_sinks
    return Case(tuple(operands), chosen.attrs(), "program")


_WIDE: Final = frozenset({dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64})


def _cases(dtype: np.dtype) -> list[Case]:
    return [
        _case(dtype),
        _case(dtype, window=3, softcap=2.0, has_sinks=True),
        _case(dtype, key_heads=1, has_values=False, value_width=5),
        _case(dtype, stored=dtypes.int8, has_scales=True),
    ]


paged_attention_p: Primitive = primitive.register(
    Primitive(
        "paged_attention",
        None,
        {
            primitive.TYPE: _attention_type,
            primitive.REFERENCE: definition.attention_in_numpy,
            primitive.DECOMPOSE: definition.attention,
            primitive.BATCH: batch_by(definition.attention),
            primitive.PLACE: _place_attention,
            primitive.PARTITION: partition,
            primitive.COST: _cost,
            primitive.CASES: cases.Cases(_WIDE, _cases),
        },
    )
)


def paged_attention(
    query: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike | None,
    block_tables: ArrayLike,
    lengths: ArrayLike,
    query_starts: ArrayLike,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    key_scales: ArrayLike | None = None,
    value_scales: ArrayLike | None = None,
    value_width: int | None = None,
    sinks: ArrayLike | None = None,
) -> Value:
    """Causal attention of the tokens of several requests over a cache in blocks.

    Token i of request r, which has n tokens here, is at place `lengths[r] - n + i` of its sequence and sees
    the keys up to that place. A token that sees no key, or is of no request, gets zeros. What one request
    gets does not depend on the others.

    Args:
        query: queries of the tokens, those of a request one after the other (T, H, D), floats.
        keys: blocks of keys (N, K, S, D), floats or int8; `H / K` query heads in a row share a key head.
        values: blocks of values (N, K, S, E) of the dtype of the keys; None with `value_width`.
        block_tables: blocks of each request in order, integers (R, B). Numbers beyond the last block count
            as the last; what a request does not need is not read.
        lengths: keys of each request, those of its tokens here included, integers (R,).
        query_starts: first token of each request, and the end of the last, integers (R + 1,).
        scale: factor of the products; 1 / sqrt(D) when absent.
        window: number of keys a token sees at most, its own included; all when absent.
        softcap: scores become `softcap * tanh(score / softcap)`.
        key_scales: factors of the keys (N, K, S), which a cache of int8 needs.
        value_scales: factors of the values (N, K, S), given where `key_scales` and `values` are.
        value_width: E, where the values are the first E numbers of the keys, as in multi-head latent
            attention.
        sinks: one more score per head (H,), which takes its share of the weights and has no value.

    Returns:
        Array (T, H, E) of the dtype of `query`.

    Raises:
        TypeMismatchError: shapes or dtypes do not go together.
        ValueMismatchError: an option is out of its range, or options exclude each other.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> cache = lax.paged_update(inp.zeros((4, 1, 16, 8)), inp.ones((3, 1, 8)), inp.asarray([32, 33, 34]))
        >>> out = lax.paged_attention(inp.ones((3, 2, 8)), cache, cache, inp.asarray([[2]]), inp.asarray([3]),
        ...                           inp.asarray([0, 3]))
        >>> out.shape, float(out[2, 1, 0])
        ((3, 2, 8), 1.0)
    """
    name = "paged_attention"
    given = {"query": query, "keys": keys, "values": values, "key_scales": key_scales,
             "value_scales": value_scales, "sinks": sinks}  # fmt: skip
    x = {key: None if item is None else trace.as_value(item) for key, item in given.items()}
    tables, counts, starts = (int32(name, item) for item in (block_tables, lengths, query_starts))
    _check_options(x, window, softcap, value_width)
    q = x["query"]
    assert q is not None
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[-1]) if q.ndim and q.shape[-1] else 1.0
    options = Options(
        scale=float(scale),
        window=None if window is None else int(window),
        softcap=None if softcap is None else float(softcap),
        value_width=None if value_width is None else int(value_width),
        has_values=values is not None,
        has_scales=key_scales is not None,
        has_sinks=sinks is not None,
    )
    extras = [x[key] for key in ("values", "key_scales", "value_scales", "sinks") if x[key] is not None]
    return trace.bind1(paged_attention_p, q, x["keys"], tables, counts, starts, *extras, **options.attrs())


def _check_options(
    x: dict[str, Value | None], window: int | None, softcap: float | None, value_width: int | None
) -> None:
    def wrong(what: str, got: object, fix: str) -> errors.ValueMismatchError:
        return errors.ValueMismatchError(f"paged_attention: {what}", got=str(got), fix=fix)

    if window is not None and window < 1:
        raise wrong("a window has at least one key", window, "leave window out to see every key")
    if softcap is not None and not softcap > 0:
        raise wrong("softcap is positive", softcap, "leave softcap out to let scores be")
    if (x["values"] is None) != (value_width is not None):
        raise wrong(
            "values are an array, or the first numbers of the keys",
            f"values={'None' if x['values'] is None else x['values'].type}, value_width={value_width}",
            "pass either values or value_width=",
        )
    if (x["value_scales"] is not None) != (x["key_scales"] is not None and x["values"] is not None):
        raise wrong(
            "keys and values have scales, or neither",
            ", ".join(key for key in ("key_scales", "value_scales") if x[key] is not None) or "none",
            "pass key_scales= and, with values, value_scales=",
        )
