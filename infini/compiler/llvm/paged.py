"""Attention over keys in blocks, on the CPU: a list of pieces is made of the lengths, tasks take equal shares
of it, and partial results of requests whose keys were cut are joined.

The number of tasks follows from the shapes alone; how many pieces there are, and so the time, from the tokens
and keys that there are. See `paged_problem` for what a piece is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from infini.compiler.llvm import paged_pairs, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.paged_pairs import PairedTiles
from infini.compiler.llvm.paged_parts import Parts
from infini.compiler.llvm.paged_problem import Piece, Problem, Request, Row
from infini.compiler.llvm.paged_rows import Rows
from infini.compiler.llvm.paged_tiles import Tiles
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import F32, I64
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites.paged_definition import Options, operands_of

NS_PER_FLOP: Final = 0.03
NS_PER_ELEMENT: Final = 0.3
JOIN_TASKS: Final = 64


def emit(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """Native code of `paged_attention`.

    Args:
        types: of the operands.
        attrs: attributes of the operation.
        target: processor to make code for.

    Returns:
        Phases to run one after the other, all with `args` operands, result, scratch.
    """
    options = Options(**attrs)
    emitter = _Emitter(Problem(operands_of(types, options), options, target))
    return emitter.phases()


def stack_bytes(problem: Problem) -> int:
    """Stack memory of the task function that computes pieces."""
    emitter = _Emitter(problem)
    return emitter.computed()[0].stack_bytes


class _Emitter(Parts):
    def phases(self) -> tuple[TaskFunction, ...]:
        """The list of pieces, the pieces, and the joining of partial results where there may be any."""
        found = (self._list(), self._compute())
        return (*found, self._join()) if self.p.num_slots else found

    def _list(self) -> TaskFunction:
        """For each request the number of the first of its pieces, and behind them how many there are."""
        f, at = self.start()
        with f.loop(0, self.p.requests, 1, [f.integer(0)]) as loop:
            f.store(loop.carried[0], f.at(at["scratch"], loop.index, "i64"))
            pieces = self.num_pieces(f, self.request(f, at, loop.index))
            loop.next = [f.integer(f.add(loop.carried[0], pieces))]
        f.store(loop.results[0], f.at(at["scratch"], self.p.requests, "i64"))
        return self.finish("paged_list", f, 1, 5.0 * self.p.requests, self.p.scratch_bytes)

    def _compute(self) -> TaskFunction:
        f, num_tasks = self.computed()
        return self.finish("paged_attention", f, num_tasks, self.p.flops * NS_PER_FLOP)

    def computed(self) -> tuple[Function, int]:
        """The function that computes pieces, and its tasks."""
        p = self.p
        f, at = self.start()
        rows = Rows(self) if p.streams else None
        kind = PairedTiles if paged_pairs.is_suited(p) else Tiles
        tiles = kind(self) if p.has_tiles else None
        task = f.parameters[1]
        pieces = f.load(f.at(at["scratch"], p.requests, "i64"), I64)
        first, _ = f.divide(f.mul(pieces, task), p.num_tasks)
        stop, _ = f.divide(f.mul(pieces, f.add(task, 1)), p.num_tasks)
        with f.loop(first, stop) as loop:
            request = self.request(f, at, self._owner(f, at, loop.index))
            before = f.load(f.at(at["scratch"], request.number, "i64"), I64)
            number = f.sub(loop.index, before)
            if rows is not None:
                with f.when(request.is_few):
                    self._row(f, at, rows, request, number)
            if tiles is not None:
                is_other = request.is_few
                if rows is not None:
                    is_other = f.binary("xor", is_other, f.constant(True, is_other.type))
                    with f.when(is_other):
                        self._tile(f, at, tiles, request, number)
                else:
                    self._tile(f, at, tiles, request, number)
        self._clear(f, at)
        return f, p.num_tasks

    def _owner(self, f: Function, at: Mapping[str, Value], piece: Int) -> Int:
        """The request that a piece is of."""
        if self.p.requests == 1:
            return 0
        with f.loop(1, self.p.requests, 1, [f.integer(0)]) as loop:
            begin = f.load(f.at(at["scratch"], loop.index, "i64"), I64)
            is_before = f.compare("sle", begin, f.integer(piece))
            loop.next = [f.integer(f.add(loop.carried[0], f.convert("zext", is_before, I64)))]
        return loop.results[0]

    def _row(self, f: Function, at: Mapping[str, Value], rows: Rows, request: Request, number: Int) -> None:
        """A piece of the rows of one token: pieces of one run of keys follow each other."""
        count = f.integer(request.count)
        rest, token = _divide(f, number, count)
        head, chunk = _divide(f, rest, request.chunks)
        piece = Piece(request, head, chunk, self.keys_of_piece(f, request, chunk))
        rows.write(f, at, piece, f.add(request.first, token))

    def _tile(
        self, f: Function, at: Mapping[str, Value], tiles: Tiles, request: Request, number: Int
    ) -> None:
        rest, tile = _divide(f, number, self.num_tiles(f, request))
        head, chunk = _divide(f, rest, request.chunks)
        piece = Piece(request, head, chunk, self.keys_of_piece(f, request, chunk))
        tiles.write(f, at, piece, tile)

    def _clear(self, f: Function, at: Mapping[str, Value]) -> None:
        """Zeros for the tokens that are of no request."""
        p = self.p
        out = p.types.query.dtype
        first, stop = (
            f.minimum(f.maximum(self.integer_at(f, at["starts"], i), 0), p.tokens) for i in (0, p.requests)
        )
        share = -(-p.tokens // p.num_tasks)
        begin = f.mul(f.parameters[1], share)
        end = f.minimum(f.add(begin, share), p.tokens)
        row = p.heads * p.width
        zero = registers.constant(f, 0, out, self.lanes)
        element = registers.memory_element(out)
        with f.loop(begin, end) as token:
            is_before = f.compare("slt", token.index, first)
            is_behind = f.compare("sge", token.index, stop)
            with f.when(f.binary("or", is_before, is_behind)):
                here = f.at(at["out"], f.mul(token.index, row), element)
                whole = row // self.lanes * self.lanes
                with f.loop(0, whole, self.lanes) as column:
                    registers.store(f, zero, f.at(here, column.index, element), out)
                if whole < row:
                    mask = f.first_lanes(row - whole, self.lanes)
                    registers.store(f, zero, f.at(here, whole, element), out, mask)

    # --- partial results ----------------------------------------------------------------------------

    def _join(self) -> TaskFunction:
        """Results of tokens whose keys were cut: each task has some heads of some tokens."""
        p = self.p
        f, at = self.start()
        count = p.num_slots * p.key_heads
        share = -(-count // JOIN_TASKS)
        first = f.mul(f.parameters[1], share)
        sums = f.allocate(4 * p.partial_row)
        with f.loop(first, f.minimum(f.add(first, share), count)) as loop:
            slot, head = f.divide(loop.index, p.key_heads)
            request, token = self._of_slot(f, at, slot)
            inside = f.compare("slt", f.integer(token), f.integer(f.add(request.first, request.count)))
            inside = f.binary("and", inside, f.compare("sge", f.integer(token), f.integer(request.first)))
            is_cut = f.compare("sgt", f.integer(request.chunks), f.integer(1))
            with f.when(f.binary("and", inside, is_cut)), f.loop(0, p.group) as own:
                self._join_row(f, at, request, (slot, token, f.add(f.mul(head, p.group), own.index)), sums)
        cost = p.num_slots * p.heads * p.num_chunks * p.partial_row * NS_PER_ELEMENT / 2
        return self.finish("paged_join", f, -(-count // share), cost)

    def _of_slot(self, f: Function, at: Mapping[str, Value], slot: Int) -> tuple[Request, Int]:
        """The request and the token of a slot; the token may be none of that request."""
        p = self.p
        if p.num_slots < p.tokens:
            number, place = f.divide(slot, p.few_tokens)
            request = self.request(f, at, number)
            return request, f.add(request.first, place)
        with f.loop(1, p.requests, 1, [f.integer(0)]) as loop:
            begin = self.integer_at(f, at["starts"], loop.index)
            is_before = f.compare("sle", begin, f.integer(slot))
            loop.next = [f.integer(f.add(loop.carried[0], f.convert("zext", is_before, I64)))]
        return self.request(f, at, loop.results[0]), slot

    def _join_row(
        self, f: Function, at: Mapping[str, Value], request: Request, place: tuple[Int, Int, Int], sums: Value
    ) -> None:
        p = self.p
        slot, token, head = place
        last = p.partial_row - self.lanes
        with f.loop(0, request.chunks, 1, [self.number(f, -math.inf)]) as loop:
            here = self.partial(f, at, slot, loop.index, head)
            loop.next = [self.larger(f, f.load(self.moved(f, here, last), F32), loop.carried[0])]
        top = loop.results[0]
        base = self.finite(f, top)
        self.fill(f, sums, last, 0.0)
        with f.loop(0, request.chunks, 1, [self.number(f, 0.0)]) as loop:
            here = self.partial(f, at, slot, loop.index, head)
            own = f.load(self.moved(f, here, last), F32)
            share = self.exp(f, f.binary("fsub", f.splat(own, self.lanes), f.splat(base, self.lanes)))
            for column in range(0, p.width, self.lanes):
                into = self.moved(f, sums, column)
                x = f.fma(share, self.vector(f, self.moved(f, here, column)), self.vector(f, into))
                f.store(x, into)
            amount = f.load(self.moved(f, here, last + 1), F32)
            loop.next = [f.fma(amount, f.extract(share, 0), loop.carried[0])]
        self.write(f, at, Row(token, head, sums, top, loop.results[0]))


def _divide(f: Function, number: Int, by: Int) -> tuple[Int, Int]:
    """Quotient and remainder by a number that is positive at run time."""
    if isinstance(by, int):
        return f.divide(number, by)
    quotient = f.binary("udiv", f.integer(number), by)
    return quotient, f.sub(number, f.mul(quotient, by))
