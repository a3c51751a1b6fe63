"""Rewriting of programs so that their checks become values.

A rewritten program gives, besides its results, the number of the first check that failed (0 for none) and
what each check has to tell. Loops carry both; branches agree on one table. Used by `transforms.checkify`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini import lax
from infini.core import dtypes, errors, ir, primitive, source, trace
from infini.core.ir import ArrayType, Equation, Program
from infini.core.value import Literal, Value
from infini.lax import custom_rules, families
from infini.transforms import check_operation, check_places
from infini.transforms.check_operation import Check, Entry, ErrorCategory, check_p


@dataclass(frozen=True, slots=True)
class Checked:
    """A program that also gives the number of the first check that failed, and what each has to tell."""

    program: Program
    num_results: int
    entries: tuple[Entry, ...]
    widths: tuple[int, ...]

    def split(self, found: Sequence[Any]) -> tuple[list[Any], Any, list[list[Any]]]:
        """Results of the program, the code, and the values of each check."""
        results, code, flat_payload = (
            found[: self.num_results],
            found[self.num_results],
            found[self.num_results + 1 :],
        )
        items = iter(flat_payload)
        return list(results), code, [[next(items) for _ in range(width)] for width in self.widths]

    @property
    def payload_types(self) -> list[ArrayType]:
        """Types of all values that checks tell."""
        return list(self.program.out_types[self.num_results + 1 :])


def rewrite(program: Program, enabled: frozenset[ErrorCategory]) -> Checked:
    """The program with its checks as values."""
    made: list[Rewriter] = []

    def run(*args: Value) -> Sequence[Value]:
        rewriter = Rewriter(enabled)
        made.append(rewriter)
        results = rewriter.run(program, args)
        return [*results, rewriter.code, *(x for values in rewriter.payload for x in values)]

    staged = trace.stage(run, program.in_types, name=program.name)
    assert not staged.captures, "a program captures nothing"
    rewriter = made[0]
    widths = tuple(len(values) for values in rewriter.payload)
    return Checked(staged.program, len(program.results), tuple(rewriter.entries), widths)


def number(n: int) -> Value:
    """An int32 scalar."""
    return Literal(np.asarray(n, np.int32), weak=False)


def _first(code: Value, values: Sequence[Value], later: Sequence[Value]) -> list[Value]:
    """`values` when a check has failed already, `later` otherwise."""
    has_failed = lax.ne(code, number(0))
    return [
        lax.select(families.broadcast_to(has_failed, v.shape), v, w)
        for v, w in zip(values, later, strict=True)
    ]


class Rewriter:
    """Evaluates a program and keeps account of its checks."""

    def __init__(self, enabled: frozenset[ErrorCategory]) -> None:
        self.enabled = enabled
        self.code: Value = number(0)
        self.entries: list[Entry] = []
        self.payload: list[list[Value]] = []

    def run(self, program: Program, args: Sequence[Value]) -> list[Value]:
        """Results of a program."""
        env: dict[ir.Var, Value] = dict(zip(program.params, args, strict=True))
        for var, constant in program.consts:
            env[var] = Literal(constant.array, weak=False)
        for equation in program.equations:
            with trace.at_line(equation.where):
                results = self.apply(equation, [env[v] for v in equation.inputs])
            env.update(zip(equation.outputs, results, strict=True))
        return [env[v] for v in program.results]

    # --- accounts ---

    def record(
        self, made: Check, failed: Value, payload: Sequence[Value], where: source.Where | None
    ) -> None:
        """Add a check; `failed` is a boolean scalar."""
        self.entries.append(Entry(made, where))
        self.payload.append(list(payload))
        here = lax.select(failed, number(len(self.entries)), number(0))
        (self.code,) = _first(self.code, [self.code], [here])

    def merge(self, inner: Checked, code: Value, payload: Sequence[Sequence[Value]]) -> None:
        """Add the checks of a program that has run."""
        shifted = _shifted(code, len(self.entries))
        (self.code,) = _first(self.code, [self.code], [shifted])
        self.entries += inner.entries
        self.payload += [list(values) for values in payload]

    # --- equations ---

    def apply(self, equation: Equation, args: list[Value]) -> Sequence[Value]:
        """Results of an equation, with its checks."""
        op, attrs = equation.op, equation.attrs
        if op is check_p:
            return self._user_check(equation, args)
        if op.name in _RULES and equation.programs:
            found = _RULES[op.name](self, equation, args)
            if found is not None:
                return found
        elif any(True for body in equation.programs if _has_checks(body)):
            raise errors.MissingRuleError(
                f"checkify cannot look into {op.name!r}",
                expected="checks outside of it",
                fix=f"checkify the function that is given to {op.name}, and return its error",
                where=equation.where,
            )
        results = trace.bind_attrs(op, args, attrs)
        self._automatic(equation, args, results)
        return results

    def _user_check(self, equation: Equation, args: list[Value]) -> tuple[()]:
        made: Check = equation.attrs["check"]
        if ErrorCategory(made.category) not in self.enabled:
            return ()  # JAX drops it too, for an outer checkify as well
        holds, payload = args[0], args[1:]
        rank = equation.attrs["num_batch"]
        if rank:
            # Of a batch, the last element that failed tells.
            size = holds.size
            flat_holds = lax.reshape(holds, (size,))
            last = _last_false(flat_holds)
            rows = [lax.reshape(x, (size, *x.shape[rank:])) for x in payload]
            payload = [lax.dynamic_index_in_dim(row, last, 0, keepdims=False) for row in rows]
            holds = lax.dynamic_index_in_dim(flat_holds, last, 0, keepdims=False)
        self.record(made, lax.bitwise_not(holds), payload, equation.where)
        return ()

    def _automatic(self, equation: Equation, args: Sequence[Value], results: Sequence[Value]) -> None:
        name = equation.op.name
        if ErrorCategory.DIVISION in self.enabled and name == "div":
            self.record(
                Check("division"), _any(lax.eq(args[1], families.zeros(args[1].type))), [], equation.where
            )
        if ErrorCategory.INDEX in self.enabled and name in check_places.PLACES:
            places, limits, axes = check_places.PLACES[name](equation, args)
            self._index_check(equation, args[0], places, limits, axes)
        if ErrorCategory.NAN in self.enabled and name not in check_places.KEEPS_NUMBERS:
            for result in results:
                if dtypes.is_inexact(result.dtype):
                    made = Check("nan", name)
                    self.record(made, _any(lax.ne(result, result)), [], equation.where)

    def _index_check(
        self, equation: Equation, operand: Value, places: Value, limits: np.ndarray, axes: Sequence[int]
    ) -> None:
        """`places` has a trailing dimension over `axes`; each must lie in 0 to the limit of its axis."""
        if places.size == 0:
            return
        bound = np.minimum(limits, np.iinfo(places.dtype).max).astype(places.dtype)
        upper = Literal(np.broadcast_to(bound, places.shape).copy(), weak=False)
        is_wrong = lax.bitwise_or(lax.lt(places, families.zeros(places.type)), lax.gt(places, upper))
        flat_wrong = lax.reshape(is_wrong, (places.size,))
        first = lax.argmax(lax.convert_element_type(flat_wrong, "int32"), 0, "int32")
        index = lax.dynamic_index_in_dim(lax.reshape(places, (places.size,)), first, 0, keepdims=False)
        which = lax.rem(first, number(len(axes)))
        numbers = [
            Literal(np.asarray(row, np.int32), weak=False) for row in (axes, [operand.shape[a] for a in axes])
        ]
        axis, size = (lax.dynamic_index_in_dim(row, which, 0, keepdims=False) for row in numbers)
        told = [lax.reshape(lax.convert_element_type(x, "int32"), (1,)) for x in (index, axis, size)]
        made = Check("index", equation.op.name, tuple(operand.shape))
        self.record(made, _any(is_wrong), [lax.concatenate(told, 0)], equation.where)


def _has_checks(program: Program) -> bool:
    return any(e.op is check_p or any(map(_has_checks, e.programs)) for e in program.equations)


def _shifted(code: Value, offset: int) -> Value:
    """A code in a larger table, where 0 stays 0."""
    if offset == 0:
        return code
    return lax.select(lax.ne(code, number(0)), lax.add(code, number(offset)), number(0))


def _any(x: Value) -> Value:
    """Whether an element is true, as a scalar."""
    return lax.reduce_max(x, tuple(range(x.ndim))) if x.size else Literal(np.asarray(False), weak=False)


def _last_false(holds: Value) -> Value:
    """Place of the last false element of a vector; its last place when there is none."""
    failed = lax.convert_element_type(lax.rev(lax.bitwise_not(holds), (0,)), "int32")
    return lax.sub(number(holds.size - 1), lax.argmax(failed, 0, "int32"))


# --- operations that hold programs ----------------------------------------------------------------

Rule = Callable[[Rewriter, Equation, list[Value]], Sequence[Value] | None]


def _call(rewriter: Rewriter, equation: Equation, args: list[Value]) -> Sequence[Value] | None:
    made = rewrite(equation.attrs["body"], rewriter.enabled)
    if not made.entries:
        return None
    found = trace.bind_attrs(equation.op, args, equation.attrs.replace(body=made.program))
    results, code, payload = made.split(found)
    rewriter.merge(made, code, payload)
    return results


def _custom(rewriter: Rewriter, equation: Equation, args: list[Value]) -> Sequence[Value] | None:
    """The call stays, with its derivative; its checks come from a copy of the body that has none."""
    made = rewrite(equation.attrs["body"], rewriter.enabled)
    if not made.entries:
        return None
    plain = equation.attrs.replace(body=check_operation.without_checks(equation.attrs["body"]))
    if equation.op in (custom_rules.custom_jvp_call_p, custom_rules.custom_vjp_call_p):
        plain = custom_rules.rewritten(plain, check_operation.unchecked, "unchecked")
    results = trace.bind_attrs(equation.op, args, plain)
    constants = [lax.stop_gradient(x) for x in args]
    found = trace.bind(primitive.by_name("call"), *constants, body=made.program, name=made.program.name)
    _, code, payload = made.split(found)
    rewriter.merge(made, code, payload)
    return results


def _carried(made: Checked) -> list[Value]:
    """What a loop carries before its first step: no failure."""
    return [number(0), *(families.zeros(t) for t in made.payload_types)]


def _scan(rewriter: Rewriter, equation: Equation, args: list[Value]) -> Sequence[Value] | None:
    attrs = equation.attrs
    made = rewrite(attrs["body"], rewriter.enabled)
    if not made.entries:
        return None
    first, second = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]
    state = _carried(made)
    types = list(attrs["body"].in_types)
    types[second:second] = [s.type for s in state]

    def step(*values: Value) -> Sequence[Value]:
        inner, old = [*values[:second], *values[second + len(state) :]], values[second : second + len(state)]
        found = trace.evaluate(made.program, inner)
        results, new = found[: made.num_results], found[made.num_results :]
        kept = _first(old[0], old, new)
        return [*results[: second - first], *kept, *results[second - first :]]

    body = trace.stage(step, types, name=attrs["body"].name).program
    changed = attrs.replace(body=body, num_carry=attrs["num_carry"] + len(state))
    found = trace.bind_attrs(equation.op, [*args[:second], *state, *args[second:]], changed)
    count = second - first
    _, code, payload = made.split(
        [*found[:count], *found[count + len(state) :], *found[count : count + len(state)]]
    )
    rewriter.merge(made, code, payload)
    return [*found[:count], *found[count + len(state) :]]


def _while(rewriter: Rewriter, equation: Equation, args: list[Value]) -> Sequence[Value] | None:
    attrs = equation.attrs
    condition = rewrite(attrs["cond"], rewriter.enabled)
    body = rewrite(attrs["body"], rewriter.enabled)
    if not condition.entries and not body.entries:
        return None
    num_cond, num_body = attrs["num_cond_consts"], attrs["num_body_consts"]
    cond_consts, body_consts, carry = (
        args[:num_cond],
        args[num_cond : num_cond + num_body],
        args[num_cond + num_body :],
    )
    if condition.entries:
        found = trace.evaluate(condition.program, [*cond_consts, *carry])
        rewriter.merge(condition, *condition.split(found)[1:])

    # A step runs the body, then the condition on what it made; both have their part of one table.
    def both(*values: Value) -> Sequence[Value]:
        account = Rewriter(rewriter.enabled)
        carry_ = values[num_cond + num_body :]
        results = account.run(attrs["body"], [*values[num_cond : num_cond + num_body], *carry_])
        account.run(attrs["cond"], [*values[:num_cond], *results])
        accounts.append(account)
        return [*results, account.code, *(x for row in account.payload for x in row)]

    accounts: list[Rewriter] = []
    in_types = [x.type for x in (*cond_consts, *body_consts, *carry)]
    program = trace.stage(both, in_types, name=attrs["body"].name).program
    widths = tuple(len(row) for row in accounts[0].payload)
    made = Checked(program, len(carry), tuple(accounts[0].entries), widths)
    state = _carried(made)

    def step(*values: Value) -> Sequence[Value]:
        inner, old = values[: -len(state)], values[-len(state) :]
        found = trace.evaluate(made.program, inner)
        return [*found[: len(carry)], *_first(old[0], old, found[len(carry) :])]

    def test(*values: Value) -> Sequence[Value]:
        return trace.evaluate(check_operation.without_checks(attrs["cond"]), values[: num_cond + len(carry)])

    state_types = [s.type for s in state]
    changed = attrs.replace(
        body=trace.stage(step, [*in_types, *state_types], name=program.name).program,
        cond=trace.stage(test, [*attrs["cond"].in_types, *state_types], name=attrs["cond"].name).program,
        num_body_consts=num_cond + num_body,
    )
    operands = [*cond_consts, *cond_consts, *body_consts, *carry, *state]
    results, code, payload = made.split(trace.bind_attrs(equation.op, operands, changed))
    rewriter.merge(made, code, payload)
    return results


def _cond(rewriter: Rewriter, equation: Equation, args: list[Value]) -> Sequence[Value] | None:
    branches = [rewrite(branch, rewriter.enabled) for branch in equation.attrs["branches"]]
    if not any(made.entries for made in branches):
        return None
    all_types = [t for made in branches for t in made.payload_types]

    def padded(number: int) -> Program:
        made = branches[number]
        before = sum(len(b.entries) for b in branches[:number])
        start = sum(len(b.payload_types) for b in branches[:number])

        def run(*values: Value) -> Sequence[Value]:
            found = trace.evaluate(made.program, values)
            payload = [families.zeros(t) for t in all_types]
            payload[start : start + len(made.payload_types)] = found[made.num_results + 1 :]
            return [*found[: made.num_results], _shifted(found[made.num_results], before), *payload]

        return trace.stage(run, made.program.in_types, name=made.program.name).program

    programs = tuple(padded(number) for number in range(len(branches)))
    union = Checked(
        programs[0],
        branches[0].num_results,
        tuple(entry for made in branches for entry in made.entries),
        tuple(width for made in branches for width in made.widths),
    )
    found = trace.bind_attrs(equation.op, args, equation.attrs.replace(branches=programs))
    results, code, payload = union.split(found)
    rewriter.merge(union, code, payload)
    return results


_RULES: Final[dict[str, Rule]] = {
    "call": _call,
    "checkpoint": _call,
    "cond": _cond,
    "custom_jvp_call": _custom,
    "custom_vjp_call": _custom,
    "scan": _scan,
    "while": _while,
}
