"""Estimates of work from the COST rules of operations: of scalar operations, used by the fuser, and of whole
programs, shown by `cost_analysis`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from infini.compiler.steps import Block, Branch, Group, Loop, Phase
from infini.core import dtypes, primitive
from infini.core.ir import Equation, Program
from infini.core.primitive import Primitive
from infini.lax import families, indexing

# Other names for the same memory.
_FREE: Final = frozenset({"optimization_barrier", "reshape", "view_as_complex", "view_as_real"})


def op_weight(op: Primitive) -> float:
    """Work of one element of an elementwise operation, an addition being 1."""
    rule = op.rules.get(primitive.COST)
    return rule.weight if isinstance(rule, families.PerElement) else 1.0


def analyse(source: Program, fused: Program, block: Block | None = None) -> dict[str, float]:
    """Counts of a program: `flops`, `transcendentals`, `bytes accessed` by its phases, `kernels` and
    `equations`.

    A loop counts as often as it turns, one of unknown length once; of a conditional every branch counts. What
    is computed again in several kernels counts in each. With the block of steps that a backend made of it,
    equations that became one phase are one kernel.
    """
    counts = dict.fromkeys(("flops", "transcendentals", "bytes accessed", "kernels"), 0.0)
    for equation, times in executed(fused):
        counts["bytes accessed"] += times * sum(traffic(equation))
        counts["kernels"] += times
        for name, number in work(equation).items():
            counts[name] += times * number
    for phase, times in joined(block) if block is not None else ():
        counts["kernels"] -= times * (len(phase.parts) - 1)
        apart = sum(sum(traffic(equation)) for equation in phase.parts)
        counts["bytes accessed"] += times * (sum(phase_traffic(phase)) - apart)
    return {**counts, "equations": float(len(source.equations))}


def executed(program: Program, times: float = 1.0) -> Iterator[tuple[Equation, float]]:
    """The equations that do something, with how often each is executed, as `analyse` counts."""
    for equation in program.equations:
        if equation.op.name in ("scan", "while", "cond"):
            turns = float(equation.attrs.get("length", 1))
            for inner in equation.programs:
                yield from executed(inner, times * turns)
        elif equation.op.name not in _FREE:
            yield equation, times


def joined(block: Block, times: float = 1.0) -> Iterator[tuple[Phase, float]]:
    """The phases that compute several equations, with how often each runs, as `analyse` counts."""
    for step in block.steps:
        if isinstance(step, Loop):
            turns = 1.0 if step.condition is not None else float(step.length)
            for inner in (step.body,) if step.condition is None else (step.condition, step.body):
                yield from joined(inner, times * turns)
        elif isinstance(step, Branch):
            for inner in step.blocks:
                yield from joined(inner, times)
        elif isinstance(step, (Phase, Group)):
            for phase in step.phases if isinstance(step, Group) else (step,):
                if phase.parts:
                    yield phase, times


def traffic(equation: Equation) -> tuple[float, float]:
    """Bytes that an equation reads and writes, each once: of what it moves, not of what it picks from or
    overwrites in place.
    """
    reads = [float(v.type.nbytes) for v in equation.inputs]
    writes = [float(v.type.nbytes) for v in equation.outputs]
    name = equation.op.name
    if name == "kernel":
        kernel = equation.attrs["kernel"]
        for i, (access, v) in enumerate(zip(kernel.loads, equation.inputs, strict=False)):
            loaded = kernel.num_programs * math.prod(access.tile) * v.type.dtype.itemsize
            reads[i] = min(reads[i], float(loaded))
    elif name == "attention_of_views":
        for i, seen in enumerate(equation.attrs["views"]):
            if seen is not None:
                reads[i] = float(math.prod(seen[0]) * equation.inputs[i].type.dtype.itemsize)
    elif name in ("gather", "dynamic_slice"):
        reads[0] = min(reads[0], writes[0])
    elif name == "dynamic_update_slice":
        reads[0], writes[0] = 0.0, reads[1]
    elif name in indexing.KINDS:  # scatters: operand, indices, updates
        is_combined = indexing.KINDS[name].combine is not None
        reads[0], writes[0] = (reads[2] if is_combined else 0.0), min(writes[0], reads[2])
        reads[0] = min(reads[0], writes[0])
    return sum(reads), sum(writes)


def phase_traffic(phase: Phase) -> tuple[float, float]:
    """Bytes that a phase of several equations reads and writes; what stays between them is neither."""
    read = sum(v.type.nbytes for v in dict.fromkeys(phase.reads))
    return float(read), float(sum(v.type.nbytes for v in phase.writes))


def work(equation: Equation) -> Mapping[str, float]:
    """The `flops` and `transcendentals` of an equation, those of the programs inside it included."""
    rule = equation.op.rules.get(primitive.COST)
    if rule is not None:
        is_curve = isinstance(rule, families.PerElement) and rule.is_transcendental
        number = rule([v.type for v in equation.inputs], equation.attrs)
        return {"transcendentals" if is_curve else "flops": number}
    found = {"flops": 0.0, "transcendentals": 0.0}
    is_kernel = equation.op.name == "kernel"
    bodies = (equation.attrs["kernel"].body,) if is_kernel else equation.programs
    times = equation.attrs["kernel"].num_programs if is_kernel else equation.attrs.get("length", 1)
    for inner in (e for body in bodies for e in body.equations):
        for name, number in work(inner).items():
            found[name] += times * number
    return found


def effort(equation: Equation) -> float:
    """What an equation costs a vector unit, in the unit of its peak, where a multiply-add is two: an element
    of an elementwise operation is twice its weight, other operations are their FLOPs; float64 is twice that.
    """
    is_kernel = equation.op.name == "kernel"
    if is_kernel or (equation.programs and primitive.COST not in equation.op.rules):
        bodies = (equation.attrs["kernel"].body,) if is_kernel else equation.programs
        times = equation.attrs["kernel"].num_programs if is_kernel else equation.attrs.get("length", 1)
        return float(times * sum(effort(inner) for body in bodies for inner in body.equations))
    rule = equation.op.rules.get(primitive.COST)
    is_wide = any(v.type.dtype in (dtypes.float64, dtypes.complex128) for v in equation.outputs)
    if isinstance(rule, families.PerElement):
        number = 2.0 * rule.weight * max((v.type.size for v in equation.outputs), default=0)
    else:
        number = sum(work(equation).values())
    return number * (2.0 if is_wide else 1.0)
