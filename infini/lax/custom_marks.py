"""Rules of `custom_jvp` and `custom_vjp` inside `shard_map(check_vma=True)`: they are traced with the flags
of the call, so that what they hold is marked (`lax.varying`) however late they run, and a cotangent that
varies along more axes than its primal is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from infini.core import errors, trace
from infini.core.trace import Manual, Varying
from infini.core.value import Value
from infini.lax.calls import Flags, MaybeValues, Values, merge, nonzero
from infini.lax.custom_rules import Backward, Forward, Rule


def check_cotangents(name: str, cts: MaybeValues, axes: Sequence[Varying]) -> None:
    """Refuse cotangents that vary along more axes than the primals.

    Raises:
        ValueMismatchError: one of them does.
    """
    for number, (ct, wanted) in enumerate(zip(cts, axes, strict=True)):
        extra = trace.EQUAL if ct is None else trace.varying_axes(ct) - wanted
        if extra:
            over = ", ".join(sorted(extra))
            raise errors.ValueMismatchError(
                f"the backward rule of {name} gives a cotangent that differs between devices along {over}, "
                "for an argument that is equal on them",
                got=f"cotangent {number}",
                fix=f"add it up with lax.psum(..., {tuple(sorted(extra))}) in the rule",
            )


def checked_backward(name: str, backward: Backward, axes: Sequence[Varying]) -> Backward:
    """A backward rule whose cotangents are checked; it runs where values say what varies."""

    def run(residuals: Values, cts: MaybeValues) -> MaybeValues:
        found = backward(residuals, cts)
        if trace.current().manual is not None:
            check_cotangents(name, found, axes)
        return found

    return run


def marked_rule(rule: Rule, manual: Manual, axes: Sequence[Varying]) -> Rule:
    """A rule for tangents, of arguments that vary along these axes, with all marks."""

    def run(primals: Values, tangents: MaybeValues) -> tuple[Values, MaybeValues]:
        given, found = nonzero(tangents), list[tuple[int, Flags]]()

        def flat(*inner: Value) -> Values:
            outs, moved = rule(inner[: len(primals)], merge(given, inner[len(primals) :]))
            found.append((len(outs), nonzero(moved)))
            return [*outs, *(t for t in moved if t is not None)]

        values = [*primals, *(t for t in tangents if t is not None)]
        of_tangents = [v for v, flag in zip(axes, given, strict=True) if flag]
        staged = _staged(flat, values, manual, [*axes, *of_tangents])
        results = trace.evaluate(staged.program, [*staged.captures, *values])
        count, flags = found[0]
        return results[:count], merge(flags, results[count:])

    return run


def marked_forward(name: str, forward: Forward, manual: Manual, axes: Sequence[Varying]) -> Forward:
    """A forward rule for arguments that vary along these axes, and its backward rule, with all marks."""

    def run(primals: Values, perturbed: Flags) -> tuple[Values, Values, Backward]:
        found: list[tuple[int, Backward]] = []

        def flat(*inner: Value) -> Values:
            outs, residuals, backward = forward(inner, perturbed)
            found.append((len(outs), backward))
            return [*outs, *residuals]

        staged = _staged(flat, primals, manual, axes)
        values = trace.evaluate(staged.program, [*staged.captures, *primals])
        count, backward = found[0]
        return values[:count], values[count:], _marked_backward(name, backward, manual, staged, count, axes)

    return run


def _staged(flat: object, values: Values, manual: Manual, axes: Sequence[Varying]) -> trace.Staged:
    assert callable(flat)
    return trace.stage(
        flat, [x.type for x in values], weak=[x.weak for x in values], varying=axes, manual=manual
    )


def _marked_backward(
    name: str,
    backward: Backward,
    manual: Manual,
    forward: trace.Staged,
    count: int,
    axes: Sequence[Varying],
) -> Backward:
    of_outs, of_residuals = forward.varying[:count], forward.varying[count:]

    def run(residuals: Values, cts: MaybeValues) -> MaybeValues:
        given, flags = nonzero(cts), list[Flags]()

        def flat(*inner: Value) -> Values:
            found = backward(inner[: len(residuals)], merge(given, inner[len(residuals) :]))
            check_cotangents(name, found, axes)
            flags.append(nonzero(found))
            return [ct for ct in found if ct is not None]

        values = [*residuals, *(ct for ct in cts if ct is not None)]
        of_cts = [v for v, flag in zip(of_outs, given, strict=True) if flag]
        staged = _staged(flat, values, manual, [*of_residuals, *of_cts])
        return merge(flags[0], trace.evaluate(staged.program, [*staged.captures, *values]))

    return run
