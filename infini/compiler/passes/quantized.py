"""Products with matrices in few bits, where a backend reads their bytes: rounding the activations becomes an
operation of its own, which products of equal activations share, and the product one of bytes.

Both operations live between passes only: they are not registered, and no file has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np

from infini.compiler.passes import rewrite
from infini.core import dtypes, ir, primitive, trace
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import view
from infini.lax.quantized import operation, reference, scheme as scheme_

# Which form of a product a backend has, from its type: for few rows of activations, for many, or none.
Form: TypeAlias = Literal["few", "many"]
Takes: TypeAlias = Callable[[Equation], Form | None]

CHUNK: Final = 256  # rows of bytes are filled up to a multiple
BLOCK: Final = 32  # activations with one scale


def types_of(x: ArrayType) -> tuple[ArrayType, ArrayType, ArrayType]:
    """Types of bytes, scales and sums for activations (M, K)."""
    rows, k = x.shape
    chunks = -(-k // CHUNK)
    few = ArrayType((rows, chunks * CHUNK // BLOCK), dtypes.float32)
    return ArrayType((rows, chunks * CHUNK), dtypes.int8), few, few


def _type_bytes(x: ArrayType, *, form: Form) -> tuple[ArrayType, ...]:
    return types_of(x)


def _reference_bytes(x: np.ndarray, *, form: Form) -> tuple[np.ndarray, ...]:
    wide = np.zeros(types_of(ArrayType(x.shape, dtypes.float32))[0].shape, np.float32)
    wide[:, : x.shape[1]] = x
    groups = wide.reshape(len(wide), -1, BLOCK)
    scales = np.abs(groups).max(-1) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(groups * np.where(np.isfinite(inverse), inverse, 0)[..., None])
    sums = codes.sum(-1) * scales
    turned = codes.astype(np.int32) + (128 if form == "many" else 0)
    return turned.astype(np.uint8).view(np.int8).reshape(wide.shape), scales, sums.astype(np.float32)


activation_bytes_p: Final = Primitive(
    "activation_bytes", None, {primitive.TYPE: _type_bytes, primitive.REFERENCE: _reference_bytes}
)


def _type_dot(
    codes: ArrayType,
    scales: ArrayType,
    sums: ArrayType,
    *planes: ArrayType,
    scheme: str,
    dtype: np.dtype,
    form: Form,
) -> tuple[ArrayType]:
    return (ArrayType((codes.shape[0], planes[0].shape[0]), dtype),)


def _reference_dot(
    codes: np.ndarray,
    scales: np.ndarray,
    sums: np.ndarray,
    *planes: np.ndarray,
    scheme: str,
    dtype: np.dtype,
    form: Form,
) -> np.ndarray:
    numbers = reference.dequantize(planes, scheme_.parse(scheme))
    whole = codes.view(np.uint8).astype(np.float32) - 128 if form == "many" else codes.astype(np.float32)
    x = (whole.reshape(*scales.shape, BLOCK) * scales[..., None]).reshape(codes.shape)
    found: np.ndarray = (x[:, : numbers.shape[1]] @ numbers.T).astype(dtype)
    return found


def _cost_dot(types: tuple[ArrayType, ...], attrs: Attrs) -> float:
    return 2.0 * math.prod(types[0].shape) * types[3].shape[0]


bytes_dot_p: Final = Primitive(
    "bytes_dot",
    None,
    {primitive.TYPE: _type_dot, primitive.REFERENCE: _reference_dot, primitive.COST: _cost_dot},
)


def read_bytes(program: Program, takes: Takes) -> Program:
    """The program, and those inside it, with every product that `takes` accepts as one of bytes."""
    builder = ir.Builder()
    env: dict[Var, Var] = {param: param for param in program.params}
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        inputs = tuple(env[v] for v in equation.inputs)
        attrs = rewrite.map_programs(equation.attrs, lambda inner: read_bytes(inner, takes))
        moved = dataclasses.replace(equation, inputs=inputs, attrs=attrs)
        form = takes(moved) if is_candidate(moved) else None
        if form is None:
            builder.append(moved)
            env.update((v, v) for v in equation.outputs)
            continue
        start = len(builder.equations)
        env[equation.output] = ir.inline(builder, _body(moved, form), inputs)[0]
        for i in range(start, len(builder.equations)):
            builder.equations[i] = dataclasses.replace(
                builder.equations[i], where=equation.where, via="quantized/bytes_dot"
            )
    return builder.build(program.params, [env[v] for v in program.results], name=program.name)


def is_candidate(equation: Equation) -> bool:
    """Whether an equation is a product of rounded activations with one matrix that has numbers."""
    if equation.op is not operation.quantized_matmul_p:
        return False
    x, blocks, *_ = (v.type for v in equation.inputs)
    a = equation.attrs
    return (
        a["activations"] == "int8"
        and bool(a["transpose"])
        and blocks.ndim == 3
        and x.dtype != dtypes.float64
        and a["dtype"] != dtypes.float64
        and x.size > 0
        and blocks.size > 0
    )


def logical_rows(x: ArrayType) -> ArrayType:
    """Activations (..., M, K) as one matrix."""
    return x.update(shape=(math.prod(x.shape[:-1]), x.shape[-1]))


def _body(equation: Equation, form: Form) -> Program:
    """The program that stands for a product."""
    (out,) = equation.outputs
    a = equation.attrs

    def staged(x: Value, *planes: Value) -> tuple[Value]:
        rows = view.reshape(x, logical_rows(x.type).shape)
        given = trace.bind(activation_bytes_p, rows, form=form)
        found = trace.bind1(
            bytes_dot_p, *given, *planes, scheme=a["scheme"], dtype=a["dtype"], form=form
        )
        return (view.reshape(found, out.type.shape),)

    return trace.stage(staged, [v.type for v in equation.inputs], name="bytes_dot").program
