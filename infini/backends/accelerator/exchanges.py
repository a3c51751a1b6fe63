"""The collectives of a program between the memories of devices, by a vendor's library.

Work goes to a stream beside that of the device. It waits for what was computed before, by an event, and what
is computed later waits for it, by another; the host waits for nothing. The library adds up numbers of 32 and
64 bits. Other reductions are made of messages that add nothing up: each member of a group folds one part, in
the order of the members, and the parts are gathered. So floats of 16 bits are added up in float32, and a
maximum of floats keeps what is not a number.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from infini.backends.accelerator import groups as groups_
from infini.backends.accelerator.aside import Aside
from infini.backends.accelerator.driver import DeviceBuffer, Driver
from infini.backends.accelerator.lookout import Lookout
from infini.backends.spmd import activity
from infini.backends.spmd.some import check_present
from infini.core import comm as comm_, dtypes, errors
from infini.core.backend import Device
from infini.core.comm import Groups, ReduceOp
from infini.core.ir import ArrayType, Equation
from infini.core.mesh import AbstractMesh

Column: TypeAlias = list[DeviceBuffer]  # one per device of this process


@dataclass(frozen=True, slots=True)
class Message:
    """Arrays of one device that travel together.

    Args:
        buffers: their memory.
        types: their types.
    """

    buffers: tuple[DeviceBuffer, ...]
    types: tuple[ArrayType, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(type_.nbytes for type_ in self.types)


Rows: TypeAlias = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Here:
    """A device of this process in a mesh: its rank, and its two streams."""

    rank: int
    driver: Driver
    aside: Driver


@dataclass(frozen=True, slots=True)
class Ground:
    """What the exchanges of a run are made with.

    Args:
        devices: all devices of the mesh.
        aside: programs on second streams.
        reach: gives the group of some devices.
        is_ordered: whether every sum is taken in the order of the devices.
        lookout: where what is on its way is told to who waits for this process; None for a process alone.
        places: numbers of devices along an axis by rank, put on them before.
        abort: ends what is on its way everywhere, after a failure.
        lock: held by the thread whose program runs.
    """

    devices: Sequence[Device]
    aside: Aside
    reach: Callable[[groups_.Members], groups_.Found]
    is_ordered: bool
    lookout: Lookout | None
    places: dict[tuple[str, int], DeviceBuffer]
    abort: Callable[[], None]
    lock: contextlib.AbstractContextManager[object]

    def of(self, group: Sequence[int]) -> groups_.Found:
        """The group of some ranks."""
        return self.reach(tuple(self.devices[rank] for rank in group))


class Exchanges:
    """The exchanges of one run of a program.

    Args:
        ground: what they are made with.
        mesh: the mesh.
        here: its devices of this process, in mesh order.
        is_part: whether other devices of this process are elsewhere in the program.
    """

    def __init__(
        self, ground: Ground, mesh: AbstractMesh, here: Sequence[Here], *, is_part: bool = False
    ) -> None:
        self._ground, self._mesh, self._here, self._is_part = ground, mesh, here, is_part
        # Observers see calls with the names of a `Comm`, and rows that know their bytes.
        calls: Any = Calls(ground, here)
        self._calls: Any = comm_.observed(calls, mesh)

    def some(self, numbers: Sequence[int]) -> Exchanges:
        """Those of a part of the run, on some of the devices here; see `spmd.direct.Direct`."""
        return Exchanges(self._ground, self._mesh, [self._here[i] for i in numbers], is_part=True)

    def turn(self) -> contextlib.AbstractContextManager[object]:
        """What a run is inside of. It also keeps results of exchanges, which a program frees when it has
        started what reads them, from being given out to another one in between.
        """
        return self._ground.lock

    def start(self, equation: Equation, columns: Sequence[Column]) -> Begun | Ended | None:
        """Begin an exchange; see `spmd.direct.Direct`."""
        name, attrs = equation.op.name, equation.attrs
        if name == "axis_index":
            return Ended([self._index(attrs["axis_name"])])
        groups = self._mesh.groups(attrs["axes"])
        if self._is_part:
            check_present([each.rank for each in self._here], groups)
        try:
            with activity.of_equation(equation):
                if not self._is_reached(groups):
                    return None
            for each in self._here:
                each.aside.wait(each.driver.record())
            types = [v.type for v in equation.inputs]
            found = _COLLECTIVES[name](self._calls, self._ground.aside, columns, types, groups, attrs)
        except errors.CollectiveError as error:
            self._ground.abort()
            raise errors.CollectiveError(
                f"{name} over {', '.join(attrs['axes'])} failed: {error.what}",
                got=error.got,
                expected=error.expected,
                fix=error.fix,
                where=equation.where,
            ) from error
        if self._ground.lookout is not None:
            self._ground.lookout.follow(equation, groups, self._here[0].aside)
        return Begun(found, list(columns), self._here)

    def _is_reached(self, groups: Groups) -> bool:
        """Whether the library can be used for the groups of the devices here; it has not failed meanwhile."""
        for group in _mine(groups, {each.rank for each in self._here}):
            if len(group) == 1:
                continue
            found = self._ground.of(group)
            if found.reason is not None:
                return False
            for communicator in found.communicators.values():
                communicator.check()
        return True

    def _index(self, axis: str) -> Column:
        places = self._ground.places
        for each in self._here:
            if (axis, each.rank) not in places:
                number = np.asarray(self._mesh.coordinates(each.rank)[axis], np.int32)
                places[axis, each.rank] = each.driver.upload(number)
        return [places[axis, each.rank] for each in self._here]


class Ended:
    """Results that need no exchange."""

    def __init__(self, found: list[Column]) -> None:
        self._found = found

    def wait(self) -> list[Column]:
        """The results."""
        return self._found


class Begun:
    """An exchange on its way, with the memory that it reads.

    Args:
        found: its results.
        operands: what it reads.
        here: the devices.
    """

    def __init__(self, found: list[Column], operands: list[Column], here: Sequence[Here]) -> None:
        self._found, self._operands, self._here = found, operands, here
        self._events = [each.aside.record() for each in here]

    def wait(self) -> list[Column]:
        """The results: what the devices are given from now on waits for them."""
        for each, event in zip(self._here, self._events, strict=True):
            each.driver.wait(event)
        return self._found


# --- collectives of programs: blocks cut and joined around calls -----------------------------------


def _by_dtype(
    columns: Sequence[Column], types: Sequence[ArrayType], call: Callable[[list[Message]], list[Message]]
) -> list[Column]:
    """A call for the operands of each dtype, whose arrays travel together."""
    numbers: dict[np.dtype, list[int]] = {}
    for i, type_ in enumerate(types):
        numbers.setdefault(type_.dtype, []).append(i)
    found: dict[int, Column] = {}
    for chosen in numbers.values():
        kinds = tuple(types[i] for i in chosen)
        rows = [Message(row, kinds) for row in zip(*(columns[i] for i in chosen), strict=True)]
        made = call(rows)
        found.update((i, [row.buffers[k] for row in made]) for k, i in enumerate(chosen))
    return [found[i] for i in range(len(columns))]


def _reduction(op: ReduceOp) -> Collective:
    def run(
        calls: Any, aside: Aside, columns: Sequence[Column], types: Types, groups: Groups, attrs: Any
    ) -> list[Column]:
        return _by_dtype(columns, types, lambda rows: calls.all_reduce(rows, op, groups))

    return run


def _all_gather(
    calls: Any, aside: Aside, columns: Sequence[Column], types: Types, groups: Groups, attrs: Any
) -> list[Column]:
    size = math.prod(attrs["sizes"])
    found = _by_dtype(columns, types, lambda rows: calls.all_gather(rows, groups))
    return [
        [aside.joined(buffer, type_, size, dimension) for buffer in column]
        for column, type_, dimension in zip(found, types, attrs["dimensions"], strict=True)
    ]


def _psum_scatter(
    calls: Any, aside: Aside, columns: Sequence[Column], types: Types, groups: Groups, attrs: Any
) -> list[Column]:
    size = math.prod(attrs["sizes"])
    blocks = [
        [aside.split(buffer, type_, size, dimension) for buffer in column]
        for column, type_, dimension in zip(columns, types, attrs["dimensions"], strict=True)
    ]
    kinds = [_blocks(type_, size) for type_ in types]
    return _by_dtype(blocks, kinds, lambda rows: calls.reduce_scatter(rows, "sum", groups))


def _all_to_all(
    calls: Any, aside: Aside, columns: Sequence[Column], types: Types, groups: Groups, attrs: Any
) -> list[Column]:
    ((column,), (type_,)), size = (columns, types), math.prod(attrs["sizes"])
    shape = list(type_.shape)
    shape[attrs["split"]] //= size
    kind = _blocks(type_, size)
    rows = [Message((aside.split(buffer, type_, size, attrs["split"]),), (kind,)) for buffer in column]
    block = ArrayType(tuple(shape), type_.dtype)
    found = calls.all_to_all(rows, groups)
    return [[aside.joined(row.buffers[0], block, size, attrs["concat"]) for row in found]]


def _ppermute(
    calls: Any, aside: Aside, columns: Sequence[Column], types: Types, groups: Groups, attrs: Any
) -> list[Column]:
    return _by_dtype(columns, types, lambda rows: calls.permute(rows, attrs["permutation"], groups))


def _blocks(type_: ArrayType, count: int) -> ArrayType:
    """The type of an array as blocks that stand one after another."""
    return ArrayType((count, type_.size // count), type_.dtype)


Types: TypeAlias = Sequence[ArrayType]
# (calls, programs aside, operands, their types, groups, attributes) to results. Any: an observed `Calls`, and
# attributes by name.
Collective: TypeAlias = Callable[[Any, Aside, Sequence[Column], Types, Groups, Any], list[Column]]
_COLLECTIVES: Final[dict[str, Collective]] = {
    "psum": _reduction("sum"),
    "pmax": _reduction("max"),
    "pmin": _reduction("min"),
    "all_gather": _all_gather,
    "psum_scatter": _psum_scatter,
    "all_to_all": _all_to_all,
    "ppermute": _ppermute,
}


# --- calls of the library --------------------------------------------------------------------------


class Calls:
    """The collectives of a `Comm` on memory of devices; results are in fresh memory of the second streams.

    Args:
        ground: what they are made with.
        here: the devices of this process that take part, in mesh order.
    """

    def __init__(self, ground: Ground, here: Sequence[Here]) -> None:
        self.local_ranks = tuple(each.rank for each in here)
        self._ground, self._here, self._aside = ground, here, ground.aside

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[Message]:
        """Elementwise reduction over each group."""
        if _size(groups) == 1:
            return self._copied(rows)
        wire = self._added_up(rows, op, groups)
        if wire is None:
            return self._folded_and_gathered(rows, op, groups)
        made = [self._empty(at, row.types) for at, row in zip(self._here, rows, strict=True)]
        with self._together(groups) as members:
            for member, row, result in zip(members, rows, made, strict=True):
                for given, taken, n in _parts(row, result, wire):
                    member.communicator.all_reduce(
                        given, taken, n, wire.dtype, wire.op, member.at.aside.stream_address
                    )
        return made

    def all_gather(self, rows: Rows, groups: Groups) -> list[Message]:
        """Arrays of the group one after another."""
        size = _size(groups)
        if size == 1:
            return self._copied(rows)
        wire = self._bytes(rows, groups)
        kinds = tuple(ArrayType((size, *t.shape), t.dtype) for t in rows[0].types)
        made = [self._empty(at, kinds) for at in self._here]
        with self._together(groups) as members:
            for member, row, result in zip(members, rows, made, strict=True):
                for given, taken, n in _parts(row, result, wire):
                    stream = member.at.aside.stream_address
                    member.communicator.all_gather(given, taken, n, wire.dtype, stream)
        return made

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[Message]:
        """Block i of each array, reduced over the group, for member i."""
        if _size(groups) == 1:
            return self._copied(rows)
        kinds = tuple(ArrayType(t.shape[1:], t.dtype) for t in rows[0].types)
        wire = self._added_up(rows, op, groups)
        if wire is None:
            return self._folded(self.all_to_all(rows, groups), op)
        made = [self._empty(at, kinds) for at in self._here]
        with self._together(groups) as members:
            for member, row, result in zip(members, rows, made, strict=True):
                for taken, given, n in _parts(result, row, wire):
                    member.communicator.reduce_scatter(
                        given, taken, n, wire.dtype, wire.op, member.at.aside.stream_address
                    )
        return made

    def all_to_all(self, rows: Rows, groups: Groups) -> list[Message]:
        """Block i of each array for member i; blocks received stand in the order of the members."""
        size = _size(groups)
        if size == 1:
            return self._copied(rows)
        made = [self._empty(at, row.types) for at, row in zip(self._here, rows, strict=True)]
        transfers = [
            _Transfer(source, target, part, target, source)
            for part in range(len(rows[0].types))
            for turn in range(size)
            for source in range(size)
            for target in [(source + turn) % size]
        ]
        self._send(rows, made, groups, transfers, size)
        return made

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[Message]:
        """Arrays by (source, destination); zeros for members that receive nothing."""
        receivers = {target for _, target in pairs}
        made = []
        for at, row in zip(self._here, rows, strict=True):
            group = next(group for group in groups if at.rank in group)
            if group.index(at.rank) in receivers:
                made.append(self._empty(at, row.types))
            else:
                zeros = map(self._aside.zeros, row.buffers, row.types)
                made.append(Message(tuple(zeros), row.types))
        transfers = [
            _Transfer(source, target, part, 0, 0)
            for part in range(len(rows[0].types))
            for source, target in sorted(pairs)
        ]
        self._send(rows, made, groups, transfers, 1)
        return made

    # --- reductions that the library does not make -------------------------------------------------

    def _folded_and_gathered(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[Message]:
        size = _size(groups)
        types = rows[0].types
        kinds = tuple(ArrayType((size, -(-t.size // size)), t.dtype) for t in types)
        padded = [
            Message(tuple(map(self._aside.padded, row.buffers, types, [k.size for k in kinds])), kinds)
            for row in rows
        ]
        parts = self._folded(self.all_to_all(padded, groups), op)
        # What was padded stays at the end, and nobody reads it.
        return [Message(row.buffers, types) for row in self.all_gather(parts, groups)]

    def _folded(self, rows: Rows, op: ReduceOp) -> list[Message]:
        """The blocks of each array reduced in their order."""
        made = []
        for row in rows:
            kinds = tuple(ArrayType(t.shape[1:], t.dtype) for t in row.types)
            buffers = tuple(
                self._aside.folded(buffer, t.dtype, op, t.shape[0], kind.size)
                for buffer, t, kind in zip(row.buffers, row.types, kinds, strict=True)
            )
            made.append(Message(buffers, kinds))
        return made

    # --- parts ---------------------------------------------------------------------------------

    def _copied(self, rows: Rows) -> list[Message]:
        """What a group of one gives: the same in other memory."""
        return [
            Message(tuple(at.aside.duplicate(buffer) for buffer in row.buffers), row.types)
            for at, row in zip(self._here, rows, strict=True)
        ]

    def _empty(self, at: Here, types: tuple[ArrayType, ...]) -> Message:
        return Message(tuple(at.aside.allocate(type_.nbytes) for type_ in types), types)

    def _library(self, groups: Groups) -> Collection[np.dtype]:
        """The dtypes that the library takes."""
        (group, *_) = _mine(groups, set(self.local_ranks))
        return self._ground.of(group).dtypes

    def _added_up(self, rows: Rows, op: ReduceOp, groups: Groups) -> Wire | None:
        """As what the library reduces these; None where it may not or cannot."""
        dtype, has = rows[0].types[0].dtype, self._library(groups)
        if dtype == dtypes.bool_:
            # A sum of flags is whether any is set.
            return Wire(dtypes.uint8, 1, "max" if op == "sum" else op) if dtypes.uint8 in has else None
        if dtype in dtypes.COMPLEX:
            part = np.dtype(f"f{dtype.itemsize // 2}")
            return Wire(part, 2, op) if op == "sum" and part in has and not self._ground.is_ordered else None
        if dtype in dtypes.FLOATS and (op != "sum" or dtype.itemsize < 4 or self._ground.is_ordered):
            return None
        return Wire(dtype, 1, op) if dtype in has else None

    def _bytes(self, rows: Rows, groups: Groups) -> Wire:
        """What is moved and not added up."""
        byte = dtypes.uint8 if dtypes.uint8 in self._library(groups) else dtypes.int8
        return Wire(byte, rows[0].types[0].dtype.itemsize, "sum")

    @contextlib.contextmanager
    def _together(self, groups: Groups) -> Iterator[list[_Member]]:
        """Each device with its part in its group; what the block calls goes together."""
        members = []
        for at in self._here:
            group = next(group for group in groups if at.rank in group)
            found = self._ground.of(group)
            members.append(_Member(at, group.index(at.rank), found.communicators[group.index(at.rank)]))
        with members[0].communicator.group():
            yield members

    def _send(
        self, rows: Rows, made: Rows, groups: Groups, transfers: Sequence[_Transfer], count: int
    ) -> None:
        """Move blocks between the members of each group.

        Where the library puts nothing together, every member takes the messages in the one order in which
        they are given, so the first one that is under way always finds both of its ends.

        Args:
            rows: what is sent.
            made: what is received.
            groups: the groups.
            transfers: from where to where.
            count: blocks of each array.
        """
        byte = self._bytes(rows, groups).dtype
        with self._together(groups) as members:
            for transfer in transfers:
                for member, row, result in zip(members, rows, made, strict=True):
                    nbytes = row.types[transfer.part].nbytes // count
                    if nbytes == 0 or member.index not in (transfer.source, transfer.target):
                        continue
                    given = row.buffers[transfer.part].address + transfer.sent * nbytes
                    taken = result.buffers[transfer.part].address + transfer.received * nbytes
                    stream = member.at.aside.stream_address
                    if transfer.source == transfer.target:
                        member.at.aside.move(given, taken, nbytes)
                        continue
                    if member.index == transfer.source:
                        member.communicator.send(given, nbytes, byte, transfer.target, stream)
                    else:
                        member.communicator.recv(taken, nbytes, byte, transfer.source, stream)


@dataclass(frozen=True, slots=True)
class Wire:
    """As what elements travel: `times` elements of a dtype each, and how they are reduced where they are."""

    dtype: np.dtype
    times: int
    op: str


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A block from one member to another: its number where it is sent, and where it is received."""

    source: int
    target: int
    part: int
    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class _Member:
    at: Here
    index: int
    communicator: groups_.Communicator


def _parts(one: Message, other: Message, wire: Wire) -> Iterator[tuple[int, int, int]]:
    """Addresses of each array of two messages, and how many elements of the wire that of the first has."""
    for first, type_, second in zip(one.buffers, one.types, other.buffers, strict=True):
        if type_.size:
            yield first.address, second.address, type_.size * wire.times


def _size(groups: Groups) -> int:
    (size,) = {len(group) for group in groups}
    return size


def _mine(groups: Groups, ranks: set[int]) -> Iterator[tuple[int, ...]]:
    """The groups with a device of this process."""
    return (group for group in groups if ranks & set(group))
