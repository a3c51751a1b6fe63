"""The derivative transforms, with JAX's names, arguments and errors: grad, vjp, jvp, linearize, Jacobians."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree, value
from infini.core.value import Value
from infini.lax import families, view
from infini.lax.families import LinearInput
from infini.transforms import batching, flat, forward, linear


def _without_tangents(primals: Sequence[Value]) -> list[bool]:
    return [dtypes.is_inexact(p.dtype) for p in primals]


def vjp(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:  # Any: pytrees
    """Result of a function and the function that pulls cotangents back, as `jax.vjp`.

    Args:
        fun: function of arrays and pytrees.
        *primals: its arguments.
        has_aux: whether `fun` returns `(output, aux)`.

    Returns:
        `(output, vjp_fun)`, and `aux` when `has_aux`. `vjp_fun(ct)` gives one cotangent per argument; it
        can be called again.

    Raises:
        ValueMismatchError: (from `vjp_fun`) the cotangent does not have the structure or the types of the
            output.
    """
    leaves, in_tree = tree.flatten((primals, {}))
    operands = flat.values(leaves, "arguments of vjp")
    f = flat.FlatFunction(fun, in_tree, has_aux)
    results, pull = _pullback(f, operands)
    out_tree, types = f.out_tree, [r.type for r in results]
    assert out_tree is not None
    arg_tree = tree.structure(primals)

    def vjp_fun(cotangent: Any) -> Any:
        cts, ct_tree = tree.flatten(cotangent)
        if ct_tree != out_tree:
            raise errors.ValueMismatchError(
                "the cotangent given to a vjp function must have the structure of the output",
                got=str(ct_tree),
                expected=str(out_tree),
            )
        given = [trace.as_value(ct) for ct in cts]
        for ct, type_ in zip(given, types, strict=True):
            if ct.type != type_ and not (ct.weak and ct.shape == type_.shape):
                raise errors.ValueMismatchError(
                    "the cotangent given to a vjp function must have the type of the output",
                    got=str(ct.type),
                    expected=str(type_),
                )
        converted = [
            ct
            if ct.dtype == t.dtype
            else trace.bind1(primitive.by_name("convert_element_type"), ct, new_dtype=t.dtype)
            for ct, t in zip(given, types, strict=True)
        ]
        return tree.unflatten(arg_tree, flat.finished(pull(converted)))

    output = tree.unflatten(out_tree, flat.finished(results))
    return (output, vjp_fun, f.aux_value()) if has_aux else (output, vjp_fun)


def _pullback(
    f: Callable[..., Sequence[Any]], operands: Sequence[Value]
) -> tuple[list[Value], Callable[[Sequence[Value]], list[Value]]]:
    """Results of a flat function at values, and its transpose there. Integer operands get zero cotangents."""
    moving = _without_tangents(operands)

    def of_moving(*moved: Value) -> Sequence[Any]:
        given = iter(moved)
        return f(*(next(given) if m else x for x, m in zip(operands, moving, strict=True)))

    primals = [x for x, m in zip(operands, moving, strict=True) if m]
    results, program, residuals, nonzero = linear.linearize_values(of_moving, primals)
    types = [p.type for p in primals]

    def pull(cotangents: Sequence[Value]) -> list[Value]:
        args: list[Value | LinearInput] = [*residuals, *(LinearInput(t) for t in types)]
        cts = [ct for ct, flag in zip(cotangents, nonzero, strict=True) if flag]
        found = iter(linear.backward(program, args, cts)[len(residuals) :])
        out = []
        for x, m in zip(operands, moving, strict=True):
            ct = next(found) if m else None
            out.append(families.zeros(x.type) if ct is None else ct)
        return out

    return results, pull


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Function that returns the value of `fun` and its gradient, as `jax.value_and_grad`.

    Args:
        fun: function with a scalar floating result.
        argnums: positions of the arguments to differentiate with respect to.
        has_aux: whether `fun` returns `(value, aux)`.
        holomorphic: not supported yet for complex functions.
        allow_int: accept integer inputs, whose gradient is zero.

    Returns:
        Function that returns `(value, gradient)` or `((value, aux), gradient)`; the gradient has the
        structure of the
        arguments, a tuple when `argnums` is a sequence.

    Raises:
        TypeMismatchError: the result is no real scalar, or an input is an integer.
    """
    name = getattr(fun, "__name__", "fun")
    if holomorphic:
        raise NotImplementedError("grad(holomorphic=True): differentiate real and imaginary parts separately")

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        numbers = flat.argnums(argnums, len(args), "grad")
        chosen = [args[n] for n in numbers]
        leaves, chosen_tree = tree.flatten(chosen)
        operands = flat.values(leaves, f"arguments that grad of {name} differentiates")
        if not allow_int:
            flat.check_differentiable(operands, "grad")

        def of_chosen(*moved: Value) -> list[Any]:
            given = list(args)
            for n, arg in zip(numbers, tree.unflatten(chosen_tree, moved), strict=True):
                given[n] = arg
            result = fun(*given, **kwargs)
            if has_aux:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise errors.TypeMismatchError(f"with has_aux=True {name} must return (value, aux)")
                result, extra = result
                aux_leaves, aux_tree = tree.flatten(extra)
                aux.append(aux_tree)
            else:
                aux_leaves = []
            out = tree.leaves(result)
            _check_scalar(out, name)
            return [*out, *aux_leaves]

        aux: list[Any] = []
        results, pull = _pullback(of_chosen, operands)
        results = flat.finished(results)
        seed = [trace.as_value(value.Literal(np.ones((), results[0].dtype), weak=False))]
        cotangents = [*seed, *(families.zeros(r.type) for r in results[1:])]
        found = flat.finished(pull(cotangents))
        gradient = tree.unflatten(
            chosen_tree, [g.with_weak(x.weak) for g, x in zip(found, operands, strict=True)]
        )
        shaped = gradient[0] if isinstance(argnums, int) else tuple(gradient)
        if has_aux:
            return (results[0], tree.unflatten(aux[0], results[1:])), shaped
        return results[0], shaped

    return run


def _check_scalar(out: Sequence[Any], name: str) -> None:
    found = [trace.as_value(x) for x in out]
    if len(found) != 1 or found[0].shape != ():
        raise errors.TypeMismatchError(
            "gradient only defined for scalar-output functions",
            got=f"{name} returned {', '.join(str(x.type) for x in found) or 'nothing'}",
            fix="reduce the result with .sum() or .mean(), or use jacrev, or vjp with a cotangent",
        )
    if found[0].dtype not in dtypes.FLOATS:
        raise errors.TypeMismatchError(
            "grad requires a real-valued output (a sub-dtype of floating)",
            got=f"{name} returned {found[0].type}",
        )


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Function that returns the gradient of `fun`, as `jax.grad`; arguments as in `value_and_grad`.

    Returns:
        Function that returns the gradient, or `(gradient, aux)`.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.grad(lambda x: inp.tanh(x))(0.0)
        Array(1., dtype=float32, weak_type=True)
    """
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        result, gradient = both(*args, **kwargs)
        return (gradient, result[1]) if has_aux else gradient

    return run


def jvp(
    fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False
) -> Any:
    """Result of a function and its derivative in one direction, as `jax.jvp`.

    Args:
        fun: function of arrays and pytrees.
        primals: its arguments, a tuple or list.
        tangents: directions, of the structure, shapes and dtypes of the primals.
        has_aux: whether `fun` returns `(output, aux)`.

    Returns:
        `(output, output_tangent)`, and `aux` when `has_aux`.

    Raises:
        TypeMismatchError: primals and tangents do not match.
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
    directions = flat.values(moved, "tangents of jvp")
    for p, t in zip(operands, directions, strict=True):
        if p.shape != t.shape or (p.dtype != t.dtype and not t.weak and dtypes.is_inexact(p.dtype)):
            raise errors.TypeMismatchError(
                "primal and tangent given to jvp must have one type", got=f"{p.type} and {t.type}"
            )
    f = flat.FlatFunction(fun, in_tree, has_aux)
    interpreter = forward.JVP(trace.current())
    boxed = [
        forward.JVPTracer(interpreter, p, families.like(t, p) if t.dtype == p.dtype else _cast(t, p.dtype))
        if dtypes.is_inexact(p.dtype)
        else p
        for p, t in zip(operands, directions, strict=True)
    ]
    with trace.running(interpreter):
        results = [trace.as_value(r) for r in f(*boxed)]
    pairs = [interpreter.split(r) for r in results]
    assert f.out_tree is not None
    out = tree.unflatten(f.out_tree, flat.finished([p for p, _ in pairs]))
    moved = [families.zeros(p.type) if t is None else t for p, t in pairs]
    moved_out = tree.unflatten(f.out_tree, flat.finished(moved))
    interpreter.is_closed = True
    return (out, moved_out, f.aux_value(interpreter)) if has_aux else (out, moved_out)


def _cast(x: Value, dtype: np.dtype) -> Value:
    return trace.bind1(primitive.by_name("convert_element_type"), x, new_dtype=dtype)


def linearize(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:  # Any: pytrees
    """Result of a function and its linear approximation there, as `jax.linearize`.

    Returns:
        `(output, f_jvp)`, and `aux` when `has_aux`; `f_jvp(*tangents)` gives the tangent of the output.
    """
    leaves, in_tree = tree.flatten((primals, {}))
    operands = flat.values(leaves, "arguments of linearize")
    flat.check_differentiable(operands, "linearize")
    f = flat.FlatFunction(fun, in_tree, has_aux)
    results, program, residuals, nonzero = linear.linearize_values(f, operands)
    out_tree, types = f.out_tree, [r.type for r in results]
    assert out_tree is not None
    arg_tree = tree.structure(primals)

    def f_jvp(*tangents: Any) -> Any:
        moved, moved_tree = tree.flatten(tangents)
        if moved_tree != arg_tree:
            raise errors.ValueMismatchError(
                "tangents must have the structure of the primals", got=str(moved_tree), expected=str(arg_tree)
            )
        given = [
            trace.as_value(t) if trace.as_value(t).dtype == x.dtype else _cast(trace.as_value(t), x.dtype)
            for t, x in zip(moved, operands, strict=True)
        ]
        found = iter(trace.evaluate(program, [*residuals, *given]))
        every = [next(found) if flag else families.zeros(t) for t, flag in zip(types, nonzero, strict=True)]
        return tree.unflatten(out_tree, flat.finished(every))

    output = tree.unflatten(out_tree, flat.finished(results))
    return (output, f_jvp, f.aux_value()) if has_aux else (output, f_jvp)


def linear_transpose(
    fun: Callable[..., Any], *primals: Any
) -> Callable[[Any], tuple[Any, ...]]:  # Any: pytrees
    """Transpose of a function that is linear, as `jax.linear_transpose`; `primals` give shapes and dtypes
    only.
    """
    leaves, in_tree = tree.flatten((primals, {}))
    types = [x.type if hasattr(x, "type") else trace.as_value(x).type for x in leaves]
    f = flat.FlatFunction(fun, in_tree)
    staged = trace.stage(f, types)
    out_tree = f.out_tree
    assert out_tree is not None

    def transposed(cotangent: Any) -> tuple[Any, ...]:
        cts = [trace.as_value(ct) for ct in tree.leaves(cotangent)]
        args: list[Any] = [*staged.captures, *(LinearInput(t) for t in types)]
        found = linear.backward(staged.program, args, cts)[len(staged.captures) :]
        filled = [families.zeros(t) if ct is None else ct for t, ct in zip(types, found, strict=True)]
        return tuple(tree.unflatten(in_tree, filled)[0])

    return transposed


def _basis(operands: Sequence[Value]) -> list[Value]:
    """For each leaf, the rows of the identity over all leaves that belong to it, shaped (total, *leaf)."""
    total = sum(x.size for x in operands)
    rows, start = [], 0
    for x in operands:
        row = trace.bind1(view.iota_p, shape=(total, x.size), dimension=0, dtype=dtypes.int32)
        column = trace.bind1(view.iota_p, shape=(total, x.size), dimension=1, dtype=dtypes.int32)
        shifted = families.bind_scalars(primitive.by_name("add"), column, start)
        ones = _cast(trace.bind1(primitive.by_name("eq"), row, shifted), x.dtype)
        rows.append(view.reshape(ones, (total, *x.shape)))
        start += x.size
    return rows


def _split_jacobian(x: Value, parts: Sequence[Value], axis: int) -> list[Value]:
    """Cut the basis dimension of `x` into leaves and give each its shape."""
    out, start = [], 0
    for part in parts:
        piece = view.slice_in_dim(x, start, start + part.size, axis=axis)
        shape = (*x.shape[:axis], *part.shape, *x.shape[axis + 1 :])
        out.append(view.reshape(piece, shape))
        start += part.size
    return out


def jacfwd(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Jacobian by forward mode, one jvp per input element, mapped; as `jax.jacfwd`."""

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        numbers = flat.argnums(argnums, len(args), "jacfwd")
        operands, chosen_tree, of_chosen = _of_chosen(fun, args, kwargs, numbers)
        flat.check_differentiable(operands, "jacfwd")
        f = flat.FlatFunction(of_chosen, tree.structure(((tuple([0] * len(operands))), {})), has_aux)

        def push(*tangents: Value) -> list[Value]:
            _, moved = jvp(lambda *xs: tuple(f(*xs)), tuple(operands), tuple(tangents))
            return list(moved)

        basis = _basis(operands)
        columns = batching.vmap(lambda *ts: push(*ts), out_axes=-1)(*basis)
        assert f.out_tree is not None
        jacobian = [tree.unflatten(chosen_tree, _split_jacobian(c, operands, c.ndim - 1)) for c in columns]
        shaped = [j[0] if isinstance(argnums, int) else tuple(j) for j in jacobian]
        result = tree.unflatten(f.out_tree, shaped)
        return (result, f.aux_value()) if has_aux else result

    return run


def jacrev(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Jacobian by reverse mode, one vjp per output element, mapped; as `jax.jacrev`."""

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        numbers = flat.argnums(argnums, len(args), "jacrev")
        operands, chosen_tree, of_chosen = _of_chosen(fun, args, kwargs, numbers)
        flat.check_differentiable(operands, "jacrev")
        f = flat.FlatFunction(of_chosen, tree.structure(((tuple([0] * len(operands))), {})), has_aux)
        results, pull = _pullback(f, operands)
        rows = batching.vmap(lambda *cts: pull(list(cts)))(*_basis(results))
        per_input = [_split_jacobian(row, results, 0) for row in rows]
        assert f.out_tree is not None
        per_output = []
        for i in range(len(results)):
            leaves = tree.unflatten(chosen_tree, [pieces[i] for pieces in per_input])
            per_output.append(leaves[0] if isinstance(argnums, int) else tuple(leaves))
        result = tree.unflatten(f.out_tree, per_output)
        return (result, f.aux_value()) if has_aux else result

    return run


jacobian = jacrev


def _of_chosen(
    fun: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], numbers: Sequence[int]
) -> tuple[list[Value], tree.PyTreeDef, Callable[..., Any]]:
    leaves, chosen_tree = tree.flatten([args[n] for n in numbers])
    operands = flat.values(leaves, "differentiated arguments")

    def of_chosen(*moved: Value) -> Any:
        given = list(args)
        for n, arg in zip(numbers, tree.unflatten(chosen_tree, moved), strict=True):
            given[n] = arg
        return fun(*given, **kwargs)

    return operands, chosen_tree, of_chosen


def hessian(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Matrix of second derivatives: forward over reverse mode, as `jax.hessian`."""
    return jacfwd(jacrev(fun, argnums, has_aux=has_aux), argnums, has_aux=has_aux)
