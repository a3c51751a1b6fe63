"""Which layouts of its parameters a program would like best on the CPU.

A matrix that is only the packed operand of blocked products wants the panels they pack it in; a parameter
that is only read transposed wants that order; everything else is row-major.
"""

from __future__ import annotations

from infini.compiler.llvm import blocking, contraction, gemm, skinny
from infini.compiler.llvm.target import Target
from infini.compiler.passes import panels as panels_pass, simplify
from infini.core.ir import Equation, Program, Var
from infini.core.layout import Layout


def preferred(program: Program, target: Target) -> tuple[Layout | None, ...]:
    """The layout of each parameter of a program in canonical form, None for row-major."""
    return tuple(_preferred_of(param, program, target) for param in program.params)


def wanted(program: Program, number: int, target: Target) -> Layout | None:
    """The layout of one parameter of a program in canonical form, None for row-major."""
    return _preferred_of(program.params[number], program, target)


def _preferred_of(param: Var, program: Program, target: Target) -> Layout | None:
    if param in program.results or param.type.ndim < 2:
        return None
    uses = [(e, number) for e in program.equations for number, var in enumerate(e.inputs) if var is param]
    products = {_of_product(param, equation, number, target) for equation, number in uses}
    if products == {None}:
        products = {_of_transpose(param, equation) for equation, _ in uses}
    return products.pop() if len(products) == 1 else None


def _of_transpose(param: Var, equation: Equation) -> Layout | None:
    if equation.op.name != "transpose":
        return None
    order = simplify.full_permutation(param.type.ndim, equation.attrs["permutation"])
    return Layout(tuple(order), ())


def _of_product(param: Var, equation: Equation, number: int, target: Target) -> Layout | None:
    """The panels in which a product packs an operand; None when it packs nothing, or another one."""
    place = panels_pass.given(equation, number)
    if place is not None:
        return _inside(place, target)
    if equation.op.name != "dot" or equation.inputs.count(param) > 1:
        return None
    x, y = (v.type for v in equation.inputs)
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    order = _order(param, spec, number)
    if order is None:
        return None
    # The operand as it would be in the order [.., K, N]: panels of whole columns, whatever blocks of K are
    # summed at once.
    moved = param.type.update(shape=tuple(param.type.shape[d] for d in order))
    sides, out = spec.split("->")
    letters = sides.split(",")
    letters[number] = "".join(letters[number][d] for d in order)
    x, y = (moved, y) if number == 0 else (x, moved)
    moved_spec = f"{letters[0]},{letters[1]}->{out}"
    problem = contraction.analyse(x, y, moved_spec)
    other = y if number == 0 else x
    if problem.is_swapped != (number == 0) or not gemm.is_packed_kind(
        problem, dtype, moved.dtype, other.dtype
    ):
        return None
    if problem.m.size < gemm.MIN_ROWS or problem.n.size < gemm.MIN_ROWS:
        return None
    if order == tuple(range(len(order))) and skinny.is_best(problem, moved.dtype):
        return None
    plan = blocking.make_plan(problem, other.dtype, moved.dtype, dtype, target)
    if plan.packs == "task":
        return None
    panels = gemm.Panels(number, moved.shape[-2], plan.panel)
    if not gemm.takes_panels(x, y, spec=moved_spec, dtype=dtype, panels=panels, target=target):
        return None
    return Layout(order, ((panels.depth, panels.width),))


def _inside(place: panels_pass.Given, target: Target) -> Layout | None:
    """The panels that bodies want of an operand that they are given, all of them the same."""
    found = {_preferred_of(body.params[place.parameter], body, target) for body in place.bodies}
    layout = found.pop() if len(found) == 1 else None
    if layout is None or not layout.tile:
        return None
    if place.is_slice:
        return Layout((0, *(d + 1 for d in layout.major_to_minor)), layout.tiling)
    return layout


def _order(param: Var, spec: str, number: int) -> tuple[int, ...] | None:
    """Dimensions of an operand as [batch, K, N], when it is a matrix or a stack of them."""
    sides, out = spec.split("->")
    mine = sides.split(",")[number]
    other = sides.split(",")[1 - number]
    if len(mine) != param.type.ndim or len(mine) > 3:
        return None
    batch = [d for d, letter in enumerate(mine) if letter in other and letter in out]
    contracted = [d for d, letter in enumerate(mine) if letter in other and letter not in out]
    free = [d for d, letter in enumerate(mine) if letter not in other]
    if len(contracted) != 1 or len(free) != 1:
        return None
    return (*batch, *contracted, *free)
