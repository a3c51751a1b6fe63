"""Jacobians and Hessians: derivative transforms mapped over a basis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import view
from infini.transforms import batching, differentiate, flat
from infini.transforms.flat import Chosen


def jacfwd(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Jacobian by forward mode, one jvp per input element, mapped; as `jax.jacfwd`.

    Args:
        fun: function of arrays and pytrees.
        argnums: positions of the arguments to differentiate with respect to.
        has_aux: whether `fun` returns `(output, aux)`.
        holomorphic: `fun` is holomorphic: its inputs and its results are complex.

    Returns:
        Function that returns the Jacobian: the structure of the output, at each leaf that of the arguments,
        of shape (*output, *input). With `has_aux` a pair with the auxiliary output.

    Raises:
        TypeMismatchError: inputs are not real (not complex with `holomorphic`).
    """
    _require_function("jacfwd", fun)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = Chosen.of(fun, args, kwargs, argnums, "jacfwd")
        operands, types = chosen.operands, [x.type for x in chosen.operands]
        flat.check_inputs(
            operands, "jacfwd", holomorphic=holomorphic, allow_int=False, allow_complex=holomorphic
        )

        def push(*tangents: Value) -> Any:
            found = differentiate.jvp(chosen.function, operands, tangents, has_aux)
            return (found[1], found[2]) if has_aux else found[1]

        basis = [row.with_weak(x.weak) for row, x in zip(_basis(types), operands, strict=True)]
        columns = batching.vmap(push, out_axes=(-1, None) if has_aux else -1, axis_size=_total(operands))(
            *basis
        )
        columns, aux = columns if has_aux else (columns, None)
        if holomorphic:
            flat.check_outputs([x.type for x in tree.leaves(columns)], "jacfwd", holomorphic=True)
        jacobian = tree.map(lambda c: chosen.shaped(_split(c, types, c.ndim - 1)), columns)
        return (jacobian, aux) if has_aux else jacobian

    return run


def jacrev(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Jacobian by reverse mode, one vjp per output element, mapped; as `jax.jacrev`.

    Args:
        fun: function of arrays and pytrees.
        argnums: positions of the arguments to differentiate with respect to.
        has_aux: whether `fun` returns `(output, aux)`.
        holomorphic: `fun` is holomorphic: its inputs and its results are complex.
        allow_int: accept integer inputs, whose derivative has dtype float0.

    Returns:
        Function that returns the Jacobian: the structure of the output, at each leaf that of the arguments,
        of shape (*output, *input). With `has_aux` a pair with the auxiliary output.

    Raises:
        TypeMismatchError: inputs have no derivative, or outputs are not real (not complex with
            `holomorphic`).
    """
    _require_function("jacrev", fun)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = Chosen.of(fun, args, kwargs, argnums, "jacrev")
        operands = chosen.operands
        flat.check_inputs(operands, "jacrev", holomorphic=holomorphic, allow_int=allow_int)
        found = differentiate.vjp(chosen.function, *operands, has_aux=has_aux)
        output, pull = found[0], found[1]
        results, out_tree = tree.flatten(output)
        values = [trace.as_value(r) for r in results]
        types = [r.type for r in values]
        flat.check_outputs(types, "jacrev", holomorphic=holomorphic)

        def rows_of(*cts: Value) -> Any:
            return pull(tree.unflatten(out_tree, cts))

        basis = [row.with_weak(r.weak) for row, r in zip(_basis(types), values, strict=True)]
        rows = batching.vmap(rows_of, axis_size=_total(results))(*basis)
        per_input = [
            [flat.float0_zeros((*t.shape, *row.shape[1:])) for t in types]
            if flat.is_float0(row)
            else _split(row, types, 0)
            for row in rows
        ]
        per_output = [chosen.shaped([pieces[i] for pieces in per_input]) for i in range(len(types))]
        jacobian = tree.unflatten(out_tree, per_output)
        return (jacobian, found[2]) if has_aux else jacobian

    return run


jacobian = jacrev


def hessian(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Matrix of second derivatives: forward over reverse mode, as `jax.hessian`; arguments as in `jacrev`."""
    return jacfwd(
        jacrev(fun, argnums, has_aux=has_aux, holomorphic=holomorphic),
        argnums,
        has_aux=has_aux,
        holomorphic=holomorphic,
    )


def _require_function(what: str, fun: Any) -> None:  # Any: what the user gave
    if not callable(fun):
        raise errors.TypeMismatchError(f"{what} needs a function", got=repr(fun))


def _total(items: Sequence[Any]) -> int:
    return sum(trace.as_value(x).size for x in items)


def _basis(types: Sequence[ArrayType]) -> list[Value]:
    """For each leaf, the rows of the identity over all leaves that belong to it, shaped (total, *leaf)."""
    total = sum(t.size for t in types)
    rows, start = [], 0
    for type_ in types:
        row = trace.bind1(view.iota_p, shape=(total, type_.size), dimension=0, dtype=dtypes.int32)
        column = trace.bind1(view.iota_p, shape=(total, type_.size), dimension=1, dtype=dtypes.int32)
        shifted = trace.bind1(primitive.by_name("add"), column, trace.as_value(start))
        ones = trace.bind1(
            primitive.by_name("convert_element_type"),
            trace.bind1(primitive.by_name("eq"), row, shifted),
            new_dtype=type_.dtype,
        )
        rows.append(view.reshape(ones, (total, *type_.shape)))
        start += type_.size
    return rows


def _split(x: Value, types: Sequence[ArrayType], axis: int) -> list[Value]:
    """Cut the basis dimension of `x` into leaves and give each its shape."""
    out, start = [], 0
    for type_ in types:
        piece = view.slice_in_dim(x, start, start + type_.size, axis=axis)
        shape = (*x.shape[:axis], *type_.shape, *x.shape[axis + 1 :])
        out.append(view.reshape(piece, shape))
        start += type_.size
    return out
