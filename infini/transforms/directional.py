"""Derivatives in a direction and linear functions: `jvp`, `linearize` and `linear_transpose`, as in JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace, tree
from infini.core.ir import ArrayType
from infini.core.tree import Partial
from infini.core.value import Value
from infini.lax.families import LinearInput
from infini.transforms import flat, forward, linear
from infini.transforms.pullback import (
    Pullback,
    linearized,
    no_reduce_axes,
    or_zeros,
    primal_of,
    result_tangent,
    tangent,
)

# --- jvp ------------------------------------------------------------------------------------------


def jvp(
    fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False
) -> Any:  # Any: pytrees
    """Result of a function and its derivative in one direction, as `jax.jvp`.

    Args:
        fun: function of arrays and pytrees.
        primals: its arguments, a tuple or list.
        tangents: directions, of the structure, shapes and dtypes of the primals; float0 for integers.
        has_aux: whether `fun` returns `(output, aux)`.

    Returns:
        `(output, output_tangent)`, and `aux` when `has_aux`.

    Raises:
        TypeMismatchError: primals and tangents do not match in structure or dtype.
        ValueMismatchError: they do not match in shape.
    """
    for argument, label in ((primals, "primals"), (tangents, "tangents")):
        if not isinstance(argument, (tuple, list)):
            raise errors.TypeMismatchError(
                f"{label} given to jvp must be a tuple or a list", got=type(argument).__name__
            )
    leaves, in_tree = tree.flatten((tuple(primals), {}))
    moved, moved_tree = tree.flatten((tuple(tangents), {}))
    if in_tree != moved_tree:
        raise errors.TypeMismatchError(
            "primals and tangents given to jvp must have one structure", got=f"{in_tree}, {moved_tree}"
        )
    operands = flat.values(leaves, "primals of jvp")
    directions = [tangent(t, p.type, "jvp") for t, p in zip(moved, operands, strict=True)]
    f = flat.FlatFunction(fun, in_tree, has_aux)
    interpreter = forward.JVP(trace.current(), f.__name__)
    boxed = [
        p if t is None else forward.JVPTracer(interpreter, p, t)
        for p, t in zip(operands, directions, strict=True)
    ]
    with trace.running(interpreter):
        results = f(*boxed)
    pairs = [interpreter.split(r) for r in results]
    assert f.out_tree is not None
    out = flat.finished([p for p, _ in pairs])
    moved_out = flat.finished([result_tangent(t, p.type, p.weak) for p, t in pairs])
    interpreter.is_closed = True
    both = tuple(tree.unflatten(f.out_tree, f.out_holes.fill(x)) for x in (out, moved_out))
    if not has_aux:
        return both
    return (*both, f.aux_value(lambda x: primal_of(interpreter.split(x)[0])))


# --- linearize and linear_transpose ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Linear:
    """What a linearized function does, without its residuals."""

    part: Pullback
    in_tree: tree.PyTreeDef
    out_tree: tree.PyTreeDef
    out_holes: flat.Holes

    def __call__(self, residuals: Sequence[Value], *tangents: Any) -> Any:
        moved, moved_tree = tree.flatten(tangents)
        if moved_tree != self.in_tree:
            raise errors.TypeMismatchError(
                "tangents given to a linearized function must have the structure of the primals",
                got=str(moved_tree),
                expected=str(self.in_tree),
            )
        given = [
            tangent(t, type_, "a linearized function")
            for t, type_ in zip(moved, self.part.in_types, strict=True)
        ]
        found = iter(trace.evaluate(self.part.program, [*residuals, *(t for t in given if t is not None)]))
        every = [
            result_tangent(next(found) if flag else None, t)
            for t, flag in zip(self.part.out_types, self.part.out_nonzero, strict=True)
        ]
        return tree.unflatten(self.out_tree, self.out_holes.fill(flat.finished(every)))


def linearize(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:  # Any: pytrees
    """Result of a function and its linear approximation there, as `jax.linearize`.

    Args:
        fun: function of arrays and pytrees.
        *primals: its arguments.
        has_aux: whether `fun` returns `(output, aux)`.

    Returns:
        `(output, f_jvp)`, and `aux` when `has_aux`; `f_jvp(*tangents)` gives the tangent of the output. It
        is a pytree of the values it keeps.

    Raises:
        TypeMismatchError: (from `f_jvp`) tangents do not match the primals.
    """
    leaves, in_tree = tree.flatten((primals, {}))
    operands = flat.values(leaves, "arguments of linearize")
    f = flat.FlatFunction(fun, in_tree, has_aux)
    results, part, residuals = linearized(f, operands)
    assert f.out_tree is not None
    rule = _Linear(part, tree.structure(primals), f.out_tree, f.out_holes)
    f_jvp = Partial(rule, flat.finished(residuals))
    output = tree.unflatten(f.out_tree, f.out_holes.fill(flat.finished(results)))
    return (output, f_jvp, f.aux_value(primal_of)) if has_aux else (output, f_jvp)


def linear_transpose(
    fun: Callable[..., Any], *primals: Any, reduce_axes: Sequence[Any] = ()
) -> Callable[[Any], tuple[Any, ...]]:  # Any: pytrees
    """Transpose of a function that is linear, as `jax.linear_transpose`.

    Args:
        fun: linear function of arrays and pytrees.
        *primals: arrays, or anything with a shape and a dtype, in place of its arguments.
        reduce_axes: must be empty, as in JAX today.

    Returns:
        Function of a cotangent of the output, which gives one cotangent per argument.

    Raises:
        NotLinearError: (from the transpose) `fun` is not linear; the message names the operation.
        TypeMismatchError: (from the transpose) the cotangent does not match the output.
    """
    no_reduce_axes(reduce_axes)
    leaves, in_tree = tree.flatten((primals, {}))
    types = [_described(x) for x in leaves]
    f = flat.FlatFunction(fun, in_tree)
    staged = trace.stage(f, types)
    out_tree, count = f.out_tree, len(staged.captures)
    assert out_tree is not None
    arg_tree, out_types = tree.structure(primals), staged.program.out_types

    def transposed(cotangent: Any) -> tuple[Any, ...]:
        cts, ct_tree = tree.flatten(cotangent)
        if ct_tree != out_tree:
            raise errors.TypeMismatchError(
                "the cotangent given to a transposed function must have the structure of the output",
                got=str(ct_tree),
                expected=str(out_tree),
            )
        given = flat.values(cts, "cotangents")
        for ct, type_ in zip(given, out_types, strict=True):
            if ct.type != type_:
                raise errors.TypeMismatchError(
                    "the cotangent given to a transposed function must have the type of the output",
                    got=str(ct.type),
                    expected=str(type_),
                )
        args: list[Any] = [*staged.captures, *(LinearInput(t) for t in types)]
        found = linear.backward(staged.program, args, given)[count:]
        all_weak = all(ct.weak for ct in given)
        filled = [or_zeros(ct, t).with_weak(all_weak) for t, ct in zip(types, found, strict=True)]
        return tuple(tree.unflatten(arg_tree, flat.finished(filled)))

    return transposed


def _described(x: Any) -> ArrayType:  # Any: an array, a number, or anything with a shape and a dtype
    if isinstance(x, Value):
        return x.type
    if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, (np.ndarray, np.generic)):
        return ArrayType(tuple(x.shape), dtypes.canonical(x.dtype))
    return flat.values([x], "arguments of linear_transpose")[0].type
