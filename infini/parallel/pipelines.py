"""`pipeline`: a model in stages, each on its own slice of a mesh, trained by microbatches.

Within a stage everything is as elsewhere: parameters and batch are placed over the other axes of the mesh,
and the partitioner does the rest. Between stages a driver moves activations as a schedule says. It is a
driver of programs and no operation, so it is called outside of `jit` and `grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

from infini.backends.spmd import turns
from infini.core import array as array_, config, errors, execute, mesh as mesh_, trace, tree
from infini.core.array import Array
from infini.core.mesh import P, PartitionSpec
from infini.core.sharding import Mesh
from infini.core.value import Value
from infini.parallel import arguments, everywhere, microbatches, plans
from infini.parallel.driver import Record, Run
from infini.parallel.microbatches import Rows
from infini.parallel.plans import Plan, Settings, Step
from infini.parallel.schedules import Durations, Schedule
from infini.parallel.stages import Batch, Parameters
from infini.parallel.transport import Transport
from infini.transforms import flat, shard

Specs: TypeAlias = Any  # Any: a P, or a pytree of P


def pipeline(  # noqa: PLR0913  # options, by name
    stages: Sequence[Callable[..., Any]],
    loss: Callable[[Any, Any], Any],
    *,
    mesh: Mesh,
    num_microbatches: int | None = None,
    schedule: str | Schedule = "1f1b",
    axis: str = "pp",
    param_specs: Sequence[Specs] | PartitionSpec | None = None,
    batch_spec: PartitionSpec = P(),  # noqa: B008  # frozen
    activation_spec: PartitionSpec | None = None,
    shared: Sequence[Sequence[str]] = (),
    reduction: Literal["mean", "sum"] = "mean",
    durations: Durations | None = None,
    named: Mapping[str, PartitionSpec] = MappingProxyType({}),
    strategies: Mapping[str, str] = MappingProxyType({}),
) -> Pipeline:  # Any: pytrees
    """Value and gradient of a model whose stages are on different devices.

    Stage c is on the devices `mesh.at(axis, c % p)`, p being the size of the axis; with more than p stages a
    rank has several ("virtual stages").

    Args:
        stages: functions `(params, x)` to the next `x`, in order: pytrees of arrays of any dtype and shape.
            With a key, `(params, x, key)`, and a key of its own for each microbatch.
        loss: function of the last result and the targets of a microbatch to a real scalar.
        mesh: devices; its other axes are there for the inside of stages.
        num_microbatches: into how many parts the batch is cut.
        schedule: `1f1b`, `gpipe`, `interleaved`, or a `Schedule`, which has the number of microbatches.
        axis: axis of the mesh along which the stages lie.
        param_specs: for each stage a `P` or a tree of them, over the other axes of the mesh; one `P` for all;
            where there is none, parameters that are on their devices stay as they are, others are whole.
        batch_spec: how the rows of a microbatch are split, such as `P("dp")`.
        activation_spec: how activations with a row per example are split between stages; as the batch when
            absent. Others are whole.
        shared: groups of parameters that are one parameter, such as `("0/embedding", "3/head")` for leaves of
            `params[0]` and `params[3]`; each gets the sum of their gradients. They have equal types and
            placements.
        reduction: whether the loss of a step is the mean or the sum over microbatches.
        durations: how long tasks take in the record of a step; measured when absent.
        named: for names that `checkpoint_name` gave to values inside stages where these lie, over the other
            axes of the mesh; as for `shard`.
        strategies: for operations how they are split; as for `shard`.

    Returns:
        A function `(params, inputs, targets, *, key=None)` to the loss and the gradient of `params`, which is
        a sequence with one pytree per stage. See `Pipeline`.

    Raises:
        ValueMismatchError: numbers of stages, places along the axis and microbatches do not go together, or
            a spec names the axis of the stages.
        TypeMismatchError: a stage is no function.
        DeviceError: this process holds some of the stages, neither those of one place nor all.

    Example:
        >>> import infini as inf, infini.numpy as inp, numpy as np
        >>> from infini import parallel
        >>> from infini.sharding import make_mesh
        >>> stage = lambda w, x: inp.tanh(x @ w)
        >>> with inf.config(device="reference", cpu_devices=2):
        ...     step = parallel.pipeline(
        ...         [stage, stage],
        ...         lambda y, t: ((y - t) ** 2).mean(),
        ...         mesh=make_mesh((2,), ("pp",)),
        ...         num_microbatches=4,
        ...     )
        ...     params = step.place([np.eye(3, dtype=np.float32)] * 2)
        ...     loss, gradient = step(params, np.ones((8, 3)), np.ones((8, 3)))
        >>> [g.shape for g in gradient]
        [(3, 3), (3, 3)]
    """
    if axis not in mesh.axis_names:
        raise errors.ValueMismatchError(
            f"pipeline: the mesh has no axis {axis!r}",
            got=repr(mesh),
            fix="pass axis=, or make a mesh with that axis",
        )
    for number, stage in enumerate([*stages, loss]):
        if not callable(stage):
            name = f"stages[{number}]" if number < len(stages) else "loss"
            raise errors.TypeMismatchError(f"pipeline: {name} is no function", got=repr(stage))
    if reduction not in ("mean", "sum"):
        raise errors.ValueMismatchError("pipeline: reduction is 'mean' or 'sum'", got=repr(reduction))
    order = arguments.schedule(schedule, len(stages), mesh.shape[axis], num_microbatches, axis)
    moving = batch_spec if activation_spec is None else activation_spec
    if axis in {name for spec in (batch_spec, moving) for entry in spec for name in mesh_.entry_axes(entry)}:
        raise errors.ValueMismatchError(
            f"pipeline: nothing is split over {axis!r}, along which the stages lie",
            got=f"batch_spec={batch_spec!r}, activation_spec={moving!r}",
            expected=f"axes among {', '.join(name for name in mesh.axis_names if name != axis) or 'none'}",
        )
    settings = Settings(
        stages=tuple(stages),
        loss=loss,
        mesh=mesh,
        axis=axis,
        schedule=order,
        param_specs=arguments.per_stage(param_specs, len(stages)),
        batch_spec=batch_spec,
        activation_spec=moving,
        shared=tuple(map(tuple, shared)),
        is_mean=reduction == "mean",
        durations=durations,
        named=shard.places_of_names(named, mesh.at(axis, 0), "pipeline"),
        strategies=tuple(sorted(strategies.items())),
    )
    return Pipeline(settings)


class Pipeline:
    """What `pipeline` returns: a function of parameters and a batch.

    Under several processes all of them call it, with the same arguments; each computes its own stages, and
    the gradients of other stages are arrays that have no parts here. Arithmetic on these does nothing, so one
    loop over all parameters updates those of every stage where they are.

    Args:
        settings: what was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.schedule = settings.schedule
        ranks = range(self.schedule.num_stages)
        by_rank = [settings.mesh.at(settings.axis, rank) for rank in ranks]
        self._meshes = tuple(by_rank[self.schedule.rank_of(c)] for c in range(self.schedule.num_chunks))
        self._transport = Transport(by_rank)
        self._mine = [
            c for c in range(len(self._meshes)) if self.schedule.rank_of(c) in self._transport.ranks
        ]
        self._plans: execute.BoundedCache[Hashable, Plan] = execute.BoundedCache(64)
        self._record: Record | None = None

    @property
    def record(self) -> Record | None:
        """What happened in the last step: its timeline, bytes held and sent. None before the first."""
        return self._record

    def mesh_of(self, stage: int) -> Mesh:
        """The devices of a stage."""
        return self._meshes[stage]

    def place(self, params: Sequence[Any]) -> list[Any]:  # Any: pytrees
        """Parameters on the devices of their stages.

        Args:
            params: one pytree per stage.

        Raises:
            ValueMismatchError: there is another number of stages, or a spec does not fit.
        """
        found = []
        for mesh, (part, values) in zip(self._meshes, self._parameters(params), strict=True):
            found.append(tree.unflatten(part.tree, microbatches.placed(values, part.specs, mesh)))
        return found

    def __call__(
        self, params: Sequence[Any], inputs: Any, targets: Any, *, key: Any = None
    ) -> tuple[Array, Sequence[Any]]:  # Any: pytrees; a key
        """Loss and gradient of a batch.

        Args:
            params: one pytree per stage; those that are not on their devices are moved there, see `place`.
            inputs: pytree of arrays with a row per example, for the first stage.
            targets: the same, for the loss.
            key: random key. Stage c gets `fold_in(fold_in(key, i), c)` in microbatch i.

        Returns:
            The loss, a scalar on a device of this process, and gradients as `params` is. Gradients are added
            in float32 at least. Parameters that are no floats have gradients of dtype float0.

        Raises:
            ValueMismatchError: the batch does not divide into microbatches, or leaves differ in their rows.
            UnsupportedError: the call is inside a transformation.
        """
        step = self._step(params, inputs, targets, key)
        run = Run(
            self.schedule,
            {c: step.programs(c) for c in self._mine},
            step.plan.chunks,
            self._transport,
            step.input,
            self._settings.durations,
        )
        run.sums = {c: list(step.plan.runners[c].zeros([])) for c in self._mine}
        with turns.TURNS.meeting("a step of a pipeline"):
            run.run()
            plans.share(step.plan, run.sums, self.schedule, self._transport)
            loss, self._record = run.finish(self._settings.scale_of(self.schedule.num_microbatches))
        gradient = [step.gradient(c, run.sums.get(c)) for c in range(self.schedule.num_chunks)]
        return _scalar(loss, step.plan), tuple(gradient) if isinstance(params, tuple) else gradient

    def evaluate(
        self,
        params: Sequence[Any],
        inputs: Any,
        targets: Any,
        *,
        key: Any = None,
        num_microbatches: int | None = None,
    ) -> Array:  # Any: pytrees
        """The loss alone, without backward passes.

        Args:
            params: as in a step.
            inputs: as in a step.
            targets: as in a step.
            key: as in a step.
            num_microbatches: into how many parts the batch is cut; as in a step when absent. Where it is
                given, rows that the axes of the batch do not divide are whole on each device.

        Raises:
            ValueMismatchError: as in a step.
        """
        if num_microbatches is not None and num_microbatches < 1:
            raise errors.ValueMismatchError(
                "evaluate: num_microbatches is a positive integer",
                got=f"num_microbatches={num_microbatches}",
                expected="1 or more",
            )
        step = self._step(params, inputs, targets, key, num_microbatches)
        count = self.schedule.num_microbatches if num_microbatches is None else num_microbatches
        with turns.TURNS.meeting("an evaluation by a pipeline"):
            total = self._evaluated(step, count)
        return _scalar(self._settings.scale_of(count) * total, step.plan)

    def _evaluated(self, step: Step, count: int) -> float:
        """Sum of the losses of the microbatches, in every process."""
        transport, rank_of = self._transport, self.schedule.rank_of
        programs = {c: step.programs(c) for c in self._mine}
        total, last = 0.0, self.schedule.num_chunks - 1
        for i in range(count):
            results: Sequence[Array] = []
            for c in self._mine:
                rank = rank_of(c)
                if c == 0:
                    given: Sequence[Array] = step.input(i)
                elif rank_of(c - 1) in transport.ranks:
                    given = transport.moved(results, rank)
                else:
                    given = transport.receive(step.plan.chunks[c].input, rank_of(c - 1), c)
                whole = step.plan.runners[c].whole
                results = whole([*programs[c].operands, *given, *programs[c].rest(i)])
                if c == last:
                    total += float(np.asarray(results[0]))
                elif rank_of(c + 1) not in transport.ranks:
                    transport.send(results, rank_of(c + 1), c + 1)
        transport.finish()
        return everywhere.of_rank(total, rank_of(last), transport)

    def norm(self, gradient: Sequence[Any]) -> float:  # Any: pytrees
        """The Euclidean norm of all parameters or gradients, those of other processes included, for clipping
        by it. A parameter of `shared` counts once. Every process of the pipeline calls it.

        Args:
            gradient: one pytree per stage.
        """
        again = {name for group in self._settings.shared for name in group[1:]}
        total = 0.0
        for c in self._mine:
            named = tree.flatten_with_path(gradient[c])[0]
            leaves = [x for path, x in named if plans.name_of(c, path) not in again and not flat.is_float0(x)]
            total += everywhere.sum_of_squares(leaves)
        with turns.TURNS.meeting("the norm of a pipeline"):
            return math.sqrt(everywhere.total(total, self._transport))

    def fetch(self, params: Sequence[Any]) -> list[Any]:  # Any: pytrees
        """The values of the parameters of all stages as NumPy arrays, in every process: to save a trained
        model, for example. Every process of the pipeline calls it.

        Args:
            params: one pytree of arrays per stage, where `place` puts them.
        """
        given = [tree.unflatten(part.tree, values) for part, values in self._parameters(params)]
        with turns.TURNS.meeting("fetching from a pipeline"):
            return everywhere.values(given, self._meshes, self._transport)

    def __repr__(self) -> str:
        where = f"{self._settings.axis!r} of {self._settings.mesh!r}"
        return f"Pipeline({self.schedule.num_chunks} stages over {where}, {self.schedule!r})"

    # --- arguments --------------------------------------------------------------------------------------

    def _parameters(self, params: Sequence[Any]) -> list[tuple[Parameters, list[Value]]]:  # Any: pytrees
        """Types, structure and placement of the parameters of each stage, and their leaves."""
        is_sequence = isinstance(params, (list, tuple))
        if not is_sequence or len(params) != len(self._meshes):
            raise errors.ValueMismatchError(
                "pipeline: params is a list with one pytree per stage",
                got=f"{len(params)} entries" if is_sequence else f"a {type(params).__name__}",
                expected=f"{len(self._meshes)} entries",
            )
        asked = self._settings.param_specs
        found = []
        for number, (part, mesh) in enumerate(zip(params, self._meshes, strict=True)):
            leaves, treedef = tree.flatten(part)
            values = flat.values(leaves, f"parameters of stage {number}")
            specs = arguments.specs_of(None if asked is None else asked[number], part, values, mesh)
            found.append((Parameters(tuple((v.type, v.weak) for v in values), treedef, specs), values))
        return found

    def _step(
        self, params: Sequence[Any], inputs: Any, targets: Any, key: Any, asked: int | None = None
    ) -> Step:  # Any: pytrees
        if not trace.is_eager():
            raise errors.UnsupportedError(
                "a pipeline drives programs, and cannot be part of one",
                got="a call inside jit, grad or another transformation",
                fix="call it outside: it compiles its stages, and returns the gradient",
            )
        given = self._parameters(params)
        count, spec = asked or self.schedule.num_microbatches, self._settings.batch_spec
        rows, wanted = Rows.of(inputs, "inputs", count, spec), Rows.of(targets, "targets", count, spec)
        if asked is not None:
            rows, wanted = rows.where_even(self._meshes[0]), wanted.where_even(self._meshes[-1])
        if rows.leaves and wanted.leaves and rows.num_rows != wanted.num_rows:
            raise errors.ValueMismatchError(
                "pipeline: inputs and targets have a row for every example",
                got=f"{rows.num_rows * count} rows of inputs, {wanted.num_rows * count} of targets",
            )
        words, key_tree = tree.flatten(key)
        keys = flat.values(words, "the key of a pipeline")
        batch = Batch(
            rows.operands,
            rows.tree,
            wanted.operands,
            wanted.tree,
            tuple((v.type, v.weak) for v in keys),
            None if key is None else key_tree,
            rows.specs,
        )
        parts = tuple(part for part, _ in given)
        plan = self._plans.make(
            (batch, parts, config.cache_key()),
            lambda: plans.build(self._settings, batch, parts, self._meshes, self._mine),
        )
        mine = {c: microbatches.placed(given[c][1], parts[c].specs, self._meshes[c]) for c in self._mine}
        values = [values for _, values in given]
        return Step(plan, self._meshes, values, [part.tree for part in parts], mine, rows, wanted, keys)


def _scalar(number: float, plan: Plan) -> Array:
    return array_.from_host(np.asarray(number).astype(plan.loss_dtype), keep_dtype=True)
