"""Depthwise convolutions and those of narrow groups whose results are few sums along the image, as the
derivative by the kernel is: these stay in registers along a row of the image, and beside it in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution import copying, partial
from infini.compiler.llvm.convolution.depthwise import PLACES, Image, Plan, common, load, starts
from infini.compiler.llvm.convolution.emitted import finish, sizes
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR

TASKS = 16
SMALL_FLOPS = 1e5  # sums of fewer are not cut into parts
NS_PER_FLOP = 0.03


class Emission:
    """Writes the phases of a plan of sums."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        p = plan.problem
        self.x_memory = registers.memory_element(p.x_dtype)
        self.w_memory = registers.memory_element(p.w_dtype)
        self.element = registers.memory_element(plan.compute)
        self.zero = registers.register_type(plan.compute, plan.lanes)

    @property
    def _each(self) -> int:
        """Sums at a place of the inner axes."""
        return self.plan.line.size * self.plan.channel.size

    def _result(self, number: int) -> tuple[int, int]:
        """Of a sum at a place of the inner axes: the place of the row, and the channel."""
        return divmod(number, self.plan.channel.size)

    def phases(self) -> tuple[TaskFunction, ...]:
        """Computing, and for sums of several parts adding them up."""
        plan, p = self.plan, self.plan.problem
        num_others = math.prod(g.size for g in plan.others)
        num_rows = math.prod(a.size for a in plan.outer)
        wanted = min(num_rows, -(-TASKS // (num_others * plan.num_vectors)))
        size = partial.size_of(p)
        if p.flops < SMALL_FLOPS or not partial.is_whole(p):
            wanted = 1
        each = -(-num_rows // max(wanted, 1))
        num_parts = -(-num_rows // each)
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        count = 3 if num_parts == 1 else 4
        x, w, out, *scratch = (
            f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)
        )
        rest, part = f.divide(f.parameters[1], num_parts)
        group, block = f.divide(rest, plan.num_vectors)
        x_first, w_first, out_first = copying.first_of_group(f, p, plan.others, group)
        of_x, of_w, of_out = starts(f, plan, block)
        x = f.at(x, f.add(x_first, of_x), self.x_memory)
        w = f.at(w, f.add(w_first, of_w), self.w_memory)
        out_offset = f.add(out_first, of_out)
        dtype = plan.compute if scratch else p.out_dtype
        if scratch:
            out = f.at(scratch[0], f.mul(part, size), self.element)
        out = f.at(out, out_offset, registers.memory_element(dtype))
        first = f.mul(part, each)
        stop = f.minimum(f.add(first, each), num_rows) if num_parts > 1 else num_rows
        num_places = math.prod(a.size for a in plan.inner)
        num_cells = num_places * self._each
        cells = f.allocate(num_cells * plan.lanes * plan.compute.itemsize)
        for width in sizes(f, block, plan.num_vectors, plan.used, plan.size):
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
                for number in range(self._each):
                    j, channel = self._result(number)
                    value = f.load(self._cell(f, cells, place.index, number), self.zero)
                    memory = registers.memory_element(dtype)
                    to = f.at(out, f.add(offset, j * plan.line.other + channel * plan.channel.other), memory)
                    mask = None if width == plan.lanes else f.first_lanes(width, plan.lanes)
                    registers.store(f, registers.rounded(f, value, dtype), to, dtype, mask)
        tasks = num_others * plan.num_vectors * num_parts
        sums = finish("depthwise_sums", [f], tasks, p.flops * NS_PER_FLOP)
        if num_parts == 1:
            return (sums,)
        sums = dataclasses.replace(sums, scratch_bytes=num_parts * size * plan.compute.itemsize)
        return sums, partial.added(p, num_parts, compute=plan.compute, lanes=plan.lanes)

    def _cell(self, f: Function, cells: Value, place: Int, number: int) -> Value:
        """Where a sum at a place of the inner axes is kept."""
        cell = f.add(f.mul(place, self._each), number)
        return f.at(cells, f.mul(cell, self.plan.lanes), self.element)

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
        plan, each = self.plan, self._each
        inside = common(plan)
        chains = max(1, PLACES // each)
        turn = max(chains, min(2, len(inside)))
        whole = len(inside) // turn * turn
        acc = [f.constant(0, self.zero)] * (each * chains)
        if whole:
            with f.loop(inside.start, inside.start + whole, turn, acc) as loop:
                loop.next = self._steps(f, pointers, loop.index, range(turn), loop.carried, width)
            acc = loop.results
        singles = [t for t in range(plan.taps.size) if not inside.start <= t < inside.start + whole]
        acc = self._steps(f, pointers, 0, singles, acc, width)
        for number in range(each):
            total = acc[number]
            for chain in range(1, chains):
                total = f.binary("fadd", total, acc[chain * each + number])
            cell = self._cell(f, *cells, number)
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
        plan, p, each = self.plan, self.plan.problem, self._each
        image = Image(plan, f.at(pointers[0], f.mul(first, plan.taps.x), self.x_memory), width)
        w = f.at(pointers[1], f.mul(first, plan.taps.other), self.w_memory)
        acc, chains = list(acc), len(acc) // each
        for turn, tap in enumerate(taps):
            weight = load(f, plan, f.at(w, tap * plan.taps.other, self.w_memory), p.w_dtype, width)
            for number in range(each):
                j, channel = self._result(number)
                if isinstance(first, int) and not plan.is_there(j, tap):
                    continue
                element = image.at(f, j * plan.line.x + tap * plan.taps.x, channel)
                place = turn % chains * each + number
                acc[place] = f.fma(element, weight, acc[place])
        return acc
