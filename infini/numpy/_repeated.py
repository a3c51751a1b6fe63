"""Functions of arrays outside every transformation are jitted programs: one kernel instead of one per
operation, and a repeated call costs a call of machine code (see `core.backend.CallPath`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from infini.core import array, config, dtypes, errors, sharding, trace
from infini.transforms import signature, staging

Function = TypeVar("Function", bound=Callable[..., Any])

_MAX_SIGNATURES: Final = 32
_NUMBERS: Final = frozenset({int, float, bool})
_WIDE: Final = dtypes.INEXACT | {dtypes.int32, dtypes.int64}


def repeated(*static: str) -> Callable[[Function], Function]:
    """Decorator of a function of arrays and numbers; `static` are the arguments that decide shapes."""

    def decorate(function: Function) -> Function:
        options = staging.Options(signature.Marks.of(function, None, static or None))
        # There are many of these functions, and whoever computes with ever new shapes uses them all.
        jitted = staging.Jitted(function, options, _MAX_SIGNATURES)
        positions = [n for n, name in enumerate(inspect.signature(function).parameters) if name in static]

        def is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
            """Whether the operands are arrays on one device and numbers that fit their dtypes, and nobody
            looks at what is computed where.
            """
            if config.in_block() or config.current().inspects or config.get("explain"):
                return False
            operands = [x for n, x in enumerate(args) if n not in positions]
            operands += [x for name, x in kwargs.items() if name not in static]
            has_integer, is_wide = False, True
            for x in operands:
                if type(x) is array.Array:
                    if type(x.sharding) is not sharding.SingleDeviceSharding or x.layout is not None:
                        return False
                    is_wide &= x.type.dtype in _WIDE
                elif type(x) not in _NUMBERS:
                    return False
                has_integer |= type(x) is int
            # One that does not fit a narrow integer is an error, which only the function itself gives.
            return is_wide or not has_integer

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            path = jitted._path
            if path is not None:
                result = path(args, kwargs)
                if result is not NotImplemented:
                    return result
            if trace.is_eager() and is_plain(args, kwargs):
                try:
                    return jitted(*args, **kwargs)
                except errors.InfiniError:
                    pass  # the function itself says it in its own words
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate
