"""Depthwise convolutions: every feature by itself, features side by side in vectors.

There is nothing to block, as an element of the image meets a few of the kernel only. A row of results is
computed some places at a time in registers, each vector of the image loaded once for all of them; taps that
leave the image are left out of the loops rather than multiplied by zeros. In the derivative by the kernel the
few results stay in registers along a row of the image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution import copying
from infini.compiler.llvm.convolution.problem import Axis, Group, Problem, without_ones
from infini.compiler.llvm.convolution.product import finish, sizes
from infini.compiler.llvm.movement import Chunks
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR

PLACES = 8  # results of a row in registers at once
MOST = 32  # taps, or results, along a row; more are too much code
EDGE = 16  # stretches of a row that are written out because a window leaves the image there
TASKS = 16
SMALL_FLOPS = 1e5  # sums of fewer are not cut into parts
NS_PER_FLOP = 0.03


@dataclass(frozen=True, slots=True)
class Plan:
    """A depthwise problem.

    Args:
        problem: the convolution.
        is_sum: whether the results are few sums along the image, as in the derivative by the kernel.
        features: the letter along which vectors lie.
        line: of the two axes along a row of the image, that of m.
        taps: the other one, of k.
        outer: the other axes of m, or those of k for sums.
        inner: the other axes of k, or those of m for sums; all of them spatial.
        lanes: of a register.
        compute: dtype of products.
    """

    problem: Problem
    is_sum: bool
    features: Group
    line: Axis
    taps: Axis
    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    lanes: int
    compute: np.dtype

    @property
    def others(self) -> tuple[Group, ...]:
        """The other groups."""
        return tuple(g for g in self.problem.groups if g is not self.features)

    @property
    def num_vectors(self) -> int:
        """Vectors of features, the last perhaps not full."""
        return -(-self.features.size // self.lanes)

    def is_there(self, position: int, tap: int) -> bool:
        """Whether a tap of a position of the row meets an element."""
        bound = self.problem.bounds[self.line.digit]
        place = position * self.line.step + tap * self.taps.step
        return bound is None or 0 <= bound.first + place < bound.size


def make_plan(problem: Problem, target: Target) -> Plan | None:
    """A plan; None where the problem is not depthwise, or features are not side by side."""
    features = next((g for g in problem.groups if g.x == g.out == g.w == 1), None)
    if problem.n[0] != 1 or features is None:
        return None
    m_letters = [a for a in without_ones(problem.m) if a.digit < 0]
    k_letters = [a for a in without_ones(problem.k) if a.digit < 0]
    m_digits = [a for a in problem.m if a.digit >= 0]
    k_digits = [a for a in problem.k if a.digit >= 0]
    if (m_letters and k_letters) or not m_digits:
        return None
    is_sum = bool(k_letters) or (
        not m_letters and math.prod(a.size for a in k_digits) > math.prod(a.size for a in m_digits)
    )
    digit = max((a.digit for a in m_digits), key=lambda d: (-_distance(problem, d), d))
    line = next(a for a in m_digits if a.digit == digit)
    taps = next(a for a in k_digits if a.digit == digit)
    rest_m = tuple(a for a in m_digits if a is not line)
    rest_k = tuple(a for a in k_digits if a is not taps)
    outer = (*k_letters, *rest_k) if is_sum else (*m_letters, *rest_m)
    inner = rest_m if is_sum else rest_k
    compute = blocking.compute_dtype(problem.out_dtype)
    lanes = max(2, target.lanes * 4 // compute.itemsize)
    plan = Plan(problem, is_sum, features, line, taps, outer, inner, lanes, compute)
    few = line if is_sum else taps
    if few.size > MOST or (is_sum and (taps.size - len(_common(plan))) * line.size > MOST * MOST):
        return None
    if not is_sum and sum(not _is_whole(plan, t) for t in _tiles(plan)) > EDGE:
        return None
    return plan


def _distance(problem: Problem, digit: int) -> int:
    """Elements of the image from one place of a spatial dimension to the next."""
    return next(abs(a.x) // a.step for a in (*problem.m, *problem.k) if a.digit == digit and a.step)


def _tiles(plan: Plan) -> list[range]:
    """The places of a row in stretches that are computed at once."""
    count = plan.line.size
    return [range(start, min(start + PLACES, count)) for start in range(0, count, PLACES)]


def _is_whole(plan: Plan, tile: range) -> bool:
    return len(tile) == PLACES and all(
        plan.is_there(position, tap) for position in (tile[0], tile[-1]) for tap in (0, plan.taps.size - 1)
    )


def _common(plan: Plan) -> range:
    """The places of a row of the image that belong to every result."""
    inside = [t for t in range(plan.taps.size) if all(plan.is_there(j, t) for j in (0, plan.line.size - 1))]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


@dataclass(frozen=True, slots=True)
class _Row:
    """Pointers to the first elements of a row, and where it lies in each bounded dimension."""

    x: Value
    w: Value
    out: Value
    along: copying.Reach


@dataclass(frozen=True, slots=True)
class _Sums:
    """Results of a row in registers.

    Args:
        tile: their places, where windows may leave the image.
        width: features of a vector.
        values: the sums so far.
    """

    tile: range | None
    width: int
    values: list[Value]


class Emission:
    """Writes the phases of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        p = plan.problem
        self.x_memory = registers.memory_element(p.x_dtype)
        self.w_memory = registers.memory_element(p.w_dtype)
        self.out_memory = registers.memory_element(p.out_dtype)
        self.element = registers.memory_element(plan.compute)
        self.zero = registers.register_type(plan.compute, plan.lanes)

    def phases(self) -> tuple[TaskFunction, ...]:
        """Computing, and for sums of several parts adding them up."""
        return self._sums() if self.plan.is_sum else (self._rows(),)

    def _start(self, count: int) -> tuple[Function, list[Value]]:
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        return f, [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]

    def _others(self, f: Function, number: Int) -> tuple[Int, Int, Int]:
        """Elements to the first one of a number of the other groups, in image, kernel and result."""
        p = self.plan.problem
        x: Int = p.x_first
        w: Int = p.w_first
        out: Int = p.out_first
        for group in reversed(self.plan.others):
            number, index = f.divide(number, group.size)
            x, w = f.add(x, f.mul(index, group.x)), f.add(w, f.mul(index, group.w))
            out = f.add(out, f.mul(index, group.out))
        return x, w, out

    def _load(self, f: Function, pointer: Value, dtype: np.dtype, count: int) -> Value:
        lanes = self.plan.lanes
        if count == lanes:
            x = registers.load(f, pointer, dtype, lanes)
        else:
            x = registers.masked_load(f, pointer, dtype, f.first_lanes(count, lanes), 0)
        return operations.convert(f, dtype, x, new_dtype=self.plan.compute)

    def _store(self, f: Function, x: Value, pointer: Value, dtype: np.dtype, count: int) -> None:
        mask = None if count == self.plan.lanes else f.first_lanes(count, self.plan.lanes)
        registers.store(f, registers.rounded(f, x, dtype), pointer, dtype, mask)

    # --- rows of results --------------------------------------------------------------------------

    def _rows(self) -> TaskFunction:
        plan, p = self.plan, self.plan.problem
        num_rows = math.prod(g.size for g in plan.others) * math.prod(a.size for a in plan.outer)
        each = plan.line.size * plan.features.size * (p.x_dtype.itemsize + p.out_dtype.itemsize)
        chunks = Chunks.of(num_rows, each)
        f, (x, w, out) = self._start(3)
        with chunks.loop(f, f.parameters[1]) as number:
            group, row = f.divide(number, math.prod(a.size for a in plan.outer))
            x_first, w_first, out_first = self._others(f, group)
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
            tiles = _tiles(plan)
            whole = [tile for tile in tiles if _is_whole(plan, tile)]
            for tile in tiles:
                if tile not in whole:
                    self._tile(f, here, tile.start, tile)
            if whole:
                with f.loop(whole[0].start, whole[-1].stop, PLACES) as loop:
                    self._tile(f, here, loop.index, None)
        return finish("depthwise", [f], chunks.num_tasks, p.flops * NS_PER_FLOP)

    def _tile(self, f: Function, row: _Row, first: Int, tile: range | None) -> None:
        """Some places of a row; `tile` is given where windows may leave the image."""
        plan, lanes = self.plan, self.plan.lanes
        count = PLACES if tile is None else len(tile)
        x = f.at(row.x, f.mul(first, plan.line.x), self.x_memory)
        out = f.at(row.out, f.mul(first, plan.line.other), self.out_memory)
        with f.loop(0, plan.num_vectors) as loop:
            start = f.mul(loop.index, lanes)
            for width in sizes(f, loop.index, plan.num_vectors, lanes, plan.features.size):
                pointers = (f.at(x, start, self.x_memory), f.at(row.w, start, self.w_memory))
                zero = f.constant(0, self.zero)
                sums = _Sums(tile, width, [zero] * count)
                acc = self._taps(f, row, pointers, sums, plan.inner)
                for i, value in enumerate(acc):
                    to = f.at(out, f.add(start, i * plan.line.other), self.out_memory)
                    self._store(f, value, to, plan.problem.out_dtype, width)

    def _taps(
        self, f: Function, row: _Row, pointers: tuple[Value, Value], sums: _Sums, inner: Sequence[Axis]
    ) -> list[Value]:
        """The sums over the taps of the inner axes that meet elements, and those of the row."""
        x, w = pointers
        if not inner:
            return self._row_of_taps(f, pointers, sums)
        axis, *rest = inner
        first, stop = self._range(f, row, axis)
        with f.loop(first, stop, 1, sums.values) as loop:
            moved = (
                f.at(x, f.mul(loop.index, axis.x), self.x_memory),
                f.at(w, f.mul(loop.index, axis.other), self.w_memory),
            )
            inside = dataclasses.replace(sums, values=loop.carried)
            loop.next = self._taps(f, row, moved, inside, rest)
        return loop.results

    def _range(self, f: Function, row: _Row, axis: Axis) -> tuple[Int, Int]:
        """The taps of an axis that meet elements."""
        bound = self.plan.problem.bounds[axis.digit]
        if bound is None:
            return 0, axis.size
        along = row.along.along[axis.digit]
        assert along is not None
        place = f.add(along, bound.first)
        if isinstance(place, int):
            taps = [t for t in range(axis.size) if 0 <= place + t * axis.step < bound.size]
            return (taps[0], taps[-1] + 1) if taps else (0, 0)
        last = axis.step - 1
        first, _ = f.divide(f.add(f.maximum(f.sub(0, place), 0), last), axis.step)
        stop, _ = f.divide(f.maximum(f.add(f.sub(bound.size, place), last), 0), axis.step)
        return first, f.minimum(stop, axis.size)

    def _row_of_taps(self, f: Function, pointers: tuple[Value, Value], sums: _Sums) -> list[Value]:
        plan, p = self.plan, self.plan.problem
        (x, w), tile, width = pointers, sums.tile, sums.width
        acc, loaded = list(sums.values), dict[int, Value]()
        for tap in range(plan.taps.size):
            weight: Value | None = None
            for i in range(len(acc)):
                if tile is not None and not plan.is_there(tile[i], tap):
                    continue
                if weight is None:
                    place = f.at(w, tap * plan.taps.other, self.w_memory)
                    weight = self._load(f, place, p.w_dtype, width)
                offset = i * plan.line.x + tap * plan.taps.x
                if offset not in loaded:
                    loaded[offset] = self._load(f, f.at(x, offset, self.x_memory), p.x_dtype, width)
                acc[i] = f.fma(loaded[offset], weight, acc[i])
        return acc

    # --- sums along the image ---------------------------------------------------------------------

    def _sums(self) -> tuple[TaskFunction, ...]:
        plan, p = self.plan, self.plan.problem
        num_others = math.prod(g.size for g in plan.others)
        num_rows = math.prod(a.size for a in plan.outer)
        wanted = min(num_rows, -(-TASKS // (num_others * plan.num_vectors)))
        size = num_others * math.prod(a.size for a in p.m) * plan.features.size
        places = sum((g.size - 1) * g.out for g in p.groups) + sum((a.size - 1) * a.other for a in p.m) + 1
        if p.flops < SMALL_FLOPS or p.out_first or places != size:  # parts are of a whole array
            wanted = 1
        each = -(-num_rows // max(wanted, 1))
        num_parts = -(-num_rows // each)
        f, (x, w, out, *scratch) = self._start(3 if num_parts == 1 else 4)
        rest, part = f.divide(f.parameters[1], num_parts)
        group, block = f.divide(rest, plan.num_vectors)
        x_first, w_first, out_first = self._others(f, group)
        start = f.mul(block, plan.lanes)
        x = f.at(x, f.add(x_first, start), self.x_memory)
        w = f.at(w, f.add(w_first, start), self.w_memory)
        out_offset = f.add(out_first, start)
        dtype = plan.compute if scratch else p.out_dtype
        if scratch:
            out = f.at(scratch[0], f.mul(part, size), self.element)
        out = f.at(out, out_offset, registers.memory_element(dtype))
        first = f.mul(part, each)
        stop = f.minimum(f.add(first, each), num_rows) if num_parts > 1 else num_rows
        num_places = math.prod(a.size for a in plan.inner)
        num_cells = num_places * plan.line.size
        cells = f.allocate(num_cells * plan.lanes * plan.compute.itemsize)
        for width in sizes(f, block, plan.num_vectors, plan.lanes, plan.features.size):
            with f.loop(0, num_cells) as cell:
                f.store(f.constant(0, self.zero), f.at(cells, f.mul(cell.index, plan.lanes), self.element))
            with f.loop(first, stop) as loop:
                along = copying.reach(f, loop.index, plan.outer, p.bounds)
                w_offset: Int = 0
                for axis, index in zip(plan.outer, copying.indices(f, loop.index, plan.outer), strict=True):
                    w_offset = f.add(w_offset, f.mul(index, axis.other))
                row = (x, f.at(w, w_offset, self.w_memory))
                with f.loop(0, num_places) as place:
                    self._add_row(f, row, along, place.index, cells, width)
            with f.loop(0, num_places) as place:
                offset: Int = 0
                for axis, index in zip(plan.inner, copying.indices(f, place.index, plan.inner), strict=True):
                    offset = f.add(offset, f.mul(index, axis.other))
                for j in range(plan.line.size):
                    value = f.load(self._cell(f, cells, place.index, j), self.zero)
                    to = f.at(out, f.add(offset, j * plan.line.other), registers.memory_element(dtype))
                    self._store(f, value, to, dtype, width)
        tasks = num_others * plan.num_vectors * num_parts
        sums = finish("depthwise_sums", [f], tasks, p.flops * NS_PER_FLOP)
        if num_parts == 1:
            return (sums,)
        sums = dataclasses.replace(sums, scratch_bytes=num_parts * size * plan.compute.itemsize)
        return sums, self._added(size, num_parts)

    def _cell(self, f: Function, cells: Value, place: Int, j: int) -> Value:
        """Where the sum of a result of a row, at a place of the inner axes, is kept."""
        number = f.add(f.mul(place, self.plan.line.size), j)
        return f.at(cells, f.mul(number, self.plan.lanes), self.element)

    def _add_row(
        self,
        f: Function,
        pointers: tuple[Value, Value],
        along: copying.Reach,
        place: Int,
        cells: Value,
        width: int,
    ) -> None:
        """Add the products along one row of the image to the results at one place of the inner axes."""
        plan, p = self.plan, self.plan.problem
        moved = copying.reach(f, place, plan.inner, p.bounds)
        # Along the row itself it is known which products there are.
        bounds = [None if d == plan.line.digit else bound for d, bound in enumerate(p.bounds)]
        inside = copying.is_inside(f, bounds, along, moved)
        x = f.at(pointers[0], f.add(along.x, moved.x), self.x_memory)
        with contextlib.ExitStack() as guard:
            if inside is not None:
                guard.enter_context(f.when(inside))
            self._sweep(f, (x, pointers[1]), (cells, place), width)

    def _sweep(
        self, f: Function, pointers: tuple[Value, Value], cells: tuple[Value, Int], width: int
    ) -> None:
        plan = self.plan
        common = _common(plan)
        unroll = max(1, PLACES // plan.line.size)
        whole = len(common) // unroll * unroll
        acc = [f.constant(0, self.zero)] * (plan.line.size * unroll)
        if whole:
            with f.loop(common.start, common.start + whole, unroll, acc) as loop:
                loop.next = self._steps(f, pointers, loop.index, range(unroll), loop.carried, width)
            acc = loop.results
        singles = [t for t in range(plan.taps.size) if not common.start <= t < common.start + whole]
        acc = self._steps(f, pointers, 0, singles, acc, width)
        for j in range(plan.line.size):
            total = acc[j]
            for u in range(1, unroll):
                total = f.binary("fadd", total, acc[u * plan.line.size + j])
            cell = self._cell(f, *cells, j)
            f.store(f.binary("fadd", f.load(cell, self.zero), total), cell)

    def _steps(
        self,
        f: Function,
        pointers: tuple[Value, Value],
        first: Int,
        taps: Sequence[int],
        acc: list[Value],
        width: int,
    ) -> list[Value]:
        """Products of some places of a row, counted from `first`; if that is 0 they may leave the image."""
        plan, p = self.plan, self.plan.problem
        acc, loaded = list(acc), dict[int, Value]()
        x = f.at(pointers[0], f.mul(first, plan.taps.x), self.x_memory)
        w = f.at(pointers[1], f.mul(first, plan.taps.other), self.w_memory)
        rows = len(acc) // plan.line.size
        for number, tap in enumerate(taps):
            weight = self._load(f, f.at(w, tap * plan.taps.other, self.w_memory), p.w_dtype, width)
            for j in range(plan.line.size):
                if isinstance(first, int) and not plan.is_there(j, tap):
                    continue
                offset = j * plan.line.x + tap * plan.taps.x
                if offset not in loaded:
                    loaded[offset] = self._load(f, f.at(x, offset, self.x_memory), p.x_dtype, width)
                place = number % rows * plan.line.size + j
                acc[place] = f.fma(loaded[offset], weight, acc[place])
        return acc

    def _added(self, size: int, num_parts: int) -> TaskFunction:
        """The parts of every sum, in order."""
        plan, dtype = self.plan, self.plan.problem.out_dtype
        f, (_, _, out, scratch) = self._start(4)
        count = -(-size // plan.lanes)
        with f.loop(0, count) as loop:
            start = f.mul(loop.index, plan.lanes)
            for width in sizes(f, loop.index, count, plan.lanes, size):
                with f.loop(0, num_parts, 1, [f.constant(0, self.zero)]) as parts:
                    here = f.at(scratch, f.add(f.mul(parts.index, size), start), self.element)
                    more = self._load(f, here, plan.compute, width)
                    parts.next = [f.binary("fadd", parts.carried[0], more)]
                self._store(f, parts.results[0], f.at(out, start, self.out_memory), dtype, width)
        return finish("depthwise_added", [f], 1, size * num_parts * 0.1)
