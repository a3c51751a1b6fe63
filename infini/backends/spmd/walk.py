"""One run of a schedule: step by step, on all devices of a mesh that this process holds.

A piece runs on one device after another; an exchange takes the rows of all devices to a `Comm` and brings
results back. The same walk serves simulated devices, where the comm is arithmetic, and MPI, where there is
one row and the comm talks, beside what is computed where it may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

import numpy as np

from infini.backends.spmd import collectives, direct, stacks, steps as s
from infini.backends.spmd.direct import Column
from infini.backends.spmd.some import SomeRanks
from infini.backends.spmd.thread import Exchanger, Pending
from infini.core import comm as comm_
from infini.core.backend import Backend, Buffer, Executable
from infini.core.ir import ArrayType, Constant, Equation, Var

Env: TypeAlias = dict[Var, Column]
Pieces: TypeAlias = dict[int, Executable]  # by id of the piece
Constants: TypeAlias = dict[Var, Column]


class Walk:
    """One run of a schedule.

    Args:
        backend: moves bytes.
        pieces: executables of the pieces.
        mesh: the mesh, and the ranks of it here.
        comm: communication among its ranks.
        exchanger: where exchanges are made.
        devices: devices of this process, in mesh order.
        constants: those that were put on these devices before.
        between: makes exchanges between the memories of devices, where they can be made there.
    """

    def __init__(
        self,
        backend: Backend,
        pieces: Pieces,
        mesh: collectives.Mesh,
        comm: comm_.Comm,
        *,
        exchanger: Exchanger,
        devices: Sequence[Any],  # Any: a Device, or None for one that nothing is moved to
        constants: Constants,
        between: direct.Direct | None = None,
    ) -> None:
        self.backend, self.pieces, self.mesh, self.comm = backend, pieces, mesh, comm
        self.exchanger, self.devices, self.constants = exchanger, devices, constants
        self.between = between
        self.begun: dict[int, Pending[list[Column]]] = {}  # between devices, by id of the equation
        self.has_met = False  # whether other processes have been waited for
        self.pending: dict[int, Pending[list[list[np.ndarray]]]] = {}  # by id of the equation

    def run(self, schedule: s.Schedule, arguments: list[Column]) -> list[Column]:
        """Results of a schedule, one column of buffers per result, in memory that nobody else knows.

        The list of arguments is emptied, so that they are freed when they are dead.
        """
        env: Env = dict(zip(schedule.program.params, arguments, strict=True))
        arguments.clear()
        for var, constant in schedule.consts:
            env[var] = self.constant(var, constant)
        for step, dead, given in zip(schedule.steps, schedule.dead, schedule.given, strict=True):
            self.apply(step, env, given)
            for var in dead:
                env.pop(var, None)
        return [
            self.copied(env[v], v.type) if i in schedule.shared else env[v]
            for i, v in enumerate(schedule.program.results)
        ]

    def some(self, numbers: Sequence[int]) -> Walk:
        """A walk of some of the devices, by their numbers here."""
        comm = SomeRanks(self.comm, numbers)
        mesh = collectives.Mesh(self.mesh.abstract, comm.local_ranks)
        devices = [self.devices[i] for i in numbers]
        between = None if self.between is None else self.between.some(numbers)
        return Walk(
            self.backend,
            self.pieces,
            mesh,
            comm,
            exchanger=self.exchanger,
            devices=devices,
            constants={},
            between=between,
        )

    def values(self, column: Column, type_: ArrayType) -> list[int]:
        """What a scalar is on each device: they differ where a program is manual."""
        return [int(row) for row in self.get(column, type_)]

    def apply(self, step: s.Step, env: Env, given: frozenset[Var]) -> None:
        """Add the outputs of a step."""
        if isinstance(step, s.Piece):
            execute = self.pieces[id(step)]
            rows = [
                execute([env[v][i] for v in step.inputs]) if step.inputs else _run_on(execute, device)
                for i, device in enumerate(self.devices)
            ]
            env.update(zip(step.outputs, map(list, zip(*rows, strict=True)), strict=False))
        elif isinstance(step, s.Exchange):
            equation, begun = step.equation, self.directly(step.equation, env)
            if begun is None:
                self.receive(equation, self.exchanger.run(self.exchange(equation, env)), env)
            else:
                env.update(zip(step.outputs, begun.wait(), strict=True))
        elif isinstance(step, s.Start):
            equation, begun = step.equation, self.directly(step.equation, env)
            if begun is None:
                self.pending[id(equation)] = self.exchanger.start(self.exchange(equation, env))
            else:
                self.begun[id(equation)] = begun
        elif isinstance(step, s.Wait):
            begun = self.begun.pop(id(step.equation), None)
            if begun is None:
                self.receive(step.equation, self.pending.pop(id(step.equation)).wait(), env)
            else:
                env.update(zip(step.outputs, begun.wait(), strict=True))
        else:
            found = STRUCTURED[step.equation.op.name](self, step, env, given)
            env.update(zip(step.outputs, found, strict=True))

    def directly(self, equation: Equation, env: Env) -> Pending[list[Column]] | None:
        """An exchange begun between the memories of devices; None for one that goes through the host."""
        if self.between is None:
            return None
        self.has_met = True
        return self.between.start(equation, [env[v] for v in equation.inputs])

    def exchange(self, equation: Equation, env: Env) -> Callable[[], list[list[np.ndarray]]]:
        """What makes an exchange, once it is called: a row per device for each output."""
        self.has_met = True
        hosts = [self.get(env[v], v.type) for v in equation.inputs]

        def make() -> list[list[np.ndarray]]:
            found = collectives.run(equation, hosts, self.mesh, self.comm)
            known = [row for rows in hosts for row in rows]
            return [[_apart(np.asarray(row), known) for row in rows] for rows in found]

        return make

    def receive(self, equation: Equation, found: Sequence[Sequence[np.ndarray]], env: Env) -> None:
        """Results of an exchange as buffers over the memory of the comm."""
        env.update(zip(equation.outputs, map(self.adopt, found), strict=True))

    def get(self, column: Column, type_: ArrayType) -> list[np.ndarray]:
        """Buffers of all devices as host arrays."""
        return [self.backend.get(buffer, type_) for buffer in column]

    def adopt(self, rows: Sequence[np.ndarray]) -> Column:
        """Host arrays in C order, one per device, as buffers over their memory."""
        return [self.backend.adopt(row, device) for row, device in zip(rows, self.devices, strict=True)]

    def copied(self, column: Column, type_: ArrayType) -> Column:
        """Buffers in memory of their own."""
        return [
            self.backend.copy(buffer, type_, device)
            for buffer, device in zip(column, self.devices, strict=True)
        ]

    def constant(self, var: Var, constant: Constant) -> Column:
        """A constant on the devices, where it stays."""
        found = self.constants.get(var)
        if found is None:
            row = np.ascontiguousarray(constant.array).reshape(var.type.shape)
            found = self.constants[var] = self.adopt([row] * len(self.devices))
        return found


def _run_on(execute: Executable, device: Any) -> Sequence[Buffer]:  # Any: a Device, or None for no matter
    """Run a program that reads nothing."""
    if device is not None and isinstance(execute, direct.Placeable):
        return execute.run_on((), device)
    return execute(())


def _apart(row: np.ndarray, known: Sequence[np.ndarray]) -> np.ndarray:
    """A result in C order, copied where it lies in the memory of an operand, which may be overwritten."""
    is_known = any(np.may_share_memory(row, other) for other in known)
    return np.array(row, order="C") if is_known or not row.flags.c_contiguous else row


# --- loops and branches with communication inside ----------------------------------------------


def _scan(walk: Walk, step: s.Structured, env: Env, given: frozenset[Var]) -> list[Column]:
    attrs, (body,) = step.equation.attrs, step.bodies
    first, second = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]
    consts, length = [env[v] for v in step.inputs[:first]], attrs["length"]
    carry = [
        walk.copied(env[v], v.type) if v not in given and (length == 0 or body.takes(i)) else env[v]
        for i, v in enumerate(step.inputs[first:second], first)
    ]
    for v in given & set(step.inputs[first:second]):
        del env[v]  # it is freed, or overwritten, in the first turn
    backend, devices = walk.backend, walk.devices
    xs = [stacks.rows(backend, env[v], v.type, devices) for v in step.inputs[second:]]
    y_types = body.program.out_types[attrs["num_carry"] :]
    ys = [stacks.stack(backend, type_, length, devices) for type_ in y_types]
    for i in reversed(range(length)) if attrs["reverse"] else range(length):
        arguments = [*consts, *carry, *(row(i) for row in xs)]
        carry.clear()
        results = walk.run(body, arguments)
        carry = results[: attrs["num_carry"]]
        for stacked, column in zip(ys, results[len(carry) :], strict=True):
            stacked.put(i, column)
    return [*carry, *(stacked.made() for stacked in ys)]


def _cond(walk: Walk, step: s.Structured, env: Env, given: frozenset[Var]) -> list[Column]:
    found = walk.values(env[step.inputs[0]], step.inputs[0].type)
    chosen = [int(np.clip(index, 0, len(step.bodies) - 1)) for index in found]
    arguments = [env[v] for v in step.inputs[1:]]
    for v in given:
        env.pop(v, None)
    if len(set(chosen)) == 1:
        return walk.run(step.bodies[chosen[0]], arguments)
    results = [[_NOWHERE] * len(chosen) for _ in step.outputs]
    for index in sorted(set(chosen)):
        numbers = [i for i, other in enumerate(chosen) if other == index]
        made = walk.some(numbers).run(step.bodies[index], _of(arguments, numbers))
        _put(results, made, numbers)
    return results


def _while(walk: Walk, step: s.Structured, env: Env, given: frozenset[Var]) -> list[Column]:
    attrs = step.equation.attrs
    bodies = dict(zip(map(id, step.equation.programs), step.bodies, strict=True))
    condition, body = bodies[id(attrs["cond"])], bodies[id(attrs["body"])]
    first, second = attrs["num_cond_consts"], attrs["num_cond_consts"] + attrs["num_body_consts"]
    condition_consts = [env[v] for v in step.inputs[:first]]
    consts = [env[v] for v in step.inputs[first:second]]
    carry = [env[v] if v in given else walk.copied(env[v], v.type) for v in step.inputs[second:]]
    for v in given & set(step.inputs[second:]):
        del env[v]
    count = len(walk.devices)
    results: list[Column] = [[_NOWHERE] * count for _ in carry]
    places = list(range(count))  # of the devices that are still at it
    while True:
        (predicate,) = walk.run(condition, [*condition_consts, *carry])
        found = walk.values(predicate, condition.program.out_types[0])
        if not all(found):
            ended = [i for i, value in enumerate(found) if not value]
            if len(ended) == count:  # all at once
                return carry
            _put(results, _of(carry, ended), [places[i] for i in ended])
            if len(ended) == len(found):
                return results
            going = [i for i, value in enumerate(found) if value]
            walk, places = walk.some(going), [places[i] for i in going]
            condition_consts, consts, carry = (
                _of(columns, going) for columns in (condition_consts, consts, carry)
            )
        arguments = [*consts, *carry]
        carry.clear()
        carry = walk.run(body, arguments)


# What stands for a buffer until there is one.
_NOWHERE: Final = cast(Buffer, None)


def _of(columns: Sequence[Column], numbers: Sequence[int]) -> list[Column]:
    """Columns of some devices."""
    return [[column[i] for i in numbers] for column in columns]


def _put(columns: Sequence[Column], found: Sequence[Column], numbers: Sequence[int]) -> None:
    """Give some devices what was found for them."""
    for column, rows in zip(columns, found, strict=True):
        for number, row in zip(numbers, rows, strict=True):
            column[number] = row


Loop: TypeAlias = Callable[[Walk, s.Structured, Env, frozenset[Var]], list[Column]]
STRUCTURED: Final[dict[str, Loop]] = {"scan": _scan, "cond": _cond, "while": _while}
