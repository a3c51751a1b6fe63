"""Where a new array lives: the argument `device` of functions that make one."""

from __future__ import annotations

from typing import Any

from infini.core import array as array_
from infini.core.value import Literal, Value
from infini.transforms import placement


def placed(x: Value, device: Any) -> Value:  # Any: a device, a sharding, or None
    """`x` as an array, on `device` when one is named."""
    if isinstance(x, Literal):
        x = array_.materialize(x)
    return x if device is None else placement.device_put(x, device)
