"""A planned block as native code: `void program(ptr pool, ptr table)`, called once per invocation.

The table holds pointers: parameters, results, the arena, constants, host callbacks, counters when profiling,
and a flag that ends loops. Every block is a function `i32 block(ptr pool, ptr table, ptr frame, ptr arena)`
whose frame holds pointers to its parameters and results; loops and branches call the functions of their
blocks. A block returns 1 when a host callback failed or the flag was set, which ends the program. Only the
calling thread is ever here: workers see the tasks of one phase at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from infini.compiler.llvm import movement
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import (
    Block,
    Branch,
    Const,
    Group,
    HostCall,
    Loop,
    Parameter,
    Phase,
    Place,
    Plan,
    Result,
    Step,
    Temporary,
    align,
)
from infini.core import ir
from infini.core.ir import Var
from infini.core.source import Where

INLINE_COPY_BYTES: Final = 64 << 10
_BLOCK_PARAMETERS: Final = "ptr %pool, ptr %table, ptr %frame, ptr %arena"


@dataclass(frozen=True, slots=True)
class Timed:
    """A phase that the profile counts; `step` is None for a copy, which moves `nbytes`."""

    name: str
    where: Where | None
    cost_ns: float
    step: Phase | Group | None = None
    nbytes: int = 0


# A host function with the types of its operands and results.
HostEntry: TypeAlias = tuple[ir.HostFunction, tuple[ir.ArrayType, ...], tuple[ir.ArrayType, ...]]


@dataclass(slots=True)
class ProgramText:
    """Native code of a program.

    Args:
        name: symbol of the entry function.
        text: LLVM IR of the module with the entry and the blocks.
        functions: task functions it calls, each once.
        consts: constants in the order of the table.
        callbacks: host functions in the order of the table, with the types of their operands and results.
        timed: phases in the order of the counters, when profiling; each has two, for ticks and for runs.
        is_bounded: whether `cost_ns` says how long it may run: it has no loops of unknown length.
        cost_ns: estimated time of one run on one thread, loops of unknown length once.
        copied_bytes: bytes that move only because memory could not be shared; loops of unknown length once.
        num_phases: phases that the pool's threads share; loops of unknown length once.
    """

    name: str
    text: str
    functions: dict[str, TaskFunction]
    consts: list[ir.Constant] = field(default_factory=list)
    callbacks: list[HostEntry] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    is_bounded: bool = True
    cost_ns: float = 0.0
    copied_bytes: float = 0.0
    num_phases: int = 0


def write(block: Block, plan: Plan, target: Target, *, profile: bool = False) -> ProgramText:
    """Native code of a planned program.

    Args:
        block: its steps.
        plan: where its variables are.
        target: processor to make code for.
        profile: count the time of every phase.
    """
    return _Program(target, profile).write(block, plan)


class _Program:
    def __init__(self, target: Target, profile: bool) -> None:
        self.target, self.profile = target, profile
        self.result = ProgramText("", "", {})
        self.bodies: list[str] = []
        self.const_numbers: dict[ir.Constant, int] = {}
        self.num_slots = 0  # parameters, results and arena of the outermost block

    def write(self, block: Block, plan: Plan) -> ProgramText:
        self.num_slots = len(block.params) + len(block.results) + 1
        self._collect(block)
        self.counters = self.num_slots + len(self.const_numbers) + len(self.result.callbacks)
        self.interruption = self.counters + 1
        main = self.block(block, plan)
        self.result.cost_ns, self.result.copied_bytes = main.cost_ns, main.copied_bytes
        self.result.num_phases = main.num_phases
        arena = len(block.params) + len(block.results)
        entry = (
            "define void @NAME(ptr %pool, ptr %table) nounwind {\n"
            f"  %arena.p = getelementptr ptr, ptr %table, i64 {arena}\n"
            "  %arena = load ptr, ptr %arena.p, align 8\n"
            f"  %status = call i32 @{main.name}(ptr %pool, ptr %table, ptr %table, ptr %arena)\n"
            "  ret void\n}\n"
        )
        declares = "".join(f"declare void @{name}(ptr, i64)\n" for name in self.result.functions)
        text = (
            f'target triple = "{self.target.triple}"\n'
            "declare void @infini_phase(ptr, ptr, ptr, i64)\n"
            "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)\n"
            "declare i64 @llvm.readcyclecounter()\n" + declares + "\n".join([*self.bodies, entry])
        )
        name = f"program_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        self.result.name, self.result.text = name, text.replace("@NAME", f"@{name}")
        self.result.consts = list(self.const_numbers)
        return self.result

    def _collect(self, block: Block) -> None:
        """Number the constants and callbacks of a block and of those inside it."""
        for _, constant in block.consts:
            self.const_numbers.setdefault(constant, len(self.const_numbers))
        for step in block.steps:
            if isinstance(step, HostCall):
                entry = _host_entry(step)
                if entry not in self.result.callbacks:
                    self.result.callbacks.append(entry)
            for inner in _blocks(step):
                self._collect(inner)

    def const_slot(self, constant: ir.Constant) -> int:
        """Entry of the table for a constant."""
        return self.num_slots + self.const_numbers[constant]

    def callback_slot(self, step: HostCall) -> int:
        """Entry of the table for a host callback."""
        return self.num_slots + len(self.const_numbers) + self.result.callbacks.index(_host_entry(step))

    def function(self, task: TaskFunction) -> str:
        """Symbol of a task function, noted for linking."""
        self.result.functions[task.name] = task
        return task.name

    def block(self, block: Block, plan: Plan) -> _Written:
        """Write the function of a block."""
        writer = _BlockWriter(self, block, plan)
        body = writer.write()
        name = f"block{len(self.bodies)}"
        self.bodies.append(f"define internal i32 @{name}({_BLOCK_PARAMETERS}) nounwind {{\n{body}}}\n")
        return _Written(name, writer.cost_ns, writer.copied_bytes, writer.num_phases)

    def group(self, members: Sequence[Member]) -> tuple[str, int]:
        """Write the function that runs a task of several task functions; its symbol, and how many tasks there
        are.
        """
        starts = list(itertools.accumulate((m.task.num_tasks for m in members), initial=0))
        text = f"entry:\n{_choice(members, starts, 0, len(members))}"
        name = f"group{len(self.bodies)}"
        self.bodies.append(f"define internal void @{name}(ptr %args, i64 %task) nounwind {{\n{text}}}\n")
        return name, starts[-1]


@dataclass(frozen=True, slots=True)
class Member:
    """A task function of a group, and the entry of the arguments where its own start."""

    symbol: str
    task: TaskFunction
    first: int


def _choice(members: Sequence[Member], starts: Sequence[int], low: int, high: int) -> str:
    """Text that finds the member from `low` to `high` that has a task, by halves, and runs the task."""
    if high - low == 1:
        member = members[low]
        return (
            f"  %own{low} = getelementptr ptr, ptr %args, i64 {member.first}\n"
            f"  %number{low} = sub i64 %task, {starts[low]}\n"
            f"  call void @{member.symbol}(ptr %own{low}, i64 %number{low})\n  ret void\n"
        )
    middle = (low + high) // 2
    return (
        f"  %is{middle} = icmp ult i64 %task, {starts[middle]}\n"
        f"  br i1 %is{middle}, label %below{middle}, label %from{middle}\n"
        f"below{middle}:\n{_choice(members, starts, low, middle)}"
        f"from{middle}:\n{_choice(members, starts, middle, high)}"
    )


@dataclass(frozen=True, slots=True)
class _Written:
    """The function of a block, with what one run of it costs."""

    name: str
    cost_ns: float
    copied_bytes: float
    num_phases: int


def _host_entry(step: HostCall) -> HostEntry:
    return (step.function, tuple(v.type for v in step.reads), tuple(v.type for v in step.writes))


def _blocks(step: Step) -> Sequence[Block]:
    if isinstance(step, Loop):
        return [step.body] if step.condition is None else [step.condition, step.body]
    return step.blocks if isinstance(step, Branch) else ()


class _BlockWriter:
    """Writes one block function."""

    def __init__(self, program: _Program, block: Block, plan: Plan) -> None:
        self.program, self.block, self.plan = program, block, plan
        self.lines: list[str] = []
        self.num_args = 1
        self.counter = 0
        self.cost_ns = 0.0
        self.copied_bytes = 0.0
        self.num_phases = 0

    def write(self) -> str:
        for number, step in enumerate(self.block.steps):
            if isinstance(step, Phase):
                self._phase(number, step)
            elif isinstance(step, Group):
                self._group(number, step)
            elif isinstance(step, Loop):
                self._loop(number, step)
            elif isinstance(step, Branch):
                self._branch(number, step)
            elif isinstance(step, HostCall):
                self._host_call(step)
        for copy in self.plan.copies:
            self._copy(self._pointer(copy.target), self._pointer(copy.source), copy.nbytes)
        head = f"entry:\n  %args = alloca [{self.num_args} x ptr], align 16\n"
        return head + "\n".join([*self.lines, "  ret i32 0\n"])

    def _inner(self, block: Block, plan: Plan, times: int = 1) -> str:
        """Write the function of an inner block that runs `times` times; its symbol."""
        written = self.program.block(block, plan)
        self.num_phases += written.num_phases * times
        self.cost_ns += written.cost_ns * times
        self.copied_bytes += written.copied_bytes * times
        return written.name

    # --- text -----------------------------------------------------------------------------------

    def _fresh(self) -> str:
        self.counter += 1
        return f"v{self.counter}"

    def _do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def _let(self, text: str) -> str:
        name = f"%{self._fresh()}"
        self.lines.append(f"  {name} = {text}")
        return name

    def _label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def _slot(self, base: str, number: int) -> str:
        """The pointer at an entry of a table."""
        return self._let(f"load ptr, ptr {self._entry(base, number)}, align 8")

    def _entry(self, base: str, number: int) -> str:
        return self._let(f"getelementptr ptr, ptr {base}, i64 {number}")

    def _pointer(self, place: Place) -> str:
        if isinstance(place, Parameter):
            return self._slot("%frame", place.number)
        if isinstance(place, Result):
            return self._slot("%frame", len(self.block.params) + place.number)
        if isinstance(place, Const):
            return self._slot("%table", self.program.const_slot(self.block.consts[place.number][1]))
        return self._temporary(place)

    def _temporary(self, place: Temporary) -> str:
        return self._let(f"getelementptr i8, ptr %arena, i64 {place.offset}")

    def _of(self, var: Var) -> str:
        return self._pointer(self.plan.places[var])

    def _fill(self, base: str, pointers: Sequence[str], start: int = 0) -> None:
        for i, pointer in enumerate(pointers, start):
            self._do(f"store ptr {pointer}, ptr {self._entry(base, i)}, align 8")

    # --- phases ---------------------------------------------------------------------------------

    def _phase(self, number: int, step: Phase) -> None:
        shared = self.plan.shared.get(number, frozenset())
        for operand, output in step.must_share:
            if (operand, output) not in shared:
                read, written = step.reads[operand], step.writes[output]
                self._copy(self._of(written), self._of(read), read.type.nbytes)
        tasks = [task for task in step.tasks if task.num_tasks]
        if not tasks:
            return
        pointers = [self._of(v) for v in (*step.reads, *step.writes)]
        if number in self.plan.scratch:
            pointers.append(self._temporary(self.plan.scratch[number]))
        self.num_args = max(self.num_args, len(pointers))
        self._fill("%args", pointers)
        for task in tasks:
            self._run(task, Timed(step.name, step.where, task.cost_ns, step))

    def _group(self, number: int, step: Group) -> None:
        """Several phases as one: a task finds its phase, and the arguments of that, by its number."""
        pointers: list[str] = []
        stages: list[list[Member]] = []
        scratch = self.plan.scratch[number].offset if number in self.plan.scratch else 0
        for phase in step.phases:
            tasks = [task for task in phase.tasks if task.num_tasks]
            stages += [[] for _ in range(len(tasks) - len(stages))]
            for stage, task in zip(stages, tasks, strict=False):
                stage.append(Member(self.program.function(task), task, len(pointers)))
            if tasks:
                pointers += [self._of(v) for v in (*phase.reads, *phase.writes)]
            if phase.scratch_bytes:
                pointers.append(self._temporary(Temporary(scratch)))
                scratch += align(phase.scratch_bytes)
        self.num_args = max(self.num_args, len(pointers))
        self._fill("%args", pointers)
        for members in stages:
            with self._timed(Timed(step.name, step.where, sum(m.task.cost_ns for m in members), step)):
                self._parallel(*self.program.group(members))

    def _run(self, task: TaskFunction, timed: Timed) -> None:
        """Run a task function over the arguments that are set up."""
        symbol = self.program.function(task)
        with self._timed(timed):
            if task.num_tasks == 1:
                self._do(f"call void @{symbol}(ptr %args, i64 0)")
            else:
                self._parallel(symbol, task.num_tasks)

    def _parallel(self, symbol: str, num_tasks: int) -> None:
        """Let the threads of the pool share the tasks of a function."""
        self._do(f"call void @infini_phase(ptr %pool, ptr @{symbol}, ptr %args, i64 {num_tasks})")
        self.num_phases += 1

    @contextlib.contextmanager
    def _timed(self, timed: Timed) -> Iterator[None]:
        """Around the text of a phase: add up its cost, and count its time and its runs when profiling."""
        self.cost_ns += timed.cost_ns
        started = self._let("call i64 @llvm.readcyclecounter()") if self.program.profile else ""
        yield
        if started:
            now = self._let("call i64 @llvm.readcyclecounter()")
            counters = self._slot("%table", self.program.counters)
            entry = 2 * len(self.program.result.timed)
            self.program.result.timed.append(timed)
            self._increase(counters, entry, self._let(f"sub i64 {now}, {started}"))
            self._increase(counters, entry + 1, "1")

    def _increase(self, counters: str, entry: int, amount: str) -> None:
        place = self._let(f"getelementptr i64, ptr {counters}, i64 {entry}")
        before = self._let(f"load i64, ptr {place}, align 8")
        self._do(f"store i64 {self._let(f'add i64 {before}, {amount}')}, ptr {place}, align 8")

    def _copy(self, target: str, source: str, nbytes: int) -> None:
        if nbytes == 0:
            return
        self.copied_bytes += nbytes
        if nbytes <= INLINE_COPY_BYTES:
            self._do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {nbytes}, i1 false)")
            return
        self.num_args = max(self.num_args, 2)
        self._fill("%args", [source, target])
        task = movement.copy(nbytes)
        self._run(task, Timed("copy", None, task.cost_ns, nbytes=nbytes))

    # --- loops ----------------------------------------------------------------------------------

    def _frame(self, size: int) -> str:
        name = f"%{self._fresh()}"
        self.lines.insert(0, f"  {name} = alloca [{max(size, 1)} x ptr], align 16")
        return name

    def _loop(self, number: int, step: Loop) -> None:
        shared = self.plan.shared[number]
        first_carry = step.num_condition_consts + step.num_consts
        first_x = first_carry + step.num_carry
        for i in range(step.num_carry):
            if (first_carry + i, i) not in shared:
                init = step.reads[first_carry + i]
                self._copy(self._of(step.writes[i]), self._of(init), init.type.nbytes)
        carry = [self._of(v) for v in step.writes[: step.num_carry]]
        consts = [self._of(v) for v in step.reads[step.num_condition_consts : first_carry]]
        xs = [self._of(v) for v in step.reads[first_x:]]
        ys = [self._of(v) for v in step.writes[step.num_carry :]]
        arena = self._temporary(self.plan.scratch[number]) if number in self.plan.scratch else "%arena"
        times = 1 if step.condition is not None else step.length
        body_name = self._inner(step.body, self.plan.inner[number][-1], times)
        frame = self._frame(len(step.body.params) + len(step.body.results))
        self._fill(frame, [*consts, *carry])
        if step.condition is None:
            self._counted(step, frame, arena, body_name, first=len(consts) + len(carry), xs=xs, ys=ys)
        else:
            condition_consts = [self._of(v) for v in step.reads[: step.num_condition_consts]]
            self._conditional(step, number, frame, arena, body_name, [*condition_consts, *carry])

    def _counted(
        self,
        step: Loop,
        frame: str,
        arena: str,
        body: str,
        *,
        first: int,
        xs: Sequence[str],
        ys: Sequence[str],
    ) -> None:
        if step.length == 0:
            return
        head, after, index = self._fresh(), self._fresh(), self._fresh()
        before = self._fresh()
        self._do(f"br label %{before}")
        self._label(before)
        self._do(f"br label %{head}")
        self._label(head)
        self._do(f"%{index} = phi i64 [ 0, %{before} ], [ %{index}.next, %{index}.latch ]")
        place = self._let(f"sub i64 {step.length - 1}, %{index}") if step.is_reversed else f"%{index}"
        params, results = step.body.params, step.body.results
        for i, x in enumerate(xs):
            self._slice(frame, first + i, x, place, params[first + i].type.nbytes)
        for i, y in enumerate(ys, step.num_carry):
            self._slice(frame, len(params) + i, y, place, results[i].type.nbytes)
        status = self._let(f"call i32 @{body}(ptr %pool, ptr %table, ptr {frame}, ptr {arena})")
        self._stop_if_failed(status)
        self._stop_if_interrupted()
        self._do(f"br label %{index}.latch")
        self._label(f"{index}.latch")
        self._do(f"%{index}.next = add i64 %{index}, 1")
        again = self._let(f"icmp slt i64 %{index}.next, {step.length}")
        self._do(f"br i1 {again}, label %{head}, label %{after}")
        self._label(after)

    def _slice(self, frame: str, entry: int, base: str, place: str, nbytes: int) -> None:
        offset = self._let(f"mul i64 {place}, {nbytes}")
        self._fill(frame, [self._let(f"getelementptr i8, ptr {base}, i64 {offset}")], entry)

    def _conditional(
        self, step: Loop, number: int, frame: str, arena: str, body: str, pointers: Sequence[str]
    ) -> None:
        assert step.condition is not None
        self.program.result.is_bounded = False
        name = self._inner(step.condition, self.plan.inner[number][0])
        flag = f"%{self._fresh()}"
        self.lines.insert(0, f"  {flag} = alloca i8, align 8")
        condition_frame = self._frame(len(pointers) + 1)
        self._fill(condition_frame, [*pointers, flag])
        head, inside, after = self._fresh(), self._fresh(), self._fresh()
        self._do(f"br label %{head}")
        self._label(head)
        self._stop_if_failed(
            self._let(f"call i32 @{name}(ptr %pool, ptr %table, ptr {condition_frame}, ptr {arena})")
        )
        value = self._let(f"load i8, ptr {flag}, align 1")
        self._do(f"br i1 {self._let(f'icmp ne i8 {value}, 0')}, label %{inside}, label %{after}")
        self._label(inside)
        self._stop_if_failed(self._let(f"call i32 @{body}(ptr %pool, ptr %table, ptr {frame}, ptr {arena})"))
        self._stop_if_interrupted()
        self._do(f"br label %{head}")
        self._label(after)

    def _stop_if_interrupted(self) -> None:
        """End the program when another thread has set the flag: one load per step, which is in the cache."""
        flag = self._slot("%table", self.program.interruption)
        self._stop_if_failed(self._let(f"load volatile i32, ptr {flag}, align 4"))

    def _stop_if_failed(self, status: str) -> None:
        fine, failed = self._fresh(), self._fresh()
        self._do(f"br i1 {self._let(f'icmp eq i32 {status}, 0')}, label %{fine}, label %{failed}")
        self._label(failed)
        self._do("ret i32 1")
        self._label(fine)

    # --- branches and host calls ----------------------------------------------------------------

    def _branch(self, number: int, step: Branch) -> None:
        arena = self._temporary(self.plan.scratch[number]) if number in self.plan.scratch else "%arena"
        frame = self._frame(len(step.reads) - 1 + len(step.writes))
        self._fill(frame, [self._of(v) for v in (*step.reads[1:], *step.writes)])
        index = self._let(f"load i32, ptr {self._of(step.reads[0])}, align 4")
        labels = [self._fresh() for _ in step.blocks]
        after = self._fresh()
        # The number is clamped: below 0 the first block runs, beyond the end the last.
        low = self._let(f"icmp slt i32 {index}, 0")
        clamped = self._let(f"select i1 {low}, i32 0, i32 {index}")
        cases = " ".join(f"i32 {i}, label %{label}" for i, label in enumerate(labels[:-1]))
        self._do(f"switch i32 {clamped}, label %{labels[-1]} [ {cases} ]")
        for label, block, plan in zip(labels, step.blocks, self.plan.inner[number], strict=True):
            name = self._inner(block, plan)
            self._label(label)
            self._stop_if_failed(
                self._let(f"call i32 @{name}(ptr %pool, ptr %table, ptr {frame}, ptr {arena})")
            )
            self._do(f"br label %{after}")
        self._label(after)

    def _host_call(self, step: HostCall) -> None:
        operands = (*step.reads, *step.writes)
        self.num_args = max(self.num_args, len(operands))
        self._fill("%args", [self._of(v) for v in operands])
        callback = self._slot("%table", self.program.callback_slot(step))
        self._stop_if_failed(self._let(f"call i32 {callback}(ptr %args)"))
