"""Trees of arrays as one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infini.core import errors, tree
from infini.core.value import Value
from infini.numpy import _promotion, creation, joining, manipulation


def ravel_pytree(pytree: Any) -> tuple[Value, Callable[[Value], Any]]:  # Any: a pytree
    """All leaves of a tree as one vector, and the function that undoes it.

    Args:
        pytree: leaves of any shapes and dtypes.

    Returns:
        The vector in the promoted dtype, and a function from such a vector to a tree like `pytree`, which
        takes any dtype when all leaves have one.

    Raises:
        ValueMismatchError: the function is given a vector of another size.
        TypeMismatchError: it is given another dtype and the leaves have several.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.flatten_util import ravel_pytree
        >>> flat, undo = ravel_pytree({"a": inp.ones((2, 2)), "b": inp.arange(2)})
        >>> print(flat)
        [1. 1. 1. 1. 0. 1.]
        >>> print(undo(flat)["b"])
        [0 1]
    """
    leaves, structure = tree.flatten(pytree)
    arrays = [creation.asarray(leaf) for leaf in leaves]
    types = [array.type for array in arrays]
    ends = np.cumsum([t.size for t in types])
    if not arrays:
        flat = creation.zeros(0, np.float32)
    elif len(arrays) == 1:
        flat = manipulation.ravel(arrays[0])
    else:
        joined = _promotion.result_type(*(t.dtype for t in types))
        flat = joining.concatenate([manipulation.ravel(_promotion.convert(x, joined)) for x in arrays])
    wanted = flat.type
    is_uniform = len({t.dtype for t in types}) <= 1

    def unravel(vector: Value) -> Any:  # Any: a pytree
        given = _promotion.as_value("unravel", vector)
        if given.shape != wanted.shape:
            raise errors.ValueMismatchError(
                "unravel: the vector has another size than the tree",
                got=str(given.type),
                expected=str(wanted),
            )
        if not is_uniform and given.dtype != wanted.dtype:
            raise errors.TypeMismatchError(
                "unravel: the vector has another dtype than the leaves together",
                got=str(given.type),
                expected=str(wanted),
            )
        parts = joining.split(given, ends[:-1]) if types else []
        restored = [
            manipulation.reshape(part if is_uniform else _promotion.convert(part, t.dtype), t.shape)
            for part, t in zip(parts, types, strict=True)
        ]
        return tree.unflatten(structure, restored)

    return flat, unravel
