"""Runs a per-device program on all devices of a mesh that this process holds, step by step.

A piece runs on one device after another; an exchange takes the rows of all devices to a `Comm` and
brings results back. The same walk serves simulated devices, where the comm is arithmetic, and MPI, where
there is one row and the comm talks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from infini.backends.spmd import collectives, schedule as s
from infini.backends.spmd.lockstep import LockstepComm
from infini.compiler import partition
from infini.core import comm as comm_, errors
from infini.core.backend import Backend, Buffer, CompileOptions, Device, Executable
from infini.core.ir import ArrayType, Program, Var
from infini.core.mesh import AxisEntry

Env: TypeAlias = dict[Var, list[Buffer]]  # one buffer per device of this process
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
        self.schedule = s.cut(partitioned.program)
        self._backend = backend
        self._options = options
        self._pieces: dict[int, Executable] = {}
        self._compile(self.schedule, {partitioned.program.params[i] for i in options.donated})

    def _compile(self, schedule: s.Schedule, donated: set[Var]) -> None:
        for step, dead in zip(schedule.steps, schedule.dead, strict=True):
            if isinstance(step, s.Piece):
                given = tuple(i for i, v in enumerate(step.inputs) if v in donated and v in dead)
                options = CompileOptions(donated=given, deterministic=self._options.deterministic)
                self._pieces[id(step)] = self._backend.compile(step.program, options)
            elif isinstance(step, s.Structured):
                for body in step.bodies:
                    self._compile(body, set())

    def __call__(self, inputs: Sequence[Buffer]) -> Row:
        """Refuse: a program for a mesh runs on all of its devices.

        Raises:
            DeviceError: always, unless the mesh has one device.
        """
        if self.partitioned.mesh.size != 1:
            raise errors.DeviceError(
                "a program for a mesh cannot run on one device", got=str(self.partitioned.mesh.shape)
            )
        return self._run([inputs], (0,), LockstepComm(1), [None])[0]

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
        return self._run(inputs, ranks, comm, [devices[rank] for rank in ranks])

    def _run(
        self,
        inputs: Sequence[Sequence[Buffer]],
        ranks: tuple[int, ...],
        comm: comm_.Comm,
        devices: Sequence[Any],
    ) -> list[Row]:
        walk = _Walk(
            self._backend, self._pieces, collectives.Mesh(self.partitioned.mesh, ranks), comm, devices
        )
        columns = [list(column) for column in zip(*inputs, strict=True)]
        results = walk.run(self.schedule, columns)
        return [tuple(column[i] for column in results) for i in range(len(ranks))]

    def text(self, stage: str) -> str:
        """`program` is the per-device program; other stages show each piece."""
        if stage == "program":
            return repr(self.partitioned.program)
        return "\n\n".join(piece.text(stage) for piece in self._pieces.values())

    def cost_analysis(self) -> dict[str, float]:
        """Sums over the pieces, and the bytes that each device gives to collectives."""
        total: dict[str, float] = {}
        for piece in self._pieces.values():
            for key, number in piece.cost_analysis().items():
                total[key] = total.get(key, 0.0) + number
        total["collective bytes"] = float(sum(c.nbytes for c in self.partitioned.collectives))
        return total

    def memory_analysis(self) -> dict[str, int]:
        """The largest of each count over the pieces; arguments and results of the whole."""
        total: dict[str, int] = {}
        for piece in self._pieces.values():
            for key, number in piece.memory_analysis().items():
                total[key] = max(total.get(key, 0), number)
        program = self.partitioned.program
        total["argument bytes"] = sum(t.nbytes for t in program.in_types)
        total["output bytes"] = sum(t.nbytes for t in program.out_types)
        return total


class _Walk:
    """One run of a schedule."""

    def __init__(
        self,
        backend: Backend,
        pieces: dict[int, Executable],
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
            found = collectives.run(step.equation, hosts[0] if hosts else [], self.mesh, self.comm)
            return [self.put(found)]
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
    return SpmdExecutable(backend, partitioned, options)
