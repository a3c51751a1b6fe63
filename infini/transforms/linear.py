"""Linearization, the base of reverse mode (design 4a.4).

Primals run in the parent interpreter; tangent equations go into one linear Program, whose other inputs are
residuals. `transposition` runs that program backwards. Operations with programs inside split their bodies by
their own LINEARIZE rule; rules that users write run under `RuleStaging`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import array, dtypes, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.lax import calls, custom_rules, dead_code, families
from infini.lax.composites import derivative
from infini.transforms import forward
from infini.transforms.transposition import backward as backward, transpose_program as transpose_program

Flags = tuple[bool, ...]


class LinearStaging(trace.Staging):
    """Stages equations that have a tangent among their inputs; everything else runs in the parent and is
    a residual.
    """

    def __init__(self, parent: trace.Interpreter) -> None:
        super().__init__(parent, manual=parent.manual)

    def var(self, x: Value) -> ir.Var:
        """As of `Staging`, but arrays are residuals whatever their size, so programs stay equal."""
        if isinstance(x, array.Array):
            return self.captures.setdefault(id(x), (ir.Var(x.type), x))[0]
        return super().var(x)

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[Value],
        attrs: ir.Attrs,
        out_types: tuple[ArrayType, ...],
    ) -> tuple[Value, ...]:
        """A staged tangent, or a value of the parent."""
        if any(isinstance(a, trace.StagedTracer) and a.owner is self for a in args):
            return super().process(op, args, attrs, out_types)
        assert self.parent is not None
        with trace.running(self.parent):
            return trace.bind_attrs(op, args, attrs)


class LinearizeTracer(trace.Tracer):
    """A primal value with a tangent that is a variable of the linear program."""

    __slots__ = ("primal", "tangent")

    def __init__(self, owner: Linearize, primal: Value, tangent: Value) -> None:
        super().__init__(owner, primal.type, primal.weak)
        self.primal = primal
        self.tangent = tangent

    @property
    def varying(self) -> trace.Varying:
        """See `trace.Tracer`."""
        return trace.varying_axes(self.primal)

    def with_weak(self, weak: bool) -> LinearizeTracer:
        """The same value with another weak flag, which goes with it when it leaves the transformation."""
        copy = super().with_weak(weak)
        assert isinstance(copy, LinearizeTracer)
        copy.primal = self.primal.with_weak(weak)
        copy.tangent = self.tangent.with_weak(weak)
        return copy

    def concrete(self) -> array.Array | None:
        """The primal, when it is known: Python control flow works under grad outside jit."""
        return forward.known(self.primal)


class Linearize(trace.Interpreter):
    """Run primals in the parent and stage tangents. Also the `ctx` of LINEARIZE rules."""

    parent: trace.Interpreter
    transform = "grad"

    def __init__(self, parent: trace.Interpreter, function: str = "") -> None:
        super().__init__(parent, function)
        self.linear = LinearStaging(parent)
        self.rules = RuleStaging(self)
        self.jvp_program = forward.jvp_program
        self.linearize_program = linearize_program

    def split(self, x: Value) -> tuple[Value, Value | None]:
        """Primal and tangent of a value."""
        if isinstance(x, LinearizeTracer) and x.owner is self:
            return x.primal, x.tangent
        return x, None

    def bind_primal(self, op: primitive.Primitive, *args: Value, **attrs: object) -> tuple[Value, ...]:
        """Apply an operation to primals."""
        with trace.running(self.parent):
            return trace.bind(op, *args, **attrs)

    def bind_linear(self, op: primitive.Primitive, *args: Value, **attrs: object) -> tuple[Value, ...]:
        """Stage an operation on tangents."""
        with trace.running(self.linear):
            return trace.bind(op, *args, **attrs)

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[Value],
        attrs: ir.Attrs,
        out_types: tuple[ArrayType, ...],
    ) -> tuple[Value, ...]:
        """Primal results with staged tangents."""
        pairs = [self.split(a) for a in args]
        primals, tangents = [p for p, _ in pairs], [t for _, t in pairs]
        if all(t is None for t in tangents):
            with trace.running(self.parent):
                return trace.bind_attrs(op, primals, attrs)
        results, moved = self.linearize(op, primals, tangents, attrs)
        return tuple(
            r if t is None else LinearizeTracer(self, r, t) for r, t in zip(results, moved, strict=True)
        )

    def linearize(
        self,
        op: primitive.Primitive,
        primals: Sequence[Value],
        tangents: Sequence[Value | None],
        attrs: ir.Attrs,
    ) -> tuple[Sequence[Value], Sequence[Value | None]]:
        """Results of one operation, computed in the parent, and their tangents, staged."""
        if op.has(primitive.LINEARIZE):
            return op.rule(primitive.LINEARIZE)(self, primals, tangents, attrs)
        if op.has(primitive.VJP):
            return self._by_vjp(op, primals, tangents, attrs)
        if not op.is_higher_order and not op.has(primitive.JVP) and op.has(primitive.DECOMPOSE):
            boxed = [
                p if t is None else LinearizeTracer(self, p, t)
                for p, t in zip(primals, tangents, strict=True)
            ]
            with trace.running(self):
                pairs = [self.split(trace.as_value(r)) for r in op.rule(primitive.DECOMPOSE)(*boxed, **attrs)]
            return [p for p, _ in pairs], [t for _, t in pairs]
        if op.is_higher_order:
            with trace.running(self.rules):
                return op.rule(primitive.JVP)(self, primals, tangents, attrs)
        with trace.running(self.parent):
            results = trace.bind_attrs(op, primals, attrs)
        with trace.running(self.linear):
            moved = op.rule(primitive.JVP)(primals, tangents, results, **attrs)
        return results, moved

    def _by_vjp(
        self,
        op: primitive.Primitive,
        primals: Sequence[Value],
        tangents: Sequence[Value | None],
        attrs: ir.Attrs,
    ) -> tuple[Sequence[Value], Sequence[Value | None]]:
        run_forward, run_backward = op.rule(primitive.VJP)
        with trace.running(self.parent):
            results, residuals = run_forward(*primals, **attrs)
        types = tuple(r.type for r in results)

        def pull(saved: Sequence[Value], cts: Sequence[Value | None]) -> Sequence[Value | None]:
            found: Sequence[Value | None] = run_backward(saved, families.filled(cts, types), **attrs)
            return found

        if not op.has(primitive.DECOMPOSE):
            return results, custom_rules.bind_linear(self, pull, residuals, primals, tangents, types)
        given = tuple(t is not None for t in tangents)
        moving = tuple(dtypes.is_inexact(t.dtype) for t in types)

        def pull_given(saved: Sequence[Value], cts: Sequence[Value | None]) -> Sequence[Value | None]:
            found = pull(saved, calls.merge(moving, cts))
            return [ct for ct, flag in zip(found, given, strict=True) if flag]

        in_types = tuple(p.type for p in primals)
        moved = derivative.bind_tangent(
            self,
            forward.definition_tangent(op, in_types, attrs, given),
            pull_given,
            ("vjp", op, types, attrs, given),
            residuals,
            primals,
            [t for t in tangents if t is not None],
        )
        return results, calls.merge(moving, moved)


class RuleStaging(trace.Interpreter):
    """Runs derivative rules that users write, in which tangents meet operations of every kind.

    What has no tangent runs in the parent. First-order operations on tangents are staged. Higher-order ones
    (loops, branches, calls) may mix primals with tangents; they are linearized at tangents of zero, which
    changes nothing as the rule is linear in them.
    """

    parent: trace.Interpreter

    def __init__(self, owner: Linearize) -> None:
        super().__init__(owner.parent)
        self.owner = owner

    def is_tangent(self, x: Value) -> bool:
        """Whether a value is staged in the linear program."""
        return isinstance(x, trace.StagedTracer) and x.owner is self.owner.linear

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[Value],
        attrs: ir.Attrs,
        out_types: tuple[ArrayType, ...],
    ) -> tuple[Value, ...]:
        """Staged tangents, or values of the parent."""
        flags = [self.is_tangent(a) for a in args]
        if not any(flags):
            with trace.running(self.parent):
                return trace.bind_attrs(op, args, attrs)
        if not op.is_higher_order:
            return self.owner.linear.process(op, args, attrs, out_types)
        with trace.running(self.parent):
            primals = [families.zeros(a.type) if flag else a for a, flag in zip(args, flags, strict=True)]
        tangents = [a if flag else None for a, flag in zip(args, flags, strict=True)]
        results, moved = self.owner.linearize(op, primals, tangents, attrs)
        return tuple(r if t is None else t for r, t in zip(results, moved, strict=True))


@dataclass(frozen=True, slots=True)
class LinearizedProgram:
    """A program split in two.

    Args:
        primal: from the parameters to the results, then the residuals that had to be computed.
        linear: from all residuals, then the nonzero tangents, to the nonzero result tangents.
        known: for each residual the parameter it equals, or None when `primal` returns it.
        out_nonzero: which results have a tangent.
    """

    primal: Program
    linear: Program
    known: tuple[int | None, ...]
    out_nonzero: Flags

    def residual_values(self, params: Sequence[Value], extra: Sequence[Value]) -> list[Value]:
        """Residuals in order, from the parameters and the extra results of `primal`."""
        computed = iter(extra)
        return [next(computed) if k is None else params[k] for k in self.known]


@functools.lru_cache(maxsize=4096)
def linearize_program(program: Program, nonzero: Flags, force: Flags = ()) -> LinearizedProgram:
    """Split a program into its primal and its linear part.

    Args:
        program: program to split.
        nonzero: which parameters have a tangent.
        force: results whose tangent is given even when it is zero; all False when empty.
    """
    found: list[tuple[Program, tuple[int | None, ...], Flags]] = []
    wanted = force or (False,) * len(program.results)

    def run(*params: Value) -> Sequence[Value]:
        interpreter = Linearize(trace.current())
        tangents = [
            interpreter.linear.parameter(p.type) for p, flag in zip(params, nonzero, strict=True) if flag
        ]
        given = iter(tangents)
        boxed = [
            LinearizeTracer(interpreter, p, next(given)) if flag else p
            for p, flag in zip(params, nonzero, strict=True)
        ]
        with trace.running(interpreter):
            results = trace.evaluate(program, boxed)
        pairs = [interpreter.split(r) for r in results]
        moved = [
            families.zeros(p.type) if t is None and flag else t
            for (p, t), flag in zip(pairs, wanted, strict=True)
        ]
        linear, residuals = close_linear(
            interpreter.linear, tangents, [t for t in moved if t is not None], program.name
        )
        positions = {id(p): i for i, p in enumerate(params)}
        known = tuple(positions.get(id(r)) for r in residuals)
        found.append((linear, known, tuple(t is not None for t in moved)))
        return [*(p for p, _ in pairs), *(r for r, k in zip(residuals, known, strict=True) if k is None)]

    staged = trace.stage(run, program.in_types, name=program.name)
    assert not staged.captures, "a program captures nothing"
    linear, known, out_nonzero = found[0]
    return LinearizedProgram(staged.program, linear, known, out_nonzero)


def close_linear(
    staging: LinearStaging, tangents: Sequence[Any], results: Sequence[Value], name: str
) -> tuple[Program, list[Value]]:
    """Finish a linear program: its parameters are residuals, then tangents. Returns it with the residuals;
    those it does not need are gone.
    """
    outputs = [staging.var(r) for r in results]
    staging.is_closed = True
    captured = list(staging.captures.values())
    params = [var for var, _ in captured] + [t.variable for t in tangents]
    program, used = dead_code.without_dead(staging.builder.build(params, outputs, name=f"{name}_linear"))
    kept = [flag for flag, _ in zip(used, captured, strict=False)]
    residuals = [x for (_, x), flag in zip(captured, kept, strict=True) if flag]
    first = [p for p, flag in zip(params, kept, strict=False) if flag]
    return program.replace(params=(*first, *params[len(captured) :])), residuals


def linearize_values(
    f: Callable[..., Sequence[Value]], primals: Sequence[Value]
) -> tuple[list[Value], Program, list[Value], Flags]:
    """Linearize a flat function at values: results, linear program, residuals, which results have a
    tangent.
    """
    name = getattr(f, "__name__", "f")
    interpreter = Linearize(trace.current(), name)
    tangents = [interpreter.linear.parameter(p.type, varying=trace.varying_axes(p)) for p in primals]
    boxed = [LinearizeTracer(interpreter, p, t) for p, t in zip(primals, tangents, strict=True)]
    with trace.running(interpreter):
        results = [trace.as_value(r) for r in f(*boxed)]
    pairs = [interpreter.split(r) for r in results]
    interpreter.is_closed = True
    moved = [t for _, t in pairs if t is not None]
    program, residuals = close_linear(interpreter.linear, tangents, moved, name)
    return [p for p, _ in pairs], program, residuals, tuple(t is not None for _, t in pairs)
