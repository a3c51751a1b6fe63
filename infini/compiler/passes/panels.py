"""Products of parameters whose memory is in panels, the order in which a blocked product reads them.

A parameter in a tiled layout begins as views: [.., K/a, N/b, a, b] is transposed, reshaped and sliced to
[.., K, N] (`core.physical`). `keep` makes these views one opaque operation before they are simplified;
`into_bodies` takes it into loops and branches;
`products` joins it with each contraction that the backend reads in panels, and gives the views back to all
others. Both operations live between passes only: they are not registered, and no file has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from infini.compiler.passes import rewrite
from infini.core import ir, layout as layout_, physical, primitive
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.core.layout import Layout
from infini.core.primitive import Primitive
from infini.lax import contraction

Reads: TypeAlias = Callable[[Equation], bool]  # whether a backend lowers a `packed_dot`


def _layout(ndim: int, tile: tuple[int, int]) -> Layout:
    return Layout(tuple(range(ndim)), (tile,))


def _type_from_panels(
    memory: ArrayType, *, shape: tuple[int, ...], tile: tuple[int, int]
) -> tuple[ArrayType]:
    logical = memory.update(shape=shape)
    assert layout_.physical_type(_layout(len(shape), tile), logical) == memory, "panels of another array"
    return (logical,)


def _reference_from_panels(
    memory: np.ndarray, *, shape: tuple[int, ...], tile: tuple[int, int]
) -> np.ndarray:
    return np.ascontiguousarray(layout_.logical_host(_layout(len(shape), tile), shape, memory))


from_panels_p: Final = Primitive(
    "from_panels",
    None,
    {primitive.TYPE: _type_from_panels, primitive.REFERENCE: _reference_from_panels},
)


def _operands(x: Any, y: Any, operand: int, change: Callable[[Any], Any]) -> tuple[Any, Any]:
    return (change(x), y) if operand == 0 else (x, change(y))


def _type_packed_dot(
    x: ArrayType,
    y: ArrayType,
    *,
    spec: str,
    dtype: np.dtype,
    operand: int,
    shape: tuple[int, ...],
    tile: tuple[int, int],
) -> tuple[ArrayType, ...]:
    logical = _operands(x, y, operand, lambda t: _type_from_panels(t, shape=shape, tile=tile)[0])
    return ir.infer_types(contraction.dot_p, logical, Attrs({"spec": spec, "dtype": dtype}))


def _reference_packed_dot(
    x: np.ndarray,
    y: np.ndarray,
    *,
    spec: str,
    dtype: np.dtype,
    operand: int,
    shape: tuple[int, ...],
    tile: tuple[int, int],
) -> Any:  # Any: as the reference of dot
    x, y = _operands(x, y, operand, lambda a: _reference_from_panels(a, shape=shape, tile=tile))
    return contraction.dot_p.rule(primitive.REFERENCE)(x, y, spec=spec, dtype=dtype)


packed_dot_p: Final = Primitive(
    "packed_dot",
    None,
    {primitive.TYPE: _type_packed_dot, primitive.REFERENCE: _reference_packed_dot},
)


def logical_types(equation: Equation) -> tuple[ArrayType, ArrayType]:
    """Types of the operands of a `packed_dot` as `dot` would have them."""
    x, y = (v.type for v in equation.inputs)
    a = equation.attrs
    return _operands(x, y, a["operand"], lambda t: t.update(shape=a["shape"]))


# --- the passes ---------------------------------------------------------------------------------------


def keep(program: Program) -> Program:
    """Views of parameters in panels as one operation each."""
    params = set(program.params)
    maker = {v: e for e in program.equations for v in e.outputs}
    equations = [_kept(e, maker, params) for e in program.equations]
    return program.replace(equations=tuple(equations))


def _kept(equation: Equation, maker: dict[Var, Equation], params: set[Var]) -> Equation:
    """The end of the views of a parameter in panels as `from_panels`; any other equation as it is."""
    chain = [equation]
    while chain[-1].op.name in ("slice", "reshape") and len(chain) < 3:
        before = maker.get(chain[-1].inputs[0])
        if before is None:
            return equation
        chain.append(before)
    first = chain[-1]
    if first.op.name != "transpose" or len(chain) < 2 or first.inputs[0] not in params:
        return equation
    memory, shape = first.inputs[0], equation.output.type.shape
    if memory.type.ndim < 4 or len(shape) != memory.type.ndim - 2:
        return equation
    height, width = memory.type.shape[-2:]
    layout = _layout(len(shape), (height, width))
    if layout_.physical_type(layout, equation.output.type) != memory.type:
        return equation
    builder = ir.Builder()
    physical.to_logical(builder, memory, layout, equation.output.type)
    views = [(e.op, e.attrs) for e in builder.equations]
    if views != [(e.op, e.attrs) for e in reversed(chain)]:
        return equation
    attrs = Attrs({"shape": shape, "tile": (height, width)})
    return Equation(from_panels_p, (memory,), attrs, equation.outputs, equation.where, "panels")


def into_bodies(program: Program) -> Program:
    """Panels that a loop or a branch is given go into its body, which makes the logical array of what it
    reads: constants of a scan or while, slices of a scan, operands of a cond.
    """
    maker = {v: e for e in program.equations for v in e.outputs}
    equations = [_with_panels_inside(e, maker) for e in program.equations]
    return program.replace(
        equations=tuple(
            dataclasses.replace(e, attrs=rewrite.map_programs(e.attrs, into_bodies)) for e in equations
        )
    )


@dataclass(frozen=True, slots=True)
class Given:
    """An operand of a loop or branch as its bodies see it: the bodies, the number of the parameter there,
    and whether it is one slice of the operand.
    """

    bodies: tuple[Program, ...]
    parameter: int
    is_slice: bool = False


def given(equation: Equation, number: int) -> Given | None:
    """Where an operand that does not change arrives in the bodies of an equation; None for others."""
    a, name = equation.attrs, equation.op.name
    if name == "cond" and number > 0:
        return Given(tuple(a["branches"]), number - 1)
    if name == "scan" and not a["num_consts"] <= number < a["num_consts"] + a["num_carry"]:
        return Given((a["body"],), number, number >= a["num_consts"])
    if name == "while" and 0 <= number - a["num_cond_consts"] < a["num_body_consts"]:
        return Given((a["body"],), number - a["num_cond_consts"])
    return None


def _with_panels_inside(equation: Equation, maker: dict[Var, Equation]) -> Equation:
    for number, var in enumerate(equation.inputs):
        place = given(equation, number)
        chain = _chain(var, maker) if place is not None else ()
        if place is None or not chain or (place.is_slice and not _keeps_first(chain)):
            continue
        equation = with_chain(equation, number, chain)
    return equation


def with_chain(equation: Equation, number: int, chain: Sequence[Equation]) -> Equation:
    """A loop or branch that is given the memory of panels instead of an operand which `chain`, that is
    `from_panels` and perhaps a transpose, makes of it; its bodies begin with the chain.
    """
    place = given(equation, number)
    assert place is not None, "the operand does not change"
    inputs = list(equation.inputs)
    inputs[number] = chain[0].inputs[0]
    attrs = _with_bodies(equation.attrs, place, [_prefixed(body, place, chain) for body in place.bodies])
    return dataclasses.replace(equation, inputs=tuple(inputs), attrs=attrs)


def _with_bodies(attrs: Attrs, place: Given, bodies: Sequence[Program]) -> Attrs:
    changed = {id(old): body for old, body in zip(place.bodies, bodies, strict=True)}
    return rewrite.map_programs(attrs, lambda body: changed.get(id(body), body))


def _chain(var: Var, maker: dict[Var, Equation]) -> tuple[Equation, ...]:
    """The equations from the memory of panels to a variable: `from_panels`, and perhaps a transpose."""
    last = maker.get(var)
    first = maker.get(last.inputs[0]) if last is not None and last.op.name == "transpose" else last
    if first is None or last is None or first.op is not from_panels_p:
        return ()
    return (first,) if first is last else (first, last)


def _keeps_first(chain: Sequence[Equation]) -> bool:
    """Whether the first dimension of the result is the first of the memory, and no tile cuts it."""
    (panels, *moved) = chain
    rank = panels.output.type.ndim
    return rank > 2 and all(
        len(e.attrs["permutation"]) < rank or e.attrs["permutation"][0] == -rank for e in moved
    )


def _prefixed(body: Program, place: Given, chain: Sequence[Equation]) -> Program:
    """A body whose parameter is the memory of panels, and which begins by making the logical array of it."""
    first, *rest = chain
    old, memory = body.params[place.parameter], first.inputs[0].type
    shape = first.attrs["shape"]
    if place.is_slice:
        memory, shape = memory.update(shape=memory.shape[1:]), shape[1:]
    builder, param = ir.Builder(), Var(memory)
    (logical,) = builder.emit(from_panels_p, [param], first.attrs.replace(shape=shape), via="panels")
    for equation in rest:
        permutation = equation.attrs["permutation"][-len(shape) :]
        logical = builder.emit1(equation.op, [logical], permutation=permutation)
    assert logical.type == old.type
    params = tuple(param if p is old else p for p in body.params)
    equations = [
        dataclasses.replace(e, inputs=tuple(logical if v is old else v for v in e.inputs))
        for e in body.equations
    ]
    results = tuple(logical if v is old else v for v in body.results)
    return body.replace(params=params, equations=(*builder.equations, *equations), results=results)


def products(program: Program, reads: Reads) -> Program:
    """Contractions of panels, where a backend reads them; the views elsewhere."""
    panels = {e.output: e for e in program.equations if e.op is from_panels_p}
    joined = [_joined(e, panels, reads) for e in program.equations]
    joined = [
        dataclasses.replace(e, attrs=rewrite.map_programs(e.attrs, lambda body: products(body, reads)))
        for e in joined
    ]
    used = {v for e in joined for v in e.inputs} | set(program.results)
    equations: list[Equation] = []
    for equation in joined:
        if equation.op is not from_panels_p:
            equations.append(equation)
        elif equation.output in used:
            equations += _views(equation)
    return program.replace(equations=tuple(equations))


def _joined(equation: Equation, panels: dict[Var, Equation], reads: Reads) -> Equation:
    if equation.op is not contraction.dot_p:
        return equation
    for operand, var in enumerate(equation.inputs):
        made = panels.get(var)
        if made is None:
            continue
        (memory,) = made.inputs
        inputs = tuple(memory if i == operand else v for i, v in enumerate(equation.inputs))
        attrs = Attrs({**equation.attrs, **made.attrs, "operand": operand})
        candidate = Equation(
            packed_dot_p, inputs, attrs, equation.outputs, equation.where, f"{equation.via}/panels"
        )  # fmt: skip
        if reads(candidate):
            return candidate
    return equation


def _views(equation: Equation) -> Sequence[Equation]:
    builder = ir.Builder()
    shape, tile = equation.attrs["shape"], equation.attrs["tile"]
    physical.to_logical(builder, equation.inputs[0], _layout(len(shape), tile), equation.output.type)
    *first, last = builder.equations
    end = Equation(last.op, last.inputs, last.attrs, equation.outputs, equation.where, "panels")
    return (*first, end)
