"""Operations that are loops of their own inside a kernel: products of tiles, and scans.

The operands of a product are packed first where their elements are read often: in the dtype of the sums,
without what lies outside, and with the vectors of the second one together. A scan keeps its carry in two
buffers that change places each step, and runs the passes of its body inside one loop; operands it walks over
are loaded step by step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers, schedule
from infini.compiler.llvm.builder import Value
from infini.compiler.llvm.evaluate import Buffer, Evaluator
from infini.compiler.llvm.indexing import ZERO, Index
from infini.core import dtypes, ir
from infini.core.ir import ArrayType, Equation, Var
from infini.lax import contraction, families

ROWS = 4  # of a product that are computed together
WIDE_ROWS = 8  # where vectors are long: processors with those have 32 of them
WIDE_LANES = 16
VECTORS = 2
PACKED_ROWS = 8  # fewest rows, and vectors of columns, of a product whose operands are packed
MAX_PACKED_BYTES = 128 << 10  # of one operand; more would not stay in the caches


@dataclass(frozen=True, slots=True)
class BufferTarget:
    """Where a pass puts a result: a buffer, at some leading index."""

    buffer: Buffer
    prefix: tuple[Index, ...] = ()

    def store(self, evaluator: Evaluator, index: Sequence[Index], x: Value) -> None:
        """Store a result of a pass."""
        evaluator.store_buffer(self.buffer, (*self.prefix, *index), x)


# --- products of tiles ------------------------------------------------------------------------


def emit_dot(evaluator: Evaluator, equation: Equation, lanes: int) -> None:
    """Write a `dot` and make its result a buffer."""
    _Dot(evaluator, equation, lanes).emit()


class _Dot:
    """A contraction of two tiles: rows by vectors of accumulators, the contracted dimensions inside."""

    def __init__(self, evaluator: Evaluator, equation: Equation, lanes: int) -> None:
        self.e, self.f, self.equation = evaluator, evaluator.f, equation
        dtype: np.dtype = equation.attrs["dtype"]
        self.compute = dtypes.float32 if dtypes.is_float(dtype) and dtype.itemsize <= 2 else dtype
        a, b, out = contraction.parse_spec(equation.attrs["spec"])
        x, y = (v.type for v in equation.inputs)
        loops = families.loop_shape("dot", [x, y], [len(a), len(b)])
        names = [f"loop{i}" for i in range(len(loops))]
        self.operand_names = (
            [*names[len(loops) - (x.ndim - len(a)) :], *a],
            [*names[len(loops) - (y.ndim - len(b)) :], *b],
        )
        self.out_names = [*names, *out]
        self.sizes = dict(zip(names, loops, strict=True))
        for letters, type_ in ((a, x), (b, y)):
            self.sizes |= dict(zip(letters, type_.shape[type_.ndim - len(letters) :], strict=True))
        self.depth = [n for n in dict.fromkeys(a + b) if n not in out and self.sizes[n] > 1]
        while lanes > 1 and lanes // 2 >= (self.sizes[self.out_names[-1]] if self.out_names else 1):
            lanes //= 2
        self.lanes = lanes
        self.rows = WIDE_ROWS if lanes >= WIDE_LANES else ROWS

    def emit(self) -> None:
        """Write the loops."""
        f, out = self.f, self.equation.output
        self.packed = self._packed()
        self.buffer = Buffer(self.e.allocate(out.type.nbytes), out.type)
        self.e.lanes = self.lanes
        with contextlib.ExitStack() as loops:
            places = dict.fromkeys(self.sizes, ZERO)
            for name in self.out_names[:-2]:
                if self.sizes[name] > 1:
                    places[name] = Index(loops.enter_context(f.loop(0, self.sizes[name])).index)
            row = self.out_names[-2] if len(self.out_names) > 1 else None
            num_rows = self.sizes[row] if row else 1
            whole = num_rows // self.rows * self.rows
            if whole:
                with f.loop(0, whole, self.rows) as loop:
                    self._columns(places, row, [Index(f.add(loop.index, r)) for r in range(self.rows)])
            if whole < num_rows:
                self._columns(places, row, [Index(r) for r in range(whole, num_rows)])
        self.e.lanes, self.e.mask = 1, None
        self.e.buffers[out] = self.buffer

    def _packed(self) -> list[tuple[Buffer, list[str]] | None]:
        """The operands in memory of the program, and the names of their dimensions there; None for what is
        read where it lies.
        """
        row = self.sizes[self.out_names[-2]] if len(self.out_names) > 1 else 1
        column = self.sizes[self.out_names[-1]] if self.out_names else 1
        if row < PACKED_ROWS or column < self.lanes or self.lanes == 1 or not self.depth:
            return [None, None]
        return [
            self._pack(var, names)
            for var, names in zip(self.equation.inputs, self.operand_names, strict=True)
        ]

    def _pack(self, var: Var, names: list[str]) -> tuple[Buffer, list[str]] | None:
        """Copy an operand; along columns, where it has them, its elements lie together."""
        sizes = dict(zip(names, var.type.shape, strict=True))
        column = self.out_names[-1]
        order = [n for n in names if n != column] + [column] * (column in names)
        type_ = ArrayType(tuple(sizes[n] for n in order), self.compute)
        is_array = var not in self.e.buffers and type_.ndim > 0
        if not is_array or type_.nbytes > MAX_PACKED_BYTES or self.compute == dtypes.bool_:
            return None
        f, last, width = self.f, order[-1], sizes[order[-1]]
        buffer = Buffer(self.e.allocate(type_.nbytes), type_)
        lanes = self.lanes
        while lanes > 1 and lanes // 2 >= width:
            lanes //= 2

        def copy(places: Mapping[str, Index]) -> None:
            x = self.e.value(var, tuple(places[n] for n in names))
            x = operations.convert(f, var.type.dtype, x, new_dtype=self.compute)
            self.e.store_buffer(buffer, [places[n] for n in order], f.splat(x, lanes))

        with contextlib.ExitStack() as loops:
            places = dict.fromkeys(names, ZERO)
            for name in order[:-1]:
                if sizes[name] > 1:
                    places[name] = Index(loops.enter_context(f.loop(0, sizes[name])).index)
            self.e.lanes, whole = lanes, width // lanes * lanes
            if whole:
                with f.loop(0, whole, lanes) as loop:
                    copy({**places, last: Index(loop.index, int(lanes > 1))})
            if whole < width:
                self.e.mask = f.first_lanes(width - whole, lanes)
                copy({**places, last: Index(whole, 1)})
                self.e.mask = None
        self.e.lanes = 1
        return buffer, order

    def _columns(self, places: Mapping[str, Index], row: str | None, rows: Sequence[Index]) -> None:
        column = self.out_names[-1] if self.out_names else None
        size = self.sizes[column] if column else 1
        step = self.lanes * VECTORS
        whole = size // step * step if self.lanes > 1 else 0
        if whole:
            with self.f.loop(0, whole, step) as loop:
                vectors = [Index(self.f.add(loop.index, v * self.lanes), 1) for v in range(VECTORS)]
                self._cell(places, row, rows, column, vectors, None)
        for start in range(whole, size, self.lanes):
            rest = size - start
            mask = None if rest >= self.lanes else self.f.first_lanes(rest, self.lanes)
            self._cell(places, row, rows, column, [Index(start, int(self.lanes > 1))], mask)

    def _cell(
        self,
        places: Mapping[str, Index],
        row: str | None,
        rows: Sequence[Index],
        column: str | None,
        vectors: Sequence[Index],
        mask: Value | None,
    ) -> None:
        """Some rows by some vectors of the result."""
        cells = [
            {**places, **({row: r} if row else {}), **({column: v} if column else {})}
            for r in rows
            for v in vectors
        ]
        self.e.mask = mask
        zero = registers.constant(self.f, 0, self.compute, self.lanes)
        totals = self._sum(self.depth, cells, [zero] * len(cells))
        dtype = self.equation.attrs["dtype"]
        for cell, total in zip(cells, totals, strict=True):
            x = registers.rounded(self.f, total, dtype)
            self.e.store_buffer(self.buffer, [cell[n] for n in self.out_names], x)
        self.e.mask = None

    def _sum(self, depth: Sequence[str], cells: list[dict[str, Index]], totals: list[Value]) -> list[Value]:
        if not depth:
            return [self._step(cell, total) for cell, total in zip(cells, totals, strict=True)]
        with self.f.loop(0, self.sizes[depth[0]], 1, totals, runs=True) as loop:
            inner = [{**cell, depth[0]: Index(loop.index)} for cell in cells]
            loop.next = self._sum(depth[1:], inner, loop.carried)
        return loop.results

    def _step(self, cell: Mapping[str, Index], total: Value) -> Value:
        f = self.f
        factors = []
        for var, names, packed in zip(self.equation.inputs, self.operand_names, self.packed, strict=True):
            if packed is not None:
                buffer, order = packed
                there = [
                    ZERO if n == 1 and self.sizes[name] != 1 else cell[name]
                    for name, n in zip(order, buffer.type.shape, strict=True)
                ]
                factors.append(f.splat(self.e.load_buffer(buffer, there), self.lanes))
                continue
            index = tuple(
                ZERO if n == 1 and self.sizes[name] != 1 else cell[name]
                for name, n in zip(names, var.type.shape, strict=True)
            )
            x = operations.convert(f, var.type.dtype, self.e.value(var, index), new_dtype=self.compute)
            factors.append(f.splat(x, self.lanes))
        if total.type.element == "i1":
            return f.binary("or", total, f.binary("and", *factors))
        if total.type.is_float:
            return f.fma(factors[0], factors[1], total)
        return f.binary("add", total, f.binary("mul", *factors))


# --- scans --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Alias:
    """A parameter of a scan's body: a value outside, at some leading index."""

    outer: Evaluator
    var: Var
    prefix: tuple[Index, ...]


class ScanEvaluator(Evaluator):
    """Evaluates the body of a scan: what it does not compute itself comes from outside."""

    def __init__(
        self, outer: Evaluator, definitions: Mapping[Var, Equation], constants: Mapping[Var, ir.Constant]
    ) -> None:
        super().__init__(
            outer.f, definitions, outer.grid, outer.program_ids, {}, constants, allocate=outer.allocate
        )
        self.aliases: dict[Var, _Alias] = {}

    def _compute(self, var: Var, index: tuple[Index, ...]) -> Value:
        alias = self.aliases.get(var)
        if alias is None:
            return super()._compute(var, index)
        alias.outer.lanes, alias.outer.mask = self.lanes, self.mask
        found = alias.outer.value(alias.var, (*alias.prefix, *index))
        alias.outer.lanes, alias.outer.mask = 1, None
        return found


def emit_scan(
    evaluator: Evaluator,
    equation: Equation,
    run: Callable[[Evaluator, schedule.Schedule, Sequence[BufferTarget]], None],
) -> None:
    """Write a `scan`; `run` writes the passes of a schedule and stores its results in targets."""
    f, attrs = evaluator.f, equation.attrs
    num_consts, num_carry, length = attrs["num_consts"], attrs["num_carry"], attrs["length"]
    consts = equation.inputs[:num_consts]
    initial = equation.inputs[num_consts : num_consts + num_carry]
    xs = equation.inputs[num_consts + num_carry :]
    plan = schedule.make_schedule(attrs["body"])
    pairs = [(_new(evaluator, v.type), _new(evaluator, v.type)) for v in initial]
    _copy(evaluator, initial, [first for first, _ in pairs], run)
    stacked = [_new(evaluator, v.type) for v in equation.outputs[num_carry:]]
    pointers = [buffer.pointer for pair in pairs for buffer in pair]
    with f.loop(0, length, 1, pointers, runs=True) as loop:
        step = Index(f.sub(length - 1, loop.index) if attrs["reverse"] else loop.index)
        inner = ScanEvaluator(evaluator, plan.definitions, dict(plan.body.consts))
        params = plan.body.params
        for param, var in zip(params[:num_consts], consts, strict=True):
            inner.aliases[param] = _Alias(evaluator, var, ())
        for param, var in zip(params[num_consts + num_carry :], xs, strict=True):
            inner.aliases[param] = _Alias(evaluator, var, (step,))
        now, after = loop.carried[0::2], loop.carried[1::2]
        for param, pointer in zip(params[num_consts : num_consts + num_carry], now, strict=True):
            inner.buffers[param] = Buffer(pointer, param.type)
        targets = [BufferTarget(Buffer(p, v.type)) for p, v in zip(after, initial, strict=True)]
        run(inner, plan, [*targets, *(BufferTarget(y, (step,)) for y in stacked)])
        loop.next = [p for pair in zip(after, now, strict=True) for p in pair]
    for var, pointer in zip(equation.outputs[:num_carry], loop.results[0::2], strict=True):
        evaluator.buffers[var] = Buffer(pointer, var.type)
    evaluator.buffers.update(zip(equation.outputs[num_carry:], stacked, strict=True))


def _new(evaluator: Evaluator, type_: ArrayType) -> Buffer:
    return Buffer(evaluator.allocate(type_.nbytes), type_)


def _copy(
    evaluator: Evaluator,
    values: Sequence[Var],
    buffers: Sequence[Buffer],
    run: Callable[[Evaluator, schedule.Schedule, Sequence[BufferTarget]], None],
) -> None:
    """Evaluate values into buffers that will be written again, so they must not be taken for the values."""
    params = tuple(Var(v.type) for v in values)
    plan = schedule.make_schedule(ir.Program(params, (), params))
    inner = ScanEvaluator(evaluator, {}, {})
    inner.aliases = {p: _Alias(evaluator, v, ()) for p, v in zip(params, values, strict=True)}
    run(inner, plan, [BufferTarget(buffer) for buffer in buffers])
