"""Triton sources of the cumulative operations.

A program walks some lines chunk by chunk: each chunk is a tile that `tl.associative_scan` scans along its
lines, and that joins what came before. Few long lines are cut into blocks: the totals of the blocks first,
then each block with the totals before it. From the end to the start is the same walk over flipped places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import TritonSource, language_name, literal
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs
from infini.lax import cumulative as lax_cumulative, reduction

NAMES: Final = lax_cumulative.NAMES
TILE: Final = 2048  # elements of a tile
CHUNK: Final = 1024  # most of them along a line
FEW: Final = 64  # programs that do not keep a device busy
MAX_BLOCKS: Final = 256
# The function of two floats and that of two integers, and the reduction whose neutral element they have.
_JOINS: Final = {
    "cumsum": (("plus", "plus"), reduction.reduce_sum_p),
    "cumprod": (("times", "times"), reduction.reduce_prod_p),
    "cummax": (("max_with_nan", "larger"), reduction.reduce_max_p),
    "cummin": (("min_with_nan", "smaller"), reduction.reduce_min_p),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of `outer * length * inner` elements is walked along the middle.

    A program takes `width` lines and `chunk` elements of each at a time; a line is cut into blocks of
    `block` elements.
    """

    outer: int
    length: int
    inner: int
    width: int
    chunk: int
    block: int

    @property
    def groups(self) -> int:
        """Programs side by side, without blocks."""
        lines = self.outer if self.inner == 1 else self.inner
        return -(-lines // self.width) * (1 if self.inner == 1 else self.outer)

    @property
    def num_blocks(self) -> int:
        """Blocks of a line."""
        return -(-self.length // self.block)


def layout(type_: ArrayType, axis: int) -> Layout:
    """The layout for an array."""
    place = axis + type_.ndim
    outer, inner = math.prod(type_.shape[:place]), math.prod(type_.shape[place + 1 :])
    length = type_.shape[place]
    if inner == 1:
        chunk = min(_power(length), CHUNK)
        width = min(_power(outer), TILE // chunk)
    else:
        width = min(_power(inner), 64)
        chunk = min(_power(length), TILE // width)
    found = Layout(outer, length, inner, width, chunk, length)
    if found.groups >= FEW or length <= 4 * chunk:
        return found
    if inner == 1:
        found = dataclasses.replace(found, width=1, chunk=min(_power(length), CHUNK))
    num_chunks = -(-length // found.chunk)
    return dataclasses.replace(found, block=found.chunk * -(-num_chunks // MAX_BLOCKS))


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def cumulative(
    name: str, types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """Sources of a cumulative operation."""
    (type_,) = types
    plan = layout(type_, attrs["axis"])
    writer = _Writer(name, type_, plan, attrs["reverse"], target)
    if plan.num_blocks == 1:
        return (writer.walk(),)
    return writer.totals(), writer.walk()


def scratch_bytes(name: str, types: Sequence[ArrayType], attrs: Attrs) -> int:
    """Scratch memory that the sources use."""
    plan = layout(types[0], attrs["axis"])
    if plan.num_blocks == 1:
        return 0
    parts = 2 if name == "cumlogsumexp" else 1
    return plan.groups * plan.num_blocks * plan.width * parts * _wide(types[0].dtype).itemsize


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype that is accumulated in."""
    return dtypes.float32 if dtype in dtypes.FLOATS and dtype.itemsize < 4 else dtype


class _Writer:
    """Writes the functions of one operation. Values of the state are called s0, s1 and so on."""

    def __init__(self, name: str, type_: ArrayType, plan: Layout, reverse: bool, target: Target) -> None:
        self.name, self.type, self.plan, self.reverse, self.target = name, type_, plan, reverse, target
        self.wide = _wide(type_.dtype)
        self.axis = 1 if plan.inner == 1 else 0  # of a tile, along which it is scanned
        if name == "cumlogsumexp":
            self.join, identities = "join_log_sums", [-math.inf, 0.0]
        else:
            names, op = _JOINS[name]
            self.join = names[0] if self.wide in dtypes.FLOATS else names[1]
            identities = [reduction.identity_of(op, self.wide)]
        self.num_chunks = plan.block // plan.chunk if plan.num_blocks > 1 else -(-plan.length // plan.chunk)
        self.neutral = [literal(number, self.wide) for number in identities]
        self.state = [f"s{i}" for i in range(len(identities))]

    def totals(self) -> TritonSource:
        """The function that finds the total of one block of some lines."""
        text = FunctionText(self.target)
        self._start(text)
        with self._chunks(text):
            self._take_in(text)
        for part, name in enumerate(self.state):
            text.line(f"tl.store({self._total_place('block', part)}, {name})")
        return self._source(text, f"{self.name}_totals")

    def walk(self) -> TritonSource:
        """The function that scans one block of some lines, or all of them."""
        text = FunctionText(self.target)
        self._start(text)
        if self.plan.num_blocks > 1:
            self._take_in_blocks_before(text)
        with self._chunks(text):
            self._scan(text)
            if self.num_chunks > 1:
                self._take_in(text)
        return self._source(text, self.name)

    def _source(self, text: FunctionText, name: str) -> TritonSource:
        plan = self.plan
        scratch = [("scratch", self.type.update(dtype=self.wide))] if plan.num_blocks > 1 else []
        parameters = [("x0", self.type), ("y0", self.type), *scratch]
        count = plan.groups * plan.num_blocks
        blocks = f", each in {plan.num_blocks} blocks" if plan.num_blocks > 1 else ""
        about = [f"{name}: {plan.width} lines of {plan.length} for each program{blocks}"]
        return text.source(name, parameters, count, about=about, index=index_dtype(self.type.size))

    # --- places ---------------------------------------------------------------------------------

    def _start(self, text: FunctionText) -> None:
        """Where the lines of a program begin, which of them there are, and the state of nothing."""
        plan, width = self.plan, self.plan.width
        text.note(f"the lines of this program: {width} of them, side by side")
        group = "pid"
        if plan.num_blocks > 1:
            group = "group"
            text.line(f"group = pid // {plan.num_blocks}")
            text.line(f"block = pid % {plan.num_blocks}")
        if self.axis == 1:
            text.line(f"line = {group} * {width} + tl.arange(0, {width})")
            text.line(f"exists = line < {plan.outer}")
            text.line(f"start = line * {plan.length}")
        else:
            across = -(-plan.inner // width)
            first, array = (
                (f"{group} % {across} * {width} + ", f"{group} // {across}") if across > 1 else ("", group)
            )
            text.line(f"column = {first}tl.arange(0, {width})")
            text.line(f"exists = column < {plan.inner}")
            text.line(f"start = {array} * {plan.length * plan.inner} + column")
        if self.num_chunks == plan.num_blocks == 1:
            return
        text.note("what nothing before it gives")
        for name, neutral in zip(self.state, self.neutral, strict=True):
            text.line(f"{name} = tl.full([{width}], {neutral}, {language_name(self.wide)})")

    @contextlib.contextmanager
    def _chunks(self, text: FunctionText) -> Iterator[None]:
        """A loop over the chunks of a block; e0, e1 ... are the state of each of its elements."""
        plan, axis = self.plan, self.axis
        along, across = ("[None, :]", "[:, None]") if axis == 1 else ("[:, None]", "[None, :]")
        is_loop = self.num_chunks > 1
        with text.block(f"for i in range(0, {self.num_chunks}):") if is_loop else contextlib.nullcontext():
            first = f"block * {plan.block} + " if plan.num_blocks > 1 else ""
            step = f"i * {plan.chunk} + " if is_loop else ""
            text.line(f"place = {first}{step}tl.arange(0, {plan.chunk})")
            text.line(f"inside = exists{across} & (place < {plan.length}){along}")
            if self.reverse:
                text.line(f"place = {plan.length - 1} - place")
            if index_dtype(self.type.size) == "tl.int64":
                text.line("place = place.to(tl.int64)")
            step = f" * {plan.inner}" if plan.inner > 1 else ""
            text.line(f"offset = start{across} + place{along}{step}")
            wide = language_name(self.wide)
            widened = f".to({wide})" if self.wide != self.type.dtype else ""
            text.line(f"x = tl.load(x0 + offset, mask=inside, other=0){widened}")
            for part, neutral in enumerate(self.neutral):
                value = "x" if part == 0 else f"tl.full((), 1.0, {wide})"
                text.line(f"e{part} = tl.where(inside, {value}, tl.full((), {neutral}, {wide}))")
            yield

    # --- states -----------------------------------------------------------------------------------

    def _joined(self, first: Sequence[str], second: Sequence[str]) -> str:
        return f"{self.join}({', '.join([*first, *second])})"

    def _reduced(self, elements: Sequence[str], axis: int) -> str:
        operand = elements[0] if len(elements) == 1 else f"({', '.join(elements)})"
        return f"tl.reduce({operand}, {axis}, {self.join})"

    def _elements(self) -> list[str]:
        return [f"e{part}" for part in range(len(self.state))]

    def _take_in(self, text: FunctionText) -> None:
        """The state after a chunk."""
        totals = [f"t{part}" for part in range(len(self.state))]
        text.note("go on with the chunk as a whole")
        text.line(f"{', '.join(totals)} = {self._reduced(self._elements(), self.axis)}")
        text.line(f"{', '.join(self.state)} = {self._joined(self.state, totals)}")

    def _scan(self, text: FunctionText) -> None:
        """Store the results of a chunk."""
        elements = self._elements()
        operand = elements[0] if len(elements) == 1 else f"({', '.join(elements)})"
        scanned, results = (
            [f"c{part}" for part in range(len(elements))],
            [f"r{part}" for part in range(len(elements))],
        )
        text.note("scan the chunk, and join what was before it")
        text.line(f"{', '.join(scanned)} = tl.associative_scan({operand}, {self.axis}, {self.join})")
        across = "[:, None]" if self.axis == 1 else "[None, :]"
        if self.num_chunks == self.plan.num_blocks == 1:
            results = scanned
        else:
            before = [f"{name}{across}" for name in self.state]
            text.line(f"{', '.join(results)} = {self._joined(before, scanned)}")
        value = results[0] if len(elements) == 1 else f"{results[0]} + tl.log({results[1]})"
        if self.wide != self.type.dtype:
            value = f"({value}).to({language_name(self.type.dtype)})"
        text.line(f"tl.store(y0 + offset, {value}, mask=inside)")

    def _total_place(self, block: str, part: int, lanes: str = "") -> str:
        plan = self.plan
        item = f"((group * {plan.num_blocks} + {block}) * {len(self.state)} + {part}) * {plan.width}"
        return f"scratch + {item} + tl.arange(0, {plan.width}){lanes}"

    def _take_in_blocks_before(self, text: FunctionText) -> None:
        blocks = _power(self.plan.num_blocks)
        text.line(f"other = tl.arange(0, {blocks})")
        for part, neutral in enumerate(self.neutral):
            place = self._total_place("other[:, None]", part, "[None, :]")
            text.line(f"b{part} = tl.load({place}, mask=(other < block)[:, None], other={neutral})")
        found = [f"b{part}" for part in range(len(self.state))]
        text.line(f"{', '.join(self.state)} = {self._reduced(found, 0)}")
