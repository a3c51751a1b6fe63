"""What a chunk keeps of a forward pass until its backward pass, per microbatch.

Residuals that are parameters are read where they are. Those that depend on parameters alone, a transposed or
converted weight for example, are computed again: kept, they would cost a copy of the parameters for every
microbatch on its way. So are those that follow from other residuals by cheap arithmetic, such as 1 - y beside
y. The rest is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from infini.compiler.passes import dead_code
from infini.core import trace
from infini.core.ir import ArrayType, Program, Var
from infini.core.primitive import Effect
from infini.core.value import Value
from infini.transforms import linear

# Arithmetic that costs less than the memory of its result for a while. No functions, and no bit operations,
# of which streams of random numbers are made.
CHEAP: Final = frozenset(
    {
        "add", "sub", "mul", "neg", "abs", "max", "min", "select_n", "eq", "ne", "lt", "le", "gt", "ge",
        "convert_element_type", "broadcast_in_dim", "reshape", "transpose",
    }
)  # fmt: skip
# Where a residual comes from: a number among parameters, results of `again`, or what is kept.
Source: TypeAlias = tuple[Literal["operand", "again", "kept"], int]


@dataclass(frozen=True, slots=True)
class Residuals:
    """Where the residuals of a chunk come from.

    Args:
        forward: from the operands to the results, then to what is kept and is no operand.
        known: for each residual that is kept the operand it is, or None when `forward` returns it.
        types: types of what is kept.
        operands: operands that the backward pass reads.
        again: from these and what is kept to the residuals that are computed again.
        sources: for each residual its source.
    """

    forward: Program
    known: tuple[int | None, ...]
    types: tuple[ArrayType, ...]
    operands: tuple[int, ...]
    again: Program
    sources: tuple[Source, ...]

    def values(self, operands: Sequence[Value], kept: Sequence[Value]) -> list[Value]:
        """All residuals, in the backward pass.

        Args:
            operands: values of `self.operands`.
            kept: what was kept.
        """
        found = {
            "operand": dict(zip(self.operands, operands, strict=True)),
            "again": dict(enumerate(trace.evaluate(self.again, [*operands, *kept]))),
            "kept": dict(enumerate(kept)),
        }
        return [found[where][number] for where, number in self.sources]


def split(parts: linear.LinearizedProgram, num_outputs: int, num_fixed: int) -> Residuals:
    """Decide for each residual of a linearized program.

    Args:
        parts: the program, split.
        num_outputs: number of its results before linearization.
        num_fixed: its first operands, which are the same for all microbatches.
    """
    primal = parts.primal
    computed = iter(primal.results[num_outputs:])
    variables = [next(computed) if k is None else primal.params[k] for k in parts.known]
    kept = _kept(primal, variables, num_fixed)
    sources: list[Source] = []
    again: list[Var] = []
    numbers = {v: i for i, v in enumerate(kept)}
    for operand, var in zip(parts.known, variables, strict=True):
        if operand is not None and operand < num_fixed:
            sources.append(("operand", operand))
        elif var in numbers:
            sources.append(("kept", numbers[var]))
        else:
            sources.append(("again", len(again)))
            again.append(var)
    program = _between(primal, kept, again)
    read = {v for equation in program.equations for v in equation.inputs} | set(again)
    read |= {primal.params[number] for where, number in sources if where == "operand"}
    operands = tuple(i for i, v in enumerate(primal.params) if v in read and v not in numbers)
    positions = {v: i for i, v in enumerate(primal.params)}
    known = tuple(positions.get(v) for v in kept)
    returned = [v for v, operand in zip(kept, known, strict=True) if operand is None]
    results = (*primal.results[:num_outputs], *returned)
    return Residuals(
        dead_code.eliminate_dead(primal.replace(results=results)),
        known,
        tuple(v.type for v in kept),
        operands,
        program.replace(params=(*(primal.params[i] for i in operands), *kept)),
        tuple(sources),
    )


def _kept(program: Program, residuals: Sequence[Var], num_fixed: int) -> list[Var]:
    """Which residuals are kept, so that the others follow from these and the fixed operands."""
    wanted = dict.fromkeys(residuals)
    fixed = {*program.params[:num_fixed], *(v for v, _ in program.consts)}
    kept = [v for v in program.params[num_fixed:] if v in wanted]
    cheap = fixed | set(kept)
    for equation in program.equations:
        is_pure = equation.effect is Effect.NONE
        if is_pure and all(v in fixed for v in equation.inputs):
            fixed.update(equation.outputs)
            cheap.update(equation.outputs)
        elif is_pure and equation.op.name in CHEAP and all(v in cheap for v in equation.inputs):
            cheap.update(equation.outputs)
        else:
            found = [v for v in equation.outputs if v in wanted]
            kept += found
            cheap.update(found)
    return kept


def _between(program: Program, known: Sequence[Var], results: Sequence[Var]) -> Program:
    """The equations of a program from variables that are known to results; its parameters are to be set."""
    given = set(known)
    equations = tuple(e for e in program.equations if not any(v in given for v in e.outputs))
    return dead_code.eliminate_dead(program.replace(equations=equations, results=tuple(results)))
