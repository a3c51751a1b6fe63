"""From a program to its executable on the CPU: passes, steps, memory, text, machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from infini.backends import routes
from infini.backends.cpu import images, inspect, link, objects
from infini.backends.cpu.executable import Built, CpuExecutable
from infini.backends.cpu.images import Code, Image
from infini.compiler import dump, inspection, memory, ordering, pipeline, rematerialise, steps
from infini.compiler.llvm import (
    fourier,
    layouts as llvm_layouts,
    lower,
    program as program_,
    target as target_,
    together,
)
from infini.compiler.llvm.program import ProgramText
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.passes import inline
from infini.compiler.steps import Alias, Block, Parameter, Phase, Place, Plan
from infini.core import backend as backend_, config, errors, events, ir, primitive
from infini.core.backend import CompileOptions
from infini.core.layout import Layout
from infini.lax import linalg

_LARGE: Final = 64  # equations from which on functions are compiled while the rest is lowered


def compiled(source: ir.Program, options: CompileOptions, target: Target, key: str | None) -> CpuExecutable:
    """Machine code of a program; its image goes to the disk under `key`, when there is one.

    Raises:
        LoweringError: an operation has no route.
        DonationError: `donation="require"` and a donated parameter cannot be reused.
    """
    recorder, ahead = dump.recorder(), link.compilations(target)
    is_large = len(source.equations) >= _LARGE
    made = (lambda task: link.begin(task, ahead)) if is_large else (lambda task: None)
    built = Built(*build(source, options, target, recorder, made))
    native = program_.write(built.block, built.plan, target)
    image, addresses = linked(native, built, ahead)
    executable = CpuExecutable(
        source, options, target, image, addresses, build=lambda: built, host_functions=native.callbacks
    )
    executable.native = native
    if recorder is not None:
        dump.write(inspect.inspection(source, recorder, native, target, options.donated))
    # What a compilation says about donated arrays is said every time.
    if key is not None and (
        options.donation == "offer" or not unused_donations(built.block, built.plan, options)
    ):
        images.write(key, image)
    return executable


def inspected(program: ir.Program, options: CompileOptions, target: Target) -> inspection.Inspection:
    """Every stage of a program, from traced to assembly."""
    recorder = inspection.Recorder()
    _, block, plan = build(program, options, target, recorder)
    native = program_.write(block, plan, target)
    return inspect.inspection(program, recorder, native, target, options.donated)


def linked(native: ProgramText, built: Built, ahead: objects.Compilations) -> tuple[Image, dict[str, int]]:
    """The image of a text and the addresses of its functions, after compiling what is new."""
    target = ahead.target
    image = image_of(native, built, target)
    addresses = link.functions(native.functions, ahead)
    if image.program is not None:
        address = link.program(native.name, native.text, addresses, target)
        addresses = {**addresses, native.name: address}
    return image, addresses


def image_of(native: ProgramText, built: Built, target: Target) -> Image:
    """The image of a text; nothing is compiled."""
    block, plan = built.block, built.plan
    only = None if native.timed else _only_task(block, plan)
    program = None
    if only is None:  # one task over exactly the table needs no program around it
        program = Code(native.name, objects.object_key(native.text, target, link.PROGRAM_LEVEL))
    return Image(
        functions=tuple(
            Code(
                task.name,
                objects.object_key(link.module_text(task, target), target),
                tuple(sorted(task.declares)),
            )
            for task in native.functions.values()
        ),
        program=program,
        consts=tuple(constant.array for constant in native.consts),
        num_params=len(block.params),
        result_bytes=tuple(v.type.nbytes for v in block.results),
        aliases=tuple(p.number if isinstance(p, Parameter) else None for p in plan.results),
        arena_bytes=plan.nbytes,
        is_bounded=native.is_bounded,
        cost_ns=native.cost_ns,
        copied_bytes=native.copied_bytes,
        num_phases=native.num_phases,
        memory=memory_analysis(block, plan),
    )


def ahead_of_time(
    source: ir.Program, options: CompileOptions, target: Target
) -> tuple[Image, dict[str, bytes]]:
    """The image of a program for a processor, and its object files by their keys; nothing is loaded.

    Raises:
        LoweringError: an operation has no route, or calls the host.
    """
    built = Built(*build(source, options, target))
    native = program_.write(built.block, built.plan, target)
    if native.callbacks:
        raise errors.LoweringError(
            f"@{source.name} cannot be built ahead of time",
            got="it calls functions of this process",
            fix="leave out callbacks and prints",
        )
    image = image_of(native, built, target)
    code = {
        found.key: objects.compile_module(link.module_text(task, target), target)
        for found, task in zip(image.functions, native.functions.values(), strict=True)
    }
    if image.program is not None:
        code[image.program.key] = objects.compile_module(native.text, target, level=link.PROGRAM_LEVEL)
    return image, code


def _only_task(block: Block, plan: Plan) -> TaskFunction | None:
    """The task function whose arguments are the parameters and results in order, when the program is nothing
    else.
    """
    phases = [step for step in block.steps if not isinstance(step, Alias)]
    if len(phases) != 1 or plan.copies or plan.scratch:
        return None
    (phase,) = phases
    if (
        not isinstance(phase, Phase)
        or phase.must_share
        or len(phase.tasks) != 1
        or phase.tasks[0].num_tasks != 1
    ):
        return None
    # A result in the memory of a donated parameter is the same address in two entries of the table.
    given: list[Place] = [*(Parameter(i) for i in range(len(block.params))), *plan.results]
    found = [plan.places[v] for v in (*phase.reads, *phase.writes)]
    task: TaskFunction = phase.tasks[0]
    return task if found == given else None


def memory_analysis(block: Block, plan: Plan) -> dict[str, int]:
    """Bytes of arguments, results, aliases and temporaries of a plan."""
    arguments = sum(v.type.nbytes for v in block.params)
    outputs = sum(v.type.nbytes for v in block.results)
    aliased = sum(
        v.type.nbytes for v, p in zip(block.results, plan.results, strict=True) if isinstance(p, Parameter)
    )
    return {
        "argument bytes": arguments,
        "output bytes": outputs,
        "alias bytes": aliased,
        "temp bytes": plan.nbytes,
        "peak bytes": arguments + outputs - aliased + plan.nbytes,
    }


def route(program: ir.Program, op: primitive.Primitive) -> backend_.Route:
    """How the CPU computes `op` in a program made of nothing else."""
    return routes.without_program(op, has_mesh=True) or routes.compiled(
        program,
        op,
        passes=lambda program: pipeline.run(program, lower.has_route, backend="cpu"),
        has_route=lower.has_route,
        routes=lower.ROUTES,
        inlined=inline.CALLS,
        library=linalg.NAMES | fourier.NAMES,
    )


def preferred(program: ir.Program) -> tuple[Layout | None, ...]:
    """The best layouts of the parameters of a program on one device."""
    for step in pipeline.canonical_passes(lower.has_route, backend="cpu"):
        program = step.run(program)
    return llvm_layouts.preferred(program, target_.host_target())


def build(
    program: ir.Program,
    options: CompileOptions,
    target: Target,
    observe: pipeline.Observer | None = None,
    made: Callable[[TaskFunction], None] = lambda task: None,
) -> tuple[ir.Program, Block, Plan]:
    """Everything but machine code: the program in kernels, its steps, and their memory."""
    fused = pipeline.run(
        program,
        lower.has_route,
        backend="cpu",
        declared=options.extents,
        reads_panels=lambda equation: lower.reads_panels(equation, target),
        wants_panels=lambda body, number: llvm_layouts.wanted(body, number, target),
        takes_windows=lambda x, w, attrs: lower.takes_windows(x, w, attrs, target),
        takes_bytes=lambda equation: lower.takes_bytes(equation, target),
        reads_views=True,
        observe=observe,
    )
    ends = memory.Ends(writable=frozenset(options.donated), is_free=True)
    block = ordering.ordered(lower.lower(fused, target, made, options.donated), ends)
    budget = config.get("memory_budget")
    if budget:
        block = rematerialise.within(block, ends, budget)
    alone, block = block, together.grouped(block, ends.writable)
    plan = memory.plan(block, ends)
    if (
        budget and plan.nbytes > budget
    ):  # phases that run as one may need more memory than one after the other
        plain = memory.plan(alone, ends)
        block, plan = (alone, plain) if plain.nbytes < plan.nbytes else (block, plan)
    check_donation(program, block, plan, options)
    return fused, block, plan


def check_donation(program: ir.Program, block: Block, plan: Plan, options: CompileOptions) -> None:
    """Say which donated parameters no result could reuse.

    Raises:
        DonationError: there is one, and the options require donation.
    """
    unused = unused_donations(block, plan, options)
    if not unused or options.donation == "offer":
        return
    reasons = [_why_unused(block, i) for i in unused]
    if options.donation == "require":
        raise errors.DonationError(
            "a donated array could not be reused",
            got="; ".join(reasons),
            expected="a result of the same size that is made when the array is no longer needed",
            fix='donate only arrays that a result replaces, or use donation="allow"',
        )
    events.emit(
        "donation-unused",
        f"donated arrays of @{program.name} could not be reused: {'; '.join(reasons)}",
        level="warning",
        parameters=tuple(unused),
    )


def unused_donations(block: Block, plan: Plan, options: CompileOptions) -> list[int]:
    """Donated parameters that no result could reuse; scalars are not worth a word."""
    return [i for i in options.donated if i not in plan.donated and block.params[i].type.size > 1]


def _why_unused(block: Block, number: int) -> str:
    param = block.params[number]
    if param in block.results:
        return f"parameter {number} ({param.type}) is itself a result and another one has its place"
    if not any(v.type.nbytes == param.type.nbytes for v in block.results):
        return f"parameter {number} ({param.type}): no result has {param.type.nbytes} bytes"
    aliases = {param}
    last: steps.Step | None = None
    for step in block.steps:
        if isinstance(step, steps.Alias):
            aliases |= {step.write} if step.read in aliases else set()
        elif aliases & set(steps.reads_of(step)):
            last = step
    if last is None:
        return f"parameter {number} ({param.type}): other donated arrays have taken the results of its size"
    name = getattr(last, "name", "host call")
    where = getattr(last, "where", None)
    return f"parameter {number} ({param.type}) is still read by {name!r}" + (f" at {where}" if where else "")
