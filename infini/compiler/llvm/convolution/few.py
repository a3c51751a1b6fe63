"""Convolutions with few features of the result, or of an image that has few and places side by side:
neighbours along one dimension of the image fill a vector.

A product of matrices would leave most lanes of a register empty, or need the image in another order. Here
every feature has accumulators of its own, each element of the kernel is read into all lanes, and the image is
read where it lies: nothing is packed or copied, and what lies outside the image is multiplied by nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution import copying
from infini.compiler.llvm.convolution.emitted import finish, splat
from infini.compiler.llvm.convolution.problem import Axis, Problem, without_ones
from infini.compiler.llvm.movement import Chunks
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR, vector

VECTORS = 4  # of a tile
CHAINS = 8  # sums at once that keep the multipliers busy
MOST_TAPS = 16  # along a row; more are too much code
MOST_STEP = 4  # elements from one place to the next, which are shuffled into a vector
MOST_EDGES = 6  # tiles that are written out because a window leaves the image there, or the row ends
TASKS = 64
TASK_FLOPS = 1e6
FEWEST_TASKS = 16
FEW_CHANNELS = 4
MOST_KERNEL = 1 << 16  # elements that are read for every tile
NS_PER_FLOP = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """A problem with few features.

    Args:
        problem: the convolution.
        lane: the axis of m along which vectors lie.
        outer: the other axes of m.
        taps: the axis of k in which the image moves as along `lane`, if there is one.
        inner: the other axes of k, in the order of the loops.
        unroll: turns of the innermost loop that are written out.
        features: of the result that a tile has, a divisor of all of them.
        vectors: of a tile, for each feature.
        chains: sums for each element of the result, added at the end.
        lanes: of a register.
        compute: dtype of products.
    """

    problem: Problem
    lane: Axis
    outer: tuple[Axis, ...]
    taps: Axis
    inner: tuple[Axis, ...]
    unroll: int
    features: int
    vectors: int
    chains: int
    lanes: int
    compute: np.dtype

    @property
    def tile(self) -> int:
        """Places of a tile."""
        return self.vectors * self.lanes

    @property
    def tiles(self) -> list[range]:
        """The places of a row in tiles."""
        count = self.lane.size
        return [range(start, min(start + self.tile, count)) for start in range(0, count, self.tile)]

    @property
    def num_rows(self) -> int:
        """Rows of results of a group."""
        return math.prod(a.size for a in self.outer)

    def is_there(self, position: int, tap: int) -> bool:
        """Whether a tap of a position of the row meets an element."""
        bound = self.problem.bounds[self.lane.digit] if self.lane.digit >= 0 else None
        place = position * self.lane.step + tap * self.taps.step
        return bound is None or 0 <= bound.first + place < bound.size

    def is_whole(self, tile: range) -> bool:
        """Whether a tile is full and no window of it leaves the image along the row."""
        return len(tile) == self.tile and all(
            self.is_there(position, tap)
            for position in (tile[0], tile[-1])
            for tap in (0, self.taps.size - 1)
        )


def make_plan(problem: Problem, target: Target) -> Plan | None:
    """A plan; None where features fill half a vector, or the image is contiguous along no axis of m."""
    compute = blocking.compute_dtype(problem.out_dtype)
    lanes = max(2, target.lanes * 4 // compute.itemsize)
    lane = max((a for a in without_ones(problem.m) if _is_lane(a)), key=lambda a: a.size, default=None)
    if lane is None:
        return None
    features, vectors = _tile_sizes(problem, lane, lanes, target.num_registers - 8)
    if not features:
        return None
    taps = next((a for a in problem.k if a.digit == lane.digit >= 0), Axis(1, 0, 0))
    # An axis of one place may still be outside of the image.
    inner = sorted(
        (a for a in problem.k if a is not taps and (a.size > 1 or not _is_free(a, problem))),
        key=lambda a: (a.digit < 0, a.size),
    )
    wanted = -(-CHAINS // (features * vectors))
    unroll = 1
    if inner and _is_free(inner[-1], problem):
        most = max(1, -(-wanted // taps.size), 4 // taps.size)
        unroll = max(n for n in range(1, most + 1) if inner[-1].size % n == 0)
    chains = max(1, min(wanted, unroll * taps.size, (target.num_registers - 8) // (features * vectors)))
    outer = tuple(a for a in without_ones(problem.m) if a is not lane)
    plan = Plan(problem, lane, outer, taps, tuple(inner), unroll, features, vectors, chains, lanes, compute)
    if taps.size > MOST_TAPS or sum(not plan.is_whole(tile) for tile in plan.tiles) > MOST_EDGES:
        return None
    return plan


def _tile_sizes(problem: Problem, lane: Axis, lanes: int, registers_left: int) -> tuple[int, int]:
    """Features and vectors of a tile; no features where another way is better."""
    features = problem.n[0]
    if 2 * features <= lanes:
        if _filled(lane.size, lanes) * lanes < features:
            return 0, 0
        most = max(1, min(VECTORS, registers_left // features, -(-lane.size // lanes)))
        return features, max(range(1, most + 1), key=lambda v: (_filled(lane.size, v * lanes) > 0.9, v))
    channels = math.prod(a.size for a in problem.k if a.digit < 0)
    if channels > FEW_CHANNELS or lane.other != 1 or problem.depth * features > MOST_KERNEL:
        return 0, 0

    def found(vectors: int) -> tuple[int, int]:
        most = 5 * registers_left // 6 // vectors
        return max(n for n in range(1, most + 1) if features % n == 0), vectors

    sizes = map(found, range(1, VECTORS + 1))
    return max(sizes, key=lambda size: math.prod(size) * _filled(lane.size, size[1] * lanes))


def _is_lane(axis: Axis) -> bool:
    """Whether the image is contiguous along an axis of m, perhaps with steps."""
    if axis.digit < 0:
        return axis.x == 1
    return axis.x == axis.step and 1 <= axis.step <= MOST_STEP


def _filled(size: int, unit: int) -> float:
    """The used part of a row in units."""
    return size / (-(-size // unit) * unit)


def _is_free(axis: Axis, problem: Problem) -> bool:
    """Whether every place of an axis of k exists."""
    return axis.digit < 0 or problem.bounds[axis.digit] is None


@dataclass(frozen=True, slots=True)
class _Row:
    """Pointers to the first elements of a row, and where it lies in each bounded dimension."""

    x: Value
    w: Value
    out: Value
    along: copying.Reach


class Emission:
    """Writes the phase of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        p = plan.problem
        self.x_memory = registers.memory_element(p.x_dtype)
        self.w_memory = registers.memory_element(p.w_dtype)
        self.out_memory = registers.memory_element(p.out_dtype)
        self.register = registers.register_type(plan.compute, plan.lanes)

    def phases(self) -> tuple[TaskFunction, ...]:
        """Computing."""
        plan, p = self.plan, self.plan.problem
        whole = [tile for tile in plan.tiles if plan.is_whole(tile)]
        num_rows = p.num_groups * plan.num_rows
        parts = max(1, min(len(whole), -(-FEWEST_TASKS // num_rows))) if p.flops > TASK_FLOPS else 1
        count = num_rows * parts
        wanted = max(1, min(TASKS, int(p.flops / TASK_FLOPS)))
        chunks = Chunks(count, -(-count // wanted))
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        x, w, out = (f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(3))
        with chunks.loop(f, f.parameters[1]) as number:
            rest, part = f.divide(number, parts)
            group, row = f.divide(rest, plan.num_rows)
            x_first, w_first, out_first = copying.first_of_group(f, p, p.groups, group)
            along = copying.reach(f, row, plan.outer, p.bounds)
            to = out_first
            for axis, index in zip(plan.outer, copying.indices(f, row, plan.outer), strict=True):
                to = f.add(to, f.mul(index, axis.other))
            here = _Row(
                f.at(x, f.add(x_first, along.x), self.x_memory),
                f.at(w, w_first, self.w_memory),
                f.at(out, to, self.out_memory),
                along,
            )
            with f.loop(0, p.n[0] // plan.features) as block:
                first = f.mul(block.index, plan.features)
                moved = dataclasses.replace(
                    here,
                    w=f.at(here.w, f.mul(first, p.n[1]), self.w_memory),
                    out=f.at(here.out, f.mul(first, p.n[2]), self.out_memory),
                )
                self._row(f, moved, whole, (part, parts))
        return (finish("few", [f], chunks.num_tasks, p.flops * NS_PER_FLOP),)

    def _row(self, f: Function, row: _Row, whole: list[range], share: tuple[Int, int]) -> None:
        """A part of a row; what is not whole belongs to the first part."""
        plan, (part, parts) = self.plan, share
        edges = [tile for tile in plan.tiles if tile not in whole]
        if parts == 1:
            for tile in edges:
                self._tile(f, row, tile.start, tile)
        elif edges:
            with f.when(f.compare("eq", f.integer(part), f.integer(0))):
                for tile in edges:
                    self._tile(f, row, tile.start, tile)
        if not whole:
            return
        each = -(-len(whole) // parts)
        first = f.mul(part, each)
        stop: Int = f.add(first, each) if parts > 1 else len(whole)
        if len(whole) % parts:
            stop = f.minimum(stop, len(whole))
        with f.loop(first, stop) as loop:
            self._tile(f, row, f.add(f.mul(loop.index, plan.tile), whole[0].start), None)

    def _tile(self, f: Function, row: _Row, first: Int, tile: range | None) -> None:
        """Some places of a row; `tile` is given where it is not whole."""
        plan = self.plan
        places = tile or range(plan.tile)
        vectors = -(-len(places) // plan.lanes)
        x = f.at(row.x, f.mul(first, plan.lane.x), self.x_memory)
        count = plan.chains * plan.features * vectors
        zeros = [f.constant(0, self.register)] * count
        sums = self._inner(f, row, (x, row.w), tile, zeros, plan.inner)
        each = plan.features * vectors
        for number in range(each):
            total = sums[number]
            for chain in range(1, plan.chains):
                total = f.binary("fadd", total, sums[chain * each + number])
            feature, v = divmod(number, vectors)
            place = f.mul(f.add(first, v * plan.lanes), plan.lane.other)
            to = f.at(row.out, f.add(place, feature * plan.problem.n[2]), self.out_memory)
            self._store(f, total, to, min(plan.lanes, len(places) - v * plan.lanes))

    def _store(self, f: Function, x: Value, to: Value, count: int) -> None:
        plan, dtype = self.plan, self.plan.problem.out_dtype
        x = registers.rounded(f, x, dtype)
        if plan.lane.other == 1:
            mask = None if count == plan.lanes else f.first_lanes(count, plan.lanes)
            registers.store(f, x, to, dtype, mask)
            return
        for i in range(count):
            registers.store(f, f.extract(x, i), f.at(to, i * plan.lane.other, self.out_memory), dtype)

    def _inner(
        self, f: Function, row: _Row, pointers: tuple[Value, Value], tile: range | None,
        sums: list[Value], axes: Sequence[Axis],
    ) -> list[Value]:  # fmt: skip
        """The sums with all products of some axes of k, and of the taps, added."""
        plan, (x, w) = self.plan, pointers
        if not axes:
            return self._products(f, pointers, tile, sums)
        axis, *rest = axes
        first, stop = copying.range_inside(f, row.along, axis, plan.problem.bounds)
        step = 1 if rest else plan.unroll
        with f.loop(first, stop, step, sums) as loop:
            moved = (
                f.at(x, f.mul(loop.index, axis.x), self.x_memory),
                f.at(w, f.mul(loop.index, axis.other), self.w_memory),
            )
            loop.next = self._inner(f, row, moved, tile, loop.carried, rest)
        return loop.results

    def _products(
        self, f: Function, pointers: tuple[Value, Value], tile: range | None, sums: list[Value]
    ) -> list[Value]:
        plan, p, (x, w) = self.plan, self.plan.problem, pointers
        sums, each = list(sums), len(sums) // plan.chains
        vectors = each // plan.features
        innermost = plan.inner[-1] if plan.inner else Axis(1, 0, 0)
        for number in range(plan.unroll * plan.taps.size):
            turn, tap = divmod(number, plan.taps.size)
            chain = number % plan.chains * each
            place = f.at(x, turn * innermost.x + tap * plan.taps.x, self.x_memory)
            loaded = [self._vector(f, place, tile, v, tap) for v in range(vectors)]
            for feature in range(plan.features):
                offset = turn * innermost.other + tap * plan.taps.other + feature * p.n[1]
                weight = splat(f, f.at(w, offset, self.w_memory), p.w_dtype, plan.compute, plan.lanes)
                for v, (value, mask) in enumerate(loaded):
                    if value is None:
                        continue
                    at = chain + feature * vectors + v
                    product = f.fma(value, weight, sums[at])
                    sums[at] = product if mask is None else f.select(mask, product, sums[at])
        return sums

    def _vector(
        self, f: Function, pointer: Value, tile: range | None, v: int, tap: int
    ) -> tuple[Value | None, Value | None]:
        """A vector of the image, None where it has no element, and the lanes that have one where some results
        have none.
        """
        plan = self.plan
        pointer = f.at(pointer, v * plan.lanes * plan.lane.x, self.x_memory)
        if tile is None:
            return self._strided(f, pointer, None), None
        places = tile[v * plan.lanes : (v + 1) * plan.lanes]
        exist = [plan.is_there(place, tap) for place in places]
        if not any(exist):
            return None, None
        lanes = exist + [False] * (plan.lanes - len(exist))
        value = self._strided(f, pointer, None if all(lanes) else lanes)
        return value, None if all(exist) else _mask(f, lanes)

    def _strided(self, f: Function, pointer: Value, lanes: list[bool] | None) -> Value:
        """Elements of the image from place to place; those of some lanes only."""
        plan, step = self.plan, self.plan.lane.x
        if step == 1:
            return self._load(f, pointer, lanes)
        span = (plan.lanes - 1) * step + 1
        found: Value | None = None
        for number, start in enumerate([*range(0, span - plan.lanes, plan.lanes), span - plan.lanes]):
            # Lane i has element i * step.
            own = {i: i * step - start for i in range(plan.lanes) if i * step // plan.lanes == number}
            wanted = None if lanes is None else {own[i] for i in own if lanes[i]}
            if wanted is not None and not wanted:
                continue
            here = f.at(pointer, start, self.x_memory)
            x = self._load(f, here, None if wanted is None else [i in wanted for i in range(plan.lanes)])
            if found is None:
                found = f.shuffle(x, None, [own.get(i, 0) for i in range(plan.lanes)])
            else:
                found = f.shuffle(
                    found, x, [plan.lanes + own[i] if i in own else i for i in range(plan.lanes)]
                )
        assert found is not None, "a vector without elements is not asked for"
        return found

    def _load(self, f: Function, pointer: Value, lanes: list[bool] | None) -> Value:
        plan, dtype = self.plan, self.plan.problem.x_dtype
        if lanes is None:
            x = registers.load(f, pointer, dtype, plan.lanes)
        else:
            x = registers.masked_load(f, pointer, dtype, _mask(f, lanes), 0)
        return operations.convert(f, dtype, x, new_dtype=plan.compute)


def _mask(f: Function, lanes: Sequence[bool]) -> Value:
    """A mask of lanes known now."""
    bits = ", ".join(f"i1 {'true' if lane else 'false'}" for lane in lanes)
    return Value(f"<{bits}>", vector("i1", len(lanes)), f.root)
