"""A builder of LLVM functions as text, with loops as scopes.

An instruction without side effects is put into the outermost scope in which its operands are known, and
equal instructions of a scope are one: loop-invariant code motion and common subexpressions by construction,
so no IR passes run afterwards. Text is an order of magnitude faster to make than objects of llvmlite.ir.
Integer operands may be Python ints, which fold.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from infini.compiler.llvm.types import (
    BYTES,
    I1 as I1,
    I32 as I32,
    I64 as I64,
    PTR as PTR,
    Type,
    scalar as scalar,
    vector,
)


class Scope:
    """A region of code in which values stay visible: the function or one loop or branch body."""

    __slots__ = ("block", "depth", "is_guarded", "lines", "memo", "parent", "sink")

    def __init__(self, parent: Scope | None, block: str, *, is_guarded: bool = False) -> None:
        self.parent = parent
        self.is_guarded = is_guarded  # whether it runs only where a condition holds
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.lines: list[object] = []  # lines and, for inner regions, lists of lines
        self.sink = self.lines  # where the next instruction of this scope goes
        self.block = block  # label of the basic block at the sink
        self.memo: dict[object, Value] = {}


class Value:
    """An SSA value or literal: its text, type, and the scope in which it is known."""

    __slots__ = ("scope", "text", "type")

    def __init__(self, text: str, type: Type, scope: Scope) -> None:
        self.text = text
        self.type = type
        self.scope = scope

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{self.type} {self.text}"


Int: TypeAlias = "Value | int"  # an i64, known now or at run time


def float_literal(number: float, element: str) -> str:
    """A floating-point literal: LLVM wants float as the hexadecimal double of the same value."""
    if element == "float":
        number = float(np.float32(number))
    if element in ("float", "double"):
        return "0x" + struct.pack(">d", number).hex().upper()
    return "0xH" + np.float16(number).view(np.uint16).item().to_bytes(2, "big").hex().upper()


class Loop:
    """An open loop: its index, the values it carries, and after its end their results."""

    __slots__ = ("carried", "index", "next", "results")

    def __init__(self, index: Value, carried: list[Value]) -> None:
        self.index = index
        self.carried = carried
        self.next: list[Value] = carried
        self.results: list[Value] = []


class Function:
    """A function under construction.

    Args:
        name: its symbol.
        parameters: (type, name) of each parameter.
        linkage: `internal` for helpers.
        attributes: function attributes.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[tuple[Type, str]],
        *,
        linkage: str = "",
        attributes: str = "nounwind",
    ) -> None:
        self.name = name
        self.declares: set[str] = set()
        self.stack_bytes = 0  # that it allocates
        self.root = Scope(None, "entry")
        self.scope = self.root
        self.parameters = [Value(f"%{n}", t, self.root) for t, n in parameters]
        self._counter = 0
        signature = ", ".join(f"{p.type} {p.text}" for p in self.parameters)
        self._head = f"define {linkage} void @{name}({signature}) {attributes} {{"
        self._allocas: list[object] = []
        self.root.lines.append("entry:")
        self.root.lines.append(self._allocas)

    # --- plumbing -----------------------------------------------------------------------

    def fresh(self, prefix: str = "v") -> str:
        """A name not used yet."""
        self._counter += 1
        return f"{prefix}{self._counter}"

    def pure(self, text: str, type: Type, *operands: Value, within: Scope | None = None) -> Value:
        """An instruction without side effects, placed as far out as its operands, and `within`, allow."""
        scope = within or self.root
        for operand in operands:
            if operand.scope.depth > scope.depth:
                scope = operand.scope
        known = scope.memo.get(text)
        if known is not None:
            return known
        value = Value(f"%v{self._counter + 1}", type, scope)
        self._counter += 1
        scope.sink.append(f"  {value.text} = {text}")
        scope.memo[text] = value
        return value

    def here(self, text: str, type: Type) -> Value:
        """An instruction that stays where it is, such as a load."""
        value = Value(f"%{self.fresh()}", type, self.scope)
        self.scope.sink.append(f"  {value.text} = {text}")
        return value

    def do(self, text: str) -> None:
        """An instruction without a result."""
        self.scope.sink.append(f"  {text}")

    def declare(self, declaration: str) -> None:
        """Note a declaration that the text needs."""
        self.declares.add(declaration)

    def recall(self, key: object) -> Value | None:
        """A value remembered under `key` in an open scope."""
        scope: Scope | None = self.scope
        while scope is not None:
            found = scope.memo.get(key)
            if found is not None:
                return found
            scope = scope.parent
        return None

    def remember(self, key: object, value: Value) -> Value:
        """Remember a value for as long as it is visible."""
        value.scope.memo[key] = value
        return value

    def finish(self) -> str:
        """The text of the function."""
        self.do("ret void")
        lines: list[str] = [self._head]
        _flatten(self.root.lines, lines)
        lines.append("}")
        return "\n".join(lines) + "\n"

    # --- constants ----------------------------------------------------------------------

    def constant(self, number: complex | bool, type: Type) -> Value:
        """A literal, the same in every lane."""
        if type.is_float:
            text = float_literal(float(number.real), type.element)
        elif type.element == "i1":
            text = "true" if number else "false"
        else:
            bits = type.bits
            text = str((int(number.real) + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)))
        if type.lanes > 1:
            text = f"splat ({type.element} {text})"
        return Value(text, type, self.root)

    def lane_numbers(self, type: Type) -> Value:
        """0, 1, 2, ... as integers."""
        if type.lanes == 1:
            return self.constant(0, type)
        numbers = ", ".join(f"{type.element} {i}" for i in range(type.lanes))
        return Value(f"<{numbers}>", type, self.root)

    def first_lanes(self, count: Int, lanes: int) -> Value:
        """The mask of the first `count` lanes."""
        type = vector("i1", lanes)
        if isinstance(count, int):
            bits = ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(lanes))
            return Value(f"<{bits}>" if lanes > 1 else bits[3:], type, self.root)
        limit = self.splat(self.convert("trunc", self.minimum(count, lanes), I32), lanes)
        return self.compare("slt", self.lane_numbers(vector("i32", lanes)), limit)

    # --- arithmetic ---------------------------------------------------------------------

    def binary(self, op: str, a: Value, b: Value) -> Value:
        """`op` of two values of one type."""
        return self.pure(f"{op} {a.type} {a}, {b}", a.type, a, b)

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        """A comparison, with LLVM's name of the predicate."""
        op = "fcmp" if a.type.is_float else "icmp"
        return self.pure(f"{op} {predicate} {a.type} {a}, {b}", a.type.with_element("i1"), a, b)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """`a` where the condition holds, `b` elsewhere."""
        text = f"select {condition.type} {condition}, {a.type} {a}, {b.type} {b}"
        return self.pure(text, a.type, condition, a, b)

    def convert(self, op: str, a: Value, type: Type) -> Value:
        """A conversion instruction, such as `sitofp`."""
        if a.type is type:
            return a
        return self.pure(f"{op} {a.type} {a} to {type}", type, a)

    def bitcast(self, a: Value, element: str) -> Value:
        """The same bits as another element of equal width."""
        return self.convert("bitcast", a, a.type.with_element(element))

    def intrinsic(self, name: str, *operands: Value) -> Value:
        """An intrinsic whose operands and result have one type, such as `fma`."""
        type = operands[0].type
        prefix = "" if type.lanes == 1 else f"v{type.lanes}"
        suffix = f"f{type.bits}" if type.is_float else f"i{type.bits}"
        symbol = f"@llvm.{name}.{prefix}{suffix}"
        self.declare(f"declare {type} {symbol}({', '.join([type.text] * len(operands))})")
        arguments = ", ".join(f"{type} {operand}" for operand in operands)
        return self.pure(f"call {type} {symbol}({arguments})", type, *operands)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def splat(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == 1 or a.type.lanes == lanes:
            return a
        type = a.type.with_lanes(lanes)
        if not a.text.startswith("%"):
            return Value(f"splat ({a.type} {a})", type, self.root)
        one = self.pure(f"insertelement {type} poison, {a.type} {a}, i64 0", type, a)
        return self.pure(
            f"shufflevector {type} {one}, {type} poison, <{lanes} x i32> zeroinitializer", type, one
        )

    def shuffle(self, a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
        """Lanes of two vectors by number."""
        type = a.type.with_lanes(len(lanes))
        numbers = ", ".join(f"i32 {lane}" for lane in lanes)
        other = "poison" if b is None else b.text
        text = f"shufflevector {a.type} {a}, {a.type} {other}, <{len(lanes)} x i32> <{numbers}>"
        return self.pure(text, type, a, *(() if b is None else (b,)))

    def extract(self, a: Value, lane: int) -> Value:
        """One lane."""
        if a.type.lanes == 1:
            return a
        return self.pure(f"extractelement {a.type} {a}, i64 {lane}", a.type.with_lanes(1), a)

    # --- index arithmetic (i64) -----------------------------------------------------------

    def integer(self, a: Int) -> Value:
        """An i64 value."""
        return Value(str(a), I64, self.root) if isinstance(a, int) else a

    def add(self, a: Int, b: Int) -> Int:
        """Sum."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(a, int):
            a, b = b, a
        if isinstance(b, int) and b == 0:
            return a
        return self.binary("add nsw", self.integer(a), self.integer(b))

    def sub(self, a: Int, b: Int) -> Int:
        """Difference."""
        if isinstance(b, int):
            return self.add(a, -b)
        return 0 if a is b else self.binary("sub nsw", self.integer(a), b)

    def mul(self, a: Int, b: Int) -> Int:
        """Product."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if isinstance(a, int):
            a, b = b, a
        if isinstance(b, int) and b in (0, 1):
            return a if b else 0
        return self.binary("mul nsw", self.integer(a), self.integer(b))

    def divide(self, a: Int, b: int) -> tuple[Int, Int]:
        """Quotient and remainder of a number that is not negative."""
        if isinstance(a, int):
            return divmod(a, b)
        if b == 1:
            return a, 0
        quotient = self.binary("udiv", a, self.integer(b))
        return quotient, self.sub(a, self.mul(quotient, b))

    def minimum(self, a: Int, b: Int) -> Value:
        """Smaller of two; at least one is not known."""
        x, y = self.integer(a), self.integer(b)
        return self.select(self.compare("slt", x, y), x, y)

    def maximum(self, a: Int, b: Int) -> Value:
        """Larger of two; at least one is not known."""
        x, y = self.integer(a), self.integer(b)
        return self.select(self.compare("sgt", x, y), x, y)

    # --- memory -------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Value:
        """Stack memory for the whole call, aligned to 64 bytes."""
        self.stack_bytes += nbytes
        value = Value(f"%{self.fresh('stack')}", PTR, self.root)
        self._allocas.append(f"  {value} = alloca [{max(nbytes, 1)} x i8], align 64")
        return value

    def at(self, pointer: Value, offset: Int, element: str) -> Value:
        """Address of an element."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        place = self.integer(offset)
        return self.pure(f"getelementptr {element}, ptr {pointer}, i64 {place}", PTR, pointer, place)

    def load(
        self, pointer: Value, type: Type, *, is_invariant: bool = False, align: int | None = None
    ) -> Value:
        """A load; an invariant one may move to where its address is known."""
        text = f"load {type}, ptr {pointer}, align {align or BYTES[type.element]}"
        if not is_invariant:
            return self.here(text, type)
        # What is there only under a condition is not read outside of it.
        scope: Scope | None = self.scope
        while scope is not None and not scope.is_guarded:
            scope = scope.parent
        known = None if scope is None else self.recall(text)
        return known or self.pure(text, type, pointer, within=scope)

    def store(self, value: Value, pointer: Value, *, align: int | None = None, streams: bool = False) -> None:
        """A store; one that streams passes the cache by, and needs `fence` before another thread reads."""
        hint = ""
        if streams:
            self.declare("!0 = !{i32 1}")
            hint = ", !nontemporal !0"
        self.do(
            f"store {value.type} {value}, ptr {pointer}, align {align or BYTES[value.type.element]}{hint}"
        )

    def fence(self) -> None:
        """Let other threads see what has streamed before they see what is stored from here on."""
        self.do("fence seq_cst")

    def masked_load(self, pointer: Value, mask: Value, passthrough: Value) -> Value:
        """Lanes of the mask from memory, the others from `passthrough`; nothing else is read."""
        type = passthrough.type
        suffix = f"v{type.lanes}{'f' if type.is_float else 'i'}{type.bits}"
        self.declare(f"declare {type} @llvm.masked.load.{suffix}.p0(ptr, i32, {mask.type}, {type})")
        return self.here(
            f"call {type} @llvm.masked.load.{suffix}.p0(ptr {pointer}, i32 {BYTES[type.element]}, "
            f"{mask.type} {mask}, {type} {passthrough})",
            type,
        )

    def masked_store(self, value: Value, pointer: Value, mask: Value) -> None:
        """Store the lanes of the mask; nothing else is written."""
        type, align = value.type, BYTES[value.type.element]
        chosen = [lane for lane, bit in enumerate(mask.text.strip("<>").split(", ")) if bit == "i1 true"]
        if len(chosen) == 1:
            # LLVM 20 makes one store of this; where the value was narrowed just before, of the wide element,
            # which writes over what follows.
            (lane,) = chosen
            self.store(self.extract(value, lane), self.at(pointer, lane, type.element))
            return
        suffix = f"v{type.lanes}{'f' if type.is_float else 'i'}{type.bits}"
        self.declare(f"declare void @llvm.masked.store.{suffix}.p0({type}, ptr, i32, {mask.type})")
        self.do(
            f"call void @llvm.masked.store.{suffix}.p0({type} {value}, ptr {pointer}, i32 {align}, "
            f"{mask.type} {mask})"
        )

    def prefetch(self, pointer: Value, *, is_write: bool = False) -> None:
        """Ask for a cache line."""
        self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 {int(is_write)}, i32 3, i32 1)")

    # --- control ------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(
        self, start: Int, stop: Int, step: int = 1, carried: Sequence[Value] = (), *, runs: bool = False
    ) -> Iterator[Loop]:
        """A loop over `range(start, stop, step)`; set `loop.next` to the carried values of the next turn.

        Args:
            start: first index.
            stop: end of the range.
            step: positive step.
            carried: initial values of what the turns hand on.
            runs: whether there is at least one turn; needs no test before the first.
        """
        outer = self.scope
        runs = runs or (isinstance(start, int) and isinstance(stop, int) and start < stop)
        head, after = self.fresh("loop"), self.fresh("done")
        before = outer.block
        first, last = self.integer(start), self.integer(stop)
        guard = None if runs else self.compare("slt", first, last)
        inner_lines = self._open(outer)
        inner = Scope(outer, head)
        inner_lines.append(
            f"  br label %{head}" if guard is None else f"  br i1 {guard}, label %{head}, label %{after}"
        )
        inner_lines.append(f"{head}:")
        phis: list[object] = []
        inner_lines.extend((phis, inner.lines))
        state = Loop(
            Value(f"%{self.fresh('i')}", I64, inner),
            [Value(f"%{self.fresh('c')}", v.type, inner) for v in carried],
        )
        self.scope = inner
        yield state
        following = self.here(f"add nsw i64 {state.index}, {step}", I64)
        again = self.here(f"icmp slt i64 {following}, {last}", I1)
        self.do(f"br i1 {again}, label %{head}, label %{after}")
        phis.append(f"  {state.index} = phi i64 [ {first}, %{before} ], [ {following}, %{inner.block} ]")
        for place, initial, value in zip(state.carried, carried, state.next, strict=True):
            phis.append(f"  {place} = phi {value.type} [ {initial}, %{before} ], [ {value}, %{inner.block} ]")
        latch = inner.block
        self._close(outer, after)
        for initial, value in zip(carried, state.next, strict=True):
            incoming = f"[ {value}, %{latch} ]" + ("" if runs else f", [ {initial}, %{before} ]")
            state.results.append(self.here(f"phi {value.type} {incoming}", value.type))

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Code that runs only where a scalar condition holds."""
        outer = self.scope
        then, after = self.fresh("then"), self.fresh("done")
        inner_lines = self._open(outer)
        inner = Scope(outer, then, is_guarded=True)
        inner_lines.extend((f"  br i1 {condition}, label %{then}, label %{after}", f"{then}:", inner.lines))
        self.scope = inner
        yield
        self.do(f"br label %{after}")
        self._close(outer, after)

    def _open(self, outer: Scope) -> list[object]:
        # What is moved out of the inner region later goes before the branch into it.
        before: list[object] = []
        inner: list[object] = []
        outer.lines.extend((before, inner))
        outer.sink = before
        return inner

    def _close(self, outer: Scope, label: str) -> None:
        self.scope = outer
        outer.lines.append(f"{label}:")
        outer.sink = outer.lines
        outer.block = label


def _flatten(lines: Sequence[object], into: list[str]) -> None:
    for line in lines:
        if isinstance(line, str):
            into.append(line)
        else:
            assert isinstance(line, list)
            _flatten(line, into)
