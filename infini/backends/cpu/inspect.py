"""The stages of a program on the CPU: passes, native functions with the equations they compute, LLVM text and
assembly.
"""

from __future__ import annotations

from collections.abc import Iterator

from infini.backends.cpu import link, objects
from infini.compiler import inspection as inspection_
from infini.compiler.inspection import Function, Inspection, Recorder
from infini.compiler.llvm import lower
from infini.compiler.llvm.program import ProgramText
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Phase
from infini.core.ir import Equation, Program


def inspection(program: Program, recorder: Recorder, native: ProgramText, target: Target) -> Inspection:
    """Everything there is to see of a program.

    Args:
        program: as it was traced.
        recorder: what the passes made of it.
        native: its text.
        target: the processor.
    """
    fused = recorder.snapshots[-1].program
    sections = inspection_.labels(fused)
    users: dict[str, list[Equation]] = {}
    for equation, task in equations_of(fused, target):
        users.setdefault(task.name, []).append(equation)
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


def equations_of(program: Program, target: Target) -> Iterator[tuple[Equation, TaskFunction]]:
    """Every equation of a program in kernels, those inside loops and branches included, with each task
    function that it calls.
    """
    for equation in program.equations:
        if equation.op.name in ("scan", "while", "cond"):
            for inner in equation.programs:
                yield from equations_of(inner, target)
        elif equation.op.name in lower.ROUTES and any(v.type.size for v in equation.outputs):
            for step in lower.ROUTES[equation.op.name](equation, target):
                for task in step.tasks if isinstance(step, Phase) else ():
                    yield equation, task
