"""Which kernels of a program reduce columns, and behind which kernel of rows each of them can.

A reduction joins a kernel that reads or makes the rows it reduces, as the gradients of a normalisation's
weight and bias join that of its input. The two become one phase. Where rows are so wide that not all of them
stays in the cache, reductions of one array join each other instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from infini.compiler.llvm import by_rows, columns as columns_, crossing, kernels, schedule
from infini.compiler.llvm.by_rows import Leader, Rider
from infini.compiler.llvm.columns import Columns
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Phase
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.tile.program import Access, Kernel

MAX_ROW_BYTES: Final = 1 << 19  # of a row of all that a kernel reads and writes; more leaves the cache


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
    return by_rows.emit([Rider(found, tuple(range(count)))], None, count, target, kernel.name)


@dataclass(slots=True)
class _Ride:
    """Reductions that run together, and the kernel of rows they go behind if there is one, by number."""

    leader: int | None
    riders: list[int] = field(default_factory=list)

    @property
    def place(self) -> int:
        """The equation in whose place it is."""
        return self.leader if self.leader is not None else max(self.riders)


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
        rides: list[_Ride] = []
        for number, equation in enumerate(self.equations):
            columns = self._columns(equation)
            if columns is None:
                continue
            ride = self._found(number, columns, rides)
            if ride is not None:
                ride.riders.append(number)
                self.late.update(equation.outputs)
        found: dict[int, Phase | None] = {}
        for ride in rides:
            if ride.leader is not None or len(ride.riders) > 1:
                found.update(dict.fromkeys(ride.riders))
                found[ride.place] = self._phase(ride)
        return found

    def _found(self, number: int, columns: Columns, rides: list[_Ride]) -> _Ride | None:
        """The ride that a reduction can join."""
        leader = self._leader(number, columns)
        for ride in rides:
            if not all(self._is_like(columns, self.equations[i]) for i in ride.riders):
                continue
            if leader == ride.leader and (leader is not None or self._can_join(number, ride)):
                return ride
        if leader is not None and any(ride.leader == leader for ride in rides):
            return None  # with reductions of other rows
        rides.append(_Ride(leader))
        return rides[-1]

    def _can_join(self, number: int, ride: _Ride) -> bool:
        """Whether a reduction reads what others do that come before it, which can be made later."""
        mine = set(map(self._root, self.equations[number].inputs))
        shared = {self._root(v) for i in ride.riders for v in self.equations[i].inputs}
        made = [v for i in ride.riders for v in self.equations[i].outputs]
        first = min((i for v in made for i in self.readers.get(v, ())), default=number + 1)
        large = [v for v in mine & shared if v.type.size > self._most(number)]
        return bool(large) and first > number

    def _most(self, number: int) -> int:
        return max(v.type.size for v in self.equations[number].outputs)

    def _columns(self, equation: Equation) -> Columns | None:
        if equation.op.name != "kernel":
            return None
        return find(equation.attrs["kernel"], tuple(v.type for v in equation.inputs))

    def _is_like(self, columns: Columns, equation: Equation) -> bool:
        """Whether another reduction has as many rows of as many arrays."""
        other = self._columns(equation)
        assert other is not None
        return (columns.outer, columns.rows) == (other.outer, other.rows)

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
        width = columns.width * sum(a.type.dtype.itemsize for a in (*equation.inputs, *equation.outputs))
        if width > MAX_ROW_BYTES or not shares:
            return False
        plan = schedule.make_schedule(kernel.body)
        if crossing.find(kernel, [v.type for v in equation.inputs], plan, self.target) is not None:
            return False
        outputs = self.equations[number].outputs
        # What reduces earlier than the kernel it follows must not be wanted in between.
        early = [i for v in outputs for i in self.readers.get(v, ()) if i <= candidate]
        return not early

    # --- the phase ----------------------------------------------------------------------------

    def _phase(self, ride: _Ride) -> Phase:
        riders = [self.equations[i] for i in ride.riders]
        leader = None if ride.leader is None else self.equations[ride.leader]
        given = () if leader is None else leader.inputs
        made = () if leader is None else leader.outputs
        # An alias that comes later is another name for what is there already.
        reads = list(given)
        for rider in riders:
            reads += [self._named(v, ride.place) for v in rider.inputs if self._root(v) not in made]
        writes = [*made, *(v for rider in riders for v in rider.outputs)]
        places = iter(range(len(given), len(reads)))
        first = len(reads) + len(made)
        arguments = []
        for rider in riders:
            operands = [
                len(reads) + made.index(self._root(v)) if self._root(v) in made else next(places)
                for v in rider.inputs
            ]
            arguments.append((*operands, *range(first, first + len(rider.outputs))))
            first += len(rider.outputs)
        before = tuple(not any(self._root(v) in made for v in rider.inputs) for rider in riders)
        functions = _tasks(
            None if leader is None else _typed(leader),
            tuple(zip(map(_typed, riders), arguments, before, strict=True)),
            self.target,
        )
        kept: tuple[tuple[int, int], ...] = ()
        if leader is not None:
            both = zip(riders, before, strict=True)
            late = {v for rider, is_before in both for v in self._late(rider, is_before, leader)}
            pairs = [
                (i, j) for i, j in kernels.in_place_pairs(*_typed(leader)) if self._root(given[i]) not in late
            ]
            # What a reduction reads before may be overwritten as what the leader reads itself.
            again = range(len(given), len(reads))
            pairs += [(k, j) for i, j in pairs for k in again if self._root(reads[k]) is self._root(given[i])]
            kept = tuple(dict.fromkeys(pairs))
        scratch = max(task.scratch_bytes for task in functions)
        named = leader or riders[-1]
        return Phase(
            named.attrs["kernel"].name, functions, tuple(reads), tuple(writes), kept, scratch_bytes=scratch,
            where=named.where,
        )  # fmt: skip

    def _late(self, rider: Equation, is_before: bool, leader: Equation) -> Iterator[Var]:
        """What a reduction reads when the leader has run for that row."""
        columns = self._columns(rider)
        assert columns is not None
        loads = leader.attrs["kernel"].loads
        led = {self._root(v): load for v, load in zip(leader.inputs, loads, strict=False)}
        for i, var in enumerate(rider.inputs):
            root, row = self._root(var), columns_.reads_row(columns, i)
            is_row = row is not None and root in led and _is_row(led[root], row)
            if not (is_before and is_row):
                yield root

    def _named(self, var: Var, number: int) -> Var:
        return var if self.made.get(var, -1) < number else self._root(var)


_Typed: TypeAlias = tuple[Kernel, tuple[ArrayType, ...]]


def _typed(equation: Equation) -> _Typed:
    return equation.attrs["kernel"], tuple(v.type for v in equation.inputs)


@functools.lru_cache(maxsize=1024)
def _tasks(
    leader: _Typed | None, riders: tuple[tuple[_Typed, tuple[int, ...], bool], ...], target: Target
) -> tuple[TaskFunction, ...]:
    found = []
    for typed, arguments, is_before in riders:
        columns = find(*typed)
        assert columns is not None
        found.append(Rider(columns, arguments, is_before))
    count = found[-1].arguments[-1] + 1
    if leader is None:
        return by_rows.emit(found, None, count, target, riders[-1][0][0].name)
    leader_ns = kernels.kernel_ns(*leader, target)
    return by_rows.emit(found, Leader(*leader), count, target, leader[0].name, leader_ns=leader_ns)


def _is_of_rows(kernel: Kernel, rows: int) -> bool:
    """Whether program `i` of a kernel is what belongs to row `i`."""
    is_flat = all(len(access.offsets) == 1 for access in kernel.stores)
    return kernel.grid == (rows,) and not kernel.extents and is_flat and bool(kernel.stores)


def _is_row(access: Access, size: int) -> bool:
    """Whether program `i` touches the row `i` of an array with rows of so many elements, and no other."""
    if access.fill is not None or access.offsets != (0,) or access.grid_strides != ((size,),):
        return False
    return (access.tile, access.tile_strides) == (((size,), ((1,),)) if size > 1 else ((), ((),)))
