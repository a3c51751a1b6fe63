"""Python functions called by compiled programs: `pure_callback`, `io_callback`, and the operation of
`debug.callback`.

All three are calls of a host function with NumPy arrays. They differ in what a transformation may do with
them: pure ones may be dropped, repeated and merged, the others keep their effect (design 4a.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, host, ir, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.primitive import Effect, Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import Context, Flags, MaybeValues, Values, nonzero
from infini.lax.scanning import scan_p

VMAP_METHODS: Final = (
    "sequential",
    "sequential_unrolled",
    "expand_dims",
    "broadcast_all",
    "legacy_vectorized",
)


def call_host(
    function: ir.HostFunction, arrays: Sequence[np.ndarray], out_types: Sequence[ArrayType]
) -> list[np.ndarray]:
    """Call a host function with read-only arrays; its results as contiguous arrays of the declared types.

    Raises:
        TypeMismatchError: the function returned something else.
    """
    found = host.lookup(function)(*arrays)
    if not out_types:
        return []
    if len(found) != len(out_types):
        raise errors.TypeMismatchError(
            f"the callback {function.name} returned another number of arrays",
            got=str(len(found)), expected=str(len(out_types)),
        )  # fmt: skip
    return [_checked(x, type_, function.name) for x, type_ in zip(found, out_types, strict=True)]


def _checked(x: Any, type_: ArrayType, name: str) -> np.ndarray:  # Any: what the user's function returned
    array = np.asarray(x)
    narrowed = array.dtype.kind == type_.dtype.kind and array.dtype.itemsize == 2 * type_.dtype.itemsize
    if narrowed or type(x) in (bool, int, float, complex):
        # Host data of 64 bits stands for the 32-bit default, here as everywhere.
        array = array.astype(type_.dtype)
    if tuple(array.shape) != type_.shape or array.dtype != type_.dtype:
        raise errors.TypeMismatchError(
            f"the callback {name} returned an array of another type than declared",
            got=f"{array.dtype}{list(array.shape)}",
            expected=str(type_),
            fix="correct result_shape_dtypes, or convert in the callback",
        )
    return np.ascontiguousarray(array).reshape(type_.shape)


def _reference(
    evaluate: Any, *arrays: np.ndarray, callback: ir.HostFunction, out_types: Any = (), **_: object
) -> tuple[np.ndarray, ...]:
    return tuple(call_host(callback, arrays, out_types))


# --- debug.callback ------------------------------------------------------------------------------


def _jvp_debug(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: Any
) -> tuple[Values, MaybeValues]:
    return trace.bind(debug_callback_p, *primals, **attrs), ()


def _linearize_debug(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: Any
) -> tuple[Values, MaybeValues]:
    return ctx.bind_primal(debug_callback_p, *primals, **attrs), ()


def _batch_debug(ctx: Context, args: Values, batched: Flags, attrs: Any) -> tuple[Values, Flags]:
    # One call per element, in order.
    for i in range(ctx.size):
        row = [_row(x, i) if b else x for x, b in zip(args, batched, strict=True)]
        trace.bind(debug_callback_p, *row, **attrs)
    return (), ()


def _row(x: Value, i: int) -> Value:
    rank = x.ndim
    part = trace.bind1(
        primitive.by_name("slice"),
        x,
        start=(i, *(0,) * (rank - 1)),
        limit=(i + 1, *x.shape[1:]),
        strides=(1,) * rank,
    )
    return trace.bind1(primitive.by_name("reshape"), part, shape=x.shape[1:], ndim=rank)


debug_callback_p: Primitive = primitive.register(
    Primitive(
        "debug_callback",
        None,
        {
            primitive.TYPE: lambda *types, callback, ordered: (),
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp_debug,
            primitive.LINEARIZE: _linearize_debug,
            primitive.BATCH: _batch_debug,
        },
        effect=lambda attrs: Effect.ORDERED_IO if attrs["ordered"] else Effect.IO,
        is_higher_order=True,
    )
)


# --- callbacks with results ----------------------------------------------------------------------


def _refuse(name: str) -> Any:  # Any: a rule
    def rule(ctx: Context, primals: Values, tangents: MaybeValues, attrs: Any) -> Any:
        if any(nonzero(tangents)):
            raise errors.ValueMismatchError(
                f"{name} has no derivative", fix="wrap the function that calls it in custom_jvp or custom_vjp"
            )
        return trace.bind(primitive.by_name(name), *primals, **attrs), (None,) * len(attrs["out_types"])

    return rule


def _one_by_one(op: Primitive, size: int, args: Values, batched: Flags, attrs: Any) -> tuple[Values, Flags]:
    """One call per element, in order: a scan whose constants are the operands that have no batch."""
    consts = [x for x, b in zip(args, batched, strict=True) if not b]
    xs = [x for x, b in zip(args, batched, strict=True) if b]

    def step(*values: Value) -> Sequence[Value]:
        fixed, rows = iter(values[: len(consts)]), iter(values[len(consts) :])
        return trace.bind(op, *(next(rows) if b else next(fixed) for b in batched), **attrs)

    types = [*(x.type for x in consts), *(x.type.update(shape=x.shape[1:]) for x in xs)]
    body = trace.stage(step, types, name=op.name).program
    found = trace.bind(
        scan_p, *consts, *xs, body=body, num_consts=len(consts), num_carry=0, length=size, reverse=False
    )
    return found, (True,) * len(found)


def _batch_pure(ctx: Context, args: Values, batched: Flags, attrs: Any) -> tuple[Values, Flags]:
    method, size = attrs["vmap_method"], ctx.size
    if method is None:
        raise errors.MissingRuleError(
            "vmap of pure_callback needs to know how to call the function",
            expected=f"vmap_method= one of {', '.join(VMAP_METHODS)}",
            fix="'sequential' is always right; 'expand_dims' and 'broadcast_all' call once per batch",
        )
    if method == "sequential":
        return _one_by_one(pure_callback_p, size, args, batched, attrs)
    if method == "sequential_unrolled":
        rows = [
            trace.bind(
                pure_callback_p,
                *(_row(x, i) if b else x for x, b in zip(args, batched, strict=True)),
                **attrs,
            )
            for i in range(size)
        ]
        return [_stacked(column) for column in zip(*rows, strict=True)], (True,) * len(attrs["out_types"])
    if method == "broadcast_all":
        args = families.whole_batches(size, args, batched)
    elif method == "expand_dims":
        args = [
            x if b else trace.bind1(primitive.by_name("reshape"), x, shape=(1, *x.shape), ndim=x.ndim)
            for x, b in zip(args, batched, strict=True)
        ]
    out_types = tuple(t.update(shape=(size, *t.shape)) for t in attrs["out_types"])
    found = trace.bind(pure_callback_p, *args, **attrs.replace(out_types=out_types))
    return found, (True,) * len(found)


def _stacked(rows: Sequence[Value]) -> Value:
    reshape = primitive.by_name("reshape")
    wide = [trace.bind1(reshape, r, shape=(1, *r.shape), ndim=r.ndim) for r in rows]
    return trace.bind1(primitive.by_name("concatenate"), *wide, axis=-wide[0].ndim)


pure_callback_p: Primitive = primitive.register(
    Primitive(
        "pure_callback",
        None,
        {
            primitive.TYPE: lambda *types, callback, out_types, vmap_method: out_types,
            primitive.REFERENCE: _reference,
            primitive.JVP: _refuse("pure_callback"),
            primitive.BATCH: _batch_pure,
        },
        is_higher_order=True,
    )
)


def _batch_io(ctx: Context, args: Values, batched: Flags, attrs: Any) -> tuple[Values, Flags]:
    if attrs["ordered"]:
        raise errors.ValueMismatchError(
            "vmap cannot keep the order of an ordered io_callback", fix="map with lax.map instead"
        )
    return _one_by_one(io_callback_p, ctx.size, args, batched, attrs)


io_callback_p: Primitive = primitive.register(
    Primitive(
        "io_callback",
        None,
        {
            primitive.TYPE: lambda *types, callback, out_types, ordered: out_types,
            primitive.REFERENCE: _reference,
            primitive.JVP: _refuse("io_callback"),
            primitive.BATCH: _batch_io,
        },
        effect=lambda attrs: Effect.ORDERED_IO if attrs["ordered"] else Effect.IO,
        is_higher_order=True,
    )
)


def _prepared(
    callback: Callable[..., Any], result_shape_dtypes: Any, args: Any, kwargs: Any, what: str
) -> tuple[list[Any], ir.HostFunction, tuple[ArrayType, ...], tree.PyTreeDef]:
    if not callable(callback):
        raise errors.TypeMismatchError(f"{what} needs a function", got=repr(callback))
    leaves, in_tree = tree.flatten((args, kwargs))
    descriptions, out_tree = tree.flatten(result_shape_dtypes)
    out_types = tuple(_described(d, what) for d in descriptions)

    def run(*arrays: np.ndarray) -> list[Any]:
        positional, named = tree.unflatten(in_tree, arrays)
        found, found_tree = tree.flatten(callback(*positional, **named))
        if found_tree != out_tree:
            raise errors.TypeMismatchError(
                f"the callback of {what} returned another structure than declared",
                got=str(found_tree),
                expected=str(out_tree),
            )
        return found

    run.__name__ = getattr(callback, "__name__", type(callback).__name__)
    reference = host.register(run, key=("callback", what, callback, in_tree, out_tree))
    return leaves, reference, out_types, out_tree


def _described(x: Any, what: str) -> ArrayType:  # Any: anything with a shape and a dtype
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise errors.TypeMismatchError(
            f"{what}: result_shape_dtypes must hold shapes and dtypes",
            got=repr(x),
            expected="infini.ShapeDtypeStruct, arrays, or pytrees of these",
        )
    return ArrayType(tuple(int(n) for n in x.shape), dtypes.canonical(x.dtype))


def pure_callback(
    callback: Callable[..., Any],
    result_shape_dtypes: Any,
    *args: Any,
    sharding: Any = None,
    vmap_method: str | None = None,
    **kwargs: Any,
) -> Any:  # Any: pytrees
    """Call a Python function without side effects from inside any transformation, as `jax.pure_callback`.

    It may be called any number of times, or not at all when nothing needs its results.

    Args:
        callback: function of NumPy arrays in the structure of the arguments; returns the declared results.
        result_shape_dtypes: pytree of things with `shape` and `dtype`: what `callback` returns.
        *args: pytrees of arrays.
        sharding: accepted for JAX's sake; on a mesh the first device calls and the others get its results.
        vmap_method: how `vmap` calls it: `sequential` (or `sequential_unrolled`) once per element;
            `expand_dims` once, operands without the batch under a dimension of size 1; `broadcast_all` once,
            every operand with the whole batch; `legacy_vectorized` once, those operands as they are.
        **kwargs: pytrees of arrays.

    Returns:
        What the function returned.

    Raises:
        TypeMismatchError: `callback` is no function, or (from the program) returns another type.
        ValueMismatchError: `vmap_method` is unknown, or a derivative is asked for.

    Example:
        >>> import infini as inf, numpy as np
        >>> x = inf.numpy.float32(0.0)
        >>> inf.jit(lambda x: inf.pure_callback(np.cos, x, x))(x)
        Array(1., dtype=float32)
    """
    if vmap_method is not None and vmap_method not in VMAP_METHODS:
        raise errors.ValueMismatchError(
            "pure_callback: unknown vmap_method", got=repr(vmap_method), expected=", ".join(VMAP_METHODS)
        )
    leaves, reference, out_types, out_tree = _prepared(
        callback, result_shape_dtypes, args, kwargs, "pure_callback"
    )
    found = trace.bind(
        pure_callback_p, *leaves, callback=reference, out_types=out_types, vmap_method=vmap_method
    )
    return tree.unflatten(out_tree, found)


def io_callback(
    callback: Callable[..., Any],
    result_shape_dtypes: Any,
    *args: Any,
    sharding: Any = None,
    ordered: bool = False,
    **kwargs: Any,
) -> Any:  # Any: pytrees
    """Call a Python function that has side effects, exactly once per run, as `jax.experimental.io_callback`.

    Args:
        callback: function of NumPy arrays in the structure of the arguments; returns the declared results.
        result_shape_dtypes: pytree of things with `shape` and `dtype`: what `callback` returns; None for
            nothing.
        *args: pytrees of arrays.
        sharding: accepted for JAX's sake; on a mesh the first device calls and the others get its results.
        ordered: keep program order with other ordered calls.
        **kwargs: pytrees of arrays.

    Returns:
        What the function returned.

    Raises:
        TypeMismatchError: `callback` is no function, or (from the program) returns another type.
        ValueMismatchError: a derivative is asked for, or `vmap` of an ordered call.
    """
    leaves, reference, out_types, out_tree = _prepared(
        callback, result_shape_dtypes, args, kwargs, "io_callback"
    )
    found = trace.bind(io_callback_p, *leaves, callback=reference, out_types=out_types, ordered=bool(ordered))
    return tree.unflatten(out_tree, found)
