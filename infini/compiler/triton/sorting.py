"""Triton sources of `sort` along the last dimension.

Keys become unsigned integers in the order of the elements, as on the CPU. Short rows are sorted in registers
by a bitonic network (K. E. Batcher, "Sorting networks and their applications", 1968) over keys and places,
several rows per program; places decide ties, so the result is stable. Long rows are sorted by digits of four
bits from the lowest: counted block by block, the counts summed up, and every element stored where its digit
begins. Operands follow their places at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from infini.compiler import sort_keys
from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import TritonSource, language_name
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs

SHORT: Final = 512  # rows up to here are sorted in registers
TILE: Final = 1024  # elements per program
_DIGIT: Final = 4  # bits of a digit
_VALUES: Final = 1 << _DIGIT
_UNSIGNED: Final = {1: dtypes.uint8, 2: dtypes.uint16, 4: dtypes.uint32, 8: dtypes.uint64}


def sort(types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC) -> tuple[TritonSource, ...]:
    """Sources of a sort. Elements of any dtype move as bits."""
    keys = [t.dtype for t in types[: attrs["num_keys"]]]
    bits = [t.update(dtype=_UNSIGNED[t.dtype.itemsize]) for t in types]
    if types[0].shape[-1] <= SHORT:
        return (_in_registers(bits, keys, target),)
    return _by_digits(bits, keys, target)


def scratch_bytes(types: Sequence[ArrayType], attrs: Attrs) -> int:
    """Scratch memory that the sources use."""
    length = types[0].shape[-1]
    if length <= SHORT:
        return 0
    rows = math.prod(types[0].shape[:-1])
    wide = _wide([t.dtype for t in types[: attrs["num_keys"]]])
    return (rows * (4 * length + _VALUES * -(-length // TILE)) + 2) * wide.itemsize


def _wide(keys: Sequence[np.dtype]) -> np.dtype:
    """The dtype that keys are sorted in."""
    return dtypes.uint64 if any(dtype.itemsize == 8 for dtype in keys) else dtypes.uint32


def _widened(dtype: np.dtype, wide: np.dtype) -> str:
    """The cast of bits to the dtype that keys are sorted in, where they have another one."""
    return "" if dtype.itemsize == wide.itemsize else f".to({language_name(wide)})"


def _number(value: int, dtype: np.dtype) -> str:
    return f"tl.full((), {value:#x}, {language_name(dtype)})"


def _write_key(text: FunctionText, name: str, bits: str, dtype: np.dtype, wide: np.dtype) -> None:
    """The key of elements whose bits, in the wide dtype, an expression gives. Zeros of both signs have one
    key, and so have all NaNs."""
    size = 8 * dtype.itemsize
    top = 1 << (size - 1)
    if dtype in dtypes.FLOATS:
        full = (1 << size) - 1
        text.line(f"bits = {bits}")
        text.line(f"size = bits & {_number(top - 1, wide)}")
        text.line(f"key = bits ^ tl.where(bits == size, {_number(top, wide)}, {_number(full, wide)})")
        text.line(f"key = tl.where(size == 0, {_number(top, wide)}, key)")
        largest = _number(sort_keys.largest_bits(dtype), wide)
        text.line(f"{name} = tl.where(size > {largest}, {_number(full, wide)}, key)")
    elif dtype in dtypes.SIGNED:
        text.line(f"{name} = {bits} ^ {_number(top, wide)}")
    else:
        text.line(f"{name} = {bits}")


# --- short rows -----------------------------------------------------------------------------------


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _in_registers(types: Sequence[ArrayType], keys: Sequence[np.dtype], target: Target) -> TritonSource:
    """One function that sorts some rows per program."""
    length = types[0].shape[-1]
    rows = math.prod(types[0].shape[:-1])
    row = max(_power(length), 2)
    per_program = min(_power(rows), TILE // row)
    size = row * per_program
    text = FunctionText(target)
    text.line(f"i = tl.arange(0, {size})")
    text.line(f"place = i % {row}")
    text.line(f"line = pid * {per_program} + i // {row}")
    text.line(f"inside = (place < {length}) & (line < {rows})")
    text.line(f"start = line * {length}")
    names = []
    for number, dtype in enumerate(keys):
        wide = _wide([dtype])
        loaded = f"tl.load(x{number} + start + place, mask=inside, other=0){_widened(dtype, wide)}"
        text.note("whole numbers in the order of the elements; what fills the row comes last")
        _write_key(text, f"k{number}", loaded, dtype, wide)
        last = _number((1 << (8 * wide.itemsize)) - 1, wide)
        text.line(f"k{number} = tl.where(inside, k{number}, {last})")
        names.append(f"k{number}")
    names.append("place")
    text.helpers.append(_exchange(names))
    text.note("a bitonic network: runs of 2, 4, ... elements are sorted, rising and falling in turns")
    run = 2
    while run <= row:
        distance = run // 2
        while distance:
            # The last run rises everywhere.
            numbers = f"size={size}, distance={distance}, run={run if run < row else 0}"
            text.line(f"{', '.join(names)} = exchange({', '.join(names)}, {numbers})")
            distance //= 2
        run *= 2
    text.note("the elements in the order of their places")
    text.line(f"target = start + i % {row}")
    for number, _ in enumerate(types):
        text.line(f"e = tl.load(x{number} + start + place, mask=inside, other=0)")
        text.line(f"tl.store(y{number} + target, e, mask=inside)")
    parameters = [(f"{c}{n}", t) for c in "xy" for n, t in enumerate(types)]
    about = [f"sort_rows: {per_program} rows of {length} for each program, in registers"]
    index = index_dtype(rows * length)
    return text.source("sort_rows", parameters, -(-rows // per_program), about=about, index=index)


def _exchange(names: Sequence[str]) -> str:
    """The function that compares elements at a distance, and exchanges those in the wrong order."""
    order = ""
    for name in reversed(names):
        less = f"({name}_b < {name}_a)"
        order = f"({less} | (({name}_b == {name}_a) & {order}))" if order else less
    lines = [
        "@triton.jit",
        f"def exchange({', '.join(names)}, size: tl.constexpr, distance: tl.constexpr, run: tl.constexpr):",
        "    # a: the elements, b: those at the distance; rising order, but falling in every second run",
        "    shape: tl.constexpr = [size // (2 * distance), 2, distance]",
    ]
    for name in names:
        lines.append(f"    {name}_a = tl.reshape({name}, shape)")
        lines.append(f"    {name}_b = {name}_a ^ tl.xor_sum({name}_a, 1)[:, None, :]")
    chosen = [f"tl.reshape(tl.where(takes, {name}_b, {name}_a), [size])" for name in names]
    lines += [
        "    falls = (tl.arange(0, size // (2 * distance)) * (2 * distance) & run) != 0",
        "    wants_larger = (tl.arange(0, 2) == 1)[None, :, None] ^ falls[:, None, None]",
        f"    takes = {order} ^ wants_larger",
        f"    return {', '.join(chosen)}",
    ]
    return "\n".join(lines) + "\n"


# --- long rows --------------------------------------------------------------------------------------


def _by_digits(
    types: Sequence[ArrayType], keys: Sequence[np.dtype], target: Target
) -> tuple[TritonSource, ...]:
    """Functions that sort by one key after the other, from the last to the first."""
    writer = _Digits(types, _wide(keys), target)
    step = (writer.count(), writer.offsets(), writer.move())
    sources: list[TritonSource] = []
    for number in reversed(range(len(keys))):
        sources.append(writer.load(number, keys[number], is_first=number == len(keys) - 1))
        # An even number of steps: what was sorted is in the first copies again.
        sources += step * (8 * keys[number].itemsize // _DIGIT)
    return (*sources, writer.gather())


class _Digits:
    """Writes the functions. Scratch memory holds keys twice, places twice, the counts (for each row and value
    of a digit one per block), and the number of the digit twice, all in the dtype of the keys.

    The number is in memory so that every step runs the same code: `count` reads the first, `offsets` copies
    it to the second, which `move` reads, and counts on.
    """

    def __init__(self, types: Sequence[ArrayType], wide: np.dtype, target: Target) -> None:
        self.types, self.wide, self.target = types, wide, target
        self.length = types[0].shape[-1]
        self.rows = math.prod(types[0].shape[:-1])
        self.size = self.rows * self.length
        self.blocks = -(-self.length // TILE)
        self.scratch = ("scratch", ArrayType((1,), wide))
        self.index = index_dtype(4 * self.size + self.rows * _VALUES * self.blocks + 2)

    def _source(
        self, text: FunctionText, name: str, parameters: Sequence[tuple[str, ArrayType]], programs: int
    ) -> TritonSource:
        about = [
            f"{name}: a step of sorting {self.rows} x {self.length} elements by digits of {_DIGIT} bits",
            "scratch: keys twice, their places twice, counts of digits, the number of the digit twice",
        ]
        return text.source(name, parameters, programs, about=about, index=self.index)

    def _region(self, number: int, copy: int | str) -> str:
        """Where keys (0) or places (1) are, or their second copies."""
        first = 2 * number * self.size
        if isinstance(copy, int):
            terms = [str(first + copy * self.size)] if first + copy * self.size else []
        else:
            terms = [*([str(first)] if first else []), f"{copy} * {self.size}"]
        return " + ".join(["scratch", *terms])

    @property
    def _counts(self) -> str:
        return f"scratch + {4 * self.size}"

    def _count_place(self, value: str) -> str:
        """Where the count of a value of the digit is, for the block of the program."""
        place = f"row * {_VALUES} + {value}"
        return f"({place}) * {self.blocks} + block" if self.blocks > 1 else place

    def _digit_number(self, copy: int) -> str:
        return f"scratch + {4 * self.size + self.rows * _VALUES * self.blocks + copy}"

    def _elements(self) -> FunctionText:
        """A function over all elements: `i`, `inside`, and the start of the row of each."""
        text = FunctionText(self.target)
        text.line(f"i = pid * {TILE} + tl.arange(0, {TILE})")
        text.line(f"inside = i < {self.size}")
        text.line(f"start = i // {self.length} * {self.length}")
        return text

    def _row_blocks(self) -> FunctionText:
        """A function over blocks of rows: `row`, `block`, `i` and `inside`."""
        text = FunctionText(self.target)
        if self.blocks > 1:
            text.line(f"row = pid // {self.blocks}")
            text.line(f"block = pid % {self.blocks}")
            text.line(f"place = block * {TILE} + tl.arange(0, {TILE})")
        else:
            text.line("row = pid")
            text.line(f"place = tl.arange(0, {TILE})")
        text.line(f"inside = place < {self.length}")
        text.line(f"i = row * {self.length} + place")
        return text

    def load(self, number: int, dtype: np.dtype, *, is_first: bool) -> TritonSource:
        """Keys of one operand, in the order that the places have by now."""
        text, name = self._elements(), language_name(self.wide)
        if is_first:
            text.line("place = i - start")
            text.line(f"tl.store({self._region(1, 0)} + i, place.to({name}), mask=inside)")
        else:
            text.line(f"place = tl.load({self._region(1, 0)} + i, mask=inside, other=0).to({self.index})")
        loaded = f"tl.load(x{number} + start + place, mask=inside, other=0){_widened(dtype, self.wide)}"
        _write_key(text, "key", loaded, dtype, self.wide)
        text.line(f"tl.store({self._region(0, 0)} + i, key, mask=inside)")
        text.line(f"tl.store({self._digit_number(0)}, tl.full((), 0, {name}))")
        parameters = [(f"x{number}", self.types[number]), self.scratch]
        return self._source(text, "sort_load", parameters, -(-self.size // TILE))

    def _write_digits(self, text: FunctionText, copy: int) -> None:
        """The digit of each element, and for each value of it whether it is that. Keys are in the first or
        the second copy, `side`."""
        text.line(f"number = tl.load({self._digit_number(copy)})")
        text.line(f"side = (number & 1).to({self.index})")
        text.line(f"key = tl.load({self._region(0, 'side')} + i, mask=inside, other=0)")
        text.note("which value the digit of each element has, as columns of 0 and 1")
        text.line(f"digit = ((key >> (number * {_DIGIT})) & {_VALUES - 1}).to(tl.int32)")
        text.line(f"is_value = (digit[:, None] == tl.arange(0, {_VALUES})[None, :]) & inside[:, None]")
        text.line("is_value = is_value.to(tl.int32)")

    def count(self) -> TritonSource:
        """How often each value of a digit occurs in each block."""
        text = self._row_blocks()
        self._write_digits(text, 0)
        text.line(f"counts = tl.sum(is_value, 0).to({language_name(self.wide)})")
        text.line(f"at = {self._count_place(f'tl.arange(0, {_VALUES})')}")
        text.line(f"tl.store({self._counts} + at, counts)")
        return self._source(text, "sort_count", [self.scratch], self.rows * self.blocks)

    def offsets(self) -> TritonSource:
        """Counts become the number of elements that come before, one row per program."""
        text, count = FunctionText(self.target), _VALUES * self.blocks
        name = language_name(self.wide)
        text.line("row = pid")
        text.line(f"before = tl.full((), 0, {name})")
        with text.block(f"for chunk in range(0, {-(-count // TILE)}):"):
            text.line(f"place = chunk * {TILE} + tl.arange(0, {TILE})")
            text.line(f"at = {self._counts} + row * {count} + place")
            text.line(f"found = tl.load(at, mask=place < {count}, other=0)")
            text.line(f"sums = tl.cumsum(found, 0).to({name})")
            text.line(f"tl.store(at, before + sums - found, mask=place < {count})")
            text.line(f"before += tl.sum(found, 0).to({name})")
        with text.block("if row == 0:"):
            text.line(f"number = tl.load({self._digit_number(0)})")
            text.line(f"tl.store({self._digit_number(1)}, number)")
            text.line(f"tl.store({self._digit_number(0)}, (number + 1).to({name}))")
        return self._source(text, "sort_offsets", [self.scratch], self.rows)

    def move(self) -> TritonSource:
        """Every key and place to where its digit says, in the order they have."""
        text = self._row_blocks()
        self._write_digits(text, 1)
        text.note("where the digit begins in the whole row, and how many of the same are before the element")
        text.line("rank = tl.sum(tl.cumsum(is_value, 0) * is_value, 1) - 1")
        text.line(f"at = {self._count_place('digit')}")
        text.line(f"first = tl.load({self._counts} + at, mask=inside, other=0).to({self.index})")
        text.line(f"to = row * {self.length} + first + rank")
        text.line(f"tl.store({self._region(0, '(1 - side)')} + to, key, mask=inside)")
        text.line(f"place = tl.load({self._region(1, 'side')} + i, mask=inside, other=0)")
        text.line(f"tl.store({self._region(1, '(1 - side)')} + to, place, mask=inside)")
        return self._source(text, "sort_move", [self.scratch], self.rows * self.blocks)

    def gather(self) -> TritonSource:
        """The operands in the order of the places."""
        text = self._elements()
        text.line(f"place = tl.load({self._region(1, 0)} + i, mask=inside, other=0).to({self.index})")
        for number, _ in enumerate(self.types):
            text.line(f"e = tl.load(x{number} + start + place, mask=inside, other=0)")
            text.line(f"tl.store(y{number} + i, e, mask=inside)")
        parameters = [(f"{c}{n}", t) for c in "xy" for n, t in enumerate(self.types)]
        return self._source(text, "sort_gather", [*parameters, self.scratch], -(-self.size // TILE))
