"""Forward mode: the JVP interpreter carries (primal, tangent) pairs and runs both in its parent.

A symbolic zero tangent is None. Integers have no tangents.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from infini.core import array, dtypes, interpret, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.lax import dead_code, families

Flags = tuple[bool, ...]


class JVPTracer(trace.Tracer):
    """A primal with its tangent."""

    __slots__ = ("primal", "tangent")

    def __init__(self, owner: JVP, primal: Value, tangent: Value | None) -> None:
        super().__init__(owner, primal.type, primal.weak)
        self.primal = primal
        self.tangent = tangent

    @property
    def varying(self) -> trace.Varying:
        """See `trace.Tracer`."""
        return trace.varying_axes(self.primal)

    def with_weak(self, weak: bool) -> JVPTracer:
        """The same value with another weak flag, which goes with it when it leaves the transformation."""
        copy = super().with_weak(weak)
        assert isinstance(copy, JVPTracer)
        copy.primal = self.primal.with_weak(weak)
        copy.tangent = None if self.tangent is None else self.tangent.with_weak(weak)
        return copy

    def concrete(self) -> array.Array | None:
        """The primal, when it is known."""
        return known(self.primal)


def known(x: Value) -> array.Array | None:
    """The array behind a value, looking through derivative tracers."""
    if isinstance(x, array.Array):
        return x
    return x.concrete() if isinstance(x, trace.Tracer) else trace.to_array(x)


class JVP(trace.Interpreter):
    """Push tangents forward through each operation."""

    transform = "jvp"

    def __init__(self, parent: trace.Interpreter, function: str = "") -> None:
        super().__init__(parent, function)
        self.jvp_program = jvp_program

    def split(self, x: Value) -> tuple[Value, Value | None]:
        """Primal and tangent of a value; values of other interpreters have no tangent here."""
        if isinstance(x, JVPTracer) and x.owner is self:
            return x.primal, x.tangent
        return x, None

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[Value],
        attrs: ir.Attrs,
        out_types: tuple[ArrayType, ...],
    ) -> tuple[Value, ...]:
        """Results with their tangents."""
        assert self.parent is not None
        pairs = [self.split(a) for a in args]
        primals, tangents = [p for p, _ in pairs], [t for _, t in pairs]
        with trace.running(self.parent):
            if all(t is None for t in tangents):
                return trace.bind_attrs(op, primals, attrs)
            results, moved = apply_jvp(self, op, primals, tangents, attrs)
        return tuple(r if t is None else JVPTracer(self, r, t) for r, t in zip(results, moved, strict=True))


def apply_jvp(
    ctx: Any,
    op: primitive.Primitive,
    primals: Sequence[Value],
    tangents: Sequence[Value | None],
    attrs: ir.Attrs,
) -> tuple[Sequence[Value], Sequence[Value | None]]:
    """Results and tangents of one operation, computed under the current interpreter. `ctx` is what rules
    call.
    """
    if op.is_higher_order:
        return op.rule(primitive.JVP)(ctx, primals, tangents, attrs)
    if not op.has(primitive.JVP) and op.has(primitive.DECOMPOSE):
        return _jvp_of_definition(op, primals, tangents, attrs)
    rule = op.rule(primitive.JVP)
    results = trace.bind_attrs(op, primals, attrs)
    return results, rule(primals, tangents, results, **attrs)


def _jvp_of_definition(
    op: primitive.Primitive, primals: Sequence[Value], tangents: Sequence[Value | None], attrs: ir.Attrs
) -> tuple[list[Value], list[Value | None]]:
    inner = JVP(trace.current())
    args = [p if t is None else JVPTracer(inner, p, t) for p, t in zip(primals, tangents, strict=True)]
    with trace.running(inner):
        results = op.rule(primitive.DECOMPOSE)(*args, **attrs)
    pairs = [inner.split(trace.as_value(r)) for r in results]
    return [p for p, _ in pairs], [t for _, t in pairs]


@functools.lru_cache(maxsize=4096)
def jvp_program(program: Program, nonzero: Flags, force: Flags = ()) -> tuple[Program, Flags]:
    """The program from primals and nonzero tangents to results and nonzero result tangents.

    Args:
        program: program to push tangents through.
        nonzero: which parameters have a tangent.
        force: results whose tangent is given even when it is zero; all False when empty.

    Returns:
        The program, and which results have a tangent.
    """
    flags: list[Flags] = []
    wanted = force or (False,) * len(program.results)

    def run(*args: Value) -> Sequence[Value]:
        primals, given = args[: len(program.params)], iter(args[len(program.params) :])
        interpreter = JVP(trace.current())
        boxed = [
            JVPTracer(interpreter, p, next(given)) if flag else p
            for p, flag in zip(primals, nonzero, strict=True)
        ]
        with trace.running(interpreter):
            results = trace.evaluate(program, boxed)
        pairs = [interpreter.split(r) for r in results]
        moved = [
            families.zeros(p.type) if t is None and flag else t
            for (p, t), flag in zip(pairs, wanted, strict=True)
        ]
        flags.append(tuple(t is not None for t in moved))
        return [*(p for p, _ in pairs), *(t for t in moved if t is not None)]

    types = [*program.in_types, *(t for t, flag in zip(program.in_types, nonzero, strict=True) if flag)]
    staged = trace.stage(run, types, name=f"{program.name}_jvp")
    assert not staged.captures, "a program captures nothing"
    return staged.program, flags[0]


@functools.lru_cache(maxsize=1024)
def definition_tangent(
    op: primitive.Primitive, in_types: tuple[ArrayType, ...], attrs: ir.Attrs, nonzero: Flags
) -> Program:
    """The derivative of an operation's definition alone, without its results.

    Args:
        op: operation with a DECOMPOSE.
        in_types: types of its operands.
        attrs: its attributes.
        nonzero: which operands have a tangent.

    Returns:
        The program from the operands and their nonzero tangents to the tangents of the results that are
        inexact.
    """
    definition = interpret.decomposition(op, in_types, attrs)
    moving = tuple(dtypes.is_inexact(t.dtype) for t in definition.out_types)
    program, _ = jvp_program(definition, nonzero, moving)
    tangents = program.results[len(definition.results) :]
    return dead_code.without_dead(program.replace(results=tangents))[0]
