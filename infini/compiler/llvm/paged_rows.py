"""Attention of one token over a run of keys in blocks: the queries that share a key head are held beside each
key as it streams past, so that the cache is read once.

Scores of some keys make one register: lane `g * keys + i` is that of query g and key i. They stay on the
stack between the products with the keys and those with the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.paged_parts import Parts, lanes_of
from infini.compiler.llvm.paged_problem import Piece, Row
from infini.compiler.llvm.types import F32, I32

UNROLLED = 8  # registers along the width of a key that are one piece of code
AHEAD_BYTES = 8 << 10  # how far before they are read rows of the cache are asked for
LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Values of one block of the cache, weights beside them, and the sums they are added to.

    Args:
        row: row of the cache of the first value of the block.
        key: its key.
        keys: first key that is seen, and the end.
        first: key of the first weight.
        weights: address of the weights.
        sums: address of the sums.
    """

    row: Int
    key: Int
    keys: tuple[Int, Int]
    first: Int
    weights: Value
    sums: Value


class Rows:
    """Writes the code of such a piece.

    Args:
        parts: what it shares with tiles.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.p, self.lanes = parts, parts.p, parts.lanes
        self.keys = self._keys()
        self.depth_row = -(-self.p.depth // self.lanes) * self.lanes
        self.width_row = -(-self.p.width // self.lanes) * self.lanes
        # Registers of a row of the result that are summed at a time.
        self.columns = max(1, min(self._most // self.p.group, self.width_row // self.lanes))

    @property
    def _most(self) -> int:
        """Registers that may hold sums."""
        return 16 if self.p.target.num_registers >= 32 else 8

    def _keys(self) -> int:
        """Keys of a register of scores: as many as sums find place for."""
        keys = 1
        while 2 * keys * self.p.group <= min(self.lanes, self._most):
            keys *= 2
        return keys

    def write(self, f: Function, at: Mapping[str, Value], piece: Piece, token: Int) -> None:
        """The code for one token, into a task function."""
        parts, p = self.parts, self.p
        first, stop = piece.keys
        seen, end = parts.keys_of_token(f, piece.request, token)
        low, high = f.maximum(first, seen), f.minimum(stop, end)
        query = f.allocate(4 * p.group * self.depth_row)
        sums = f.allocate(4 * p.group * self.width_row)
        scores = f.allocate(4 * (p.chunk // self.keys) * self.lanes)
        head = f.mul(piece.head, p.group)
        parts.copy_query(f, at, (token, head), query, self.depth_row, p.group)
        parts.fill(f, sums, p.group * self.width_row, 0.0)
        groups = (
            f.divide(f.maximum(f.sub(low, first), 0), self.keys)[0],
            f.divide(f.maximum(f.add(f.sub(high, first), self.keys - 1), 0), self.keys)[0],
        )
        lowest = parts.number(f, -math.inf, self.lanes)
        with f.loop(*groups, 1, [lowest]) as loop:
            key = f.add(first, f.mul(loop.index, self.keys))
            x = self._scores(f, at, piece, key, query, (low, high))
            f.store(x, parts.moved(f, scores, f.mul(loop.index, self.lanes)))
            loop.next = [parts.larger(f, x, loop.carried[0])]
        top = self._over_keys(f, loop.results[0], largest=True)
        base = parts.finite(f, top)
        with f.loop(*groups, 1, [parts.number(f, 0.0, self.lanes)]) as loop:
            here = parts.moved(f, scores, f.mul(loop.index, self.lanes))
            weight = parts.exp(f, f.binary("fsub", parts.vector(f, here), base))
            loop.next = [f.binary("fadd", loop.carried[0], weight)]
            if parts.value_scales is not None:
                key = f.add(first, f.mul(loop.index, self.keys))
                weight = f.binary("fmul", weight, self._scales(f, at, piece, key, parts.value_scales, high))
            f.store(weight, here)
        total = self._over_keys(f, loop.results[0], largest=False)
        self._mix(f, at, piece, (low, high), (scores, sums))
        for g in range(p.group):
            found = Row(
                token,
                f.add(head, g),
                parts.moved(f, sums, g * self.width_row),
                f.extract(top, g * self.keys),
                f.extract(total, g * self.keys),
            )
            parts.deliver(f, at, piece, found)

    # --- scores -----------------------------------------------------------------------------------

    def _rows_of(self, f: Function, at: Mapping[str, Value], piece: Piece, key: Int, end: Int) -> list[Int]:
        """Rows of the cache of some keys from one on; those from `end` on are no further than its block."""
        if self.p.size % self.keys == 0:
            row = self.parts.row_of_key(f, at, piece, key)
            return [f.add(row, i) for i in range(self.keys)]
        last = f.sub(end, 1)
        return [self.parts.row_of_key(f, at, piece, f.minimum(f.add(key, i), last)) for i in range(self.keys)]

    def _scores(
        self, f: Function, at: Mapping[str, Value], piece: Piece, key: Int, query: Value,
        seen: tuple[Int, Int],
    ) -> Value:  # fmt: skip
        """Scores of all queries and of the keys from `key` on, those that are not seen minus infinity."""
        parts, p = self.parts, self.p
        rows = self._rows_of(f, at, piece, key, seen[1])
        element = registers.memory_element(p.types.keys.dtype)
        later = self._later(f, at, "keys", piece, key, seen[1])
        for i in range(self.keys):
            self._ask(f, "keys", later, i, 0, p.depth)
        places = [parts.address(f, at, "keys", row, 0) for row in rows]
        acc = [parts.number(f, 0.0, self.lanes)] * (p.group * self.keys)

        def step(acc: Sequence[Value], column: Int, count: int) -> list[Value]:
            found = list(acc)
            dtype = p.types.keys.dtype
            keys = [parts.load(f, f.at(place, column, element), dtype, count) for place in places]
            for g in range(p.group):
                x = parts.vector(f, parts.moved(f, parts.moved(f, query, g * self.depth_row), column))
                for i, k in enumerate(keys):
                    number = g * self.keys + i
                    found[number] = f.fma(x, k, found[number])
            return found

        run = UNROLLED * self.lanes
        start = 0
        if p.depth > run:
            start = p.depth // run * run
            with f.loop(0, start, run, acc, runs=True) as loop:
                found = loop.carried
                for i in range(UNROLLED):
                    found = step(found, f.add(loop.index, i * self.lanes), self.lanes)
                loop.next = found
            acc = loop.results
        for column in range(start, p.depth, self.lanes):
            acc = step(acc, column, p.depth - column)
        x = _sums(f, acc, self.lanes)
        if p.options.has_scales:
            x = f.binary("fmul", x, self._scales(f, at, piece, key, "key_scales", seen[1]))
        x = parts.capped(f, x)
        numbers = lanes_of(f, [lane % self.keys for lane in range(self.lanes)])
        numbers = f.binary("add", numbers, self._places(f, key))
        inside = f.compare("slt", numbers, self._places(f, seen[1]))
        if p.options.window is not None:
            inside = f.binary("and", inside, f.compare("sge", numbers, self._places(f, seen[0])))
        return f.select(inside, x, parts.number(f, -math.inf, self.lanes))

    def _later(
        self, f: Function, at: Mapping[str, Value], name: str, piece: Piece, key: Int, end: Int
    ) -> Value | None:
        """Address of the row of a cache that is read soon after that of a key: where the next block is, the
        processor cannot know.
        """
        if self.p.size % self.keys:
            return None
        type_ = getattr(self.p.types, name)
        distance = -(-AHEAD_BYTES // (type_.shape[-1] * type_.dtype.itemsize) // self.keys) * self.keys
        later = f.minimum(f.add(key, distance), f.sub(end, 1))
        return self.parts.address(f, at, name, self.parts.row_of_key(f, at, piece, later), 0)

    def _ask(self, f: Function, name: str, later: Value | None, row: int, column: Int, width: int) -> None:
        """Ask for some columns of a row."""
        if later is None:
            return
        type_ = getattr(self.p.types, name)
        element = registers.memory_element(type_.dtype)
        here = f.at(later, f.add(column, row * type_.shape[-1]), element)
        for offset in range(0, width * type_.dtype.itemsize, LINE_BYTES):
            f.prefetch(f.at(here, offset, "i8"))

    def _places(self, f: Function, x: Int) -> Value:
        return f.splat(f.convert("trunc", f.integer(x), I32), self.lanes)

    def _scales(
        self, f: Function, at: Mapping[str, Value], piece: Piece, key: Int, name: str, end: Int
    ) -> Value:
        """Factors of some keys, beside their scores."""
        rows = self._rows_of(f, at, piece, key, end)
        found = [self.parts.scale_at(f, at, name, row) for row in rows]
        x = f.constant(0.0, F32.with_lanes(self.keys))
        if self.keys == 1:
            return f.splat(found[0], self.lanes)
        for i, one in enumerate(found):
            x = f.pure(f"insertelement {x.type} {x}, {one.type} {one}, i64 {i}", x.type, x, one)
        return f.shuffle(x, None, [lane % self.keys for lane in range(self.lanes)])

    def _over_keys(self, f: Function, x: Value, *, largest: bool) -> Value:
        """The largest, or the sum, of the lanes of each query, in all of them."""
        distance = 1
        while distance < self.keys:
            other = f.shuffle(x, None, [lane ^ distance for lane in range(self.lanes)])
            x = self.parts.larger(f, x, other) if largest else f.binary("fadd", x, other)
            distance *= 2
        return x

    # --- values -----------------------------------------------------------------------------------

    def _mix(
        self, f: Function, at: Mapping[str, Value], piece: Piece, seen: tuple[Int, Int],
        kept: tuple[Value, Value],
    ) -> None:  # fmt: skip
        """Weights times values, a block of the cache at a time; `kept` are the addresses of weights and sums.
        Only values of keys that are seen are read: others may be anything, and nothing times that is not
        nothing.
        """
        p = self.p
        low, high = seen
        blocks = f.divide(low, p.size)[0], f.divide(f.maximum(f.add(high, p.size - 1), 0), p.size)[0]
        with f.when(f.compare("slt", f.integer(low), f.integer(high))), f.loop(*blocks, runs=True) as block:
            start = f.mul(block.index, p.size)
            keys = f.maximum(low, start), f.minimum(high, f.add(start, p.size))
            row = self.parts.row_of_key(f, at, piece, start)
            run = Run(row, start, keys, piece.keys[0], *kept)
            width = self.columns * self.lanes
            whole = p.width // width * width
            with f.loop(0, whole, width) as column:
                self._columns(f, at, piece, (run, high), (column.index, width))
            if whole < p.width:
                self._columns(f, at, piece, (run, high), (whole, p.width - whole))

    def _columns(
        self, f: Function, at: Mapping[str, Value], piece: Piece, runs: tuple[Run, Int],
        columns: tuple[Int, int],
    ) -> None:  # fmt: skip
        """Some columns of the sums: the first, and how many; beside the run is the end of all keys."""
        parts, p = self.parts, self.p
        (run, high), (column, width) = runs, columns
        count = -(-width // self.lanes)
        into = [
            parts.moved(f, parts.moved(f, run.sums, column), g * self.width_row + j * self.lanes)
            for g in range(p.group)
            for j in range(count)
        ]

        def step(acc: Sequence[Value], key: Int, weights: Value, lane: int) -> list[Value]:
            found = list(acc)
            here = f.add(run.row, f.sub(key, run.key))
            values = [
                parts.load_row(
                    f, at, parts.values, here, f.add(column, j * self.lanes), width - j * self.lanes
                )
                for j in range(count)
            ]
            for g in range(p.group):
                place = parts.moved(f, weights, g * self.keys + lane)
                weight = f.splat(f.load(place, F32), self.lanes)
                for j, x in enumerate(values):
                    number = g * count + j
                    found[number] = f.fma(weight, x, found[number])
            return found

        def one_by_one(acc: list[Value], begin: Int, end: Int) -> list[Value]:
            with f.loop(begin, end, 1, acc) as loop:
                if self.keys == 1:
                    later = self._later(f, at, parts.values, piece, loop.index, high)
                    self._ask(f, parts.values, later, 0, column, width)
                group, lane = f.divide(f.sub(loop.index, run.first), self.keys)
                weights = parts.moved(f, run.weights, f.add(f.mul(group, self.lanes), lane))
                loop.next = step(loop.carried, loop.index, weights, 0)
            return loop.results

        acc = [parts.vector(f, place) for place in into]
        begin, end = run.keys
        if self.keys == 1:
            acc = one_by_one(acc, begin, end)
        else:
            if p.options.window is not None or p.size % self.keys:
                ahead = f.mul(
                    f.divide(f.add(f.sub(begin, run.first), self.keys - 1), self.keys)[0], self.keys
                )
                whole = f.minimum(f.add(run.first, ahead), end)
                acc = one_by_one(acc, begin, whole)
                begin = whole
            behind, _ = f.divide(f.sub(end, begin), self.keys)
            stop = f.add(begin, f.mul(behind, self.keys))
            with f.loop(begin, stop, self.keys, acc) as loop:
                group, _ = f.divide(f.sub(loop.index, run.first), self.keys)
                weights = parts.moved(f, run.weights, f.mul(group, self.lanes))
                found = loop.carried
                later = self._later(f, at, parts.values, piece, loop.index, high)
                for i in range(self.keys):
                    self._ask(f, parts.values, later, i, column, width)
                    found = step(found, f.add(loop.index, i), weights, i)
                loop.next = found
            acc = one_by_one(loop.results, stop, end)
        for place, x in zip(into, acc, strict=True):
            f.store(x, place)


def _sums(f: Function, vectors: Sequence[Value], lanes: int) -> Value:
    """The sum of all lanes of each of some vectors, one per lane, by exchanging halves."""
    rows = list(vectors)
    zero = f.constant(0.0, rows[0].type)
    while len(rows) & (len(rows) - 1):
        rows.append(zero)
    distance = 1
    while distance < lanes:
        if len(rows) > 1:
            rows = [_halves(f, a, b, distance) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        else:
            turned = f.shuffle(rows[0], None, [(lane + distance) % lanes for lane in range(lanes)])
            rows = [f.binary("fadd", rows[0], turned)]
        distance *= 2
    return rows[0]


def _halves(f: Function, a: Value, b: Value, distance: int) -> Value:
    """Sums of lanes at a distance: those of `a` where a lane lacks the bit, those of `b` where it has it."""
    lanes = a.type.lanes
    low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
    high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
    return f.binary("fadd", f.shuffle(a, b, low), f.shuffle(a, b, high))
