"""Functions of several operations as one program where operations run at once.

Every operation outside of tracing is a call of a compiled program; a function made of many would be many
calls. Here its operations are traced once per types of its operands and static arguments, and run together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from infini.core import array as array_, backend, execute, ir, trace
from infini.core.value import Literal, Value

Function = Callable[..., Value]  # of static arguments, then operands


def call(function: Function, static: tuple[Hashable, ...], operands: Sequence[int | Value]) -> Value:
    """`function(*static, *operands)`, as one program outside of tracing.

    Args:
        function: a function of a module, so that it is the same at every call.
        static: its first arguments, which select the program.
        operands: its other arguments; numbers are int32 scalars in the program.
    """
    if not trace.is_eager():
        return function(*static, *operands)
    device = backend.default_device()
    arrays = [index_array(x, device) if isinstance(x, int) else trace.to_array(x) for x in operands]
    runner, weak = _runner(function, static, tuple(x.type for x in arrays), tuple(x.weak for x in arrays))
    (result,) = runner(arrays)
    return result.with_weak(weak)


# At most 4096 programs, the least recently used out first.
@functools.lru_cache(maxsize=4096)
def _runner(
    function: Function, static: Any, types: tuple[ir.ArrayType, ...], weak: tuple[bool, ...]
) -> tuple[execute.Runner, bool]:  # Any: as in call
    staged = trace.stage(
        lambda *xs: [function(*static, *xs)], types, weak=weak, name=function.__name__.lstrip("_")
    )
    assert not staged.captures, "everything that varies is an operand"
    return execute.Runner(staged.program), staged.weak[0]


# At most 4096 numbers, the least recently used out first.
@functools.lru_cache(maxsize=4096)
def index_array(number: int, device: backend.Device) -> array_.Array:
    """An int32 scalar on the default device, which is `device`. Kept, since loops use indices again."""
    return array_.materialize(Literal(np.asarray(number, np.int32), weak=False))
