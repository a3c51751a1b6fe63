"""How the kernels see a matrix in few bits: chunks of 256 numbers of a row, and in them vectors of bytes.

A vector holds as many codes as a register has bytes, each without a sign. Four neighbouring codes, which one
instruction multiplies and adds, are a *lane*, and belong to four neighbours along k. Vectors whose lanes have
equal scales form a *unit*: their sums are added as integers. What lies beyond the end of a row reads as
zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.types import F32, I32, I64, vector
from infini.compiler.passes import quantized
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax.quantized.scheme import Q4_K as Q4_K, Q8_0 as Q8_0, Scheme

CHUNK: Final = quantized.CHUNK
BLOCK: Final = quantized.BLOCK  # activations with one scale
RUNS: Final = {"Q4_K": 32, "Q5_K": 32, "Q6_K": 64}  # bytes whose low halves come before their high ones
_PLAIN_GROUPS: Final = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Vector:
    """A register of codes.

    Args:
        start: bytes from the chunk's codes to those that are loaded.
        shift: bits by which they are moved to the right.
        mask: bits that are kept then.
        lanes: of every lane, the number in the chunk where its four codes begin.
    """

    start: int
    shift: int
    mask: int
    lanes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """Vectors whose lanes have equal scales."""

    vectors: tuple[Vector, ...]

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes of the first vector, by which scales are found."""
        return self.vectors[0].lanes


def lanes_of(target: Target) -> int:
    """Lanes of four bytes of the registers that are used."""
    return 16 if has_dot(target) and target.lanes == 16 else 8


def has_dot(target: Target) -> bool:
    """Whether one instruction multiplies groups of four bytes and adds to int32."""
    return (target.lanes == 16 and target.has("avx512vnni")) or (target.lanes == 8 and target.has("avxvnni"))


def has_code(scheme: Scheme, k: int, target: Target) -> bool:
    """Whether kernels read rows of `k` numbers of a scheme on this processor."""
    if not (target.is_x86 and target.has("avx2") and target.has("f16c")):
        return False
    if scheme.part:
        return scheme.bits >= 3
    group = k if scheme.group is None else scheme.group
    if scheme.bits == 8:
        return group == k or group in _PLAIN_GROUPS or group % CHUNK == 0
    return scheme.bits == 4 and group in _PLAIN_GROUPS


@functools.lru_cache(maxsize=256)
def units_of(scheme: Scheme, lanes: int) -> tuple[Unit, ...]:
    """The units of a chunk."""
    width = 4 * lanes
    vectors: list[Vector] = []
    if scheme.bits == 8:
        vectors += [
            Vector(start, 0, 255, tuple(range(start, start + width, 4))) for start in range(0, CHUNK, width)
        ]
    elif scheme.bits == 3:
        for start in range(0, 64, width):
            for shift in (0, 2, 4, 6):
                here = range(start, start + width, 4)
                places = tuple(a // 32 * 128 + shift // 2 * 32 + a % 32 for a in here)
                vectors.append(Vector(32 + start, shift, 3, places))
    else:
        assert scheme.group is not None
        run = RUNS.get(scheme.name, scheme.group // 2)
        first = 32 if scheme.bits == 5 else 0
        for start in range(0, 128, width):
            for shift in (0, 4):
                here = range(start, start + width, 4)
                places = tuple(a // run * 2 * run + shift // 4 * run + a % run for a in here)
                vectors.append(Vector(first + start, shift, 15, places))
    part = min(scheme.part or BLOCK, BLOCK)
    grouped: dict[tuple[int, ...], list[Vector]] = {}
    for v in vectors:
        grouped.setdefault(tuple(place // part for place in v.lanes), []).append(v)
    return tuple(Unit(tuple(found)) for found in grouped.values())


@dataclass(frozen=True, slots=True)
class Reader:
    """Writes what reads a matrix.

    Args:
        scheme: its scheme, with a group.
        types: types of its planes.
        lanes: of a register.
        signed: whether codes of 8 bits stay signed; otherwise 128 is added to them.
    """

    scheme: Scheme
    types: tuple[ArrayType, ...]
    lanes: int
    signed: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of the matrix."""
        return self.types[0].shape[-3]

    @property
    def k(self) -> int:
        """Numbers of a row."""
        return self.num_groups * self._group

    @property
    def num_groups(self) -> int:
        """Groups of a row."""
        return self.types[0].shape[-2]

    @property
    def _group(self) -> int:
        return self.types[0].shape[-1] * 8 // self.scheme.bits

    @property
    def num_chunks(self) -> int:
        """Chunks of a row, the last of which may be shorter."""
        return -(-self.k // CHUNK)

    @property
    def tail(self) -> int:
        """Numbers of a last chunk that is shorter."""
        return self.k % CHUNK

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units of a chunk."""
        return units_of(self.scheme, self.lanes)

    @property
    def center(self) -> int:
        """What codes are too large by."""
        if self.scheme.bits == 8:
            return 0 if self.signed else 128
        return self.scheme.center

    @property
    def part(self) -> int:
        """Numbers along k with one scale."""
        return min(self.scheme.part or BLOCK, BLOCK)

    @property
    def num_scales(self) -> int:
        """Scales of a chunk, at most one per 16 numbers."""
        return CHUNK // self.part

    @property
    def has_offsets(self) -> bool:
        """Whether something is added to the numbers of a group."""
        return bool(self.scheme.beside)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all planes."""
        return sum(t.nbytes for t in self.types) // max(1, self.num_rows)

    # --- where things are ---------------------------------------------------------------------

    def places(self, f: Function, pointers: Sequence[Value], row: Int, chunk: Int) -> Places:
        """Where the planes of a whole chunk of a row are."""
        found = []
        for pointer, type_ in zip(pointers, self.types, strict=True):
            size = type_.size // max(1, self.num_rows)
            here = f.mul(row, size)
            per_group = size // self.num_groups
            if self._group >= CHUNK:
                group = f.divide(chunk, self._group // CHUNK)[0] if self.num_groups > 1 else 0
                if type_ is self.types[0]:  # the codes of a long group go on from chunk to chunk
                    here = f.add(here, f.mul(chunk, CHUNK * self.scheme.bits // 8))
                else:
                    here = f.add(here, f.mul(group, per_group))
            else:
                here = f.add(here, f.mul(chunk, CHUNK // self._group * per_group))
            found.append(f.at(pointer, here, registers.memory_element(type_.dtype)))
        return Places(tuple(found))

    def tail_places(
        self, f: Function, pointers: Sequence[Value], row: Int, memory: Sequence[Value]
    ) -> Places:
        """Where the planes of the last chunk of a row are once they are copied, with zeros behind."""
        source = self.places(f, pointers, row, self.num_chunks - 1)
        found = []
        for pointer, type_, nbytes, copy in zip(
            source.planes, self.types, self._tail_bytes(), memory, strict=True
        ):
            if type_ is not self.types[0] and self._group >= CHUNK:
                found.append(pointer)
                continue
            copy_bytes(f, pointer, copy, nbytes)
            found.append(f.here(f"getelementptr i8, ptr {copy}, i64 0", copy.type))
        return Places(tuple(found))

    def tail_memory(self, f: Function) -> list[Value]:
        """Stack for `tail_places`, filled with zeros."""
        found = []
        for type_ in self.types:
            per_group = type_.nbytes // max(1, self.num_rows) // self.num_groups
            size = per_group * CHUNK // self._group + 64
            place = f.allocate(size)
            for start in range(0, size, 16):
                zero = vector("i8", min(16, size - start))
                f.store(f.constant(0, zero), f.at(place, start, "i8"))
            found.append(place)
        return found

    def _tail_bytes(self) -> list[int]:
        """Bytes of each plane in the last chunk."""
        found = []
        for type_ in self.types:
            row = type_.nbytes // max(1, self.num_rows)
            whole = row // self.num_groups * (self.num_chunks - 1) * CHUNK // self._group
            found.append(row - whole)
        return found

    # --- numbers --------------------------------------------------------------------------------

    def codes(self, f: Function, places: Places, v: Vector) -> Value:
        """Codes of a vector, i8 in every byte."""
        found = _load(f, places.planes[0], v.start, 4 * self.lanes)
        if self.scheme.bits == 8:
            return found if self.signed else f.binary("xor", found, f.constant(0x80, found.type))
        found = field(f, found, v.shift, v.mask)
        if self.scheme.bits == 4:
            return found
        top, low_bits = self._high(f, places, v), {3: 2, 5: 4, 6: 4}[self.scheme.bits]
        words = f.convert("bitcast", top, vector("i16", 2 * self.lanes))
        words = f.binary("shl", words, f.constant(low_bits, words.type))
        return f.binary("or", found, f.convert("bitcast", words, found.type))

    def _high(self, f: Function, places: Places, v: Vector) -> Value:
        """The high bits of the codes of a vector, in the lowest bits of bytes."""
        bits = self.scheme.bits
        mask = 3 if bits == 6 else 1
        pieces, shifts = [], []
        for start in range(0, self.lanes, 8):
            number = v.lanes[start]
            if bits == 6:
                place, shift = 128 + number // 128 * 32, number % 128 // 32 * 2
            else:
                place, shift = 0, number // 32
            pieces.append(_load(f, places.planes[0], place, 32))
            shifts += [shift] * 16
        found = pieces[0]
        if len(pieces) > 1:
            found = f.shuffle(pieces[0], pieces[1], range(64))
        words = f.convert("bitcast", found, vector("i16", 2 * self.lanes))
        if any(shifts):
            listed = ", ".join(f"i16 {shift}" for shift in shifts)
            words = f.binary("lshr", words, Value(f"<{listed}>", words.type, f.root))
        found = f.convert("bitcast", words, found.type)
        return f.binary("and", found, f.constant(mask, found.type))

    def scales(self, f: Function, places: Places) -> Value:
        """The scales of a chunk, `num_scales` float32."""
        plane, type_ = places.planes[1], self.types[1]
        if self.scheme.part:
            group = _number(f, plane, type_)
            return f.binary("fmul", self._factors(f, places), f.splat(group, self.num_scales))
        return self._per_block(f, plane, type_)

    def _per_block(self, f: Function, plane: Value, type_: ArrayType) -> Value:
        """One float32 per block of a chunk, from a plane with one number per group."""
        count = CHUNK // min(self._group, CHUNK)
        if count == 1:
            return f.splat(_number(f, plane, type_), 8)
        found = registers.load(f, plane, type_.dtype, count, is_invariant=True)
        if type_.dtype == dtypes.uint8:
            found = f.convert("uitofp", found, vector("float", count))
        return found if count == 8 else f.shuffle(found, None, [i * count // 8 for i in range(8)])

    def offsets(self, f: Function, places: Places) -> Value:
        """What is added to the numbers of each block of a chunk, 8 float32."""
        plane, type_ = places.planes[2], self.types[2]
        if self.scheme.part:
            group = f.pure(f"fneg float {(x := _number(f, plane, type_))}", F32, x)
            return f.binary("fmul", self._sub_scales(f, places)[1], f.splat(group, 8))
        found = self._per_block(f, plane, type_)
        if self.scheme.beside == "zero_point":
            scaled = f.binary("fmul", found, self.scales(f, places))
            found = f.pure(f"fneg {scaled.type} {scaled}", scaled.type, scaled)
        return found

    def _factors(self, f: Function, places: Places) -> Value:
        if self.scheme.bits == 6:
            small = _load(f, places.planes[-1], 0, 16)
            return f.convert("sitofp", f.convert("sext", small, vector("i32", 16)), vector("float", 16))
        if self.scheme.bits == 3:
            return self._factors_of_six_bits(f, places)
        return self._sub_scales(f, places)[0]

    def _factors_of_six_bits(self, f: Function, places: Places) -> Value:
        """Sixteen numbers: low halves of eight bytes, high halves, and two bits each of four bytes."""
        low = _load(f, places.planes[-1], 0, 8)
        low = f.shuffle(
            f.binary("and", low, f.constant(15, low.type)),
            f.binary("lshr", low, f.constant(4, low.type)),
            range(16),
        )
        word = f.load(f.at(places.planes[-1], 8, "i8"), I32, is_invariant=True, align=1)
        four = f.splat(word, 4)
        four = f.binary("lshr", four, Value("<i32 0, i32 2, i32 4, i32 6>", four.type, f.root))
        four = f.binary("and", four, f.constant(0x03030303, four.type))
        four = f.binary("shl", four, f.constant(4, four.type))
        whole = f.binary("or", low, f.convert("bitcast", four, low.type))
        wide = f.convert("uitofp", f.convert("zext", whole, vector("i32", 16)), vector("float", 16))
        return f.binary("fsub", wide, f.constant(32.0, wide.type))

    def _sub_scales(self, f: Function, places: Places) -> tuple[Value, Value]:
        """Sub-scales and sub-minima of eight parts, packed in 12 bytes, as float32."""
        words = [
            f.load(f.at(places.planes[-1], at, "i8"), I32, is_invariant=True, align=1) for at in (0, 4, 8)
        ]

        def field(word: Value, shift: int, mask: int) -> Value:
            moved = f.binary("lshr", word, f.constant(shift, I32)) if shift else word
            return f.binary("and", moved, f.constant(mask * 0x01010101, I32))

        found = []
        for word, shift in zip(words, (0, 4), strict=False):
            low = field(word, 0, 63)
            high = f.binary("or", field(words[2], shift, 15), field(word, 2, 48))
            both = f.binary(
                "or",
                f.convert("zext", low, I64),
                f.binary("shl", f.convert("zext", high, I64), f.constant(32, I64)),
            )
            small = f.convert("bitcast", both, vector("i8", 8))
            found.append(f.convert("uitofp", f.convert("zext", small, vector("i32", 8)), vector("float", 8)))
        return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Places:
    """Addresses of a chunk in every plane."""

    planes: tuple[Value, ...]


def spread(f: Function, scales: Value, lanes: Sequence[int]) -> Value:
    """The scale of every lane, from those of a chunk."""
    size = CHUNK // scales.type.lanes
    return f.shuffle(scales, None, [place // size for place in lanes])


def dot(f: Function, total: Value, codes: Value, x: Value, target: Target, *, signed: bool = False) -> Value:
    """`total` plus the products of codes and signed bytes, four by four; codes are `signed` or not."""
    lanes = total.type.lanes
    if has_dot(target):
        assert not signed
        symbol = f"@llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        f.declare(f"declare {total.type} {symbol}({total.type}, {total.type}, {total.type})")
        a, b = (f.convert("bitcast", v, total.type) for v in (codes, x))
        text = f"call {total.type} {symbol}({total.type} {total}, {total.type} {a}, {total.type} {b})"
        return f.pure(text, total.type, total, a, b)
    codes, x = (f.convert("bitcast", v, vector("i8", 4 * lanes)) for v in (codes, x))
    if signed:  # the sign moves to the other factor, so that sums of two products have room
        is_low = f.compare("slt", codes, f.constant(0, codes.type))
        minus = f.binary("sub", f.constant(0, x.type), x)
        x = f.select(is_low, minus, x)
        codes = f.select(is_low, f.binary("sub", f.constant(0, codes.type), codes), codes)
    pairs, narrow = vector("i16", 2 * lanes), codes.type
    f.declare(f"declare {pairs} @llvm.x86.avx2.pmadd.ub.sw({narrow}, {narrow})")
    f.declare(f"declare {total.type} @llvm.x86.avx2.pmadd.wd({pairs}, {pairs})")
    two = f.pure(f"call {pairs} @llvm.x86.avx2.pmadd.ub.sw({narrow} {codes}, {narrow} {x})", pairs, codes, x)
    one = f.constant(1, pairs)
    four = f.pure(f"call {total.type} @llvm.x86.avx2.pmadd.wd({pairs} {two}, {pairs} {one})", total.type, two)
    return f.binary("add", total, four)


def total(f: Function, x: Value) -> Value:
    """The sum of the lanes, by halves."""
    symbol = f"@llvm.vector.reduce.fadd.v{x.type.lanes}f32"
    f.declare(f"declare float {symbol}(float, {x.type})")
    nothing = f.constant(-0.0, F32)
    return f.pure(f"call reassoc float {symbol}(float {nothing}, {x.type} {x})", F32, x)


def _load(f: Function, pointer: Value, start: int, count: int) -> Value:
    return f.load(f.at(pointer, start, "i8"), vector("i8", count), is_invariant=True, align=1)


def _number(f: Function, pointer: Value, type_: ArrayType) -> Value:
    found = registers.load(f, pointer, type_.dtype, 1, is_invariant=True)
    return f.convert("uitofp", found, F32) if type_.dtype == dtypes.uint8 else found


def field(f: Function, x: Value, shift: int, mask: int) -> Value:
    """Every byte moved to the right, or to the left by less than 0, and what the mask keeps of it then: bits
    that do not come from a neighbour.
    """
    if shift:
        words = f.convert("bitcast", x, vector("i16", x.type.lanes // 2))
        op = "lshr" if shift > 0 else "shl"
        words = f.binary(op, words, f.constant(abs(shift), words.type))
        x = f.convert("bitcast", words, x.type)
    return f.binary("and", x, f.constant(mask, x.type))


def copy_bytes(f: Function, source: Value, target: Value, nbytes: int) -> None:
    """A copy of so many bytes."""
    f.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
    f.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {nbytes}, i1 false)")
