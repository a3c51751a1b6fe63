"""Operations with effects on the host: `debug_callback`, the one behind `debug.print`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infini.core import host, primitive, trace, tree
from infini.core.primitive import Effect, Primitive
from infini.core.value import Value
from infini.lax.calls import Context, Flags, MaybeValues, Values


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: Any) -> tuple[Values, MaybeValues]:
    return trace.bind(debug_callback_p, *primals, **attrs), ()


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: Any
) -> tuple[Values, MaybeValues]:
    return ctx.bind_primal(debug_callback_p, *primals, **attrs), ()


def _batch(ctx: Context, args: Values, batched: Flags, attrs: Any) -> tuple[Values, Flags]:
    # One call per element, in order.
    for i in range(ctx.size):
        trace.bind(
            debug_callback_p, *(_row(x, i) if b else x for x, b in zip(args, batched, strict=True)), **attrs
        )
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


def run_callback(arrays: tuple[np.ndarray, ...], callback: Any) -> None:
    """Call the host function of a `debug_callback` equation with read-only arrays."""
    host.lookup(callback)(*arrays)


def _reference(evaluate: Any, *arrays: np.ndarray, callback: Any, ordered: bool) -> tuple[()]:
    run_callback(arrays, callback)
    return ()


debug_callback_p: Primitive = primitive.register(
    Primitive(
        "debug_callback",
        None,
        {
            primitive.TYPE: lambda *types, callback, ordered: (),
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.LINEARIZE: _linearize,
            primitive.BATCH: _batch,
        },
        effect=lambda attrs: Effect.ORDERED_IO if attrs["ordered"] else Effect.IO,
        is_higher_order=True,
    )
)


def debug_callback(callback: Callable[..., None], *args: Any, ordered: bool = False, **kwargs: Any) -> None:
    """Call a Python function with run-time values, from inside any transformation.

    Args:
        callback: function of NumPy arrays in the structure of the arguments; its result is ignored.
        *args: pytrees of arrays.
        ordered: keep program order with other ordered calls.
        **kwargs: pytrees of arrays.
    """
    leaves, treedef = tree.flatten((args, kwargs))

    def run(*arrays: np.ndarray) -> None:
        positional, named = tree.unflatten(treedef, arrays)
        callback(*positional, **named)

    reference = host.register(run, key=("callback", callback, treedef))
    trace.bind(debug_callback_p, *leaves, callback=reference, ordered=ordered)


def debug_print(fmt: str, *args: Any, ordered: bool = False, **kwargs: Any) -> None:
    """Print run-time values from inside any transformation, as `jax.debug.print`.

    Args:
        fmt: format string for `str.format`.
        *args: values for `{}`.
        ordered: keep program order with other ordered prints.
        **kwargs: values for `{name}`.

    Example:
        >>> import infini
        >>> infini.debug.print("x = {}", infini.numpy.float32(1.5))
        x = 1.5
    """
    leaves, treedef = tree.flatten((args, kwargs))

    def show(*arrays: np.ndarray) -> None:
        positional, named = tree.unflatten(treedef, arrays)
        print(fmt.format(*positional, **named), flush=True)  # noqa: T201  # printing is the point

    reference = host.register(show, key=("print", fmt, treedef))
    trace.bind(debug_callback_p, *leaves, callback=reference, ordered=ordered)
