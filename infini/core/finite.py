"""Where a NaN or an infinity comes from: the knobs `nan` and `inf`.

While one is set, the results of every program are looked at. A program with a bad result is interpreted again
with the same inputs, equation by equation, and the bad value is followed back to the equation that made it
from good ones, into loops, branches and calls. The error names it, its operands, and the user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.core import config, dtypes, errors, execute, interpret, ir, primitive, source

Test = Callable[[np.ndarray], np.ndarray]  # which elements are bad


@dataclass(frozen=True, slots=True)
class Finding:
    """What made a bad value, and on the way there through which loops and calls.

    Args:
        equation: the equation; None when the value came in from outside.
        operands: its operands.
        results: its results.
        path: loops, branches and calls around it, outermost first.
        source: where the value came from, when no equation made it.
    """

    equation: ir.Equation | None
    operands: tuple[np.ndarray, ...] = ()
    results: tuple[np.ndarray, ...] = ()
    path: tuple[str, ...] = ()
    source: str = ""


def inspect(
    program: ir.Program,
    arguments: Callable[[], Sequence[np.ndarray]],
    results: Sequence[np.ndarray],
    run: interpret.Apply,
) -> None:
    """Raise when a result is bad by the knobs of this moment.

    Args:
        program: what ran.
        arguments: gives the arguments it ran with; called when there is something to look for.
        results: what it gave.
        run: runs one equation on the device that the program ran on.

    Raises:
        NotFiniteError: a result has a NaN or an infinity; the message names the equation that made it.
    """
    tests: list[tuple[str, Test]] = []
    if config.get("nan"):
        tests.append(("NaN", np.isnan))
    if config.get("inf"):
        tests.append(("infinity", np.isinf))
    for word, test in tests:
        if any(_is_bad(result, test) for result in results):
            given = [np.array(argument) for argument in arguments()]
            raise _error(program, word, test, _find(program, given, test, run))


def _is_bad(array: np.ndarray, test: Test) -> bool:
    return array.dtype in dtypes.INEXACT and bool(test(array).any())


# --- searching ------------------------------------------------------------------------------------


def _find(
    program: ir.Program, arguments: Sequence[np.ndarray], test: Test, run: interpret.Apply
) -> Finding | None:
    """By interpretation with NumPy, which is quick; then with the device's own code for each equation."""
    for apply in (interpret.apply, run):
        try:
            with np.errstate(all="ignore"):
                found = _Search(test, _quiet(apply, run)).find(program, arguments, ())
        except errors.InfiniError:
            continue  # a host function of another process, say: the next way may do without
        if found is not None:
            return found
    return None


def _quiet(apply: interpret.Apply, run: interpret.Apply) -> interpret.Apply:
    """`apply` without repeating what the program did to the outside; a mesh is needed for some equations."""

    def quiet(
        equation: ir.Equation, operands: Sequence[np.ndarray], evaluate: interpret.Evaluate
    ) -> list[np.ndarray]:
        if equation.op.effect_for(equation.attrs) in _ON_THE_HOST:
            return [np.zeros(v.type.shape, v.type.dtype) for v in equation.outputs]
        if equation.attrs.get("mesh") is not None:
            return run(equation, operands, evaluate)
        return apply(equation, operands, evaluate)

    return quiet


_ON_THE_HOST: Final = (primitive.Effect.IO, primitive.Effect.ORDERED_IO)


class _Entered(Exception):  # noqa: N818  # no error: it carries a body out of the rule that runs it
    """A body of a higher-order operation made a bad value from good ones."""

    def __init__(self, body: ir.Program, arguments: Sequence[np.ndarray], number: int) -> None:
        super().__init__()
        self.body, self.arguments, self.number = body, arguments, number


class _Search:
    """Follows a bad value back through programs."""

    def __init__(self, test: Test, apply: interpret.Apply) -> None:
        self.test, self.apply = test, apply
        self.evaluate = interpret.evaluator(apply)

    def find(
        self, program: ir.Program, arguments: Sequence[np.ndarray], path: tuple[str, ...]
    ) -> Finding | None:
        """What made the first bad result of a program; None when its results are good here."""
        env = dict(zip(program.params, arguments, strict=True))
        env.update((var, constant.array) for var, constant in program.consts)
        makers: dict[ir.Var, ir.Equation] = {}
        for equation in program.equations:
            results = self.apply(equation, [env[v] for v in equation.inputs], self.evaluate)
            env.update(zip(equation.outputs, results, strict=True))
            makers.update((v, equation) for v in equation.outputs)

        def first_bad(variables: Sequence[ir.Var]) -> ir.Var | None:
            return next((v for v in variables if _is_bad(env[v], self.test)), None)

        var, user = first_bad(program.results), None
        while var is not None and var in makers:
            user = makers[var]
            cause = first_bad(user.inputs)
            if cause is None:
                operands = tuple(env[v] for v in user.inputs)
                return self._enter(user, operands, tuple(env[v] for v in user.outputs), path)
            var = cause
        if var is None:
            return None
        if var in program.params:
            origin = f"argument {program.params.index(var)} of {program.name}, of type {var.type},"
        else:
            origin = f"a constant of type {var.type}"
        return Finding(user, path=path, source=origin)

    def _enter(
        self,
        equation: ir.Equation,
        operands: tuple[np.ndarray, ...],
        results: tuple[np.ndarray, ...],
        path: tuple[str, ...],
    ) -> Finding:
        """The equation inside a body that made the value, or `equation` itself when it has no such body."""
        if equation.op.is_higher_order and equation.programs and equation.attrs.get("mesh") is None:
            try:
                self.apply(equation, operands, self._watching())
            except _Entered as entered:
                step = _step(equation, entered.body, entered.number)
                found = self.find(entered.body, entered.arguments, (*path, step))
                if found is not None:
                    return found
        return Finding(equation, operands, results, path)

    def _watching(self) -> interpret.Evaluate:
        """An evaluator that stops at the first body that makes a bad value from good ones."""
        counts: dict[int, int] = {}

        def evaluate(body: ir.Program, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
            number = counts.get(id(body), 0)
            counts[id(body)] = number + 1
            results = self.evaluate(body, arguments)
            was_bad = any(_is_bad(a, self.test) for a in arguments)
            if not was_bad and any(_is_bad(r, self.test) for r in results):
                raise _Entered(body, list(arguments), number)
            return results

        return evaluate


def _step(equation: ir.Equation, body: ir.Program, number: int) -> str:
    """A body as a step of a path."""
    name, attrs = equation.op.name, equation.attrs
    place = f" ({equation.where})" if equation.where else ""
    if name in ("scan", "while"):
        if attrs.get("reverse"):
            number = attrs["length"] - 1 - number
        return f"iteration {number} of {name} {body.name}{place}"
    if name == "cond":
        return f"branch {attrs['branches'].index(body)} of cond{place}"
    return f"{name} {body.name}{place}"


# --- telling --------------------------------------------------------------------------------------


def _error(program: ir.Program, word: str, test: Test, found: Finding | None) -> errors.NotFiniteError:
    if found is None:
        return errors.NotFiniteError(
            f"a result of {program.name} has {_a(word)}, and none of its equations makes one when run alone",
            got="\n" + _shortened(repr(program)),
            expected="the same values from fused and from single equations",
            fix="compare with infini.config(no_fuse=True), and report the program",
        )
    inside = f", in {', in '.join(reversed(found.path))}" if found.path else ""
    if found.source:
        return errors.NotFiniteError(
            f"{found.source} had {_a(word)} already{inside}",
            expected=f"values without {word} while the knob {_knob(word)!r} is set",
            fix=_fix(word, "look where the argument was made"),
            where=_line(found),
        )
    assert found.equation is not None
    op = found.equation.op.name
    return errors.NotFiniteError(
        f"{op!r} made {_a(word)}{inside}",
        got=_example(found, test),
        expected=f"finite results while the knob {_knob(word)!r} is set",
        fix=_fix(
            word, "guard the operand, for example with infini.numpy.where on the argument of the operation"
        ),
        where=_line(found),
    )


def _line(found: Finding) -> source.Where | None:
    return found.equation.where if found.equation is not None else None


def _a(word: str) -> str:
    return "an infinity" if word == "infinity" else f"a {word}"


def _knob(word: str) -> str:
    return "inf" if word == "infinity" else "nan"


def _fix(word: str, text: str) -> str:
    return f"{text}; infini.config({_knob(word)}=False) stops the search"


def _example(found: Finding, test: Test) -> str:
    """The equation with the values at the first bad element, such as `log(-1.0) = nan at (2,)`."""
    assert found.equation is not None
    bad = next(r for r in found.results if _is_bad(r, test))
    where = np.unravel_index(int(test(bad).reshape(-1).argmax()), bad.shape)
    at = tuple(int(i) for i in where)
    operands = ", ".join(_operand(x, bad.shape, at) for x in found.operands)
    count = int(test(bad).sum())
    several = f", one of {count} such elements" if count > 1 else ""
    place = f" at {at}" if at else ""
    return f"{found.equation.op.name}({operands}) = {bad[at]}{place}{several}"


def _operand(x: np.ndarray, shape: ir.Shape, at: tuple[int, ...]) -> str:
    """The element that goes with an element of the result, or what the operand is when there is none."""
    if x.ndim <= len(shape):
        try:
            return str(np.broadcast_to(x, shape)[at])
        except ValueError:
            pass
    text = str(ir.ArrayType(x.shape, x.dtype))
    if x.size and x.dtype in dtypes.FLOATS:
        wide = x.astype(np.float64)
        text += f" from {np.min(wide):.6g} to {np.max(wide):.6g}"
    return text


def _shortened(text: str, limit: int = 20) -> str:
    lines = text.splitlines()
    return (
        text if len(lines) <= limit else "\n".join([*lines[:limit], f"  ... {len(lines) - limit} more lines"])
    )


execute.install_inspector(inspect)
