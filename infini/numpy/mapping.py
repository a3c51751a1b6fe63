"""Functions of scalars, vectors and axes applied to whole arrays: `vectorize`, `apply_along_axis`,
`apply_over_axes`, `piecewise`. All of them are `vmap`, so they may be traced and differentiated."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from infini.core import errors, primitive
from infini.core.primitive import Signature
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes, comparison, creation
from infini.numpy._promotion import ArrayLike, as_value, convert
from infini.transforms import batching

Function = Callable[..., Any]  # Any: functions of arrays that return arrays


def apply_along_axis(
    func1d: Function, axis: int, arr: ArrayLike, *args: Any, **kwargs: Any
) -> Any:  # Any: further arguments, and what the function returns
    """A function of vectors applied along an axis, as `numpy.apply_along_axis`.

    Args:
        func1d: function of a vector.
        axis: the axis of the vectors.
        arr: array.
        *args: further arguments of the function.
        **kwargs: its keywords.

    Returns:
        The dimensions of the function's result stand in place of the axis.

    Raises:
        ValueMismatchError: there is no such axis.
    """
    x = as_value("apply_along_axis", arr)
    place = _axes.one("apply_along_axis", axis, x.ndim)

    def mapped(vector: Value) -> Any:
        return func1d(vector, *args, **kwargs)

    for d in range(1, x.ndim - place):
        mapped = batching.vmap(mapped, in_axes=d, out_axes=-1)
    for _ in range(place):
        mapped = batching.vmap(mapped)
    return mapped(x)


def apply_over_axes(func: Callable[[Value, int], Value], a: ArrayLike, axes: Sequence[int]) -> Value:
    """A function such as `sum` applied over several axes one after another, which stay, as
    `numpy.apply_over_axes`.

    Raises:
        ValueMismatchError: the function returns an array of another number of dimensions.
    """
    x = as_value("apply_over_axes", a)
    for axis in axes if isinstance(axes, Sequence) else (axes,):
        result = func(x, axis)
        if result.ndim == x.ndim - 1:
            result = view.expand_dims(result, (_axes.one("apply_over_axes", axis, x.ndim),))
        if result.ndim != x.ndim:
            raise errors.ValueMismatchError(
                "apply_over_axes: the function has to keep the other axes", got=f"{x.type} to {result.type}"
            )
        x = result
    return x


def piecewise(
    x: ArrayLike, condlist: Any, funclist: Sequence[Any], *args: Any, **kw: Any
) -> Value:  # Any: conditions; numbers and functions; further arguments of the functions
    """Values by functions that apply where conditions hold, as `jax.numpy.piecewise`.

    Args:
        x: array.
        condlist: conditions, boolean arrays like `x`; of those that hold together the last counts.
        funclist: for each condition a function or a number; one more applies where none holds, which is 0
            when absent.
        *args: further arguments of the functions.
        **kw: their keywords.

    Returns:
        An array like `x`, in its dtype.

    Raises:
        ValueMismatchError: there are fewer or more functions than conditions, and one more.
    """
    value = as_value("piecewise", x)
    is_stacked = isinstance(condlist, (Value, np.ndarray)) and condlist.ndim
    conditions = list(view.unstack(condlist)) if is_stacked else list(condlist)
    functions = list(funclist)
    if len(functions) == len(conditions) + 1:
        functions = [functions[-1], *functions[:-1]]
    elif len(functions) == len(conditions):
        functions = [0, *functions]
    else:
        raise errors.ValueMismatchError(
            "piecewise needs a function per condition, and may have one more",
            got=f"{len(functions)} functions, {len(conditions)} conditions",
        )

    def values_of(function: Any) -> Value:
        result = function(value, *args, **kw) if callable(function) else creation.full_like(value, function)
        return convert(result, value.dtype, value.weak)

    result = values_of(functions[0])
    for condition, function in zip(conditions, functions[1:], strict=True):
        result = comparison.where(condition, values_of(function), result)
    return result


# --- vectorize --------------------------------------------------------------------------------------


def vectorize(
    pyfunc: Function, *, excluded: Collection[int | str] = frozenset(), signature: str | None = None
) -> Function:
    """A function of arrays from one of scalars, or of the core dimensions of a signature, as
    `jax.numpy.vectorize`.

    Args:
        pyfunc: function to map.
        excluded: positions and names of arguments that are passed as they are.
        signature: core dimensions in gufunc notation, for example `(m,k),(k)->(m)`; scalars when absent.

    Returns:
        A function whose arguments broadcast in their other dimensions. Keywords are passed as they are.

    Raises:
        ValueMismatchError: the signature is malformed.

    Example:
        >>> import infini.numpy as inp
        >>> row_sums = inp.vectorize(inp.sum, signature="(n)->()")
        >>> row_sums(inp.ones((2, 3))).tolist()
        [3.0, 3.0]
    """
    if any(not isinstance(key, (str, int)) for key in excluded):
        raise errors.TypeMismatchError("vectorize: excluded holds positions and names", got=repr(excluded))
    if any(isinstance(key, int) and key < 0 for key in excluded):
        raise errors.ValueMismatchError("vectorize: excluded holds a negative position", got=repr(excluded))

    @functools.wraps(pyfunc)
    def wrapped(*args: ArrayLike, **kwargs: Any) -> Any:
        mapped = [i for i in range(len(args)) if i not in excluded]
        values = [as_value("vectorize", args[i]) for i in mapped]
        parsed = _parsed(signature, len(values))
        sizes = _core_sizes(parsed, values)

        def core(*arrays: Value) -> Any:
            given: list[Any] = list(args)
            for i, array in zip(mapped, arrays, strict=True):
                given[i] = array
            result = pyfunc(*given, **kwargs)
            if signature is not None:
                _check_results(parsed, result, sizes)
            return result

        return _mapped(core, values, [len(letters) for letters in parsed.inputs])(values)

    return wrapped


def _parsed(signature: str | None, count: int) -> Signature:
    if signature is None:
        return Signature(((),) * count, ())
    parsed = primitive.parse_signature(re.sub(r"\s", "", signature))
    if len(parsed.inputs) != count:
        raise errors.TypeMismatchError(
            f"vectorize: the signature {signature} has another number of arguments", got=f"{count} arguments"
        )
    return parsed


def _core_sizes(parsed: Signature, values: Sequence[Value]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letters, value in zip(parsed.inputs, values, strict=True):
        if value.ndim < len(letters):
            raise errors.ValueMismatchError(
                f"vectorize: an argument has too few dimensions for {letters}", got=str(value.type)
            )
        for letter, n in zip(letters, value.shape[value.ndim - len(letters) :], strict=True):
            if sizes.setdefault(letter, n) != n:
                raise errors.ValueMismatchError(
                    f"vectorize: dimension {letter!r} has sizes {sizes[letter]} and {n}", got=str(value.type)
                )
    return sizes


def _check_results(parsed: Signature, result: Any, sizes: dict[str, int]) -> None:  # Any: what was returned
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(parsed.outputs) or (len(results) > 1) != isinstance(result, tuple):
        raise errors.TypeMismatchError(
            f"vectorize: the function has to return {len(parsed.outputs)} arrays", got=f"{len(results)}"
        )
    known = dict(sizes)
    for letters, value in zip(parsed.outputs, results, strict=True):
        shape = np.shape(value)
        if len(shape) != len(letters) or any(
            known.setdefault(letter, n) != n for letter, n in zip(letters, shape, strict=True)
        ):
            raise errors.ValueMismatchError(
                f"vectorize: a result has another shape than {letters}", got=str(shape), expected=str(known)
            )


def _mapped(core: Function, values: Sequence[Value], ranks: Sequence[int]) -> Function:
    """`core` mapped over the loop dimensions of its arguments, which broadcast; those of size 1 repeat."""
    loops = [value.shape[: value.ndim - rank] for value, rank in zip(values, ranks, strict=True)]
    shape = _axes.broadcast("vectorize", *loops)
    wide = [(1,) * (len(shape) - len(loop)) + loop for loop in loops]
    squeezed = [
        view.reshape(value, [*(n for n in loop if n != 1), *value.shape[value.ndim - rank :]])
        for value, loop, rank in zip(values, wide, ranks, strict=True)
    ]
    function, added = core, []
    for d in reversed(range(len(shape))):
        axes = tuple(0 if loop[d] != 1 else None for loop in wide)
        if any(axis == 0 for axis in axes):
            function = batching.vmap(function, in_axes=axes)
        else:
            added.append(d)

    def run(_: Sequence[Value]) -> Any:
        result = function(*squeezed)
        results = result if isinstance(result, tuple) else (result,)
        placed = tuple(
            view.expand_dims(creation.asarray(r), added) if added else creation.asarray(r) for r in results
        )
        return placed if isinstance(result, tuple) else placed[0]

    return run
