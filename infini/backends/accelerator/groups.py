"""Groups of devices that communicate without the host: what a vendor's library of collectives offers, and the
communicators that were made with it.

The devices of one process become members together. Those of several processes meet once per group: the first
one makes an identifier, and all tell each other who they are over the communication of the host.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import msgpack
import numpy as np

from infini.backends.spmd.activity import WatchedComm
from infini.core import comm as comm_, errors, events
from infini.core.backend import Device


class Communicator(Protocol):
    """One member of a group. Addresses are of its device, counts are elements, streams its own. Calls are put
    into the stream and return.
    """

    num_ranks: int
    rank: int

    def all_reduce(self, send: int, recv: int, n: int, dtype: np.dtype, op: str, stream: int) -> None:
        """Reduce `n` elements over the members."""

    def all_gather(self, send: int, recv: int, n: int, dtype: np.dtype, stream: int) -> None:
        """`n` elements of every member, one after another."""

    def reduce_scatter(self, send: int, recv: int, n: int, dtype: np.dtype, op: str, stream: int) -> None:
        """Reduce, and give every member `n` elements of the result."""

    def broadcast(self, send: int, recv: int, n: int, dtype: np.dtype, root: int, stream: int) -> None:
        """What one member sends, for all."""

    def send(self, send: int, n: int, dtype: np.dtype, peer: int, stream: int) -> None:
        """Give `n` elements to a member that takes them by `recv`."""

    def recv(self, recv: int, n: int, dtype: np.dtype, peer: int, stream: int) -> None:
        """Take `n` elements from a member that gives them by `send`."""

    def group(self) -> contextlib.AbstractContextManager[None]:
        """Calls of the block, of all communicators of this process, go together."""

    @property
    def has_groups(self) -> bool:
        """Whether `group` puts calls together; where not, they go one by one."""

    def check(self) -> None:
        """Raise what went wrong with calls that have returned.

        Raises:
            CollectiveError: something did.
        """

    def abort(self) -> None:
        """Leave the group, whatever goes on in it."""


class Library(Protocol):
    """A vendor's collectives."""

    @property
    def dtypes(self) -> Collection[np.dtype]:
        """Those that it takes."""

    @property
    def has_messages(self) -> bool:
        """Whether it sends and receives."""

    def new_id(self) -> bytes:
        """What the members of one group share: made by one, given to all."""

    def join(self, id_: bytes, num_ranks: int, rank: int, device: int) -> Communicator:
        """Become a member of a group; returns when all of them have.

        Raises:
            CollectiveError: the library refuses.
        """

    def join_all(self, devices: Sequence[int]) -> Sequence[Communicator]:
        """A group of devices of this process, in this order.

        Raises:
            CollectiveError: the library refuses.
        """


Members: TypeAlias = tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A group that was made, or why there is none.

    Args:
        communicators: of this process, by the number of the member.
        dtypes: what their library takes.
        reason: why the devices cannot reach each other.
    """

    communicators: Mapping[int, Communicator]
    dtypes: Collection[np.dtype] = ()
    reason: str | None = None


@dataclass
class Groups:
    """The groups of one backend, made when they are first used and kept as long as the process.

    Args:
        name: of the backend.
        library: the vendor's, or None.
        reason: why there is none.
    """

    name: str
    library: Library | None
    reason: str | None
    _made: dict[Members, Found] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, members: Members, number: int, identify: Callable[[int], str]) -> Found:
        """The group of some devices. Where they are of several processes, the first call waits for those.

        Args:
            members: the devices, one of them at least of this process.
            number: of the device of this process, where there are several processes.
            identify: tells a device of this process from others of its machine.
        """
        found = self._made.get(members)
        if found is not None:
            return found
        with self._lock:
            found = self._made.get(members)
            if found is None:
                index = comm_.processes().index
                is_alone = all(device.process_index == index for device in members)
                found = self._alone(members) if is_alone else self._met(members, number, identify(number))
                self._made[members] = found
                if found.reason is not None:
                    names = ", ".join(map(str, members))
                    message = f"exchanges of {names} go through the host: {found.reason}"
                    events.emit("exchanges-by-host", message, devices=tuple(map(str, members)))
            return found

    def check(self) -> None:
        """Raise what went wrong with calls that have returned.

        Raises:
            CollectiveError: something did.
        """
        for found in tuple(self._made.values()):
            for communicator in found.communicators.values():
                communicator.check()

    def abort(self) -> None:
        """Leave all groups: after a failure nothing is known of what is still on its way."""
        with self._lock:
            made, self._made = self._made, {}
        for found in made.values():
            for communicator in found.communicators.values():
                with contextlib.suppress(errors.InfiniError):
                    communicator.abort()

    @property
    def _why_not(self) -> str | None:
        if self.library is None:
            return self.reason or f"{self.name} has no library of collectives"
        return None if self.library.has_messages else f"the collectives of {self.name} have no send and recv"

    def _alone(self, members: Members) -> Found:
        reason = self._why_not
        if reason is not None:
            return Found({}, reason=reason)
        assert self.library is not None
        made = self.library.join_all([device.id for device in members])
        return Found(dict(enumerate(made)), self.library.dtypes)

    def _met(self, members: Members, number: int, identity: str) -> Found:
        job = comm_.processes()
        assert job.launcher is not None, "devices of other processes exist in a job only"
        owners = tuple(device.process_index for device in members)
        mine = owners.index(job.index)
        channel = job.launcher.comm(owners).duplicate()
        id_ = self.library.new_id() if mine == 0 and self.library is not None and not self._why_not else b""
        told = msgpack.packb([socket.gethostname(), identity, self._why_not, id_])
        heard = [msgpack.unpackb(each) for each in channel.gather_bytes(told)]
        for other, (host, _, reason, _) in zip(owners, heard, strict=True):
            if reason is not None:
                return Found({}, reason=f"in process {other} on {host}: {reason}")
        places = [(host, which) for host, which, _, _ in heard]
        for i, place in enumerate(places):
            if place[1] and place in places[:i]:
                first, second = owners[places.index(place)], owners[i]
                reason = f"processes {first} and {second} share the device {place[1]} of {place[0]}"
                return Found({}, reason=reason)
        assert self.library is not None
        noted: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(channel, WatchedComm):  # it waits for the others once more
            noted = channel.noted((tuple(range(len(members))),), "join of a group of devices")
        with noted:
            joined = self.library.join(heard[0][3], len(members), mine, number)
        return Found({mine: joined}, self.library.dtypes)
