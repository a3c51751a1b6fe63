"""The table of recipes and products of them, for eight devices, and a run of one of its rows beside the same
steps on one device. A new way of splitting a step is one row of `RECIPES`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import infini as inf
from infini import optim, random, tree
from infini.backends.spmd.executable import SpmdExecutable
from infini.compiler import partition
from infini.core import execute, mesh as mesh_
from infini.parallel import recipes
from infini.sharding import Mesh, NamedSharding, P, make_mesh
from infini.testing import count_collectives, predicted
from infini.train import gpt, step as step_
from infini.transforms import staging

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 8,
    "num_kv_heads": 8, "head_dim": 4,
}  # fmt: skip
MODELS = {
    "gpt": gpt.Config(**SIZES),
    "experts": gpt.Config(**SIZES | {"intermediate_size": 16}, num_experts=8, capacity_factor=1.25),
    "dropless": gpt.Config(**SIZES | {"intermediate_size": 16}, num_experts=8),
}
GATHERED = recipes.experts(dispatch="all_gather")
BATCH, LENGTH, STEPS = 8, 8, 10

RECIPES: dict[str, tuple[dict[str, int], recipes.Recipe]] = {
    "data": ({"dp": 8}, recipes.data()),
    "zero1": ({"dp": 8}, recipes.zero1()),
    "zero2": ({"dp": 8}, recipes.zero2()),
    "zero1 in parts x tensor": ({"dp": 4, "tp": 2}, recipes.product(recipes.tensor(), recipes.zero1())),
    "zero2 in parts x tensor": ({"dp": 4, "tp": 2}, recipes.product(recipes.tensor(), recipes.zero2())),
    "zero3": ({"dp": 8}, recipes.zero3()),
    "tensor": ({"tp": 8}, recipes.tensor()),
    "data x tensor": ({"dp": 2, "tp": 4}, recipes.product(recipes.tensor(), recipes.data())),
    "zero1 x tensor": ({"dp": 4, "tp": 2}, recipes.product(recipes.tensor(), recipes.zero1())),
    "zero3 x tensor": ({"dp": 2, "tp": 4}, recipes.product(recipes.tensor(), recipes.zero3())),
    "tensor and sequence": ({"tp": 8}, recipes.product(recipes.tensor(), recipes.sequence())),
    "tensor and sequence x data": (
        {"dp": 2, "tp": 4},
        recipes.product(recipes.tensor(), recipes.sequence(), recipes.data()),
    ),
    "experts": ({"ep": 8}, recipes.experts()),
    "experts gathered": ({"ep": 8}, GATHERED),
    "experts gathered x data": ({"ep": 4, "dp": 2}, recipes.product(GATHERED, recipes.data())),
    "experts gathered x tensor": ({"ep": 4, "tp": 2}, recipes.product(GATHERED, recipes.tensor())),
    "experts x data": ({"ep": 4, "dp": 2}, recipes.product(recipes.experts(), recipes.data())),
    "experts x tensor": ({"ep": 4, "tp": 2}, recipes.product(recipes.experts(), recipes.tensor())),
    "context by ring": ({"cp": 8}, recipes.context(form="ring")),
    "context by gather": ({"cp": 8}, recipes.context(form="gather")),
    "context by all_to_all": ({"cp": 8}, recipes.context(form="all_to_all")),
    "context x tensor": ({"cp": 4, "tp": 2}, recipes.product(recipes.context(form="ring"), recipes.tensor())),
    "context x tensor and sequence x data": (
        {"dp": 2, "cp": 2, "tp": 2},
        recipes.product(recipes.context(), recipes.tensor(), recipes.sequence(), recipes.data()),
    ),
}
# Without a capacity only the layer of experts differs: what splits tokens, experts, and their width.
OF_DROPLESS = {
    "data", "zero3", "tensor", "experts", "experts gathered", "experts gathered x data",
    "experts gathered x tensor",
}  # fmt: skip
ROWS = [(name, model) for name in RECIPES for model in MODELS if model != "dropless" or name in OF_DROPLESS]
# Rows whose steps add up the gradients of several parts of their batch.
NUM_PARTS = {"zero1 in parts x tensor": 2, "zero2 in parts x tensor": 2}


def scaled(axes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """The axes of a row for fewer devices: the largest is halved, the first of equal ones, until it fits."""
    found = dict(axes)
    while math.prod(found.values()) > num_devices:
        largest = max(found, key=lambda axis: found[axis])
        found[largest] //= 2
    assert math.prod(found.values()) == num_devices, f"{axes} has no share of {num_devices} devices"
    return found


def optimizer() -> optim.GradientTransformation:
    """A large epsilon: Adam divides by the root of a mean of squares, and first steps of tiny gradients would
    be those of their roundings.
    """
    return optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-2, eps=1e-3))


def step(params: Any, state: Any, windows: Any, *, config: gpt.Config, num_parts: int = 1) -> tuple[Any, ...]:
    how = step_.Computation(num_parts=num_parts)
    value, gradients = step_.loss_and_gradients(params, windows, config, how)
    updates, state = optimizer().update(gradients, state, params)
    return optim.apply_updates(params, updates), state, value, gradients


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, (BATCH, LENGTH + 1)).astype(np.int32) for _ in range(STEPS)]


@functools.cache
def start(config: gpt.Config) -> Any:
    with inf.config(device="reference"):
        return tree.map(np.asarray, gpt.init(random.PRNGKey(0), config))


@functools.cache
def alone(config: gpt.Config, num_parts: int = 1) -> tuple[list[float], list[Any]]:
    """Losses and gradients of one device."""
    params = start(config)
    run = inf.jit(functools.partial(step, config=config, num_parts=num_parts))
    state = optimizer().init(params)
    losses, gradients = [], []
    for windows in batches():
        params, state, value, gradient = run(params, state, windows)
        losses.append(float(value))
        gradients.append(tree.map(np.asarray, gradient))
    return losses, gradients


@dataclass(frozen=True, slots=True)
class Run:
    """What a process found of a row.

    Args:
        losses: of each step.
        wanted: those of one device.
        excess: largest distance of a gradient to that of one device, in units of what is allowed.
        is_as_predicted: whether the first step made the collectives that the partitioner predicts.
        num_collectives: how many it made.
    """

    losses: list[float]
    wanted: list[float]
    excess: float
    is_as_predicted: bool
    num_collectives: int


def run(name: str, config: gpt.Config, num_devices: int = 8) -> Run:
    """The steps of a row, on the devices of this process or of a job.

    Args:
        name: the row.
        config: the model.
        num_devices: size of the mesh.
    """
    axes, recipe = RECIPES[name]
    axes, num_parts = scaled(axes, num_devices), NUM_PARTS.get(name, 1)
    mesh = make_mesh(tuple(axes.values()), tuple(axes))
    params, state = start(config), optimizer().init(start(config))
    specs = recipe.params(params, mesh), recipe.optimizer(state, mesh)
    named = recipe.of_names() | recipe.of_sums(params, mesh)
    params, state = _placed(params, mesh, specs[0]), _placed(state, mesh, specs[1])
    run = inf.shard(
        functools.partial(step, config=config, num_parts=num_parts),
        mesh=mesh,
        in_specs=(*specs, recipe.of_batch()),
        out_specs=(*specs, P(), specs[0]),
        named=named,
        strategies=recipe.strategies,
        donate_argnums=(0, 1),
    )
    given = [_placed(windows, mesh, recipe.of_batch()) for windows in batches()]
    expected = predicted(_partition(run, mesh, params, state, given[0]))
    losses, excess, wanted = [], 0.0, alone(config, num_parts)
    for number, windows in enumerate(given):
        with count_collectives() as counts:
            params, state, value, gradient = run(params, state, windows)
        if number == 0:
            first = counts
        losses.append(float(value))
        excess = max(excess, _excess(gradient, wanted[1][number]))
    return Run(losses, wanted[0], excess, first == expected, sum(count.calls for count in first.values()))


def _placed(leaves: Any, mesh: Any, specs: Any) -> Any:  # trees
    where = tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    return tree.map(inf.device_put, leaves, where)


def _partition(run: staging.Jitted, mesh: Mesh, *args: Any) -> partition.Partitioned:  # Any: trees
    """How a function is split; what is compiled here is what runs later."""
    runner = run.lower(*args).traced.runner
    specs = tuple(mesh_.trim(leaf.sharding.spec) for leaf in tree.leaves(args))
    options = dataclasses.replace(runner.options, mesh=mesh.abstract, in_specs=specs)
    executable = execute.compile(runner.program, mesh.flat_devices[0], options)
    assert isinstance(executable, SpmdExecutable)
    return executable.partitioned


def _excess(found: Any, wanted: Any) -> float:  # trees
    """How far the parts of gradients that this process holds are from what they should be, where a hundred
    thousandth of the largest element is one.
    """
    worst = 0.0
    for array, whole in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
        bound = max(1e-5 * float(np.abs(whole).max()), 1e-7)
        for shard in array.addressable_shards:
            distance = np.abs(np.asarray(shard.data) - whole[shard.index]).max(initial=0.0)
            worst = max(worst, float(distance) / bound)
    return worst
