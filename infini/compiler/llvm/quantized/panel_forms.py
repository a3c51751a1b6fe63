"""How the kernels see an arranged matrix: a panel is 16 rows, and a register of codes holds four neighbours
along k of each of them.

Rows lie in lanes, so sums need no adding across lanes and scales are loaded as they lie in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.quantized import forms
from infini.compiler.llvm.quantized.forms import BLOCK, CHUNK
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.types import F32, vector
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax.quantized.scheme import ROWS, Scheme

WORD_BYTES = 4 * ROWS  # of four codes of every row of a panel


def has_code(scheme: Scheme, k: int, target: Target) -> bool:
    """Whether kernels read arranged rows of `k` numbers of a scheme: of whole spans."""
    group = k if scheme.group is None else scheme.group
    is_known = forms.has_code(scheme, k, target)
    if scheme.is_ggml:  # all of them, where rows for themselves have no code for some
        is_known = forms.has_code(forms.Q4_K if scheme.part else forms.Q8_0, k, target)
    return is_known and k % BLOCK == 0 and k % _span(scheme, group) == 0


def _span(scheme: Scheme, group: int) -> int:
    """Numbers whose codes share bytes, or one block."""
    return BLOCK if scheme.bits == 8 or group == BLOCK else CHUNK


@dataclass(frozen=True, slots=True)
class PanelReader:
    """Writes what reads a panel.

    Args:
        scheme: the scheme, with a group.
        types: types of the planes, as they are in memory.
        lanes: of a register; a panel is one or more of them.
        signed: whether codes of 8 bits stay signed; otherwise 128 is added to them.
    """

    scheme: Scheme
    types: tuple[ArrayType, ...]
    lanes: int
    signed: bool = False

    @property
    def num_panels(self) -> int:
        """Panels of the matrix."""
        return self.types[0].shape[0]

    @property
    def num_rows(self) -> int:
        """Rows of the matrix."""
        return self.num_panels * ROWS

    @property
    def group(self) -> int:
        """Numbers of a group."""
        return self.types[0].shape[-1] // ROWS * 8 // self.scheme.bits

    @property
    def k(self) -> int:
        """Numbers of a row."""
        return self.types[0].shape[1] * self.group

    @property
    def span(self) -> int:
        """Numbers along k that are read together."""
        return _span(self.scheme, self.group)

    @property
    def part(self) -> int:
        """Numbers along k with one scale."""
        return min(self.scheme.part or BLOCK, BLOCK)

    @property
    def has_offsets(self) -> bool:
        """Whether something is added to the numbers of a group."""
        return bool(self.scheme.beside)

    @property
    def center(self) -> int:
        """What codes are too large by."""
        if self.scheme.bits == 8:
            return 0 if self.signed else 128
        return self.scheme.center

    @property
    def panel_bytes(self) -> int:
        """Bytes of a panel in all planes."""
        return sum(t.nbytes for t in self.types) // max(1, self.num_panels)

    def at(self, f: Function, pointers: list[Value], panel: Int, span: Int, half: int = 0) -> Span:
        """Some numbers along k of a panel; with registers that hold half a panel, which of them."""
        found = []
        for pointer, type_ in zip(pointers, self.types, strict=True):
            size = type_.size // max(1, self.num_panels)
            if type_ is self.types[0]:
                own = f.mul(span, self.span * self.scheme.bits // 8 * ROWS)
            elif self.group >= self.span:
                own = f.mul(f.divide(span, self.group // self.span)[0], type_.shape[-1])
            else:
                own = f.mul(span, self.span // self.group * type_.shape[-1])
            at = f.add(f.add(f.mul(panel, size), own), half * self.lanes * self._step(type_))
            found.append(f.at(pointer, at, registers.memory_element(type_.dtype)))
        return Span(tuple(found))

    def moved(self, f: Function, span: Span, lane: Int) -> Span:
        """The same for the registers that begin with a lane of the panel."""
        found = []
        for place, type_ in zip(span.planes, self.types, strict=True):
            offset = f.mul(lane, self._step(type_))
            found.append(f.at(place, offset, registers.memory_element(type_.dtype)))
        return Span(tuple(found))

    def _step(self, type_: ArrayType) -> int:
        """Elements of a plane from lane to lane."""
        return 1 if type_.shape[-1] == ROWS else 4

    def parts(self) -> list[int]:
        """The parts of a span, those beside each other that share words."""
        count = self.span // self.part
        return sorted(
            range(count), key=lambda i: (self._place(i * self.part)[0] % 32, self._place(i * self.part))
        )

    # --- numbers --------------------------------------------------------------------------------

    def codes(self, f: Function, span: Span, number: int) -> Value:
        """The codes of four neighbours along k from `number` on, of each row, i8 in every byte."""
        start, shift, mask = self._place(number)
        found = self._word(f, span.planes[0], start)
        bits = self.scheme.bits
        if bits == 8:
            return found if self.signed else f.binary("xor", found, f.constant(0x80, found.type))
        found = forms.field(f, found, shift, mask)
        if bits in (2, 4):
            return found
        if bits == 5 and not self.scheme.part:
            return f.binary("or", found, self._fifth_bits(f, span, number))
        if bits == 6:
            high, shift, mask = 128 + number // 128 * 32 + number % 32, number % 128 // 32 * 2, 3
        else:
            high, shift, mask = number % 32, number // 32, 1
        low_bits = 2 if bits == 3 else 4
        top = forms.field(f, self._word(f, span.planes[0], high), shift - low_bits, mask << low_bits)
        return f.binary("or", found, top)

    def _place(self, number: int) -> tuple[int, int, int]:
        """Byte of a row in the span, and bits in it, where a number is."""
        bits = self.scheme.bits
        if bits == 8:
            return number, 0, 255
        if bits <= 3:
            first = 32 if bits == 3 else 0
            return first + number // 128 * 32 + number % 32, number % 128 // 32 * 2, 3
        if bits == 5 and not self.scheme.part:
            return 4 + number % 16, number // 16 * 4, 15
        run = forms.RUNS.get(self.scheme.name, self.group // 2)
        first = 32 if bits == 5 else 0
        return first + number // (2 * run) * run + number % run, number % (2 * run) // run * 4, 15

    def _fifth_bits(self, f: Function, span: Span, number: int) -> Value:
        """Bits `number` to `number + 3` of the first word of a group, as bit 4 of four bytes."""
        word = f.convert("bitcast", self._word(f, span.planes[0], 0), vector("i32", self.lanes))
        four = _bits(f, word, number, 15)
        # Each bit in a byte of its own: the factor has bits at 0, 7, 14 and 21, and products do not overlap.
        four = f.binary("mul", four, f.constant(0x00204081, four.type))
        four = f.binary("and", four, f.constant(0x01010101, four.type))
        four = f.binary("shl", four, f.constant(4, four.type))
        return f.convert("bitcast", four, vector("i8", 4 * self.lanes))

    def _word(self, f: Function, plane: Value, byte: int) -> Value:
        place = f.at(plane, byte // 4 * WORD_BYTES, "i8")
        return f.load(place, vector("i8", 4 * self.lanes), is_invariant=True, align=1)

    def scales(self, f: Function, span: Span, part: int) -> Value:
        """The scale of a part in every row, float32."""
        plane = self._per_group(f, span, 1, part)
        if not self.scheme.part:
            return plane
        return f.binary("fmul", plane, f.convert("sitofp", self._factor(f, span, part), plane.type))

    def offsets(self, f: Function, span: Span, part: int) -> Value:
        """What is added to the numbers of a part in every row, float32."""
        found = self._per_group(f, span, 2, part)
        if self.scheme.part:
            if self.scheme.bits == 2:
                factor = _bits(f, self._sub_word(f, span, part // 4), part % 4 * 8 + 4, 15)
            else:
                words = self._sub_word(f, span, 1), self._sub_word(f, span, 2)
                factor = _six_bits(f, words, part, shift=4)
            found = f.binary("fmul", found, f.convert("sitofp", factor, found.type))
        elif self.scheme.beside == "minimum":
            return found
        else:
            found = f.binary("fmul", found, self.scales(f, span, part))
        return f.pure(f"fneg {found.type} {found}", found.type, found)

    def _per_group(self, f: Function, span: Span, number: int, part: int) -> Value:
        plane, type_ = span.planes[number], self.types[number]
        group = part * self.part // self.group
        place = f.at(plane, group * ROWS, registers.memory_element(type_.dtype))
        found = registers.load(f, place, type_.dtype, self.lanes, is_invariant=True)
        return (
            f.convert("uitofp", found, vector("float", self.lanes)) if type_.dtype == dtypes.uint8 else found
        )

    def _sub_word(self, f: Function, span: Span, word: int) -> Value:
        place = f.at(span.planes[-1], word * WORD_BYTES, "i8")
        return f.load(place, vector("i32", self.lanes), is_invariant=True, align=1)

    def _factor(self, f: Function, span: Span, part: int) -> Value:
        """The sub-scale of a part in every row, as int32."""
        bits = self.scheme.bits
        if bits == 2:
            return _bits(f, self._sub_word(f, span, part // 4), part % 4 * 8, 15)
        if bits == 6:
            word = self._sub_word(f, span, part // 4)
            word = f.binary("shl", word, f.constant(24 - part % 4 * 8, word.type))
            return f.binary("ashr", word, f.constant(24, word.type))
        if bits == 3:
            low = _bits(f, self._sub_word(f, span, part % 8 // 4), part % 4 * 8 + part // 8 * 4, 15)
            high = _bits(f, self._sub_word(f, span, 2), part % 4 * 8 + part // 4 * 2, 3)
            whole = f.binary("or", low, f.binary("shl", high, f.constant(4, high.type)))
            return f.binary("sub", whole, f.constant(32, whole.type))
        return _six_bits(f, (self._sub_word(f, span, 0), self._sub_word(f, span, 2)), part, shift=0)


@dataclass(frozen=True, slots=True)
class Span:
    """Addresses of some numbers along k of a panel in every plane."""

    planes: tuple[Value, ...]


def number_at(f: Function, pointer: Value, offset: Int, lanes: int) -> Value:
    """A float32 in every lane."""
    return f.splat(f.load(f.at(pointer, offset, "float"), F32, is_invariant=True), lanes)


def _six_bits(f: Function, words: tuple[Value, Value], part: int, *, shift: int) -> Value:
    """Number `part` of eight numbers of six bits, of which the last four are in two places."""
    at, (own, both) = part % 4 * 8, words
    if part < 4:
        return _bits(f, own, at, 63)
    low, high = _bits(f, both, at + shift, 15), _bits(f, own, at + 6, 3)
    return f.binary("or", low, f.binary("shl", high, f.constant(4, high.type)))


def _bits(f: Function, x: Value, shift: int, mask: int) -> Value:
    moved = f.binary("lshr", x, f.constant(shift, x.type)) if shift else x
    return f.binary("and", moved, f.constant(mask, x.type))
