"""From a kernel to native code: tasks, the loop over programs of a task, and the passes of the body.

The grid is folded where that is free: a kernel whose body only computes elementwise over a rank-1 tile runs
as one long loop per task. The number of programs per task follows from the estimated cost, so it depends on
shapes only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infini.compiler.llvm import blocks, crossing, nests, past_cache, schedule, segments
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.evaluate import Bound, Evaluator, Operand
from infini.compiler.llvm.indexing import c_strides
from infini.compiler.llvm.schedule import Schedule
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I32, I64, PTR
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.tile.program import Access, Kernel

TASK_NS = 20_000.0  # aimed at per task of a long phase
SHORT_TASK_NS = 4_000.0  # least of a short one
FEW_TASKS = 8  # that a few threads share so that they end at about the same time
ALONE_NS = 8_000.0  # below this one task does everything
MAX_TASKS = 1 << 16
MAX_STACK_BYTES = 384 << 10  # of buffers; a thread of the system may have half a megabyte
INSTRUCTION_NS = 0.3  # of one vector instruction
BYTE_NS = 0.02  # of memory traffic, between the last-level cache and memory
PROGRAM_NS = 4.0


def emit_kernel(kernel: Kernel, in_types: Sequence[ArrayType], target: Target) -> TaskFunction:
    """Native code of a kernel.

    Args:
        kernel: the kernel; its operands are the loads, then the extents.
        in_types: types of the operands.
        target: processor to make code for.

    Returns:
        One phase, whose `args` are the operands and then the results.

    Raises:
        LoweringError: the body has an operation or dtype that the emitter does not know.
    """
    plan = schedule.make_schedule(kernel.body)
    across = crossing.find(kernel, in_types, plan, target)
    if across is not None and all(kernel.grid):
        return crossing.emit(kernel, in_types, plan, across, _program_cost(kernel, in_types, plan, target))
    layout = _choose_tasks(kernel, in_types, plan, target)
    emission = _Emission(layout, in_types, plan, target)
    text = emission.write()
    name = f"{_symbol(kernel.name)}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    scratch = emission.slot_bytes * layout.num_tasks
    declares = frozenset(emission.f.declares)
    return TaskFunction(
        name, text.replace("@NAME@", name), declares, layout.num_tasks, scratch, layout.cost_ns
    )


def emit_program(
    f: Function,
    kernel: Kernel,
    in_types: Sequence[ArrayType],
    target: Target,
    *,
    pointers: Sequence[Value],
    program: Int,
    allocate: Callable[[int], Value],
) -> None:
    """Write one program of a kernel into a function.

    Args:
        f: the function.
        kernel: the kernel.
        in_types: types of the operands.
        target: processor to make code for.
        pointers: the operands, then the results.
        program: number of the program.
        allocate: memory of the task for a buffer of so many bytes.
    """
    plan = schedule.make_schedule(kernel.body)
    layout = _Layout(kernel, 1, kernel.num_programs, 0.0)
    emission = _Emission(layout, in_types, plan, target, f, allocate)
    emission.program(pointers, program_ids(f, kernel.grid, program))


def emit_piece(
    f: Function,
    kernel: Kernel,
    in_types: Sequence[ArrayType],
    target: Target,
    *,
    pointers: Sequence[Value],
    ids: Sequence[Int],
    length: int,
) -> None:
    """Write one program of an elementwise kernel whose tile is longer than the body says.

    Args:
        f: the function.
        kernel: the kernel; the last dimension of its grid cuts `length` elements into tiles.
        in_types: types of the operands.
        target: processor to make code for.
        pointers: the operands, then the results.
        ids: number of the program along each dimension of the grid.
        length: elements of all tiles along the last dimension; the last one may be shorter.
    """
    plan = schedule.make_schedule(kernel.body)
    layout = _Layout(kernel, 1, kernel.num_programs, 0.0, length)
    _Emission(layout, in_types, plan, target, f, f.allocate).program(pointers, list(ids))


def program_ids(f: Function, grid: Sequence[int], program: Int) -> list[Int]:
    """Number of a program along each grid dimension, the last one running fastest."""
    ids: list[Int] = []
    for size in reversed(grid[1:]):
        program, rest = f.divide(program, size)
        ids.append(rest if size > 1 else 0)
    if grid:
        ids.append(program)
    return ids[::-1]


def kernel_ns(kernel: Kernel, in_types: Sequence[ArrayType], target: Target) -> float:
    """Estimated nanoseconds of a kernel on one thread."""
    return _kernel_ns(kernel, tuple(in_types), target)


@functools.lru_cache(maxsize=1024)
def _kernel_ns(kernel: Kernel, in_types: tuple[ArrayType, ...], target: Target) -> float:
    plan = schedule.make_schedule(kernel.body)
    return _program_cost(kernel, in_types, plan, target) * kernel.num_programs


def task_ns(total_ns: float) -> float:
    """Nanoseconds aimed at per task of a phase that takes so many on one thread."""
    return min(TASK_NS, max(SHORT_TASK_NS, total_ns / FEW_TASKS))


def in_place_pairs(kernel: Kernel, in_types: Sequence[ArrayType]) -> tuple[tuple[int, int], ...]:
    """Pairs (operand, result) that may share memory.

    Each program reads every element of the operand that it overwrites before it does, and no other program
    reads it. That holds for the array as this operand; an array that is passed as several operands may be
    shared with a result that makes a pair with each of them.
    """
    return _in_place_pairs(kernel, tuple(in_types))


@functools.lru_cache(maxsize=1024)
def _in_place_pairs(kernel: Kernel, in_types: tuple[ArrayType, ...]) -> tuple[tuple[int, int], ...]:
    plan = schedule.make_schedule(kernel.body)
    last_read: dict[int, int] = {}
    last_moved: dict[int, int] = {}  # and at another index than that of the result it takes part in
    written: dict[int, int] = {}
    for number, p in enumerate(plan.passes):
        reads, moved = schedule.read_params(p, plan), schedule.moved_params(p, plan)
        last_read.update((i, number) for i, param in enumerate(kernel.body.params) if param in reads)
        last_moved.update((i, number) for i, param in enumerate(kernel.body.params) if param in moved)
        written.update(dict.fromkeys(p.stores, number))
    pairs = []
    for i, (load, type_) in enumerate(zip(kernel.loads, in_types, strict=False)):
        for j, (store, out) in enumerate(zip(kernel.stores, kernel.outputs, strict=True)):
            if type_.shape != out.shape or type_.dtype.itemsize != out.dtype.itemsize:
                continue
            if last_read.get(i, -1) > written[j]:
                continue
            is_same_map = dataclasses.replace(load, fill=None) == dataclasses.replace(store, fill=None)
            is_point = math.prod(plan.passes[written[j]].space) <= segments.POINT and _lies_in(load, store)
            moved_until = last_moved.get(i, -1)
            if (is_same_map and moved_until < written[j]) or (is_point and moved_until <= written[j]):
                pairs.append((i, j))
    return tuple(pairs)


def _lies_in(load: Access, store: Access) -> bool:
    """Whether each program loads only what it stores, in arrays of one dimension."""
    is_flat = len(load.offsets) == 1 and load.grid_strides == store.grid_strides
    if not is_flat or load.fill is not None or store.fill is not None:
        return False
    return _tile_places(load) <= _tile_places(store)


def _tile_places(access: Access) -> set[int]:
    """Where the elements of the first program's tile lie."""
    steps = [
        [i * step for i in range(n)] for n, step in zip(access.tile, access.tile_strides[0], strict=True)
    ]
    return {access.offsets[0] + sum(place) for place in itertools.product(*steps)}


def _symbol(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)[:40]


@dataclass(frozen=True, slots=True)
class _Layout:
    """A kernel with its tasks: task `t` runs programs from `t * programs_per_task` on.

    `chunked` is the length of the whole first tile dimension when it was folded, so the last chunk may be
    shorter.
    """

    kernel: Kernel
    num_tasks: int
    programs_per_task: int
    cost_ns: float
    chunked: int | None = None


def _choose_tasks(kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule, target: Target) -> _Layout:
    programs = kernel.num_programs
    if programs == 0 or all(t.size == 0 for t in kernel.outputs):
        return _Layout(kernel, 0, 1, 0.0)
    cost = _program_cost(kernel, in_types, plan, target)
    total = cost * programs
    if _can_fold(kernel, plan):
        return _fold(kernel, total, target)
    per_task = _programs_per_task(programs, total)
    return _Layout(kernel, -(-programs // per_task), per_task, total)


def _programs_per_task(programs: int, total_ns: float) -> int:
    if total_ns < ALONE_NS:
        return programs
    return max(1, round(programs * task_ns(total_ns) / total_ns), -(-programs // MAX_TASKS))


def _program_cost(kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule, target: Target) -> float:
    """Estimated nanoseconds of one program."""
    cost = PROGRAM_NS
    for p, weight in zip(plan.passes, plan.weights, strict=True):
        size = ArrayType(p.space, dtypes.int8).size
        if p.block is not None:
            cost += size * 64 * INSTRUCTION_NS / target.lanes
        else:
            cost += (weight + 2) * max(1.0, size / target.lanes) * INSTRUCTION_NS
    arrays = (*in_types[: len(kernel.loads)], *kernel.outputs)
    for access, type_ in zip((*kernel.loads, *kernel.stores), arrays, strict=True):
        # A tile that is the same for every program stays in the cache.
        is_shared = not any(any(row) for row in access.grid_strides)
        cost += 0.0 if is_shared else ArrayType(access.tile, type_.dtype).nbytes * BYTE_NS
    return cost


def is_elementwise(kernel: Kernel, plan: Schedule) -> bool:
    """Whether a kernel computes element by element, over a tile of one dimension that may have any length."""
    if len(plan.passes) != 1 or kernel.extents or not kernel.grid:
        return False
    only = plan.passes[0]
    if len(only.space) != 1 or only.reductions or only.block is not None or only.kept:
        return False
    ids = set(kernel.body.params[len(kernel.loads) :])
    if any(
        e.op.name in (schedule.VIEWS | {"gather"}) - {"broadcast_in_dim"} or ids & set(e.inputs)
        for e in kernel.body.equations
    ):
        return False
    if any(not v.type.shape and v in ids for v in kernel.body.results):
        return False
    return all(access.tile in ((), only.space) for access in (*kernel.loads, *kernel.stores))


def _can_fold(kernel: Kernel, plan: Schedule) -> bool:
    """Whether programs along the last grid dimension continue each other's tile, so together they are one
    longer tile."""
    if not is_elementwise(kernel, plan):
        return False
    (size,) = plan.passes[0].space
    return all(
        grid_row[-1] == (size * tile_row[0] if access.tile == (size,) else 0)
        for access in (*kernel.loads, *kernel.stores)
        for grid_row, tile_row in zip(access.grid_strides, access.tile_strides, strict=True)
    )


def _fold(kernel: Kernel, total_ns: float, target: Target) -> _Layout:
    """The kernel with its last grid dimension joined to the tile and cut into chunks of one task or less."""
    tile = next(a.tile[0] for a in kernel.stores)
    *outer, last = kernel.grid
    length = tile * last
    num_outer = kernel.num_programs // last
    unit = target.lanes * 4
    chunk = length
    if total_ns >= ALONE_NS:
        wanted = max(1, round(task_ns(total_ns) / (total_ns / (length * num_outer))))
        if wanted < length:
            chunk = max(unit, -(-wanted // unit) * unit)
    chunks = -(-length // chunk)

    def widen(access: Access) -> Access:
        if access.tile == ():
            return access
        rows = tuple(
            (*grid_row[:-1], chunk * tile_row[0])
            for grid_row, tile_row in zip(access.grid_strides, access.tile_strides, strict=True)
        )
        return dataclasses.replace(access, tile=(chunk,), grid_strides=rows)

    folded = dataclasses.replace(
        kernel,
        grid=(*outer, chunks),
        loads=tuple(map(widen, kernel.loads)),
        stores=tuple(map(widen, kernel.stores)),
    )
    programs = num_outer * chunks
    per_task = _programs_per_task(programs, total_ns)
    return _Layout(folded, -(-programs // per_task), per_task, total_ns, length)


class _Emission:
    """Writes the function of a kernel."""

    def __init__(
        self,
        layout: _Layout,
        in_types: Sequence[ArrayType],
        plan: Schedule,
        target: Target,
        f: Function | None = None,
        allocate: Callable[[int], Value] | None = None,
    ) -> None:
        self.layout, self.plan, self.target = layout, plan, target
        self.kernel = layout.kernel
        self.in_types = in_types
        self.f = f or Function("@NAME@", [(PTR, "args"), (I64, "task")])
        self.allocate = allocate or self._allocate
        self.stack_bytes = 0
        self.streams = False  # whether stores pass the cache by
        self.parts = 0  # of the grid that have been written
        self.slot_bytes = 0  # of scratch memory that each task has for itself

    def write(self) -> str:
        """The text, with @NAME@ for its symbol."""
        f, kernel, layout = self.f, self.kernel, self.layout
        if layout.num_tasks == 0:
            return f.finish()
        arrays = [*self.in_types, *kernel.outputs]
        pointers = [
            f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(len(arrays))
        ]
        with contextlib.ExitStack() as branch:
            if self._may_stream():
                vector_bytes = self.target.lanes * max(t.dtype.itemsize for t in kernel.outputs)
                operands = pointers[: len(self.in_types)]
                can_stream = past_cache.can(f, pointers[len(operands) :], operands, vector_bytes)
                with f.when(can_stream):
                    self.streams = True
                    self._task(pointers)
                    f.fence()  # once for the task: it costs as much as a row of some hundred elements
                self.streams = False
                cannot = f.binary("xor", can_stream, f.constant(True, can_stream.type))
                branch.enter_context(f.when(cannot))
            self._task(pointers)
        return f.finish().replace("@SLOT@", str(self.slot_bytes))

    def _task(self, pointers: Sequence[Value]) -> None:
        """Write the programs of a task."""
        f, kernel, layout = self.f, self.kernel, self.layout
        per_task, programs = layout.programs_per_task, kernel.num_programs
        with contextlib.ExitStack() as regions:
            program: Int = f.parameters[1] if layout.num_tasks > 1 else 0
            if per_task > 1 and programs > 1:
                first = f.mul(program, per_task)
                stop: Int = f.add(first, per_task)
                if programs % per_task:
                    stop = f.minimum(stop, programs)
                program = regions.enter_context(f.loop(first, stop, runs=True)).index
            ids = program_ids(f, kernel.grid, program)
            for dimension, rows, operand in kernel.extents:
                extent = f.load(pointers[operand], I32, is_invariant=True)
                start = f.mul(ids[dimension], rows)
                wide = f.convert("sext", extent, I64)
                regions.enter_context(f.when(f.compare("slt", f.integer(start), wide)))
            self.program(pointers, ids)

    def _may_stream(self) -> bool:
        """Whether stores pass the cache by where addresses allow."""
        kernel, lanes = self.kernel, self.target.lanes
        if not past_cache.is_worth(kernel.outputs, lanes):
            return False
        # Loops that are cut begin anywhere.
        is_whole = segments.cuts(kernel, self.in_types, self.plan) is None
        return is_whole and past_cache.are_vectors_aligned(kernel.stores, kernel.outputs, lanes)

    def program(self, pointers: Sequence[Value], ids: list[Int]) -> None:
        """Write one program, given pointers to operands and results."""
        in_types, kernel = self.in_types, self.kernel
        loads = [Operand(*item) for item in zip(pointers, in_types, kernel.loads, strict=False)]
        results = pointers[len(in_types) :]
        stores = [Operand(*item) for item in zip(results, kernel.outputs, kernel.stores, strict=True)]
        self._programs(ids, loads, stores)

    def _allocate(self, nbytes: int) -> Value:
        """Memory of a task: on the stack while it is small, then a part of the task's slot in the scratch
        memory."""
        rounded = -(-nbytes // 64) * 64
        if self.stack_bytes + rounded <= MAX_STACK_BYTES:
            self.stack_bytes += rounded
            return self.f.allocate(nbytes)
        f = self.f
        offset, self.slot_bytes = self.slot_bytes, self.slot_bytes + rounded
        number = len(self.in_types) + len(self.kernel.outputs)
        scratch = f.load(f.at(f.parameters[0], number, "ptr"), PTR, is_invariant=True)
        slot = f.pure(f"mul i64 {f.parameters[1]}, @SLOT@", I64, f.parameters[1])
        return f.at(f.at(scratch, slot, "i8"), offset, "i8")

    def _programs(self, ids: list[Int], loads: list[Operand], stores: list[Operand]) -> None:
        """The body, once for each part of the grid in which conditions are constant."""
        found = segments.grid_cuts(self.kernel, self.in_types, self.plan)
        if found is None or self.layout.chunked is not None:
            self._body(ids, loads, stores)
            return
        f, number, size = self.f, ids[found.dimension], self.kernel.grid[found.dimension]
        for first, stop in itertools.pairwise([0, *found.places, size]):
            is_here = f.compare("ult", f.integer(f.sub(number, first)), f.integer(stop - first))
            with f.when(is_here):
                self._body(ids, loads, stores, (found, range(first, stop)))

    def _body(
        self,
        ids: list[Int],
        loads: list[Operand],
        stores: list[Operand],
        part: tuple[segments.Cuts, range] | None = None,
    ) -> None:
        """The body; `part` are cuts of the grid and the programs between them that it is for."""
        f, kernel = self.f, self.kernel
        params = kernel.body.params
        operands = dict(zip(params, loads, strict=False))
        constants = dict(kernel.body.consts)
        evaluator = Evaluator(
            f, self.plan.definitions, kernel.grid, ids, operands, constants, allocate=self.allocate
        )
        evaluator.streams = self.streams
        for var, number in zip(params[len(loads) :], ids, strict=True):
            evaluator.registers[var] = f.convert("trunc", f.integer(number), I32)
        if part is not None:
            cuts, programs = part
            evaluator.programs[cuts.dimension] = programs
            evaluator.facts.append((cuts.lines, programs))
            self.parts += 1
            evaluator.turn = self.parts << 16
        self._passes(evaluator, self.plan, stores, self._limit(ids, evaluator))

    def _passes(
        self,
        evaluator: Evaluator,
        plan: Schedule,
        stores: Sequence[nests.StoreTarget],
        limit: Int | None = None,
    ) -> None:
        """Write the passes of a schedule one after the other."""
        for p, weight in zip(plan.passes, plan.weights, strict=True):
            if p.block is not None and p.block.op.name == "scan":
                blocks.emit_scan(evaluator, p.block, self._passes)
            elif p.block is not None:
                blocks.emit_dot(evaluator, p.block, self.target.lanes)
            else:
                if self.layout.chunked is not None:
                    p = dataclasses.replace(p, space=self.kernel.stores[0].tile)
                shape = nests.layout(p, weight, self.target.lanes, functools.partial(self._contiguity, p))
                if limit is None and plan is self.plan:
                    evaluator.cuts = segments.cuts(self.kernel, self.in_types, plan)
                nests.Nest(evaluator, p, shape, stores, plan.body.results, limit).emit()

    def _limit(self, ids: list[Int], evaluator: Evaluator) -> Int | None:
        """Elements of a folded tile that are there: before the end of the last chunk, inside every store."""
        layout, kernel, f = self.layout, self.kernel, self.f
        if layout.chunked is None:
            return None
        (chunk,) = kernel.stores[0].tile
        limit: Value | None = None
        if layout.chunked % chunk:
            limit = f.minimum(f.sub(layout.chunked, f.mul(ids[-1], chunk)), chunk)
        bounds = self._common_bounds()
        evaluator.guaranteed = frozenset(bounds)
        for bound in bounds:
            base: Int = bound.offset
            for number, factor in zip(ids, bound.grid_strides, strict=True):
                base = f.add(base, f.mul(number, factor))
            limit = f.minimum(f.sub(bound.size, base), chunk if limit is None else limit)
        return limit

    def _common_bounds(self) -> list[Bound]:
        """Upper bounds of contiguous dimensions that every store has: nothing beyond them is needed."""
        common: set[Bound] | None = None
        for access, type_ in zip(self.kernel.stores, self.kernel.outputs, strict=True):
            if access.fill is None:
                return []
            own = {
                Bound(size, access.offsets[d], access.grid_strides[d], access.tile_strides[d])
                for d, size in enumerate(type_.shape)
                if access.tile_strides[d] == (1,)
                and access.offsets[d] >= 0
                and all(factor >= 0 for factor in access.grid_strides[d])
            }
            common = own if common is None else common & own
        return sorted(common or (), key=lambda bound: (bound.size, bound.offset))

    def _contiguity(self, p: schedule.Pass, d: int) -> int:
        """How many accesses of the shape of a pass are contiguous or constant along one of its dimensions."""
        score = 0
        arrays = [
            *zip(self.kernel.loads, self.in_types, strict=False),
            *zip(self.kernel.stores, self.kernel.outputs, strict=True),
        ]
        for access, type_ in arrays:
            if access.tile == p.space:
                factor = sum(
                    s * row[d] for s, row in zip(c_strides(type_.shape), access.tile_strides, strict=True)
                )
                score += 2 if factor == 1 else 1 if factor == 0 else 0
        return score
