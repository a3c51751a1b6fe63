"""`custom_gradient`: a function that returns its own gradient rule, as in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from infini.core import dtypes, errors, trace, tree
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import Flags, MaybeValues, Values, nonzero
from infini.transforms import flat
from infini.transforms.custom_arguments import cotangents_by_leaf, name_of
from infini.transforms.custom_calls import CustomCall


def custom_gradient(fun: Callable[..., Any]) -> Callable[..., Any]:  # Any: functions of pytrees
    """Give a function its own gradient, TensorFlow's way, as `jax.custom_gradient`.

    Args:
        fun: function that returns `(output, rule)`; `rule(ct)` returns one cotangent per argument (or the
            only one), and may use values of the forward pass.

    Returns:
        The function that returns the output.

    Example:
        >>> import infini as inf
        >>> inf.grad(inf.custom_gradient(lambda x: (x * x, lambda ct: 10 * ct * x)))(3.0)
        Array(30., dtype=float32, weak_type=True)
    """

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, in_tree = tree.flatten(args)
        rule = _GradientRule(fun, in_tree, kwargs)
        operands = flat.values(leaves, f"arguments of {name_of(fun)}")
        results = CustomCall(name_of(fun), rule.function, forward=rule.forward)(operands)
        assert rule.out_tree is not None
        return tree.unflatten(rule.out_tree, flat.finished(results))

    return run


class _GradientRule:
    """A function for `custom_gradient` on flat values."""

    def __init__(self, fun: Callable[..., Any], in_tree: tree.PyTreeDef, kwargs: dict[str, Any]) -> None:
        self.fun, self.in_tree, self.kwargs = fun, in_tree, kwargs
        self.out_tree: tree.PyTreeDef | None = None

    def _run(self, leaves: Values) -> tuple[list[Value], Callable[..., Any]]:
        pair = self.fun(*tree.unflatten(self.in_tree, leaves), **self.kwargs)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise errors.TypeMismatchError(
                f"{name_of(self.fun)} must return (output, rule) for custom_gradient", got=type(pair).__name__
            )
        outs, self.out_tree = tree.flatten(pair[0])
        return flat.values(outs, f"results of {name_of(self.fun)}"), pair[1]

    def function(self, *leaves: Value) -> list[Value]:
        return self._run(leaves)[0]

    def forward(self, primals: Values, perturbed: Flags) -> tuple[Values, Values, Any]:
        results, rule = self._run(primals)
        out_tree, in_tree, count = self.out_tree, self.in_tree, len(primals)
        assert out_tree is not None
        moving = [dtypes.is_inexact(r.dtype) for r in results]
        found_flags: list[Flags] = []

        def flat_rule(*cts: Value) -> list[Value]:
            given = iter(cts)
            full = [
                next(given) if m else flat.float0_zeros(r.shape) for m, r in zip(moving, results, strict=True)
            ]
            found = rule(tree.unflatten(out_tree, full))
            single = in_tree.num_children == 1 and not (isinstance(found, tuple) and len(found) == 1)
            leaves = cotangents_by_leaf((found,) if single else found, in_tree, name_of(self.fun))
            kept = [None if flat.is_float0(ct) else ct for ct in leaves]
            found_flags.append(nonzero(kept))
            return [trace.as_value(ct) for ct in kept if ct is not None]

        # Staged, so that the values it uses are known: they are the residuals.
        staged = trace.stage(flat_rule, [r.type for r, m in zip(results, moving, strict=True) if m])
        program, out_types = staged.program, [r.type for r in results]

        def backward(residuals: Values, cts: MaybeValues) -> MaybeValues:
            pairs = [(ct, t) for ct, t, m in zip(cts, out_types, moving, strict=True) if m]
            filled = [families.zeros(t) if ct is None else ct for ct, t in pairs]
            found = iter(trace.evaluate(program, [*residuals, *filled]))
            leaves = [next(found) if flag else None for flag in found_flags[0]]
            assert len(leaves) == count
            return leaves

        return results, list(staged.captures), backward
