"""Calls of functions with derivative rules of their own, on flat values: what interpreters do with them.

As long as nothing is staged the function or its rule is simply called, so both may look at values. Under
staging the function becomes the body of an operation that refers to the rule (`lax.custom_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from infini.core import host, primitive, trace
from infini.core.value import Value
from infini.lax import custom_marks, custom_rules, families, varying as varying_
from infini.lax.calls import Flags, MaybeValues, Values, nonzero
from infini.lax.custom_rules import Backward, Forward, Rule
from infini.transforms import linear
from infini.transforms.batch_tracing import Axis, Batching, BatchTracer
from infini.transforms.forward import JVP, JVPTracer


@dataclass(frozen=True, slots=True)
class CustomCall:
    """A flat function with a rule: `forward` for a custom VJP, `rule` for a custom JVP.

    `key` identifies the rule, so that programs traced again are equal; None when it is made for one call.
    """

    name: str
    function: Callable[..., Sequence[Value]]
    rule: Rule | None = None
    forward: Forward | None = None
    key: Hashable = None

    def __call__(self, args: Values) -> list[Value]:
        """Results under the current interpreter."""
        interpreter = trace.current()
        if isinstance(interpreter, trace.Eval):
            return list(self.function(*(trace.to_array(a) for a in args)))
        if isinstance(interpreter, JVP):
            return self._jvp(interpreter, args)
        if isinstance(interpreter, linear.Linearize):
            return self._linearize(interpreter, args)
        if isinstance(interpreter, linear.RuleStaging):
            return self._in_rule(interpreter, args)
        if isinstance(interpreter, Batching):
            return self._batch(interpreter, args)
        return self._stage(args)

    def _jvp(self, interpreter: JVP, args: Values) -> list[Value]:
        assert interpreter.parent is not None
        pairs = [interpreter.split(a) for a in args]
        primals, tangents = [p for p, _ in pairs], [t for _, t in pairs]
        with trace.running(interpreter.parent):
            if not any(nonzero(tangents)):
                return self(primals)
            if self.rule is None:
                raise custom_rules.refuse_forward_mode()
            outs, moved = self.rule(primals, tangents)
        return [r if t is None else JVPTracer(interpreter, r, t) for r, t in zip(outs, moved, strict=True)]

    def _linearize(self, interpreter: linear.Linearize, args: Values) -> list[Value]:
        pairs = [interpreter.split(a) for a in args]
        primals, tangents = [p for p, _ in pairs], [t for _, t in pairs]
        if not any(nonzero(tangents)):
            with trace.running(interpreter.parent):
                return self(primals)
        outs, moved = self._linear(interpreter, primals, tangents)
        return [
            r if t is None else linear.LinearizeTracer(interpreter, r, t)
            for r, t in zip(outs, moved, strict=True)
        ]

    def _linear(
        self, interpreter: linear.Linearize, primals: Values, tangents: MaybeValues
    ) -> tuple[Values, MaybeValues]:
        if self.rule is not None:
            with trace.running(interpreter.rules):
                return self.rule(primals, tangents)
        assert self.forward is not None
        with trace.running(interpreter.parent):
            outs, residuals, backward = self.forward(primals, nonzero(tangents))
            varying = trace.varying_of(primals)
        if varying is not None:
            backward = custom_marks.checked_backward(self.name, backward, varying)
        types = [r.type for r in outs]
        return outs, custom_rules.bind_linear(interpreter, backward, residuals, primals, tangents, types)

    def _in_rule(self, interpreter: linear.RuleStaging, args: Values) -> list[Value]:
        """Inside another rule: tangents among the arguments, so the call is linear in them."""
        flags = [interpreter.is_tangent(a) for a in args]
        with trace.running(interpreter.parent):
            if not any(flags):
                return self(args)
            primals = [families.zeros(a.type) if flag else a for a, flag in zip(args, flags, strict=True)]
        tangents = [a if flag else None for a, flag in zip(args, flags, strict=True)]
        outs, moved = self._linear(interpreter.owner, primals, tangents)
        return [r if t is None else t for r, t in zip(outs, moved, strict=True)]

    def _batch(self, interpreter: Batching, args: Values) -> list[Value]:
        pairs = [interpreter.split(a) for a in args]
        values, flags = [x for x, _ in pairs], tuple(b for _, b in pairs)
        with trace.running(interpreter.parent):
            if not any(flags) and interpreter.axis_name is None:
                return self(values)
            results = self.batched(interpreter.axis, flags)(values)
        return [BatchTracer(interpreter, r) for r in results]

    def batched(self, axis: Axis, flags: Flags) -> CustomCall:
        """The call for whole batches of the arguments marked in `flags`; every result is a batch."""

        def function(*xs: Value) -> Sequence[Value]:
            found, out_flags = axis.batch_function(self.function, xs, flags)
            return families.whole_batches(axis.size, found, out_flags)

        return CustomCall(
            self.name,
            function,
            None if self.rule is None else custom_rules.batched_rule(axis, self.rule, flags),
            None if self.forward is None else custom_rules.batched_forward(axis, self.forward, flags),
        )

    def _stage(self, args: Values) -> list[Value]:
        manual, varying = trace.current().manual, trace.varying_of(args)
        if manual is not None and self.rule is not None:
            args = varying_.marked(args, [trace.EQUAL.union(*map(trace.varying_axes, args))] * len(args))
            varying = trace.varying_of(args)
        staged = trace.stage(
            self.function,
            [a.type for a in args],
            weak=[a.weak for a in args],
            name=self.name,
            varying=varying,
        )
        count, axes = len(staged.captures), trace.axis_env()
        op: primitive.Primitive
        if self.rule is not None:
            op, rule_attr = custom_rules.custom_jvp_call_p, "rule"
            rule = self.rule
            if manual is not None and varying is not None:
                rule = custom_marks.marked_rule(rule, manual, varying)
            function: Callable[..., object] = _rule_after_captures(rule, count, axes)
        else:
            assert self.forward is not None
            op, rule_attr = custom_rules.custom_vjp_call_p, "forward"
            forward = self.forward
            if manual is not None and varying is not None:
                forward = custom_marks.marked_forward(self.name, forward, manual, varying)
            function = _forward_after_captures(forward, count, axes)
        function.__name__ = self.name
        key = None if self.key is None else (rule_attr, self.key, count, varying, axes)
        attrs = {rule_attr: host.register(function, key=key)}
        results = trace.bind(op, *staged.captures, *args, body=staged.program, **attrs)
        return [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]


# Rules run when the program is differentiated, with the named axes of the place where they were staged.
_Axes = tuple[tuple[str, int], ...]


def _rule_after_captures(rule: Rule, count: int, axes: _Axes) -> Rule:
    """The rule of a body whose first parameters are values that the function closes over."""

    def after(primals: Values, tangents: MaybeValues) -> tuple[Values, MaybeValues]:
        with trace.named_axes(*axes):
            return rule(primals[count:], tangents[count:])

    return after


def _forward_after_captures(run: Forward, count: int, axes: _Axes) -> Forward:
    def after(primals: Values, perturbed: Flags) -> tuple[Values, Values, Backward]:
        with trace.named_axes(*axes):
            outs, residuals, backward = run(primals[count:], perturbed[count:])

        def back(saved: Values, cts: MaybeValues) -> MaybeValues:
            with trace.named_axes(*axes):
                return [*[None] * count, *backward(saved, cts)]

        return outs, residuals, back

    return after
