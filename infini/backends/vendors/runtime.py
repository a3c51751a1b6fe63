"""A vendor's runtime by its table: the one class behind memory, streams, events, facts and launches of every
vendor.

Numbers go in and out: addresses, streams and events are ints. What a runtime lacks is done on the host where
that gives the same result (a fill by copies, events by the host's clock after waiting), and is refused by
name elsewhere. A device is current per thread, so every call sets it where another one is.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from infini.backends.vendors import tables
from infini.backends.vendors.libraries import Library
from infini.backends.vendors.tables import Kernel, RuntimeTable
from infini.core import errors

_FILL_BYTES: Final = 1 << 16


class Runtime:
    """Operations of one vendor's runtime.

    Args:
        vendor: its name, for messages.
        table: its table.
        library: the library, loaded.
    """

    def __init__(self, vendor: str, table: RuntimeTable, library: Library) -> None:
        self.vendor, self.table, self.library = vendor, table, library
        self._current = threading.local()
        self._host_events: dict[int, int] = {}  # by handle, nanoseconds
        self._num_host_events = 0
        self._lock = threading.Lock()
        self._has_events = all(map(self.has, tables.EVENTS))
        if self.has("initialize"):
            self.call("initialize")

    def has(self, operation: str) -> bool:
        """Whether the library has the function of an operation."""
        return operation in self.library.functions

    def call(self, operation: str, **values: Any) -> list[Any]:  # Any: numbers, bytes, structures
        """Call an operation; values are given by the names of its slots.

        Raises:
            UnsupportedError: the library does not have it.
            OutOfMemoryError: memory is short.
            DeviceError: it failed; the message has the vendor's code and text.
        """
        status, results = self._raw(operation, values)
        if status not in self.table.ok.get(operation, (0,)):
            raise self.failure(operation, status, values.get("n"))
        return results

    def _raw(self, operation: str, values: dict[str, Any]) -> tuple[int, list[Any]]:  # Any: as above
        """Status and results; what a function returns itself is its result."""
        function = self.library.functions.get(operation)
        if function is None:
            raise errors.UnsupportedError(
                f"the runtime of {self.vendor} has no operation {operation!r}",
                got=f"{self.library.path} without {self._symbols(operation)}",
                fix="use a newer version of the vendor's software",
            )
        status, results = function(values)
        return (status, results) if function.call.returns == "status" else (0, [status, *results])

    def _symbols(self, operation: str) -> str:
        text = self.table.calls.get(operation)
        return text.split(":", 1)[0] if text else f"a call for {operation} in its table"

    def failure(self, operation: str, status: int, nbytes: int | None = None) -> errors.DeviceError:
        """The error for a status of an operation, and of how many bytes where there are some."""
        symbol = self.library.functions[operation].symbol
        text = self.error_text(status)
        got = f"status {status}" + (f": {text}" if text else "")
        if status in self.table.out_of_memory:
            return errors.OutOfMemoryError(
                f"{self.vendor}: {symbol} found no memory",
                got=got if nbytes is None else f"{nbytes} bytes wanted, {got}",
                fix="use smaller batches, or free arrays that are no longer needed",
            )
        return errors.DeviceError(f"{self.vendor}: {symbol} failed", got=got)

    def error_text(self, status: int) -> str:
        """The vendor's words for a status; empty where there are none."""
        known = self.table.error_texts.get(status, "")
        if known or not self.has("error_text"):
            return known
        _, (text,) = self._raw("error_text", {"code": status})
        return text.decode(errors="replace") if text else ""

    # --- devices --------------------------------------------------------------------------------

    def device_count(self) -> int:
        """How many devices there are."""
        (count,) = self.call("device_count")
        return int(count)

    def use(self, device: int) -> None:
        """Make a device current in this thread. Another library of the process may have changed it since."""
        is_known = getattr(self._current, "device", None) == device
        if is_known and (not self.has("current_device") or self.call("current_device")[0] == device):
            return
        self.call("set_device", device=device)
        self._current.device = device

    def name(self, device: int) -> str:
        """What the vendor calls the device."""
        if not self.has("name"):
            return f"{self.vendor} {device}"
        self.use(device)
        (text,) = self.call("name", device=device)
        return text.decode(errors="replace") if text else f"{self.vendor} {device}"

    def attribute(self, name: str, device: int) -> int | None:
        """A fact of the device; None where table or library do not know it."""
        if name not in self.table.attributes or not self.has("attribute"):
            return None
        (value,) = self.call("attribute", attribute=self.table.attributes[name], device=device)
        return int(value)

    def synchronize(self, device: int) -> None:
        """Wait for everything that a device has been given; nothing where the runtime cannot say so."""
        self.use(device)
        if self.has("synchronize"):
            self.call("synchronize")

    # --- memory ---------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> int:
        """Memory of the current device. Some runtimes refuse 0 bytes, so nobody may ask for them.

        Raises:
            OutOfMemoryError: there is not enough.
        """
        assert nbytes > 0, "no runtime is asked for no memory"
        (address,) = self.call("allocate", n=nbytes)
        if not address:
            raise errors.DeviceError(f"{self.vendor}: an allocation of {nbytes} bytes gave a null pointer")
        return int(address)

    def free(self, address: int) -> None:
        """Give memory back."""
        self.call("free", ptr=address)

    def copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        """Copy bytes, and wait until they are there.

        Args:
            target: address to write.
            source: address to read.
            nbytes: how many.
            kind: `h2d`, `d2h` or `d2d`, for host and device.
        """
        if nbytes:
            self.call("copy", dst=target, src=source, n=nbytes, kind=self.table.kinds[kind])

    def copy_async(self, target: int, source: int, nbytes: int, kind: str, stream: int) -> None:
        """Copy bytes in the order of a stream; the host's memory must live until then."""
        if nbytes:
            number = self.table.kinds[kind]
            self.call("copy_async", dst=target, src=source, n=nbytes, kind=number, stream=stream)

    def fill(self, address: int, value: int, nbytes: int, stream: int) -> None:
        """Set bytes in the order of a stream."""
        if not nbytes:
            return
        if self.has("fill"):
            self.call("fill", ptr=address, value=value, n=nbytes, stream=stream)
            return
        block = ctypes.create_string_buffer(bytes([value]) * min(nbytes, _FILL_BYTES))
        for start in range(0, nbytes, _FILL_BYTES):
            size = min(_FILL_BYTES, nbytes - start)
            self.copy_async(address + start, ctypes.addressof(block), size, "h2d", stream)
        self.stream_synchronize(stream)

    def memory_info(self) -> tuple[int, int] | None:
        """Free and all bytes of the current device; None where the runtime does not say."""
        if not self.has("memory_info"):
            return None
        free, total = self.call("memory_info")
        return int(free), int(total)

    # --- streams --------------------------------------------------------------------------------

    def stream_create(self) -> int:
        """A stream of the current device."""
        (stream,) = self.call("stream_create")
        return int(stream)

    def stream_destroy(self, stream: int) -> None:
        """Give a stream back."""
        self.call("stream_destroy", stream=stream)

    def stream_synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self.call("stream_synchronize", stream=stream)

    def stream_query(self, stream: int) -> bool:
        """Whether a stream has done its work; waits where the runtime cannot be asked."""
        if self.has("stream_query"):
            return self._query("stream_query", {"stream": stream}, self.table.stream_complete)
        self.stream_synchronize(stream)
        return True

    def _query(self, operation: str, values: dict[str, int], complete: int) -> bool:
        status, results = self._raw(operation, dict(values))
        if status in self.table.not_ready:
            return False
        if status not in self.table.ok.get(operation, (0,)):
            raise self.failure(operation, status)
        return not results or int(results[0]) == complete

    def stream_wait_event(self, stream: int, event: int) -> None:
        """Let a stream wait for an event; the host waits where the runtime has no such thing."""
        if self.has("stream_wait_event"):
            self.call("stream_wait_event", stream=stream, event=event)
        else:
            self.event_synchronize(event)

    # --- events ---------------------------------------------------------------------------------

    @property
    def has_device_clock(self) -> bool:
        """Whether times between events are the device's."""
        return self._has_events

    def event_create(self) -> int:
        """An event."""
        if self._has_events:
            (event,) = self.call("event_create")
            return int(event)
        with self._lock:
            self._num_host_events += 1
            return self._num_host_events

    def event_destroy(self, event: int) -> None:
        """Give an event back."""
        if self._has_events:
            self.call("event_destroy", event=event)
        else:
            self._host_events.pop(event, None)

    def event_record(self, event: int, stream: int) -> None:
        """Let an event happen when a stream has done what it was given before."""
        if self._has_events:
            self.call("event_record", event=event, stream=stream)
        else:
            self.stream_synchronize(stream)
            self._host_events[event] = time.perf_counter_ns()

    def event_query(self, event: int) -> bool:
        """Whether an event has happened; waits where the runtime cannot be asked."""
        if self.has("event_query"):
            return self._query("event_query", {"event": event}, self.table.event_complete)
        self.event_synchronize(event)
        return True

    def event_synchronize(self, event: int) -> None:
        """Wait for an event."""
        if self._has_events:
            self.call("event_synchronize", event=event)

    def event_elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have happened."""
        if self._has_events:
            (elapsed,) = self.call("event_elapsed", start=start, end=end)
            return float(elapsed)
        return (self._host_events[end] - self._host_events[start]) / 1e6

    # --- kernels --------------------------------------------------------------------------------

    def load(self, kernel: Kernel) -> int:
        """Load a kernel on the current device: what `launch` takes as its function."""
        if self.table.load is not None:
            return self.table.load(self, kernel)
        (module,) = self.call("module_load", image=kernel.code, n=len(kernel.code))
        (function,) = self.call("module_function", module=module, name=kernel.name.encode())
        return int(function)

    def launch(
        self,
        function: int,
        kernel: Kernel,
        grid: tuple[int, int, int],
        arguments: Sequence[bytes],
        *,
        block: tuple[int, int, int],
        scratch: int,
        stream: int,
    ) -> None:
        """Start a kernel.

        Args:
            function: what `load` gave.
            kernel: the kernel.
            grid: programs along x, y, z.
            arguments: the bytes of every parameter.
            block: threads along x, y, z.
            scratch: address of its global scratch memory.
            stream: where.
        """
        pack = self.table.pack or pack_pointers
        packed = pack(self, kernel, tuple(arguments), scratch, grid)
        values = {f"grid_{axis}": n for axis, n in zip("xyz", grid, strict=True)}
        values |= {f"block_{axis}": n for axis, n in zip("xyz", block, strict=True)}
        self.call(
            "launch", function=function, **values, blocks=grid[0] * grid[1] * grid[2],
            shared=kernel.shared_bytes, stream=stream, arguments=packed.arguments, size=packed.size,
        )  # fmt: skip


def pack_pointers(
    runtime: Runtime,
    kernel: Kernel,
    arguments: tuple[bytes, ...],
    scratch: int,
    grid: tuple[int, int, int],
) -> tables.Packed:
    """An array of pointers to the parameters, as CUDA takes them; scratch memory follows."""
    hidden = (scratch, 0)[: kernel.num_hidden]
    values = [*arguments, *(address.to_bytes(8, "little") for address in hidden)]
    owners = [ctypes.create_string_buffer(value, len(value)) for value in values]
    array = (ctypes.c_void_p * len(owners))(*(ctypes.addressof(owner) for owner in owners))
    return tables.Packed(ctypes.addressof(array), ctypes.sizeof(array), (owners, array))
