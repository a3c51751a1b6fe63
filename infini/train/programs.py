"""What computes a run: one program per step over all devices, or a pipeline of several. The loop sees the
same of both.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import infini as inf
from infini import parallel, random, tree
from infini.core.array import Array
from infini.parallel import schedules
from infini.sharding import Mesh, NamedSharding, P
from infini.train import gpt, stages as stages_, step as step_, team as team_
from infini.train.settings import Settings

EVALUATION_BATCH = 4


@dataclass(frozen=True, slots=True)
class Result:
    """What a step finds: the loss, and the global norm of the gradients before clipping."""

    loss: float
    gradient_norm: float


class Programs(Protocol):
    """The compiled functions of a run. A state is theirs; `stored` gives it as the tree that checkpoints
    hold, which is the same for all.
    """

    def start(self, params: gpt.Params | None) -> Any:  # Any: a state
        """The first state.

        Args:
            params: parameters to start from; random ones when absent.
        """

    def types(self) -> step_.State:
        """Types of what checkpoints hold, with the places that `loaded` wants."""

    def loaded(self, stored: step_.State) -> Any:  # Any: a state
        """The state of a checkpoint."""

    def stored(self, state: Any) -> step_.State:  # Any: a state
        """What a checkpoint holds of a state."""

    def step(self, state: Any, windows: np.ndarray, learning_rate: float) -> tuple[Any, Result]:
        """Take a step; the state that is given is gone.

        Args:
            state: the state.
            windows: this process's share of the batch, integers of shape (B, T + 1).
            learning_rate: the rate.
        """

    def mean_loss(self, state: Any, windows: np.ndarray) -> float:  # Any: a state
        """Mean loss over windows, in batches of one shape; what does not fill the last goes one by one."""

    def params(self, state: Any) -> gpt.Params:  # Any: a state
        """The parameters, whole, in every process."""


def of(config: gpt.Config, settings: Settings, team: team_.Team) -> Programs:
    """What computes a run.

    Args:
        config: sizes of the model.
        settings: how to train.
        team: the devices that share the run.
    """
    return (Pipelined if team.is_pipelined else Whole)(config, settings, team)


def mean_loss(measure: Callable[..., Array], params: gpt.Params, windows: np.ndarray) -> float:
    """Mean loss over windows, in batches of one shape; those that do not fill the last one go one by one."""
    whole = len(windows) - len(windows) % EVALUATION_BATCH
    parts = [windows[at : at + EVALUATION_BATCH] for at in range(0, whole, EVALUATION_BATCH)]
    parts += [windows[at : at + 1] for at in range(whole, len(windows))]
    return sum(float(measure(params, part)) * len(part) for part in parts) / len(windows)


class Whole:
    """One program for a step, over all devices.

    Args:
        config: sizes of the model.
        settings: how to train.
        team: the devices that share the run.
    """

    def __init__(self, config: gpt.Config, settings: Settings, team: team_.Team) -> None:
        self._team, self._key = team, random.PRNGKey(settings.seed)
        options: dict[str, Any] = {"config": config, "hyper": settings.hyper}  # Any: keyword arguments
        how = settings.computation
        self._init = functools.partial(step_.init_state, **options)
        specs: Any = None  # Any: a tree of placements
        if team.mesh is not None:
            specs = team.specs(inf.eval_shape(self._init, self._key))
        self._step = team.jit(
            functools.partial(step_.step, **options, computation=how),
            (specs, team.recipe.of_batch(1), team_.WHOLE),
            (specs, team_.WHOLE),
            donate_argnums=0,
            donation="require",
        )
        self._measure = team.jit(
            functools.partial(step_.evaluate, config=config, computation=how),
            (specs and specs["params"], team_.WHOLE),
            team_.WHOLE,
        )

    def start(self, params: gpt.Params | None) -> step_.State:
        """The first state."""
        given = {} if params is None else {"params": params}
        state: step_.State = self._team.placed(inf.jit(self._init)(self._key, **given))
        return state

    def types(self) -> step_.State:
        """Types of a state, with their places."""
        found: step_.State = self._team.types(inf.eval_shape(self._init, self._key))
        return found

    def loaded(self, stored: step_.State) -> step_.State:
        """A checkpoint holds the state as it is."""
        return stored

    def stored(self, state: step_.State) -> step_.State:
        """A checkpoint holds the state as it is."""
        return state

    def step(
        self, state: step_.State, windows: np.ndarray, learning_rate: float
    ) -> tuple[step_.State, Result]:
        """Take a step."""
        state, found = self._step(state, self._team.rows(windows), np.float32(learning_rate))
        return state, Result(float(found["loss"]), float(found["gradient_norm"]))

    def mean_loss(self, state: step_.State, windows: np.ndarray) -> float:
        """Mean loss over windows."""
        return mean_loss(self._measure, state["params"], windows)

    def params(self, state: step_.State) -> gpt.Params:
        """The parameters, whole."""
        found: gpt.Params = self._team.whole(state["params"])
        return found


class Pipelined:
    """A pipeline of stages, each on its part of the devices. A state is a list with one for each stage.

    A microbatch has every m-th row, as the parts of a step have that are computed one after the other. So a
    step is the same on one device and here.

    Args:
        config: sizes of the model.
        settings: how to train.
        team: the devices that share the run.

    Raises:
        ValueMismatchError: stages or microbatches do not fit.
    """

    def __init__(self, config: gpt.Config, settings: Settings, team: team_.Team) -> None:
        assert team.mesh is not None
        layout, recipe, self._mesh = settings.layout, team.recipe, team.mesh
        count = layout.num_microbatches(settings.computation.num_parts, settings.batch_size, team.num_parts)
        self._order = np.arange(settings.batch_size).reshape(-1, count).T.reshape(-1)
        self._stages = stages_.cut(config, layout.num_stages)
        self._key = random.PRNGKey(settings.seed)
        self._init = functools.partial(step_.init_state, config=config, hyper=settings.hyper)
        self._types = self._stages.split(inf.eval_shape(self._init, self._key))
        num_places = self._mesh.shape["pp"]
        by_place = [self._mesh.at("pp", place) for place in range(num_places)]
        self._meshes = [by_place[number % num_places] for number in range(layout.num_stages)]
        pairs = zip(self._types, self._meshes, strict=True)
        self._specs = [team.specs(types, mesh) for types, mesh in pairs]
        named = recipe.of_names()
        self._pipeline = parallel.pipeline(
            self._stages.functions(settings.computation),
            self._stages.loss,
            mesh=self._mesh,
            schedule=schedules.named(layout.schedule, num_places, count, layout.num_stages // num_places),
            param_specs=[specs["params"] for specs in self._specs],
            batch_spec=recipe.of_batch(1),
            activation_spec=named.get("residual"),
            shared=self._stages.shared,
            named=named,
            strategies=recipe.strategies,
        )
        update = functools.partial(step_.update, hyper=settings.hyper)
        self._updates = [
            inf.shard(
                update,
                mesh=mesh,
                in_specs=(specs, specs["params"], team_.WHOLE, team_.WHOLE),
                out_specs=specs,
                donate_argnums=0,
                donation="require",
            )
            for mesh, specs in zip(self._meshes, self._specs, strict=True)
        ]

    def start(self, params: gpt.Params | None) -> list[step_.State]:
        """The first state; each stage makes its own."""

        def fresh(number: int, key: Array) -> step_.State:
            found: step_.State = self._stages.split(self._init(key))[number]
            return found

        found = []
        for number, (mesh, specs) in enumerate(zip(self._meshes, self._specs, strict=True)):
            if params is None:
                run = inf.shard(functools.partial(fresh, number), mesh=mesh, out_specs=specs)
                found.append(run(self._key))
            else:
                run = inf.shard(functools.partial(self._init, self._key), mesh=mesh, out_specs=specs)
                found.append(run(params=self._stages.split(params)[number]))
        return found

    def types(self) -> step_.State:
        """Types of the whole model's state. What several stages have is read on all devices."""
        placed = [
            tree.map(
                lambda spec, leaf, mesh=mesh: leaf.update(sharding=NamedSharding(mesh, spec)),
                specs,
                types,
                is_leaf=lambda x: isinstance(x, P),
            )
            for mesh, specs, types in zip(self._meshes, self._specs, self._types, strict=True)
        ]
        joined: step_.State = self._stages.join(placed)
        owners = Counter(id(leaf) for part in self._stages.split(joined) for leaf in tree.leaves(part))

        def everywhere(leaf: Any) -> Any:  # Any: a type with a place
            if owners[id(leaf)] == 1:
                return leaf
            return leaf.update(sharding=NamedSharding(self._mesh, leaf.sharding.spec))

        found: step_.State = tree.map(everywhere, joined)
        return found

    def loaded(self, stored: step_.State) -> list[step_.State]:
        """The state of each stage from that of the whole model."""
        parts = zip(self._stages.split(stored), self._meshes, strict=True)
        return [tree.map(lambda x, mesh=mesh: _part_on(x, mesh), part) for part, mesh in parts]

    def stored(self, state: list[step_.State]) -> step_.State:
        """The state of the whole model."""
        found: step_.State = self._stages.join(state)
        return found

    def step(
        self, state: list[step_.State], windows: np.ndarray, learning_rate: float
    ) -> tuple[list[step_.State], Result]:
        """Take a step."""
        rows = windows[self._order]
        params = [part["params"] for part in state]
        loss, gradients = self._pipeline(params, rows[:, :-1], rows[:, 1:])
        norm = self._pipeline.norm(gradients)
        rate, norm_ = np.float32(learning_rate), np.float32(norm)
        state = [
            # What other processes have stays what it is here: types without parts.
            update(part, gradient, rate, norm_) if mesh.local_ranks else part
            for update, part, gradient, mesh in zip(
                self._updates, state, gradients, self._meshes, strict=True
            )
        ]
        return state, Result(float(loss), norm)

    def mean_loss(self, state: list[step_.State], windows: np.ndarray) -> float:
        """Mean loss over windows."""
        params = [part["params"] for part in state]
        whole = len(windows) - len(windows) % EVALUATION_BATCH
        total = 0.0
        for rows, size in ((windows[:whole], EVALUATION_BATCH), (windows[whole:], 1)):
            if len(rows):
                found = self._pipeline.evaluate(
                    params, rows[:, :-1], rows[:, 1:], num_microbatches=len(rows) // size
                )
                total += float(found) * len(rows)
        return total / len(windows)

    def params(self, state: list[step_.State]) -> gpt.Params:
        """The parameters, whole."""
        found = self._stages.join(self._pipeline.fetch([part["params"] for part in state]))
        params: gpt.Params = tree.map(inf.numpy.asarray, found)
        return params


def _part_on(x: Array, mesh: Mesh) -> Array:
    """What the devices of a stage hold of an array that has copies along the pipeline. A copy, since stages
    at one place donate theirs one after the other.
    """
    assert isinstance(x.sharding, NamedSharding)
    if x.sharding.mesh == mesh:
        return x
    part = x.type.update(shape=x.sharding.shard_shape(x.shape))
    by_device = dict(zip(x.addressable_devices, x.buffers, strict=True))
    devices = [mesh.flat_devices[rank] for rank in mesh.local_ranks]
    buffers = [device.backend.copy(by_device[device], part, device) for device in devices]
    return Array(x.type, buffers, NamedSharding(mesh, x.sharding.spec), weak=x.weak, committed=True)
