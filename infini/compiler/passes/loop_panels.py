"""Constants of a loop that its products read in panels are packed once, before the loop.

A product packs the operand that it reads again and again. Inside a loop it would pack the same weights in
every step; `pack_before` packs them outside, and the body begins with `from_panels`, as it does for a
parameter whose memory is in panels (`panels.into_bodies`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, TypeAlias

from infini.compiler.passes import contractions, loops, panels, rewrite
from infini.core import ir, layout as layout_, physical, primitive
from infini.core.ir import Attrs, Equation, Program, Var
from infini.core.layout import Layout

# The layout in which all readers of a parameter of a body would like it, when that has tiles.
Wants: TypeAlias = Callable[[Program, int], Layout | None]

VIA: Final = "loop_panels"
MIN_STEPS: Final = 3  # packing in another phase pays from there on
MAX_BYTES: Final = 1 << 27  # packed for one loop: it is memory beside the array itself


def pack_before(program: Program, wants: Wants) -> Program:
    """The program, and those inside it, with weights packed before the loops that multiply by them."""
    if not any(equation.programs for equation in program.equations):
        return program
    packed = _packed(program, wants)
    if packed is program:
        return program
    # What an inner loop wants packed may leave the outer one, too.
    return loops.move_invariants(contractions.canonical_contractions(packed))


def _packed(program: Program, wants: Wants) -> Program:
    builder = ir.Builder()
    env = {var: builder.constant(constant.array) for var, constant in program.consts}
    has_changed = False
    for before in program.equations:
        inputs = tuple(env.get(v, v) for v in before.inputs)
        attrs = rewrite.map_programs(before.attrs, lambda body: pack_before(body, wants))
        equation = loop = dataclasses.replace(before, inputs=inputs, attrs=attrs)
        a = equation.attrs
        if equation.op.name == "while" or (equation.op.name == "scan" and a["length"] >= MIN_STEPS):
            loop = _loop(builder, equation, wants)
        builder.append(loop)
        has_changed |= loop is not equation or any(
            new is not old for new, old in zip(attrs.values(), before.attrs.values(), strict=True)
        )
    if not has_changed:
        return program
    results = [env.get(v, v) for v in program.results]
    return builder.build(program.params, results, name=program.name)


def _loop(builder: ir.Builder, equation: Equation, wants: Wants) -> Equation:
    left = MAX_BYTES
    for number, var in enumerate(equation.inputs):
        if var.type.nbytes <= left:
            loop = _with_panels(builder, equation, number, wants)
            left -= 0 if loop is equation else var.type.nbytes
            equation = loop
    return equation


def _with_panels(builder: ir.Builder, equation: Equation, number: int, wants: Wants) -> Equation:
    """A loop whose body is given one constant in panels, when it wants that; the packing goes before it."""
    place = panels.given(equation, number)
    if place is None or place.is_slice:
        return equation
    (body,) = place.bodies
    layout = wants(body, place.parameter)
    if layout is None or not layout.tile:
        return equation
    var = equation.inputs[number]
    (memory,) = ir.inline(builder, physical.packing(var.type, layout), [var])
    ordered = var.type.update(shape=layout_.ordered_shape(layout, var.type.shape))
    attrs = Attrs({"shape": ordered.shape, "tile": layout.tile})
    first = Equation(panels.from_panels_p, (memory,), attrs, (Var(ordered),), equation.where, VIA)
    back = tuple(d - var.type.ndim for d in layout_.inverse(layout.major_to_minor))
    if back == tuple(range(-var.type.ndim, 0)):
        return panels.with_chain(equation, number, [first])
    turned = Equation(
        primitive.by_name("transpose"), first.outputs, Attrs({"permutation": back}), (Var(var.type),),
        equation.where, VIA,
    )  # fmt: skip
    return panels.with_chain(equation, number, [first, turned])
