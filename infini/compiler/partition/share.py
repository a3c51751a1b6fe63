"""Equal gathers are made once, where what is kept in between is small.

An array that is gathered for the forward pass is gathered again for the backward pass, and once for each
product that reads it. The second gather is left out when all that is gathered and alive in between, itself
included, is no larger than a window. So the last layers of a model that is split over devices keep what they
gathered, as many as there is room for; those before them, whose gradients come last, gather again. It is left
out, too, when nothing is sent in between, as with a gradient that two products read in turn; unless it is of
a parameter, of which no more than a window is to be there. What is behind an `optimization_barrier` has
another name there, and is not equal.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.partition import costs
from infini.compiler.passes import rewrite
from infini.core.ir import Equation, Program, Var
from infini.core.primitive import Effect

# What makes no new numbers: parts that other devices have.
SHARED: Final = frozenset({"all_gather", "all_to_all", "ppermute"})


@dataclass(slots=True)
class _Made:
    """A collective that is still the latest of its kind: its results, and the last of the program's exchanges
    after which one of them is read.
    """

    outputs: tuple[Var, ...]
    last: int


def share(program: Program, window_bytes: int) -> Program:
    """The program with equal gathers made once, those of each body by themselves; the same object when there
    are none.

    Args:
        program: per-device program.
        window_bytes: bytes that may be gathered and alive while one is kept.
    """
    equations = [_with_bodies(equation, window_bytes) for equation in program.equations]
    last, alive = _lives(equations, program.results)
    of_parameters = gathers_of_parameters(program)
    latest: dict[Hashable, _Made] = {}
    renamed: dict[Var, Var] = {}
    found: list[Equation] = []
    exchange = -1
    for number, equation in enumerate(equations):
        if any(v in renamed for v in equation.inputs):
            inputs = tuple(renamed.get(v, v) for v in equation.inputs)
            equation = Equation(
                equation.op, inputs, equation.attrs, equation.outputs, equation.where, equation.via
            )
        exchange += _is_exchange(equation)
        if equation.op.name not in SHARED:
            found.append(equation)
            continue
        key = (equation.op.name, equation.attrs, equation.inputs)
        until = max(last.get(v, exchange) for v in equation.outputs)
        known = latest.get(key)
        if known is not None:
            between, nbytes = range(known.last + 1, exchange), _gathered(equation)
            is_next = not between and number not in of_parameters
            if is_next or _keep(between, nbytes, alive, window_bytes):
                known.last = max(known.last, until)
                renamed.update(zip(equation.outputs, known.outputs, strict=True))
                continue
        latest[key] = _Made(equation.outputs, until)
        found.append(equation)
    if len(found) == len(equations) and all(
        a is b for a, b in zip(equations, program.equations, strict=True)
    ):
        return program
    results = tuple(renamed.get(v, v) for v in program.results)
    return program.replace(equations=tuple(found), results=results)


def _with_bodies(equation: Equation, window_bytes: int) -> Equation:
    changed = {id(body): share(body, window_bytes) for body in equation.programs}
    if all(changed[id(body)] is body for body in equation.programs):
        return equation
    attrs = rewrite.map_programs(equation.attrs, lambda body: changed[id(body)])
    return Equation(equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)


def gathers_of_parameters(program: Program) -> set[int]:
    """Numbers of the equations that gather parameters, also of such as are turned or converted first: they
    may be gathered at any time.
    """
    consts = {v for v, _ in program.consts}
    known, found = {*program.params, *consts}, set()
    for number, equation in enumerate(program.equations):
        operands = [v for v in equation.inputs if v not in consts]
        if not all(v in known for v in operands):
            continue
        if equation.op.name == "all_gather":
            found.add(number)
        elif equation.op.name == "optimization_barrier" or (
            len(operands) == 1
            and not equation.programs
            and equation.effect is Effect.NONE
            and equation.op.name not in costs.COLLECTIVES
        ):
            known.update(equation.outputs)
    return found


def _is_exchange(equation: Equation) -> bool:
    """Whether something is sent by an equation, or by what is in it."""
    return equation.op.name in costs.COLLECTIVES or any(
        _is_exchange(e) for body in equation.programs for e in body.equations
    )


def _gathered(equation: Equation) -> int:
    """Bytes that an equation gathers; of those in a loop or a branch the largest."""
    if equation.op.name in SHARED:
        return sum(v.type.nbytes for v in equation.outputs)
    return max((_gathered(e) for body in equation.programs for e in body.equations), default=0)


def _lives(equations: Sequence[Equation], results: Sequence[Var]) -> tuple[dict[Var, int], list[int]]:
    """For each variable the last exchange after which it is read, by its number; and for each exchange the
    bytes that are gathered and alive until the next.
    """
    last: dict[Var, int] = {}
    made: list[Equation] = []
    for equation in equations:
        last.update(dict.fromkeys(equation.inputs, len(made) - 1))
        if _is_exchange(equation):
            made.append(equation)
    last.update(dict.fromkeys(results, len(made) - 1))
    alive = [0] * len(made)
    for number, equation in enumerate(made):
        if equation.op.name not in SHARED:
            alive[number] += _gathered(equation)
            continue
        for v in equation.outputs:
            for at in range(number, last.get(v, number) + 1):
                alive[at] += v.type.nbytes
    return last, alive


def _keep(between: range, nbytes: int, alive: list[int], window_bytes: int) -> bool:
    """Keep an array from one exchange to another, if there is room; says whether there is."""
    if nbytes > window_bytes or any(alive[at] + nbytes > window_bytes for at in between):
        return False
    for at in between:
        alive[at] += nbytes
    return True
