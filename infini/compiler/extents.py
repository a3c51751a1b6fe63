"""Run-time extents: which dimensions of which variables are bounded by an int32 parameter (design 4a.12).

Rows beyond an extent are unspecified, so whatever keeps the dimension may leave them out. The fuser turns a
bounded axis of a kernel into a bound of its grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from infini.compiler import views
from infini.core import primitive
from infini.core.ir import Equation, Program, Var
from infini.lax import contraction

Declared: TypeAlias = Sequence[tuple[int, tuple[tuple[int, int], ...]]]
Bounds: TypeAlias = dict[Var, dict[int, Var]]  # of a variable: dimension -> extent


def bounded_dimensions(program: Program, declared: Declared) -> Bounds:
    """Bounded dimensions of every variable of a program.

    Args:
        program: the program.
        declared: per extent its parameter, and the (parameter, dimension) pairs it bounds.
    """
    found: Bounds = {}
    for number, dimensions in declared:
        for parameter, dimension in dimensions:
            found.setdefault(program.params[parameter], {})[dimension] = program.params[number]
    if not found:
        return found
    for equation in program.equations:
        if len(equation.outputs) == 1 and (bounds := _kept(equation, found)):
            found[equation.output] = bounds
    return found


def _kept(equation: Equation, found: Bounds) -> dict[int, Var]:
    """Bounded dimensions of the result of an equation."""
    name, shape = equation.op.name, equation.output.type.shape
    if equation.op.has(primitive.SCALAR):
        pairs = [
            (x, [(d, d + len(shape) - x.type.ndim) for d in range(x.type.ndim)]) for x in equation.inputs
        ]
    elif name.startswith("reduce_"):
        (x,) = equation.inputs
        reduced = {a + x.type.ndim for a in equation.attrs["axes"]}
        pairs = [(x, [(d, i) for i, d in enumerate(d for d in range(x.type.ndim) if d not in reduced)])]
    elif name == "dot":
        pairs = _contraction(equation)
    elif name in ("transpose", "broadcast_in_dim", "reshape"):
        pairs = [(equation.inputs[0], _moved(equation))]
    else:
        return {}
    return {
        to: found[x][d]
        for x, moves in pairs
        for d, to in moves
        if d in found.get(x, {}) and shape[to] == x.type.shape[d]
    }


def _contraction(equation: Equation) -> list[tuple[Var, list[tuple[int, int]]]]:
    out_ndim = equation.output.type.ndim
    *sides, out = contraction.parse_spec(equation.attrs["spec"])
    pairs = []
    for x, letters in zip(equation.inputs, sides, strict=True):
        loops = x.type.ndim - len(letters)
        moves = [(d, d + out_ndim - len(out) - loops) for d in range(loops)]
        moves += [
            (loops + i, out_ndim - len(out) + out.index(letter))
            for i, letter in enumerate(letters)
            if letter in out
        ]
        pairs.append((x, moves))
    return pairs


def _moved(equation: Equation) -> list[tuple[int, int]]:
    """Pairs of a dimension of the operand and the one of the result that is the same."""
    (x,) = equation.inputs
    ndim = x.type.ndim
    if equation.op.name == "transpose":
        permutation = equation.attrs["permutation"]
        order = (*range(ndim - len(permutation)), *(p + ndim for p in permutation))
        return [(source, to) for to, source in enumerate(order)]
    if equation.op.name == "broadcast_in_dim":
        return list(enumerate(views.kept(equation)))
    groups = views.matching(x.type.shape, equation.output.type.shape)
    return [(ins[0], outs[0]) for ins, outs in groups if len(ins) == len(outs) == 1]
