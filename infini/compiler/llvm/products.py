"""Which kernels of a program run on the tiles of the matrix products that they read.

A kernel that needs a product element by element, or row by row, becomes one phase with it: a task computes a
tile and runs the kernel on it while it is in the cache, and the product itself is only written to memory when
something else reads it. Several products of equal shape that one kernel reads, as the gate of a feed-forward
layer, are computed by the same task.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import blocking, epilogues, gemm, kernels, product_tasks, product_windows, wake
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.epilogues import Kind, Pieces, Programs
from infini.compiler.llvm.product_tasks import Product
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.passes import panels
from infini.compiler.steps import Phase
from infini.core import config
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.tile.program import Kernel

STACK_BYTES: Final = 320 << 10  # of the copies and tiles of a task; a kernel may need some more
MAX_ROW_BYTES: Final = 768 << 10  # of a packed depth block of whole rows, kept in the second-level cache
MIN_ROW_REGISTERS: Final = 2  # register blocks along the rows of a tile
ENOUGH_TASKS: Final = 8
MAX_WIDE_BYTES: Final = 1 << 22  # of a packed operand that every tile of whole rows walks
# Of arrays that a kernel walks beside a tile of some columns, but for one. Larger ones come from far: a
# processor fetches ahead along arrays, and less so along pieces of rows.
MAX_FAR_BYTES: Final = 1 << 20
MAX_EXTRA_BYTES: Final = 1 << 17  # that may be alive longer because a product is computed later
# That several products need to be packed at once, beyond what they save as their results are not stored.
MAX_EXTRA_PACKED_BYTES: Final = 1 << 20
# From which size of its second operand on a product that is read in windows is rather computed window by
# window: each task then needs some of the columns, where tiles of whole rows need all of them.
MIN_WINDOWED_BYTES: Final = 1 << 19


def phases(
    program: Program, target: Target, joined: Mapping[int, Phase | None], writable: Collection[int] = ()
) -> dict[int, Phase | None]:
    """Phases in place of equations, by number: None for what became a part of another phase.

    Args:
        program: program in kernels.
        target: processor to make code for.
        joined: phases that there are already; their equations are left alone.
        writable: parameters that results may replace.
    """
    if config.get("no_fuse") or config.get("memory_budget"):
        return {}  # within a budget kernels may be repeated, products are not
    return _Finder(program, target, joined, writable).run()


def plan_of(equation: Equation, target: Target) -> Plan | None:
    """The blocks of a product; None when it is not computed in blocks."""
    if equation.op.name not in ("dot", "packed_dot") or not equation.output.type.size:
        return None
    attrs = equation.attrs
    spec, dtype = attrs["spec"], attrs["dtype"]
    if equation.op.name == "packed_dot":
        x, y = panels.logical_types(equation)
        packed = gemm.Panels(attrs["operand"], *attrs["tile"])
        return gemm.blocked_panels(x, y, spec=spec, dtype=dtype, panels=packed, target=target)
    x, y = (v.type for v in equation.inputs)
    return gemm.blocked(x, y, spec=spec, dtype=dtype, target=target)


@dataclass(frozen=True, slots=True)
class _Form:
    """A way to compute equations and the kernel behind them as products and a kernel.

    Args:
        kernel: the kernel.
        in_types: types of its operands.
        tiles: of each operand, which product it is, or None.
        plans: blocks of the products.
        members: of each product, which of the equations it computes, or some columns of.
        starts: of each product, elements of its second operand before its first column.
    """

    kernel: Kernel
    in_types: tuple[ArrayType, ...]
    tiles: tuple[int | None, ...]
    plans: tuple[Plan, ...]
    members: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Products and the kernel behind them.

    Args:
        kernel: number of the equation.
        members: numbers of the equations that are products.
        place: the equation in whose place all of it is computed.
        form: the products that are computed.
        kept: of each product, whether its result is an array: something else needs it, or tiles are large.
        under: of each product, the result of the kernel in whose memory it is until the kernel has run; None
            where it is kept, or in memory of the task.
        kind: how the kernel runs on tiles.
        plans: blocks of the products, with tiles for the kernel.
    """

    kernel: int
    members: tuple[int, ...]
    place: int
    form: _Form
    kept: tuple[bool, ...]
    under: tuple[int | None, ...]
    kind: Kind
    plans: tuple[Plan, ...]


class _Finder:
    def __init__(
        self,
        program: Program,
        target: Target,
        joined: Mapping[int, Phase | None],
        writable: Collection[int],
    ) -> None:
        self.equations, self.target = program.equations, target
        self.params = set(program.params)
        self.writable = {program.params[i] for i in writable}
        self.taken = set(joined)
        self.root: dict[Var, Var] = {}  # of reshapes: the array that has the elements
        self.made: dict[Var, int] = {}  # where it is there
        self.readers: dict[Var, list[int]] = {}  # of a root
        self.product: dict[Var, int] = {}  # products that have not been joined, by result
        for equation in self.equations:
            if equation.op.name == "reshape":
                self.root[equation.output] = self._root(equation.inputs[0])
        for number, equation in enumerate(self.equations):
            if number in joined:
                phase = joined[number]
                if phase is not None:
                    self._note(number, phase.reads, phase.writes)
            elif equation.op.name == "reshape":
                self.made[equation.output] = number
            else:
                self._note(number, equation.inputs, equation.outputs)
                if equation.op.name in ("dot", "packed_dot"):
                    self.product[equation.output] = number
        self.kept = {self._root(v) for v in program.results}

    def _note(self, number: int, reads: Sequence[Var], writes: Sequence[Var]) -> None:
        self.made.update(dict.fromkeys(writes, number))
        for var in reads:
            self.readers.setdefault(self._root(var), []).append(number)

    def _root(self, var: Var) -> Var:
        return self.root.get(var, var)

    def run(self) -> dict[int, Phase | None]:
        found: dict[int, Phase | None] = {}
        for number, equation in enumerate(self.equations):
            if number in self.taken or equation.op.name != "kernel":
                continue
            made = [self.product[v] for v in map(self._root, equation.inputs) if v in self.product]
            for last in sorted(set(made), reverse=True):
                choice = self._choice(number, last, sorted(set(made) - {last}))
                phase = None if choice is None else self._phase(choice)
                if choice is None or phase is None:
                    continue
                found.update(dict.fromkeys((number, *choice.members)))
                found[choice.place] = phase
                for member in choice.members:
                    del self.product[self.equations[member].output]
                self.made.update(dict.fromkeys(phase.writes, choice.place))
                break
        return found

    # --- what goes together -----------------------------------------------------------------------

    def _choice(self, number: int, last: int, others: Sequence[int]) -> _Choice | None:
        """The kernel behind a product, and behind others like it that it reads."""
        plan = plan_of(self.equations[last], self.target)
        if plan is None:
            return None
        alike = [i for i in others if i < last and self._is_like(plan, i)]
        for members in dict.fromkeys(((*alike, last), (last,))):
            choice = self._placed(number, members)
            if choice is not None:
                return choice
        return None

    def _is_like(self, plan: Plan, number: int) -> bool:
        other = plan_of(self.equations[number], self.target)
        return other is not None and _shape(other) == _shape(plan)

    def _placed(self, number: int, members: tuple[int, ...]) -> _Choice | None:
        """Where some products and a kernel can be computed together, if they can."""
        equation = self.equations[number]
        results = [self.equations[i].output for i in members]
        inputs = [self._root(v) for v in equation.inputs]
        ready = max((self.made.get(v, -1) for v in inputs if v not in results), default=-1)
        place = max(members) if ready < max(members) else number
        if not all(self._can_wait(i, place, number) for i in members) or self._replaces(members, equation):
            return None
        kernel: Kernel = equation.attrs["kernel"]
        types = tuple(v.type for v in equation.inputs)
        if wake.find(kernel, types) is not None:
            return None
        tiles = tuple(results.index(v) if v in results else None for v in inputs)
        found = [plan_of(self.equations[i], self.target) for i in members]
        plans = tuple(plan for plan in found if plan is not None)
        kept = tuple(v in self.kept or bool(set(self.readers[v]) - {number}) for v in results)
        given = {i for i, v in enumerate(inputs) if v in self.writable}
        count = len(members)
        form = _Form(kernel, types, tiles, plans, tuple(range(count)), (0,) * count)
        for each in self._forms(form, kept):
            fitted = self._fit(each, kept, given)
            if fitted is not None:
                return _Choice(number, members, place, each, *fitted)
        return None

    def _forms(self, form: _Form, kept: Sequence[bool]) -> list[_Form]:
        """The products as they are, and one that is read in windows by these; the better way first."""
        if len(form.plans) > 1 or any(kept) or form.kernel.extents:
            return [form]
        plan = form.plans[0]
        found = product_windows.find(form.kernel, form.in_types, form.tiles, plan, self.target)
        if found is None:
            return [form]
        count = len(found.starts)
        windows = _Form(
            found.kernel, found.in_types, found.tiles, (found.plan,) * count, (0,) * count, found.starts
        )
        nbytes = plan.k.size * plan.problem.n.size * plan.y_dtype.itemsize
        return [windows, form] if nbytes >= MIN_WINDOWED_BYTES else [form, windows]

    def _fit(
        self, form: _Form, of_members: Sequence[bool], given: Collection[int]
    ) -> tuple[tuple[bool, ...], tuple[int | None, ...], Kind, tuple[Plan, ...]] | None:
        """What is kept, what lies under a result, how the kernel runs and the tiles, where it can be done."""
        kernel, types, tiles = form.kernel, form.in_types, form.tiles
        kind = epilogues.find(kernel, types[: len(kernel.loads)], tiles, form.plans[0], self.target)
        is_cut = len(form.members) > len(of_members)
        if kind is None or (is_cut and not isinstance(kind, Pieces)):
            return None
        kept = tuple(of_members[i] for i in form.members)
        under = _under(kernel, types, tiles, kept, given)
        fitted = _fitted(form.plans, kind, kernels.kernel_ns(kernel, types, self.target))
        if fitted is None:
            return None
        kept = _kept(fitted, kept, under)
        if is_cut and any(kept):
            return None  # windows are no arrays
        in_tasks = [not k and j is None for k, j in zip(kept, under, strict=True)]
        saved = sum(
            plan.out_dtype.itemsize * _size(plan)
            for plan, alone in zip(fitted, in_tasks, strict=True)
            if alone
        )
        if _extra_packed_bytes(fitted) > saved + MAX_EXTRA_PACKED_BYTES:
            return None
        if fitted[0].num_column_blocks > 1 and _far_bytes(kernel, types, tiles, under) > MAX_FAR_BYTES:
            return None
        return kept, under, kind, fitted

    def _can_wait(self, member: int, place: int, kernel: int) -> bool:
        """Whether a product can be computed in a later place: nobody needs it before, and its operands do not
        take more memory meanwhile than it would.
        """
        if member == place:
            return True
        equation = self.equations[member]
        if any(member < reader <= place for reader in self.readers[equation.output] if reader != kernel):
            return False  # the reader in that place is another product, which would not find it there yet
        operands = {self._root(v) for v in equation.inputs} - self.kept - self.params
        longer = [v for v in operands if max(self.readers[v]) < place]
        return sum(v.type.nbytes for v in longer) <= equation.output.type.nbytes + MAX_EXTRA_BYTES

    def _replaces(self, members: Sequence[int], kernel: Equation) -> bool:
        """Whether a result of the kernel may replace a parameter that a product reads, too: together with the
        product it could not, so they stay apart.
        """
        read = {self._root(v) for i in members for v in self.equations[i].inputs} & self.writable
        if not read:
            return False
        pairs = kernels.in_place_pairs(kernel.attrs["kernel"], [v.type for v in kernel.inputs])
        is_read = [self._root(v) in read for v in kernel.inputs]
        return any(is_read[i] and kernel.outputs[j] in self.kept for i, j in pairs)

    # --- the phase --------------------------------------------------------------------------------

    def _phase(self, choice: _Choice) -> Phase | None:
        equation, form = self.equations[choice.kernel], choice.form
        kernel, types = form.kernel, form.in_types
        members = [self.equations[i] for i in choice.members]
        reads = [self._named(v, choice.place) for member in members for v in member.inputs]
        places: dict[int, int] = {}  # of the operands of the kernel among those of the phase
        for i, var in enumerate(equation.inputs):
            if form.tiles[i] is None:
                places[i] = len(reads)
                reads.append(self._named(var, choice.place))
        kept = [members[i].output for i, is_kept in zip(form.members, choice.kept, strict=True) if is_kept]
        products, results = [], iter(range(len(reads), len(reads) + len(kept)))
        first = len(reads) + len(kept)
        for number, (plan, is_kept) in enumerate(zip(choice.plans, choice.kept, strict=True)):
            member = form.members[number]
            x, y = 2 * member, 2 * member + 1
            if plan.problem.is_swapped:
                x, y = y, x
            under = choice.under[number]
            place = next(results) if is_kept else None if under is None else first + under
            products.append(Product(plan, x, y, place, form.starts[number]))
        arguments = (*places.values(), *range(first, first + len(kernel.outputs)))
        functions = _tasks(tuple(products), (kernel, types), form.tiles, arguments, choice.kind, self.target)
        if not functions:
            return None
        pairs = tuple(
            (places[i], len(kept) + j)
            for i, j in kernels.in_place_pairs(kernel, types)
            if i in places and j not in choice.under  # which is overwritten before the kernel runs
        )
        names = [f"dot {m.attrs['spec']}" for m in members]
        name = f"{len(names)} x {names[0]}" if len(names) > 1 and len(set(names)) == 1 else " + ".join(names)
        scratch = max(task.scratch_bytes for task in functions)
        return Phase(
            f"{name} + {kernel.name}", functions, tuple(reads), (*kept, *equation.outputs), pairs,
            scratch_bytes=scratch, where=equation.where or members[-1].where, parts=(*members, equation),
        )  # fmt: skip

    def _named(self, var: Var, place: int) -> Var:
        """An alias that comes later is another name for what is there already."""
        return var if max(self.made.get(v, -1) for v in (var, self._root(var))) < place else self._root(var)


@functools.lru_cache(maxsize=1024)
def _tasks(
    products: tuple[Product, ...],
    typed: tuple[Kernel, tuple[ArrayType, ...]],
    tiles: tuple[int | None, ...],
    arguments: tuple[int, ...],
    kind: Kind,
    target: Target,
) -> tuple[TaskFunction, ...]:
    cost_ns = kernels.kernel_ns(*typed, target)
    behind = epilogues.KernelBehind(*typed, tiles, arguments, kind, products[0].plan, target, cost_ns)
    return product_tasks.emit(products, arguments[-1] + 1, behind)


def _under(
    kernel: Kernel,
    in_types: Sequence[ArrayType],
    tiles: Sequence[int | None],
    kept: Sequence[bool],
    given: Collection[int],
) -> tuple[int | None, ...]:
    """Results of the kernel in whose memory products may be. A result that may replace one of the `given`
    operands is left to that.
    """
    pairs = kernels.in_place_pairs(kernel, in_types)
    free = set(range(len(kernel.outputs))) - {j for i, j in pairs if i in given}
    found: list[int | None] = [None] * len(kept)
    for number, is_kept in enumerate(kept):
        places = [i for i, tile in enumerate(tiles) if tile == number]
        allowed = [j for j in sorted(free) if all((i, j) in pairs for i in places)]
        if allowed and not is_kept:
            found[number] = allowed[0]
            free.discard(allowed[0])
    return tuple(found)


# --- blocks ---------------------------------------------------------------------------------------


def _shape(plan: Plan) -> object:
    """What tasks of several products have in common."""
    problem = plan.problem
    batch = tuple((d.size, d.out) for d in problem.batch)
    m, n = (problem.m.size, problem.m.out), (problem.n.size, problem.n.out)
    blocks = (plan.rows, plan.panel, plan.row_block, plan.column_block, plan.packs, plan.batches_per_task)
    return batch, m, n, blocks


def _far_bytes(
    kernel: Kernel, in_types: Sequence[ArrayType], tiles: Sequence[int | None], under: Sequence[int | None]
) -> int:
    """Bytes of all arrays but one that are as large as the products, and that only the kernel touches."""
    operands = [t for t, number in zip(in_types, tiles, strict=True) if number is None]
    results = [t for j, t in enumerate(kernel.outputs) if j not in under]
    size = max(t.size for t, number in zip(in_types, tiles, strict=True) if number is not None)
    found = sorted(t.nbytes for t in (*operands, *results) if t.size >= size)
    return sum(found[:-1])


def _size(plan: Plan) -> int:
    """Elements of the result."""
    problem = plan.problem
    return problem.num_batches * problem.m.size * problem.n.size


def _extra_packed_bytes(plans: Sequence[Plan]) -> int:
    """Bytes that products need to be packed at once, beyond those of the largest."""
    sizes = [plan.num_packed * plan.packed_size * plan.compute.itemsize for plan in plans]
    return sum(sizes) - max(sizes) if plans[0].packs == "phase" else 0


def _kept(plans: Sequence[Plan], kept: Sequence[bool], under: Sequence[int | None]) -> tuple[bool, ...]:
    """Which results are arrays of their own, with those whose tiles do not fit into the memory of a task."""
    found = list(kept)
    for number in reversed(range(len(plans))):
        stored = [is_kept or j is not None for is_kept, j in zip(found, under, strict=True)]
        if not stored[number] and _stack_bytes(plans, stored) > STACK_BYTES:
            found[number] = True
    return tuple(found)


def _fitted(plans: Sequence[Plan], kind: Kind, kernel_ns: float) -> tuple[Plan, ...] | None:
    """The plans with tiles that a kernel can work on. Depth blocks stay, so results keep their bits."""
    plan = plans[0]
    padded = plan.num_panels * plan.panel
    unit = plan.panel if not isinstance(kind, Programs) else math.lcm(kind.size, plan.panel)
    columns, rows = plan.column_block, plan.row_block
    if plan.num_column_blocks > 1 and columns % unit:
        columns = min(max(columns // unit, 1) * unit, padded)
        is_wide = plan.depth * columns * plan.compute.itemsize > MAX_ROW_BYTES
        is_wide |= plan.packed_size * plan.compute.itemsize > MAX_WIDE_BYTES
        if columns > plan.column_block:
            if is_wide:
                return None
            # All columns are too many to be packed again for every block of rows.
            plans = [dataclasses.replace(p, packs="phase") if p.packs == "tile" else p for p in plans]
        wanted = min(blocking.MIN_TILES, plan.problem.flops / blocking.TASK_FLOPS)
        while _num_tiles(plan, rows, columns) < wanted and rows >= 2 * MIN_ROW_REGISTERS * plan.rows:
            rows = _half(plan.problem.m.size, rows, plan.rows)
    tasks = _num_tiles(plan, rows, columns)
    if plan.packs == "task":
        tasks = -(-plan.problem.num_batches // plan.batches_per_task)
    # A kernel that many tasks would share is not left to a few.
    if tasks < min(ENOUGH_TASKS, kernel_ns / kernels.TASK_NS):
        return None
    return tuple(dataclasses.replace(p, row_block=rows, column_block=columns) for p in plans)


def _num_tiles(plan: Plan, rows: int, columns: int) -> int:
    return plan.problem.num_batches * -(-plan.problem.m.size // rows) * -(-plan.problem.n.size // columns)


def _half(size: int, block: int, unit: int) -> int:
    """Blocks of about half the size, a multiple of `unit`, that cut `size` into equal parts."""
    parts = math.ceil(size / max(block // 2, unit))
    return math.ceil(size / (parts * unit)) * unit


def _stack_bytes(plans: Sequence[Plan], kept: Sequence[bool]) -> int:
    """Memory of a task for copies of operands, sums and tiles of the result."""
    total = 0
    for plan in dict.fromkeys(plans):
        size = plan.copied_size if plan.a_layout != "direct" else 0
        size += plan.row_block * plan.column_block if plan.is_staged else 0
        total += size * plan.compute.itemsize
    for plan, is_kept in zip(plans, kept, strict=True):
        packed = {"task": plan.packed_size, "tile": plan.depth * plan.column_block}.get(plan.packs, 0)
        total += packed * plan.compute.itemsize
        total += 0 if is_kept else plan.row_block * plan.column_block * plan.out_dtype.itemsize
    return total
