"""The value of a tile expression at an index: elementwise operations compute, views only change the index.

An index has one entry per dimension, `base + lane * stride`. What does not depend on the lane is computed
once as a scalar; the builder moves what does not depend on a loop out of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers, schedule, segments, table_rows
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.indexing import Index, broadcast_index, c_strides, sliced_index, view_index
from infini.compiler.llvm.types import BYTES, I1, Type, scalar, vector
from infini.core import dtypes, ir
from infini.core.ir import ArrayType, Equation, Var
from infini.tile.program import Access


@dataclass(frozen=True, slots=True)
class Bound:
    """A range check of an access that the loop's range already guarantees: (size, offset, grid strides,
    tile strides)."""

    size: int
    offset: int
    grid_strides: tuple[int, ...]
    tile_strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """An array that tiles are loaded from or stored to."""

    pointer: Value
    type: ArrayType
    access: Access

    def store(self, evaluator: Evaluator, index: Sequence[Index], x: Value) -> None:
        """Store a result of a pass."""
        evaluator.store(self, index, x)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A value kept in memory, dense and in C order."""

    pointer: Value
    type: ArrayType


class Evaluator:
    """Evaluates variables of a body.

    Args:
        f: function under construction.
        definitions: equation of each variable that has one.
        grid: size of each grid dimension.
        program_ids: number of the current program along each grid dimension.
        operands: array of each tile parameter.
        constants: constant of each variable that is one.
        allocate: memory for a buffer of so many bytes.
    """

    def __init__(
        self,
        f: Function,
        definitions: Mapping[Var, Equation],
        grid: Sequence[int],
        program_ids: Sequence[Int],
        operands: Mapping[Var, Operand],
        constants: Mapping[Var, ir.Constant],
        *,
        allocate: Callable[[int], Value],
    ) -> None:
        self.f = f
        self.allocate = allocate
        self.definitions = definitions
        self.grid = tuple(grid)
        self.program_ids = list(program_ids)
        self.operands = operands
        self.constants = constants
        self.buffers: dict[Var, Buffer] = {}
        self.registers: dict[Var, Value] = {}  # scalars: program ids and reductions of everything
        self.lanes = 1
        self.mask: Value | None = None  # active lanes, None when all are
        self.guaranteed: frozenset[Bound] = frozenset()
        self.cuts: segments.Cuts | None = None  # of the only dimension of the tile
        self.segment: range | None = None  # between them, where the loops stand now
        self.programs: dict[int, range] = {}  # along dimensions of the grid, where they stand
        self.facts: list[tuple[segments.Lines, range]] = []  # for comparisons in these ranges
        self.lane_dimension: int | None = None  # of the grid, when lanes are neighbouring programs
        self.streams = False  # whether stores to arrays, all of aligned vectors, pass the cache by
        self.turn = 0  # counted up by who changes program ids or registers: what was known is computed anew

    def segments(self, size: int) -> Iterator[range]:
        """The parts of a tile of one dimension in which conditions are constant; what is evaluated meanwhile
        is for that part."""
        if self.cuts is None:
            yield range(size)
            return
        for first, stop in itertools.pairwise([0, *self.cuts.places, size]):
            self.segment = range(first, stop)
            self.facts.append((self.cuts.lines, self.segment))
            self.turn += 1
            yield self.segment
            self.facts.pop()
        self.segment = None

    # --- values -------------------------------------------------------------------------

    def vector(self, var: Var, index: tuple[Index, ...]) -> Value:
        """The value in all lanes."""
        return self.f.splat(self.value(var, index), self.lanes)

    def value(self, var: Var, index: tuple[Index, ...]) -> Value:
        """The value; a scalar when it does not depend on the lane."""
        known = self.registers.get(var)
        if known is not None:
            return known
        varies = self.lane_dimension is not None or any(i.stride for i in index)
        mask = self.mask.text if varies and self.mask else ""
        key = (var, index, self.lanes if varies else 1, mask, self.turn)
        found = self.f.recall(key)
        if found is not None:
            return found
        result = self._compute(var, index)
        # A value from memory is remembered where it was read; others where their operands are known.
        return self.f.remember(key, result)

    def _compute(self, var: Var, index: tuple[Index, ...]) -> Value:
        buffer = self.buffers.get(var)
        if buffer is not None:
            return self.load_buffer(buffer, index)
        if var in self.operands:
            return self.load(self.operands[var], index)
        if var in self.constants:
            return self._constant(var, index)
        equation = self.definitions[var]
        if equation.op.name in schedule.VIEWS:
            return self._view(equation, index)
        if equation.op.name == "gather":
            return table_rows.value(self, equation, index)
        inputs = equation.inputs
        known = self._known(equation, index)
        if known is not None:
            return known
        values = [self.value(v, broadcast_index(index, v.type.shape, var.type.shape)) for v in inputs]
        lanes = max(v.type.lanes for v in values)
        return operations.emit(
            self.f,
            equation.op.name,
            [v.type.dtype for v in equation.inputs],
            var.type.dtype,
            [self.f.splat(v, lanes) for v in values],
            equation.attrs,
        )

    def _known(self, equation: Equation, index: tuple[Index, ...]) -> Value | None:
        """What an operation gives where comparisons are constants: True, False, or the choice they make."""
        name, inputs, shape = equation.op.name, equation.inputs, equation.output.type.shape
        if not self.facts or not inputs or inputs[0].type.ndim > 1:
            return None
        if name in segments.COMPARISONS:
            for lines, where in self.facts:
                holds = lines.holds(equation, where)
                if holds is not None:
                    return self.f.constant(holds, I1)
        if inputs[0].type.dtype != dtypes.bool_ or name not in ("and", "or", "select_n"):
            return None
        for number, var in enumerate(inputs[: 1 if name == "select_n" else 2]):
            value = self.value(var, broadcast_index(index, var.type.shape, shape)).text
            if value in ("true", "false"):
                is_true = value == "true"
                if name != "select_n" and is_true == (name == "or"):
                    return self.f.constant(is_true, I1)
                other = inputs[1 + is_true] if name == "select_n" else inputs[1 - number]
                return self.value(other, broadcast_index(index, other.type.shape, shape))
        return None

    def _constant(self, var: Var, index: tuple[Index, ...]) -> Value:
        constant = self.constants[var]
        if constant.is_scalar:
            return registers.constant(self.f, constant.item(), constant.type.dtype)
        buffer = Buffer(self.f.allocate(constant.type.nbytes), constant.type)
        bits = constant.array.reshape(-1)
        scope, self.f.scope = self.f.scope, self.f.root
        for i, item in enumerate(bits):
            number = registers.constant(self.f, item.item(), constant.type.dtype)
            element = registers.memory_element(constant.type.dtype)
            registers.store(self.f, number, self.f.at(buffer.pointer, i, element), constant.type.dtype)
        self.f.scope = scope
        self.buffers[var] = buffer
        return self.load_buffer(buffer, index)

    def _view(self, equation: Equation, index: tuple[Index, ...]) -> Value:
        if equation.op.name == "iota":
            return self._iota(equation, index)
        operand, *rest = equation.inputs
        if equation.op.name == "dynamic_slice":
            starts = [self.value(v, ()) for v in rest]
            return self.value(operand, sliced_index(self.f, equation, index, starts))
        return self.value(operand, view_index(self.f, equation, index))

    def _iota(self, equation: Equation, index: tuple[Index, ...]) -> Value:
        attrs = equation.attrs
        place = index[len(index) - len(attrs["shape"]) + attrs["dimension"]]
        wide = dtypes.int64 if attrs["shape"][attrs["dimension"]] > 1 << 31 else dtypes.int32
        number = self.lane_places(place, wide)
        return operations.convert(self.f, wide, number, new_dtype=attrs["dtype"])

    def lane_places(self, place: Index, dtype: np.dtype = dtypes.int32) -> Value:
        """The index along one dimension in every lane; a scalar when it is the same in all."""
        f = self.f
        element = f"i{dtype.itemsize * 8}"
        base = f.convert("trunc", f.integer(place.base), scalar(element))
        if place.stride == 0 or self.lanes == 1:
            return base
        numbers = f.lane_numbers(vector(element, self.lanes))
        if place.stride != 1:
            numbers = f.binary("mul", numbers, f.constant(place.stride, numbers.type))
        return f.binary("add", f.splat(base, self.lanes), numbers)

    # --- memory -------------------------------------------------------------------------

    def load_buffer(self, buffer: Buffer, index: Sequence[Index]) -> Value:
        """Elements of a buffer."""
        pointer, stride = self._buffer_place(buffer, index)
        return self._load_lanes(pointer, buffer.type.dtype, stride, self.mask, 0, is_invariant=False)

    def store_buffer(self, buffer: Buffer, index: Sequence[Index], x: Value) -> None:
        """Store elements into a buffer."""
        pointer, stride = self._buffer_place(buffer, index)
        self._store_lanes(x, pointer, buffer.type.dtype, stride, self.mask)

    def _buffer_place(self, buffer: Buffer, index: Sequence[Index]) -> tuple[Value, int]:
        factors = c_strides(buffer.type.shape)
        pointer = self._address(
            buffer.pointer, buffer.type.dtype, [(i.base, n) for i, n in zip(index, factors, strict=True)]
        )
        return pointer, sum(i.stride * n for i, n in zip(index, factors, strict=True))

    def load(self, operand: Operand, index: Sequence[Index]) -> Value:
        """Elements of a tile of an array."""
        access, dtype = operand.access, operand.type.dtype
        if access.fill is not None and self._is_outside(operand):
            return registers.constant(self.f, access.fill, dtype)
        condition = None if access.fill is None else self.inside(operand, index)
        pointer, stride = self.place(operand, index)
        if condition is None:
            return self._load_lanes(pointer, dtype, stride, self.mask, 0, is_invariant=True)
        assert access.fill is not None
        if self.lanes > 1 and (condition.type.lanes > 1 or stride != 0):
            # A load of which no lane is on costs a thousand times one of memory when there is none.
            pointer = self.f.select(self._touches(operand, index), pointer, operand.pointer)
            condition = self.f.splat(condition, self.lanes)
            mask = condition if self.mask is None else self.f.binary("and", condition, self.mask)
            return self._load_lanes(pointer, dtype, stride, mask, access.fill, is_invariant=False)
        # One element: read it from a safe place when it is outside.
        f = self.f
        safe = f.allocate(8)
        element = f.select(condition, pointer, safe)
        loaded = registers.load(f, element, dtype, 1)
        return f.select(condition, loaded, registers.constant(f, access.fill, dtype))

    def store(self, operand: Operand, index: Sequence[Index], x: Value) -> None:
        """Store elements of a tile into an array, where they lie inside."""
        condition = None if operand.access.fill is None else self.inside(operand, index)
        pointer, stride = self.place(operand, index)
        mask = self.mask
        if condition is not None:
            condition = self.f.splat(condition, x.type.lanes)
            mask = condition if mask is None else self.f.binary("and", condition, mask)
        self._store_lanes(x, pointer, operand.type.dtype, stride, mask, streams=self.streams)

    def _load_lanes(
        self,
        pointer: Value,
        dtype: np.dtype,
        stride: int,
        mask: Value | None,
        fill: complex,
        *,
        is_invariant: bool,
    ) -> Value:
        f = self.f
        if self.lanes == 1 or (stride == 0 and (mask is None or mask is self.mask)):
            return registers.load(f, pointer, dtype, 1, is_invariant=is_invariant)
        if stride == 1 and mask is None:
            return registers.load(f, pointer, dtype, self.lanes, is_invariant=is_invariant)
        if stride == 1 and mask is not None:
            return registers.masked_load(f, pointer, dtype, mask, fill)
        if stride == -1:
            return self._backwards(pointer, dtype, mask, fill, is_invariant=is_invariant)
        if stride == 2 and (mask is None or dtype.itemsize >= 4):
            return self._every_other(pointer, dtype, mask, fill, is_invariant=is_invariant)
        return self._gather(pointer, dtype, stride, mask, fill)

    def _backwards(
        self, pointer: Value, dtype: np.dtype, mask: Value | None, fill: complex, *, is_invariant: bool
    ) -> Value:
        """Neighbours, the last of them first."""
        f, order = self.f, range(self.lanes - 1, -1, -1)
        memory = vector(registers.memory_element(dtype), self.lanes)
        start = f.at(pointer, 1 - self.lanes, memory.element)
        if mask is None:
            bits = f.load(start, memory, is_invariant=is_invariant)
        else:
            passthrough = registers.in_memory(f, fill, dtype, self.lanes)
            bits = f.masked_load(start, f.shuffle(mask, None, order), passthrough)
        return registers.from_memory(f, f.shuffle(bits, None, order), dtype)

    def _every_other(
        self, pointer: Value, dtype: np.dtype, mask: Value | None, fill: complex, *, is_invariant: bool
    ) -> Value:
        """Elements two apart, from two loads of neighbours: the second one ends with the last lane's element,
        so nothing beyond is read.
        """
        f, lanes = self.f, self.lanes
        memory = vector(registers.memory_element(dtype), lanes)
        places = [pointer, f.at(pointer, lanes - 1, memory.element)]
        if mask is None:
            parts = [f.load(place, memory, is_invariant=is_invariant) for place in places]
        else:
            # What lies between is not read: it may be outside where a lane is off.
            no, passthrough = f.constant(False, mask.type), registers.in_memory(f, fill, dtype, lanes)
            numbers = [range(lanes), range(lanes - 1, 2 * lanes - 1)]
            parts = [
                f.masked_load(
                    place, f.shuffle(mask, no, [lanes if n % 2 else n // 2 for n in part]), passthrough
                )
                for place, part in zip(places, numbers, strict=True)
            ]
        chosen = [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)]
        return registers.from_memory(f, f.shuffle(parts[0], parts[1], chosen), dtype)

    def _gather(
        self, pointer: Value, dtype: np.dtype, stride: int, mask: Value | None, fill: complex
    ) -> Value:
        f = self.f
        memory = vector(registers.memory_element(dtype), self.lanes)
        passthrough = registers.in_memory(f, fill, dtype, self.lanes)
        places = self._lane_pointers(pointer, memory.element, stride)
        active = mask if mask is not None else f.constant(True, vector("i1", self.lanes))
        name = f"@llvm.masked.gather.{_suffix(memory)}.v{memory.lanes}p0"
        f.declare(f"declare {memory} {name}({places.type}, i32, {active.type}, {memory})")
        arguments = f"{active.type} {active}, {memory} {passthrough}"
        align = BYTES[memory.element]
        loaded = f.here(f"call {memory} {name}({places.type} {places}, i32 {align}, {arguments})", memory)
        return registers.from_memory(f, loaded, dtype)

    def _lane_pointers(self, pointer: Value, element: str, stride: int) -> Value:
        offsets = ", ".join(f"i64 {lane * stride}" for lane in range(self.lanes))
        type_ = vector("ptr", self.lanes)
        return self.f.pure(
            f"getelementptr {element}, ptr {pointer}, <{self.lanes} x i64> <{offsets}>", type_, pointer
        )

    def _store_lanes(
        self,
        x: Value,
        pointer: Value,
        dtype: np.dtype,
        stride: int,
        mask: Value | None,
        *,
        streams: bool = False,
    ) -> None:
        f = self.f
        if streams and mask is None and stride == 1 and x.type.lanes > 1:
            bits = registers.to_memory(f, x, dtype)
            f.store(bits, pointer, align=bits.type.lanes * dtype.itemsize, streams=True)
            return
        if x.type.lanes == 1 or stride == 1:
            registers.store(f, x, pointer, dtype, mask)
            return
        bits = registers.to_memory(f, x, dtype)
        places = self._lane_pointers(pointer, bits.type.element, stride)
        active = mask if mask is not None else f.constant(True, vector("i1", self.lanes))
        name = f"@llvm.masked.scatter.{_suffix(bits.type)}.v{bits.type.lanes}p0"
        f.declare(f"declare void {name}({bits.type}, {places.type}, i32, {active.type})")
        align = BYTES[bits.type.element]
        arguments = f"{places.type} {places}, i32 {align}, {active.type} {active}"
        f.do(f"call void {name}({bits.type} {bits}, {arguments})")

    # --- addresses ------------------------------------------------------------------------

    def place(self, operand: Operand, index: Sequence[Index]) -> tuple[Value, int]:
        """Address of the first lane, and elements from lane to lane."""
        access = operand.access
        strides = c_strides(operand.type.shape)
        terms: list[tuple[Int, int]] = [(1, sum(s * o for s, o in zip(strides, access.offsets, strict=True)))]
        for j, number in enumerate(self.program_ids):
            terms.append(
                (number, sum(s * row[j] for s, row in zip(strides, access.grid_strides, strict=True)))
            )
        stride = 0
        for t, place in enumerate(index):
            factor = sum(s * row[t] for s, row in zip(strides, access.tile_strides, strict=True))
            terms.append((place.base, factor))
            stride += factor * place.stride
        if self.lane_dimension is not None:
            stride += terms[1 + self.lane_dimension][1]
        return self._address(operand.pointer, operand.type.dtype, terms), stride

    def _address(self, pointer: Value, dtype: np.dtype, terms: Sequence[tuple[Int, int]]) -> Value:
        """`pointer` moved by a sum of products, outermost terms first so that they leave the inner loops."""
        f = self.f
        element = registers.memory_element(dtype)
        fixed = 0
        varying: list[Value] = []
        for number, factor in terms:
            product = f.mul(number, factor)
            if isinstance(product, int):
                fixed += product
            else:
                varying.append(product)
        for term in sorted(varying, key=lambda v: v.scope.depth):
            pointer = f.at(pointer, term, element)
        return f.at(pointer, fixed, element)

    def inside(self, operand: Operand, index: Sequence[Index]) -> Value | None:
        """Whether each lane lies inside the array; None when all do."""
        f = self.f
        result: Value | None = None
        for place, size, dtype in self._checked(operand, index):
            at = self.lane_places(place, dtype)
            check = f.compare("ult", at, f.constant(size, at.type))
            if result is None:
                result = check
            else:
                lanes = max(result.type.lanes, check.type.lanes)
                result = f.binary("and", f.splat(result, lanes), f.splat(check, lanes))
        return result

    def _is_outside(self, operand: Operand) -> bool:
        """Whether no program has an element inside along some dimension."""
        ranges = [self._range(operand.access, d) for d in range(operand.type.ndim)]
        return any(
            high < 0 or low >= size for (low, high), size in zip(ranges, operand.type.shape, strict=True)
        )

    def _touches(self, operand: Operand, index: Sequence[Index]) -> Value:
        """Whether some lane may lie inside the array: along each dimension for itself, some lane does."""
        f, lanes = self.f, self.lanes
        result: Value | None = None
        for place, size, _ in self._checked(operand, index):
            reach = place.stride * (lanes - 1)
            # Of the lanes, the first and the last are the ends.
            nearest = f.integer(f.add(place.base, max(reach, 0)))
            check = f.compare("ult", nearest, f.integer(size + abs(reach)))
            result = check if result is None else f.binary("and", result, check)
        assert result is not None
        return result

    def _checked(self, operand: Operand, index: Sequence[Index]) -> Iterator[tuple[Index, int, np.dtype]]:
        """The place along each array dimension that may be outside, the size there, and a dtype for it."""
        f, access = self.f, operand.access
        for d, size in enumerate(operand.type.shape):
            grid_row, tile_row = access.grid_strides[d], access.tile_strides[d]
            if Bound(size, access.offsets[d], grid_row, tile_row) in self.guaranteed:
                continue
            low, high = self._range(access, d)
            if low >= 0 and high < size:
                continue
            base: Int = access.offsets[d]
            for number, factor in zip(self.program_ids, grid_row, strict=True):
                base = f.add(base, f.mul(number, factor))
            stride = 0
            for place, factor in zip(index, tile_row, strict=True):
                base = f.add(base, f.mul(place.base, factor))
                stride += factor * place.stride
            dtype = dtypes.int32 if max(-low, high, size) < 1 << 31 else dtypes.int64
            yield Index(base, stride), size, dtype

    def _range(self, access: Access, d: int) -> tuple[int, int]:
        """Least and largest index along one array dimension over all programs and tile elements."""
        low = high = access.offsets[d]
        sizes = [
            *zip(access.grid_strides[d], self.grid, strict=True),
            *zip(access.tile_strides[d], access.tile, strict=True),
        ]
        for dimension, programs in self.programs.items():
            factor = access.grid_strides[d][dimension]
            low += factor * programs[0]
            high += factor * programs[0]
            sizes[dimension] = (factor, len(programs))
        if self.segment is not None and len(access.tile) == 1 and access.tile[0] > 1:
            factor = access.tile_strides[d][0]
            low, high = low + factor * self.segment[0], high + factor * self.segment[0]
            sizes[-1] = (factor, len(self.segment))
        for factor, size in sizes:
            reach = factor * (size - 1)
            low, high = low + min(reach, 0), high + max(reach, 0)
        return low, high


def _suffix(type_: Type) -> str:
    """How the names of intrinsics spell a vector type."""
    return f"v{type_.lanes}{'f' if type_.is_float else 'i'}{type_.bits}"
