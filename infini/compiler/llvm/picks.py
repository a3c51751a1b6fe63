"""Gathers of elements whose starts are computed in the loop that uses them.

Starts are nearly always computed just before: a negative one counts from the end. As an array of their own
they would be written and read once more, which takes as long as the gather.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from infini.compiler.llvm import operations, picking, windows
from infini.compiler.llvm.picking import Computed
from infini.compiler.llvm.target import Target
from infini.compiler.steps import Phase
from infini.core.ir import Equation, Program, Var
from infini.tile.program import Kernel


def phases(program: Program, target: Target, taken: Collection[int]) -> dict[int, Phase | None]:
    """Phases in place of equations, by number: None for what became a part of another phase. Equations that
    are taken are left alone."""
    made = {v: number for number, equation in enumerate(program.equations) for v in equation.outputs}
    uses: dict[Var, int] = dict.fromkeys(program.results, 2)
    for equation in program.equations:
        for var in equation.inputs:
            uses[var] = uses.get(var, 0) + 1
    found: dict[int, Phase | None] = {}
    for number, equation in enumerate(program.equations):
        if equation.op.name != "gather" or not equation.output.type.size:
            continue
        chain = _chain(program, equation, made, uses)
        if chain is None or not {number, *chain}.isdisjoint(taken):
            continue
        maker = program.equations[chain[-1]]
        w = windows.of_gather(equation.inputs[0].type, equation.inputs[1].type, equation.attrs)
        if not picking.is_for(w) or w.indices.shape[-1] != 1:
            continue
        computed = Computed(maker.attrs["kernel"], tuple(v.type for v in maker.inputs))
        task = picking.emit(w, windows.fill_of(w, equation.attrs), target, computed)
        found.update(dict.fromkeys(chain))
        inputs = (equation.inputs[0], *maker.inputs)
        found[number] = Phase("gather", (task,), inputs, equation.outputs, where=equation.where)
    return found


def _chain(
    program: Program, gather: Equation, made: dict[Var, int], uses: dict[Var, int]
) -> list[int] | None:
    """Numbers of the equations that make the starts, the kernel last, when nothing else needs them."""
    numbers: list[int] = []
    var = gather.inputs[1]
    while uses[var] == 1 and var in made:
        numbers.append(made[var])
        equation = program.equations[made[var]]
        if equation.op.name == "kernel":
            return numbers if _is_elementwise(equation.attrs["kernel"]) else None
        if equation.op.name != "reshape":
            return None
        var = equation.inputs[0]
    return None


def _is_elementwise(kernel: Kernel) -> bool:
    """Whether each element of the only result depends on those of the operands at the same place."""
    if len(kernel.stores) != 1 or kernel.extents or not all(c.is_scalar for _, c in kernel.body.consts):
        return False
    if any(e.op.name not in operations.NAMES for e in kernel.body.equations):
        return False
    ids = set(kernel.body.params[len(kernel.loads) :])
    if any(ids.intersection(e.inputs) for e in kernel.body.equations) or ids & set(kernel.body.results):
        return False
    (store,) = (dataclasses.replace(store, fill=None) for store in kernel.stores)
    return all(dataclasses.replace(load, fill=None) == store for load in kernel.loads)
