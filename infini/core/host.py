"""Python functions that programs refer to: callbacks and custom rules. A program holds
`HostFunction(name, id)`; this is the table.

Such a program prints and parses, but cannot be exported or cached on disk (design 4a.3). An entry lives as
long as a program, or anything else, holds its `HostFunction`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from infini.core import errors, ir

_functions: dict[int, Callable[..., Any]] = {}  # Any: functions of every kind
_by_key: weakref.WeakValueDictionary[Hashable, ir.HostFunction] = weakref.WeakValueDictionary()
_ids = itertools.count()


def register(function: Callable[..., Any], *, key: Hashable = None) -> ir.HostFunction:  # Any: see _functions
    """The attribute that stands for `function`. Calls with an equal `key` give the same one while it lives,
    so programs stay equal; without a key the function itself is the key.
    """
    key = ("function", function) if key is None else key
    try:
        known = _by_key.get(key)
    except TypeError:  # something in the key cannot be hashed: every call gives another attribute
        return _entered(function)
    if known is None:
        known = _by_key[key] = _entered(function)
    return known


def _entered(function: Callable[..., Any]) -> ir.HostFunction:
    name = getattr(function, "__name__", type(function).__name__)
    reference = ir.HostFunction(name, next(_ids))
    _functions[reference.id] = function
    weakref.finalize(reference, _functions.pop, reference.id, None)
    return reference


def lookup(reference: ir.HostFunction) -> Callable[..., Any]:  # Any: see _functions
    """The function an attribute stands for.

    Raises:
        ValueMismatchError: the program was parsed in another process, or its original is gone.
    """
    if reference.id not in _functions:
        raise errors.ValueMismatchError(
            f"the host function {reference.name!r} is not bound in this process",
            fix="trace the function again here; programs with callbacks or custom rules do not travel",
        )
    return _functions[reference.id]
