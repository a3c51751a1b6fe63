"""Writing into a cache that lies in blocks, and codes of a byte to write; what its operations share.

Letters are those of `paged_attention`.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places, reduction, view
from infini.lax.cases import Case, Sample
from infini.lax.composites import paged_definition as definition
from infini.lax.families import bind_scalars
from infini.lax.places import Factors, Part, Types

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers

# --- what both operations have -------------------------------------------------------------------------


def partition(part: Part, *operands: Value) -> tuple[Value, ...]:
    """PARTITION of both: what is split is equal on all devices but for its heads."""
    return tuple(trace.bind(part.op, *operands, **part.attrs))


def batch_by(define: Any) -> Any:  # Any: a BATCH rule
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


def int32(name: str, x: ArrayLike) -> Value:
    """Integers of any kind as int32."""
    value = trace.as_value(x)
    families.accept(name, dtypes.INTEGERS, [value.type])
    return e.convert_element_type(value, dtypes.int32)


# --- writing -----------------------------------------------------------------------------------------------


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
            primitive.BATCH: batch_by(definition.update),
            primitive.PLACE: _place_update,
            primitive.PARTITION: partition,
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
    return trace.bind1(paged_update_p, kept, rows, int32("paged_update", slots))


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
