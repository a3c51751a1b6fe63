"""Functions with a batching rule of their own: `custom_vmap` and `sequential_vmap`, as in
`jax.custom_batching`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from infini.core import errors, host, ir, primitive, trace, tree
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import (
    Context,
    Flags,
    MaybeValues,
    Values,
    linearize_call,
    merge,
    nonzero,
    reference_body,
    type_body,
)
from infini.transforms import batching, flat, forward

# Results of a flat function over a batch, and which of them are batches.
Rule = Callable[[int, Flags, Values], tuple[Values, Flags]]


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    rule: Rule = host.lookup(attrs["rule"])
    return rule(ctx.size, batched, args)


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    given = [t for t in tangents if t is not None]
    count, flags = len(attrs["body"].results), nonzero(tangents)
    jvp, out_flags = forward.jvp_program(attrs["body"], flags)
    rule = _jvp_of_rule(host.lookup(attrs["rule"]), flags, out_flags)
    found = trace.bind(
        custom_vmap_call_p,
        *primals,
        *given,
        body=jvp,
        rule=host.register(rule, key=("jvp", attrs["rule"], flags)),
    )
    return found[:count], merge(out_flags, found[count:])


def _jvp_of_rule(rule: Rule, nonzero_flags: Flags, out_flags: Flags) -> Rule:
    """The batching rule of a function that takes tangents too: the derivative of its rule."""

    def run(size: int, batched: Flags, args: Values) -> tuple[Values, Flags]:
        count = len(nonzero_flags)
        moved_flags = merge(nonzero_flags, batched[count:], absent=False)
        both = tuple(p or t for p, t in zip(batched[:count], moved_flags, strict=True))
        primals = _repeated(size, args[:count], batched[:count], both)
        wanted = tuple(flag for flag, is_moving in zip(both, nonzero_flags, strict=True) if is_moving)
        moving = _repeated(size, args[count:], batched[count:], wanted)
        found: list[Flags] = []

        def of_primals(*xs: Value) -> Values:
            outs, out_batched = rule(size, both, xs)
            found.append(out_batched)
            return outs

        interpreter = forward.JVP(trace.current())
        given = iter(moving)
        boxed = [
            forward.JVPTracer(interpreter, p, next(given)) if flag else p
            for p, flag in zip(primals, nonzero_flags, strict=True)
        ]
        with trace.running(interpreter):
            outs = of_primals(*boxed)
        pairs = [interpreter.split(r) for r in outs]
        interpreter.is_closed = True
        kept_pairs = [pair for pair, flag in zip(pairs, out_flags, strict=True) if flag]
        moved = families.filled([t for _, t in kept_pairs], [p.type for p, _ in kept_pairs])
        out_batched = found[0]
        kept = tuple(b for b, flag in zip(out_batched, out_flags, strict=True) if flag)
        return [*(p for p, _ in pairs), *moved], (*out_batched, *kept)

    return run


def _repeated(size: int, values: Values, are: Flags, should_be: Flags) -> list[Value]:
    return [
        families.broadcast_to(x, (size, *x.shape)) if wish and not flag else x
        for x, flag, wish in zip(values, are, should_be, strict=True)
    ]


custom_vmap_call_p: Primitive = primitive.register(
    Primitive(
        "custom_vmap_call",
        None,
        {
            primitive.TYPE: type_body,
            primitive.REFERENCE: reference_body,
            primitive.DECOMPOSE: lambda *xs, body, rule: trace.evaluate(body, xs),
            primitive.JVP: _jvp,
            # Reverse mode is that of the function itself.
            primitive.LINEARIZE: linearize_call,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)


class custom_vmap:  # noqa: N801  # JAX's name
    """Give a function its own rule for `vmap`.

    Args:
        fun: function of arrays and pytrees, by position.

    Use `def_vmap(rule)` where `rule(axis_size, in_batched, *args)` returns `(output, out_batched)`:
    `in_batched` holds one tree of booleans per argument, batches have the mapped axis in front, and
    `out_batched` is a tree of booleans like the output.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> @inf.custom_batching.custom_vmap
        ... def f(x):
        ...     return x * 2
        >>> @f.def_vmap
        ... def rule(axis_size, in_batched, x):
        ...     return x * 20, in_batched[0]
        >>> inf.vmap(f)(inp.ones(2))
        Array([20., 20.], dtype=float32)
    """

    def __init__(self, fun: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.rule: Callable[..., Any] | None = None

    def def_vmap(self, vmap_rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule and return it."""
        self.rule = vmap_rule
        return vmap_rule

    def __call__(self, *args: Any) -> Any:
        name = getattr(self.fun, "__name__", type(self.fun).__name__)
        if self.rule is None:
            raise errors.MissingDerivativeError(
                f"no batching rule is defined for {name}, which is a custom_vmap function",
                fix="call def_vmap(rule) first",
            )
        leaves, in_tree = tree.flatten((args, {}))
        values = flat.values(leaves, f"arguments of {name}")
        if trace.is_eager():
            return flat.to_results(self.fun(*args))
        f = flat.FlatFunction(self.fun, in_tree)
        staged = trace.stage(f, [v.type for v in values], weak=[v.weak for v in values], name=name)
        assert f.out_tree is not None
        arg_tree, count = tree.structure(args), len(staged.captures)
        rule = _flat_rule(self.rule, arg_tree, f.out_tree, count, name)
        results = trace.bind(
            custom_vmap_call_p,
            *staged.captures,
            *values,
            body=staged.program,
            rule=host.register(rule, key=("vmap", self, self.rule, arg_tree, f.out_tree, count)),
        )
        marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(f.out_tree, marked)


def _flat_rule(
    rule: Callable[..., Any], in_tree: tree.PyTreeDef, out_tree: tree.PyTreeDef, count: int, name: str
) -> Rule:
    def run(size: int, batched: Flags, args: Values) -> tuple[Values, Flags]:
        if any(batched[:count]):
            raise errors.MissingRuleError(
                f"{name}, a custom_vmap function, closes over a value that is mapped",
                fix="pass it as an argument",
            )
        in_batched = list(tree.unflatten(in_tree, batched[count:]))
        pair = rule(size, in_batched, *tree.unflatten(in_tree, args[count:]))
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise errors.TypeMismatchError(
                f"the batching rule of {name} must return (output, out_batched)", got=type(pair).__name__
            )
        found, found_tree = tree.flatten(pair[0])
        flags, flag_tree = tree.flatten(pair[1])
        if found_tree != out_tree or flag_tree != out_tree:
            raise errors.ValueMismatchError(
                f"the batching rule of {name} must return two trees of the structure of its output",
                got=f"{found_tree} and {flag_tree}",
                expected=str(out_tree),
            )
        return flat.values(found, f"outputs of the batching rule of {name}"), tuple(map(bool, flags))

    return run


def sequential_vmap(fun: Callable[..., Any]) -> custom_vmap:
    """A function whose `vmap` is a loop, one element after another, as `jax.custom_batching.sequential_vmap`.

    Args:
        fun: function of arrays and pytrees, by position.
    """
    wrapped = custom_vmap(fun)

    def rule(axis_size: int, in_batched: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        leaves, treedef = tree.flatten(args)
        flags = tree.leaves(tuple(in_batched))
        mapped = [x for x, b in zip(leaves, flags, strict=True) if b]

        def one(rows: Sequence[Any]) -> Any:
            fixed = [x for x, b in zip(leaves, flags, strict=True) if not b]
            given, rest = iter(rows), iter(fixed)
            return fun(*tree.unflatten(treedef, [next(given) if b else next(rest) for b in flags]))

        out = batching.map(one, mapped)
        return out, tree.map(lambda _: True, out)

    wrapped.def_vmap(rule)
    return wrapped
