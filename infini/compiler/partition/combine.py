"""Buckets: collectives over the same axes that can travel together become one of several operands.

A message costs its latency whatever is in it, and every exchange cuts a program into smaller pieces, so
gradients are added up some megabytes at a time. Members of a bucket come in the order in which they are
ready, and none needs the result of another. The first bucket over some axes is small: communication begins
early.

Sums are joined whenever both are ready. A gather makes an array that lives until it is used, so gathers are
joined only if their results are used together: by one equation, by two that read the same operand, as the
weights of queries, keys and values are, or as results of the program, as weights that were updated in parts.
Gathers of parameters that follow each other are joined up to a window, which would begin together anyway.

A small sum over several axes, such as a loss, is taken over some of them and then over the others, if both
parts travel with buckets that there are in any case.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from infini.compiler.partition import partial, share
from infini.compiler.passes import rewrite
from infini.core.ir import Attrs, Equation, Program, Var
from infini.core.machine import Collectives
from infini.core.primitive import Effect

_SUMS: Final = frozenset({"psum", "pmax", "pmin", "psum_scatter"})
_JOINED: Final = _SUMS | {"all_gather"}
Mask: TypeAlias = int  # a bit for each bucket


@dataclass(eq=False, slots=True)
class _Bucket:
    """Collectives that travel together, by their number in the program."""

    number: int
    limit: int
    of_parameters: bool  # gathers that may be made at any time
    members: list[int] = field(default_factory=list)
    nbytes: int = 0
    made_bytes: int = 0
    needs: Mask = 0  # buckets whose results it needs
    users: set[Hashable] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A collective that looks for a bucket.

    Args:
        is_sum: whether it adds up, and makes nothing larger than it is given.
        nbytes: what it is given.
        room: bytes that other gathers of parameters may make which travel with it; none where it is no such.
        users: what uses its results.
        needs: buckets whose results it needs.
    """

    is_sum: bool
    nbytes: int
    room: int
    users: set[Hashable]
    needs: Mask


def combine(program: Program, options: Collectives, parts: dict[Var, Var] | None = None) -> Program:
    """The program with its collectives joined, those of each body by themselves; the same object when
    nothing can be.

    Args:
        program: per-device program.
        options: sizes of buckets.
        parts: filled with the sum over some axes that is made first, by the result of each sum that is taken
            in two parts.
    """
    if options.bucket_bytes <= 0:
        return program
    parts = {} if parts is None else parts
    equations = tuple(_with_combined_bodies(e, options, parts) for e in program.equations)
    if any(a is not b for a, b in zip(equations, program.equations, strict=True)):
        program = program.replace(equations=equations)
    buckets = _buckets(program, options)
    if not options.deterministic:  # which asks for one order of all terms
        program, buckets = _in_parts(program, options, buckets, parts)
    if all(len(bucket.members) == 1 for bucket in buckets):
        return program
    return program.replace(equations=tuple(_ordered(program, buckets)))


def _with_combined_bodies(equation: Equation, options: Collectives, parts: dict[Var, Var]) -> Equation:
    if not equation.programs:
        return equation
    inner = {id(program): combine(program, options, parts) for program in equation.programs}
    if all(inner[id(program)] is program for program in equation.programs):
        return equation
    attrs = rewrite.map_programs(equation.attrs, lambda program: inner[id(program)])
    return Equation(equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)


def _in_parts(
    program: Program, options: Collectives, buckets: list[_Bucket], parts: dict[Var, Var]
) -> tuple[Program, list[_Bucket]]:
    """The program with small sums over several axes in two parts, where that leaves fewer buckets."""
    alone = {bucket.members[0] for bucket in buckets if len(bucket.members) == 1}
    small = [
        e
        for number, e in enumerate(program.equations)
        if number in alone and e.op.name == "psum" and len(e.attrs["axes"]) > 1
        if len(e.outputs) == 1 and e.output.type.size <= partial.SMALL
    ]
    for equation in small:
        for tried in _halves(equation):
            between = program.equations.index(equation)
            equations = (*program.equations[:between], *tried, *program.equations[between + 1 :])
            other = program.replace(equations=equations)
            found = _buckets(other, options)
            if len(found) < len(buckets):
                program, buckets = other, found
                parts[equation.output] = tried[0].output
                break
    return program, buckets


def _halves(equation: Equation) -> Iterator[tuple[Equation, Equation]]:
    """A sum over several axes as two, in every way."""
    sizes = dict(zip(equation.attrs["axes"], equation.attrs["sizes"], strict=True))
    for count in range(1, len(sizes)):
        for first in itertools.combinations(sizes, count):
            then = tuple(axis for axis in sizes if axis not in first)
            made = Var(equation.output.type, equation.output.hint)
            halves = ((equation.inputs, first, (made,)), ((made,), then, equation.outputs))
            one, other = (
                Equation(
                    equation.op,
                    inputs,
                    equation.attrs.replace(axes=axes, sizes=tuple(sizes[axis] for axis in axes)),
                    outputs,
                    equation.where,
                    equation.via,
                )
                for inputs, axes, outputs in halves
            )
            yield one, other


def _buckets(program: Program, options: Collectives) -> list[_Bucket]:
    """Every collective that may be joined, in buckets, in the order of their first members."""
    buckets: list[_Bucket] = []
    latest: dict[Hashable, _Bucket] = {}
    started: set[Hashable] = set()
    needed: dict[Var, Mask] = {}  # what a variable is made from, through equations that are no collectives
    ordered: Mask = 0  # what equations with effects need, which keep their order
    users, parameters = _users(program), share.gathers_of_parameters(program)
    for number, equation in enumerate(program.equations):
        needs = 0
        for var in equation.inputs:
            needs |= needed.get(var, 0)
        if equation.op.name not in _JOINED:
            if _keeps_order(equation):
                needs = ordered = needs | ordered
            needed.update(dict.fromkeys(equation.outputs, needs))
            continue
        key, nbytes = _key(equation), sum(v.type.nbytes for v in equation.inputs)
        used_by = users.get(number, set())
        is_early = number in parameters
        made_bytes = sum(v.type.nbytes for v in equation.outputs)
        room = options.window_bytes - made_bytes if is_early else -1
        one = _Candidate(equation.op.name in _SUMS, nbytes, room, used_by, needs)
        known = (latest.get((key, flag)) for flag in (is_early, not is_early))
        bucket = next((b for b in known if b is not None and _takes(b, one, buckets)), None)
        if bucket is None:
            group = (equation.op.name, equation.attrs["axes"])
            limit = options.bucket_bytes if group in started else options.first_bucket_bytes
            started.add(group)
            bucket = latest[key, is_early] = _Bucket(len(buckets), limit, is_early)
            buckets.append(bucket)
        bucket.members.append(number)
        bucket.nbytes += nbytes
        bucket.made_bytes += made_bytes
        bucket.needs |= needs
        bucket.users |= used_by
        needed.update(dict.fromkeys(equation.outputs, 1 << bucket.number))
    return buckets


def _keeps_order(equation: Equation) -> bool:
    """Whether an equation stays behind others of its kind: calls of the host, loops that may have some."""
    is_loop = bool(equation.programs) and equation.effect.is_ordered
    return is_loop or equation.effect is Effect.ORDERED_IO


def _key(equation: Equation) -> Hashable:
    """What the members of a bucket have in common."""
    attrs = {name: item for name, item in equation.attrs.items() if name != "dimensions"}
    return equation.op.name, tuple(sorted(attrs.items())), equation.inputs[0].type.dtype


def _takes(bucket: _Bucket, one: _Candidate, buckets: Sequence[_Bucket]) -> bool:
    """Whether a bucket has a place for a collective, and they go together."""
    if bucket.nbytes + one.nbytes > bucket.limit:
        return False
    fits = bucket.of_parameters and bucket.made_bytes <= one.room
    if not (one.is_sum or fits) and bucket.users.isdisjoint(one.users):
        return False
    return not _closure(one.needs, buckets) >> bucket.number & 1


def _closure(needs: Mask, buckets: Sequence[_Bucket]) -> Mask:
    """Everything that some buckets need, through others."""
    found, latest = needs, needs
    while latest:
        more = 0
        while latest:
            bit = latest & -latest
            more |= buckets[bit.bit_length() - 1].needs
            latest ^= bit
        latest = more & ~found
        found |= more
    return found


def _users(program: Program) -> dict[int, set[Hashable]]:
    """For each gather the equations that use it first, and what else these read. Those that nothing uses are
    results, and used together.
    """
    made_by = {
        v: number
        for number, equation in enumerate(program.equations)
        if equation.op.name == "all_gather"
        for v in equation.outputs
    }
    found: dict[int, set[Hashable]] = {}
    for number, equation in enumerate(program.equations):
        for var in equation.inputs:
            if var in made_by and made_by[var] not in found:
                others = {v for v in equation.inputs if v not in made_by}
                found[made_by[var]] = {number, *others}
    return {number: found.get(number, {"results"}) for number in made_by.values()}


def _ordered(program: Program, buckets: Sequence[_Bucket]) -> list[Equation]:
    """The equations with one for each bucket. What is ready first in the old order comes first; a bucket
    counts as its last member.
    """
    equations = program.equations
    node = list(range(len(equations)))  # the last member stands for its bucket
    members: dict[int, list[int]] = {}
    for bucket in buckets:
        members[bucket.members[-1]] = bucket.members
        for number in bucket.members:
            node[number] = bucket.members[-1]
    made_by = {v: node[i] for i, equation in enumerate(equations) for v in equation.outputs}
    before: dict[int, set[int]] = {number: set() for number in node}
    latest = None
    for i, equation in enumerate(equations):
        before[node[i]].update(made_by[v] for v in equation.inputs if v in made_by)
        if _keeps_order(equation):
            if latest is not None:
                before[node[i]].add(latest)
            latest = node[i]
    after: dict[int, list[int]] = {number: [] for number in before}
    for number, needed in before.items():
        for other in needed:
            after[other].append(number)
    waiting = {number: len(needed) for number, needed in before.items()}
    ready = [number for number, count in waiting.items() if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        number = heapq.heappop(ready)
        found.append(_joined([equations[i] for i in members.get(number, [number])]))
        for other in after[number]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, other)
    assert len(found) == len(before), "buckets do not need each other in a circle"
    return found


def _joined(equations: Sequence[Equation]) -> Equation:
    first = equations[0]
    if len(equations) == 1:
        return first
    attrs: dict[str, Any] = dict(first.attrs)
    if "dimensions" in attrs:
        attrs["dimensions"] = tuple(d for e in equations for d in e.attrs["dimensions"])
    return Equation(
        first.op,
        tuple(v for e in equations for v in e.inputs),
        Attrs(attrs),
        tuple(v for e in equations for v in e.outputs),
        first.where,
        first.via,
    )
