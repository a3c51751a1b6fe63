"""Reverse mode, with JAX's names, arguments and errors: `vjp`, `grad`, `value_and_grad`, `fwd_and_bwd`.

Integers and booleans have tangents of dtype float0, NumPy arrays that hold nothing. The functions that `vjp`
and `linearize` return are pytrees of their residuals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace, tree
from infini.core.ir import ArrayType
from infini.core.tree import Partial
from infini.core.value import Literal, Value
from infini.transforms import flat
from infini.transforms.directional import (
    jvp as jvp,
    linear_transpose as linear_transpose,
    linearize as linearize,
)
from infini.transforms.flat import Chosen
from infini.transforms.pullback import Pullback, linearized, no_reduce_axes, primal_of, result_tangent

Flags = tuple[bool, ...]


# --- vjp ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _VJP:
    """What a vjp function does, without its residuals."""

    pullback: Pullback
    in_weak: Flags
    in_tree: tree.PyTreeDef
    out_tree: tree.PyTreeDef
    out_holes: flat.Holes

    def __call__(self, residuals: Sequence[Value], cotangent: Any) -> Any:
        cts, ct_tree = tree.flatten(cotangent)
        if ct_tree != self.out_tree:
            raise errors.ValueMismatchError(
                "the cotangent given to a vjp function must have the structure of the output",
                got=str(ct_tree),
                expected=str(self.out_tree),
            )
        given = [ct for i, ct in enumerate(cts) if i not in dict(self.out_holes.shapes)]
        checked = [_cotangent(ct, t) for ct, t in zip(given, self.pullback.out_types, strict=True)]
        found = self.pullback(residuals, checked)
        all_weak = all(ct.weak for ct in checked if ct is not None)
        leaves = [
            result_tangent(
                ct
                if ct is None
                else ct.with_weak(weak and all_weak and not _through_parts(t, self.pullback.out_types)),
                t,
                weak,
            )
            for ct, t, weak in zip(found, self.pullback.in_types, self.in_weak, strict=True)
        ]
        return tree.unflatten(self.in_tree, flat.finished(leaves))


def _through_parts(in_type: ArrayType, out_types: Sequence[ArrayType]) -> bool:
    """Whether a derivative by complex numbers is made of real ones: the zero of its other part is not
    weak."""
    return in_type.dtype in dtypes.COMPLEX and not any(t.dtype in dtypes.COMPLEX for t in out_types)


def _cotangent(ct: Any, type_: ArrayType) -> Value | None:  # Any: a leaf
    """A cotangent as a value; None for float0."""
    expected = ArrayType(type_.shape, flat.tangent_dtype(type_.dtype))
    if flat.is_float0(ct):
        found: Any = ArrayType(ct.shape, ct.dtype)
        if found != expected:
            raise _wrong_cotangent(f"float0{list(ct.shape)}", type_)
        return None
    value = trace.as_value(ct)
    if value.type != expected:
        raise _wrong_cotangent(str(value.type), type_)
    return value


def _wrong_cotangent(found: str, type_: ArrayType) -> errors.ValueMismatchError:
    is_integer = not dtypes.is_inexact(type_.dtype)
    return errors.ValueMismatchError(
        "the cotangent given to a vjp function must have the type of the output",
        got=found,
        expected=f"float0{list(type_.shape)}, as the output is {type_}" if is_integer else str(type_),
        fix="pass np.zeros(shape, infini.float0) for outputs that are integers or booleans"
        if is_integer
        else "convert it with .astype(...)",
    )


def vjp(
    fun: Callable[..., Any], *primals: Any, has_aux: bool = False, reduce_axes: Sequence[Any] = ()
) -> Any:  # Any: pytrees
    """Result of a function and the function that pulls cotangents back, as `jax.vjp`.

    Args:
        fun: function of arrays and pytrees.
        *primals: its arguments.
        has_aux: whether `fun` returns `(output, aux)`.
        reduce_axes: must be empty, as in JAX today.

    Returns:
        `(output, vjp_fun)`, and `aux` when `has_aux`. `vjp_fun(ct)` gives one cotangent per argument, of
        dtype float0 for integers; it can be called again, and is a pytree of the values it keeps.

    Raises:
        ValueMismatchError: (from `vjp_fun`) the cotangent does not have the structure or the types of the
            output.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> y, pull = inf.vjp(inp.sin, 0.0)
        >>> pull(2.0)
        (Array(2., dtype=float32, weak_type=True),)
    """
    no_reduce_axes(reduce_axes)
    leaves, in_tree = tree.flatten((primals, {}))
    operands = flat.values(leaves, "arguments of vjp")
    f = flat.FlatFunction(fun, in_tree, has_aux)
    results, pullback, residuals = linearized(f, operands)
    assert f.out_tree is not None
    output = tree.unflatten(f.out_tree, f.out_holes.fill(flat.finished(results)))
    weak = tuple(x.weak for x in operands)
    rule = _VJP(pullback, weak, tree.structure(primals), f.out_tree, f.out_holes)
    vjp_fun = Partial(rule, flat.finished(residuals))
    return (output, vjp_fun, f.aux_value(primal_of)) if has_aux else (output, vjp_fun)


# --- grad -----------------------------------------------------------------------------------------


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Function that returns the value of `fun` and its gradient, as `jax.value_and_grad`.

    Args:
        fun: function with a scalar floating result.
        argnums: positions of the arguments to differentiate with respect to.
        has_aux: whether `fun` returns `(value, aux)`.
        holomorphic: `fun` is holomorphic: its inputs and its result are complex.
        allow_int: accept integer inputs, whose gradient has dtype float0.
        reduce_axes: must be empty, as in JAX today.

    Returns:
        Function that returns `(value, gradient)` or `((value, aux), gradient)`; the gradient has the
        structure of the arguments, a tuple when `argnums` is a sequence. For a complex argument x + iy of a
        real function f it is df/dx - i df/dy, JAX's convention.

    Raises:
        TypeMismatchError: the result is no real scalar, an input is an integer, or `holomorphic` does not
            fit the dtypes.
        ValueMismatchError: argnums are out of range.
    """
    if not callable(fun):
        raise errors.TypeMismatchError("grad needs a function", got=repr(fun))
    no_reduce_axes(reduce_axes)
    name = getattr(fun, "__name__", type(fun).__name__)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = Chosen.of(fun, args, kwargs, argnums, "grad")
        flat.check_inputs(chosen.operands, "grad", holomorphic=holomorphic, allow_int=allow_int)
        aux: list[Any] = []

        def of_chosen(*moved: Value) -> list[Value]:
            result = chosen.function(*moved)
            if has_aux:
                result, extra = flat.split_aux(result, name)
                aux.append(extra)
            return [_scalar(result, name, holomorphic)]

        of_chosen.__name__ = name
        (value,), pullback, residuals = linearized(of_chosen, chosen.operands)
        (value,) = flat.finished([value])
        seed = Literal(np.ones((), value.dtype), weak=False)
        leaves = [
            result_tangent(
                g if g is None else g.with_weak(x.weak and not _through_parts(x.type, [seed.type])),
                x.type,
                x.weak,
            )
            for g, x in zip(pullback(residuals, [seed]), chosen.operands, strict=True)
        ]
        gradient = chosen.shaped(flat.finished(leaves))
        if has_aux:
            extra_leaves, extra_tree = tree.flatten(aux[0])
            return (value, tree.unflatten(extra_tree, [primal_of(x) for x in extra_leaves])), gradient
        return value, gradient

    return run


def _scalar(result: Any, name: str, holomorphic: bool) -> Value:  # Any: a pytree
    leaves, treedef = tree.flatten(result)
    if treedef != tree.structure(0) or not flat.is_array(leaves[0]):
        raise errors.TypeMismatchError(
            "gradient only defined for scalar-output functions",
            got=f"{name} returned {treedef}",
            fix="return one scalar; further results go into aux, with has_aux=True",
        )
    value = trace.as_value(leaves[0])
    if value.shape != ():
        raise errors.TypeMismatchError(
            "gradient only defined for scalar-output functions",
            got=f"{name} returned {value.type}",
            fix="reduce the result with .sum() or .mean(), or use jacrev, or vjp with a cotangent",
        )
    flat.check_outputs([value.type], "grad", holomorphic=holomorphic)
    return value


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Function that returns the gradient of `fun`, as `jax.grad`; arguments as in `value_and_grad`.

    Returns:
        Function that returns the gradient, or `(gradient, aux)`.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.grad(lambda x: inp.tanh(x))(0.0)
        Array(1., dtype=float32, weak_type=True)
    """
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        result, gradient = both(*args, **kwargs)
        return (gradient, result[1]) if has_aux else gradient

    return run


def fwd_and_bwd(
    fun: Callable[..., Any], argnums: int | Sequence[int], has_aux: bool = False, jitted: bool = True
) -> tuple[Callable[..., Any], Callable[..., Any]]:  # Any: functions of pytrees
    """The two passes of reverse mode as functions, as `jax.fwd_and_bwd`.

    Args:
        fun: function of arrays and pytrees.
        argnums: positions of the arguments to differentiate with respect to.
        has_aux: whether `fun` returns `(output, aux)`.
        jitted: accepted for JAX's sake; wrap the functions in `jit` to compile them.

    Returns:
        `fwd(*args)`, which gives `(output, residuals)` or `(output, residuals, aux)`, and
        `bwd(residuals, cotangent)`, which gives the cotangents of the chosen arguments, a tuple when
        `argnums` is a sequence.
    """

    def fwd(*args: Any, **kwargs: Any) -> Any:
        numbers = flat.argnums(argnums, len(args), "fwd_and_bwd")

        def of_chosen(*moved: Any) -> Any:
            given = list(args)
            for n, arg in zip(numbers, moved, strict=True):
                given[n] = arg
            return fun(*given, **kwargs)

        return vjp(of_chosen, *(args[n] for n in numbers), has_aux=has_aux)

    def bwd(residuals: Any, cotangent: Any) -> Any:
        found = residuals(cotangent)
        return found[0] if isinstance(argnums, (int, np.integer)) else found

    return fwd, bwd
