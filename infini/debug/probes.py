"""Kernels that stop early: the first statements of a body, with what later ones need of them as results.

Where the statements are in a loop, the loop keeps running and carries their values at one step out. Nothing
but the program changes, so every emitter shows its intermediates this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from infini import lax
from infini.core import dtypes, trace
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.core.value import Value
from infini.tile.program import Access, Kernel

LOOP: Final = "scan"
# The loops around a statement, outer ones first: the number of the loop's statement, and the step.
Path: TypeAlias = tuple[tuple[int, int], ...]
_COUNTER: Final = ArrayType((), dtypes.int32)


@dataclass(frozen=True, slots=True)
class Scope:
    """Statements of one level: the body of the kernel, or of a loop in it.

    Args:
        program: the statements.
        path: the loops around them.
        walked: levels of each parameter that a loop walks; such a tile is never whole in a program.
    """

    program: Program
    path: Path
    walked: dict[Var, int]

    def live(self, cut: int) -> tuple[Var, ...]:
        """What the first `cut` statements made and something later needs; before the first, parameters."""
        equations = self.program.equations
        made = [v for e in equations[:cut] for v in e.outputs] if cut else list(self.program.params)
        later = {v for e in equations[cut:] for v in e.inputs} | set(self.program.results)
        return tuple(v for v in made if v in later and not self.walked.get(v))

    def enter(self, number: int, step: int) -> Scope:
        """The scope of a loop of this one at a step."""
        loop = self.program.equations[number]
        body: Program = loop.attrs["body"]
        num_whole = loop.attrs["num_consts"] + loop.attrs["num_carry"]
        walked = {
            param: self.walked.get(given, 0) - (position >= num_whole)
            for position, (param, given) in enumerate(zip(body.params, loop.inputs, strict=True))
        }
        return Scope(body, (*self.path, (number, step)), {v: n for v, n in walked.items() if n > 0})


def outermost(kernel: Kernel) -> Scope:
    """The body of a kernel."""
    walked = {v: a.levels for a, v in zip(kernel.loads, kernel.body.params, strict=False) if a.levels}
    return Scope(kernel.body, (), walked)


def probe(kernel: Kernel, scope: Scope, values: Sequence[Var]) -> Kernel:
    """The kernel that stores these values of a scope, one tile per program side by side.

    Args:
        kernel: the kernel.
        scope: of `kernel`.
        values: variables of the scope that do not depend on its last statements; see `Scope.live`.
    """
    body = _stopped(kernel.body, scope.path, tuple(values))
    rank = len(kernel.grid)
    outputs = tuple(v.type.update(shape=(*kernel.grid, *v.type.shape)) for v in values)
    stores = tuple(_side_by_side(v.type, rank) for v in values)
    return Kernel(kernel.grid, kernel.loads, stores, outputs, body, kernel.extents, f"{kernel.name}_probe")


def _side_by_side(tile: ArrayType, rank: int) -> Access:
    """A tile per program: the grid in front of its dimensions."""
    size = rank + tile.ndim
    return Access(
        tile.shape,
        tuple(tuple(int(d == g) for g in range(rank)) for d in range(size)),
        tuple(tuple(int(d == rank + t) for t in range(tile.ndim)) for d in range(size)),
        (0,) * size,
    )


def _stopped(program: Program, path: Path, values: tuple[Var, ...]) -> Program:
    """A program whose results are the values alone, without the statements after them."""
    if not path:
        last = max(
            (n for n, e in enumerate(program.equations) if any(v in values for v in e.outputs)), default=-1
        )
        return program.replace(equations=program.equations[: last + 1], results=values)
    (number, _), *_ = path
    found, results = _carrying(program, path, values)
    return found.replace(equations=found.equations[: _position(found, program, number)], results=results)


def _position(found: Program, program: Program, number: int) -> int:
    """How many statements `_carrying` made of those up to `number`."""
    return len(found.equations) - (len(program.equations) - number - 1)


def _carrying(program: Program, path: Path, values: tuple[Var, ...]) -> tuple[Program, tuple[Var, ...]]:
    """A program with one of its loops carrying values out, and what holds them behind the loop."""
    if not path:
        return program, values
    (number, step), *inner = path
    loop = program.equations[number]
    body, carried = _carrying(loop.attrs["body"], tuple(inner), values)
    types = [v.type for v in carried]
    starts = trace.stage(lambda: [_full(t) for t in (_COUNTER, *types)], [], name="starts").program
    keep = trace.stage(lambda *args: _kept(step, args), [_COUNTER, *types, *types], name="keep").program
    num_consts, num_carry = loop.attrs["num_consts"], loop.attrs["num_carry"]
    split = num_consts + num_carry
    states = tuple(Var(t) for t in (_COUNTER, *types))
    kept = _call(keep, (*states, *carried))
    looped = Program(
        (*body.params[:split], *states, *body.params[split:]),
        (*body.equations, *kept.equations),
        (*body.results[:num_carry], *kept.results, *body.results[num_carry:]),
        (*body.consts, *kept.consts),
        body.name,
    )
    outs = tuple(Var(t) for t in (_COUNTER, *types))
    widened = Equation(
        loop.op,
        (*loop.inputs[:split], *starts.results, *loop.inputs[split:]),
        loop.attrs.replace(body=looped, num_carry=num_carry + len(states)),
        (*loop.outputs[:num_carry], *outs, *loop.outputs[num_carry:]),
        loop.where,
    )
    equations = (
        *program.equations[:number],
        *starts.equations,
        widened,
        *program.equations[number + 1 :],
    )
    return program.replace(equations=equations, consts=(*program.consts, *starts.consts)), outs[1:]


def _full(type_: ArrayType) -> Value:
    return lax.full(type_.shape, False if type_.dtype == dtypes.bool_ else 0, type_.dtype)


def _kept(step: int, args: Sequence[Value]) -> list[Value]:
    """The next counter, then per value the one of the wanted step."""
    counter, *rest = args
    half = len(rest) // 2
    is_wanted = lax.eq(counter, np.int32(step))
    chosen = [
        lax.select(lax.broadcast_in_dim(is_wanted, found.shape, ()), found, old)
        for old, found in zip(rest[:half], rest[half:], strict=True)
    ]
    return [lax.add(counter, np.int32(1)), *chosen]


def _call(program: Program, args: Sequence[Var]) -> Program:
    """A program with variables in the place of its parameters."""
    names = dict(zip(program.params, args, strict=True))
    equations = tuple(
        Equation(e.op, tuple(names.get(v, v) for v in e.inputs), e.attrs, e.outputs, e.where)
        for e in program.equations
    )
    return Program((), equations, tuple(names.get(v, v) for v in program.results), program.consts)
