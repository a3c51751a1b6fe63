"""Functions of arrays outside every transformation: what has been computed a few times for one signature is
jitted, so the next time costs a call of machine code (see `core.backend.CallPath`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from infini.core import array, dtypes, ir, trace
from infini.transforms import staging

Function = TypeVar("Function", bound=Callable[..., Any])

AFTER: Final = 3  # calls of one signature before it is jitted
_MAX_SEEN: Final = 256  # signatures that are counted at a time
_NUMBERS: Final = frozenset({int, float, bool})
_NARROW: Final = dtypes.INTEGERS - {dtypes.int32, dtypes.int64}
_NO_KEYWORDS: Final[dict[str, Any]] = {}


def repeated(function: Function) -> Function:
    """Decorator of a function of arrays and numbers by position, none of which decides shapes."""
    jitted = staging.jit(function)
    seen: dict[tuple[Any, ...], int] = {}

    def is_frequent(args: tuple[Any, ...]) -> bool:
        """Whether arrays and numbers of these types have come often enough."""
        key = tuple([x.type if type(x) is array.Array else type(x) for x in args])
        if any(type(part) is type and part not in _NUMBERS for part in key):
            return False
        # A number that does not fit a narrow integer is an error, which only the function itself gives.
        if int in key and any(isinstance(part, ir.ArrayType) and part.dtype in _NARROW for part in key):
            return False
        count = seen.get(key, 0) + 1
        if count == 1 and len(seen) >= _MAX_SEEN:
            seen.clear()
        seen[key] = count
        return count > AFTER

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        path = jitted._path
        if path is not None:
            result = path(args, _NO_KEYWORDS)
            if result is not NotImplemented:
                return result
        if trace.is_eager() and is_frequent(args):
            return jitted(*args)
        return function(*args)

    return cast(Function, call)
