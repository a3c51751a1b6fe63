"""What the kernels of attention and of its gradient share: sizes and strides of a problem, copies of operands
in the order in which the register blocks read them, and the scores of a row.

Copies are in the dtype that is computed in, with zeros beyond the edges, so no register block has an edge.
Rows of a copy are a little longer than a power of two, as in `blocking`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, math as functions, math64, microkernel, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.indexing import c_strides
from infini.compiler.llvm.microkernel import Block
from infini.compiler.llvm.packing import Packer, Source
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I32, I64, PTR, scalar
from infini.compiler.passes.attention_views import View
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites import attention
from infini.lax.composites.attention import Band, Letters

UNSEEN = -1e8  # a fill below this gives masked keys the weight 0 next to any score, so they may be left out
LARGEST_WIDTH = 256  # of a head, so that the copies of a task stay small
MIN_QUERIES = 4  # with fewer there is no reuse of packed keys
PACK_PANELS = 16  # copied by one task


@dataclass(frozen=True, slots=True)
class Layout:
    """An array in memory: its dtype, elements from one index to the next along each letter it has, and
    elements to the first.
    """

    dtype: np.dtype
    strides: dict[str, int]
    start: int = 0

    @property
    def element(self) -> str:
        """LLVM's name of an element in memory."""
        return registers.memory_element(self.dtype)

    def stride(self, letter: str) -> int:
        """Elements from one index to the next; 0 along letters it lacks."""
        return self.strides.get(letter, 0)

    def offset(self, f: Function, letters: Sequence[str], places: Sequence[Int]) -> Int:
        """Elements to a place along some letters."""
        total: Int = 0
        for letter, place in zip(letters, places, strict=True):
            total = f.add(total, f.mul(place, self.stride(letter)))
        return total


@dataclass(frozen=True, slots=True)
class Keys:
    """What one task copies of keys and values.

    Args:
        batch: number of the set of keys.
        key: address of its keys.
        value: address of its values.
        panels: the first panel and the end.
        keys: the first key and the end.
    """

    batch: Int
    key: Value
    value: Value
    panels: tuple[Int, Int]
    keys: tuple[Int, Int]


@dataclass(frozen=True, slots=True)
class Problem:
    """Attention, whatever letters and loop dimensions its operands have.

    Args:
        arrays: layouts of operands and results.
        sizes: of the letters.
        shared: batch letters, loop dimensions included, whose keys differ.
        groups: batch letters along which queries differ and keys do not.
        scale: factor of the products.
        band: which keys a query may look at.
        fill: score of the others.
        has_bias: whether operand 3 is added to the scores.
        has_mask: whether the last extra says which scores count.
        target: processor to make code for.
    """

    arrays: tuple[Layout, ...]
    sizes: dict[str, int]
    shared: tuple[str, ...]
    groups: tuple[str, ...]
    scale: float
    band: Band
    fill: float
    has_bias: bool
    has_mask: bool
    target: Target

    @property
    def compute(self) -> np.dtype:
        """Dtype of products, sums and copies."""
        return blocking.compute_dtype(self.arrays[0].dtype)

    @property
    def num_shared(self) -> int:
        """Different sets of keys."""
        return math.prod(self.sizes[c] for c in self.shared)

    @property
    def num_groups(self) -> int:
        """Sets of queries per set of keys."""
        return math.prod(self.sizes[c] for c in self.groups)

    @property
    def num_extras(self) -> int:
        """Bias and mask, as far as there are."""
        return self.has_bias + self.has_mask

    @property
    def skips(self) -> bool:
        """Whether keys outside the band may be left out: their weight is 0 in every row."""
        low, high = self.band
        queries, keys = self.sizes["t"], self.sizes["s"]
        some_key = (high is None or high >= 0) and (low is None or queries - 1 + low <= keys - 1)
        is_alone = not self.num_extras or self.fill == -math.inf
        return self.band != (None, None) and some_key and is_alone and self.fill <= UNSEEN

    @property
    def share(self) -> float:
        """Part of the scores that is computed."""
        low, high = self.band
        if not self.skips:
            return 1.0
        queries, keys = self.sizes["t"], self.sizes["s"]
        first = np.zeros(queries) if low is None else np.clip(np.arange(queries) + low, 0, keys)
        last = np.full(queries, keys) if high is None else np.clip(np.arange(queries) + high + 1, 0, keys)
        return float(np.maximum(last - first, 0).mean() / keys)


def analyse(
    operands: Sequence[ArrayType], results: Sequence[ArrayType], letters: Sequence[Sequence[str]],
    attrs: Attrs, target: Target, *, is_gradient: bool, views: Sequence[View | None] = (),
) -> Problem:  # fmt: skip
    """The problem of an equation; `letters` are those of operands and results, `views` say where in larger
    arrays the first operands are.
    """
    types = (*operands, *results)
    num_loops = max(t.ndim - len(own) for t, own in zip(types, letters, strict=True))
    sizes: dict[str, int] = {}
    layouts = []
    for type_, own, seen in zip(types, letters, (*views, *(None,) * (len(types) - len(views))), strict=True):
        rank = type_.ndim - len(own)
        names = (*(f"loop{num_loops - rank + i}" for i in range(rank)), *own)
        strides = {}
        steps, start = (c_strides(type_.shape), 0) if seen is None else seen[1:]
        for name, size, stride in zip(names, type_.shape, steps, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
            if size != 1:
                strides[name] = stride
        # A dimension of one element that is not repeated counts as contiguous.
        strides.update({name: 1 for name in own[-1:] if sizes[name] == 1})
        layouts.append(Layout(type_.dtype, strides, start))
    batch = [name for name in sizes if name not in "tsdv"]
    loops = {name for name in batch if name.startswith("loop")}
    keys = set(letters[1]) | (
        loops
        if is_gradient
        else {name for name in loops if layouts[1].stride(name) or layouts[2].stride(name)}
    )
    return Problem(
        tuple(layouts), sizes, tuple(c for c in batch if c in keys), tuple(c for c in batch if c not in keys),
        attrs["scale"], attrs["band"], attrs["fill"], attrs["has_bias"], attrs["has_mask"], target,
    )  # fmt: skip


def is_suited(types: Sequence[ArrayType], attrs: Attrs) -> bool:
    """Whether the kernels compute attention of operands of these types well."""
    letters: Letters = attention.parse_spec(attrs["spec"])
    query, key, value = types[:3]
    widths = (
        query.shape[query.ndim - len(letters.query) + letters.query.index("d")],
        value.shape[value.ndim - len(letters.value) + letters.value.index("v")],
    )
    queries = query.shape[query.ndim - len(letters.query) + letters.query.index("t")]
    dtype = query.dtype
    return (
        dtype in dtypes.FLOATS
        and dtype.itemsize >= 2
        and all(0 < w <= LARGEST_WIDTH for w in widths)
        and queries >= MIN_QUERIES
        and all(t.size for t in (query, key, value))
        and all(x.endswith("s") or "s" not in x for x in letters.extras)
    )


class Parts:
    """Writes pieces of code that both kernels have."""

    def __init__(self, problem: Problem) -> None:
        self.p = p = problem
        self.compute = p.compute
        self.element = registers.memory_element(p.compute)
        self.queries, self.keys, self.depth, self.width = (p.sizes[c] for c in "tsdv")
        self.rows, self.vectors, self.lanes = microkernel.block_size(p.target, self.queries, p.compute)
        self.panel = self.vectors * self.lanes
        self.depth_row, self.width_row = self.long_row(self.depth), self.long_row(self.width)
        self.padded_keys = -(-self.keys // self.panel) * self.panel
        num_panels = self.padded_keys // self.panel
        self.key_pieces = -(-num_panels // PACK_PANELS)  # tasks that copy one set of keys and values
        self.helpers: dict[str, Function] = {}

    def long_row(self, size: int) -> int:
        """Elements of a row of a copy of `size` columns."""
        return -(-size // self.panel) * self.panel + 16

    def start(self) -> tuple[Function, list[Value]]:
        """A task function, and the pointers to operands, results and scratch."""
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        count = len(self.p.arrays) + 1
        found = [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]
        for i, layout in enumerate(self.p.arrays):
            found[i] = f.at(found[i], layout.start, layout.element)
        return f, found

    def finish(
        self, kind: str, f: Function, num_tasks: int, cost_ns: float, scratch: int = 0
    ) -> TaskFunction:
        """The task function with the register blocks it calls."""
        used = list(self.helpers.values())
        self.helpers = {}
        text = "".join(x.finish() for x in (f, *used))
        name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        declares = frozenset[str]().union(*(x.declares for x in (f, *used)))
        return TaskFunction(name, text.replace("@TASK", f"@{name}"), declares, num_tasks, scratch, cost_ns)

    def places(self, f: Function, number: Int, letters: Sequence[str]) -> list[Int]:
        """A number as one index per letter."""
        found: list[Int] = []
        for letter in reversed(letters[1:]):
            number, place = f.divide(number, self.p.sizes[letter])
            found.append(place)
        return [number, *reversed(found)] if letters else []

    def moved(self, f: Function, pointer: Value, offset: Int) -> Value:
        """Address of an element of the dtype that is computed in."""
        return f.at(pointer, offset, self.element)

    # --- copies --------------------------------------------------------------------------------

    def keys_of_task(self, f: Function, pointers: Sequence[Value]) -> Keys:
        """What a task copies of keys and values, the operands 1 and 2."""
        p, num_panels = self.p, self.padded_keys // self.panel
        batch, piece = f.divide(f.parameters[1], self.key_pieces)
        places = self.places(f, batch, p.shared)
        key, value = (
            f.at(pointers[i], p.arrays[i].offset(f, p.shared, places), p.arrays[i].element) for i in (1, 2)
        )
        first = f.mul(piece, PACK_PANELS)
        stop = f.minimum(f.add(first, PACK_PANELS), num_panels)
        keys = f.mul(first, self.panel), f.mul(stop, self.panel)
        return Keys(batch, key, value, (first, stop), keys)

    def copy_rows(
        self, f: Function, layout: Layout, source: Value, target: Value, row: str, column: str, *,
        count: Int, factor: float = 1.0,
    ) -> None:  # fmt: skip
        """Rows of an operand, each as one long row, times a factor."""
        size = self.p.sizes[column]
        length = self.long_row(size)
        packer = Packer(
            Source(layout.dtype, layout.stride(row), layout.stride(column)), length, self.lanes, self.compute
        )
        packer.panel(f, source, target, count, size)
        if factor == 1.0:
            return
        times = registers.constant(f, factor, self.compute, self.lanes)
        with f.loop(0, count) as loop:
            here = self.moved(f, target, f.mul(loop.index, length))
            for start in range(0, size, self.lanes):
                place = self.moved(f, here, start)
                x = registers.load(f, place, self.compute, self.lanes)
                registers.store(f, f.binary("fmul", x, times), place, self.compute)

    def copy_panels(
        self, f: Function, layout: Layout, source: Value, target: Value, column: str, panels: tuple[Int, Int]
    ) -> None:
        """Panels of keys of an operand, transposed; `source` is its first key, `target` its first panel."""
        size = self.p.sizes[column]
        packer = Packer(
            Source(layout.dtype, layout.stride(column), layout.stride("s")),
            self.panel, self.lanes, self.compute,
        )  # fmt: skip
        count, rest = -(-self.keys // self.panel), self.keys % self.panel
        with f.loop(*panels) as loop:
            first = f.mul(loop.index, self.panel)
            here = f.at(source, f.mul(first, layout.stride("s")), layout.element)
            there = self.moved(f, target, f.mul(first, size))
            if not rest:
                packer.panel(f, here, there, size, self.panel)
            else:
                with f.when(f.compare("eq", loop.index, f.integer(count - 1))):
                    packer.panel(f, here, there, size, rest)
                with f.when(f.compare("ne", loop.index, f.integer(count - 1))):
                    packer.panel(f, here, there, size, self.panel)

    def copy_keys(
        self, f: Function, number: int, source: Value, target: Value, column: str, keys: tuple[Int, Int]
    ) -> None:
        """Rows of keys or values, with rows of zeros after the last; `source` and `target` are the first."""
        layout = self.p.arrays[number]
        length = self.long_row(self.p.sizes[column])
        first, stop = keys
        last = f.minimum(stop, self.keys)
        self.copy_rows(
            f, layout, f.at(source, f.mul(first, layout.stride("s")), layout.element),
            self.moved(f, target, f.mul(first, length)), "s", column, count=f.sub(last, first),
        )  # fmt: skip
        if self.padded_keys > self.keys:
            self.fill(f, target, f.mul(last, length), f.mul(stop, length))

    def fill(self, f: Function, target: Value, first: Int, stop: Int, number: float = 0.0) -> None:
        """Set elements from `first` to `stop`; their number is a multiple of the lanes."""
        x = registers.constant(f, number, self.compute, self.lanes)
        with f.loop(first, stop, self.lanes) as loop:
            registers.store(f, x, self.moved(f, target, loop.index), self.compute)

    def store_row(
        self, f: Function, source: Value, layout: Layout, target: Value, column: str, factor: Value | None
    ) -> None:
        """A row of sums, times a factor, into a result."""
        size, stride = self.p.sizes[column], layout.stride(column)
        for start in range(0, size, self.lanes):
            x = registers.load(f, self.moved(f, source, start), self.compute, self.lanes)
            if factor is not None:
                x = f.binary("fmul", x, factor)
            x = registers.rounded(f, x, layout.dtype)
            active = min(self.lanes, size - start)
            if stride == 1:
                mask = None if active == self.lanes else f.first_lanes(active, self.lanes)
                registers.store(f, x, f.at(target, start, layout.element), layout.dtype, mask)
                continue
            for lane in range(active):
                place = f.at(target, (start + lane) * stride, layout.element)
                registers.store(f, f.extract(x, lane), place, layout.dtype)

    # --- register blocks -------------------------------------------------------------------------

    def product(
        self, f: Function, name: str, places: tuple[Value, Value, Value], depth: Int, *,
        a_row: int, a_depth: int, panel: int, out_row: int, adds: bool, has_tail: bool,
    ) -> None:  # fmt: skip
        """A register block C = A B, or C += A B."""
        if name not in self.helpers:
            block = Block(
                rows=self.rows, lanes=self.lanes, vectors=self.vectors, width=self.panel, a_row=a_row,
                a_depth=a_depth, panel=panel, out_row=out_row, compute=self.compute, out=self.compute,
            )  # fmt: skip
            self.helpers[name] = microkernel.emit_block(f"TASK_{name}", block, has_tail=has_tail)
        pointers = ", ".join(f"ptr {x}" for x in places)
        f.do(f"call void @TASK_{name}({pointers}, i64 {f.integer(depth)}, i64 {int(adds)})")

    # --- scores ------------------------------------------------------------------------------------

    def constant(self, f: Function, number: float) -> Value:
        """A number in every lane."""
        return registers.constant(f, number, self.compute, self.lanes)

    def exp(self, f: Function, x: Value) -> Value:
        """The exponential of numbers that are not positive."""
        return functions.exp_of_nonpositive_f32(f, x) if x.type.element == "float" else math64.exp_f64(f, x)

    def larger(self, f: Function, a: Value, b: Value) -> Value:
        """The larger of two; `b` where one is not a number."""
        return f.select(f.compare("ogt", a, b), a, b)

    def down(self, f: Function, x: Int) -> Int:
        """The multiple of a panel at or below; numbers below 0 become 0."""
        whole, _ = f.divide(f.maximum(x, 0), self.panel)
        return f.mul(whole, self.panel)

    def up(self, f: Function, x: Int) -> Int:
        """The multiple of a panel at or above, and at most all keys."""
        return f.minimum(self.down(f, f.add(x, self.panel - 1)), self.padded_keys)

    def seen_keys(self, f: Function, first: Int, stop: Int) -> tuple[Int, Int]:
        """Keys, in whole panels, that queries from `first` to before `stop` have weights for."""
        low, high = self.p.band if self.p.skips else (None, None)
        return (
            0 if low is None else self.down(f, f.add(first, low)),
            self.padded_keys if high is None else self.up(f, f.add(stop, high)),
        )

    def key_numbers(self, f: Function, first: Int) -> Value:
        """Numbers of the keys of a vector."""
        start = f.splat(f.convert("trunc", f.integer(first), I32), self.lanes)
        return f.binary("add nsw", f.lane_numbers(start.type), start)

    def _limit(self, f: Function, x: Int) -> Value:
        return f.splat(f.convert("trunc", f.integer(x), I32), self.lanes)

    def in_band(self, f: Function, numbers: Value, query: Value) -> Value | None:
        """Which keys the band lets a query look at."""
        low, high = self.p.band
        found = None
        if low is not None:
            found = f.compare("sge", numbers, self._limit(f, f.add(query, low)))
        if high is not None:
            below = f.compare("sle", numbers, self._limit(f, f.add(query, high)))
            found = below if found is None else f.binary("and", found, below)
        return found

    def exists(self, f: Function, numbers: Value) -> Value | None:
        """Which keys of a vector exist; None when all do."""
        if self.padded_keys == self.keys:
            return None
        return f.compare("slt", numbers, self._limit(f, self.keys))

    def extra(self, f: Function, number: int, row: Value, key: Int, present: Value | None) -> Value:
        """A vector of the bias or the mask, whose row starts at `row`."""
        layout = self.p.arrays[number]
        if not layout.stride("s"):
            x = f.load(row, scalar(layout.element))
            return registers.from_memory(f, f.splat(x, self.lanes), layout.dtype)
        place = f.at(row, key, layout.element)
        if present is None:
            return registers.load(f, place, layout.dtype, self.lanes)
        return registers.masked_load(f, place, layout.dtype, present, 0)

    def allowed(
        self,
        f: Function,
        rows: Sequence[Value],
        query: Value,
        key: Int,
        numbers: Value,
        present: Value | None,
    ) -> Value | None:
        """Which scores of a vector count; `rows` are the rows of bias and mask."""
        found = self.in_band(f, numbers, query)
        if self.p.has_mask:
            mask = self.extra(f, 2 + self.p.num_extras, rows[-1], key, present)
            found = mask if found is None else f.binary("and", found, mask)
        return found

    def extra_rows(
        self,
        f: Function,
        pointers: Sequence[Value],
        letters: Sequence[str],
        places: Sequence[Int],
        query: Int,
    ) -> list[Value]:
        """Rows of bias and mask of a query."""
        found = []
        for number in range(3, 3 + self.p.num_extras):
            layout = self.p.arrays[number]
            offset = f.add(layout.offset(f, letters, places), f.mul(query, layout.stride("t")))
            found.append(f.at(pointers[number], offset, layout.element))
        return found

    def across(self, f: Function, x: Value, *, largest: bool) -> Value:
        """The largest of all lanes, or their sum."""
        lanes = x.type.lanes
        while lanes > 1:
            half = lanes // 2
            a = f.shuffle(x, None, range(half)) if half > 1 else f.extract(x, 0)
            b = f.shuffle(x, None, range(half, lanes)) if half > 1 else f.extract(x, 1)
            x, lanes = (self.larger(f, a, b) if largest else f.binary("fadd", a, b)), half
        return x
