"""Which kernels of a program reduce columns, and behind which kernel of rows each of them can.

A reduction joins a kernel that reads or makes the rows it reduces, as the gradients of a normalisation's
weight and bias join that of its input. The two become one phase.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from infini.compiler.llvm import columns as columns_, kernels
from infini.compiler.llvm.columns import Columns, Leader, Rider
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Phase
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.tile.program import Access, Kernel


@functools.lru_cache(maxsize=1024)
def find(kernel: Kernel, in_types: tuple[ArrayType, ...]) -> Columns | None:
    """How a kernel reduces columns row by row, if it does."""
    return columns_.find(kernel, in_types)


@functools.lru_cache(maxsize=1024)
def tasks(kernel: Kernel, in_types: tuple[ArrayType, ...], target: Target) -> tuple[TaskFunction, ...]:
    """Task functions of a kernel that reduces columns and nothing else."""
    found = find(kernel, in_types)
    assert found is not None
    count = len(in_types) + len(kernel.outputs)
    return columns_.emit([Rider(found, tuple(range(count)))], None, count, target, kernel.name)


@dataclass(slots=True)
class _Ride:
    """A kernel of rows and the reductions that go with it, by their numbers."""

    leader: int
    riders: list[int] = field(default_factory=list)


def phases(program: Program, target: Target) -> dict[int, Phase | None]:
    """Phases in place of equations, by number: None for what became a part of another phase."""
    return _Finder(program, target).run()


class _Finder:
    def __init__(self, program: Program, target: Target) -> None:
        self.equations, self.target = program.equations, target
        self.made = {v: i for i, e in enumerate(self.equations) for v in e.outputs}
        self.root: dict[Var, Var] = {}  # of reshapes: the array that has the elements
        self.readers: dict[Var, list[int]] = {}  # of a root
        self.late: set[Var] = set()  # what reductions make that go behind a kernel
        for number, equation in enumerate(self.equations):
            if equation.op.name == "reshape":
                self.root[equation.output] = self._root(equation.inputs[0])
                continue
            for var in equation.inputs:
                self.readers.setdefault(self._root(var), []).append(number)

    def _root(self, var: Var) -> Var:
        return self.root.get(var, var)

    def run(self) -> dict[int, Phase | None]:
        rides: dict[int, _Ride] = {}
        for number, equation in enumerate(self.equations):
            columns = self._columns(equation)
            if columns is None:
                continue
            leader = self._leader(number, columns)
            if leader is not None:
                rides.setdefault(leader, _Ride(leader)).riders.append(number)
                self.late.update(equation.outputs)
        found: dict[int, Phase | None] = {}
        for ride in rides.values():
            found.update(dict.fromkeys(ride.riders))
            found[ride.leader] = self._phase(ride)
        return found

    def _columns(self, equation: Equation) -> Columns | None:
        if equation.op.name != "kernel":
            return None
        return find(equation.attrs["kernel"], tuple(v.type for v in equation.inputs))

    # --- who leads ----------------------------------------------------------------------------

    def _leader(self, number: int, columns: Columns) -> int | None:
        """The kernel behind which a reduction goes."""
        inputs = [self._root(v) for v in self.equations[number].inputs]
        candidates = {self.made[v] for v in inputs if v in self.made}
        candidates |= {i for v in inputs for i in self.readers.get(v, ())}
        for candidate in sorted(candidates - {number}):
            equation = self.equations[candidate]
            if equation.op.name == "kernel" and self._can_follow(number, columns, candidate):
                return candidate
        return None

    def _can_follow(self, number: int, columns: Columns, candidate: int) -> bool:
        equation = self.equations[candidate]
        kernel: Kernel = equation.attrs["kernel"]
        if not _is_of_rows(kernel, columns.outer * columns.rows) or self._columns(equation) is not None:
            return False
        made = dict(zip(equation.outputs, kernel.stores, strict=True))
        read = {self._root(v): load for v, load in zip(equation.inputs, kernel.loads, strict=False)}
        shares = False
        for i, var in enumerate(self.equations[number].inputs):
            root, row = self._root(var), columns_.reads_row(columns, i)
            if root in made:
                if row is None or not _is_row(made[root], row):
                    return False
                shares |= row == columns.width
            elif root in self.late or self.made.get(root, -1) >= candidate:
                return False
            elif root in read:
                shares |= row == columns.width and _is_row(read[root], row)
        outputs = self.equations[number].outputs
        # What reduces earlier than the kernel it follows must not be wanted in between.
        early = [i for v in outputs for i in self.readers.get(v, ()) if i <= candidate]
        return shares and not early

    # --- the phase ----------------------------------------------------------------------------

    def _phase(self, ride: _Ride) -> Phase:
        leader = self.equations[ride.leader]
        kernel: Kernel = leader.attrs["kernel"]
        riders = [self.equations[i] for i in ride.riders]
        made = set(leader.outputs)
        # An alias that comes later is another name for what is there already.
        reads = list(leader.inputs)
        for rider in riders:
            reads += [self._named(v, ride.leader) for v in rider.inputs if self._root(v) not in made]
        writes = [*leader.outputs, *(v for rider in riders for v in rider.outputs)]
        places = iter(range(len(leader.inputs), len(reads)))
        first = len(reads) + len(leader.outputs)
        arguments = []
        for rider in riders:
            operands = [
                len(reads) + leader.outputs.index(self._root(v)) if self._root(v) in made else next(places)
                for v in rider.inputs
            ]
            arguments.append((*operands, *range(first, first + len(rider.outputs))))
            first += len(rider.outputs)
        functions = _tasks(
            kernel,
            tuple(v.type for v in leader.inputs),
            tuple((e.attrs["kernel"], tuple(v.type for v in e.inputs)) for e in riders),
            tuple(arguments),
            self.target,
        )
        read_later = {self._root(v) for rider in riders for v in rider.inputs}
        pairs = kernels.in_place_pairs(kernel, [v.type for v in leader.inputs])
        kept = tuple((i, j) for i, j in pairs if self._root(leader.inputs[i]) not in read_later)
        scratch = max(task.scratch_bytes for task in functions)
        return Phase(
            kernel.name,
            functions,
            tuple(reads),
            tuple(writes),
            kept,
            scratch_bytes=scratch,
            where=leader.where,
        )

    def _named(self, var: Var, number: int) -> Var:
        return var if self.made.get(var, -1) < number else self._root(var)


@functools.lru_cache(maxsize=1024)
def _tasks(
    kernel: Kernel,
    in_types: tuple[ArrayType, ...],
    riders: tuple[tuple[Kernel, tuple[ArrayType, ...]], ...],
    arguments: tuple[tuple[int, ...], ...],
    target: Target,
) -> tuple[TaskFunction, ...]:
    found = []
    for (rider, types), places in zip(riders, arguments, strict=True):
        columns = find(rider, types)
        assert columns is not None
        found.append(Rider(columns, places))
    num_outputs = len(kernel.outputs) + sum(len(rider.outputs) for rider, _ in riders)
    num_arguments = max(places[-1] for places in arguments) + 1
    assert num_arguments >= num_outputs
    leader_ns = kernels.kernel_ns(kernel, in_types, target)
    return columns_.emit(
        found, Leader(kernel, in_types), num_arguments, target, kernel.name, leader_ns=leader_ns
    )


def _is_of_rows(kernel: Kernel, rows: int) -> bool:
    """Whether program `i` of a kernel is what belongs to row `i`."""
    is_flat = all(len(access.offsets) == 1 for access in kernel.stores)
    return kernel.grid == (rows,) and not kernel.extents and is_flat and bool(kernel.stores)


def _is_row(access: Access, size: int) -> bool:
    """Whether program `i` touches the row `i` of an array with rows of so many elements, and no other."""
    if access.fill is not None or access.offsets != (0,) or access.grid_strides != ((size,),):
        return False
    return (access.tile, access.tile_strides) == (((size,), ((1,),)) if size > 1 else ((), ((),)))
