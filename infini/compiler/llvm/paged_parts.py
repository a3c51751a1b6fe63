"""What both ways of computing a piece of attention over keys in blocks write into a task function: requests
at run time, rows of the cache, scores, and results.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from infini.compiler.llvm import math as functions, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.paged_problem import Piece, Problem, Request, Row
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import F32, I32, I64, PTR, scalar
from infini.core import dtypes
from infini.lax.composites.paged_definition import Operands

FLOAT = "float"


class Parts:
    """Writes what both ways share."""

    def __init__(self, problem: Problem) -> None:
        self.p = problem
        self.lanes = problem.lanes
        self.helpers: dict[str, Function] = {}

    # --- functions ------------------------------------------------------------------------------

    def start(self) -> tuple[Function, Mapping[str, Value]]:
        """A task function, and pointers to operands, `out` and `scratch` by name."""
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        types = self.p.types
        names = [name for name in Operands.__slots__ if getattr(types, name) is not None]
        names += ["out", "scratch"]
        return f, {
            name: f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True)
            for i, name in enumerate(names)
        }

    def finish(
        self, kind: str, f: Function, num_tasks: int, cost_ns: float, scratch: int = 0
    ) -> TaskFunction:
        """The task function with the functions it calls."""
        used = [f, *self.helpers.values()]
        self.helpers = {}
        text = "".join(x.finish() for x in used)
        name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        declares = frozenset[str]().union(*(x.declares for x in used))
        return TaskFunction(name, text.replace("@TASK", f"@{name}"), declares, num_tasks, scratch, cost_ns)

    # --- requests -------------------------------------------------------------------------------

    def integer_at(self, f: Function, pointer: Value, place: Int) -> Value:
        """An int32 of an operand."""
        return f.convert("sext", f.load(f.at(pointer, place, "i32"), I32, is_invariant=True), I64)

    def request(self, f: Function, at: Mapping[str, Value], number: Int) -> Request:
        """A request by its row of the table. What is out of range is limited, so that no memory is touched
        that is not an operand's."""
        p = self.p
        begin = f.maximum(self.integer_at(f, at["starts"], number), 0)
        stop = self.integer_at(f, at["starts"], f.add(number, 1))
        count = f.maximum(f.sub(f.minimum(stop, p.tokens), begin), 0)
        end = self.integer_at(f, at["lengths"], number)
        is_few = f.compare("sle", f.integer(count), f.integer(p.few_tokens))
        chunks: Int = 1
        if p.num_chunks > 1:
            keys = f.minimum(f.maximum(end, 0), p.most_keys)
            pieces, _ = f.divide(f.add(keys, p.chunk - 1), p.chunk)
            chunks = f.select(is_few, f.maximum(pieces, 1), f.integer(1))
        return Request(number, begin, count, end, stop, chunks, is_few)

    def num_pieces(self, f: Function, request: Request) -> Int:
        """Pieces of a request."""
        tiles = self.num_tiles(f, request)
        if self.p.streams:
            own = f.select(request.is_few, f.integer(request.count), f.integer(tiles))
            tiles = own if self.p.has_tiles else request.count
        return f.mul(f.mul(tiles, request.chunks), self.p.key_heads)

    def num_tiles(self, f: Function, request: Request) -> Int:
        """Tiles of a request, of one key head."""
        size = self.p.tile_tokens
        count, _ = f.divide(f.add(request.count, size - 1), size)
        return f.mul(count, self.p.tile_parts)

    def keys_of_piece(self, f: Function, request: Request, chunk: Int) -> tuple[Int, Int]:
        """First key and end of a run of keys."""
        if self.p.num_chunks == 1:
            return 0, self.p.most_keys
        first = f.mul(chunk, self.p.chunk)
        is_whole = f.compare("eq", f.integer(request.chunks), f.integer(1))
        stop = f.select(is_whole, f.integer(self.p.most_keys), f.integer(f.add(first, self.p.chunk)))
        return first, f.minimum(stop, self.p.most_keys)

    def keys_of_token(self, f: Function, request: Request, token: Int) -> tuple[Int, Int]:
        """First key that a token sees, and the end."""
        end = f.add(request.end, f.sub(f.add(token, 1), request.stop))
        window = self.p.options.window
        return (0 if window is None else f.maximum(f.sub(end, window), 0)), end

    # --- the cache ------------------------------------------------------------------------------

    def row_of_key(self, f: Function, at: Mapping[str, Value], piece: Piece, key: Int) -> Int:
        """Number of the row of a key among all rows of the cache."""
        p = self.p
        entry, place = f.divide(key, p.size)
        entry = f.add(f.mul(piece.request.number, p.table), entry)
        # A block is read only where it is known to be there, so the load must stay where it is.
        bits = f.load(f.at(at["tables"], entry, "i32"), I32)
        block = f.minimum(f.maximum(f.convert("sext", bits, I64), 0), p.num_blocks - 1)
        return f.add(f.mul(f.add(f.mul(block, p.key_heads), piece.head), p.size), place)

    def scale_at(self, f: Function, at: Mapping[str, Value], name: str, row: Int) -> Value:
        """The scale of a row as a float32."""
        type_ = getattr(self.p.types, name)
        return registers.load(f, f.at(at[name], row, registers.memory_element(type_.dtype)), type_.dtype, 1)

    @property
    def value_scales(self) -> str | None:
        """Name of the operand with the factors of the values."""
        if not self.p.options.has_scales:
            return None
        return "key_scales" if self.p.types.values is None else "value_scales"

    @property
    def values(self) -> str:
        """Name of the operand with the values."""
        return "keys" if self.p.types.values is None else "values"

    def load_row(
        self, f: Function, at: Mapping[str, Value], name: str, row: Int, column: Int, count: int
    ) -> Value:
        """Neighbours of a row of the cache as float32, zeros behind the first `count` lanes."""
        type_ = getattr(self.p.types, name)
        return self.load(f, self.address(f, at, name, row, column), type_.dtype, count)

    def address(self, f: Function, at: Mapping[str, Value], name: str, row: Int, column: Int) -> Value:
        """Address of a column of a row of the cache."""
        type_ = getattr(self.p.types, name)
        place = f.add(f.mul(row, type_.shape[-1]), column)
        return f.at(at[name], place, registers.memory_element(type_.dtype))

    def load(self, f: Function, place: Value, dtype: np.dtype, count: int) -> Value:
        """The first `count` lanes from memory as float32, zeros in the others."""
        if count >= self.lanes:
            x = registers.load(f, place, dtype, self.lanes)
        else:
            x = registers.masked_load(f, place, dtype, f.first_lanes(count, self.lanes), 0)
        return f.convert("sitofp", x, x.type.with_element(FLOAT)) if dtype in dtypes.INTEGERS else x

    # --- numbers --------------------------------------------------------------------------------

    def moved(self, f: Function, pointer: Value, offset: Int) -> Value:
        """Address of a float32."""
        return f.at(pointer, offset, FLOAT)

    def number(self, f: Function, x: float, lanes: int = 1) -> Value:
        """A float32 in every lane."""
        return f.constant(x, F32.with_lanes(lanes))

    def vector(self, f: Function, pointer: Value) -> Value:
        """A vector of float32."""
        return f.load(pointer, F32.with_lanes(self.lanes))

    def larger(self, f: Function, a: Value, b: Value) -> Value:
        """The larger of two; `b` where one is not a number."""
        return f.select(f.compare("ogt", a, b), a, b)

    def finite(self, f: Function, x: Value) -> Value:
        """What scores are compared with: 0 where the largest is minus infinity, as of no key."""
        nothing = f.compare("oeq", x, f.constant(-math.inf, x.type))
        return f.select(nothing, f.constant(0.0, x.type), x)

    def exp(self, f: Function, x: Value) -> Value:
        """The exponential of numbers that are not positive."""
        return functions.exp_of_nonpositive_f32(f, x)

    def capped(self, f: Function, x: Value) -> Value:
        """Scores after the cap, if there is one."""
        cap = self.p.options.softcap
        if cap is None:
            return x
        inside = f.binary("fdiv", x, f.constant(cap, x.type))
        return f.binary("fmul", functions.tanh_f32(f, inside), f.constant(cap, x.type))

    def fill(self, f: Function, target: Value, count: Int, x: float) -> None:
        """Set float32; their number is a multiple of the lanes."""
        value = self.number(f, x, self.lanes)
        with f.loop(0, count, self.lanes) as loop:
            f.store(value, self.moved(f, target, loop.index))

    # --- results --------------------------------------------------------------------------------

    def deliver(self, f: Function, at: Mapping[str, Value], piece: Piece, row: Row) -> None:
        """Write what a piece found for a row: the result when it has all keys, else a partial one."""
        if self.p.num_chunks == 1:
            self.write(f, at, row)
            return
        one = f.compare("eq", f.integer(piece.request.chunks), f.integer(1))
        with f.when(one):
            self.write(f, at, row)
        with f.when(f.binary("xor", one, f.constant(True, one.type))):
            here = self.partial(f, at, self.slot(f, piece.request, row.token), piece.chunk, row.head)
            for column in range(0, self.p.width, self.lanes):
                f.store(self.vector(f, self.moved(f, row.sums, column)), self.moved(f, here, column))
            behind = self.moved(f, here, self.p.partial_row - self.lanes)
            f.store(row.top, behind)
            f.store(row.total, self.moved(f, behind, 1))

    def slot(self, f: Function, request: Request, token: Int) -> Int:
        """Number of a token among those with partial results."""
        if self.p.num_slots == self.p.tokens:
            return token
        return f.add(f.mul(request.number, self.p.few_tokens), f.sub(token, request.first))

    def partial(self, f: Function, at: Mapping[str, Value], slot: Int, chunk: Int, head: Int) -> Value:
        """Address of a partial result."""
        p = self.p
        number = f.add(f.mul(f.add(f.mul(slot, p.num_chunks), chunk), p.heads), head)
        return self.moved(f, f.at(at["scratch"], p.partial_start, "i8"), f.mul(number, p.partial_row))

    def write(self, f: Function, at: Mapping[str, Value], row: Row) -> None:
        """Write a row of the result: zeros when it has no key."""
        p, total = self.p, row.total
        share = self.number(f, 1.0)
        if p.types.sinks is not None:
            dtype = p.types.sinks.dtype
            here = f.at(at["sinks"], row.head, registers.memory_element(dtype))
            sink = registers.load(f, here, dtype, 1)
            highest = self.larger(f, row.top, sink)
            share = self.exp(f, f.binary("fsub", row.top, highest))
            total = f.fma(total, share, self.exp(f, f.binary("fsub", sink, highest)))
        has_key = f.compare("ogt", total, self.number(f, 0.0))
        factor = f.select(has_key, f.binary("fdiv", share, total), self.number(f, 0.0))
        # What is not a number stays so.
        factor = f.select(f.compare("uno", total, total), total, factor)
        times = f.splat(factor, self.lanes)
        out = p.types.query.dtype
        element = registers.memory_element(out)
        line = f.at(at["out"], f.mul(f.add(f.mul(row.token, p.heads), row.head), p.width), element)
        for column in range(0, p.width, self.lanes):
            x = f.binary("fmul", self.vector(f, self.moved(f, row.sums, column)), times)
            active = min(self.lanes, p.width - column)
            mask = None if active == self.lanes else f.first_lanes(active, self.lanes)
            registers.store(f, registers.rounded(f, x, out), f.at(line, column, element), out, mask)

    def copy_query(
        self,
        f: Function,
        at: Mapping[str, Value],
        first: tuple[Int, Int],
        target: Value,
        row: int,
        count: int,
    ) -> None:
        """Queries of one token, from a head on, as rows of float32 times the scale, zeros behind each;
        `first` are the token and the head.
        """
        p = self.p
        dtype = p.types.query.dtype
        element = registers.memory_element(dtype)
        times = self.number(f, p.options.scale, self.lanes)
        with f.loop(0, count) as loop:
            place = f.mul(f.add(f.add(f.mul(first[0], p.heads), first[1]), loop.index), p.depth)
            source = f.at(at["query"], place, element)
            into = self.moved(f, target, f.mul(loop.index, row))
            for column in range(0, p.depth, self.lanes):
                x = self.load(f, f.at(source, column, element), dtype, p.depth - column)
                f.store(f.binary("fmul", x, times), self.moved(f, into, column))


def lanes_of(f: Function, numbers: Sequence[int]) -> Value:
    """A vector of int32 constants."""
    text = ", ".join(f"i32 {n}" for n in numbers)
    return Value(
        f"<{text}>" if len(numbers) > 1 else text[4:], scalar("i32").with_lanes(len(numbers)), f.root
    )
