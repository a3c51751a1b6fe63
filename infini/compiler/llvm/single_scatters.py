"""Scatters of single elements, cut into tasks by where the elements go.

Places repeat, so points cannot be shared among threads. Every task looks at all points, a vector at a time,
keeps those that go to its part of the array, in their order, and combines them: results are those of one
task. Keeping lanes of a vector needs an instruction that only AVX-512 has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from infini.compiler.affine import row_major
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.movement import make_task
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I32, I64, scalar, vector
from infini.core import dtypes

if TYPE_CHECKING:
    from infini.compiler.llvm.windows import Windows

MOST_PARTS: Final = 2  # as every part looks at all points, more make one thread slow
PART_NS: Final = 16_000.0  # least time of a part
POINT_NS: Final = 0.8
BLOCK: Final = 1024  # points looked at before those kept are combined
MAX_SIZE: Final = 1 << 30  # of the arrays, whose places are numbers of 32 bits

Move = Callable[[Function, Value, Value, int], None]


def num_parts(w: Windows, target: Target) -> int:
    """How many parts of the array a scatter is cut into; 1 when it is none of single elements."""
    points = math.prod(w.batch)
    if not target.has("avx512f") or w.indices.dtype != dtypes.int32 or w.indices.shape[-1] != 1:
        return 1
    if math.prod(w.window) != 1 or w.numbers.operand_batching_dims or max(points, w.operand.size) >= MAX_SIZE:
        return 1
    (d,) = w.numbers.start_index_map
    return max(1, min(MOST_PARTS, int(points * POINT_NS / PART_NS), w.operand.shape[d] // target.lanes))


def emit(name: str, w: Windows, element: str, move: Move, target: Target) -> TaskFunction:
    """The scatter; its `args` are the array, the starts, the updates and the result, which holds the array.

    Args:
        name: of the operation.
        w: the windows, of one element each.
        element: LLVM's name of an element.
        move: combines some elements with what is there.
        target: processor to make code for.
    """
    parts = num_parts(w, target)
    (d,) = w.numbers.start_index_map
    each = -(-w.operand.shape[d] // parts)
    cost_ns = math.prod(w.batch) * POINT_NS

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        _, starts, updates, out = pointers
        _Part(f, w, f.mul(task, each), each, target.lanes).write(starts, updates, out, element, move)

    return make_task(name, 4, -(-w.operand.shape[d] // each), cost_ns, write)


@dataclass(frozen=True, slots=True)
class _Part:
    """Writes code for the elements that go to `size` places from `first` on."""

    f: Function
    w: Windows
    first: Int
    size: int
    lanes: int

    def write(self, starts: Value, updates: Value, out: Value, element: str, move: Move) -> None:
        f, lanes, points = self.f, self.lanes, math.prod(self.w.batch)
        places, numbers = (f.allocate(4 * (BLOCK + lanes)) for _ in range(2))
        (d,) = self.w.numbers.start_index_map
        stride = row_major(self.w.operand.shape)[d]

        def combine(count: Value) -> None:
            with f.loop(0, count) as loop:
                place, number = (
                    f.convert("zext", f.load(f.at(kept, loop.index, "i32"), I32), I64)
                    for kept in (places, numbers)
                )
                _, there = self.w.offsets(f, [], number)
                to = f.at(out, f.mul(place, stride), element)
                move(f, to, f.at(updates, there, element), 1)

        whole = points - points % lanes
        with f.loop(0, whole, BLOCK) as block:
            stop = f.minimum(f.add(block.index, BLOCK), whole)
            with f.loop(block.index, stop, lanes, [f.constant(0, I64)], runs=True) as loop:
                start = f.load(f.at(starts, loop.index, "i32"), vector("i32", lanes))
                loop.next = [self._keep(start, loop.index, loop.carried[0], places, numbers, None)]
            combine(loop.results[0])
        if whole < points:
            mask = f.first_lanes(points - whole, lanes)
            start = f.masked_load(f.at(starts, whole, "i32"), mask, f.constant(0, vector("i32", lanes)))
            combine(self._keep(start, whole, f.constant(0, I64), places, numbers, mask))

    def _keep(
        self, start: Value, point: Int, count: Value, places: Value, numbers: Value, mask: Value | None
    ) -> Value:
        """Append the points of a vector that go to this part; how many are kept then."""
        f, type_ = self.f, start.type
        if self.w.clips:
            (d,) = self.w.numbers.start_index_map
            limit = f.constant(self.w.operand.shape[d] - 1, type_)
            start = f.intrinsic("smin", f.intrinsic("smax", start, f.constant(0, type_)), limit)
        low, length = (
            f.splat(f.convert("trunc", f.integer(n), I32), self.lanes) for n in (self.first, self._length())
        )
        is_here = f.compare("ult", f.binary("sub", start, low), length)
        is_here = is_here if mask is None else f.binary("and", is_here, mask)
        number = f.splat(f.convert("trunc", f.integer(point), I32), self.lanes)
        number = f.binary("add", number, f.lane_numbers(type_))
        for values, kept in ((start, places), (number, numbers)):
            f.store(self._compressed(values, is_here), f.at(kept, count, "i32"))
        bits = f.convert("bitcast", is_here, scalar(f"i{self.lanes}"))
        return f.binary("add", count, f.intrinsic("ctpop", f.convert("zext", bits, I64)))

    def _length(self) -> Int:
        """Places of this part; the last one may have fewer."""
        (d,) = self.w.numbers.start_index_map
        total = self.w.operand.shape[d]
        return (
            self.size if total % self.size == 0 else self.f.minimum(self.f.sub(total, self.first), self.size)
        )

    def _compressed(self, x: Value, mask: Value) -> Value:
        """The lanes of a mask, next to each other."""
        f, lanes = self.f, x.type.lanes
        symbol = f"@llvm.experimental.vector.compress.v{lanes}i{x.type.bits}"
        f.declare(f"declare {x.type} {symbol}({x.type}, {mask.type}, {x.type})")
        text = f"call {x.type} {symbol}({x.type} {x}, {mask.type} {mask}, {x.type} poison)"
        return f.pure(text, x.type, x, mask)
