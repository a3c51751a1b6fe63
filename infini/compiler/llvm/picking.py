"""Gathers of single elements: a vector of starts at a time, without a branch.

Starts are limited or checked in vectors, and the elements of all lanes are loaded together, those outside
from the first place of the array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from infini.compiler.affine import row_major
from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.crossing import picked
from infini.compiler.llvm.evaluate import Evaluator
from infini.compiler.llvm.indexing import Index
from infini.compiler.llvm.movement import TASK_BYTES, bits_of, coordinates, make_task
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I32, I64, scalar, vector
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.tile.program import Kernel

if TYPE_CHECKING:
    from infini.compiler.llvm.windows import Windows

MAX_SIZE: Final = 1 << 30  # elements of an array whose places are numbers of 32 bits with room to spare
UNROLL: Final = 2
ELEMENT_NS: Final = 0.8


def is_for(w: Windows) -> bool:
    """Whether windows are single elements at places that vectors of 32 bits hold."""
    is_small = max(w.operand.size, w.dense.size) < MAX_SIZE and w.operand.size > 0
    starts = w.indices.dtype
    is_number = starts in dtypes.INTEGERS and starts.itemsize <= 4 and starts != dtypes.uint32
    return is_small and is_number and math.prod(w.window) == 1 and w.operand.dtype.itemsize <= 8


@dataclass(frozen=True, slots=True)
class Computed:
    """Starts that are computed from the elements of arrays at the same place, instead of an array of them."""

    kernel: Kernel
    in_types: tuple[ArrayType, ...]


def emit(w: Windows, fill: np.ndarray, target: Target, computed: Computed | None = None) -> TaskFunction:
    """The gather of elements; its `args` are the operand, the starts or what they are computed from, and the
    result."""
    return _Picking(w, fill, target, computed).task()


class _Picking:
    def __init__(self, w: Windows, fill: np.ndarray, target: Target, computed: Computed | None) -> None:
        self.w, self.fill, self.computed = w, fill, computed
        self.lanes = target.lanes // 2 if w.operand.dtype.itemsize == 8 else target.lanes
        self.rows, self.columns = math.prod(w.batch[:-1]), w.batch[-1] if w.batch else 1
        if not w.numbers.operand_batching_dims:  # all points are alike
            self.rows, self.columns = 1, self.rows * self.columns
        while self.lanes // 2 >= self.columns:
            self.lanes //= 2
        points = self.rows * self.columns
        nbytes = points * (w.operand.dtype.itemsize + 4 * w.indices.shape[-1])
        wanted = max(1, 2 * nbytes // TASK_BYTES)
        step = self.lanes * UNROLL
        self.rows_each = max(1, self.rows // wanted)
        pieces = min(-(-wanted // self.rows), -(-self.columns // step))
        self.columns_each = -(-self.columns // pieces // step) * step if pieces > 1 else self.columns
        self.pieces = -(-self.columns // self.columns_each)
        self.turn = 0  # of computing starts, so that none is taken for another's
        self.cost_ns = points * ELEMENT_NS

    def task(self) -> TaskFunction:
        num_tasks = self.pieces * -(-self.rows // self.rows_each)
        return make_task(
            "pick",
            3 if self.computed is None else 2 + len(self.computed.in_types),
            num_tasks,
            self.cost_ns,
            self._write,
        )

    def _write(self, f: Function, pointers: list[Value], task: Value) -> None:
        number, piece = f.divide(task, self.pieces)
        single = self.rows_each >= self.rows
        first: Int = 0 if single else f.mul(number, self.rows_each)
        stop: Int = self.rows if single else f.add(first, self.rows_each)
        if not single and self.rows % self.rows_each:
            stop = f.minimum(stop, self.rows)
        with f.loop(first, stop, runs=True) as loop:
            row: Int = loop.index if self.rows > 1 else 0
            if self.pieces == 1:
                self._row(f, pointers, row, 0, self.columns)
            else:
                left = f.mul(piece, self.columns_each)
                self._row(f, pointers, row, left, f.minimum(f.add(left, self.columns_each), self.columns))

    def _row(self, f: Function, pointers: Sequence[Value], row: Int, left: Int, right: Int) -> None:
        """The columns of a row from `left` to `right`."""
        step = self.lanes * UNROLL
        whole = self.columns - self.columns % self.lanes
        many = self.columns - self.columns % step
        stop_many = many if isinstance(right, int) else f.minimum(right, many)
        stop_whole = whole if isinstance(right, int) else f.minimum(right, whole)
        if many:
            with f.loop(left, stop_many, step) as loop:
                places = [f.add(loop.index, u * self.lanes) for u in range(UNROLL)]
                self._vectors(f, pointers, row, places, self.lanes)
        if whole > many:  # part of the last piece
            with f.loop(many, stop_whole, self.lanes) as loop:
                self._vectors(f, pointers, row, [loop.index], self.lanes)
        if whole < self.columns:
            if isinstance(right, int):
                self._vectors(f, pointers, row, [whole], self.columns - whole)
            else:
                with f.when(f.compare("eq", right, f.integer(self.columns))):
                    self._vectors(f, pointers, row, [whole], self.columns - whole)

    def _vectors(
        self, f: Function, pointers: Sequence[Value], row: Int, columns: Sequence[Int], active: int
    ) -> None:
        """Vectors of elements from some columns on, of which `active` lanes are there."""
        *starts, out = pointers[1:]
        element = bits_of(self.w.operand.dtype)
        found = [self._offsets(f, starts, row, column, active) for column in columns]
        targets = [f.at(out, f.add(f.mul(row, self.columns), column), element) for column in columns]
        plain = None if active < self.lanes else self._plain(f, starts, row, columns, found)
        if plain is None:
            self._checked(f, pointers[0], found, targets, active)
            return
        is_plain, base, numbers = plain
        with f.when(is_plain):
            for place, start in zip(targets, numbers, strict=True):
                pairs = [f.load(f.at(start, i, "i32"), I64, align=4) for i in range(0, active, 2)]
                self._copy(f, f.at(pointers[0], base, element), pairs, place, active)
        with f.when(f.binary("xor", is_plain, f.constant(True, is_plain.type))):
            self._checked(f, pointers[0], found, targets, active)

    def _plain(
        self,
        f: Function,
        starts: Sequence[Value],
        row: Int,
        columns: Sequence[Int],
        found: Sequence[tuple[Value, Value | None]],
    ) -> tuple[Value, Int, list[Value]] | None:
        """Whether numbers that lie in memory are the places of all elements, counted from some place on; that
        place; and the numbers. It nearly always is so, and spares them the way through vectors."""
        if self.lanes == 1 or not self._are_numbers_in_memory():
            return None
        base = self._base(f, row)
        type_ = vector("i32", self.lanes)
        along = f.splat(f.convert("trunc", f.integer(base), I32), self.lanes)
        is_plain: Value | None = None
        numbers = []
        for column, (offsets, inside) in zip(columns, found, strict=True):
            numbers.append(f.at(starts[0], f.add(f.mul(row, self.columns), column), "i32"))
            here = f.compare("eq", offsets, f.binary("add", f.load(numbers[-1], type_), along))
            here = here if inside is None else f.binary("and", here, inside)
            is_plain = here if is_plain is None else f.binary("and", is_plain, here)
        assert is_plain is not None
        bits = f.convert("bitcast", is_plain, scalar(f"i{self.lanes}"))
        return f.compare("eq", bits, f.constant(-1, bits.type)), base, numbers

    def _are_numbers_in_memory(self) -> bool:
        """Whether starts may be the elements of an array of 32-bit numbers, and all else be the same for the
        vector."""
        w = self.w
        dims = w.numbers.start_indices_batching_dims
        if w.indices.shape[-1] != 1 or any(d == len(w.batch) - 1 for d in dims):
            return False
        (along,) = w.numbers.start_index_map
        types = [w.indices] if self.computed is None else self.computed.in_types
        return types[0].dtype == dtypes.int32 and row_major(w.operand.shape)[along] == 1

    def _checked(
        self,
        f: Function,
        source: Value,
        found: Sequence[tuple[Value, Value | None]],
        targets: Sequence[Value],
        active: int,
    ) -> None:
        """Elements at places in vectors, and the filler where those are outside."""
        for (offsets, inside), place in zip(found, targets, strict=True):
            if self.lanes == 1:
                self._element(f, source, f.convert("zext", offsets, I64), place, 0)
            else:
                both = f.convert("bitcast", offsets, vector("i64", self.lanes // 2))
                self._copy(f, source, [f.extract(both, i) for i in range(-(-active // 2))], place, active)
            if inside is not None:
                self._fill(f, inside, place, active)

    def _copy(self, f: Function, source: Value, pairs: Sequence[Value], place: Value, count: int) -> None:
        """Elements at places of 32 bits, of which each number of 64 bits holds two: taking them from it is
        faster than a load each, and than a gather."""
        for i in range(count):
            pair = pairs[i // 2]
            if i % 2:
                number = f.binary("lshr", pair, f.constant(32, I64))
            else:
                number = f.convert("zext", f.convert("trunc", pair, I32), I64)
            self._element(f, source, number, place, i)

    def _element(self, f: Function, source: Value, number: Value, place: Value, i: int) -> None:
        element = bits_of(self.w.operand.dtype)
        f.store(f.load(f.at(source, number, element), scalar(element)), f.at(place, i, element))

    def _fill(self, f: Function, inside: Value, place: Value, active: int) -> None:
        """Overwrite elements of which the starts are outside, which are rare."""
        lanes = self.lanes
        type_ = vector(bits_of(self.w.operand.dtype), lanes)
        outside = f.binary("xor", inside, f.constant(True, inside.type))
        if active < lanes:
            outside = f.binary("and", outside, f.first_lanes(active, lanes))
        filler = f.constant(int.from_bytes(self.fill.tobytes(), "little"), type_)
        if lanes == 1:
            with f.when(outside):
                f.store(filler, place)
            return
        bits = f.convert("bitcast", outside, scalar(f"i{lanes}"))
        with f.when(f.compare("ne", bits, f.constant(0, bits.type))):
            f.masked_store(filler, place, outside)

    def _offsets(
        self, f: Function, starts: Sequence[Value], row: Int, column: Int, active: int
    ) -> tuple[Value, Value | None]:
        """Places of the elements in the operand, 0 for those outside, and which lie inside."""
        w, lanes = self.w, self.lanes
        strides = row_major(w.operand.shape)
        type_ = vector("i32", lanes)
        total = f.constant(0, type_)
        inside: Value | None = None
        for d, place in zip(
            w.numbers.start_index_map, self._starts(f, starts, row, column, active), strict=True
        ):
            limit = f.constant(w.operand.shape[d] - w.sizes[d], type_)
            if w.clips:
                place = f.intrinsic("smin", f.intrinsic("smax", place, f.constant(0, type_)), limit)
            else:
                fits = f.compare("ule", place, limit)
                inside = fits if inside is None else f.binary("and", inside, fits)
            total = f.binary("add", total, f.binary("mul", place, f.constant(strides[d], type_)))
        batching = w.numbers.operand_batching_dims, w.numbers.start_indices_batching_dims
        for d, where in zip(*batching, strict=True):
            if where == len(w.batch) - 1:
                first = f.splat(f.convert("trunc", f.integer(column), I32), lanes)
                number = f.binary("add", first, f.lane_numbers(type_))
                along = f.binary("mul", number, f.constant(strides[d], type_))
                total = f.binary("add", total, along)
        base = f.splat(f.convert("trunc", f.integer(self._base(f, row)), I32), lanes)
        total = f.binary("add", total, base)
        if inside is not None:
            total = f.select(inside, total, f.constant(0, type_))
        return total, inside

    def _base(self, f: Function, row: Int) -> Int:
        """Place in the operand of what belongs to a row of points."""
        numbers, strides = self.w.numbers, row_major(self.w.operand.shape)
        base: Int = 0
        outer = coordinates(f, row, self.w.batch[:-1]) if numbers.operand_batching_dims else []
        for d, where in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
            if where < len(self.w.batch) - 1:
                base = f.add(base, f.mul(outer[where], strides[d]))
        return base

    def _starts(
        self, f: Function, starts: Sequence[Value], row: Int, column: Int, active: int
    ) -> list[Value]:
        """The starts of a vector of points along each indexed dimension."""
        w, lanes = self.w, self.lanes
        count = w.indices.shape[-1]
        if self.computed is not None:
            return [self._compute(f, self.computed, starts, f.add(f.mul(row, self.columns), column), active)]
        element = registers.memory_element(w.indices.dtype)
        at = f.at(starts[0], f.mul(f.add(f.mul(row, self.columns), column), count), element)
        parts = []
        for j in range(count):
            there = min(lanes, max(0, active * count - j * lanes))
            type_ = vector(element, lanes)
            here = f.at(at, j * lanes, element)
            if there == lanes:
                parts.append(f.load(here, type_))
            elif there:
                parts.append(f.masked_load(here, f.first_lanes(there, lanes), f.constant(0, type_)))
            else:
                parts.append(f.constant(0, type_))
        op = "sext" if w.indices.dtype in dtypes.SIGNED else "zext"
        order = [[i * count + k for i in range(lanes)] for k in range(count)]
        if count > 1 and lanes > 1:
            parts = [picked(f, parts, places) for places in order]
        return [f.convert(op, part, vector("i32", lanes)) for part in parts]

    def _compute(
        self, f: Function, computed: Computed, arrays: Sequence[Value], place: Int, active: int
    ) -> Value:
        """A vector of starts from some place on."""
        lanes, body = self.lanes, computed.kernel.body
        definitions = {v: equation for equation in body.equations for v in equation.outputs}
        grid = computed.kernel.grid
        e = Evaluator(f, definitions, grid, [0] * len(grid), {}, dict(body.consts), allocate=f.allocate)
        e.lanes = lanes
        e.turn = self.turn = self.turn + 1
        for array, param, type_ in zip(arrays, body.params, computed.in_types, strict=False):
            at = f.at(array, place, registers.memory_element(type_.dtype))
            if active == lanes:
                e.registers[param] = registers.load(f, at, type_.dtype, lanes)
            else:
                mask = f.first_lanes(active, lanes)
                e.registers[param] = registers.masked_load(f, at, type_.dtype, mask, 0)
        value = e.vector(body.results[0], (Index(0),) * body.results[0].type.ndim)
        op = "sext" if self.w.indices.dtype in dtypes.SIGNED else "zext"
        return f.convert(op, value, vector("i32", lanes))
