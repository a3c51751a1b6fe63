"""Native code of the cumulative operations: one pass over each line, in vector registers.

Along the last dimension a vector is scanned in itself by log2(lanes) shuffles, and what came before is joined
to it; along other dimensions the lanes are neighbouring lines. Few long lines are cut into blocks: first the
total of each block, then each block with the totals before it. Blocks follow from the shape, so results never
depend on threads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.llvm import accumulators, movement, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.running import Kind, LogSumExp, Monoid, State
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import BYTES
from infini.core.ir import ArrayType, Attrs
from infini.lax import cumulative as lax_cumulative, reduction

NAMES: Final = lax_cumulative.NAMES
FEW: Final = 8  # lines that keep all threads busy
LONG: Final = 1 << 15  # elements of a line from which on it is cut
MAX_BLOCKS: Final = 64
_MIN_BLOCK: Final = 4096
_ELEMENT_NS: Final = 0.4
_UNROLL: Final = 4
_MONOIDS: Final = {
    "cumsum": reduction.reduce_sum_p,
    "cumprod": reduction.reduce_prod_p,
    "cummax": reduction.reduce_max_p,
    "cummin": reduction.reduce_min_p,
}


# --- the layout -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is walked: `outer * length * inner` elements, the middle dimension being scanned.

    A line is a row (`inner` is 1) or `width` neighbouring columns; each is cut into `num_blocks` blocks of
    `block` elements, the last one shorter.
    """

    outer: int
    length: int
    inner: int
    lanes: int
    width: int
    block: int

    @property
    def groups(self) -> int:
        """Lines side by side; the last may overlap the one before, with equal results."""
        return -(-self.inner // self.width)

    @property
    def lines(self) -> int:
        """Number of lines."""
        return self.outer * self.groups

    @property
    def num_blocks(self) -> int:
        """Blocks of a line."""
        return -(-self.length // self.block)

    @property
    def is_row(self) -> bool:
        """Whether lanes are neighbours along the scanned dimension."""
        return self.inner == 1


def layout(type_: ArrayType, axis: int, target: Target) -> Layout:
    """The layout for an array and a target."""
    place = axis + type_.ndim
    outer, inner = math.prod(type_.shape[:place]), math.prod(type_.shape[place + 1 :])
    length = type_.shape[place]
    lanes = target.lanes if type_.dtype.itemsize <= 4 else max(1, target.lanes // 2)
    along = length if inner == 1 else inner
    while lanes > 1 and (lanes // 2 >= along if inner == 1 else lanes > along):
        lanes //= 2
    width = 1 if inner == 1 else lanes * min(_UNROLL, inner // lanes)
    found = Layout(outer, length, inner, lanes, width, length)
    if found.lines >= FEW or length < LONG:
        return found
    unit = lanes * _UNROLL
    block = max(_MIN_BLOCK, -(-length // MAX_BLOCKS))
    return dataclasses.replace(found, block=-(-block // unit) * unit)


# --- tasks ------------------------------------------------------------------------------------------


def cumulative(
    name: str, types: tuple[ArrayType, ...], attrs: Attrs, target: Target
) -> tuple[TaskFunction, ...]:
    """A cumulative operation.

    Args:
        name: name of the operation.
        types: type of the operand.
        attrs: its axis and direction.
        target: processor to make code for.
    """
    (type_,) = types
    kind: Kind = LogSumExp(type_.dtype) if name == "cumlogsumexp" else Monoid(_MONOIDS[name], type_.dtype)
    plan = layout(type_, attrs["axis"], target)
    writer = _Writer(kind, type_.dtype, plan, attrs["reverse"])
    cost = type_.size * _ELEMENT_NS * (12.0 if name == "cumlogsumexp" else 1.0)
    if plan.num_blocks == 1:
        each = plan.length * plan.width * type_.dtype.itemsize * (12 if name == "cumlogsumexp" else 2)
        chunks = movement.Chunks.of(plan.lines, each)
        return (movement.make_task(name, 2, chunks.num_tasks, cost, writer.whole_lines(chunks)),)
    count = plan.lines * plan.num_blocks
    totals = movement.make_task(f"{name}_totals", 3, count, cost / 2, writer.totals)
    blocks = movement.make_task(f"{name}_blocks", 3, count, cost, writer.blocks)
    return dataclasses.replace(totals, scratch_bytes=count * writer.total_bytes), blocks


class _Writer:
    """Writes the task functions of one operation."""

    def __init__(self, kind: Kind, dtype: np.dtype, plan: Layout, reverse: bool) -> None:
        self.kind, self.dtype, self.plan, self.reverse = kind, dtype, plan, reverse
        self.element = registers.memory_element(dtype)
        register = registers.register_type(dtype)
        self.register = register.element
        self.num_parts = 2 if isinstance(kind, LogSumExp) else 1

    @property
    def total_bytes(self) -> int:
        """Scratch memory of the total of one block of a line."""
        return self.num_parts * self.plan.width * BYTES[self.register]

    def whole_lines(self, chunks: movement.Chunks) -> Callable[[Function, list[Value], Value], None]:
        """A task that scans some lines from end to end."""

        def write(f: Function, pointers: list[Value], task: Value) -> None:
            with chunks.loop(f, task) as line:
                start = self._line_start(f, line)
                at = [f.at(p, start, self.element) for p in pointers]
                self._scan(f, at[0], at[1], self.plan.length, self._nothing(f))

        return write

    def totals(self, f: Function, pointers: list[Value], task: Value) -> None:
        """A task that finds the total of one block."""
        source, _, scratch = pointers
        line, block, count = self._block(f, task)
        start = f.add(self._line_start(f, line), f.mul(f.mul(block, self.plan.block), self.plan.inner))
        totals = self._total(f, f.at(source, start, self.element), count)
        for number, total in enumerate(totals):
            for part, value in enumerate(total):
                f.store(value, self._total_place(f, scratch, task, number, part))

    def blocks(self, f: Function, pointers: list[Value], task: Value) -> None:
        """A task that scans one block from the total of all before it on."""
        source, target, scratch = pointers
        line, block, count = self._block(f, task)
        carry = self._before(f, scratch, line, block)
        start = f.add(self._line_start(f, line), f.mul(f.mul(block, self.plan.block), self.plan.inner))
        at = [f.at(p, start, self.element) for p in (source, target)]
        self._scan(f, at[0], at[1], count, carry)

    # --- places -------------------------------------------------------------------------------

    def _line_start(self, f: Function, line: Int) -> Int:
        """Offset of the first element of a line."""
        plan = self.plan
        if plan.is_row:
            return f.mul(line, plan.length)
        row, group = f.divide(line, plan.groups)
        first = f.mul(group, plan.width)
        if plan.inner % plan.width and not isinstance(first, int):
            first = f.minimum(first, plan.inner - plan.width)
        return f.add(f.mul(row, plan.length * plan.inner), first)

    def _block(self, f: Function, task: Value) -> tuple[Int, Int, Int]:
        """Line, block in it, and elements of the block, of a task."""
        plan = self.plan
        line, block = f.divide(task, plan.num_blocks)
        left = f.sub(plan.length, f.mul(block, plan.block))
        return line, block, f.minimum(left, plan.block)

    def _total_place(self, f: Function, scratch: Value, item: Int, number: int, part: int) -> Value:
        """Where one vector of a part of a total is."""
        lanes = 1 if self.plan.is_row else self.plan.lanes
        first = f.at(scratch, f.mul(item, self.total_bytes), "i8")
        return f.at(first, (part * self.plan.width) + number * lanes, self.register)

    def _nothing(self, f: Function) -> list[State]:
        plan = self.plan
        return [self.kind.start(f, plan.lanes) for _ in range(1 if plan.is_row else plan.width // plan.lanes)]

    def _before(self, f: Function, scratch: Value, line: Int, block: Int) -> list[State]:
        """The total of the blocks that come first, in every lane for rows."""
        plan, kind = self.plan, self.kind
        states = [kind.start(f, 1 if plan.is_row else plan.lanes) for _ in self._nothing(f)]
        first: Int = f.add(block, 1) if self.reverse else 0
        last: Int = plan.num_blocks if self.reverse else block
        with f.loop(first, last, 1, _pack(states)) as loop:
            item = f.add(f.mul(line, plan.num_blocks), loop.index)
            found = [
                tuple(
                    f.load(self._total_place(f, scratch, item, number, part), value.type)
                    for part, value in enumerate(state)
                )
                for number, state in enumerate(states)
            ]
            now = _unpack(loop.carried, states)
            loop.next = _pack([kind.join(f, a, b) for a, b in zip(now, found, strict=True)])
        return [
            tuple(f.splat(value, plan.lanes) for value in state) for state in _unpack(loop.results, states)
        ]

    # --- loads and stores -----------------------------------------------------------------------

    def _load(self, f: Function, pointer: Value, offset: Int, mask: Value | None) -> State:
        """The state of the elements of one vector, of which the lanes of the mask count."""
        at = f.at(pointer, offset, self.element)
        if mask is None:
            return self.kind.element(f, registers.load(f, at, self.dtype, self.plan.lanes))
        found = self.kind.element(f, registers.masked_load(f, at, self.dtype, mask, 0))
        none = self.kind.start(f, self.plan.lanes)
        return tuple(f.select(mask, x, y) for x, y in zip(found, none, strict=True))

    def _store(self, f: Function, pointer: Value, offset: Int, state: State, mask: Value | None) -> None:
        value = registers.rounded(f, self.kind.finish(f, state), self.dtype)
        registers.store(f, value, f.at(pointer, offset, self.element), self.dtype, mask)

    def _tail_mask(self, f: Function, count: Int, index: Value) -> Value:
        return f.first_lanes(f.sub(count, index), self.plan.lanes)

    def _has_tail(self, count: Int) -> bool:
        return self.plan.lanes > 1 and not (isinstance(count, int) and count % self.plan.lanes == 0)

    # --- one line ---------------------------------------------------------------------------------

    def _scan(self, f: Function, source: Value, target: Value, count: Int, carry: list[State]) -> None:
        """Scan `count` elements."""
        if self.plan.is_row:
            self._scan_row(f, source, target, count, carry[0])
        else:
            self._scan_columns(f, source, target, count, carry)

    def _scan_columns(
        self, f: Function, source: Value, target: Value, count: Int, carry: list[State]
    ) -> None:
        plan, kind = self.plan, self.kind
        with f.loop(0, count, 1, _pack(carry)) as loop:
            row: Int = f.sub(f.sub(count, 1), loop.index) if self.reverse else loop.index
            states = []
            for number, state in enumerate(_unpack(loop.carried, carry)):
                offset = f.add(f.mul(row, plan.inner), number * plan.lanes)
                new = kind.join(f, state, self._load(f, source, offset, None))
                self._store(f, target, offset, new, None)
                states.append(new)
            loop.next = _pack(states)

    def _scan_row(self, f: Function, source: Value, target: Value, count: Int, carry: State) -> None:
        """Vectors from one end to the other; one that is not full is at the end of the row."""
        lanes = self.plan.lanes
        whole = f.mul(f.divide(count, lanes)[0], lanes)

        def step(at: Int, state: State, mask: Value | None = None) -> list[Value]:
            local = self._within(f, self._load(f, source, at, mask))
            result = self.kind.join(f, state, local)
            self._store(f, target, at, result, mask)
            if isinstance(self.kind, LogSumExp):
                return list(self._everywhere(f, result))
            # Joined apart from the result, so that the next vector waits for one operation only.
            return list(self.kind.join(f, state, self._everywhere(f, local)))

        def tail(state: State) -> State:
            if not self._has_tail(count):
                return state
            with f.loop(whole, count, lanes, state) as loop:
                loop.next = step(loop.index, tuple(loop.carried), self._tail_mask(f, count, loop.index))
            return tuple(loop.results)

        if self.reverse:
            carry = tail(carry)
        with f.loop(0, whole, lanes, carry) as loop:
            at = f.sub(f.sub(whole, lanes), loop.index) if self.reverse else loop.index
            loop.next = step(at, tuple(loop.carried))
        if not self.reverse:
            tail(tuple(loop.results))

    def _within(self, f: Function, state: State) -> State:
        """The scan of one vector."""
        lanes, shift = self.plan.lanes, 1
        none = self.kind.start(f, lanes)
        while shift < lanes:
            if self.reverse:
                numbers = [lanes + i + shift if i + shift < lanes else i for i in range(lanes)]
            else:
                numbers = [lanes + i - shift if i >= shift else i for i in range(lanes)]
            moved = tuple(f.shuffle(n, v, numbers) for n, v in zip(none, state, strict=True))
            state = self.kind.join(f, moved, state)
            shift *= 2
        return state

    def _everywhere(self, f: Function, state: State) -> State:
        """The last lane of a scan, in every lane."""
        lanes = self.plan.lanes
        if lanes == 1:
            return state
        edge = 0 if self.reverse else lanes - 1
        return tuple(f.shuffle(value, None, [edge] * lanes) for value in state)

    # --- totals -----------------------------------------------------------------------------------

    def _total(self, f: Function, source: Value, count: Int) -> list[State]:
        """The total of `count` elements of a line: of every column, or one for a row."""
        if self.plan.is_row:
            return [self._total_row(f, source, count)]
        plan, kind, start = self.plan, self.kind, self._nothing(f)
        with f.loop(0, count, 1, _pack(start)) as loop:
            states = _unpack(loop.carried, start)
            row = f.mul(loop.index, plan.inner)
            loop.next = _pack(
                [
                    kind.join(f, state, self._load(f, source, f.add(row, number * plan.lanes), None))
                    for number, state in enumerate(states)
                ]
            )
        return _unpack(loop.results, start)

    def _total_row(self, f: Function, source: Value, count: Int) -> State:
        lanes, kind = self.plan.lanes, self.kind
        several, whole = (f.mul(f.divide(count, n)[0], n) for n in (lanes * _UNROLL, lanes))
        start = [kind.start(f, lanes) for _ in range(_UNROLL)]
        with f.loop(0, several, lanes * _UNROLL, _pack(start)) as loop:
            now = _unpack(loop.carried, start)
            places = [f.add(loop.index, number * lanes) for number in range(_UNROLL)]
            loop.next = _pack(
                [kind.join(f, s, self._load(f, source, at, None)) for s, at in zip(now, places, strict=True)]
            )
        states = _unpack(loop.results, start)
        with f.loop(several, whole, lanes, states[0]) as loop:
            loop.next = list(kind.join(f, tuple(loop.carried), self._load(f, source, loop.index, None)))
        states[0] = tuple(loop.results)
        if self._has_tail(count):
            with f.loop(whole, count, lanes, states[1]) as loop:
                mask = self._tail_mask(f, count, loop.index)
                loop.next = list(kind.join(f, tuple(loop.carried), self._load(f, source, loop.index, mask)))
            states[1] = tuple(loop.results)
        return accumulators.across(f, kind, accumulators.tree(f, kind, states))


def _pack(states: Sequence[State]) -> list[Value]:
    return [value for state in states for value in state]


def _unpack(values: Sequence[Value], like: Sequence[State]) -> list[State]:
    rest = iter(values)
    return [tuple(next(rest) for _ in state) for state in like]
