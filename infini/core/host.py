"""Python functions that programs refer to: callbacks and custom rules. A program holds
`HostFunction(name, id)`; this is the table.

Such a program prints and parses, but cannot be exported or cached on disk (design 4a.3). Entries live as
long as the process:
they are made once per decorated function or call site, not per call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any

from infini.core import errors, ir

_functions: dict[int, Callable[..., Any]] = {}  # Any: functions of every kind
_by_key: dict[Hashable, ir.HostFunction] = {}
_ids = itertools.count()


def register(function: Callable[..., Any], *, key: Hashable = None) -> ir.HostFunction:  # Any: see _functions
    """The attribute that stands for `function`. Calls with an equal `key` give the same one, so programs
    stay equal.
    """
    key = key if key is not None else ("function", function)
    if key not in _by_key:
        name = getattr(function, "__name__", type(function).__name__)
        _by_key[key] = ir.HostFunction(name, next(_ids))
        _functions[_by_key[key].id] = function
    return _by_key[key]


def lookup(reference: ir.HostFunction) -> Callable[..., Any]:  # Any: see _functions
    """The function an attribute stands for.

    Raises:
        ValueMismatchError: the program was parsed in another process, where it is unbound.
    """
    if reference.id not in _functions:
        raise errors.ValueMismatchError(
            f"the host function {reference.name!r} is not bound in this process",
            fix="trace the function again here; programs with callbacks or custom rules do not travel",
        )
    return _functions[reference.id]
