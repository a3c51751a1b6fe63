"""Running a traced scan: carries that never change become constants, and steps are unrolled on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import ir, primitive, trace
from infini.core.ir import Program
from infini.core.value import Value
from infini.lax.scanning import ScanParts, scan_p, stacked


@dataclass(frozen=True, slots=True)
class Scan:
    """A traced scan before it is bound: its body and how many of its parameters are constants and carries."""

    body: Program
    num_consts: int
    num_carry: int
    length: int
    reverse: bool

    @property
    def attrs(self) -> ir.Attrs:
        """The attributes of `scan_p`."""
        return ir.Attrs(
            {
                "body": self.body,
                "num_consts": self.num_consts,
                "num_carry": self.num_carry,
                "length": self.length,
                "reverse": self.reverse,
            }
        )


def bind(scan: Scan, operands: Sequence[Value], unroll: int) -> list[Value]:
    """Results of a scan that takes `unroll` steps per turn; 0 is all of them, without a loop."""
    parts = ScanParts.of(operands, scan.attrs)
    moving = [scan.body.results[i] is scan.body.params[scan.num_consts + i] for i in range(scan.num_carry)]
    if any(moving):
        return _with_fixed_carries(scan, parts, moving, unroll)
    turns, rest = (0, scan.length) if unroll == 0 else divmod(scan.length, unroll)
    if unroll == 1 or scan.length == 0:
        return list(trace.bind_attrs(scan_p, list(parts.all), scan.attrs))
    if turns <= 1:
        turns, rest = 0, scan.length
    return _unrolled(scan, parts, turns, unroll, rest)


def _with_fixed_carries(scan: Scan, parts: ScanParts, fixed: Sequence[bool], unroll: int) -> list[Value]:
    """A carry that every step returns as it came is a constant."""
    body, first = scan.body, scan.num_consts
    own = ScanParts.of(body.params, scan.attrs)
    constant = [i for i, flag in enumerate(fixed) if flag]
    others = [i for i, flag in enumerate(fixed) if not flag]

    def moved(part: ScanParts) -> tuple[Any, ...]:
        carry = [part.carry[i] for i in others]
        return (*part.consts, *(part.carry[i] for i in constant), *carry, *part.xs)

    results = (*(body.results[i] for i in others), *body.results[scan.num_carry :])
    smaller = Scan(
        body.replace(params=moved(own), results=results),
        first + len(constant), len(others), scan.length, scan.reverse,
    )  # fmt: skip
    found = bind(smaller, moved(parts), unroll)
    carry = iter(found[: len(others)])
    return [parts.carry[i] if flag else next(carry) for i, flag in enumerate(fixed)] + found[len(others) :]


def _unrolled(scan: Scan, parts: ScanParts, turns: int, unroll: int, rest: int) -> list[Value]:
    """`turns` turns of `unroll` steps each, then `rest` steps; in reverse the rest comes first."""
    split = rest if scan.reverse else turns * unroll
    first, last = [_rows(x, 0, split) for x in parts.xs], [_rows(x, split, scan.length) for x in parts.xs]
    looped, single = (last, first) if scan.reverse else (first, last)
    carry: list[Value] = list(parts.carry)
    ys: list[list[Value]] = []
    if turns:
        folded = [_reshape(x, (turns, unroll, *x.shape[1:])) for x in looped]
        several = Scan(_steps(scan, unroll), scan.num_consts, scan.num_carry, turns, scan.reverse)
        found = trace.bind_attrs(scan_p, [*parts.consts, *carry, *folded], several.attrs)
        carry = list(found[: scan.num_carry])
        ys.append([_reshape(y, (turns * unroll, *y.shape[2:])) for y in found[scan.num_carry :]])
    if rest:
        body = _steps(scan, rest)
        found = trace.bind(primitive.by_name("call"), *parts.consts, *carry, *single, body=body)
        carry = list(found[: scan.num_carry])
        ys.append(list(found[scan.num_carry :]))
    if scan.reverse:
        ys.reverse()
    return [*carry, *(_joined(pieces) for pieces in zip(*ys, strict=True))]


def _steps(scan: Scan, count: int) -> Program:
    """The body of `count` steps, over slices of xs under a leading dimension of that size."""

    def run(*values: Value) -> Sequence[Value]:
        parts = ScanParts.of(values, scan.attrs)
        carry, ys = parts.carry, []
        for i in reversed(range(count)) if scan.reverse else range(count):
            x = [_reshape(_rows(x, i, i + 1), x.shape[1:]) for x in parts.xs]
            found = trace.evaluate(scan.body, [*parts.consts, *carry, *x])
            carry = found[: scan.num_carry]
            ys.append([_reshape(y, (1, *y.shape)) for y in found[scan.num_carry :]])
        if scan.reverse:
            ys.reverse()
        return [*carry, *(_joined(rows) for rows in zip(*ys, strict=True))]

    own = ScanParts.of(scan.body.in_types, scan.attrs)
    types = [*own.consts, *own.carry, *(stacked(t, count) for t in own.xs)]
    return trace.stage(run, types, name=scan.body.name).program


def _rows(x: Value, start: int, stop: int) -> Value:
    if (start, stop) == (0, x.shape[0]):
        return x
    zeros = (0,) * (x.ndim - 1)
    return trace.bind1(
        primitive.by_name("slice"),
        x,
        start=(start, *zeros),
        limit=(stop, *x.shape[1:]),
        strides=(1,) * x.ndim,
    )


def _reshape(x: Value, shape: ir.Shape) -> Value:
    return trace.bind1(primitive.by_name("reshape"), x, shape=shape, ndim=x.ndim)


def _joined(rows: Sequence[Value]) -> Value:
    if len(rows) == 1:
        return rows[0]
    return trace.bind1(primitive.by_name("concatenate"), *rows, axis=-rows[0].ndim)
