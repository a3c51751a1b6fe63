"""Kernels that read an array across the order in which they write: transposes, with what is fused to them.

An operand is read across when the elements that lie together in it belong to neighbouring programs. Blocks
of `lanes` programs by `lanes` elements of the tile are loaded as its vectors, transposed in registers, and
computed and stored as vectors of the tile. Where the tile or the number of programs is narrower than a
vector, the elements of all lie together in one of the arrays, and are dealt out or shuffled together.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import past_cache, registers, segments
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.evaluate import Evaluator, Operand
from infini.compiler.llvm.indexing import Index, c_strides
from infini.compiler.llvm.movement import make_task
from infini.compiler.llvm.schedule import Schedule
from infini.compiler.llvm.segments import MOVING
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I32, vector
from infini.core.ir import ArrayType, Var
from infini.tile.program import Access, Kernel

NARROW: Final = 8  # elements up to which a tile or a row of programs is dealt out instead of transposed
CHUNK: Final = 64  # neighbouring programs that are walked together
PANEL: Final = 128  # elements of the tile that these walk before they go on
TASK_NS: Final = 20_000.0  # aimed at per task
ALONE_NS: Final = 8_000.0  # below this one task does everything
BYTE_NS: Final = 0.06
ITEM_NS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Crossing:
    """What is read across.

    Args:
        dimension: of the grid, along which elements of the operands lie together.
        loads: numbers of these operands.
        lanes: of a vector, and rows of a block.
        form: "blocks" are transposed; of a narrow grid dimension elements are "dealt" out; of a "narrow" tile
            vectors run along the grid.
    """

    dimension: int
    loads: tuple[int, ...]
    lanes: int
    form: str


def find(kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule, target: Target) -> Crossing | None:
    """How a kernel reads across; None when it does not, or does more than computing element by element."""
    if len(plan.passes) != 1 or kernel.extents or not kernel.stores:
        return None
    only = plan.passes[0]
    if len(only.space) != 1 or only.reductions or only.kept or only.block is not None:
        return None
    (size,) = only.space
    for store, type_ in zip(kernel.stores, kernel.outputs, strict=True):
        if store.fill is not None or store.tile != (size,) or _flat(store, type_)[1] != (1,):
            return None
    if size == 1:
        return None
    return _narrow(kernel, in_types, size, target) or _crossed(kernel, in_types, size, target)


def _narrow(kernel: Kernel, in_types: Sequence[ArrayType], size: int, target: Target) -> Crossing | None:
    """A tile narrower than a vector, of which neighbouring programs store one after another."""
    if size > NARROW or any(load.fill is not None for load in kernel.loads):
        return None
    stores = [_flat(s, t)[0] for s, t in zip(kernel.stores, kernel.outputs, strict=True)]
    lanes = _lanes([*in_types[: len(kernel.loads)], *kernel.outputs], target)
    for dimension, count in enumerate(kernel.grid):
        if count >= lanes and all(grid[dimension] == size for grid in stores):
            return Crossing(dimension, (), lanes, "narrow")
    return None


def _lanes(types: Sequence[ArrayType], target: Target) -> int:
    itemsize = max(type_.dtype.itemsize for type_ in types)
    return min(4 * target.lanes // itemsize, 2 * target.lanes)


def _crossed(kernel: Kernel, in_types: Sequence[ArrayType], size: int, target: Target) -> Crossing | None:
    """Operands of which elements of neighbouring programs lie together."""
    if any(e.op.name in MOVING for e in kernel.body.equations):
        return None
    found: dict[int, list[int]] = {}
    for number, (load, type_) in enumerate(zip(kernel.loads, in_types, strict=False)):
        if load.tile != (size,) or load.fill is not None:
            continue
        grid, (step,) = _flat(load, type_)
        beside = [d for d, stride in enumerate(grid) if stride == 1 and kernel.grid[d] > 1]
        if abs(step) > 1 and beside:
            found.setdefault(beside[0], []).append(number)
    if not found:
        return None
    dimension = max(found, key=lambda d: len(found[d]))
    loads = tuple(found[dimension])
    steps = {_flat(kernel.loads[i], in_types[i])[1] for i in loads}
    count = kernel.grid[dimension]
    is_dealt = count <= NARROW and steps == {(count,)}
    lanes = _lanes([in_types[i] for i in loads], target)
    return Crossing(dimension, loads, lanes, "dealt" if is_dealt else "blocks")


def _flat(access: Access, type_: ArrayType) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Elements from program to program along each grid dimension, and from element to element of the tile."""
    strides = c_strides(type_.shape)
    grid, tile = (
        tuple(
            sum(s * row[i] for s, row in zip(strides, rows, strict=True))
            for i in range(len(rows[0]) if rows else 0)
        )
        for rows in (access.grid_strides, access.tile_strides)
    )
    return grid, tile


def emit(
    kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule, crossing: Crossing, program_ns: float
) -> TaskFunction:
    """Native code of a kernel that reads across; one of its programs takes `program_ns` to compute."""
    return _Emission(kernel, in_types, plan, crossing, program_ns).task()


class _Emission:
    def __init__(
        self,
        kernel: Kernel,
        in_types: Sequence[ArrayType],
        plan: Schedule,
        crossing: Crossing,
        program_ns: float,
    ) -> None:
        self.kernel, self.in_types, self.plan, self.crossing = kernel, in_types, plan, crossing
        self.size = kernel.stores[0].tile[0]
        self.count = kernel.grid[crossing.dimension]
        self.chunk = self.count
        if crossing.form == "blocks":
            self.chunk = min(CHUNK, self.count)
        elif crossing.form == "narrow":
            self.chunk = min(self.count, max(1, 4096 // self.size // crossing.lanes) * crossing.lanes)
        self.outer = tuple(
            -(-n // self.chunk) if d == crossing.dimension else n for d, n in enumerate(kernel.grid)
        )
        arrays = [in_types[i] for i in crossing.loads] + list(kernel.outputs)
        nbytes = self.size * sum(t.dtype.itemsize for t in arrays)
        item_ns = self.chunk * max(program_ns, nbytes * BYTE_NS) + ITEM_NS
        self.items = math.prod(self.outer)
        self.cost_ns = item_ns * self.items
        self.per_task = self.items if self.cost_ns < ALONE_NS else max(1, round(TASK_NS / item_ns))
        self.e: Evaluator
        self.stores: list[Operand] = []

    def task(self) -> TaskFunction:
        """The function."""
        num_arrays = len(self.in_types) + len(self.kernel.outputs)
        num_tasks = -(-self.items // self.per_task)
        name = "".join(c if c.isalnum() else "_" for c in self.kernel.name)[:40]
        return make_task(name, num_arrays, num_tasks, self.cost_ns, self._write)

    def _write(self, f: Function, pointers: list[Value], task: Value) -> None:
        kernel, params = self.kernel, self.kernel.body.params
        loads = [Operand(*item) for item in zip(pointers, self.in_types, kernel.loads, strict=False)]
        outs = pointers[len(self.in_types) :]
        self.stores = [Operand(*item) for item in zip(outs, kernel.outputs, kernel.stores, strict=True)]
        self.e = Evaluator(
            f,
            self.plan.definitions,
            kernel.grid,
            [0] * len(kernel.grid),
            dict(zip(params, loads, strict=False)),
            dict(kernel.body.consts),
            allocate=f.allocate,
        )
        self.e.lanes = self.crossing.lanes
        if self.crossing.form == "narrow":
            self.e.cuts = segments.Cuts(tuple(range(1, self.size)), segments.Lines(self.plan, None))
        first: Int = 0 if self.items == 1 else f.mul(task, self.per_task)
        stop: Int = f.add(first, self.per_task)
        if self.items % self.per_task:
            stop = f.minimum(stop, self.items)
        with contextlib.ExitStack() as branch:
            if self._may_stream():
                nbytes = self.crossing.lanes * max(t.dtype.itemsize for t in kernel.outputs)
                is_aligned = past_cache.can(f, outs, (), nbytes)
                with f.when(is_aligned):
                    self.e.streams = True
                    self._items(f, first, stop)
                    f.fence()
                self.e.streams = False
                is_other = f.binary("xor", is_aligned, f.constant(True, is_aligned.type))
                branch.enter_context(f.when(is_other))
            self._items(f, first, stop)

    def _may_stream(self) -> bool:
        """Whether stores pass the cache by: results are large, and all that is stored are whole vectors."""
        outputs, lanes = self.kernel.outputs, self.crossing.lanes
        if self.crossing.form == "narrow" or self.size % lanes or not past_cache.is_worth(outputs, lanes):
            return False
        return past_cache.are_vectors_aligned(self.kernel.stores, outputs, lanes)

    def _items(self, f: Function, first: Int, stop: Int) -> None:
        with f.loop(first, stop, runs=True) as loop:
            self.e.turn += 1
            self._item(f, 0 if self.items == 1 else loop.index)

    def _item(self, f: Function, item: Int) -> None:
        ids: list[Int] = []
        for n in reversed(self.outer[1:]):
            item, rest = f.divide(item, n)
            ids.append(rest if n > 1 else 0)
        ids = [*ids, item if self.outer[0] > 1 else 0][::-1]
        dimension = self.crossing.dimension
        chunk = ids[dimension]
        self.e.program_ids = ids
        for d, number in enumerate(ids):
            if d != dimension:
                self.e.registers[self._id(d)] = f.convert("trunc", f.integer(number), I32)
        if self.crossing.form == "dealt":
            for place, columns in self._pieces(f, 0, self.size, self.size):
                self._deal(f, place, columns)
            return
        first = f.mul(chunk, self.chunk)
        if self.crossing.form == "narrow":
            for place, rows in self._pieces(f, first, self.count, self.chunk):
                self._across(f, place, rows)
            return
        for left, right in self._panels(f):
            for row, rows in self._pieces(f, first, self.count, self.chunk):
                for column, columns in self._columns(f, left, right):
                    self._block(f, (row, rows), (column, columns))

    def _panels(self, f: Function) -> Iterator[tuple[Int, Int]]:
        """Ranges of columns that are walked for every block of rows before the next."""
        whole = self.size - self.size % PANEL
        if whole:
            with f.loop(0, whole, PANEL) as loop:
                start = loop.index if whole > PANEL else 0
                yield start, f.add(start, PANEL)
        if whole < self.size:
            yield whole, self.size

    def _columns(self, f: Function, left: Int, right: Int) -> Iterator[tuple[Int, int]]:
        """Vectors of a range of columns, with the number of elements that are there."""
        lanes = self.crossing.lanes
        rest = self.size % lanes if isinstance(right, int) and right == self.size else 0
        stop = f.add(right, -rest)
        if isinstance(left, Value) or isinstance(stop, Value) or left < stop:
            with f.loop(left, stop, lanes, runs=True) as loop:
                yield loop.index, lanes
        if rest:
            yield self.size - rest, rest

    def _id(self, dimension: int) -> Var:
        return self.kernel.body.params[len(self.kernel.loads) + dimension]

    def _pieces(self, f: Function, first: Int, total: int, length: int) -> Iterator[tuple[Int, int]]:
        """Pieces of a vector of the elements from `first` on, `length` of them or up to the end; each is
        yielded inside its loop or branch."""
        lanes = self.crossing.lanes
        rest = total % lanes
        if isinstance(first, int):
            first, stop = 0, total - rest
            if stop:
                with f.loop(0, stop, lanes) as loop:
                    yield (loop.index if stop > lanes else 0), lanes
            if rest:
                yield stop, rest
            return
        stop_at: Int = f.add(first, length)
        if total % length:
            stop_at = f.minimum(stop_at, total - rest)
        with f.loop(first, stop_at, lanes) as loop:
            yield loop.index, lanes
        if rest:
            with f.when(f.compare("eq", f.integer(stop_at), f.integer(total - rest))):
                yield total - rest, rest

    # --- blocks -----------------------------------------------------------------------------------

    def _block(self, f: Function, rows: tuple[Int, int], columns: tuple[Int, int]) -> None:
        """The programs `rows` at the elements `columns`; both are a start and a number."""
        e, lanes = self.e, self.crossing.lanes
        (row, num_rows), (column, num_columns) = rows, columns
        mask = None if num_rows == lanes else f.first_lanes(num_rows, lanes)
        crossed: list[tuple[Var, list[Value]]] = []
        e.program_ids[self.crossing.dimension] = row
        for number in self.crossing.loads:
            param = self.kernel.body.params[number]
            operand = e.operands[param]
            pointer, step = e.place(operand, (Index(column, 1),))
            element = registers.memory_element(operand.type.dtype)
            type_ = vector(element, lanes)
            vectors = []
            for i in range(num_columns):
                at = f.at(pointer, i * step, element)
                nothing = f.constant(0, type_)
                vectors.append(f.load(at, type_) if mask is None else f.masked_load(at, mask, nothing))
            vectors += [Value("poison", type_, f.root)] * (lanes - num_columns)
            crossed.append((param, transposed(f, vectors)))
        e.mask = None if num_columns == lanes else f.first_lanes(num_columns, lanes)
        for r in range(num_rows):
            self._row(f, f.add(row, r), {param: vectors[r] for param, vectors in crossed}, Index(column, 1))
        e.mask = None

    def _row(self, f: Function, row: Int, known: dict[Var, Value], index: Index) -> None:
        """Compute and store one vector of the tile of a program; `known` are operands as memory has them."""
        e = self.e
        e.program_ids[self.crossing.dimension] = row
        e.registers[self._id(self.crossing.dimension)] = f.convert("trunc", f.integer(row), I32)
        for param, bits in known.items():
            e.registers[param] = registers.from_memory(f, bits, param.type.dtype)
        e.turn += 1
        values = [e.vector(result, (index,)) for result in self.kernel.body.results]
        for operand, value in zip(self.stores, values, strict=True):
            e.store(operand, (index,), value)

    # --- narrow ---------------------------------------------------------------------------------

    def _deal(self, f: Function, column: Int, num_columns: int) -> None:
        """All programs at a vector of elements, which lie in the operand one after another."""
        e, lanes = self.e, self.crossing.lanes
        dealt: list[tuple[Var, list[Value]]] = []
        e.program_ids[self.crossing.dimension] = 0
        for number in self.crossing.loads:
            param = self.kernel.body.params[number]
            pointer, _ = e.place(e.operands[param], (Index(column, 1),))
            parts = self._lying_together(f, pointer, param, self.count, num_columns * self.count)
            numbers = [[i * self.count + r for i in range(lanes)] for r in range(self.count)]
            dealt.append((param, [picked(f, parts, places) for places in numbers]))
        e.mask = None if num_columns == lanes else f.first_lanes(num_columns, lanes)
        for r in range(self.count):
            self._row(f, r, {param: vectors[r] for param, vectors in dealt}, Index(column, 1))
        e.mask = None

    def _across(self, f: Function, row: Int, num_rows: int) -> None:
        """A vector of programs with all their elements, which lie in the results one after another."""
        e, lanes, size = self.e, self.crossing.lanes, self.size
        dimension = self.crossing.dimension
        e.program_ids[dimension], e.lane_dimension = row, dimension
        first = f.splat(f.convert("trunc", f.integer(row), I32), lanes)
        e.registers[self._id(dimension)] = f.binary("add", first, f.lane_numbers(first.type))
        is_moved = any(equation.op.name in MOVING for equation in self.kernel.body.equations)
        known: list[tuple[Var, list[Value]]] = []
        for param, load, type_ in zip(
            self.kernel.body.params, self.kernel.loads, self.in_types, strict=False
        ):
            grid, tile = _flat(load, type_)
            if load.tile == (size,) and tile == (1,) and grid[dimension] == size and not is_moved:
                pointer, _ = e.place(e.operands[param], (Index(0, 0),))
                parts = self._lying_together(f, pointer, param, size, num_rows * size)
                orders = [[i * size + t for i in range(lanes)] for t in range(size)]
                known.append((param, [picked(f, parts, order) for order in orders]))
        e.mask = None if num_rows == lanes else f.first_lanes(num_rows, lanes)
        results: list[list[Value]] = []
        for t in e.segments(size):
            for param, vectors in known:
                e.registers[param] = registers.from_memory(f, vectors[t[0]], param.type.dtype)
            results.append([e.vector(result, (Index(t[0]),)) for result in self.kernel.body.results])
        e.mask, e.lane_dimension = None, None
        for operand, values in zip(self.stores, zip(*results, strict=True), strict=True):
            dtype = operand.type.dtype
            bits = [registers.to_memory(f, value, dtype) for value in values]
            pointer, _ = e.place(operand, (Index(0),))
            for j in range(-(-num_rows * size // lanes)):
                order = [divmod(j * lanes + i, size) for i in range(lanes)]
                vector_ = picked(f, bits, [t * lanes + program for program, t in order])
                at = f.at(pointer, j * lanes, vector_.type.element)
                active = num_rows * size - j * lanes
                if active < lanes:
                    f.masked_store(vector_, at, f.first_lanes(active, lanes))
                else:
                    f.store(vector_, at)

    def _lying_together(
        self, f: Function, pointer: Value, param: Var, count: int, num_elements: int
    ) -> list[Value]:
        """`count` vectors from memory, of which `num_elements` elements are there."""
        lanes = self.crossing.lanes
        element = registers.memory_element(param.type.dtype)
        type_ = vector(element, lanes)
        found = []
        for j in range(count):
            active = num_elements - j * lanes
            at = f.at(pointer, j * lanes, element)
            if active >= lanes:
                found.append(f.load(at, type_))
            elif active > 0:
                found.append(f.masked_load(at, f.first_lanes(active, lanes), f.constant(0, type_)))
            else:
                found.append(Value("poison", type_, f.root))
        return found


def transposed(f: Function, rows: Sequence[Value]) -> list[Value]:
    """The columns of as many vectors as they have lanes, by perfect shuffles of their halves."""
    count = len(rows)
    half = count // 2
    low = [i // 2 + (count if i % 2 else 0) for i in range(count)]
    high = [i + half for i in low]
    vectors = list(rows)
    for _ in range(count.bit_length() - 1):
        pairs = [(vectors[i], vectors[i + half]) for i in range(half)]
        vectors = [f.shuffle(x, y, lanes) for x, y in pairs for lanes in (low, high)]
    return vectors


def picked(f: Function, parts: Sequence[Value], places: Sequence[int]) -> Value:
    """The vector of elements by number, of those of several vectors one after another."""
    lanes = parts[0].type.lanes
    wanted = [divmod(place, lanes) for place in places]
    used = sorted({part for part, _ in wanted})
    result = parts[used[0]]
    here = {i: lane for i, (part, lane) in enumerate(wanted) if part == used[0]}
    if len(used) == 1:
        return f.shuffle(result, None, [here[i] for i in range(lanes)])
    for number, part in enumerate(used[1:]):
        others = {i: lanes + lane for i, (p, lane) in enumerate(wanted) if p == part}
        kept = here if number == 0 else {i: i for i, (p, _) in enumerate(wanted) if p in used[: number + 1]}
        result = f.shuffle(result, parts[part], [{**kept, **others}.get(i, 0) for i in range(lanes)])
    return result
