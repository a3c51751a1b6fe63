"""A vendor's library of collectives by its table: communicators over device memory.

Every rank makes the same calls in one order. Calls are put into a stream and return; the vendor's library
decides when they move. Orders of arguments, numbers of dtypes, and how the identifier is passed are data.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Collection, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from infini.backends.vendors import libraries
from infini.backends.vendors.libraries import Library
from infini.backends.vendors.runtime import Runtime
from infini.backends.vendors.tables import COLLECTIVE_OPERATIONS, CollectiveTable, Places
from infini.core import dtypes, errors


class Collectives:
    """A vendor's library of collectives.

    Args:
        runtime: the runtime of the same vendor.
        table: how the library is called.
        library: the library, loaded.
    """

    def __init__(self, runtime: Runtime, table: CollectiveTable, library: Library) -> None:
        self.runtime, self.table, self.library = runtime, table, library

    @classmethod
    def load(
        cls, runtime: Runtime, table: CollectiveTable, places: Places
    ) -> tuple[Collectives | None, str | None]:
        """The library, or why there is none."""
        libraries.preload(table.preload, places)
        structures = {"id": _id_type(table.id_bytes)}
        library, reason = libraries.load(table, COLLECTIVE_OPERATIONS, places, structures)
        return (None, reason) if library is None else (cls(runtime, table, library), None)

    def call(self, operation: str, **values: Any) -> list[Any]:  # Any: numbers and structures
        """Call an operation.

        Raises:
            UnsupportedError: the library does not have it.
            CollectiveError: it failed.
        """
        function = self.library.functions.get(operation)
        if function is None:
            raise errors.UnsupportedError(
                f"the collectives of {self.runtime.vendor} have no operation {operation!r}",
                got=self.library.path,
                expected=", ".join(sorted(self.library.functions)),
            )
        status, results = function(values)
        if status not in self.table.ok.get(operation, (0,)):
            text = self.error_text(status)
            raise errors.CollectiveError(
                f"{self.runtime.vendor}: {function.symbol} failed",
                got=f"status {status}" + (f": {text}" if text else ""),
            )
        return results

    def error_text(self, status: int) -> str:
        """The vendor's words for a status; empty where there are none."""
        known = self.table.error_texts.get(status, "")
        function = self.library.functions.get("error_text")
        if known or function is None:
            return known
        text, _ = function({"code": status})
        return text.decode(errors="replace") if text else ""

    def new_id(self) -> bytes:
        """What the ranks of one group share: made by one, given to all."""
        found = _id_type(self.table.id_bytes)()
        self.call("get_id", id=found)
        return bytes(found)

    def join(self, id_: bytes, num_ranks: int, rank: int, device: int) -> Communicator:
        """Become a rank of a group; returns when all of them have.

        Args:
            id_: from `new_id` of one of them.
            num_ranks: how many there are.
            rank: number of this one.
            device: the device that it uses.

        Raises:
            ValueMismatchError: the identifier has another length than those of this library.
            CollectiveError: the library refuses.
        """
        if len(id_) != self.table.id_bytes:
            raise errors.ValueMismatchError(
                f"the identifier of a group of {self.runtime.vendor}'s collectives has the wrong length",
                got=f"{len(id_)} bytes",
                expected=f"{self.table.id_bytes} bytes",
                fix="share what `new_id` gave to one of the ranks, all of it",
            )
        self.runtime.use(device)
        shared = _id_type(self.table.id_bytes).from_buffer_copy(id_)
        (comm,) = self.call("init_rank", id=shared, num_ranks=num_ranks, rank=rank, device=device)
        return Communicator(self, int(comm), num_ranks, rank, device)

    def join_all(self, devices: Sequence[int]) -> list[Communicator]:
        """A group of devices of this process, each of which joins in a thread: joining waits for the others.

        Args:
            devices: their numbers.

        Raises:
            CollectiveError: the library refuses.
        """
        id_, count = self.new_id(), len(devices)
        with futures.ThreadPoolExecutor(count, "infini-joins") as pool:
            made = [pool.submit(self.join, id_, count, rank, device) for rank, device in enumerate(devices)]
        return [each.result() for each in made]

    @property
    def dtypes(self) -> Collection[np.dtype]:
        """Those that the library takes."""
        return self.table.dtypes.keys()

    @property
    def has_messages(self) -> bool:
        """Whether it sends and receives."""
        return {"send", "recv"} <= self.library.functions.keys()

    def dtype_number(self, dtype: np.dtype) -> int:
        """The library's number of a dtype.

        Raises:
            UnsupportedError: it does not take it.
        """
        if dtype not in self.table.dtypes:
            raise errors.UnsupportedError(
                f"the collectives of {self.runtime.vendor} do not take {dtypes.short(dtype)}",
                expected=", ".join(dtypes.short(d) for d in self.table.dtypes),
                fix="convert it before it is communicated",
            )
        return self.table.dtypes[dtype]

    def op_number(self, op: str) -> int:
        """The library's number of a reduction.

        Raises:
            UnsupportedError: it does not have it.
        """
        if op not in self.table.ops:
            raise errors.UnsupportedError(
                f"the collectives of {self.runtime.vendor} have no reduction {op!r}",
                expected=", ".join(self.table.ops),
                fix="take the sum and divide by the number of ranks" if op == "avg" else None,
            )
        return self.table.ops[op]


class Communicator:
    """One rank of a group. Addresses are of its device, counts are elements, streams its own."""

    def __init__(self, library: Collectives, handle: int, num_ranks: int, rank: int, device: int) -> None:
        self.library, self.handle, self.device = library, handle, device
        self.num_ranks, self.rank = num_ranks, rank

    def all_reduce(self, send: int, recv: int, n: int, dtype: np.dtype, op: str, stream: int) -> None:
        """Reduce `n` elements over the ranks."""
        self._call("all_reduce", dtype, stream, send=send, recv=recv, n=n, op=self.library.op_number(op))

    def all_gather(self, send: int, recv: int, n: int, dtype: np.dtype, stream: int) -> None:
        """`n` elements of every rank, one after another."""
        self._call("all_gather", dtype, stream, send=send, recv=recv, n=n)

    def reduce_scatter(self, send: int, recv: int, n: int, dtype: np.dtype, op: str, stream: int) -> None:
        """Reduce, and give every rank `n` elements of the result."""
        self._call("reduce_scatter", dtype, stream, send=send, recv=recv, n=n, op=self.library.op_number(op))

    def broadcast(self, send: int, recv: int, n: int, dtype: np.dtype, root: int, stream: int) -> None:
        """What one rank sends, for all. Where the library works in place, the root's is copied first."""
        function = self.library.library.functions["broadcast"]
        if "send" not in function.call.arguments and self.rank == root and send != recv:
            self.library.runtime.copy_async(recv, send, n * dtype.itemsize, "d2d", stream)
        self._call("broadcast", dtype, stream, send=send, recv=recv, n=n, root=root)

    def send(self, send: int, n: int, dtype: np.dtype, peer: int, stream: int) -> None:
        """Give `n` elements to a rank that takes them by `recv`."""
        self._call("send", dtype, stream, send=send, n=n, peer=peer)

    def recv(self, recv: int, n: int, dtype: np.dtype, peer: int, stream: int) -> None:
        """Take `n` elements from a rank that gives them by `send`."""
        self._call("recv", dtype, stream, recv=recv, n=n, peer=peer)

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """Calls of the block go together, so that a send and a receive do not wait for each other. Where the
        library has no groups they go one by one, and their order has to be one that cannot block.
        """
        if not self.has_groups:
            yield
            return
        self.library.call("group_start")
        try:
            yield
        finally:
            self.library.call("group_end")

    @property
    def has_groups(self) -> bool:
        """Whether `group` puts calls together."""
        functions = self.library.library.functions
        return "group_start" in functions and "group_end" in functions

    def check(self) -> None:
        """Nothing: these libraries are not asked what became of calls that have returned."""

    def abort(self) -> None:
        """Leave the group."""
        self.destroy()

    def destroy(self) -> None:
        """Leave the group."""
        self.library.runtime.use(self.device)
        self.library.call("destroy", comm=self.handle)

    def _call(self, operation: str, dtype: np.dtype, stream: int, **values: int) -> None:
        self.library.runtime.use(self.device)
        number = self.library.dtype_number(dtype)
        self.library.call(operation, dtype=number, comm=self.handle, stream=stream, **values)


@functools.cache
def _id_type(nbytes: int) -> Any:  # Any: a type of ctypes
    """The identifier as a structure: by value C takes no array, and its bytes may be zeros."""
    return type("Id", (ctypes.Structure,), {"_fields_": [("content", ctypes.c_ubyte * nbytes)]})
