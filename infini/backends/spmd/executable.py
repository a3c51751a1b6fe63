"""A program for a mesh: its partition, its schedule, and the executables of its pieces. `walk` runs it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from infini.backends.spmd import (
    agreement,
    collectives,
    differences,
    direct,
    donation,
    footprint,
    schedule as s,
    thread,
)
from infini.backends.spmd.lockstep import LockstepComm
from infini.backends.spmd.ordered import OrderedComm
from infini.backends.spmd.turns import TURNS
from infini.backends.spmd.walk import Constants, Pieces, Walk
from infini.compiler import partition
from infini.core import backend as backend_, comm as comm_, config, errors, events, physical
from infini.core.backend import Backend, Buffer, CompileOptions, Device
from infini.core.ir import Program, Var
from infini.core.layout import Layout
from infini.core.mesh import AxisEntry

Row: TypeAlias = tuple[Buffer, ...]


class SpmdExecutable:
    """A program compiled for a mesh: its partition, its schedule, and the executables of its pieces.

    Args:
        backend: what compiles and runs the pieces, and moves bytes.
        partitioned: the per-device program.
        options: options of the whole program.
    """

    def __init__(self, backend: Backend, partitioned: partition.Partitioned, options: CompileOptions) -> None:
        self.partitioned = partitioned
        self.in_specs: tuple[tuple[AxisEntry, ...], ...] = partitioned.in_specs
        self.out_specs: tuple[tuple[AxisEntry, ...], ...] = partitioned.out_specs
        self.schedule = s.cut(partitioned.program, options.donated, _limits(options))
        self._backend = backend
        self._connects = backend if isinstance(backend, direct.Connects) else None
        self._options = options
        self._knobs = {knob.name: config.get(knob.name) for knob in config.KNOBS.values() if knob.in_key}
        # In a job of several processes nothing is measured before it is known which of them take part.
        is_alone = comm_.processes().count == 1
        self._pieces = self._compiled(options.choices, is_measured=is_alone)
        self._asks = not is_alone and bool(_choices_of(self._pieces))
        self._agreed: dict[agreement.Owners, Pieces] = {}
        self._constants: dict[tuple[Any, ...], Constants] = {}  # by devices
        donation.check(self.schedule, options, self._pieces)

    @functools.cached_property
    def subject(self) -> differences.Subject:
        """What has to be the same in the other processes of a job."""
        options, knobs = (f"options.{f.name}" for f in dataclasses.fields(self._options)), self._knobs
        values = (repr(getattr(self._options, f.name)) for f in dataclasses.fields(self._options))
        facts = [
            *zip(options, values, strict=True),
            *((f"INFINI_{name.upper()}", repr(value)) for name, value in sorted(knobs.items())),
            ("number of measured choices", str(len(_choices_of(self._pieces)) if self._asks else 0)),
        ]
        return differences.Subject(self.partitioned.program, tuple(facts))

    def _compiled(self, choices: agreement.Choices, *, is_measured: bool) -> Pieces:
        """Executables of the pieces, with the knobs of the time when the program was compiled."""
        knobs = self._knobs if is_measured else {**self._knobs, "tune": "off"}
        pieces: Pieces = {}
        with config.config(**knobs):
            self._compile(self.schedule, choices, pieces)
        return pieces

    def _compile(self, schedule: s.Schedule, choices: agreement.Choices, pieces: Pieces) -> None:
        for step, given in zip(schedule.steps, schedule.given, strict=True):
            if isinstance(step, s.Piece):
                options = CompileOptions(
                    donated=tuple(i for i, v in enumerate(step.inputs) if v in given),
                    donation="offer",
                    deterministic=self._options.deterministic,
                    choices=choices,
                )
                pieces[id(step)] = self._backend.compile(step.program, options)
            elif isinstance(step, s.Structured):
                for body in step.bodies:
                    self._compile(body, choices, pieces)

    def _pieces_for(self, owners: agreement.Owners, comm: comm_.Comm) -> Pieces:
        """The pieces with the choices of these processes; see `agreement`.

        Raises:
            CollectiveError: this process asks other questions than rank 0.
        """
        if comm_.processes().count == 1:
            return self._pieces
        found = self._agreed.get(owners)
        if found is None:
            found = self._agreed[owners] = self._agree(owners, comm)
        return found

    def _agree(self, owners: agreement.Owners, comm: comm_.Comm) -> Pieces:
        given = self._options.choices
        if len(set(owners)) == 1:
            return self._compiled(given, is_measured=True) if self._asks else self._pieces
        if not s.always_meets(self.schedule, self.partitioned.mesh.shape):
            return self._pieces
        if not self._asks:
            agreement.agree(comm, owners, self.subject, None)
            return self._pieces
        mine: list[Pieces] = []

        def make() -> agreement.Choices:
            mine.append(self._compiled(given, is_measured=True))
            return _choices_of(mine[0])

        choices = agreement.agree(comm, owners, self.subject, make)
        pieces = mine[0] if mine else self._compiled(choices, is_measured=False)
        if _choices_of(pieces) != choices:
            raise errors.CollectiveError(
                "the processes of this job have different choices for one program",
                got=_listed(_choices_of(pieces)),
                expected=_listed(choices),
                fix="run the same version of infini on devices of one kind in every process",
            )
        return pieces

    def __call__(self, inputs: Sequence[Buffer]) -> Row:
        """Refuse: a program for a mesh runs on all of its devices.

        Raises:
            DeviceError: always, unless the mesh has one device.
        """
        if self.partitioned.mesh.size != 1:
            raise errors.DeviceError(
                "a program for a mesh cannot run on one device", got=str(self.partitioned.mesh.shape)
            )
        mine = [device for device in self._backend.devices() if self._backend.owns(device)]
        return self._run([inputs], (0,), LockstepComm(1), tuple(mine[:1]) or (None,), self._pieces, ())[0]

    def run_spmd(self, inputs: Sequence[Sequence[Buffer]], devices: Sequence[Device]) -> list[Row]:
        """Results on every device of this process, in mesh order. A list of inputs is emptied, so that they
        are freed when they are dead.
        """
        job = comm_.processes()
        owners = tuple(device.process_index for device in devices)
        ranks = tuple(rank for rank, device in enumerate(devices) if device.process_index == job.index)
        own = tuple(devices[rank] for rank in ranks)
        if set(owners) == {job.index}:
            alone = LockstepComm(len(devices))
            return self._run(inputs, ranks, alone, own, self._pieces_for(owners, alone), devices)
        assert job.launcher is not None, "devices of other processes exist in a job only"
        comm = job.launcher.comm(owners)
        if not self.partitioned.collectives:
            return self._run(inputs, ranks, comm, own, self._pieces_for(owners, comm), devices)
        name = self.partitioned.program.name
        with TURNS.one(name):
            try:
                pieces = self._pieces_for(owners, comm)
                agreement.check_turn(comm, owners, self.subject)
            except errors.InfiniError:  # raised in all processes
                raise
            except BaseException as error:
                TURNS.leave(name, error)
                raise
            return self._run(inputs, ranks, comm, own, pieces, devices)

    def _run(
        self,
        inputs: Sequence[Sequence[Buffer]],
        ranks: tuple[int, ...],
        comm: comm_.Comm,
        devices: tuple[Any, ...],  # Any: a Device, or None for one that nothing is moved to
        pieces: Pieces,
        every: Sequence[Device],
    ) -> list[Row]:
        # Devices of one process always add up in one order.
        is_asked = self._options.deterministic or self._options.collectives.deterministic
        is_ordered = is_asked and len(ranks) < self.partitioned.mesh.size
        mesh = collectives.Mesh(self.partitioned.mesh, ranks)
        between = None
        if every and self._connects is not None:
            between = self._connects.direct(mesh, every, comm, is_ordered=is_asked)
        walk = Walk(
            self._backend,
            pieces,
            mesh,
            comm_.observed(OrderedComm(comm) if is_ordered else comm, self.partitioned.mesh),
            exchanger=exchanger_of(comm),
            devices=devices,
            constants=self._constants.setdefault(devices, {}),
            between=between,
        )
        columns = [list(column) for column in zip(*inputs, strict=True)]
        if isinstance(inputs, list):
            inputs.clear()
        try:
            with contextlib.nullcontext() if between is None else between.turn():
                results = walk.run(self.schedule, columns)
        except BaseException as error:
            if walk.has_met and comm_.processes().count > 1:
                TURNS.leave(self.partitioned.program.name, error)
            raise
        return [tuple(column[i] for column in results) for i in range(len(ranks))]

    @property
    def choices(self) -> agreement.Choices:
        """The choices of the pieces, see `_current`."""
        return _choices_of(self._current)

    @property
    def _current(self) -> Pieces:
        """The pieces agreed on last; before the first run, those made when it was compiled."""
        return next(reversed(self._agreed.values()), self._pieces)

    def text(self, stage: str) -> str:
        """`program` is the per-device program; other stages show each piece."""
        if stage == "program":
            return repr(self.partitioned.program)
        return "\n\n".join(piece.text(stage) for piece in self._current.values())

    def cost_analysis(self) -> dict[str, float]:
        """Sums over the pieces, and the bytes that each device gives to collectives."""
        total: dict[str, float] = {}
        for piece in self._current.values():
            for key, number in piece.cost_analysis().items():
                total[key] = total.get(key, 0.0) + number
        made = self.partitioned.collectives
        total["collective bytes"] = float(sum(c.nbytes * (c.times or 1) for c in made))
        return total

    def memory_analysis(self) -> dict[str, int]:
        """The largest of each count over the pieces; arguments, results and the peak of the whole."""
        total: dict[str, int] = {}
        for piece in self._current.values():
            for key, number in piece.memory_analysis().items():
                total[key] = max(total.get(key, 0), number)
        total["peak bytes"] = footprint.peak_bytes(self.schedule, self._current, self._options.donated)
        program = self.partitioned.program
        total["argument bytes"] = sum(t.nbytes for t in program.in_types)
        total["output bytes"] = sum(t.nbytes for t in program.out_types)
        return total


def _limits(options: CompileOptions) -> s.Limits:
    """When reductions begin. The partitioner joined them already: one that is half as large as a bucket may
    be has no place for the next.
    """
    sizes = options.collectives
    return s.Limits(sizes.first_bucket_bytes // 2, sizes.bucket_bytes // 2, sizes.window_bytes)


def exchanger_of(comm: comm_.Comm) -> thread.Exchanger:
    """Where the exchanges of a comm are made."""
    may_overlap = getattr(comm, "may_overlap", None)  # of `Overlaps`; asking for a protocol takes longer
    if may_overlap is None:
        return thread.IMMEDIATE
    if may_overlap:
        return thread.shared()
    events.emit("exchanges-alone", "MPI takes calls of one thread only: nothing is computed beside exchanges")
    return thread.IMMEDIATE


def _choices_of(pieces: Pieces) -> agreement.Choices:
    """Choices of all pieces in the order of the program; one question has one answer."""
    made = (piece.choices for piece in pieces.values() if isinstance(piece, backend_.Chooses))
    return tuple(dict(pair for choices in made for pair in choices).items())


def _listed(choices: agreement.Choices) -> str:
    return "; ".join(f"{key}: {name}" for key, name in choices) or "none"


def compile(backend: Backend, program: Program, options: CompileOptions) -> SpmdExecutable:
    """Partition a program over `options.mesh` and compile its pieces with `backend`.

    Raises:
        LoweringError: an operation has no route, or the program names another mesh.
        ValueMismatchError: a spec has more entries than its array has dimensions.
    """
    assert options.mesh is not None
    partitioned = partition.for_options(program, options)
    if options.in_layouts:
        laid_out = physical.with_layouts(partitioned.program, options.in_layouts)
        partitioned = dataclasses.replace(partitioned, program=laid_out)
    return SpmdExecutable(backend, partitioned, options)


def preferred_layouts(
    program: Program, options: CompileOptions, preferred: Callable[[Program], tuple[Layout | None, ...]]
) -> tuple[Layout | None, ...]:
    """The best layouts of the parts of parameters, for a backend that knows them for one device; row-major
    for what several pieces read.
    """
    assert options.mesh is not None
    local = partition.for_options(program, options).program
    schedule = s.cut(local, limits=_limits(options))
    found: dict[Var, Layout | None] = {}
    for step in schedule.steps:
        if isinstance(step, s.Piece):
            found.update(zip(step.inputs, preferred(step.program), strict=True))
    num_readers = Counter(v for step in schedule.steps for v in step.inputs)
    shared = {v for v, count in num_readers.items() if count > 1} | set(local.results)
    return tuple(None if v in shared else found.get(v) for v in local.params)
