"""Between arrays and the host, and how functions run: `device_get`, `block_until_ready`, `disable_jit`,
`ensure_compile_time_eval`, `named_scope`, `closure_convert`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from infini.core import array, config, dtypes, errors, source, trace, tree
from infini.core.value import Value
from infini.transforms import flat


def block_until_ready(x: Any) -> Any:  # Any: pytrees
    """Wait for every array of a tree, and return the tree.

    Raises:
        DeletedBufferError: an array was donated or deleted.
    """
    _wait(x)
    return x


def _wait(item: Any) -> None:
    # Containers of Python are walked here: flattening sorts keys and notes the structure, which nobody needs.
    kind = type(item)
    if kind is dict:
        for value in item.values():
            _wait(value)
    elif kind is list or kind is tuple:
        for value in item:
            _wait(value)
    elif isinstance(item, array.Array):
        _ = item.buffers
        item.block_until_ready()
    elif item is not None:
        for leaf in tree.leaves(item):
            if leaf is not item:
                _wait(leaf)


def effects_barrier() -> None:
    """Wait until the callbacks of all programs have run. They have when the call of a program returns, so
    there is nothing to wait for; as `jax.effects_barrier`.
    """


def device_get(x: Any) -> Any:  # Any: pytrees
    """A tree of arrays as NumPy arrays; other leaves as they are."""
    return tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, Value) else leaf, x)


@contextlib.contextmanager
def disable_jit(disable: bool = True) -> Iterator[None]:
    """Run jitted functions and control flow as plain Python inside the block, as `jax.disable_jit`.

    Values can be printed, and a debugger stops, in jitted functions and in bodies of `scan`, `while_loop`,
    `fori_loop`, `cond` and `switch`.

    Args:
        disable: False turns compilation on again inside the block.

    Example:
        >>> import infini as inf
        >>> with inf.disable_jit():
        ...     inf.jit(lambda x: print("x is", x))(2)
        x is 2
    """
    with config.config(disable_jit=disable):
        yield


@contextlib.contextmanager
def ensure_compile_time_eval() -> Iterator[None]:
    """Run operations on known values at once inside the block, even while tracing, as
    `jax.ensure_compile_time_eval`.

    Values that are being traced cannot be used in it.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> @inf.jit
        ... def f(x):
        ...     with inf.ensure_compile_time_eval():
        ...         count = int(inp.asarray([1, 2]).sum())
        ...     return x * count
        >>> f(2)
        Array(6, dtype=int32, weak_type=True)
    """
    with trace.eagerly():
        yield


def named_scope(name: str) -> Any:  # Any: a context manager that is also a decorator
    """Give the operations inside a block, or of a function, a name that errors and printed programs show.

    Args:
        name: the name; scopes inside scopes are joined with a slash.

    Raises:
        TypeMismatchError: `name` is no string.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> with inf.named_scope("attention"):
        ...     y = inp.sin(0.5)
    """
    if not isinstance(name, str):
        raise errors.TypeMismatchError("named_scope needs a string", got=repr(name))
    return source.named_scope(name)


def named_call(fun: Callable[..., Any], *, name: str | None = None) -> Callable[..., Any]:
    """A function whose operations carry a name, as `jax.named_call`; see `named_scope`.

    Args:
        fun: the function.
        name: the name; that of the function when absent.
    """
    if not callable(fun):
        raise errors.TypeMismatchError("named_call needs a function", got=repr(fun))
    scope = name if name is not None else getattr(fun, "__name__", type(fun).__name__)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        with named_scope(scope):
            return fun(*args, **kwargs)

    return run


def closure_convert(
    fun: Callable[..., Any], *example_args: Any
) -> tuple[Callable[..., Any], list[Value]]:  # Any: pytrees
    """Turn traced values that a function closes over into arguments, as `jax.closure_convert`.

    A `custom_vjp` function that takes another function as an argument needs it to differentiate with respect
    to what that function closes over.

    Args:
        fun: function of arrays and pytrees.
        *example_args: arguments; only their types matter.

    Returns:
        `(converted, values)`, where `converted(*args, *values)` equals `fun(*args)`. The values are those
        that are traced and have derivatives; others stay closed over.
    """
    leaves, in_tree = tree.flatten((example_args, {}))
    operands = flat.values(leaves, "arguments of closure_convert")
    f = flat.FlatFunction(fun, in_tree)
    staged = trace.stage(f, [x.type for x in operands], weak=[x.weak for x in operands])
    is_hoisted = [isinstance(c, trace.Tracer) and dtypes.is_inexact(c.dtype) for c in staged.captures]
    hoisted = list(flat.iterate(staged.captures, is_hoisted))
    arg_tree, out_tree, count = tree.structure(example_args), f.out_tree, len(example_args)
    assert out_tree is not None

    def converted(*args_and_values: Any) -> Any:
        args, moved = args_and_values[:count], iter(args_and_values[count:])
        given, given_tree = tree.flatten(args)
        if given_tree != arg_tree:
            raise errors.TypeMismatchError(
                "a converted function takes arguments of the structure of the examples",
                got=str(given_tree),
                expected=str(arg_tree),
            )
        captures = [
            trace.as_value(next(moved)) if flag else c
            for c, flag in zip(staged.captures, is_hoisted, strict=True)
        ]
        values = flat.values(given, "arguments of a converted function")
        found = trace.evaluate(staged.program, [*captures, *values])
        marked = [r.with_weak(flag) for r, flag in zip(found, staged.weak, strict=True)]
        return tree.unflatten(out_tree, f.out_holes.fill(flat.finished(marked)))

    return converted, hoisted
