"""What modules share: making initial parameters on a device, and checking operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import infini.numpy as inp
from infini import random
from infini.core import backend, dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike
from infini.transforms import placement


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes parameters of one dtype on one device."""

    device: Any  # Any: as of device_put
    dtype: np.dtype

    def uniform(self, key: KeyLike, shape: Sequence[int], bound: float) -> Value:
        """Uniform in [-bound, bound)."""
        return self._placed(random.uniform(key, shape, self.dtype, -bound, bound))

    def normal(self, key: KeyLike, shape: Sequence[int], deviation: float = 1.0) -> Value:
        """Normal of mean 0."""
        return self._placed(random.normal(key, shape, self.dtype) * deviation)

    def full(self, shape: Sequence[int], value: float) -> Value:
        """One value everywhere."""
        return self._placed(inp.full(shape, value, self.dtype))

    def _placed(self, x: Value) -> Value:
        return x if self.device is None else placement.device_put(x, self.device)


def maker(device: Any, dtype: DTypeLike | None) -> Maker:  # Any: as of device_put, or a name
    """A maker of parameters; they are float32 when no dtype is given.

    Raises:
        DeviceError: there is no device of that name here.
        TypeMismatchError: the dtype is no float.
    """
    if isinstance(device, str):
        device = backend.device_by_name(device)
    target = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    if not dtypes.is_inexact(target):
        raise errors.TypeMismatchError("parameters have to be floats", got=target.name)
    return Maker(device, target)


def operand(name: str, x: ArrayLike, size: int | None = None, axis: int = -1) -> Value:
    """The operand of a module, with a certain size of one dimension.

    Raises:
        TypeMismatchError: it is no array, or the size is another one.
    """
    value = as_value(name, x)
    if size is not None and (value.ndim < (-axis if axis < 0 else axis + 1) or value.shape[axis] != size):
        raise errors.TypeMismatchError(
            f"{name}: the operand has another size than the module",
            got=str(value.type),
            expected=f"size {size} of dimension {axis}",
        )
    return value


def constant(x: Value) -> Value:
    """The same elements without a derivative."""
    return e.stop_gradient(x)
