"""Runs a per-device program on all devices of a mesh that this process holds, step by step.

A piece runs on one device after another; an exchange takes the rows of all devices to a `Comm` and
brings results back. The same walk serves simulated devices, where the comm is arithmetic, and MPI, where
there is one row and the comm talks.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from infini.backends.spmd import agreement, collectives, schedule as s
from infini.backends.spmd.lockstep import LockstepComm
from infini.compiler import partition
from infini.core import backend as backend_, comm as comm_, config, errors, physical
from infini.core.backend import Backend, Buffer, CompileOptions, Device, Executable
from infini.core.ir import ArrayType, Program, Var
from infini.core.layout import Layout
from infini.core.mesh import AxisEntry

Env: TypeAlias = dict[Var, list[Buffer]]  # one buffer per device of this process
Row: TypeAlias = tuple[Buffer, ...]
Pieces: TypeAlias = dict[int, Executable]  # by id of the piece


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
        self.schedule = s.cut(partitioned.program)
        self._backend = backend
        self._options = options
        self._knobs = {knob.name: config.get(knob.name) for knob in config.KNOBS.values() if knob.in_key}
        # In a job of several processes nothing is measured before it is known which of them take part.
        is_alone = comm_.processes().count == 1
        self._pieces = self._compiled(options.choices, is_measured=is_alone)
        self._asks = not is_alone and bool(_choices_of(self._pieces))
        self._agreed: dict[agreement.Owners, Pieces] = {}

    @functools.cached_property
    def key(self) -> str:
        """What identifies the program to the other processes of a job."""
        parts = (self.partitioned.program.fingerprint, self._options, sorted(self._knobs.items()))
        return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()

    def _compiled(self, choices: agreement.Choices, *, is_measured: bool) -> Pieces:
        """Executables of the pieces, with the knobs of the time when the program was compiled."""
        knobs = self._knobs if is_measured else {**self._knobs, "tune": "off"}
        pieces: Pieces = {}
        with config.config(**knobs):
            params = self.partitioned.program.params
            self._compile(self.schedule, {params[i] for i in self._options.donated}, choices, pieces)
        return pieces

    def _compile(
        self, schedule: s.Schedule, donated: set[Var], choices: agreement.Choices, pieces: Pieces
    ) -> None:
        for step, dead in zip(schedule.steps, schedule.dead, strict=True):
            if isinstance(step, s.Piece):
                given = tuple(i for i, v in enumerate(step.inputs) if v in donated and v in dead)
                options = CompileOptions(
                    donated=given, deterministic=self._options.deterministic, choices=choices
                )
                pieces[id(step)] = self._backend.compile(step.program, options)
            elif isinstance(step, s.Structured):
                for body in step.bodies:
                    self._compile(body, set(), choices, pieces)

    def _pieces_for(self, owners: agreement.Owners, comm: comm_.Comm) -> Pieces:
        """The pieces with the choices of these processes; see `agreement`.

        Raises:
            CollectiveError: this process asks other questions than rank 0.
        """
        if not self._asks:
            return self._pieces
        found = self._agreed.get(owners)
        if found is None:
            found = self._agreed[owners] = self._agree(owners, comm)
        return found

    def _agree(self, owners: agreement.Owners, comm: comm_.Comm) -> Pieces:
        given = self._options.choices
        if len(set(owners)) == 1:
            return self._compiled(given, is_measured=True)
        if not s.always_meets(self.schedule, self.partitioned.mesh.shape):
            return self._pieces
        mine: list[Pieces] = []

        def make() -> agreement.Choices:
            mine.append(self._compiled(given, is_measured=True))
            return _choices_of(mine[0])

        choices = agreement.agree(comm, owners, self.key, make)
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
        return self._run([inputs], (0,), LockstepComm(1), [None], self._pieces)[0]

    def run_spmd(self, inputs: Sequence[Sequence[Buffer]], devices: Sequence[Device]) -> list[Row]:
        """Results on every device of this process, in mesh order."""
        job = comm_.processes()
        owners = tuple(device.process_index for device in devices)
        ranks = tuple(rank for rank, device in enumerate(devices) if device.process_index == job.index)
        if set(owners) == {job.index}:
            comm: comm_.Comm = LockstepComm(len(devices))
        else:
            assert job.launcher is not None, "devices of other processes exist in a job only"
            comm = job.launcher.comm(owners)
        return self._run(
            inputs, ranks, comm, [devices[rank] for rank in ranks], self._pieces_for(owners, comm)
        )

    def _run(
        self,
        inputs: Sequence[Sequence[Buffer]],
        ranks: tuple[int, ...],
        comm: comm_.Comm,
        devices: Sequence[Any],
        pieces: Pieces,
    ) -> list[Row]:
        walk = _Walk(self._backend, pieces, collectives.Mesh(self.partitioned.mesh, ranks), comm, devices)
        columns = [list(column) for column in zip(*inputs, strict=True)]
        results = walk.run(self.schedule, columns)
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
        total["collective bytes"] = float(sum(c.nbytes for c in self.partitioned.collectives))
        return total

    def memory_analysis(self) -> dict[str, int]:
        """The largest of each count over the pieces; arguments and results of the whole."""
        total: dict[str, int] = {}
        for piece in self._current.values():
            for key, number in piece.memory_analysis().items():
                total[key] = max(total.get(key, 0), number)
        program = self.partitioned.program
        total["argument bytes"] = sum(t.nbytes for t in program.in_types)
        total["output bytes"] = sum(t.nbytes for t in program.out_types)
        return total


def _choices_of(pieces: Pieces) -> agreement.Choices:
    """Choices of all pieces in the order of the program; one question has one answer."""
    made = (piece.choices for piece in pieces.values() if isinstance(piece, backend_.Chooses))
    return tuple(dict(pair for choices in made for pair in choices).items())


def _listed(choices: agreement.Choices) -> str:
    return "; ".join(f"{key}: {name}" for key, name in choices) or "none"


class _Walk:
    """One run of a schedule."""

    def __init__(
        self,
        backend: Backend,
        pieces: Pieces,
        mesh: collectives.Mesh,
        comm: comm_.Comm,
        devices: Sequence[Device],
    ) -> None:
        self.backend, self.pieces, self.mesh, self.comm, self.devices = backend, pieces, mesh, comm, devices

    def run(self, schedule: s.Schedule, arguments: Sequence[list[Buffer]]) -> list[list[Buffer]]:
        """Results of a schedule, one column of buffers per result."""
        env: Env = dict(zip(schedule.program.params, arguments, strict=True))
        for var, constant in schedule.consts:
            env[var] = self.put([constant.array] * len(self.devices))
        for step, dead in zip(schedule.steps, schedule.dead, strict=True):
            operands = [env[v] for v in step.inputs]
            env.update(zip(step.outputs, self.apply(step, operands), strict=True))
            for var in dead:
                env.pop(var, None)
        return [env[v] for v in schedule.program.results]

    def apply(self, step: s.Step, operands: list[list[Buffer]]) -> list[list[Buffer]]:
        """Results of one step."""
        if isinstance(step, s.Piece):
            execute = self.pieces[id(step)]
            rows = [execute([column[i] for column in operands]) for i in range(len(self.devices))]
            return [list(column) for column in zip(*rows, strict=True)]
        if isinstance(step, s.Exchange):
            hosts = [self.get(column, v.type) for column, v in zip(operands, step.inputs, strict=True)]
            found = collectives.run(step.equation, hosts, self.mesh, self.comm)
            return [self.put(rows) for rows in found]
        return STRUCTURED[step.equation.op.name](self, step, operands)

    def get(self, column: Sequence[Buffer], type_: ArrayType) -> list[np.ndarray]:
        """Buffers of all devices as host arrays."""
        return [self.backend.get(buffer, type_) for buffer in column]

    def put(self, rows: Sequence[np.ndarray]) -> list[Buffer]:
        """Host arrays, one per device, as buffers."""
        return [
            self.backend.put(np.asarray(row), device) for row, device in zip(rows, self.devices, strict=True)
        ]


# --- loops and branches with communication inside ----------------------------------------------


def _scan(walk: _Walk, step: s.Structured, operands: list[list[Buffer]]) -> list[list[Buffer]]:
    attrs, (body,) = step.equation.attrs, step.bodies
    first, second = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]
    consts, carry, length = operands[:first], operands[first:second], attrs["length"]
    types = [v.type for v in step.inputs[second:]]
    xs = [walk.get(column, t) for column, t in zip(operands[second:], types, strict=True)]
    y_types = body.program.out_types[attrs["num_carry"] :]
    ys = [[np.empty((length, *t.shape), t.dtype) for _ in walk.devices] for t in y_types]
    for i in reversed(range(length)) if attrs["reverse"] else range(length):
        slices = [walk.put([row[i] for row in rows]) for rows in xs]
        results = walk.run(body, [*consts, *carry, *slices])
        carry = results[: len(carry)]
        for stacked, column, type_ in zip(ys, results[len(carry) :], y_types, strict=True):
            for row, host in zip(stacked, walk.get(column, type_), strict=True):
                row[i] = host
    return [*carry, *(walk.put(rows) for rows in ys)]


def _cond(walk: _Walk, step: s.Structured, operands: list[list[Buffer]]) -> list[list[Buffer]]:
    (index, *_) = walk.get(operands[0], step.inputs[0].type)
    chosen = step.bodies[int(np.clip(int(index), 0, len(step.bodies) - 1))]
    return walk.run(chosen, operands[1:])


def _while(walk: _Walk, step: s.Structured, operands: list[list[Buffer]]) -> list[list[Buffer]]:
    attrs = step.equation.attrs
    bodies = dict(zip(map(id, step.equation.programs), step.bodies, strict=True))
    condition, body = bodies[id(attrs["cond"])], bodies[id(attrs["body"])]
    first, second = attrs["num_cond_consts"], attrs["num_cond_consts"] + attrs["num_body_consts"]
    carry = operands[second:]
    while True:
        (predicate,) = walk.run(condition, [*operands[:first], *carry])
        if not bool(walk.get(predicate, condition.program.out_types[0])[0]):
            return carry
        carry = walk.run(body, [*operands[first:second], *carry])


STRUCTURED: dict[str, Callable[[_Walk, s.Structured, list[list[Buffer]]], list[list[Buffer]]]] = {
    "scan": _scan,
    "cond": _cond,
    "while": _while,
}


def compile(backend: Backend, program: Program, options: CompileOptions) -> SpmdExecutable:
    """Partition a program over `options.mesh` and compile its pieces with `backend`.

    Raises:
        LoweringError: an operation has no route, or the program names another mesh.
        ValueMismatchError: a spec does not divide its array.
    """
    assert options.mesh is not None
    partitioned = partition.partition(program, options.mesh, options.in_specs)
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
    local = partition.partition(program, options.mesh, options.in_specs).program
    schedule = s.cut(local)
    found: dict[Var, Layout | None] = {}
    for step in schedule.steps:
        if isinstance(step, s.Piece):
            found.update(zip(step.inputs, preferred(step.program), strict=True))
    num_readers = Counter(v for step in schedule.steps for v in step.inputs)
    shared = {v for v, count in num_readers.items() if count > 1} | set(local.results)
    return tuple(None if v in shared else found.get(v) for v in local.params)
