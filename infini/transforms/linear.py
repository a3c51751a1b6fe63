"""Linearization and transposition, the base of reverse mode (design 4a.4).

Primals run in the parent interpreter; tangent equations go into one linear Program, whose other inputs
are residuals. That
program is transposed once, backwards. Operations with programs inside split their bodies by their own
LINEARIZE rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import array, errors, host, ir, primitive, trace, value
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.lax import calls, families
from infini.lax.families import LinearInput, is_linear
from infini.transforms import forward

Flags = tuple[bool, ...]


class LinearStaging(trace.Staging):
    """Stages equations that have a tangent among their inputs; everything else runs in the parent and is
    a residual.
    """

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

    def concrete(self) -> array.Array | None:
        """The primal, when it is known: Python control flow works under grad outside jit."""
        return forward.known(self.primal)


class Linearize(trace.Interpreter):
    """Run primals in the parent and stage tangents. Also the `ctx` of LINEARIZE rules."""

    parent: trace.Interpreter
    transform = "grad"

    def __init__(self, parent: trace.Interpreter) -> None:
        super().__init__(parent)
        self.linear = LinearStaging(parent)
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
        results, moved = self._linearize(op, primals, tangents, attrs)
        return tuple(
            r if t is None else LinearizeTracer(self, r, t) for r, t in zip(results, moved, strict=True)
        )

    def _linearize(
        self,
        op: primitive.Primitive,
        primals: Sequence[Value],
        tangents: Sequence[Value | None],
        attrs: ir.Attrs,
    ) -> tuple[Sequence[Value], Sequence[Value | None]]:
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
            # A rule written by a user (custom_jvp): its tangent part is staged because tangents are among
            # its inputs.
            with trace.running(self.linear):
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
        key = ("vjp", op.name, attrs)
        backward = host.register(lambda saved, cts: run_backward(saved, cts, **attrs), key=key)
        types = [r.type for r in results]
        return results, calls.bind_custom_linear(self, backward, residuals, primals, tangents, types)


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
    """Finish a linear program: parameters are residuals, then tangents. Returns it with the residual
    values.
    """
    outputs = [staging.var(r) for r in results]
    staging.is_closed = True
    captured = list(staging.captures.values())
    params = [var for var, _ in captured] + [t.variable for t in tangents]
    program = staging.builder.build(params, outputs, name=f"{name}_linear")
    return prune(program, len(captured)), [x for _, x in captured]


def prune(program: Program, num_residuals: int) -> Program:
    """Drop equations whose results nothing uses."""
    live = set(program.results)
    kept = []
    for equation in reversed(program.equations):
        if any(v in live for v in equation.outputs) or equation.effect is not primitive.Effect.NONE:
            kept.append(equation)
            live.update(equation.inputs)
    return program.replace(equations=tuple(reversed(kept)))


# --- transposition -----------------------------------------------------------------------------


class Transposer:
    """The `ctx` of TRANSPOSE rules of higher-order operations."""

    def transpose_program(
        self, program: Program, linear: Flags, nonzero: Flags, force: Flags = ()
    ) -> tuple[Program, Flags]:
        """See `transpose_program`."""
        return transpose_program(program, linear, nonzero, force)


_TRANSPOSER = Transposer()


def backward(
    program: Program, args: Sequence[Value | LinearInput], cotangents: Sequence[Value | None]
) -> list[Value | None]:
    """Cotangents of the parameters that are `LinearInput`, by running a linear program backwards.

    Equations without linear inputs (recomputed values) run forwards first. Everything is bound under the
    current interpreter.

    Args:
        program: program that is linear in the parameters marked by `args`.
        args: values of the other parameters, and `LinearInput` for the linear ones.
        cotangents: one per result; None is zero.

    Returns:
        One cotangent per parameter; None where it is zero or the parameter is not linear.
    """
    env: dict[ir.Var, Any] = dict(zip(program.params, args, strict=True))
    for var, constant in program.consts:
        env[var] = value.Literal(constant.array, weak=False)
    linear_equations = []
    for equation in program.equations:
        inputs = [env[v] for v in equation.inputs]
        if any(is_linear(x) for x in inputs):
            linear_equations.append((equation, inputs))
            env.update((v, LinearInput(v.type)) for v in equation.outputs)
        else:
            with trace.at_line(equation.where):
                env.update(
                    zip(equation.outputs, trace.bind_attrs(equation.op, inputs, equation.attrs), strict=True)
                )
    cts: dict[ir.Var, Value] = {}

    def accumulate(var: ir.Var, ct: Value | None) -> None:
        if ct is not None and is_linear(env[var]):
            cts[var] = trace.bind1(primitive.by_name("add"), cts[var], ct) if var in cts else ct

    for var, ct in zip(program.results, cotangents, strict=True):
        accumulate(var, ct)
    for equation, inputs in reversed(linear_equations):
        given = [cts.pop(v, None) for v in equation.outputs]
        if all(ct is None for ct in given):
            continue
        with trace.at_line(equation.where):
            for var, x, ct in zip(equation.inputs, inputs, _transposed(equation, inputs, given), strict=True):
                if ct is not None and is_linear(x):
                    accumulate(var, families.sum_to(ct, x.shape))
    return [cts.get(p) if is_linear(a) else None for p, a in zip(program.params, args, strict=True)]


def _transposed(
    equation: ir.Equation, inputs: Sequence[Any], cotangents: Sequence[Value | None]
) -> Sequence[Value | None]:
    op = equation.op
    if not op.has(primitive.TRANSPOSE):
        raise errors.MissingRuleError(
            f"operation {op.name!r} has no transpose rule",
            expected=primitive.TRANSPOSE.hint,
            where=equation.where,
        )
    rule = op.rule(primitive.TRANSPOSE)
    if op.is_higher_order:
        return rule(_TRANSPOSER, cotangents, inputs, equation.attrs)
    (ct,) = cotangents
    return rule(ct, *inputs, **equation.attrs)


@functools.lru_cache(maxsize=4096)
def transpose_program(
    program: Program, linear: Flags, nonzero: Flags, force: Flags = ()
) -> tuple[Program, Flags]:
    """The transpose of a program that is linear in some parameters.

    Args:
        program: program to transpose.
        linear: which parameters it is linear in.
        nonzero: which results have a cotangent.
        force: linear parameters whose cotangent is given even when it is zero; all False when empty.

    Returns:
        The program from the other parameters and the nonzero cotangents to the cotangents of the linear
        parameters, and
        which of these it gives.
    """
    flags: list[Flags] = []
    wanted = force or (False,) * sum(linear)

    def run(*args: Value) -> Sequence[Value]:
        known = iter(args)
        inputs: list[Value | LinearInput] = [
            LinearInput(p.type) if flag else next(known)
            for p, flag in zip(program.params, linear, strict=True)
        ]
        cts = [next(known) if flag else None for flag in nonzero]
        every = backward(program, inputs, cts)
        found = [
            families.zeros(p.type) if ct is None and wish else ct
            for (p, ct), wish in zip(
                [(p, ct) for p, ct, flag in zip(program.params, every, linear, strict=True) if flag],
                wanted,
                strict=True,
            )
        ]
        flags.append(tuple(ct is not None for ct in found))
        return [ct for ct in found if ct is not None]

    types = [p.type for p, flag in zip(program.params, linear, strict=True) if not flag]
    types += [v.type for v, flag in zip(program.results, nonzero, strict=True) if flag]
    staged = trace.stage(run, types, name=f"{program.name}_transposed")
    assert not staged.captures, "a program captures nothing"
    return staged.program, flags[0]


def linearize_values(
    f: Callable[..., Sequence[Value]], primals: Sequence[Value]
) -> tuple[list[Value], Program, list[Value], Flags]:
    """Linearize a flat function at values: results, linear program, residuals, which results have a
    tangent.
    """
    interpreter = Linearize(trace.current())
    tangents = [interpreter.linear.parameter(p.type) for p in primals]
    boxed = [LinearizeTracer(interpreter, p, t) for p, t in zip(primals, tangents, strict=True)]
    with trace.running(interpreter):
        results = [trace.as_value(r) for r in f(*boxed)]
    pairs = [interpreter.split(r) for r in results]
    interpreter.is_closed = True
    moved = [t for _, t in pairs if t is not None]
    program, residuals = close_linear(interpreter.linear, tangents, moved, getattr(f, "__name__", "f"))
    return [p for p, _ in pairs], program, residuals, tuple(t is not None for _, t in pairs)
