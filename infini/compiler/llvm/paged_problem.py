"""Attention over keys in blocks, as the CPU computes it: sizes, what is split how, and what the two ways of
computing a piece of it share.

A *piece* is some query rows of one request and one key head, and a run of its keys. Requests with few tokens
have their keys cut every `chunk` keys, so that many threads share one request, and results of the pieces are
joined; requests with more tokens have enough pieces without. Where a request is cut depends on its own tokens
and keys alone, so neither threads nor neighbours change a result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.llvm import math as functions, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import F32, I32, I64, PTR, scalar
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax.composites.paged_definition import Operands, Options

FEW_TOKENS: Final = 8  # of a request, of which the keys are cut
CHUNK_KEYS: Final = 512
MOST_TASKS: Final = 256
MOST_ROWS: Final = 8  # queries that share a key head, of which each streams past the keys
TILE_ROWS: Final = 96
ROW_BYTES: Final = 56 << 10  # of the queries of a tile
BLOCK_BYTES: Final = 64 << 10  # of the keys of a tile
LARGEST_WIDTH: Final = 640  # of a head: the copies of a tile are on the stack
FLOAT: Final = "float"


def is_suited(types: Operands[ArrayType], options: Options) -> bool:
    """Whether the kernel computes attention of operands of these types."""
    values = types.values if types.values is not None else types.keys
    widths = types.query.shape[-1], options.width_of(values)
    floats = (types.query, *(x for x in (types.key_scales, types.value_scales, types.sinks) if x is not None))
    return (
        all(x.dtype in registers.SUPPORTED and x.dtype != dtypes.float64 for x in (*floats, types.keys))
        and all(0 < width <= LARGEST_WIDTH for width in widths)
        and all(x.size for x in types.in_order())
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Sizes of a problem, with the letters of `paged_attention`.

    Args:
        types: of the operands.
        options: attributes of the operation.
        target: processor to make code for.
    """

    types: Operands[ArrayType]
    options: Options
    target: Target

    @property
    def tokens(self) -> int:
        """T."""
        return self.types.query.shape[0]

    @property
    def heads(self) -> int:
        """H."""
        return self.types.query.shape[1]

    @property
    def depth(self) -> int:
        """D."""
        return self.types.query.shape[2]

    @property
    def stored(self) -> ArrayType:
        """The cache that values are read from."""
        return self.types.keys if self.types.values is None else self.types.values

    @property
    def width(self) -> int:
        """E."""
        return self.options.width_of(self.stored)

    @property
    def num_blocks(self) -> int:
        """N."""
        return self.types.keys.shape[0]

    @property
    def key_heads(self) -> int:
        """K."""
        return self.types.keys.shape[1]

    @property
    def size(self) -> int:
        """S."""
        return self.types.keys.shape[2]

    @property
    def requests(self) -> int:
        """R."""
        return self.types.tables.shape[0]

    @property
    def table(self) -> int:
        """B."""
        return self.types.tables.shape[1]

    @property
    def most_keys(self) -> int:
        """Keys that a table has room for."""
        return self.table * self.size

    @property
    def group(self) -> int:
        """Queries that share a key head."""
        return self.heads // self.key_heads

    @property
    def lanes(self) -> int:
        """Float32 lanes of a register."""
        return self.target.lanes

    # --- pieces ---------------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether the rows of one token are so few that they stream past the keys."""
        return self.group <= min(MOST_ROWS, self.lanes)

    @property
    def has_tiles(self) -> bool:
        """Whether there may be requests that are computed in tiles."""
        return not self.streams or self.tokens > FEW_TOKENS

    @property
    def tile_heads(self) -> int:
        """Query heads of a tile: a divisor of the group."""
        most = self._most_rows
        return max(n for n in range(1, min(most, self.group) + 1) if self.group % n == 0)

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return max(1, min(self._most_rows // self.tile_heads, self.tokens))

    @property
    def _most_rows(self) -> int:
        widest = max(self.depth, self.width) + 2 * self.lanes + 16
        return max(12, min(TILE_ROWS, ROW_BYTES // (4 * widest)))

    @property
    def key_block(self) -> int:
        """Keys of a tile: whole panels of two registers."""
        panel = 2 * self.lanes
        return max(1, BLOCK_BYTES // (4 * max(self.depth, self.width)) // panel) * panel

    @property
    def chunk(self) -> int:
        """Keys of a piece of a request with few tokens: whole blocks of keys of a tile."""
        return -(-CHUNK_KEYS // self.key_block) * self.key_block

    @property
    def num_chunks(self) -> int:
        """Most pieces that the keys of a request are cut into."""
        return -(-self.most_keys // self.chunk)

    @property
    def num_slots(self) -> int:
        """Tokens that may be of requests whose keys are cut; none when all keys are one piece."""
        return min(self.tokens, self.requests * FEW_TOKENS) if self.num_chunks > 1 else 0

    @property
    def partial_row(self) -> int:
        """Elements of a partial result: the sums, the largest score, and the sum of weights."""
        return -(-self.width // self.lanes) * self.lanes + self.lanes

    @property
    def num_tasks(self) -> int:
        """Tasks that pieces are dealt out to."""
        few = min(self.tokens, self.requests * FEW_TOKENS)
        tiles = -(-self.tokens // self.tile_tokens) + self.requests
        pieces = max(few * self.num_chunks, tiles) * self.key_heads * (self.group // self.tile_heads)
        return max(1, min(MOST_TASKS, pieces))

    @property
    def partial_start(self) -> int:
        """Byte of the scratch memory at which partial results begin; before it is the list of pieces."""
        return -(-8 * (self.requests + 1) // 64) * 64

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch memory."""
        return self.partial_start + 4 * self.num_slots * self.num_chunks * self.heads * self.partial_row

    @property
    def flops(self) -> float:
        """Of all tokens, as if every table were half full."""
        return float(self.tokens * self.heads * self.most_keys * (self.depth + self.width))


@dataclass(frozen=True, slots=True)
class Request:
    """A request at run time.

    Args:
        number: its row of the table.
        first: its first token.
        count: its tokens.
        end: keys that its last token sees: of a token that is `n` before, `n` less.
        stop: the token behind its last.
        chunks: how many pieces its keys are cut into; 1 when they are not.
        is_few: whether it has few tokens.
    """

    number: Int
    first: Int
    count: Int
    end: Int
    stop: Int
    chunks: Int
    is_few: Value


@dataclass(frozen=True, slots=True)
class Piece:
    """What is computed at once, but for the rows.

    Args:
        request: whose.
        head: the key head.
        chunk: number of the run of keys.
        keys: its first key and the end.
    """

    request: Request
    head: Int
    chunk: Int
    keys: tuple[Int, Int]


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
        is_few = f.compare("sle", f.integer(count), f.integer(FEW_TOKENS))
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
        return f.mul(count, self.p.group // self.p.tile_heads)

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

    def deliver(
        self, f: Function, at: Mapping[str, Value], piece: Piece, token: Int, head: Int, sums: Value,
        top: Value, total: Value,
    ) -> None:  # fmt: skip
        """Write what a piece found for a row: the result when it has all keys, else a partial one.

        Args:
            f: function to write into.
            at: pointers.
            piece: the piece.
            token: the token of the row.
            head: its query head.
            sums: address of the sums of values times weights.
            top: the largest score.
            total: sum of the weights.
        """
        if self.p.num_chunks == 1:
            self.write(f, at, token, head, sums, top, total)
            return
        one = f.compare("eq", f.integer(piece.request.chunks), f.integer(1))
        with f.when(one):
            self.write(f, at, token, head, sums, top, total)
        with f.when(f.binary("xor", one, f.constant(True, one.type))):
            here = self.partial(f, at, self.slot(f, piece.request, token), piece.chunk, head)
            for column in range(0, self.p.width, self.lanes):
                f.store(self.vector(f, self.moved(f, sums, column)), self.moved(f, here, column))
            behind = self.moved(f, here, self.p.partial_row - self.lanes)
            f.store(top, behind)
            f.store(total, self.moved(f, behind, 1))

    def slot(self, f: Function, request: Request, token: Int) -> Int:
        """Number of a token among those with partial results."""
        if self.p.num_slots == self.p.tokens:
            return token
        return f.add(f.mul(request.number, FEW_TOKENS), f.sub(token, request.first))

    def partial(self, f: Function, at: Mapping[str, Value], slot: Int, chunk: Int, head: Int) -> Value:
        """Address of a partial result."""
        p = self.p
        number = f.add(f.mul(f.add(f.mul(slot, p.num_chunks), chunk), p.heads), head)
        return self.moved(f, f.at(at["scratch"], p.partial_start, "i8"), f.mul(number, p.partial_row))

    def write(
        self, f: Function, at: Mapping[str, Value], token: Int, head: Int, sums: Value, top: Value,
        total: Value,
    ) -> None:  # fmt: skip
        """Write a row of the result: zeros when it has no key."""
        p = self.p
        share = self.number(f, 1.0)
        if p.types.sinks is not None:
            dtype = p.types.sinks.dtype
            sink = registers.load(f, f.at(at["sinks"], head, registers.memory_element(dtype)), dtype, 1)
            highest = self.larger(f, top, sink)
            share = self.exp(f, f.binary("fsub", top, highest))
            total = f.fma(total, share, self.exp(f, f.binary("fsub", sink, highest)))
        has_key = f.compare("ogt", total, self.number(f, 0.0))
        factor = f.select(has_key, f.binary("fdiv", share, total), self.number(f, 0.0))
        # What is not a number stays so.
        factor = f.select(f.compare("uno", total, total), total, factor)
        times = f.splat(factor, self.lanes)
        out = p.types.query.dtype
        place = f.mul(f.add(f.mul(token, p.heads), head), p.width)
        row = f.at(at["out"], place, registers.memory_element(out))
        for column in range(0, p.width, self.lanes):
            x = f.binary("fmul", self.vector(f, self.moved(f, sums, column)), times)
            active = min(self.lanes, p.width - column)
            mask = None if active == self.lanes else f.first_lanes(active, self.lanes)
            here = f.at(row, column, registers.memory_element(out))
            registers.store(f, registers.rounded(f, x, out), here, out, mask)

    def copy_query(
        self, f: Function, at: Mapping[str, Value], token: Int, head: Int, target: Value, row: int, count: Int
    ) -> None:
        """Queries of one token, from a head on, as rows of float32 times the scale, zeros behind each."""
        p = self.p
        dtype = p.types.query.dtype
        element = registers.memory_element(dtype)
        times = self.number(f, p.options.scale, self.lanes)
        with f.loop(0, count) as loop:
            place = f.mul(f.add(f.add(f.mul(token, p.heads), head), loop.index), p.depth)
            source = f.at(at["query"], place, element)
            into = self.moved(f, target, f.mul(loop.index, row))
            for column in range(0, p.depth, self.lanes):
                x = self.load(f, f.at(source, column, element), dtype, p.depth - column)
                f.store(f.binary("fmul", x, times), self.moved(f, into, column))


def lanes_of(f: Function, numbers: Sequence[int]) -> Value:
    """A vector of int32 constants."""
    text = ", ".join(f"i32 {n}" for n in numbers)
    return Value(f"<{text}>" if len(numbers) > 1 else text[4:], scalar("i32").with_lanes(len(numbers)), f.root)
