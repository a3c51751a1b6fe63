"""Softmax attention as one primitive, and its gradient as another, neither of which needs the matrix of
weights (M. Milakov and N. Gimelshein, https://arxiv.org/abs/1805.02867; T. Dao et al.,
https://arxiv.org/abs/2205.14135).

The layout of every operand is told by letters, as in `dot`: `spec="btkgd,bskd,bskv,ts->btkgv,bkgt"` names
queries, keys, values, a bias and a mask where there are any, the result, and what there is one of per row of
weights. `t` counts queries, `s` keys, `d` is contracted, `v` is the width of the values; all other letters
are batch, those that the keys lack are groups of queries that share keys. A backend with kernels lowers the
primitives; the others take the definition, which makes the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, contraction, elementwise as e, families, reduction, view
from infini.lax.cases import Case, Sample
from infini.lax.composites import attention_letters as letters_, attention_places as places
from infini.lax.composites.attention_letters import (
    Band as Band,
    Letters as Letters,
    parse_spec as parse_spec,
)
from infini.lax.families import bind_scalars


def _compute(dtype: np.dtype) -> np.dtype:
    return dtypes.float32 if dtype.itemsize <= 2 else dtype


def _check_operands(name: str, types: Sequence[ArrayType], has_bias: bool, has_mask: bool) -> None:
    floats = [t.dtype for t in types]
    if has_mask and floats.pop() != dtypes.bool_:
        raise errors.TypeMismatchError(f"{name}: the mask has to be boolean", got=str(types[-1]))
    if has_bias and floats.pop() != _compute(floats[0]):
        raise errors.TypeMismatchError(
            f"{name}: the bias has the dtype of the scores", expected=dtypes.short(_compute(floats[0]))
        )
    if floats[0] not in dtypes.FLOATS or len(set(floats)) != 1:
        raise errors.TypeMismatchError(
            f"{name}: queries, keys and values are floats of one dtype", got=", ".join(map(str, types))
        )


# --- what both compute -----------------------------------------------------------------------------


def _wide(x: Value) -> Value:
    return e.convert_element_type(x, _compute(x.dtype))


def _contract(spec: str, x: Value, y: Value, dtype: np.dtype) -> Value:
    """A product of two operands in the dtype of the second, summed in float32 or wider."""
    return trace.bind1(contraction.dot_p, e.convert_element_type(x, y.dtype), y, spec=spec, dtype=dtype)


def _scores(
    operands: Sequence[Value],
    letters: Letters,
    allowed: Value | None,
    *,
    scale: float,
    fill: float,
    has_bias: bool,
) -> Value:
    """The logarithms of the weights before normalisation."""
    query, key = operands[:2]
    spec = f"{letters.query},{letters.key}->{letters.scores}"
    scores = _contract(spec, query, key, _compute(query.dtype))
    scores = bind_scalars(e.mul_p, scores, scale)
    if has_bias:
        scores = trace.bind1(e.add_p, scores, letters_.spread(operands[3], letters.extras[0], letters.scores))
    return scores if allowed is None else _where(allowed, scores, fill)


def _where(allowed: Value, x: Value, fill: float) -> Value:
    return trace.bind1(e.select_n_p, allowed, families.like(float(fill), x), x)


def _column(x: Value, letters: Letters) -> Value:
    """What there is one of per row, with a last dimension of size 1."""
    return letters_.spread(x, letters.rows, letters.scores)


# --- attention -----------------------------------------------------------------------------------


def _sums(*operands: Value, **attrs: Any) -> tuple[Value, Value, Value]:  # Any: as `attention_p`
    return _softmax(operands, is_constant=False, **attrs)


def _attend(*operands: Value, **attrs: Any) -> tuple[Value]:  # Any: as `attention_p`
    # The result alone does not depend on what the scores are compared with, so that needs no derivative.
    return _softmax(operands, is_constant=True, **attrs)[:1]


def _softmax(
    operands: Sequence[Value], *, is_constant: bool, spec: str, scale: float, band: Band, fill: float,
    has_bias: bool, has_mask: bool,
) -> tuple[Value, Value, Value]:  # fmt: skip
    letters = parse_spec(spec)
    allowed = letters_.allowed(letters, operands, band, has_mask)
    scores = _scores(operands, letters, allowed, scale=scale, fill=fill, has_bias=has_bias)
    largest = trace.bind1(reduction.reduce_max_p, scores, axes=(-1,))
    base = e.stop_gradient(largest) if is_constant else largest
    grown = e.exp(trace.bind1(e.sub_p, scores, _column(base, letters)))
    total = trace.bind1(reduction.reduce_sum_p, grown, axes=(-1,))
    weights = trace.bind1(e.div_p, grown, _column(total, letters))
    last = f"{letters.scores},{letters.value}->{letters.out}"
    return _contract(last, weights, operands[2], operands[0].dtype), largest, total


def _signature(*, spec: str, **_: object) -> Signature:
    letters = parse_spec(spec)
    operands = (letters.query, letters.key, letters.value, *letters.extras)
    return Signature(tuple(map(tuple, operands)), (tuple(letters.out),))


def _sums_signature(*, spec: str, **_: object) -> Signature:
    letters = parse_spec(spec)
    rows = tuple(letters.rows)
    return Signature(_signature(spec=spec).inputs, (tuple(letters.out), rows, rows))


def _type(*types: ArrayType, has_bias: bool, has_mask: bool, **attrs: Any) -> tuple[ArrayType, ...]:
    _check_operands("attention", types, has_bias, has_mask)
    return _shaped("attention", _signature(**attrs), types, (types[0].dtype,))


def _sums_type(*types: ArrayType, has_bias: bool, has_mask: bool, **attrs: Any) -> tuple[ArrayType, ...]:
    _check_operands("attention_sums", types, has_bias, has_mask)
    wide = _compute(types[0].dtype)
    return _shaped("attention_sums", _sums_signature(**attrs), types, (types[0].dtype, wide, wide))


def _shaped(
    name: str, signature: Signature, types: Sequence[ArrayType], out_dtypes: Sequence[np.dtype]
) -> tuple[ArrayType, ...]:
    rule = families.type_from_signature(name, signature, dtypes.ALL, lambda *_, **__: out_dtypes[0])
    return tuple(ArrayType(t.shape, d) for t, d in zip(rule(*types), out_dtypes, strict=True))


# --- the gradient ----------------------------------------------------------------------------------


def _gradient(
    *operands: Value, spec: str, scale: float, band: Band, fill: float, has_bias: bool, has_mask: bool
) -> tuple[Value, Value, Value]:
    """With weights p and dp = ct v^T: ds = p (dp - delta), dq = ds k, dk = ds^T q, dv = p^T ct."""
    letters, full = parse_spec(spec), parse_spec(spec).scores
    *given, ct, _, _, _ = operands
    weights, change = _weights_and_change(
        *operands, spec=spec, scale=scale, band=band, fill=fill, has_bias=has_bias, has_mask=has_mask
    )
    query, key = given[:2]
    wide = _compute(query.dtype)
    to_query = _contract(f"{full},{letters.key}->{letters.query}", change, key, wide)
    to_key = _contract(f"{full},{letters.query}->{letters.key}", change, query, wide)
    return (
        e.convert_element_type(bind_scalars(e.mul_p, to_query, scale), query.dtype),
        e.convert_element_type(bind_scalars(e.mul_p, to_key, scale), query.dtype),
        _contract(f"{full},{letters.out}->{letters.value}", weights, ct, query.dtype),
    )


def _weights_and_change(
    *operands: Value, spec: str, scale: float, band: Band, fill: float, has_bias: bool, has_mask: bool
) -> tuple[Value, Value]:
    """The weights, and the cotangents of the scores."""
    letters = parse_spec(spec)
    *given, ct, largest, total, delta = operands
    allowed = letters_.allowed(letters, given, band, has_mask)
    scores = _scores(given, letters, allowed, scale=scale, fill=fill, has_bias=has_bias)
    grown = e.exp(trace.bind1(e.sub_p, scores, _column(largest, letters)))
    weights = trace.bind1(e.div_p, grown, _column(total, letters))
    product = f"{letters.out},{letters.value}->{letters.scores}"
    moved = _contract(product, ct, given[2], _compute(ct.dtype))
    change = trace.bind1(e.mul_p, weights, trace.bind1(e.sub_p, moved, _column(delta, letters)))
    if allowed is not None:
        change = _where(allowed, change, 0.0)
    return weights, change


def _gradient_signature(*, spec: str, **_: object) -> Signature:
    letters = parse_spec(spec)
    rows = tuple(letters.rows)
    return Signature(
        (*_signature(spec=spec).inputs, tuple(letters.out), rows, rows, rows),
        (tuple(letters.query), tuple(letters.key), tuple(letters.value)),
    )


def _gradient_type(*types: ArrayType, has_bias: bool, has_mask: bool, **attrs: Any) -> tuple[ArrayType, ...]:
    _check_operands("attention_gradient", types[:-4], has_bias, has_mask)
    return _shaped("attention_gradient", _gradient_signature(**attrs), types, (types[0].dtype,) * 3)


def _forward(*operands: Value, **attrs: Any) -> tuple[Sequence[Value], Sequence[Value]]:
    out, largest, total = trace.bind(attention_sums_p, *operands, **attrs)
    return [out], [*operands, out, largest, total]


def gradient(saved: Sequence[Value], ct: Value, **attrs: Any) -> tuple[Value, ...]:  # Any: as `attention_p`
    """Cotangents of queries, keys and values.

    Args:
        saved: operands of `attention`, its result, largest scores and sums.
        ct: cotangent of the result.
        **attrs: attributes of `attention`.
    """
    return trace.bind(attention_gradient_p, *_given(saved, ct, attrs["spec"]), **attrs)


def _given(saved: Sequence[Value], ct: Value, spec: str) -> list[Value]:
    """Operands of `attention_gradient`."""
    *operands, out, largest, total = saved
    letters = parse_spec(spec)
    # The mean of dp over a row, by its weights, is the product of the row's result and its cotangent.
    product = trace.bind1(e.mul_p, _wide(out), _wide(ct))
    place = letters.out.index("v") - len(letters.out)
    delta = trace.bind1(reduction.reduce_sum_p, product, axes=(place,))
    kept = letters.out.replace("v", "")
    if kept != letters.rows:
        order = tuple(kept.index(letter) - len(kept) for letter in letters.rows)
        delta = trace.bind1(view.transpose_p, delta, permutation=order)
    return [*operands, ct, largest, total, delta]


def _backward(residuals: Sequence[Value], cotangents: Sequence[Value], **attrs: Any) -> list[Value | None]:
    *operands, _, _, _ = residuals
    letters, (ct,) = parse_spec(attrs["spec"]), cotangents
    given = _given(residuals, ct, attrs["spec"])
    found = trace.bind(attention_gradient_p, *given, **attrs)
    results: list[Value | None] = [
        families.sum_to(g, x.shape) for g, x in zip(found, operands[:3], strict=True)
    ]
    if attrs["has_bias"]:
        _, change = _weights_and_change(*given, **attrs)
        bias, own = operands[3], letters.extras[0]
        axes = tuple(i - len(letters.scores) for i, c in enumerate(letters.scores) if c not in own)
        summed = trace.bind1(reduction.reduce_sum_p, change, axes=axes) if axes else change
        left = "".join(c for c in letters.scores if c in own)
        if left != own:
            order = tuple(left.index(letter) - len(left) for letter in own)
            summed = trace.bind1(view.transpose_p, summed, permutation=order)
        results.append(families.sum_to(summed, bias.shape))
    return [*results, None] if attrs["has_mask"] else results


# --- the primitives ---------------------------------------------------------------------------------


def _example(
    spec: str,
    *shapes: ir.Shape,
    has_bias: bool = False,
    has_mask: bool = False,
    band: Band = (None, None),
    sums: int = 0,
) -> Case:
    samples = [Sample(shape) for shape in shapes]
    if has_mask:
        samples[3 + has_bias] = Sample(shapes[3 + has_bias], dtypes.bool_)
    attrs = {
        "spec": spec, "scale": 0.5, "band": band, "fill": -1e30, "has_bias": has_bias, "has_mask": has_mask
    }  # fmt: skip
    return Case(tuple(samples), attrs, "program")


def _examples(rows: tuple[ir.Shape, ...]) -> list[Case]:
    """Plain, and causal with groups; `rows` are the shapes of further operands of the first."""
    plain = ((3, 2), (5, 2), (5, 4))
    return [
        _example("td,sd,sv->tv,t", *plain, *rows),
        _example("td,sd,sv->tv,t", *plain, *rows, band=(None, 1)),
    ]


_WIDE = frozenset({dtypes.float32, dtypes.float64})

attention_p: Primitive = primitive.register(
    Primitive(
        "attention",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.DECOMPOSE: _attend,
            primitive.VJP: (_forward, _backward),
            primitive.PLACE: places.place,
            primitive.PARTITION: places.partition,
            primitive.TAIL: places.tails,
            primitive.COST: lambda types, attrs: cost(types, attrs["spec"], num_products=2),
            primitive.CASES: cases.Cases(_WIDE, lambda dtype: _examples(())),
        },
    )
)

# As `attention`, and for each row the largest score and the sum of exp(score - largest).
attention_sums_p: Primitive = primitive.register(
    Primitive(
        "attention_sums",
        _sums_signature,
        {
            primitive.TYPE: _sums_type,
            primitive.DECOMPOSE: _sums,
            primitive.PLACE: places.place,
            primitive.PARTITION: places.partition,
            primitive.TAIL: places.tails,
            primitive.COST: lambda types, attrs: cost(types, attrs["spec"], num_products=2),
            primitive.CASES: cases.Cases(_WIDE, lambda dtype: _examples(())),
        },
    )
)

# Cotangents of queries, keys and values, from the operands of `attention`, the cotangent of its result, the
# largest score and the sum of each row, and the mean of the weights' cotangents by the weights.
attention_gradient_p: Primitive = primitive.register(
    Primitive(
        "attention_gradient",
        _gradient_signature,
        {
            primitive.TYPE: _gradient_type,
            primitive.DECOMPOSE: _gradient,
            primitive.PLACE: places.place,
            primitive.PARTITION: places.partition,
            primitive.TAIL: places.tails,
            primitive.COST: lambda types, attrs: cost(types, attrs["spec"], num_products=5),
            primitive.CASES: cases.Cases(_WIDE, lambda dtype: _examples(((3, 4), (3,), (3,), (3,)))),
        },
    )
)


def cost(types: Sequence[ArrayType], spec: str, *, num_products: int) -> float:
    """Floating-point operations: two per element of each product of the size of the scores."""
    letters = parse_spec(spec)
    query, key = types[:2]
    sizes = dict(zip(letters.query, query.shape[query.ndim - len(letters.query) :], strict=True))
    sizes |= dict(zip(letters.key, key.shape[key.ndim - len(letters.key) :], strict=True))
    loops = families.loop_shape("attention", types[:2], [len(letters.query), len(letters.key)])
    return 2.0 * num_products * families.prod(loops) * families.prod(tuple(sizes.values()))
