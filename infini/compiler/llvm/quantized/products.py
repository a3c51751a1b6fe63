"""Which kernel computes a product with a matrix in few bits, and its phases."""

from __future__ import annotations

from typing import Final

from infini.compiler.llvm.quantized import activations, exact, forms, matrix, panel_forms, panels, rows
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.passes import quantized
from infini.compiler.passes.quantized import Form
from infini.core.ir import ArrayType, Attrs, Equation
from infini.lax.quantized import scheme as scheme_
from infini.lax.quantized.scheme import Scheme

MAX_FEW: Final = 4  # rows of activations up to which codes are not rearranged
MAX_EXACT: Final = 8  # the same where activations are not rounded
MAX_FEW_OF_PANELS: Final = 16  # the same where they lie as they are multiplied


def form_of(equation: Equation, target: Target) -> Form | None:
    """How a product wants its rounded activations; None where no kernel reads the matrix."""
    x, *planes = (v.type for v in equation.inputs)
    scheme = _known(scheme_.parse(equation.attrs["scheme"]), planes[0])
    num_rows = quantized.logical_rows(x).shape[0]
    is_known = forms.has_code if scheme.rows == 1 else panel_forms.has_code
    if not is_known(scheme, x.shape[-1], target):
        return None
    if equation.attrs["activations"] == "exact":
        return Form(is_rounded=False) if num_rows <= MAX_EXACT else None
    if scheme.rows == 1:
        if num_rows <= MAX_FEW:
            return Form()
    elif num_rows <= MAX_FEW_OF_PANELS:
        reader = panels.reader_of(planes, scheme, target)
        return Form(part=reader.part, center=reader.center)
    if not matrix.is_possible(target):
        return None
    # Sums are wanted where numbers have minima, per part.
    return Form(is_biased=True, part=scheme.part if scheme.beside and scheme.part else quantized.BLOCK)


def emit_bytes(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `activation_bytes`."""
    (x,) = types
    form = Form(is_biased=attrs["is_biased"], part=attrs["part"], center=attrs["center"])
    return activations.emit(x, form, target)


def emit_dot(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `bytes_dot`."""
    codes, _, _, *planes = types
    scheme = _known(scheme_.parse(attrs["scheme"]), planes[0])
    few = rows.emit if scheme.rows == 1 else panels.emit
    emit = matrix.emit if attrs["is_biased"] else few
    return emit(codes.shape[0], planes, scheme=scheme, dtype=attrs["dtype"], target=target)


def emit_exact(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `codes_dot`."""
    x, *planes = types
    scheme = _known(scheme_.parse(attrs["scheme"]), planes[0])
    return exact.emit(x.shape[0], planes, scheme=scheme, dtype=attrs["dtype"], target=target)


def _known(scheme: Scheme, blocks: ArrayType) -> Scheme:
    """The scheme with its group."""
    return scheme.for_row(blocks.shape[-2] * blocks.shape[-1] // scheme.rows * 8 // scheme.bits)
