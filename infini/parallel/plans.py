"""A pipeline compiled for the types of some arguments, and those arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.core import dtypes, errors, execute, mesh as mesh_, primitive, trace, tree
from infini.core.array import Array
from infini.core.backend import CompileOptions
from infini.core.ir import Program
from infini.core.mesh import P, PartitionSpec
from infini.core.sharding import Mesh, NamedSharding
from infini.core.value import Value
from infini.parallel import microbatches, stages
from infini.parallel.driver import Programs
from infini.parallel.microbatches import Rows
from infini.parallel.schedules import Durations, Schedule
from infini.parallel.stages import Batch, Chunk, Message, Model, Parameters
from infini.parallel.transport import Transport

Place: TypeAlias = tuple[int, int]  # a chunk, and a number among its sums of gradients


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """What a pipeline was asked to be; see `pipeline`, which checks it."""

    stages: tuple[Callable[..., Any], ...]
    loss: Callable[[Any, Any], Any]
    mesh: Mesh
    axis: str
    schedule: Schedule
    param_specs: tuple[Any, ...] | None  # Any: a P, or a pytree of P, per stage
    batch_spec: PartitionSpec
    activation_spec: PartitionSpec
    shared: tuple[tuple[str, ...], ...]
    is_mean: bool
    durations: Durations | None
    named: tuple[tuple[str, PartitionSpec], ...] = ()
    strategies: tuple[tuple[str, str], ...] = ()

    def scale_of(self, count: int) -> float:
        """What the loss of each of so many microbatches counts."""
        return 1.0 / count if self.is_mean else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The programs of a pipeline.

    Args:
        chunks: the programs of all chunks.
        runners: what runs them, for each chunk of this process.
        captures: what its functions close over, on its devices.
        shared: groups of parameters that are one.
        loss_dtype: dtype of the loss.
    """

    chunks: Sequence[Chunk]
    runners: dict[int, Runners]
    captures: dict[int, list[Array]]
    shared: tuple[tuple[Place, ...], ...]
    loss_dtype: np.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Runners:
    """What runs the programs of a chunk: without and with residuals, backwards, and around the sums."""

    whole: execute.Runner
    forward: execute.Runner
    backward: execute.Runner
    zeros: execute.Runner
    gradients: execute.Runner


def build(
    settings: Settings,
    batch: Batch,
    params: Sequence[Parameters],
    meshes: Sequence[Mesh],
    mine: Sequence[int],
) -> Plan:
    """Trace, linearize and transpose every chunk; what is not of this process is not compiled.

    Args:
        settings: of the pipeline.
        batch: types of a microbatch.
        params: of the parameters of each chunk.
        meshes: devices of each chunk.
        mine: chunks of this process.

    Raises:
        ValueMismatchError: `shared` does not fit the parameters.
        TypeMismatchError: a stage returns no arrays, or the loss is no scalar.
    """
    num_rows = batch.inputs[0][0].shape[0] if batch.inputs else 0
    model = Model(
        stages=settings.stages,
        loss=settings.loss,
        scale=settings.scale_of(settings.schedule.num_microbatches),
        num_rows=num_rows,
        rows=settings.activation_spec,
        batch_axes=frozenset(axis for entry in settings.batch_spec for axis in mesh_.entry_axes(entry)),
    )
    chunks = stages.build(model, batch, params, meshes)
    runners, captures = {}, {}
    for c in mine:
        chunk, mesh = chunks[c], meshes[c]
        sums = Message(chunk.sums, chunk.sum_specs)
        types = [t for t, _ in params[c].leaves if dtypes.is_inexact(t.dtype)]
        count = len(chunk.backward.params)
        donated = tuple(range(count - len(chunk.sums), count))
        runners[c] = Runners(
            _runner(chunk.whole, mesh, settings),
            _runner(chunk.forward, mesh, settings),
            _runner(chunk.backward, mesh, settings, donated),
            _runner(stages.zeros(sums, mesh), mesh),
            _runner(stages.gradients(sums, Message(tuple(types), chunk.specs), mesh), mesh),
        )
        captures[c] = [microbatches.put(x, NamedSharding(mesh, P())) for x in chunk.captures]
    shared = _groups(settings.shared, params, chunks)
    return Plan(chunks, runners, captures, shared, chunks[-1].output.types[0].dtype)


def _runner(
    program: Program, mesh: Mesh, settings: Settings | None = None, donated: tuple[int, ...] = ()
) -> execute.Runner:
    """What runs a program, as the pipeline was asked for where it has code of the stages in it."""
    named = () if settings is None else tuple((name, tuple(spec)) for name, spec in settings.named)
    options = CompileOptions(
        mesh=mesh.abstract,
        donated=donated,
        named=named,
        strategies=() if settings is None else settings.strategies,
    )
    return execute.Runner(program, options, mesh)


def name_of(chunk: int, path: tree.KeyPath) -> str:
    """How `shared` calls a parameter: its stage and its path, such as `0/embedding`."""
    name = tree.keystr(path, simple=True, separator="/")
    return f"{chunk}/{name}" if name else f"{chunk}"


def _groups(
    shared: Sequence[Sequence[str]], params: Sequence[Parameters], chunks: Sequence[Chunk]
) -> tuple[tuple[Place, ...], ...]:
    """The groups of `shared`, as places among sums of gradients."""
    places: dict[str, Place] = {}
    for c, part in enumerate(params):
        numbered = tree.flatten_with_path(tree.unflatten(part.tree, range(len(part.leaves))))[0]
        moving = [(path, i) for path, i in numbered if dtypes.is_inexact(part.leaves[i][0].dtype)]
        for number, (path, _) in enumerate(moving):
            places[name_of(c, path)] = (c, number)
    names = [name for group in shared for name in group]
    for name in names:
        if name not in places or names.count(name) > 1:
            raise errors.ValueMismatchError(
                "pipeline: shared names parameters, each once",
                got=repr(name) + (", twice" if name in places else ""),
                expected=", ".join(places),
            )
    groups = tuple(tuple(places[name] for name in group) for group in shared)
    for group in groups:
        found = dict.fromkeys((chunks[c].sums[k], chunks[c].sum_specs[k]) for c, k in group)
        if len(found) > 1:
            raise errors.ValueMismatchError(
                "pipeline: parameters that are shared have one type and one placement",
                got=", ".join(f"{type_} with {spec!r}" for type_, spec in found),
                fix="leave them out of `shared`, or place them alike with param_specs",
            )
    return groups


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The arguments of one step.

    Args:
        plan: the programs for their types.
        meshes: devices of each chunk.
        leaves: leaves of the parameters of each chunk.
        trees: their structures.
        params: the parameters of chunks of this process, on their devices.
        inputs: the inputs.
        targets: the targets.
        key: words of the key.
    """

    plan: Plan
    meshes: Sequence[Mesh]
    leaves: Sequence[Sequence[Value]]
    trees: Sequence[tree.PyTreeDef]
    params: dict[int, list[Array]]
    inputs: Rows
    targets: Rows
    key: Sequence[Value]

    def input(self, number: int) -> list[Array]:
        """The input of a microbatch."""
        return self.inputs.placed(number, self.meshes[0])

    def programs(self, chunk: int) -> Programs:
        """What runs a chunk of this process with these arguments."""
        plan, runners, mesh = self.plan, self.plan.runners[chunk], self.meshes[chunk]
        is_last, whole = chunk == len(plan.chunks) - 1, NamedSharding(mesh, P())
        words = [microbatches.put(x, whole) for x in self.key]

        def rest(number: int) -> list[Array]:
            targets = self.targets.placed(number, mesh) if is_last else []
            return [
                *targets,
                *words,
                *([microbatches.put(np.array(number, np.int32), whole)] if words else []),
            ]

        operands = [*plan.captures[chunk], *self.params[chunk]]
        return Programs(plan.chunks[chunk], runners.forward, runners.backward, operands, rest)

    def gradient(self, chunk: int, sums: Sequence[Array] | None) -> Any:  # Any: a pytree
        """The gradient of the parameters of a chunk from its sums; None stands for another process's."""
        made, leaves = self.plan.chunks[chunk], self.leaves[chunk]
        if sums is None:
            types = [x.type for x in leaves if dtypes.is_inexact(x.dtype)]
            places = [NamedSharding(self.meshes[chunk], spec) for spec in made.specs]
            found = [Array(t, (), where, committed=True) for t, where in zip(types, places, strict=True)]
        else:
            found = list(self.plan.runners[chunk].gradients(sums)) if sums else []
        moving = iter(found)
        every = [
            next(moving) if dtypes.is_inexact(x.dtype) else np.zeros(x.shape, dtypes.float0) for x in leaves
        ]
        return tree.unflatten(self.trees[chunk], every)


def share(plan: Plan, sums: dict[int, list[Array]], schedule: Schedule, transport: Transport) -> None:
    """Give each parameter of a group the sum of the gradients of all, added in their order.

    Args:
        plan: has the groups.
        sums: sums of gradients of the chunks of this process, replaced in place.
        schedule: says which rank holds a chunk.
        transport: between the ranks.
    """
    rank_of, totals = schedule.rank_of, {}
    for number, group in enumerate(plan.shared):
        tag = 2 * schedule.num_chunks + number
        ranks = sorted({rank_of(c) for c, _ in group})
        if transport.is_distributed:
            for c, k in group:
                for other in ranks if c in sums else ():
                    if other != rank_of(c):
                        transport.send([sums[c][k]], other, tag)
        for here in (rank for rank in ranks if rank in transport.ranks):
            total = None
            for c, k in group:
                if c not in sums:
                    message = Message((plan.chunks[c].sums[k],), (plan.chunks[c].sum_specs[k],))
                    (found,) = transport.receive(message, rank_of(c), tag)
                elif rank_of(c) != here:
                    (found,) = transport.moved([sums[c][k]], here)
                else:
                    found = sums[c][k]
                total = found if total is None else _added(total, found)
            totals.update({(c, k): total for c, k in group if rank_of(c) == here})
    for (c, k), total in totals.items():
        assert total is not None, "a group has members"
        sums[c][k] = total
    transport.finish()


def _added(x: Array, y: Array) -> Array:
    return trace.to_array(trace.bind1(primitive.by_name("add"), x, y))
