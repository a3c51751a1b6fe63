"""Programs over memory that is not row-major.

A program is traced for logical arrays. Where a parameter has a layout, `with_layouts` gives it the type of
its memory and starts the program with the views (transpose, reshape, slice) that make the logical array of
it, so a backend sees row-major parameters and nothing new; what it can read in place, its fuser finds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from infini.core import ir, layout as layout_, primitive
from infini.core.ir import ArrayType, Builder, Program, Var
from infini.core.layout import Layout


def with_layouts(program: Program, layouts: Sequence[Layout | None]) -> Program:
    """The program with parameters in these layouts (None: row-major)."""
    if not any(layout is not None for layout in layouts):
        return program
    builder = Builder()
    params, logical = [], []
    for param, layout in zip(program.params, layouts, strict=True):
        if layout is None:
            params.append(param)
            logical.append(param)
        else:
            params.append(Var(layout_.physical_type(layout, param.type)))
            logical.append(to_logical(builder, params[-1], layout, param.type))
    # Results keep their variables: only what stands for a parameter changes.
    renamed = dict(zip(program.params, logical, strict=True))
    equations = [
        dataclasses.replace(e, inputs=tuple(renamed.get(v, v) for v in e.inputs)) for e in program.equations
    ]
    return program.replace(
        params=tuple(params),
        equations=(*builder.equations, *equations),
        results=tuple(renamed.get(v, v) for v in program.results),
    )


def to_logical(builder: Builder, memory: Var, layout: Layout, type_: ArrayType) -> Var:
    """The logical array of memory."""
    if layout.tile:
        memory = _transposed(builder, memory, layout_.interleaved(layout))
        memory = _reshaped(builder, memory, layout_.padded_shape(layout, type_.shape))
        limit = layout_.ordered_shape(layout, type_.shape)
        if memory.type.shape != limit:
            memory = builder.emit1(
                primitive.by_name("slice"), [memory], start=(0,) * len(limit), limit=limit,
                strides=(1,) * len(limit),
            )  # fmt: skip
    return _transposed(builder, memory, layout_.inverse(layout.major_to_minor))


def packing(type_: ArrayType, layout: Layout) -> Program:
    """The program from a logical array to the row-major array that its memory is in a layout."""
    builder = Builder()
    param = Var(type_)
    memory = _transposed(builder, param, layout.major_to_minor)
    padded = layout_.padded_shape(layout, type_.shape)
    if memory.type.shape != padded:
        none = (0,) * len(padded)
        high = tuple(p - n for p, n in zip(padded, memory.type.shape, strict=True))
        zero = builder.constant(np.zeros((), type_.dtype))
        pad = primitive.by_name("pad")
        memory = builder.emit1(pad, [memory, zero], low=none, high=high, interior=none)
    if layout.tile:
        tile, counts = layout.tile, layout_.num_tiles(layout, type_.shape)
        leading = padded[: len(padded) - len(tile)]
        pairs = [n for pair in zip(counts, tile, strict=True) for n in pair]
        memory = _reshaped(builder, memory, (*leading, *pairs))
        memory = _transposed(builder, memory, layout_.inverse(layout_.interleaved(layout)))
    return builder.build([param], [memory], name="pack")


def _transposed(builder: Builder, x: Var, permutation: Sequence[int]) -> Var:
    if tuple(permutation) == tuple(range(len(permutation))):
        return x
    # Dimensions are named from the right in attributes.
    moved = tuple(d - x.type.ndim for d in permutation)
    return builder.emit1(primitive.by_name("transpose"), [x], permutation=moved)


def _reshaped(builder: Builder, x: Var, shape: ir.Shape) -> Var:
    if x.type.shape == shape:
        return x
    return builder.emit1(primitive.by_name("reshape"), [x], shape=shape, ndim=x.type.ndim)
