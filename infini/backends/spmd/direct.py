"""What a backend may offer to programs over a mesh besides: exchanges between the memories of its devices,
and rows of arrays that stay there.

A backend without these has its arrays taken to the host and back for each exchange, which is right
everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from infini.backends.spmd import collectives
from infini.backends.spmd.thread import Pending
from infini.core.backend import Buffer, Device
from infini.core.comm import Comm
from infini.core.ir import ArrayType, Equation

Column: TypeAlias = list[Buffer]  # one buffer per device of this process


class Direct(Protocol):
    """Makes exchanges between the memories of devices, in one run of a program."""

    def turn(self) -> contextlib.AbstractContextManager[object]:
        """What the whole run is inside of: threads take turns, since exchanges have to begin in one order on
        all devices.
        """

    def some(self, numbers: Sequence[int]) -> Direct:
        """For a part of the run on some of the devices here, by their numbers, while others are elsewhere."""

    def start(self, equation: Equation, columns: Sequence[Column]) -> Pending[list[Column]] | None:
        """Begin an exchange, in the order of what was started before; None for one that has to go through the
        host, on all devices that take part.

        The operands may be overwritten by what is started after it was awaited. Nobody waits on the host.

        Raises:
            CollectiveError: the exchange failed; the message names the operation and the user's line.
        """


@runtime_checkable
class Connects(Protocol):
    """A backend whose devices may reach each other."""

    def direct(
        self, mesh: collectives.Mesh, devices: Sequence[Device], comm: Comm, *, is_ordered: bool
    ) -> Direct | None:
        """What makes the exchanges of a program over a mesh; None when they all go through the host.

        Args:
            mesh: the mesh, and the ranks of it here.
            devices: all of its devices.
            comm: communication of their processes by the host.
            is_ordered: whether every sum is taken in the order of the devices.
        """


@runtime_checkable
class Stacks(Protocol):
    """A backend that takes rows out of arrays, and puts them in, where they are."""

    def empty(self, type_: ArrayType, device: Device) -> Buffer:
        """Memory for an array, with any content."""

    def row(self, buffer: Buffer, type_: ArrayType, number: int) -> Buffer:
        """A row of an array whose rows have a type; a view of its memory where that is possible."""

    def put_row(self, buffer: Buffer, type_: ArrayType, number: int, row: Buffer) -> None:
        """Write a row of an array whose rows have a type."""


@runtime_checkable
class Placeable(Protocol):
    """An executable that can be told where to run, for programs that read nothing."""

    def run_on(self, inputs: Sequence[Buffer], device: Device) -> tuple[Buffer, ...]:
        """Run on a device."""
