"""Which kernel computes a product with a matrix in few bits, and its phases."""

from __future__ import annotations

from infini.compiler.llvm.quantized import activations, forms, matrix, rows
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.passes import quantized
from infini.core.ir import ArrayType, Attrs, Equation
from infini.lax.quantized import scheme as scheme_
from infini.lax.quantized.scheme import Scheme

MAX_FEW = 4  # rows of activations up to which the matrix is not packed


def form_of(equation: Equation, target: Target) -> quantized.Form | None:
    """How a product of rounded activations is computed; None where no kernel reads the matrix."""
    x, blocks, *_ = (v.type for v in equation.inputs)
    scheme = scheme_.parse(equation.attrs["scheme"])
    k = x.shape[-1]
    if not forms.has_code(scheme, k, target):
        return None
    num_rows = quantized.logical_rows(x).shape[0]
    if num_rows <= MAX_FEW:
        return "few"
    return "many" if matrix.is_possible(target) else None


def emit_bytes(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `activation_bytes`."""
    (x,) = types
    return activations.emit(x, biased=attrs["form"] == "many", target=target)


def emit_dot(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `bytes_dot`."""
    codes, _, _, *planes = types
    scheme = _known(scheme_.parse(attrs["scheme"]), planes[0])
    emit = matrix.emit if attrs["form"] == "many" else rows.emit
    return emit(codes.shape[0], planes, scheme=scheme, dtype=attrs["dtype"], target=target)


def _known(scheme: Scheme, blocks: ArrayType) -> Scheme:
    """The scheme with its group."""
    return scheme.for_row(blocks.shape[-2] * blocks.shape[-1] * 8 // scheme.bits)
