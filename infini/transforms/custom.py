"""Custom derivative rules: `custom_vjp` and `custom_jvp`, as in JAX."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from infini.core import dtypes, errors, host, trace, tree
from infini.core.value import Value
from infini.lax import calls, families
from infini.transforms import staging


class custom_vjp:  # noqa: N801  # JAX's name
    """Give a function its own VJP.

    Args:
        fun: function of arrays and pytrees.
        nondiff_argnums: positions of arguments that are not arrays; they come first in `bwd`.

    Use `defvjp(fwd, bwd)`: `fwd(*args)` returns `(output, residuals)`; `bwd(*nondiff, residuals, ct)`
    returns one cotangent per
    remaining argument, None for zero.
    """

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: Sequence[int] = ()) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.nondiff_argnums = tuple(nondiff_argnums)
        self._jitted = staging.jit(fun, static_argnums=self.nondiff_argnums)
        self.fwd: Callable[..., Any] | None = None
        self.bwd: Callable[..., Any] | None = None

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any], **_: Any) -> None:
        """Set the forward and the backward rule."""
        self.fwd, self.bwd = fwd, bwd

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self.fun, "__name__", "function")
        if self.fwd is None or self.bwd is None:
            raise errors.ValueMismatchError(
                f"no VJP is defined for {name}", fix="call defvjp(fwd, bwd) first"
            )
        args = _positional(self.fun, args, kwargs)
        nondiff = {n % len(args) for n in self.nondiff_argnums}
        values, traced = self._jitted._prepare(args, {})
        staged = traced.staged
        diff = tuple(a for n, a in enumerate(args) if n not in nondiff)
        static = tuple(args[n] for n in sorted(nondiff))
        _, in_tree = tree.flatten(diff)
        rules = _FlatRules(
            self, static, tuple(sorted(nondiff)), in_tree, traced.out_tree, len(staged.captures)
        )
        key = (id(self), static, in_tree, traced.out_tree, len(staged.captures))
        results = trace.bind(
            calls.custom_vjp_call_p,
            *staged.captures,
            *values,
            body=staged.program,
            forward=host.register(rules.forward, key=("fwd", *key)),
            backward=host.register(rules.backward, key=("bwd", *key)),
        )
        marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(traced.out_tree, marked)


class _FlatRules:
    """The user's forward and backward rule as functions of flat values. The residual structure is found
    by the forward rule.
    """

    def __init__(
        self,
        owner: custom_vjp,
        static: tuple[Any, ...],
        positions: tuple[int, ...],
        in_tree: tree.PyTreeDef,
        out_tree: tree.PyTreeDef,
        num_captures: int,
    ) -> None:
        self.owner, self.static, self.positions = owner, static, positions
        self.in_tree, self.out_tree, self.num_captures = in_tree, out_tree, num_captures
        self.residual_tree: tree.PyTreeDef | None = None
        self.types: list[Any] = []

    def forward(self, *flat: Value) -> tuple[list[Value], list[Value]]:
        args = list(tree.unflatten(self.in_tree, flat[self.num_captures :]))
        for position, item in zip(self.positions, self.static, strict=True):
            args.insert(position, item)
        assert self.owner.fwd is not None
        pair = self.owner.fwd(*args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise errors.TypeMismatchError(
                "the forward rule of a custom_vjp must return (output, residuals)", got=type(pair).__name__
            )
        out, out_tree = tree.flatten(pair[0])
        if out_tree != self.out_tree:
            raise errors.TypeMismatchError(
                "the forward rule of a custom_vjp must return the structure of the function",
                got=str(out_tree),
                expected=str(self.out_tree),
            )
        residuals, self.residual_tree = tree.flatten(pair[1])
        self.types = [v.type for v in flat[self.num_captures :]]
        return [trace.as_value(x) for x in out], [trace.as_value(r) for r in residuals]

    def backward(self, residuals: Sequence[Value], cts: Sequence[Value]) -> list[Value | None]:
        assert self.owner.bwd is not None and self.residual_tree is not None
        saved = tree.unflatten(self.residual_tree, residuals)
        found = self.owner.bwd(*self.static, saved, tree.unflatten(self.out_tree, cts))
        if not isinstance(found, (tuple, list)) or len(found) != self.in_tree.num_children:
            raise errors.TypeMismatchError(
                "the backward rule of a custom_vjp must return one cotangent per argument",
                got=f"{type(found).__name__} of {len(found) if isinstance(found, (tuple, list)) else 1}",
                expected=f"a tuple of {self.in_tree.num_children}",
            )
        leaves: list[Value | None] = []
        for ct, subtree in zip(found, self.in_tree.children(), strict=True):
            if ct is None:
                leaves += [None] * subtree.num_leaves
                continue
            ct_leaves, ct_tree = tree.flatten(ct)
            if ct_tree != subtree:
                raise errors.TypeMismatchError(
                    "the backward rule of a custom_vjp must return the structure of the arguments",
                    got=str(ct_tree),
                    expected=str(subtree),
                )
            leaves += [trace.as_value(x) for x in ct_leaves]
        for ct, type_ in zip(leaves, self.types, strict=True):
            if ct is not None and ct.shape != type_.shape and dtypes.is_inexact(type_.dtype):
                raise errors.TypeMismatchError(
                    "the backward rule of a custom_vjp returned a cotangent of another shape",
                    got=f"{ct.type}",
                    expected=f"{type_}",
                )
        return [None] * self.num_captures + leaves


def _positional(fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if not kwargs:
        return args

    bound = inspect.signature(fun).bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise errors.TypeMismatchError(
            "functions with custom rules take positional arguments only", got=str(list(bound.kwargs))
        )
    return bound.args


class custom_jvp:  # noqa: N801  # JAX's name
    """Give a function its own JVP.

    Args:
        fun: function of arrays and pytrees.
        nondiff_argnums: positions of arguments that are not arrays; they come first in the rule.

    Use `defjvp(rule)` where `rule(*nondiff, primals, tangents)` returns `(output, output_tangent)`, or
    `defjvps(*rules)`.
    """

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: Sequence[int] = ()) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.nondiff_argnums = tuple(nondiff_argnums)
        self._jitted = staging.jit(fun, static_argnums=self.nondiff_argnums)
        self.jvp: Callable[..., Any] | None = None

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def defjvp(self, jvp: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        """Set the rule and return it."""
        self.jvp = jvp
        return jvp

    def defjvps(self, *jvps: Callable[..., Any] | None) -> None:
        """Set one rule per argument, `rule(tangent, output, *primals)`; None means no contribution."""

        def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
            out = self(*primals)
            total = None
            for one, tangent in zip(jvps, tangents, strict=True):
                if one is not None:
                    term = one(tangent, out, *primals)
                    total = term if total is None else tree.map(lambda a, b: a + b, total, term)
            return out, tree.map(lambda x: families.zeros(x.type), out) if total is None else total

        self.jvp = rule

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self.fun, "__name__", "function")
        if self.jvp is None:
            raise errors.ValueMismatchError(f"no JVP is defined for {name}", fix="call defjvp(rule) first")
        args = _positional(self.fun, args, kwargs)
        nondiff = tuple(sorted({n % len(args) for n in self.nondiff_argnums}))
        values, traced = self._jitted._prepare(args, {})
        staged, out_tree = traced.staged, traced.out_tree
        _, in_tree = tree.flatten(tuple(a for n, a in enumerate(args) if n not in nondiff))
        static, skipped = tuple(args[n] for n in nondiff), len(staged.captures)

        def rule(primals: Sequence[Value], tangents: Sequence[Value]) -> tuple[list[Value], list[Value]]:
            assert self.jvp is not None
            pair = self.jvp(
                *static,
                tree.unflatten(in_tree, primals[skipped:]),
                tree.unflatten(in_tree, tangents[skipped:]),
            )
            if (
                not isinstance(pair, tuple)
                or len(pair) != 2
                or tree.structure(pair[0]) != tree.structure(pair[1])
            ):
                raise errors.TypeMismatchError(
                    "the rule of a custom_jvp must return (output, output_tangent) of one structure",
                    got=type(pair).__name__,
                )
            return [trace.as_value(x) for x in tree.leaves(pair[0])], [
                trace.as_value(x) for x in tree.leaves(pair[1])
            ]

        key = ("jvp", id(self), static, in_tree, out_tree, skipped)
        results = trace.bind(
            calls.custom_jvp_call_p,
            *staged.captures,
            *values,
            body=staged.program,
            rule=host.register(rule, key=key),
        )
        marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(out_tree, marked)
