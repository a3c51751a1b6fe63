"""The parts of an array on several devices, as JAX's `Shard`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from infini.core import backend, errors, ir, sharding as sharding_

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
