"""The feed-forward layer of a mixture of experts as one primitive, and its gradient as another.

Tokens are sorted by expert, multiplied in groups (`ragged_dot`) and put back, so none is dropped. As that is
inside of the primitive, tokens may be split over devices, each of which sorts its own, and so may experts: a
device computes the choices that fall on its experts, and the results add up; `is_part` tells it that most
choices may fall elsewhere.

Letters: t tokens, d their width, k choices of each, e experts, f width of an expert. Sorted choices are `m`.
References: Switch (arXiv:2101.03961), MegaBlocks (arXiv:2211.15841).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import (
    cases,
    contraction_dtypes,
    elementwise as e,
    families,
    indexing,
    places,
    precision,
    reduction,
    sorting,
    view,
)
from infini.lax.cases import Case, Sample, Span
from infini.lax.families import bind_scalars
from infini.lax.places import Factors, Part, Types
from infini.lax.ragged.operation import ragged_dot_p

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_WEIGHTS: Final = (("e", "f", "d"), ("e", "f", "d"), ("e", "d", "f"))
_OPERANDS: Final = (("t", "d"), ("t", "k"), ("t", "k"), *_WEIGHTS)
_FORWARD: Final = Signature(_OPERANDS, (("t", "d"),))
_GRADIENT: Final = Signature((*_OPERANDS, ("t", "d")), (("t", "d"), ("t", "k"), *_WEIGHTS))


# --- the definition ------------------------------------------------------------------------------------


class _Sorted(NamedTuple):
    """Choices in the order of their experts.

    Args:
        tokens: the token of each (m,).
        back: where the choices of each token went (t * k,).
        sizes: choices of each expert (e,). Those of no expert are behind all others.
        amounts: what each counts (m,).
        has_others: whether many are of no expert.
    """

    tokens: Value
    back: Value
    sizes: Value
    amounts: Value
    has_others: bool


def _sorted(chosen: Value, amounts: Value, num_experts: int, is_part: bool) -> _Sorted:
    count, num_chosen = chosen.shape
    keys = view.reshape(e.convert_element_type(chosen, dtypes.int32), (count * num_chosen,))
    known = trace.bind1(
        e.and_p, bind_scalars(e.ge_p, keys, 0), bind_scalars(e.lt_p, keys, num_experts)
    )  # others are experts of other devices
    keys = trace.bind1(e.select_n_p, known, families.like(num_experts, keys), keys)
    line = view.iota(dtypes.int32, keys.shape[0])
    keys, order = sorting.sort([keys, line], num_keys=1)
    _, back = sorting.sort([order, line], num_keys=1)
    is_of = trace.bind1(
        e.eq_p, view.expand_dims(keys, (1,)), view.expand_dims(view.iota(dtypes.int32, num_experts), (0,))
    )
    sizes = reduction.reduce_sum(e.convert_element_type(is_of, dtypes.int32), (0,))
    flat = view.reshape(amounts, (count * num_chosen,))
    return _Sorted(bind_scalars(e.div_p, order, num_chosen), back, sizes, _rows(flat, order), is_part)


def _rows(x: Value, numbers: Value) -> Value:
    return indexing.index_take(x, (numbers,), (0,))


def _product(spec: str, x: Value, y: Value, order: _Sorted) -> Value:
    """A product by groups in the dtype of its operands, summed in float32 or wider."""
    _, total = contraction_dtypes.working(x.dtype, x.dtype)
    first, second, summed = precision.types_of(precision.canonical(None), x.dtype, y.dtype)
    given = e.convert_element_type(x, first), e.convert_element_type(y, second)
    attrs: dict[str, Any] = {"spec": spec, "ragged": "m", "dtype": summed or total}
    if order.has_others:
        attrs["has_others"] = True
    found = trace.bind1(ragged_dot_p, *given, order.sizes, **attrs)
    return e.convert_element_type(found, x.dtype)


def _times(x: Value, y: Value) -> Value:
    return trace.bind1(e.mul_p, x, y)


def _column(x: Value) -> Value:
    return view.expand_dims(x, (1,))


def _of_tokens(rows: Value, back: Value, num_chosen: int) -> Value:
    """Rows of choices (m, d) as those of tokens (t, k, d)."""
    return view.reshape(_rows(rows, back), (back.shape[0] // num_chosen, num_chosen, rows.shape[1]))


def _layer(
    x: Value,
    chosen: Value,
    amounts: Value,
    gate: Value,
    up: Value,
    down: Value,
    *,
    is_part: bool = False,
) -> tuple[Value]:
    order = _sorted(chosen, amounts, gate.shape[0], is_part)
    rows = _rows(x, order.tokens)
    through = _product("md,efd,e->mf", rows, gate, order)
    hidden = _times(_times(through, e.logistic(through)), _product("md,efd,e->mf", rows, up, order))
    found = _of_tokens(_product("mf,edf,e->md", hidden, down, order), order.back, chosen.shape[1])
    return (reduction.reduce_sum(_times(found, view.expand_dims(amounts, (2,))), (1,)),)


def _gradient(
    x: Value,
    chosen: Value,
    amounts: Value,
    gate: Value,
    up: Value,
    down: Value,
    ct: Value,
    *,
    is_part: bool = False,
) -> tuple[Value, ...]:
    """What is between the products is computed again."""
    order, num_chosen = _sorted(chosen, amounts, gate.shape[0], is_part), chosen.shape[1]
    rows, cts = _rows(x, order.tokens), _rows(ct, order.tokens)
    through, beside = (_product("md,efd,e->mf", rows, w, order) for w in (gate, up))
    share = e.logistic(through)
    active = _times(through, share)
    hidden = _times(active, beside)
    to_hidden = _product("md,edf,e->mf", cts, down, order)  # but for the amounts
    to_amounts = reduction.reduce_sum(_times(hidden, to_hidden), (1,))
    to_hidden = _times(to_hidden, _column(order.amounts))
    # The derivative of z s, s the logistic function of z, is s + z s (1 - s).
    slope = trace.bind1(e.add_p, share, _times(active, bind_scalars(e.sub_p, 1.0, share)))
    to_through = _times(_times(to_hidden, beside), slope)
    to_beside = _times(to_hidden, active)
    to_rows = trace.bind1(
        e.add_p,
        _product("mf,efd,e->md", to_through, gate, order),
        _product("mf,efd,e->md", to_beside, up, order),
    )
    return (
        reduction.reduce_sum(_of_tokens(to_rows, order.back, num_chosen), (1,)),
        view.reshape(_rows(to_amounts, order.back), chosen.shape),
        _product("mf,md,e->efd", to_through, rows, order),
        _product("mf,md,e->efd", to_beside, rows, order),
        _product("md,mf,e->edf", _times(cts, _column(order.amounts)), hidden, order),
    )


# --- rules -----------------------------------------------------------------------------------------------


def _check(name: str, signature: Signature, types: Sequence[ArrayType]) -> dict[str, int]:
    floats = [t for i, t in enumerate(types) if i != 1]
    if floats[0].dtype not in dtypes.FLOATS or len({t.dtype for t in floats}) != 1:
        raise errors.TypeMismatchError(
            f"{name}: tokens, amounts and weights are floats of one dtype",
            got=", ".join(map(str, floats)),
            fix="convert with .astype(x.dtype)",
        )
    families.accept(name, dtypes.INTEGERS, [types[1]])
    sizes = families.core_sizes(name, signature, types)
    if any(t.ndim != len(letters) for t, letters in zip(types, signature.inputs, strict=True)):
        raise errors.TypeMismatchError(
            f"{name}: an operand has too many dimensions",
            got=", ".join(map(str, types)),
            expected=str(signature),
        )
    return sizes


def _type(*types: ArrayType, is_part: bool = False) -> tuple[ArrayType]:
    _check("expert_layer", _FORWARD, types)
    return (types[0],)


def _gradient_type(*types: ArrayType, is_part: bool = False) -> tuple[ArrayType, ...]:
    _check("expert_layer_gradient", _GRADIENT, types)
    x, _, amounts, gate, up, down, _ = types
    return x, amounts, gate, up, down


def _forward(*operands: Value, **attrs: Any) -> tuple[Sequence[Value], Sequence[Value]]:
    return trace.bind(expert_layer_p, *operands, **attrs), operands


def _backward(residuals: Sequence[Value], cotangents: Sequence[Value], **attrs: Any) -> list[Value | None]:
    dx, da, dgate, dup, ddown = trace.bind(expert_layer_gradient_p, *residuals, *cotangents, **attrs)
    return [dx, None, da, dgate, dup, ddown]


def _batch_by(definition: Any) -> Any:  # Any: a BATCH rule
    """BATCH: of tokens more of them; of weights the definition, batched."""

    def rule(ctx: Any, args: Any, batched: Any, attrs: ir.Attrs) -> Any:  # Any: see transforms.batching
        if definition is _layer and not any(batched[3:]):
            moved = families.whole_batches(ctx.size, args[:3], batched[:3])
            flat = [view.reshape(x, (ctx.size * x.shape[1], x.shape[2])) for x in moved]
            found = trace.bind1(expert_layer_p, *flat, *args[3:], **attrs)
            return [view.reshape(found, moved[0].shape)], (True,)
        types = [
            x.type.update(shape=x.shape[1:]) if flag else x.type
            for x, flag in zip(args, batched, strict=True)
        ]
        program = trace.stage(functools.partial(definition, **attrs), types).program
        body, _ = ctx.batch_program(program, batched, force=True)
        return trace.evaluate(body, args), (True,) * len(body.results)

    return rule


def _place(op: Primitive, in_types: Types, out_types: Types, attrs: ir.Attrs) -> Factors:
    """Tokens, experts and the width of experts are split; what a result lacks of these is summed."""
    signature = op.signature_for(attrs) or (_FORWARD if len(out_types) == 1 else _GRADIENT)
    free = frozenset("tef")
    found = places.by_signature(signature, in_types, out_types, free, "sum")
    lacking = sorted({letter for group in signature.outputs for letter in free.difference(group)})
    return dataclasses.replace(found, reduced=dict.fromkeys(lacking, "sum"))


def _partition(part: Part, x: Value, chosen: Value, *rest: Value) -> tuple[Value, ...]:
    """PARTITION: experts by their numbers on this device; others are none of its own."""
    start = part.start("e", chosen.dtype)
    if start is None:
        return tuple(trace.bind(part.op, x, chosen, *rest, **part.attrs))
    chosen = trace.bind1(e.sub_p, chosen, start)
    return tuple(trace.bind(part.op, x, chosen, *rest, is_part=True))


def _cost(num_products: int) -> Any:  # Any: a COST rule
    def rule(types: Sequence[ArrayType], attrs: ir.Attrs) -> float:
        (tokens, num_chosen), (_, width, depth) = types[1].shape, types[3].shape
        return 2.0 * num_products * tokens * num_chosen * width * depth

    return rule


def _case(dtype: np.dtype, *rest: Sample) -> list[Case]:
    unit = Span(-1.0, 1.0)
    weights = (Sample((3, 5, 4), span=unit), Sample((3, 5, 4), span=unit), Sample((3, 4, 5), span=unit))
    chosen = Sample((6, 2), dtypes.int32, Span(0, 2))
    return [
        Case((Sample((6, 4), span=unit), chosen, Sample((6, 2), span=unit), *weights, *rest), {}, "program")
    ]


_WIDE: Final = frozenset({dtypes.float32, dtypes.float64})

expert_layer_p: Primitive = primitive.register(
    Primitive(
        "expert_layer",
        None,
        {
            primitive.TYPE: _type,
            primitive.DECOMPOSE: _layer,
            primitive.VJP: (_forward, _backward),
            primitive.BATCH: _batch_by(_layer),
            primitive.LINEAR: places.alone(2, 5),
            primitive.PLACE: _place,
            primitive.PARTITION: _partition,
            primitive.COST: _cost(3),
            primitive.CASES: cases.Cases(_WIDE, _case),
        },
    )
)

# Cotangents of tokens, amounts and weights, from the operands of `expert_layer` and the cotangent of its
# result.
expert_layer_gradient_p: Primitive = primitive.register(
    Primitive(
        "expert_layer_gradient",
        None,
        {
            primitive.TYPE: _gradient_type,
            primitive.DECOMPOSE: _gradient,
            primitive.BATCH: _batch_by(_gradient),
            primitive.PLACE: _place,
            primitive.PARTITION: _partition,
            primitive.COST: _cost(8),
            primitive.CASES: cases.Cases(_WIDE, lambda dtype: _case(dtype, Sample((6, 4)))),
        },
    )
)


def expert_layer(
    x: ArrayLike, chosen: ArrayLike, amounts: ArrayLike, gate: ArrayLike, up: ArrayLike, down: ArrayLike
) -> Value:
    """For each token the sum of what its experts make of it, each times its amount; an expert makes
    `down @ (silu(gate @ x) * (up @ x))`. No token is dropped.

    Args:
        x: tokens (t, d), floats.
        chosen: numbers of the experts of each token, integers (t, k); one below 0 or beyond the last adds
            nothing.
        amounts: what each counts (t, k).
        gate: weights (e, f, d).
        up: weights (e, f, d).
        down: weights (e, d, f).

    Returns:
        Array (t, d) of the dtype of `x`.

    Raises:
        TypeMismatchError: shapes do not go together, or dtypes differ.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> ones = inp.ones((2, 3, 4))
        >>> lax.expert_layer(inp.ones((5, 4)), inp.zeros((5, 1), int), inp.ones((5, 1)), ones, ones,
        ...                  inp.ones((2, 4, 3))).shape
        (5, 4)
    """
    return trace.bind1(expert_layer_p, *map(trace.as_value, (x, chosen, amounts, gate, up, down)))
