"""`linear_call`: a linear function with a transpose of its own, as in `jax.custom_derivatives`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.families import is_linear


def _type(*types: ArrayType, body: Program, transposed: Program, num_residuals: int) -> tuple[ArrayType, ...]:
    check_operands("linear_call", body, types)
    return body.out_types


def _reference(evaluate: Any, *arrays: np.ndarray, body: Program, **_: object) -> Any:
    return evaluate(body, arrays)


def _decompose(*operands: Value, body: Program, **_: object) -> Sequence[Value]:
    return trace.evaluate(body, operands)


def _linear_tangents(primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> list[Value] | None:
    """Tangents of the linear operands; None when all are zero.

    Raises:
        MissingRuleError: a residual has a tangent.
    """
    count = attrs["num_residuals"]
    if any(nonzero(tangents[:count])):
        raise errors.MissingRuleError(
            "linear_call has no derivative with respect to its residual arguments",
            fix="use custom_vjp or custom_jvp, whose rules see all arguments",
        )
    if not any(nonzero(tangents)):
        return None
    return families.filled(tangents[count:], [p.type for p in primals[count:]])


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    results = trace.bind_attrs(linear_call_p, primals, attrs)
    given = _linear_tangents(primals, tangents, attrs)
    if given is None:
        return results, (None,) * len(results)
    return results, trace.bind_attrs(linear_call_p, [*primals[: attrs["num_residuals"]], *given], attrs)


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    results = ctx.bind_primal(linear_call_p, *primals, **attrs)
    with trace.running(ctx.linear):
        given = _linear_tangents(primals, tangents, attrs)
    if given is None:
        return results, (None,) * len(results)
    return results, ctx.bind_linear(linear_call_p, *primals[: attrs["num_residuals"]], *given, **attrs)


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    count = attrs["num_residuals"]
    full = families.filled(cts, attrs["body"].out_types)
    turned = attrs.replace(body=attrs["transposed"], transposed=attrs["body"])
    found = trace.bind_attrs(linear_call_p, [*args[:count], *full], turned)
    flags = tuple(is_linear(a) for a in args[count:])
    kept = [ct for ct, flag in zip(found, flags, strict=True) if flag]
    return (None,) * count + merge(flags, kept)


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    count = attrs["num_residuals"]
    residual_flags = batched[:count]
    num_in, num_out = len(args) - count, len(attrs["body"].results)
    body, _ = ctx.batch_program(attrs["body"], (*residual_flags, *(True,) * num_in), force=True)
    transposed, _ = ctx.batch_program(attrs["transposed"], (*residual_flags, *(True,) * num_out), force=True)
    operands = [*args[:count], *families.whole_batches(ctx.size, args[count:], batched[count:])]
    found = trace.bind_attrs(linear_call_p, operands, attrs.replace(body=body, transposed=transposed))
    return found, (True,) * num_out


linear_call_p: Primitive = primitive.register(
    Primitive(
        "linear_call",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.DECOMPOSE: _decompose,
            primitive.JVP: _jvp,
            primitive.LINEARIZE: _linearize,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)


def linear_call(
    fun: Callable[[Any, Any], Any],
    fun_transpose: Callable[[Any, Any], Any],
    residual_args: Any,
    linear_args: Any,
) -> Any:  # Any: pytrees
    """Call a linear function whose transpose is given, as `jax.custom_derivatives.linear_call`.

    Args:
        fun: `fun(residual_args, linear_args)`, linear in its second argument.
        fun_transpose: `fun_transpose(residual_args, cotangent)`, the transpose of `fun`: from a tree like the
            result to a tree like `linear_args`.
        residual_args: pytree of arrays; derivatives with respect to them are an error.
        linear_args: pytree of arrays.

    Returns:
        What `fun` returns.

    Raises:
        TypeMismatchError: `fun_transpose` returns another structure or other types than `linear_args`.

    Example:
        >>> import infini as inf
        >>> from infini.custom_derivatives import linear_call
        >>> double = lambda x: linear_call(lambda r, x: r * x, lambda r, ct: 10 * r * ct, 2.0, x)
        >>> inf.grad(double)(3.0)
        Array(20., dtype=float32, weak_type=True)
    """
    residuals, residual_tree = tree.flatten(residual_args)
    operands, in_tree = tree.flatten(linear_args)
    values = [trace.as_value(x) for x in (*residuals, *operands)]
    count = len(residuals)
    out_trees: list[tree.PyTreeDef] = []

    def forward(*leaves: Value) -> Sequence[Any]:
        given = (tree.unflatten(residual_tree, leaves[:count]), tree.unflatten(in_tree, leaves[count:]))
        found, out_tree = tree.flatten(fun(*given))
        out_trees.append(out_tree)
        return found

    types, weak = [v.type for v in values], [v.weak for v in values]
    staged = trace.stage(forward, types, weak=weak, name=getattr(fun, "__name__", "linear"))
    out_tree = out_trees[0]

    def backward(*leaves: Value) -> Sequence[Any]:
        given = (tree.unflatten(residual_tree, leaves[:count]), tree.unflatten(out_tree, leaves[count:]))
        found, found_tree = tree.flatten(fun_transpose(*given))
        if found_tree != in_tree:
            raise errors.TypeMismatchError(
                "fun_transpose must return a tree of the structure of linear_args",
                got=str(found_tree),
                expected=str(in_tree),
            )
        return found

    back_types = [*types[:count], *staged.program.out_types]
    transposed = trace.stage(backward, back_types, name=getattr(fun_transpose, "__name__", "transposed"))
    if transposed.program.out_types != tuple(types[count:]):
        raise errors.TypeMismatchError(
            "fun_transpose must return the types of linear_args",
            got=str(transposed.program.out_types),
            expected=str(tuple(types[count:])),
        )
    captures = [*staged.captures, *transposed.captures]
    found = trace.bind(
        linear_call_p,
        *captures,
        *values,
        body=_after(staged.program, len(staged.captures), transposed.captures, 0),
        transposed=_after(transposed.program, len(transposed.captures), staged.captures, 1),
        num_residuals=len(captures) + count,
    )
    marked = [r.with_weak(flag) for r, flag in zip(found, staged.weak, strict=True)]
    return tree.unflatten(out_tree, marked)


def _after(program: Program, num_own: int, others: Sequence[Value], position: int) -> Program:
    """A program that takes what the other one captured as well, after its own captures or before them."""
    unused = tuple(ir.Var(x.type) for x in others)
    own, rest = program.params[:num_own], program.params[num_own:]
    return program.replace(params=(*own, *unused, *rest) if position == 0 else (*unused, *own, *rest))
