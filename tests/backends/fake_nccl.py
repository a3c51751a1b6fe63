"""A stand-in for `cupy.cuda.nccl` on the machine of `fake_cupy`: what NCCL refuses is refused, and what would
wait for ever is an error.

Ranks of one process meet when their streams get there; calls for several of them have to be in one group, as
one thread would wait for ever otherwise. Ranks of several processes meet through files in a folder, in the
order of their calls.
"""

from __future__ import annotations

import itertools
import os
import time
import types
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infini.core import dtypes
from tests.backends.fake_cupy import Item, Machine, memory_at

NUMBERS = {
    "NCCL_INT8": (0, dtypes.int8), "NCCL_UINT8": (1, dtypes.uint8), "NCCL_INT32": (2, dtypes.int32),
    "NCCL_UINT32": (3, dtypes.uint32), "NCCL_INT64": (4, dtypes.int64), "NCCL_UINT64": (5, dtypes.uint64),
    "NCCL_FLOAT16": (6, dtypes.float16), "NCCL_FLOAT32": (7, dtypes.float32),
    "NCCL_FLOAT64": (8, dtypes.float64), "NCCL_BFLOAT16": (9, dtypes.bfloat16),
}  # fmt: skip
OPS = {"NCCL_SUM": 0, "NCCL_PROD": 1, "NCCL_MAX": 2, "NCCL_MIN": 3}
_FOLDS: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    0: np.add, 1: np.multiply, 2: np.fmax, 3: np.fmin,  # NaN is not kept
}  # fmt: skip
FOLDER = "FAKE_NCCL_FOLDER"  # variable of the environment: where ranks of several processes meet
_PATIENCE_S = 60.0


class NcclError(RuntimeError):
    """What CuPy raises."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(f"NCCL_ERROR_{status}: {text}")


@dataclass
class Call:
    """A call of one rank: where it reads and writes, in elements of a dtype."""

    what: str
    comm: Any  # Any: a Communicator
    dtype: np.dtype
    count: int
    send: int = 0
    recv: int = 0
    other: int = 0  # the reduction, the root, or the peer
    item: Item | None = None
    number: int = 0  # among those of its kind, between processes
    is_done: bool = False

    def read(self, count: int) -> np.ndarray:
        """A copy of elements that it sends."""
        return memory_at(self.send, count * self.dtype.itemsize).view(self.dtype).copy()

    def write(self, content: np.ndarray) -> None:
        """Write what it receives."""
        nbytes = content.size * self.dtype.itemsize
        memory_at(self.recv, nbytes).view(self.dtype)[...] = content.reshape(-1)


def result(what: str, rank: int, other: int, count: int, sent: list[np.ndarray]) -> np.ndarray:
    """What a rank receives, given what all have sent."""
    if what == "allGather":
        return np.concatenate(sent)
    if what == "broadcast":
        return sent[other]
    total = sent[0]
    for each in sent[1:]:
        total = _FOLDS[other](total, each).astype(total.dtype)
    return total if what == "allReduce" else total[rank * count : (rank + 1) * count]


@dataclass
class World:
    """A group in one process: what its ranks have called and not met for."""

    size: int
    collectives: dict[int, dict[int, Call]] = field(default_factory=lambda: defaultdict(dict))
    sends: dict[tuple[int, int], deque[Call]] = field(default_factory=lambda: defaultdict(deque))
    recvs: dict[tuple[int, int], deque[Call]] = field(default_factory=lambda: defaultdict(deque))


class Library:
    """The module, for one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.depth = 0
        self.grouped: list[tuple[Call, int]] = []  # calls of the open group, with their streams
        self.num_ids = 0
        self.fails: dict[str, str] = {}  # by name of a call: what NCCL says
        self.broken = ""  # what NCCL finds out later
        self.num_aborted = 0
        self.joined: list[tuple[int, ...]] = []  # devices of groups that were made here

    def module(self) -> Any:  # Any: what tests call a module
        """What `cupy.cuda.nccl` is."""
        names = {name: number for name, (number, _) in NUMBERS.items()} | OPS
        library = self

        class NcclCommunicator(Communicator):
            def __init__(self, ndev: int, commId: tuple[int, ...], rank: int) -> None:
                assert isinstance(commId, tuple) and len(commId) == 128
                if not all(-128 <= each <= 127 for each in commId):
                    raise OverflowError("value too large to convert to char")
                library._maybe_fail("ncclCommInitRank")
                Communicator.__init__(self, library, World(ndev), rank, library.machine.here[-1])
                self.meet(bytes(each & 0xFF for each in commId).hex()[:32], ndev)

            @staticmethod
            def initAll(devices: list[int]) -> list[Communicator]:
                assert isinstance(devices, list)
                library._maybe_fail("ncclCommInitAll")
                if len(set(devices)) != len(devices):
                    raise NcclError(5, "invalid usage: Duplicate GPU detected")
                library.joined.append(tuple(devices))
                world = World(len(devices))
                return [Communicator(library, world, rank, device) for rank, device in enumerate(devices)]

        return types.SimpleNamespace(
            available=True,
            get_version=lambda: 23203,
            get_build_version=lambda: 23203,
            get_unique_id=self._new_id,
            groupStart=self._start,
            groupEnd=self._end,
            NcclCommunicator=NcclCommunicator,
            **names,
        )

    def _maybe_fail(self, name: str) -> None:
        if name in self.fails:
            raise NcclError(4, self.fails[name])

    def _new_id(self) -> tuple[int, ...]:
        """Numbers of a signed `char`, as on x86."""
        self.num_ids += 1
        content = os.urandom(8) + bytes([0, self.num_ids]) + bytes(118)
        return tuple(np.frombuffer(content, np.int8).tolist())

    def _start(self) -> None:
        self.depth += 1

    def _end(self) -> None:
        assert self.depth, "no group is open"
        self.depth -= 1
        if self.depth == 0:
            calls, self.grouped = self.grouped, []
            self._enqueue(calls)

    def add(self, call: Call, stream: int) -> None:
        """Take a call; it goes into its stream with its group."""
        machine = self.machine
        self._maybe_fail(call.what)
        assert machine.here[-1] == call.comm.device, "the device of the communicator is current"
        assert machine.device_of_stream[stream] == call.comm.device, "the stream is of another device"
        assert stream not in machine.recordings, "exchanges are not recorded"
        assert call.count > 0
        sent, received = call.comm.sizes(call)
        if sent:
            machine.check(call.send, sent * call.dtype.itemsize, call.comm.device)
        if received:
            machine.check(call.recv, received * call.dtype.itemsize, call.comm.device)
        machine.events.append(("nccl", call.what, call.comm.rank, call.count, call.dtype.name, stream))
        if self.depth:
            self.grouped.append((call, stream))
        else:
            self._enqueue([(call, stream)])

    def _enqueue(self, calls: list[tuple[Call, int]]) -> None:
        if calls and calls[0][0].comm.folder is not None:
            for call, _ in calls:
                call.comm.post(call)
            for call, _ in calls:
                call.comm.take(call)
            return
        by_stream: dict[int, list[Call]] = defaultdict(list)
        for call, stream in calls:
            call.comm.enter(call)
            by_stream[stream].append(call)
        items = []
        for stream, mine in by_stream.items():
            item = Item(lambda mine=mine: [self._perform(call) for call in mine], stream)  # type: ignore[misc]
            for call in mine:
                call.item = item
            items.append(item)
        for item in items:
            self.machine.push_item(item)

    def _perform(self, call: Call) -> None:
        if call.is_done:
            return
        partners = call.comm.partners(call)
        for partner in partners:
            assert partner.item is not None
            self.machine.reach(partner.item)
        if call.is_done:
            return
        if call.what in ("send", "recv"):
            give, take = sorted(partners, key=lambda each: each.what != "send")
            assert give.count == take.count and give.dtype == take.dtype
            take.write(give.read(give.count))
        else:
            sent = [each.read(each.comm.sizes(each)[0]) for each in partners]
            for each in partners:
                each.write(result(each.what, each.comm.rank, each.other, each.count, sent))
        for each in partners:
            each.is_done = True


class Communicator:
    """One rank."""

    def __init__(self, library: Library, world: World, rank: int, device: int) -> None:
        self.library, self.world, self.rank, self.device = library, world, rank, device
        self.folder: Path | None = None
        self.numbers: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)

    # --- CuPy's calls -----------------------------------------------------------------------------

    def allReduce(self, send: int, recv: int, n: int, dtype: int, op: int, stream: int) -> None:
        self._add("allReduce", n, dtype, stream, send, recv, op)

    def allGather(self, send: int, recv: int, n: int, dtype: int, stream: int) -> None:
        self._add("allGather", n, dtype, stream, send, recv)

    def reduceScatter(self, send: int, recv: int, n: int, dtype: int, op: int, stream: int) -> None:
        self._add("reduceScatter", n, dtype, stream, send, recv, op)

    def broadcast(self, send: int, recv: int, n: int, dtype: int, root: int, stream: int) -> None:
        self._add("broadcast", n, dtype, stream, send, recv, root)

    def send(self, send: int, n: int, dtype: int, peer: int, stream: int) -> None:
        self._add("send", n, dtype, stream, send, 0, peer)

    def recv(self, recv: int, n: int, dtype: int, peer: int, stream: int) -> None:
        self._add("recv", n, dtype, stream, 0, recv, peer)

    def check_async_error(self) -> None:
        if self.library.broken:
            raise NcclError(6, self.library.broken)

    def abort(self) -> None:
        self.library.num_aborted += 1

    def destroy(self) -> None:
        pass

    def _add(self, what: str, n: int, dtype: int, stream: int, send: int, recv: int, other: int = 0) -> None:
        (kind,) = (d for number, d in NUMBERS.values() if number == dtype)
        if what in ("send", "recv"):
            assert 0 <= other < self.world.size and other != self.rank
        self.library.add(Call(what, self, kind, n, send, recv, other), stream)

    # --- meeting ------------------------------------------------------------------------------------

    def sizes(self, call: Call) -> tuple[int, int]:
        """Elements that a call reads and writes."""
        n, size = call.count, self.world.size
        return {
            "allReduce": (n, n), "allGather": (n, n * size), "reduceScatter": (n * size, n),
            "broadcast": (n, n), "send": (n, 0), "recv": (0, n),
        }[call.what]  # fmt: skip

    def enter(self, call: Call) -> None:
        """Take a place in the order of the group, in one process."""
        if call.what == "send":
            self.world.sends[self.rank, call.other].append(call)
        elif call.what == "recv":
            self.world.recvs[call.other, self.rank].append(call)
        else:
            self.world.collectives[next(self.numbers[""])][self.rank] = call

    def partners(self, call: Call) -> list[Call]:
        """All calls of one meeting, in the order of the ranks."""
        world = self.world
        if call.what in ("send", "recv"):
            key = (self.rank, call.other) if call.what == "send" else (call.other, self.rank)
            sends, recvs = world.sends[key], world.recvs[key]
            own = sends if call.what == "send" else recvs
            number = next(i for i, each in enumerate(own) if each is call)
            assert number < len(sends) and number < len(recvs), f"{call.what} {key} waits for ever"
            return [sends[number], recvs[number]]
        meeting = next(each for each in world.collectives.values() if each.get(self.rank) is call)
        assert len(meeting) == world.size, f"rank {self.rank} waits for ever in {call.what}"
        found = [meeting[rank] for rank in range(world.size)]
        assert len({(each.what, each.count, each.dtype, each.other) for each in found}) == 1
        return found

    # --- several processes --------------------------------------------------------------------------

    def meet(self, name: str, size: int) -> None:
        """Wait until every rank is there."""
        if size == 1:
            return
        self.folder = Path(os.environ[FOLDER]) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(f"joined-{self.rank}", b"")
        for rank in range(size):
            self._read(f"joined-{rank}")
        self.library.joined.append((self.device,))

    def post(self, call: Call) -> None:
        """Write what a call sends."""
        if call.what == "recv":
            return
        key = f"to-{call.other}" if call.what == "send" else "all"
        call.number = next(self.numbers[key])
        content = call.read(self.sizes(call)[0]).view(np.uint8).tobytes()
        self._write(f"{key}-{self.rank}-{call.number}", content)

    def take(self, call: Call) -> None:
        """Read what a call receives."""
        if call.what == "send":
            return
        if call.what == "recv":
            number = next(self.numbers[f"from-{call.other}"])
            content = self._read(f"to-{self.rank}-{call.other}-{number}")
            call.write(np.frombuffer(content, np.uint8).view(call.dtype))
            return
        number = call.number
        everything = [self._read(f"all-{rank}-{number}") for rank in range(self.world.size)]
        sent = [np.frombuffer(each, np.uint8).view(call.dtype) for each in everything]
        call.write(result(call.what, self.rank, call.other, call.count, sent))

    def _write(self, name: str, content: bytes) -> None:
        assert self.folder is not None
        aside = self.folder / f".{name}"
        aside.write_bytes(content)
        aside.rename(self.folder / name)

    def _read(self, name: str) -> bytes:
        assert self.folder is not None
        end = time.monotonic() + _PATIENCE_S
        while not (self.folder / name).exists():
            assert time.monotonic() < end, f"rank {self.rank} waits for {name} for ever"
            time.sleep(1e-3)
        return (self.folder / name).read_bytes()


def install(machine: Machine) -> Library:
    """Give a machine NCCL; before its modules are installed."""
    library = Library(machine)
    machine.nccl = library.module()
    return library
