"""The parts of an array on several devices, as JAX's `Shard`.

Buffers of parts are of one size. Where axes do not divide a dimension the last ones have a *tail*, elements
that are no part of the array and hold anything: `padded` adds it, `trimmed` takes it away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from infini.core import backend, config, dtypes, errors, ir, sharding as sharding_

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Shard(Generic[Part]):
    """The part of an array on one device.

    Args:
        device: where it is.
        index: which part of the array, as an index of it.
        replica_id: its number among the devices that hold the same part.
    """

    device: backend.Device
    index: tuple[slice, ...]
    replica_id: int
    _data: Part | None = field(repr=False)

    @property
    def is_addressable(self) -> bool:
        """Whether this process holds it."""
        return self._data is not None

    @property
    def data(self) -> Part:
        """The part as an array on its device.

        Raises:
            DeviceError: another process holds it.
        """
        if self._data is None:
            raise errors.DeviceError("another process holds this part", got=str(self.device))
        return self._data


def filler(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """What tails are filled with: 0, but where programs are checked something that shows when it is read."""
    if not config.get("check"):
        return 0
    if dtype in dtypes.FLOATS or dtype in dtypes.COMPLEX:
        return np.nan
    return True if dtype == dtypes.bool_ else np.iinfo(dtype).max


def padded(part: np.ndarray, room: ir.Shape) -> np.ndarray:
    """A part in a buffer of this shape."""
    if part.shape == room:
        return part
    whole = np.full(room, np.asarray(filler(part.dtype)).astype(part.dtype))
    whole[tuple(slice(size) for size in part.shape)] = part
    return whole


def trimmed(buffer: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    """The part of an array that a buffer holds for an index of it."""
    sizes = [n if s.stop is None else s.stop - s.start for s, n in zip(index, buffer.shape, strict=True)]
    return buffer[tuple(slice(size) for size in sizes)]


def of(
    shape: ir.Shape, sharding: sharding_.Sharding, parts: Mapping[backend.Device, Part]
) -> list[Shard[Part]]:
    """The shards of an array, in the order of its devices; `parts` holds those of this process."""
    found: list[Shard[Part]] = []
    for rank, device in enumerate(sharding.devices):
        index = sharding.index_of(shape, rank)
        replica = sum(shard.index == index for shard in found)
        found.append(Shard(device, index, replica, parts.get(device)))
    return found
