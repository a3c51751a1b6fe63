"""The order of the equations of a per-device program before it is cut: independent work side by side,
gathers of parameters late.
"""

from __future__ import annotations

from infini.backends.spmd.steps import communicates
from infini.core.ir import Equation, Program, Var
from infini.core.primitive import Effect


class Late:
    """What is computed just before it is read: gathers of parameters, what turns a part before it is gathered
    or the whole after, and small steps from parameters to a later level, such as the decay of a moment.
    """

    def __init__(self, program: Program) -> None:
        self.gathers: set[int] = set()  # ids of equations
        self.others: set[int] = set()
        consts = {v for v, _ in program.consts}
        parts, whole = {*program.params, *consts}, set[Var]()
        before: list[Equation] = []
        for equation in program.equations:
            operands = [v for v in equation.inputs if v not in consts]
            is_plain = not equation.programs and equation.effect is Effect.NONE
            if equation.op.name == "optimization_barrier":
                pairs = zip(equation.inputs, equation.outputs, strict=True)
                parts |= {made for read, made in pairs if read in parts}
            elif equation.op.name == "all_gather" and all(v in parts for v in operands):
                self.gathers.add(id(equation))
                whole |= set(equation.outputs)
            elif is_plain and len(operands) == 1 and operands[0] in whole:
                self.others.add(id(equation))
                whole |= set(equation.outputs)
            elif (
                is_plain
                and not communicates(equation)
                and all(v in parts for v in operands)
                and sum(v.type.size > 1 for v in operands) == 1
            ):
                before.append(equation)
                parts |= set(equation.outputs)
        readers: dict[Var, list[Equation]] = {}
        for equation in program.equations:
            for v in equation.inputs:
                readers.setdefault(v, []).append(equation)
        for equation in reversed(before):
            read_by = [reader for v in equation.outputs for reader in readers.get(v, ())]
            if all(reader in self or not communicates(reader) for reader in read_by):
                self.others.add(id(equation))

    def __contains__(self, equation: Equation) -> bool:
        return id(equation) in self.gathers or id(equation) in self.others


def ordered(program: Program, late: Late) -> list[Equation]:
    """Equations by the number of exchanges before them; late ones just before the first that reads them."""
    level: dict[Var, int] = {}
    keys: list[tuple[int, bool, int, Equation]] = []
    latest_effect = 0
    for number, equation in enumerate(program.equations):
        stage = max((level.get(v, 0) for v in equation.inputs), default=0)
        is_late = equation in late
        is_exchange = not is_late and equation.op.name != "axis_index" and communicates(equation)
        if equation.effect.is_ordered and not is_exchange and not is_late:
            stage = latest_effect = max(stage, latest_effect)
        if not is_late:
            keys.append((stage, is_exchange, number, equation))
        level.update((v, stage + is_exchange) for v in equation.outputs)
    made_by = {v: equation for equation in program.equations if equation in late for v in equation.outputs}
    found: dict[int, Equation] = {}

    def add(equation: Equation) -> None:
        for v in equation.inputs:
            if v in made_by and id(made_by[v]) not in found:
                add(made_by[v])
        found[id(equation)] = equation

    for *_, equation in sorted(keys, key=lambda key: key[:3]):
        add(equation)
    for equation in made_by.values():  # those that only results read
        if id(equation) not in found:
            add(equation)
    return list(found.values())
