"""Prints and callbacks for looking at run-time values: `debug.print` and `debug.callback`."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infini.core import errors, host, trace, tree
from infini.lax.callbacks import debug_callback_p as debug_callback_p


def debug_callback(
    callback: Callable[..., None] | None = None,
    *args: Any,
    ordered: bool = False,
    partitioned: bool = False,
    **kwargs: Any,
) -> Any:  # Any: pytrees; None, or a decorator
    """Call a Python function with run-time values, from inside any transformation, as `jax.debug.callback`.

    Args:
        callback: function of NumPy arrays in the structure of the arguments; its result is ignored.
        *args: pytrees of arrays.
        ordered: keep program order with other ordered calls.
        partitioned: accepted for JAX's sake; on a mesh the first device calls, with whole arrays.
        **kwargs: pytrees of arrays.

    Raises:
        TypeMismatchError: `callback` is no function.
    """
    if callback is None:
        return functools.partial(functools.partial, debug_callback, ordered=ordered, partitioned=partitioned)
    if not callable(callback):
        raise errors.TypeMismatchError("debug.callback needs a function", got=repr(callback))
    leaves, treedef = tree.flatten((args, kwargs))

    def run(*arrays: np.ndarray) -> None:
        positional, named = tree.unflatten(treedef, arrays)
        callback(*positional, **named)

    reference = host.register(run, key=("debug callback", callback, treedef))
    trace.bind(debug_callback_p, *leaves, callback=reference, ordered=bool(ordered))
    return None


class _Checking(string.Formatter):
    """`str.format` that also refuses values which the format string does not use."""

    def check_unused_args(
        self, used_args: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:  # Any: as string.Formatter
        unused = [repr(i) for i in range(len(args)) if i not in used_args]
        unused += [repr(name) for name in kwargs if name not in used_args]
        if unused:
            raise errors.ValueMismatchError(
                "debug.print was given values that its format string does not use",
                got=", ".join(unused),
                fix="add {} or {name} for them; an f-string is formatted while tracing",
            )


def debug_print(
    fmt: str,
    *args: Any,
    ordered: bool = False,
    partitioned: bool = False,
    skip_format_check: bool = False,
    **kwargs: Any,
) -> None:
    """Print run-time values from inside any transformation, as `jax.debug.print`.

    Args:
        fmt: format string for `str.format`.
        *args: values for `{}`.
        ordered: keep program order with other ordered prints.
        partitioned: accepted for JAX's sake; on a mesh the first device prints, with whole arrays.
        skip_format_check: do not compare `fmt` with the values while tracing.
        **kwargs: values for `{name}`.

    Raises:
        TypeMismatchError: `fmt` is no string.
        ValueMismatchError: a value is not used.

    Example:
        >>> import infini
        >>> infini.debug.print("x = {}", infini.numpy.float32(1.5))
        x = 1.5
    """
    if not isinstance(fmt, str):
        raise errors.TypeMismatchError(
            "the format of debug.print must be a string", got=repr(fmt), fix='write debug.print("{}", x)'
        )
    leaves, treedef = tree.flatten((args, kwargs))
    if not skip_format_check:
        blank = tree.unflatten(treedef, [0] * len(leaves))
        try:
            _Checking().vformat(_without_specs(fmt), *blank)
        except IndexError as error:
            raise errors.IndexOutOfRangeError(
                "debug.print was given fewer values than its format string uses", got=f"{fmt!r}, {len(args)}"
            ) from error

    def show(*arrays: np.ndarray) -> None:
        positional, named = tree.unflatten(treedef, arrays)
        print(fmt.format(*positional, **named), flush=True)  # noqa: T201  # printing is the point

    reference = host.register(show, key=("print", fmt, treedef))
    trace.bind(debug_callback_p, *leaves, callback=reference, ordered=bool(ordered))


def _without_specs(fmt: str) -> str:
    """The format string without format specifications, which are for the values."""
    parts = []
    for text, field, _, _ in string.Formatter().parse(fmt):
        parts.append(text.replace("{", "{{").replace("}", "}}"))
        if field is not None:
            parts.append("{" + field.partition(".")[0].partition("[")[0] + "}")
    return "".join(parts)
