"""Communication among processes by plain TCP, one device per process, for jobs that no MPI has started.

Process 0 is the coordinator until all have come: it tells everyone where the others listen, and a secret that
their connections begin with. Then each pair of processes has one connection. A thread per connection reads
whatever comes into a queue per sender, communicator and tag, so that two processes that send to each other
never block each other. Reductions are those of `ordered`: their bits are those of devices in one process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from infini.backends.spmd import mpi, ordered
from infini.backends.spmd.lines import Line
from infini.backends.spmd.lockstep import Sent
from infini.core import errors
from infini.core.comm import Groups, ReduceOp, Rows

_HEAD: Final = struct.Struct(">QIQ")  # communicator, tag, number of bytes
_TOKEN_BYTES: Final = 32
_GREETING: Final = struct.Struct(f">{_TOKEN_BYTES}sI")  # secret, number of the process
_ABORT: Final = 0  # the communicator of the message that ends a job; its tag is the status
_RETRY_S: Final = 0.05
_LAST_WORDS_S: Final = 1.0  # how long an abort waits for a connection that is in use


class TcpCarrier:
    """The processes of a job that have found each other at an address.

    Args:
        address: host and port of process 0, such as `10.0.0.1:1234`.
        count: number of processes.
        index: number of this one.
        timeout_s: how long to wait for the others.

    Raises:
        ValueMismatchError: the address, or a number, is wrong.
        CollectiveError: the others did not come, or came with other numbers.
    """

    def __init__(self, address: str, count: int, index: int, timeout_s: float) -> None:
        if not 0 <= index < count:
            raise errors.ValueMismatchError(
                "process_id is not the number of a process", got=str(index), expected=f"0 to {count - 1}"
            )
        self.index, self.count = index, count
        self._connections: dict[int, _Connection] = {}
        self._mail = _Mail()
        if count > 1:
            self._join(*_parsed(address), time.monotonic() + timeout_s)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self.forget)

    def comm(self, process_of_rank: tuple[int, ...]) -> TcpComm:
        """Communication among ranks, one per process.

        Raises:
            DeviceError: a process holds several ranks, or this one holds none.
        """
        mpi.check_ranks(self.index, process_of_rank)
        return TcpComm(self, process_of_rank)

    def abort(self, status: int) -> None:
        """Tell all others to end, and end."""
        for connection in self._connections.values():
            connection.send_abort(status)
        os._exit(status)

    def send(self, process: int, communicator: int, tag: int, content: memoryview) -> None:
        """Give bytes to another process.

        Raises:
            CollectiveError: it has left.
        """
        try:
            self._connections[process].send(communicator, tag, content)
        except OSError as error:
            raise _left(process) from error

    def receive(self, process: int, communicator: int, tag: int) -> np.ndarray:
        """The oldest bytes that another process has given under a tag; waits for them.

        Raises:
            CollectiveError: it has left without giving any.
        """
        found = self._mail.take(process, communicator, tag)
        if found is None:
            raise _left(process)
        return found

    def close(self) -> None:
        """Leave the job."""
        for connection in self._connections.values():
            connection.close()

    def forget(self) -> None:
        """Close what a fork has inherited, so that the others see when its parent is gone."""
        for connection in self._connections.values():
            connection.forget()

    def _join(self, host: str, port: int, end: float) -> None:
        if self.index == 0:
            with _listening(host, port) as coordinator, _listening(host, 0) as listener:
                addresses, token = _gathered(coordinator, listener, self.count, end)
                self._meet(listener, addresses, token, end)
        else:
            with (
                contextlib.closing(_connected(host, port, end, 0)) as link,
                _listening(link.getsockname()[0], 0) as listener,
            ):
                addresses, token = _told(Line(link), listener, self.index, self.count, end)
                self._meet(listener, addresses, token, end)

    def _meet(
        self, listener: socket.socket, addresses: Sequence[tuple[str, int]], token: bytes, end: float
    ) -> None:
        """Connect to every process before this one, and be connected to by every one after it."""
        for process in range(self.index):
            found = _connected(*addresses[process], end, process)
            found.sendall(_GREETING.pack(token, self.index))
            self._add(process, found)
        missing = set(range(self.index + 1, self.count))
        while missing:
            found = _accepted(listener, end, missing)
            greeted = _greeted(found, token, end)
            if greeted is not None and greeted in missing:
                missing.remove(greeted)
                self._add(greeted, found)
            else:
                found.close()

    def _add(self, process: int, found: socket.socket) -> None:
        found.settimeout(None)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[process] = _Connection(process, found, self._mail)


class _Mail:
    """What has come and was not taken yet. A None in a queue says that nothing more will come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boxes: dict[tuple[int, int, int], queue.SimpleQueue[np.ndarray | None]] = {}
        self._left: set[int] = set()

    def _box(self, key: tuple[int, int, int]) -> queue.SimpleQueue[np.ndarray | None]:
        with self._lock:
            if key not in self._boxes:
                self._boxes[key] = queue.SimpleQueue()
                if key[0] in self._left:
                    self._boxes[key].put(None)
            return self._boxes[key]

    def put(self, process: int, communicator: int, tag: int, content: np.ndarray) -> None:
        """Keep what has come."""
        self._box((process, communicator, tag)).put(content)

    def take(self, process: int, communicator: int, tag: int) -> np.ndarray | None:
        """The oldest that has come; None when the process has left."""
        box = self._box((process, communicator, tag))
        found = box.get()
        if found is None:
            box.put(None)  # for who asks next
        return found

    def leave(self, process: int) -> None:
        """Nothing more comes from a process."""
        with self._lock:
            self._left.add(process)
            for key, box in self._boxes.items():
                if key[0] == process:
                    box.put(None)


class _Connection:
    """The connection to one process, and the thread that reads it."""

    def __init__(self, process: int, found: socket.socket, mail: _Mail) -> None:
        self._process, self._socket, self._mail = process, found, mail
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name=f"infini-tcp-{process}", daemon=True).start()

    def send(self, communicator: int, tag: int, content: memoryview) -> None:
        with self._lock:
            self._socket.sendall(_HEAD.pack(communicator, tag, len(content)))
            self._socket.sendall(content)

    def send_abort(self, status: int) -> None:
        """Without patience: the other process may be stopped."""
        if self._lock.acquire(timeout=_LAST_WORDS_S):
            with contextlib.suppress(OSError):
                self._socket.settimeout(_LAST_WORDS_S)
                self._socket.sendall(_HEAD.pack(_ABORT, status, 0))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def forget(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        while (head := self._bytes(_HEAD.size)) is not None:
            communicator, tag, length = _HEAD.unpack(head.tobytes())
            if communicator == _ABORT:
                os._exit(tag)
            content = self._bytes(length)
            if content is None:
                break
            self._mail.put(self._process, communicator, tag, content)
        self._mail.leave(self._process)

    def _bytes(self, length: int) -> np.ndarray | None:
        """So many bytes; None when the connection ends before."""
        found = np.empty(length, np.uint8)
        view, count = found.data, 0
        while count < length:
            try:
                step = self._socket.recv_into(view[count:])
            except OSError:
                return None
            if step == 0:
                return None
            count += step
        return found


class TcpComm:
    """One rank per process. Rows have one entry.

    Args:
        carrier: the connections.
        process_of_rank: process of the job that is each rank.
        line: the duplications that led here, each the number of its turn.
    """

    def __init__(
        self, carrier: TcpCarrier, process_of_rank: tuple[int, ...], line: tuple[int, ...] = ()
    ) -> None:
        self._carrier, self._process_of_rank, self._line = carrier, process_of_rank, line
        self._num_duplicates = 0
        self._rank = process_of_rank.index(carrier.index)
        self.local_ranks: tuple[int, ...] = (self._rank,)
        self._communicator = functools.cache(self._named)

    @property
    def may_overlap(self) -> bool:
        """Any thread may call."""
        return True

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """In the order of the members."""
        return ordered.all_reduce(self, rows, op, (self._mine(groups),))

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """In the order of the members."""
        return ordered.reduce_scatter(self, rows, op, (self._mine(groups),))

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Each sends its array to all."""
        group, row = self._mine(groups), np.asarray(rows[0])
        found = self._exchanged(group, [_flat_bytes(row)] * len(group))
        return [np.stack([_array(content, row.dtype, row.shape) for content in found])]

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Each sends every block to its member."""
        group, row = self._mine(groups), np.asarray(rows[0])
        found = self._exchanged(group, [_flat_bytes(block) for block in row])
        return [np.stack([_array(content, row.dtype, row.shape[1:]) for content in found])]

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """A message per pair."""
        group, row = self._mine(groups), np.asarray(rows[0])
        here, result = group.index(self._rank), np.zeros_like(row)
        for origin, target in pairs:
            if origin == here:
                self._give(group[target], self._communicator(group), 0, _flat_bytes(row))
        for origin, target in pairs:
            if target == here:
                result = _array(self._take(group[origin], self._communicator(group), 0), row.dtype, row.shape)
        return [result]

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """Returns when the bytes are on their way."""
        assert source == self._rank, "a process sends for its own rank"
        self._give(destination, self._communicator(()), tag, _flat_bytes(row))

    def start_send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> Sent:
        """As `send`, which does not wait: a thread of the other process takes in what comes."""
        self.send(row, source, destination, tag)
        return Sent()

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """The oldest message under the tag.

        Raises:
            CollectiveError: it has another number of bytes; or the process has left.
        """
        assert destination == self._rank, "a process receives for its own rank"
        return _array(self._take(source, self._communicator(()), tag), dtype, shape)

    def broadcast(self, content: bytes) -> bytes:
        """Rank 0 sends to all."""
        everyone = self._everyone
        if self._rank == 0:
            for rank in everyone[1:]:
                self._give(rank, self._communicator(everyone), 0, np.frombuffer(content, np.uint8))
            return content
        return self._take(0, self._communicator(everyone), 0).tobytes()

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Each sends to all."""
        own = np.frombuffer(content, np.uint8)
        return [found.tobytes() for found in self._exchanged(self._everyone, [own] * len(self._everyone))]

    def barrier(self) -> None:
        """Nothing, sent to all."""
        self.gather_bytes(b"")

    def duplicate(self) -> TcpComm:
        """One whose messages are told apart by its name."""
        self._num_duplicates += 1
        return TcpComm(self._carrier, self._process_of_rank, (*self._line, self._num_duplicates))

    @property
    def _everyone(self) -> tuple[int, ...]:
        return tuple(range(len(self._process_of_rank)))

    def _mine(self, groups: Groups) -> tuple[int, ...]:
        return next(group for group in groups if self._rank in group)

    def _named(self, group: tuple[int, ...]) -> int:
        """A number that tells the messages of a group from all others; the empty group is for pairs."""
        parts = (self._process_of_rank, self._line, group)
        return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") or 1

    def _exchanged(self, group: tuple[int, ...], given: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What each member of a group has given to this one."""
        communicator = self._communicator(group)
        for rank, content in zip(group, given, strict=True):
            if rank != self._rank:
                self._give(rank, communicator, 0, content)
        own = given[group.index(self._rank)]
        return [own if rank == self._rank else self._take(rank, communicator, 0) for rank in group]

    def _give(self, rank: int, communicator: int, tag: int, content: np.ndarray) -> None:
        self._carrier.send(self._process_of_rank[rank], communicator, tag, content.data)

    def _take(self, rank: int, communicator: int, tag: int) -> np.ndarray:
        return self._carrier.receive(self._process_of_rank[rank], communicator, tag)


def _flat_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _array(content: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as an array, which is the caller's own unless the bytes are."""
    expected = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if content.size != expected:
        raise errors.CollectiveError(
            "a message of another length has come",
            got=f"{content.size} bytes",
            expected=f"{expected}, for {dtype}{list(shape)}",
            fix="call the same functions with the same shapes in the same order in every process",
        )
    return content.view(dtype).reshape(shape)


# --- how processes find each other -----------------------------------------------------------


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise errors.ValueMismatchError(
            "coordinator_address is no address",
            got=repr(address),
            expected="the host of process 0 and a free port there, such as 10.0.0.1:1234",
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise errors.DeviceError(
            f"process 0 cannot listen at {host}:{port}",
            got=str(error),
            fix="name a host that is this machine, and a port that is free",
        ) from error


def _connected(host: str, port: int, end: float, process: int) -> socket.socket:
    """A connection to a process, which may start later than this one."""
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(end - time.monotonic(), _RETRY_S))
        except OSError as error:
            if time.monotonic() + _RETRY_S > end:
                raise errors.CollectiveError(
                    f"process {process} cannot be reached at {host}:{port}",
                    got=str(error),
                    fix="start all processes, with the address of process 0",
                ) from error
        time.sleep(_RETRY_S)


def _accepted(listener: socket.socket, end: float, missing: set[int]) -> socket.socket:
    listener.settimeout(max(end - time.monotonic(), _RETRY_S))
    try:
        found, _ = listener.accept()
    except TimeoutError:
        raise errors.CollectiveError(
            "not all processes of the job have come",
            got=f"none with process_id {', '.join(map(str, sorted(missing)))}",
            fix="start all of them, with one coordinator_address and num_processes",
        ) from None
    return found


def _greeted(found: socket.socket, token: bytes, end: float) -> int | None:
    """The number of a process that knows the secret."""
    found.settimeout(max(end - time.monotonic(), _RETRY_S))
    content = b""
    with contextlib.suppress(OSError):
        while len(content) < _GREETING.size and (more := found.recv(_GREETING.size - len(content))):
            content += more
    if len(content) < _GREETING.size:
        return None
    shown, process = _GREETING.unpack(content)
    return int(process) if hmac.compare_digest(shown, token) else None


def _gathered(
    coordinator: socket.socket, listener: socket.socket, count: int, end: float
) -> tuple[list[tuple[str, int]], bytes]:
    """Where every process listens, and the secret; told to all of them."""
    lines: list[Line] = []
    addresses = {0: listener.getsockname()[:2]}
    token = secrets.token_bytes(_TOKEN_BYTES)
    problem = ""
    with contextlib.ExitStack() as stack:
        while len(addresses) < count and not problem:
            missing = set(range(count)) - addresses.keys()
            line = Line(stack.enter_context(contextlib.closing(_accepted(coordinator, end, missing))))
            line.socket.settimeout(max(end - time.monotonic(), _RETRY_S))
            match next(_messages(line, end), None):
                case ["join", int(index), int(of), str(host), int(port)]:
                    lines.append(line)
                    if of != count:
                        problem = f"process {index} has num_processes={of}, and process 0 has {count}"
                    elif index in addresses:
                        problem = f"two processes have process_id={index}"
                    addresses[index] = (host, port)
        table = [list(addresses[i]) for i in range(count)] if not problem else []
        for line in lines:
            line.send("table", problem, table, token)
    if problem:
        raise _disagreement(problem)
    return [addresses[i] for i in range(count)], token


def _told(
    line: Line, listener: socket.socket, index: int, count: int, end: float
) -> tuple[list[tuple[str, int]], bytes]:
    """What `_gathered` has told."""
    line.send("join", index, count, *listener.getsockname()[:2])
    line.socket.settimeout(max(end - time.monotonic(), _RETRY_S))
    match next(_messages(line, end), None):
        case ["table", str(problem), list(table), bytes(token)]:
            if problem:
                raise _disagreement(problem)
            return [(host, port) for host, port in table], token
    raise errors.CollectiveError(
        "process 0 did not tell where the other processes are",
        fix="see what it says: not all processes have come, or it has failed",
    )


def _messages(line: Line, end: float) -> Iterator[list[object]]:
    """Messages until the line ends, or the time does; one may come in parts."""
    while (found := line.receive()) is not None:
        yield from found
        if time.monotonic() > end:
            return


def _disagreement(problem: str) -> errors.CollectiveError:
    return errors.CollectiveError(
        "the processes do not make a job",
        got=problem,
        expected="one num_processes for all, and each process_id below it once",
        fix="give each process its own number",
    )


def _left(process: int) -> errors.CollectiveError:
    return errors.CollectiveError(
        f"process {process} of this job is gone",
        expected="every process there until the last collective",
        fix="see what it says, or the log of its system when it says nothing",
    )
