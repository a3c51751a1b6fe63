"""Depthwise convolutions, and those of narrow groups: features of several groups side by side in vectors.

There is nothing to block, as an element of the image meets a few of the kernel only. A row of results is
computed some places at a time in registers, each vector of the image loaded once for all of them; taps that
leave the image are left out of the loops rather than multiplied by zeros. In the derivative by the kernel the
few results stay in registers along a row of the image (`depthwise_sums`).

With several results per group, vectors lie along results, and every element of the image is repeated in the
lanes of its group; a group that fills a vector reads its elements into all lanes from memory. Where groups
have one result and several elements, vectors lie along these, and neighbouring sums are added at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, operations, pairs, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution import copying
from infini.compiler.llvm.convolution.emitted import finish, sizes, splat
from infini.compiler.llvm.convolution.problem import Axis, Group, Problem, without_ones
from infini.compiler.llvm.movement import Chunks
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR

PLACES = 8  # results of a row in registers at once
MOST_PLACES = 10
SUMS = 24  # in registers at once
FEWEST_SUMS = 8
FEWEST_ROWS = 16
TASK_FLOPS = 1e6
MOST_TASKS = 64
FEW_CHANNELS = 4
MOST_KERNEL = 1 << 17  # elements that are read for every stretch of a row
FEW_VECTORS = 8  # of results
MOST_PRODUCTS = 4000  # that are written out where windows leave the image
MOST = 32  # taps, or results, along a row; more are too much code
EDGE = 16  # stretches of a row that are written out because a window leaves the image there
NS_PER_FLOP = 0.03


@dataclass(frozen=True, slots=True)
class Plan:
    """A depthwise problem.

    Args:
        problem: the convolution.
        is_sum: whether the results are few sums along the image, as in the derivative by the kernel.
        features: the letter along which vectors lie.
        multiplier: neighbouring lanes that belong to one group.
        is_joined: whether image and kernel, not kernel and result, have an element for each of these lanes.
        channel: the letter of elements of a group that each lane meets, of k, or of m for sums.
        line: of the two axes along a row of the image, that of m.
        taps: the other one, of k.
        outer: the other axes of m, or those of k for sums.
        inner: the other axes of k, or those of m for sums; all of them spatial.
        places: results of a row in registers at once.
        vectors: registers for each of them, of one group.
        lanes: of a register.
        compute: dtype of products.
    """

    problem: Problem
    is_sum: bool
    features: Group
    multiplier: int
    is_joined: bool
    channel: Axis
    line: Axis
    taps: Axis
    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    places: int
    vectors: int
    lanes: int
    compute: np.dtype

    @property
    def others(self) -> tuple[Group, ...]:
        """The other groups."""
        return tuple(g for g in self.problem.groups if g is not self.features)

    @property
    def size(self) -> int:
        """Lanes of all features."""
        return self.features.size * self.multiplier

    @property
    def used(self) -> int:
        """Lanes of a vector, or some vectors of one group, that are used: those of whole groups."""
        if self.multiplier > self.lanes:
            return self.vectors * self.lanes
        return self.lanes // self.multiplier * self.multiplier

    @property
    def num_vectors(self) -> int:
        """Vectors of features, the last perhaps not full."""
        return -(-self.size // self.used)

    @property
    def groups_each(self) -> int:
        """Groups of a vector."""
        return max(1, self.lanes // self.multiplier)

    @property
    def x_step(self) -> int:
        """Elements of the image that a vector meets."""
        if self.multiplier > self.lanes:
            return 0
        return self.used if self.is_joined else self.groups_each * self.features.x

    @property
    def out_step(self) -> int:
        """Elements of the result that a vector makes."""
        return self.groups_each if self.is_joined else self.used

    @property
    def is_repeated(self) -> bool:
        """Whether an element of the image is in several lanes."""
        return not self.is_joined and (self.multiplier > 1 or self.features.x > 1)

    @property
    def is_splat(self) -> bool:
        """Whether an element of the image is in all lanes."""
        return self.is_repeated and self.groups_each == 1

    @property
    def has_channel_loop(self) -> bool:
        """Whether the elements of a group that a lane meets have a loop of their own."""
        return self.is_splat and self.channel.size > FEW_CHANNELS

    def is_there(self, position: int, tap: int) -> bool:
        """Whether a tap of a position of the row meets an element."""
        bound = self.problem.bounds[self.line.digit]
        place = position * self.line.step + tap * self.taps.step
        return bound is None or 0 <= bound.first + place < bound.size


def make_plan(problem: Problem, target: Target) -> Plan | None:
    """A plan; None where groups are wide, or not side by side."""
    compute = blocking.compute_dtype(problem.out_dtype)
    lanes = max(2, target.lanes * 4 // compute.itemsize)
    found = _features(problem) or _single_group(problem, lanes)
    if found is None or (problem.groups and found[1] > lanes):
        return None
    features, multiplier, is_joined, channel = found
    m_letters, k_letters = (
        [a for a in without_ones(axes) if a.digit < 0 and a.x != 1] for axes in (problem.m, problem.k)
    )
    m_digits = [a for a in problem.m if a.digit >= 0]
    k_digits = [a for a in problem.k if a.digit >= 0]
    if (m_letters and k_letters) or not m_digits:
        return None
    is_sum = bool(k_letters) or (
        not m_letters and math.prod(a.size for a in k_digits) > math.prod(a.size for a in m_digits)
    )
    is_channel_of_sums = channel in problem.m
    if channel.size > 1 and is_channel_of_sums != is_sum:
        return None
    digit = max((a.digit for a in m_digits), key=lambda d: (-_distance(problem, d), d))
    line = next(a for a in m_digits if a.digit == digit)
    taps = next(a for a in k_digits if a.digit == digit)
    rest_m = tuple(a for a in m_digits if a is not line)
    rest_k = tuple(a for a in k_digits if a is not taps)
    outer = (*k_letters, *rest_k) if is_sum else (*m_letters, *rest_m)
    inner = rest_m if is_sum else rest_k
    if is_sum and (is_joined or not problem.groups):
        return None
    if (
        pairs.is_paired_kind(problem.x_dtype, problem.w_dtype, target)
        and min(channel.size, multiplier) >= lanes
    ):
        return None  # products of pairs are twice as fast
    vectors = _even(-(-multiplier // lanes), target.num_registers // 8)
    if not problem.groups:
        places = _even(line.size, 5 * target.num_registers // 8 // vectors)
    else:
        places = _even(line.size, MOST_PLACES) if channel.size > 1 else PLACES
    plan = Plan(
        problem, is_sum, features, multiplier, is_joined, channel, line, taps, outer, inner,
        places, vectors, lanes, compute,
    )  # fmt: skip
    if plan.is_repeated and not plan.is_splat and plan.x_step > 2 * lanes:
        return None
    if is_sum and channel.size > 1:
        part = max(
            (n for n in range(1, channel.size + 1) if channel.size % n == 0 and n * line.size <= SUMS),
            default=0,
        )
        if part < channel.size and (not plan.is_splat or not part):
            return None
        rest = Axis(channel.size // part, part, part * channel.other)
        plan = dataclasses.replace(
            plan, channel=dataclasses.replace(channel, size=part), inner=(*inner, *without_ones([rest]))
        )
    if channel.size > 1 and not is_sum and not _has_enough(plan):
        return None
    few = line if is_sum else taps
    if few.size > MOST or (is_sum and (taps.size - len(common(plan))) * line.size > MOST * MOST):
        return None
    edges = sum(not is_whole(plan, tile) for tile in tiles(plan))
    if not is_sum and (edges > EDGE or edges * _static_products(plan) > MOST_PRODUCTS):
        return None
    return plan


def _has_enough(plan: Plan) -> bool:
    """Whether there are rows for several threads, and sums in registers to keep the multipliers busy."""
    num_rows = math.prod(g.size for g in plan.others) * math.prod(a.size for a in plan.outer)
    is_small = plan.problem.flops < 2 * TASK_FLOPS
    return is_small or (num_rows >= FEWEST_ROWS and plan.places * plan.vectors >= FEWEST_SUMS)


def _even(count: int, most: int) -> int:
    """A share of at most `most`, so that all shares are about equal."""
    return -(-count // -(-count // most))


def _static_products(plan: Plan) -> int:
    """Products of a stretch of a row that are written out."""
    return plan.places * plan.vectors * plan.taps.size * (1 if plan.has_channel_loop else plan.channel.size)


def _features(problem: Problem) -> tuple[Group, int, bool, Axis] | None:
    """The letter along which vectors lie, neighbouring lanes of it, whether these are added up, and the
    letter of the elements that each lane meets.
    """
    size, w, out = problem.n
    none = Axis(1, 1, 0)
    along_k = [a for a in without_ones(problem.k) if a.digit < 0 and a.x == 1]
    along_m = [a for a in without_ones(problem.m) if a.digit < 0 and a.x == 1]
    channel = next(iter((*along_k, *along_m)), none)
    for group in problem.groups:
        strides = (group.w, group.out)
        if group.x == channel.size and strides == (size, size) and (size == 1 or (w, out) == (1, 1)):
            return group, size, False, channel
        if (
            size == 1
            and along_k
            and channel.other == 1
            and group.x == group.w == channel.size
            and group.out == 1
        ):
            return group, channel.size, True, none
    return None


def _single_group(problem: Problem, lanes: int) -> tuple[Group, int, bool, Axis] | None:
    """The same without groups, where few elements of the image meet, or few results: packing and copying
    would take much of the time of a product.
    """
    size, w, out = problem.n
    letters = [a for a in without_ones(problem.k) if a.digit < 0]
    if problem.groups or (w, out) != (1, 1) or 2 * size <= lanes or len(letters) > 1:
        return None
    channel = letters[0] if letters else Axis(1, 1, 0)
    is_narrow = channel.size <= FEW_CHANNELS or size <= FEW_VECTORS * lanes
    if not is_narrow or channel.x != 1 or problem.depth * size > MOST_KERNEL:
        return None
    return Group(1, channel.size, size, size), size, False, channel


def _distance(problem: Problem, digit: int) -> int:
    """Elements of the image from one place of a spatial dimension to the next."""
    return next(abs(a.x) // a.step for a in (*problem.m, *problem.k) if a.digit == digit and a.step)


def tiles(plan: Plan) -> list[range]:
    """The places of a row in stretches that are computed at once."""
    count = plan.line.size
    return [range(start, min(start + plan.places, count)) for start in range(0, count, plan.places)]


def is_whole(plan: Plan, tile: range) -> bool:
    """Whether a stretch is full and no window of it leaves the image along the row."""
    return len(tile) == plan.places and all(
        plan.is_there(position, tap) for position in (tile[0], tile[-1]) for tap in (0, plan.taps.size - 1)
    )


def common(plan: Plan) -> range:
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


class Image:
    """Vectors of the image around one of its elements, each loaded once.

    Args:
        plan: the plan.
        pointer: the element, of the first group of a vector.
        width: lanes that exist.
    """

    def __init__(self, plan: Plan, pointer: Value, width: int) -> None:
        self.plan, self.pointer, self.width = plan, pointer, width
        self.memory = registers.memory_element(plan.problem.x_dtype)
        self.loaded: dict[int, list[Value]] = {}
        self.repeated: dict[tuple[int, int], Value] = {}

    def at(self, f: Function, offset: int, channel: int) -> Value:
        """What every lane meets: one element of its group, `offset` elements from the first ones."""
        plan = self.plan
        if not plan.is_repeated:
            return self._vectors(f, offset)[0]
        if plan.is_splat and (plan.vectors > 1 or plan.is_sum):  # there are no registers to keep it in
            return self._repeated(f, offset, channel)
        key = (offset, channel)
        if key not in self.repeated:
            self.repeated[key] = self._repeated(f, offset, channel)
        return self.repeated[key]

    def _repeated(self, f: Function, offset: int, channel: int) -> Value:
        plan, dtype = self.plan, self.plan.problem.x_dtype
        if plan.is_splat:
            pointer = f.at(self.pointer, offset + channel, self.memory)
            return splat(f, pointer, dtype, plan.compute, plan.lanes)
        first, *second = self._vectors(f, offset)
        last = plan.groups_each - 1
        places = [
            min(lane // plan.multiplier, last) * plan.features.x + channel for lane in range(plan.lanes)
        ]
        if second or max(places) < plan.lanes:
            return f.shuffle(first, second[0] if second else None, places)
        # Groups of the second vector do not exist.
        return f.shuffle(first, None, [place if place < plan.lanes else 0 for place in places])

    def _vectors(self, f: Function, offset: int) -> list[Value]:
        """All elements of the groups of a vector."""
        plan, dtype = self.plan, self.plan.problem.x_dtype
        if offset not in self.loaded:
            count = self.width
            if plan.is_repeated:
                count = self.width // plan.multiplier * plan.features.x
            self.loaded[offset] = [
                load(f, plan, f.at(self.pointer, offset + start, self.memory), dtype, count - start)
                for start in range(0, count, plan.lanes)
            ]
        return self.loaded[offset]


def load(f: Function, plan: Plan, pointer: Value, dtype: np.dtype, count: int) -> Value:
    """A vector of which the first `count` lanes exist."""
    if count >= plan.lanes:
        x = registers.load(f, pointer, dtype, plan.lanes)
    else:
        x = registers.masked_load(f, pointer, dtype, f.first_lanes(count, plan.lanes), 0)
    return operations.convert(f, dtype, x, new_dtype=plan.compute)


def starts(f: Function, plan: Plan, number: Int) -> tuple[Int, Int, Int]:
    """Elements to a vector in image, kernel and result."""
    return f.mul(number, plan.x_step), f.mul(number, plan.used), f.mul(number, plan.out_step)


class Emission:
    """Writes the phase of a plan that has rows of results."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        p = plan.problem
        self.x_memory = registers.memory_element(p.x_dtype)
        self.w_memory = registers.memory_element(p.w_dtype)
        self.out_memory = registers.memory_element(p.out_dtype)
        self.zero = registers.register_type(plan.compute, plan.lanes)

    def phases(self) -> tuple[TaskFunction, ...]:
        """Computing."""
        plan, p = self.plan, self.plan.problem
        num_rows = math.prod(g.size for g in plan.others) * math.prod(a.size for a in plan.outer)
        each = plan.line.size * plan.size * (p.x_dtype.itemsize + p.out_dtype.itemsize)
        chunks = Chunks.of(num_rows, each)
        wanted = max(1, min(MOST_TASKS, int(p.flops / TASK_FLOPS)))
        chunks = Chunks(num_rows, min(chunks.per_task, -(-num_rows // wanted)))
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        x, w, out = (f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(3))
        with chunks.loop(f, f.parameters[1]) as number:
            group, row = f.divide(number, math.prod(a.size for a in plan.outer))
            x_first, w_first, out_first = copying.first_of_group(f, p, plan.others, group)
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
            stretches = tiles(plan)
            whole = [tile for tile in stretches if is_whole(plan, tile)]
            for tile in stretches:
                if tile not in whole:
                    self._tile(f, here, tile.start, tile)
            if whole:
                with f.loop(whole[0].start, whole[-1].stop, plan.places) as loop:
                    self._tile(f, here, loop.index, None)
        return (finish("depthwise", [f], chunks.num_tasks, p.flops * NS_PER_FLOP),)

    def _tile(self, f: Function, row: _Row, first: Int, tile: range | None) -> None:
        """Some places of a row; `tile` is given where windows may leave the image."""
        plan = self.plan
        count = plan.places if tile is None else len(tile)
        x = f.at(row.x, f.mul(first, plan.line.x), self.x_memory)
        out = f.at(row.out, f.mul(first, plan.line.other), self.out_memory)
        with f.loop(0, plan.num_vectors) as loop:
            of_x, of_w, of_out = starts(f, plan, loop.index)
            for width in sizes(f, loop.index, plan.num_vectors, plan.used, plan.size):
                pointers = (f.at(x, of_x, self.x_memory), f.at(row.w, of_w, self.w_memory))
                zero = f.constant(0, self.zero)
                vectors = -(-width // plan.lanes)
                sums = _Sums(tile, width, [zero] * (count * vectors))
                loops = (*plan.inner, plan.channel) if plan.has_channel_loop else plan.inner
                acc = self._taps(f, row, pointers, sums, loops)
                for number, value in enumerate(acc):
                    i, v = divmod(number, vectors)
                    place = f.add(of_out, i * plan.line.other + v * plan.lanes)
                    to = f.at(out, place, self.out_memory)
                    self._store(f, value, to, min(plan.lanes, width - v * plan.lanes))

    def _store(self, f: Function, x: Value, pointer: Value, width: int) -> None:
        plan, dtype = self.plan, self.plan.problem.out_dtype
        if plan.is_joined:
            found: Value | None = None
            for i in range(plan.multiplier):
                places = [min(lane * plan.multiplier + i, plan.lanes - 1) for lane in range(plan.lanes)]
                part = f.shuffle(x, None, places)
                found = part if found is None else f.binary("fadd", found, part)
            assert found is not None, "groups have elements"
            x, width = found, width // plan.multiplier
        mask = None if width == plan.lanes else f.first_lanes(width, plan.lanes)
        registers.store(f, registers.rounded(f, x, dtype), pointer, dtype, mask)

    def _taps(
        self, f: Function, row: _Row, pointers: tuple[Value, Value], sums: _Sums, inner: Sequence[Axis]
    ) -> list[Value]:
        """The sums over the taps of the inner axes that meet elements, and those of the row."""
        x, w = pointers
        if not inner:
            return self._row_of_taps(f, pointers, sums)
        axis, *rest = inner
        first, stop = copying.range_inside(f, row.along, axis, self.plan.problem.bounds)
        with f.loop(first, stop, 1, sums.values) as loop:
            moved = (
                f.at(x, f.mul(loop.index, axis.x), self.x_memory),
                f.at(w, f.mul(loop.index, axis.other), self.w_memory),
            )
            inside = dataclasses.replace(sums, values=loop.carried)
            loop.next = self._taps(f, row, moved, inside, rest)
        return loop.results

    def _row_of_taps(self, f: Function, pointers: tuple[Value, Value], sums: _Sums) -> list[Value]:
        plan = self.plan
        (x, w), tile, width = pointers, sums.tile, sums.width
        acc, image = list(sums.values), Image(plan, x, width)
        vectors = -(-width // plan.lanes)
        taps = range(plan.taps.size)
        channels = range(1 if plan.has_channel_loop else plan.channel.size)
        products = list(itertools.product(taps, channels))  # in the order in which the kernel lies
        if not plan.is_splat:  # what is loaded once for all taps is repeated for each channel
            products.sort(key=lambda product: product[1])
        for tap, channel in products:
            weights: list[Value] = []
            for i in range(len(acc) // vectors):
                if tile is not None and not plan.is_there(tile[i], tap):
                    continue
                if not weights:
                    offset = tap * plan.taps.other + channel * plan.channel.other
                    weights = self._weights(f, f.at(w, offset, self.w_memory), width)
                element = image.at(f, i * plan.line.x + tap * plan.taps.x, channel)
                for v, weight in enumerate(weights):
                    acc[i * vectors + v] = f.fma(element, weight, acc[i * vectors + v])
        return acc

    def _weights(self, f: Function, pointer: Value, width: int) -> list[Value]:
        plan, dtype = self.plan, self.plan.problem.w_dtype
        return [
            load(f, plan, f.at(pointer, start, self.w_memory), dtype, width - start)
            for start in range(0, width, plan.lanes)
        ]
