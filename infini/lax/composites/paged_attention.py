"""Attention over keys and values that lie in blocks (W. Kwon et al., https://arxiv.org/abs/2309.06180), and
the writing of such blocks.

Tokens of all requests lie one after the other; a table says which blocks of the cache a request has, in
order. The operation is one primitive, so that a backend may read the blocks where they are; the definition in
`paged_definition` is what the others take.

T tokens, H query heads, K key heads, N blocks of S keys, D width of keys, E width of values, R requests, B
blocks of a request at most.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places, reduction, view
from infini.lax.cases import Case, Sample, Span
from infini.lax.composites import paged_definition as definition
from infini.lax.composites.paged_definition import Options, operands_of
from infini.lax.families import bind_scalars
from infini.lax.places import Factors, Part, Types

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
CODES: Final = frozenset({dtypes.int8})  # mean nothing without scales
STORED: Final = dtypes.FLOATS | CODES

# --- attention -----------------------------------------------------------------------------------------


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


def _partition(part: Part, *operands: Value) -> tuple[Value, ...]:
    """PARTITION of both: what is split is equal on all devices but for its heads."""
    return tuple(trace.bind(part.op, *operands, **part.attrs))


def _batch_by(define: Any) -> Any:  # Any: a BATCH rule
    """BATCH: the definition, batched."""

    def rule(ctx: Any, args: Any, batched: Any, attrs: ir.Attrs) -> Any:  # Any: see transforms.batching
        types = [
            x.type.update(shape=x.shape[1:]) if flag else x.type
            for x, flag in zip(args, batched, strict=True)
        ]
        program = trace.stage(functools.partial(define, **attrs), types).program
        body, _ = ctx.batch_program(program, batched, force=True)
        return trace.evaluate(body, args), (True,) * len(body.results)

    return rule


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
            primitive.BATCH: _batch_by(definition.attention),
            primitive.PLACE: _place_attention,
            primitive.PARTITION: _partition,
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
    tables, counts, starts = (_int32(name, item) for item in (block_tables, lengths, query_starts))
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


def _int32(name: str, x: ArrayLike) -> Value:
    value = trace.as_value(x)
    families.accept(name, dtypes.INTEGERS, [value.type])
    return e.convert_element_type(value, dtypes.int32)


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


# --- writing ---------------------------------------------------------------------------------------------


def _update_type(cache: ArrayType, new: ArrayType, slots: ArrayType) -> tuple[ArrayType]:
    if cache.ndim < 3 or new.ndim != cache.ndim - 1 or slots.ndim != 1:
        raise errors.TypeMismatchError(
            "paged_update: wrong numbers of dimensions",
            got=f"{cache}, {new}, {slots}",
            expected="a cache (N, K, S, ...), rows (T, K, ...) and slots (T,)",
        )
    if new.shape != (*slots.shape, cache.shape[1], *cache.shape[3:]):
        raise errors.TypeMismatchError(
            "paged_update: the rows do not fit the cache or the slots",
            got=f"{cache}, {new}, {slots}",
            expected=f"rows {[*slots.shape, cache.shape[1], *cache.shape[3:]]}",
        )
    if new.dtype != cache.dtype:
        raise errors.TypeMismatchError("paged_update: cache and rows are of one dtype", got=f"{cache}, {new}")
    families.accept("paged_update", {dtypes.int32}, [slots])
    return (cache,)


def _place_update(op: Primitive, in_types: Types, out_types: Types, attrs: ir.Attrs) -> Factors:
    """Heads, and what there is of each token and head, are split."""
    cache = in_types[0]
    names: list[places.Dimension] = [
        (f"d{i}",) if i not in (0, 2) else places.WHOLE for i in range(cache.ndim)
    ]
    rows = (places.WHOLE, *(names[i] for i in range(cache.ndim) if i not in (0, 2)))
    sizes = {f"d{i}": cache.shape[i] for i in range(cache.ndim) if i not in (0, 2)}
    return Factors((tuple(names), rows, (places.WHOLE,)), (tuple(names),), sizes)


def _update_cases(dtype: np.dtype) -> list[Case]:
    slots = Sample((5,), dtypes.int32, made=lambda x: np.array([13, 2, -1, 20, 7], np.int32))
    return [
        Case((Sample((5, 2, 4, 3)), Sample((5, 2, 3)), slots), {}, "exact"),
        Case((Sample((5, 1, 4)), Sample((5, 1)), slots), {}, "exact"),
    ]


paged_update_p: Primitive = primitive.register(
    Primitive(
        "paged_update",
        None,
        {
            primitive.TYPE: _update_type,
            primitive.REFERENCE: definition.update_in_numpy,
            primitive.DECOMPOSE: definition.update,
            primitive.BATCH: _batch_by(definition.update),
            primitive.PLACE: _place_update,
            primitive.PARTITION: _partition,
            primitive.CASES: cases.Cases(dtypes.FLOATS | dtypes.INTEGERS, _update_cases),
        },
    )
)


def paged_update(cache: ArrayLike, new: ArrayLike, slots: ArrayLike) -> Value:
    """The cache with a row written for each token, in place where the cache is donated.

    Args:
        cache: blocks (N, K, S, ...), such as keys (N, K, S, D) or their scales (N, K, S).
        new: rows of the tokens (T, K, ...), converted to the dtype of the cache.
        slots: place of each token, block * S + place in the block, integers (T,). Tokens whose slot is out of
            range are dropped; of equal slots the last counts.

    Returns:
        Array of the type of `cache`.

    Raises:
        TypeMismatchError: shapes do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.paged_update(inp.zeros((2, 1, 2)), inp.ones((2, 1)), inp.asarray([2, 4])).tolist()
        [[[0.0, 0.0]], [[1.0, 0.0]]]
    """
    kept = trace.as_value(cache)
    rows = e.convert_element_type(trace.as_value(new), kept.dtype)
    return trace.bind1(paged_update_p, kept, rows, _int32("paged_update", slots))


def paged_quantize(new: ArrayLike, dtype: Any) -> tuple[Value, Value]:  # Any: a dtype or its name
    """Rows of keys or values as codes of a byte, with a factor for each token and head.

    Args:
        new: rows (..., D), floats.
        dtype: int8, float8_e4m3fn or float8_e5m2.

    Returns:
        Codes (..., D) of that dtype, and float32 factors (...,) that they are multiplied by.

    Raises:
        ValueMismatchError: there are no codes of that dtype.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> codes, scales = lax.paged_quantize(inp.asarray([[0.5, -2.0]]), "int8")
        >>> codes
        Array([[  32, -127]], dtype=int8)
    """
    wanted = dtypes.canonical(dtype)
    if wanted not in _LARGEST:
        raise errors.ValueMismatchError(
            "paged_quantize: there are no codes of this dtype",
            got=dtypes.short(wanted),
            expected=", ".join(dtypes.short(d) for d in _LARGEST),
        )
    x = trace.as_value(new)
    wide = e.convert_element_type(x, dtypes.float32) if x.dtype.itemsize <= 2 else x
    largest = trace.bind1(reduction.reduce_max_p, e.abs(wide), axes=(-1,))
    # Rows of zeros keep a factor that can be divided by.
    factors = bind_scalars(e.max_p, bind_scalars(e.div_p, largest, _LARGEST[wanted]), _SMALLEST_FACTOR)
    codes = trace.bind1(e.div_p, wide, view.expand_dims(factors, (factors.ndim,)))
    if wanted in dtypes.INTEGERS:
        codes = trace.bind1(e.round_even_p, codes)
    return e.convert_element_type(codes, wanted), e.convert_element_type(factors, dtypes.float32)


# The largest number of each dtype that codes take.
_LARGEST: Final = {dtypes.int8: 127.0, dtypes.float8_e4m3fn: 448.0, dtypes.float8_e5m2: 57344.0}
_SMALLEST_FACTOR: Final = 1e-30
