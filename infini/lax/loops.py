"""Loops as users write them: `scan`, `while_loop` and `fori_loop`, as in `jax.lax`.

The operations behind them are in `scanning` and `while_op`. With the knob `disable_jit` all of them run as
plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import config, dtypes, errors, trace, tree
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import elementwise as e, loop_bodies, unrolling, view
from infini.lax.loop_bodies import Carry
from infini.lax.scanning import scan_p as scan_p, unstacked
from infini.lax.unrolling import Scan
from infini.lax.while_op import while_p as while_p


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
) -> tuple[Any, Any]:  # Any: pytrees
    """Run `carry, y = f(carry, x)` over the leading dimension of `xs`, as `jax.lax.scan`.

    Args:
        f: function of a carry and one slice of `xs`; returns the next carry, of equal type, and one slice
            of `ys`.
        init: first carry, a pytree of arrays.
        xs: pytree of arrays with equal leading dimensions, or None.
        length: number of steps, needed when `xs` is None.
        reverse: go from the last step to the first.
        unroll: steps per turn of the compiled loop; True or 0 is all of them, without a loop.
        _split_transpose: accepted for JAX's sake; the compiler decides.

    Returns:
        The last carry, and the `ys` stacked along a leading dimension.

    Raises:
        TypeMismatchError: the carry changes its structure or type, or `f` returns no pair.
        ValueMismatchError: leading dimensions differ, or no length is given, or it disagrees with `xs`.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.lax.scan(lambda total, x: (total + x, total), 0, inp.arange(4))
        (Array(6, dtype=int32), Array([0, 0, 1, 3], dtype=int32, weak_type=True))
    """
    loop_bodies.require_functions("scan", f)
    x_leaves, x_tree = tree.flatten(xs)
    x_values = [trace.as_value(x) for x in x_leaves]
    length = _scan_length(x_values, length)
    num_steps_per_turn = _unroll(unroll)
    if config.get("disable_jit"):
        return _scan_in_python(f, init, x_values, x_tree, length, reverse)
    carry = Carry.of(init, "scan")
    count = len(carry.leaves)
    out_trees: list[tree.PyTreeDef] = []

    def flat(*args: Value) -> Sequence[Any]:
        result = f(tree.unflatten(carry.structure, args[:count]), tree.unflatten(x_tree, args[count:]))
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise errors.TypeMismatchError(
                "the body of scan must return (carry, y)", got=f"{type(result).__name__}"
            )
        ys, y_tree = tree.flatten(result[1])
        out_trees.append(y_tree)
        return [*carry.flatten(result[0]), *ys]

    name = getattr(f, "__name__", "scan_body")
    x_types = [unstacked(x.type) for x in x_values]
    staged, start = loop_bodies.trace_body(
        flat, carry, x_types, [x.weak for x in x_values], name, trace.varying_of(x_values)
    )
    loop = Scan(staged.program, len(staged.captures), count, length, bool(reverse))
    operands = [*staged.captures, *start.leaves, *x_values]
    found = unrolling.bind(loop, operands, num_steps_per_turn)
    marked = [r.with_weak(flag) for r, flag in zip(found, staged.weak, strict=True)]
    return tree.unflatten(carry.structure, marked[:count]), tree.unflatten(out_trees[-1], marked[count:])


def _scan_length(xs: Sequence[Value], length: Any) -> int:  # Any: what the user gave
    if any(x.ndim == 0 for x in xs):
        raise errors.ValueMismatchError(
            "scan: every leaf of xs needs a leading dimension", got=", ".join(str(x.type) for x in xs)
        )
    found = sorted({x.shape[0] for x in xs})
    if length is not None:
        number = _static_int(length, "length")
        if any(size != number for size in found):
            raise errors.ValueMismatchError(
                "scan: length disagrees with the leading dimensions of xs",
                got=f"length {number}, leading sizes {found}",
            )
        return number
    if len(found) != 1:
        raise errors.ValueMismatchError(
            "scan needs one number of steps",
            got=f"leading sizes {found}, no length",
            expected="equal leading dimensions in xs, or length=",
        )
    return found[0]


def _static_int(x: Any, what: str) -> int:  # Any: what the user gave
    try:
        return int(x)
    except errors.ConcretizationError as error:
        raise errors.ConcretizationError(
            f"scan: {what} must be known while tracing",
            got=str(x.type),
            fix="use lax.fori_loop or lax.while_loop for a number of steps known at run time",
        ) from error


def _unroll(unroll: Any) -> int:  # Any: what the user gave
    if isinstance(unroll, bool):
        return 0 if unroll else 1
    number = _static_int(unroll, "unroll")
    if number < 0:
        raise errors.ValueMismatchError("scan: unroll must be a boolean or at least 0", got=str(number))
    return number


def _scan_in_python(
    f: Callable[[Any, Any], Any],
    carry: Any,
    xs: Sequence[Value],
    x_tree: tree.PyTreeDef,
    length: int,
    reverse: bool,
) -> tuple[Any, Any]:
    if length == 0:
        raise errors.ValueMismatchError(
            "scan of no steps cannot run with disable_jit: the types of its results are not known"
        )
    ys = []
    for i in reversed(range(length)) if reverse else range(length):
        x = [view.squeeze(view.slice_in_dim(x, i, i + 1), (0,)) for x in xs]
        carry, y = f(carry, tree.unflatten(x_tree, x))
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, tree.map(_stacked, *ys)


def _stacked(*rows: Any) -> Value:  # Any: arrays and numbers
    return view.concatenate([view.expand_dims(trace.as_value(row), (0,)) for row in rows], 0)


# --- while ---------------------------------------------------------------------------------------


def while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any
) -> Any:  # Any: pytrees
    """Repeat `val = body_fun(val)` while `cond_fun(val)` holds, as `jax.lax.while_loop`.

    Args:
        cond_fun: function from the carry to a boolean scalar.
        body_fun: function from the carry to the next, of equal structure and type.
        init_val: first carry, a pytree of arrays.

    Returns:
        The last carry. It has forward derivatives; for reverse ones the number of steps must be static.

    Raises:
        TypeMismatchError: the condition is no boolean scalar, or the carry changes its type.
    """
    loop_bodies.require_functions("while_loop", cond_fun, body_fun)
    if config.get("disable_jit"):
        value = init_val
        while cond_fun(value):
            value = body_fun(value)
        return value
    carry = Carry.of(init_val, "while_loop")

    def flat_body(*args: Value) -> Sequence[Any]:
        return carry.flatten(body_fun(tree.unflatten(carry.structure, args)))

    def flat_cond(*args: Value) -> Sequence[Any]:
        leaves, structure = tree.flatten(cond_fun(tree.unflatten(carry.structure, args)))
        types = [trace.as_value(leaf).type for leaf in leaves]
        if structure != tree.structure(0) or types != [ArrayType((), dtypes.bool_)]:
            raise errors.TypeMismatchError(
                "the condition of while_loop must return a boolean scalar",
                got=", ".join(map(str, types)) if structure == tree.structure(0) else str(structure),
                fix="compare, as in `lambda c: c > 0`, and reduce with .any() or .all()",
            )
        return leaves

    body, start = loop_bodies.trace_body(
        flat_body, carry, (), (), getattr(body_fun, "__name__", "body"), trace.varying_of(())
    )
    name = getattr(cond_fun, "__name__", "condition")
    varying = trace.varying_of(start.leaves)
    condition = trace.stage(flat_cond, start.types, weak=start.weak, name=name, varying=varying)
    found = trace.bind(
        while_p,
        *condition.captures,
        *body.captures,
        *start.leaves,
        cond=condition.program,
        body=body.program,
        num_cond_consts=len(condition.captures),
        num_body_consts=len(body.captures),
    )
    marked = [r.with_weak(flag) for r, flag in zip(found, body.weak, strict=True)]
    return tree.unflatten(carry.structure, marked)


# --- fori ----------------------------------------------------------------------------------------


def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, Any], Any],
    init_val: Any,
    *,
    unroll: int | bool | None = None,
) -> Any:  # Any: integers; pytrees
    """Repeat `val = body_fun(i, val)` for `i` from `lower` to `upper` - 1, as `jax.lax.fori_loop`.

    With bounds that are known while tracing it is a scan, which can be differentiated in reverse; otherwise
    a while loop.

    Args:
        lower: first index, an integer scalar.
        upper: one past the last index, of the same dtype.
        body_fun: function of the index and the carry, to the next carry.
        init_val: first carry, a pytree of arrays.
        unroll: steps per turn of the compiled loop, as in `scan`; for known bounds only.

    Returns:
        The last carry.

    Raises:
        TypeMismatchError: a bound is no integer scalar, the bounds differ in dtype, or the carry changes its
            type.
        ValueMismatchError: `unroll` is given and a bound is not known.
    """
    loop_bodies.require_functions("fori_loop", body_fun)
    first, last = _bound(lower, "lower"), _bound(upper, "upper")
    dtype = _common_bound_dtype(first, last)
    low, high = _known_int(lower), _known_int(upper)
    if low is not None and high is not None:
        if config.get("disable_jit") and low >= high:
            return init_val

        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            i, value = carry
            return (e.add(i, 1), body_fun(i, value)), None

        steps = max(high - low, 0)
        (_, result), _ = scan(step, (low, init_val), None, steps, unroll=False if unroll is None else unroll)
        return result
    if unroll is not None and unroll is not False and unroll != 1:
        raise errors.ValueMismatchError(
            "fori_loop can be unrolled only when its bounds are known while tracing",
            got=f"bounds {first.type}, {last.type} and unroll={unroll}",
        )
    _, _, result = while_loop(
        lambda c: e.lt(c[0], c[1]),
        lambda c: (e.add(c[0], 1), c[1], body_fun(c[0], c[2])),
        (_converted(first, dtype), _converted(last, dtype), init_val),
    )
    return result


def _bound(x: Any, what: str) -> Value:  # Any: an integer
    value = trace.as_value(x)
    if value.dtype not in dtypes.INTEGERS or value.shape:
        raise errors.TypeMismatchError(
            f"the {what} bound of fori_loop must be an integer scalar", got=str(value.type)
        )
    return value


def _common_bound_dtype(first: Value, last: Value) -> np.dtype:
    if first.dtype == last.dtype:
        return first.dtype
    if first.dtype in dtypes.SIGNED and last.dtype in dtypes.SIGNED and first.weak != last.weak:
        return last.dtype if first.weak else first.dtype
    raise errors.TypeMismatchError(
        "the bounds of fori_loop must have one dtype", got=f"{first.type} and {last.type}"
    )


def _converted(x: Value, dtype: np.dtype) -> Value:
    return x if x.dtype == dtype else e.convert_element_type(x, dtype)


def _known_int(x: Any) -> int | None:  # Any: an integer
    """The number behind a bound, or None for a traced one."""
    if isinstance(x, trace.Tracer):
        known = x.concrete()
        return None if known is None else int(known)
    return int(x)
