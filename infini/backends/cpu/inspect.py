"""The stages of a program on the CPU: passes, native functions with the equations they compute, LLVM text and
assembly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from infini.backends.cpu import link, objects
from infini.compiler import cost, inspection as inspection_
from infini.compiler.inspection import Function, Inspection, Recorder
from infini.compiler.llvm import lower
from infini.compiler.llvm.program import ProgramText
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Phase
from infini.core.ir import Equation, Program


def inspection(
    program: Program,
    recorder: Recorder,
    native: ProgramText,
    target: Target,
    writable: Collection[int] = (),
) -> Inspection:
    """Everything there is to see of a program.

    Args:
        program: as it was traced.
        recorder: what the passes made of it.
        native: its text.
        target: the processor.
        writable: parameters that results may replace.
    """
    fused = recorder.snapshots[-1].program
    sections = inspection_.labels(fused)
    users: dict[str, list[Equation]] = {}
    for call in calls_of(fused, target, writable):
        # What prepares a product knows nothing of the kernel behind it.
        whole = [e for e in call.equations if call.is_last or e.op.name != "kernel"]
        users.setdefault(call.task.name, []).extend(whole or call.equations)
    functions = []
    taken: dict[str, int] = {}
    for task in native.functions.values():
        equations = users.get(task.name, [])
        kernel = next((e.attrs["kernel"] for e in equations if e.op.name == "kernel"), None)
        section = "" if kernel is None else sections[kernel]
        name = section or task.name.rpartition("_")[0]
        taken[name] = taken.get(name, 0) + 1
        text = link.module_text(task, target)
        functions.append(
            Function(
                name if taken[name] == 1 else f"{name}.{taken[name]}",
                task.name,
                tuple(equations),
                section,
                task.num_tasks,
                task.cost_ns,
                text,
                objects.assembly(text, target),
            )
        )
    return Inspection(
        program, "cpu", f"{target.cpu} ({target.triple})", tuple(recorder.snapshots), tuple(functions),
        native.text,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A task function that steps call.

    Args:
        equations: what it computes, alone or together with the other functions of its phase.
        task: the function.
        read: bytes that the phase reads.
        written: bytes that it writes.
        is_last: whether it is the last function of the phase; those before prepare.
    """

    equations: tuple[Equation, ...]
    task: TaskFunction
    read: float
    written: float
    is_last: bool


def calls_of(program: Program, target: Target, writable: Collection[int] = ()) -> Iterator[Call]:
    """Every call of a program in kernels, those inside loops and branches included; results may replace
    `writable` parameters.
    """
    phases = lower.joined(program, target, writable).values()
    joined = [phase for phase in phases if phase is not None and phase.parts]
    parts = {id(equation) for phase in joined for equation in phase.parts}
    for phase in joined:
        yield from _calls(phase, phase.parts, *cost.phase_traffic(phase))
    for equation in program.equations:
        if equation.op.name in ("scan", "while", "cond"):
            for inner in equation.programs:
                is_body = inner is equation.attrs.get("body")
                yield from calls_of(inner, target, lower.carried(equation) if is_body else ())
        elif id(equation) in parts:
            continue
        elif equation.op.name in lower.ROUTES and any(v.type.size for v in equation.outputs):
            for step in lower.ROUTES[equation.op.name](equation, target):
                if isinstance(step, Phase):
                    yield from _calls(step, (equation,), *cost.traffic(equation))


def _calls(phase: Phase, equations: tuple[Equation, ...], read: float, written: float) -> Iterator[Call]:
    for task in phase.tasks:
        yield Call(equations, task, read, written, task is phase.tasks[-1])
