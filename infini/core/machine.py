"""The machine that a program over a mesh is planned for, and how its collectives are put together: data.

The partitioner compares ways to split a program by the seconds that this data predicts; the formulas are in
`compiler.partition.costs`. Nothing here is measured while a program is compiled, so one program and one
machine give one plan, in every process of a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from infini.core import errors


@dataclass(frozen=True, slots=True)
class Link:
    """What connects the devices along an axis of a mesh.

    Args:
        bytes_per_s: bytes that one device sends in a second while all do.
        latency_s: seconds before the first byte of a message arrives.
    """

    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0 or not self.latency_s >= 0:
            raise errors.ValueMismatchError(
                "a link sends more than no bytes in a second, with a latency of no less than none",
                got=f"bytes_per_s={self.bytes_per_s}, latency_s={self.latency_s}",
            )


@dataclass(frozen=True, slots=True)
class Machine:
    """One device of a mesh, and the links between devices.

    Args:
        link: the link of axes that `links` does not name.
        links: links by the name of a mesh axis, as a mapping or as pairs.
        start_s: seconds to begin a collective, whatever is in it: the program is cut there, and all wait for
            the last.
        flops_per_s: floating-point operations of one device in a second.
        memory_bytes_per_s: bytes that one device reads or writes in a second.
        memory_bytes: memory of one device; None where it does not matter.

    Example:
        >>> from infini.sharding import Link, Machine
        >>> machine = Machine(Link(4e11), links={"dp": Link(2.5e10, latency_s=1e-5)}, flops_per_s=4e14)
        >>> machine.link_of(("dp", "tp")).bytes_per_s
        25000000000.0
    """

    link: Link
    links: tuple[tuple[str, Link], ...] | Mapping[str, Link] = ()
    start_s: float = 0.0
    flops_per_s: float = float("inf")
    memory_bytes_per_s: float = float("inf")
    memory_bytes: float | None = None
    _by_name: dict[str, Link] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        found = dict(self.links)
        object.__setattr__(self, "links", tuple(sorted(found.items())))
        object.__setattr__(self, "_by_name", found)
        if not (self.flops_per_s > 0 and self.memory_bytes_per_s > 0 and self.start_s >= 0):
            raise errors.ValueMismatchError(
                "a machine computes, reads and writes something in a second, and begins nothing too early",
                got=f"flops_per_s={self.flops_per_s}, memory_bytes_per_s={self.memory_bytes_per_s}, "
                f"start_s={self.start_s}",
            )

    def link_of(self, axes: tuple[str, ...]) -> Link:
        """The link of a ring over several axes: as slow as the slowest of them."""
        found = [self._by_name.get(axis, self.link) for axis in axes] or [self.link]
        return Link(min(link.bytes_per_s for link in found), max(link.latency_s for link in found))


@dataclass(frozen=True, slots=True)
class Collectives:
    """How the collectives of a program are put together.

    Args:
        first_bucket_bytes: size up to which the first collectives over the same axes are joined into one. It
            is small, so that communication begins early.
        bucket_bytes: the same for all after the first; 0 joins nothing.
        window_bytes: size of the gathers of parameters that begin together, before they are needed; of what a
            loop does not change, or reads row by row, that is gathered once, before the loop; and of all that
            is gathered and alive where an array is kept that would be gathered again. With 0 every use of a
            parameter gathers it.
        deterministic: add up in the order of the devices, so that sums have the same bits however they
            travel.
    """

    first_bucket_bytes: int = 1 << 20
    bucket_bytes: int = 25 << 20
    window_bytes: int = 25 << 20
    deterministic: bool = False


# Bytes that are sent decide, and what is computed counts little: a device does a thousand operations while it
# sends a byte, and sends 16 kB while it begins a collective. The ratios are those of accelerators; the unit
# is arbitrary.
DEFAULT: Final = Machine(Link(2.0**37), start_s=2.0**-23, flops_per_s=2.0**47, memory_bytes_per_s=2.0**41)
