"""Products with matrices in few bits, where a backend reads their bytes. Rounding the activations becomes an
operation of its own, which products of equal activations share, and the product one of bytes; or activations
stay as they are, in float32.

These operations live between passes only: they are not registered, and no file has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from infini.compiler.passes import rewrite
from infini.core import dtypes, ir, primitive, trace
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise, view
from infini.lax.quantized import operation, reference, scheme as scheme_


@dataclass(frozen=True, slots=True)
class Form:
    """How a product wants its activations.

    Args:
        is_rounded: whether they are bytes, with scales and sums; otherwise they are float32.
        is_biased: whether 128 is added to them, so that they have no sign.
        part: activations whose sum is wanted.
        center: sums are wanted as integers times minus this; 0 for sums of the rounded activations.
    """

    is_rounded: bool = True
    is_biased: bool = False
    part: int = 32
    center: int = 0


# Which form of a product a backend has, if it has one.
Takes: TypeAlias = Callable[[Equation], Form | None]

CHUNK: Final = 256  # rows of bytes are filled up to a multiple
BLOCK: Final = 32  # activations with one scale


def types_of(x: ArrayType, part: int = BLOCK, center: int = 0) -> tuple[ArrayType, ArrayType, ArrayType]:
    """Types of bytes, scales and sums for activations (M, K)."""
    rows, k = x.shape
    padded = -(-k // CHUNK) * CHUNK
    sums = ArrayType((rows, padded // part), dtypes.int32 if center else dtypes.float32)
    return (
        ArrayType((rows, padded), dtypes.int8), ArrayType((rows, padded // BLOCK), dtypes.float32), sums
    )  # fmt: skip


def _type_bytes(x: ArrayType, *, is_biased: bool, part: int, center: int) -> tuple[ArrayType, ...]:
    return types_of(x, part, center)


def _reference_bytes(x: np.ndarray, *, is_biased: bool, part: int, center: int) -> tuple[np.ndarray, ...]:
    wide = np.zeros(types_of(ArrayType(x.shape, dtypes.float32))[0].shape, np.float32)
    wide[:, : x.shape[1]] = x
    groups = wide.reshape(len(wide), -1, BLOCK)
    scales = np.abs(groups).max(-1) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(groups * np.where(np.isfinite(inverse), inverse, 0)[..., None]).astype(np.int32)
    sums = codes.reshape(len(wide), -1, part).sum(-1)
    turned = codes + (128 if is_biased else 0)
    found = turned.astype(np.uint8).view(np.int8).reshape(wide.shape)
    if center:
        return found, scales, (-center * sums).astype(np.int32)
    return found, scales, (sums * scales.repeat(BLOCK // part, -1)).astype(np.float32)


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
    is_biased: bool,
) -> tuple[ArrayType]:
    rows = scheme_.parse(scheme).rows
    return (ArrayType((codes.shape[0], planes[0].shape[0] * rows), dtype),)


def _reference_dot(
    codes: np.ndarray,
    scales: np.ndarray,
    sums: np.ndarray,
    *planes: np.ndarray,
    scheme: str,
    dtype: np.dtype,
    is_biased: bool,
) -> np.ndarray:
    numbers = reference.dequantize(planes, scheme_.parse(scheme))
    whole = codes.view(np.uint8).astype(np.float32) - 128 if is_biased else codes.astype(np.float32)
    x = (whole.reshape(*scales.shape, BLOCK) * scales[..., None]).reshape(codes.shape)
    found: np.ndarray = (x[:, : numbers.shape[1]] @ numbers.T).astype(dtype)
    return found


def _cost_dot(types: tuple[ArrayType, ...], attrs: Attrs) -> float:
    rows = scheme_.parse(attrs["scheme"]).rows
    return 2.0 * math.prod(types[0].shape) * types[3].shape[0] * rows


bytes_dot_p: Final = Primitive(
    "bytes_dot",
    None,
    {primitive.TYPE: _type_dot, primitive.REFERENCE: _reference_dot, primitive.COST: _cost_dot},
)


def _type_codes(x: ArrayType, *planes: ArrayType, scheme: str, dtype: np.dtype) -> tuple[ArrayType]:
    return (ArrayType((x.shape[0], planes[0].shape[0] * scheme_.parse(scheme).rows), dtype),)


def _reference_codes(x: np.ndarray, *planes: np.ndarray, scheme: str, dtype: np.dtype) -> np.ndarray:
    found: np.ndarray = (x @ reference.dequantize(planes, scheme_.parse(scheme)).T).astype(dtype)
    return found


def _cost_codes(types: tuple[ArrayType, ...], attrs: Attrs) -> float:
    return 2.0 * types[0].size * types[1].shape[0] * scheme_.parse(attrs["scheme"]).rows


codes_dot_p: Final = Primitive(
    "codes_dot",
    None,
    {primitive.TYPE: _type_codes, primitive.REFERENCE: _reference_codes, primitive.COST: _cost_codes},
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
    """Whether an equation is a product with one matrix that has numbers. A result that is finer than exact
    activations shows that the matrix has been rounded to their dtype, which only happens where it is made.
    """
    if equation.op is not operation.quantized_matmul_p:
        return False
    x, blocks, *_ = (v.type for v in equation.inputs)
    a = equation.attrs
    if a["activations"] == "exact" and a["dtype"].itemsize > x.dtype.itemsize:
        return False
    return (
        bool(a["transpose"])
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
        if not form.is_rounded:
            wide = elementwise.convert_element_type(rows, dtypes.float32)
            found = trace.bind1(codes_dot_p, wide, *planes, scheme=a["scheme"], dtype=a["dtype"])
            return (view.reshape(found, out.type.shape),)
        given = trace.bind(
            activation_bytes_p, rows, is_biased=form.is_biased, part=form.part, center=form.center
        )
        found = trace.bind1(
            bytes_dot_p, *given, *planes, scheme=a["scheme"], dtype=a["dtype"], is_biased=form.is_biased
        )
        return (view.reshape(found, out.type.shape),)

    return trace.stage(staged, [v.type for v in equation.inputs], name="bytes_dot").program
