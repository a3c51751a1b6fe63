"""Attention that reads queries, keys and values where they lie in a larger array, such as the result of the
one product that makes all three, instead of copies of them.

Such an operation becomes `attention_of_views`: its first operands are the larger arrays, each with the
strides of what is read. The operation lives between passes only and is not registered, so the text of a
program with it is for people: it cannot be parsed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from infini.compiler import views as index_maps
from infini.compiler.grouping import is_fusable
from infini.compiler.passes import rewrite
from infini.core import interpret, primitive, trace
from infini.core.ir import ArrayType, Attrs, Equation, Program, Shape, Var
from infini.core.primitive import Primitive
from infini.lax import view
from infini.lax.composites import attention

# Shape, and elements of the larger array: from one index to the next, 0 along dimensions of size 1, and to
# the first.
View: TypeAlias = tuple[Shape, tuple[int, ...], int]

OPERATIONS: Final = {
    op.name: op for op in (attention.attention_p, attention.attention_sums_p, attention.attention_gradient_p)
}
NUM_VIEWED: Final = 3  # queries, keys and values


def logical_types(types: Sequence[ArrayType], views: Sequence[View | None]) -> tuple[ArrayType, ...]:
    """Types of what is read, given those of the operands."""
    viewed = (
        x if view is None else ArrayType(view[0], x.dtype) for x, view in zip(types, views, strict=False)
    )
    return (*viewed, *types[len(views) :])


def own_attrs(attrs: Attrs) -> Attrs:
    """Attributes of the operation on what is read."""
    return Attrs({name: x for name, x in attrs.items() if name not in ("operation", "views")})


def _type(*types: ArrayType, operation: str, views: Sequence[View | None], **attrs: Any) -> Any:
    return OPERATIONS[operation].rule(primitive.TYPE)(*logical_types(types, views), **attrs)


def _reference(
    *arrays: np.ndarray, operation: str, views: Sequence[View | None], **attrs: Any
) -> tuple[np.ndarray, ...]:  # Any: as the operation
    read = [
        x if view is None else _read(np.ascontiguousarray(x), view)
        for x, view in zip(arrays, views, strict=False)
    ]
    operands = [*read, *arrays[len(views) :]]
    types = [ArrayType(x.shape, x.dtype) for x in operands]
    program = trace.stage(lambda *xs: trace.bind(OPERATIONS[operation], *xs, **attrs), types).program
    return tuple(interpret.evaluate(program, operands))


def _read(x: np.ndarray, view: View) -> np.ndarray:
    shape, strides, offset = view
    steps = tuple(x.itemsize * n for n in strides)
    return np.lib.stride_tricks.as_strided(x.reshape(-1)[offset:], shape, steps, writeable=False)


def _cost(types: Any, attrs: Attrs) -> float:  # Any: as the cost of the operation
    rule = OPERATIONS[attrs["operation"]].rule(primitive.COST)
    return float(rule(logical_types(types, attrs["views"]), own_attrs(attrs)))


attention_of_views_p: Final = Primitive(
    "attention_of_views",
    None,
    {primitive.TYPE: _type, primitive.REFERENCE: _reference, primitive.COST: _cost},
)


# --- the pass -------------------------------------------------------------------------------------


def read_in_place(program: Program) -> Program:
    """The program, and those inside it, in which attention reads slices of arrays where they lie.

    An array that is computed element by element would be computed as a whole, so it is taken only when
    attention reads all of it.
    """
    maker = {v: equation for equation in program.equations for v in equation.outputs}
    found: dict[int, list[tuple[Var, View] | None]] = {}
    read: dict[Var, dict[View, int]] = {}  # of each array, what attention reads, and how many elements
    for number, equation in enumerate(program.equations):
        if equation.op.name in OPERATIONS:
            found[number] = [_widest(v, maker) for v in equation.inputs[:NUM_VIEWED]]
            for source, seen in filter(None, found[number]):
                read.setdefault(source, {})[seen] = math.prod(seen[0])

    def is_there(source: Var) -> bool:
        is_array = source not in maker or not is_fusable(maker[source])
        return is_array or sum(read[source].values()) >= source.type.size

    equations = []
    for number, equation in enumerate(program.equations):
        attrs = rewrite.map_programs(equation.attrs, read_in_place)
        chosen = [x if x is not None and is_there(x[0]) else None for x in found.get(number, ())]
        if not any(chosen):
            equations.append(dataclasses.replace(equation, attrs=attrs))
            continue
        sources = [v if x is None else x[0] for v, x in zip(equation.inputs, chosen, strict=False)]
        views = tuple(None if x is None else x[1] for x in chosen)
        equations.append(
            dataclasses.replace(
                equation,
                op=attention_of_views_p,
                inputs=(*sources, *equation.inputs[NUM_VIEWED:]),
                attrs=attrs.replace(operation=equation.op.name, views=views),
                via="attention_views",
            )
        )
    return program.replace(equations=tuple(equations))


def _widest(operand: Var, maker: dict[Var, Equation]) -> tuple[Var, View] | None:
    """The first array of the chain of views that makes an operand of which it is one strided view, when it is
    a part of that.
    """
    chain: list[Equation] = []
    source = operand
    while source in maker and maker[source].op.name in _STEPS:
        chain.insert(0, maker[source])
        (source,) = maker[source].inputs
    for first, equation in enumerate(chain):
        (source,) = equation.inputs
        found = _through(source.type.shape, chain[first:])
        if found is not None and source.type.size > operand.type.size:
            return source, found
    return None


def _through(shape: Shape, chain: Sequence[Equation]) -> View | None:
    """A whole array of a shape as it is seen through a chain of views; None where strides do not describe
    that.
    """
    found: View | None = (shape, _of_order(shape), 0)
    for equation in chain:
        found = None if found is None else _STEPS[equation.op.name](equation, *found)
    return found


def _of_order(shape: Shape) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) if n != 1 else 0 for i, n in enumerate(shape))


def _sliced(equation: Equation, shape: Shape, strides: tuple[int, ...], offset: int) -> View:
    starts, steps = ((0,) * len(shape), (1,) * len(shape))
    core = len(equation.attrs["start"])
    starts = (*starts[: len(shape) - core], *equation.attrs["start"])
    steps = (*steps[: len(shape) - core], *equation.attrs["strides"])
    offset += sum(start * stride for start, stride in zip(starts, strides, strict=True))
    own = equation.output.type.shape
    moved = tuple(stride * step if n != 1 else 0 for stride, step, n in zip(strides, steps, own, strict=True))
    return own, moved, offset


def _transposed(equation: Equation, shape: Shape, strides: tuple[int, ...], offset: int) -> View:
    permutation = equation.attrs["permutation"]
    loops = len(shape) - len(permutation)
    order = (*range(loops), *(p + len(shape) for p in permutation))
    return tuple(shape[i] for i in order), tuple(strides[i] for i in order), offset


def _reshaped(equation: Equation, shape: Shape, strides: tuple[int, ...], offset: int) -> View | None:
    own = equation.output.type.shape
    found = [0] * len(own)
    for sources, targets in index_maps.matching(shape, own):
        if any(strides[a] != strides[b] * shape[b] for a, b in itertools.pairwise(sources)):
            return None
        step = strides[sources[-1]]
        for d in reversed(targets):
            found[d] = step
            step *= own[d]
    return own, tuple(found), offset


_STEPS: Final = {
    view.slice_p.name: _sliced,
    view.transpose_p.name: _transposed,
    view.reshape_p.name: _reshaped,
}
