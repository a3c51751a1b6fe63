"""Training steps of pipelines, alone and with recipes inside their stages, on eight devices and over
processes: the losses and gradients of one device.

The loss of the dense model is a mean over rows, so microbatches change nothing of it. The loss that balances
experts is a product of means over a microbatch: it is compared with one device that takes the microbatches
one after the other.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import parallel, random, tree
from infini.parallel import recipes
from infini.sharding import make_mesh
from infini.train import gpt, stages, step

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_heads": 4, "num_kv_heads": 4,
    "head_dim": 4,
}  # fmt: skip
MODELS = {
    "gpt": gpt.Config(**SIZES, tie_embeddings=True),
    "experts": gpt.Config(**SIZES, num_experts=4, capacity_factor=1.25),
}
BATCH, LENGTH, STEPS = 8, 6, 10
# A large epsilon: first steps of tiny gradients would be those of their roundings. Norms are clipped.
HYPER = step.Hyperparameters(eps=1e-3, max_norm=0.5)
RATE = np.float32(3e-3)
PLAIN = recipes.Recipe()
DATA_TENSOR = recipes.product(recipes.tensor(), recipes.data())
EXPERTS_TENSOR = recipes.product(recipes.experts(), recipes.tensor())
SEQUENCE = recipes.product(recipes.tensor(), recipes.sequence())


@dataclass(frozen=True)
class Case:
    """A pipeline with a block in each stage.

    Args:
        model: what is trained.
        axes: sizes of the axes.
        schedule: order of its passes.
        recipe: what the other axes split.
        count: number of microbatches.
    """

    model: str
    axes: dict[str, int]
    schedule: str = "1f1b"
    recipe: recipes.Recipe = PLAIN
    count: int = 2

    @property
    def config(self) -> gpt.Config:
        virtual = 2 if self.schedule == "interleaved" else 1
        return replace(MODELS[self.model], num_layers=self.axes["pp"] * virtual)


LINE, CUBE = {"pp": 4}, {"pp": 2, "dp": 2, "tp": 2}
CASES = {
    "gpipe": Case("gpt", LINE, "gpipe", count=4),
    "gpipe, experts": Case("experts", LINE, "gpipe", count=4),
    "1f1b": Case("gpt", {"pp": 8}, count=4),
    "1f1b, experts": Case("experts", LINE, count=4),
    "interleaved": Case("gpt", LINE, "interleaved", count=4),
    "interleaved, experts": Case("experts", {"pp": 2}, "interleaved", count=4),
    "data x tensor": Case("gpt", CUBE, recipe=DATA_TENSOR),
    "data x tensor, interleaved": Case("gpt", CUBE, "interleaved", DATA_TENSOR),
    "data x tensor, experts": Case("experts", CUBE, "gpipe", DATA_TENSOR),
    "tensor and sequence": Case("gpt", {"pp": 2, "tp": 4}, "gpipe", SEQUENCE),
    "zero3": Case("gpt", {"pp": 2, "dp": 4}, "gpipe", recipes.zero3()),
    "split experts": Case("experts", {"pp": 2, "ep": 4}, recipe=recipes.experts()),
    "split experts, dense model": Case("gpt", {"pp": 2, "ep": 4}, recipe=recipes.experts()),
    "split experts x tensor": Case("experts", {"pp": 2, "ep": 2, "tp": 2}, recipe=EXPERTS_TENSOR),
}


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 32, (BATCH, LENGTH + 1)).astype(np.int32) for _ in range(STEPS)]


@functools.cache
def start(config: gpt.Config) -> Any:
    with inf.config(device="reference", cpu_devices=1):
        return tree.map(np.asarray, gpt.init(random.PRNGKey(0), config))


@functools.cache
def alone(config: gpt.Config, count: int) -> list[tuple[float, Any]]:
    """Losses and gradients of one device, of batches in `count` parts."""

    def loss(params: Any, windows: Any) -> Any:
        parts = windows.reshape(count, -1, windows.shape[-1])
        return sum(gpt.loss(params, part, config) for part in parts) / count

    found = []
    with inf.config(device="reference", cpu_devices=1):
        differentiate = inf.jit(inf.value_and_grad(loss))
        state = step.init_state(random.PRNGKey(0), config, HYPER, start(config))
        update = inf.jit(functools.partial(step.update, norm=None, hyper=HYPER))
        for windows in batches():
            value, gradient = differentiate(state["params"], windows)
            found.append((float(value), tree.map(np.asarray, gradient)))
            state = update(state, gradient, RATE)
    return found


def distances(case: Case) -> list[tuple[float, float, float]]:
    """For each step how far loss, norm and gradients are from those of one device: of the array that is
    farthest, in shares of its largest element. Every process calls it.
    """
    config = case.config
    expected = alone(config, case.count if config.num_experts else 1)
    mesh = make_mesh(tuple(case.axes.values()), tuple(case.axes))
    cut = stages.cut(config, config.num_layers)
    places = [mesh.at("pp", number % case.axes["pp"]) for number in range(cut.count)]
    types = cut.split(start(config))
    named = case.recipe.of_names()
    pipe = parallel.pipeline(
        cut.functions(),
        cut.loss,
        mesh=mesh,
        num_microbatches=case.count,
        schedule=case.schedule,
        param_specs=[case.recipe.params(part, place) for part, place in zip(types, places, strict=True)],
        batch_spec=case.recipe.of_batch(1),
        activation_spec=named.get("residual"),
        shared=cut.shared,
        named=named,
    )
    parts = [step.init_state(random.PRNGKey(0), config, HYPER, part) for part in pipe.place(types)]
    update, found = inf.jit(functools.partial(step.update, hyper=HYPER)), []
    for windows, (wanted, gradients) in zip(batches(), expected, strict=True):
        value, made = pipe([part["params"] for part in parts], windows[:, :-1], windows[:, 1:])
        norm = pipe.norm(made)
        parts = [update(*pair, RATE, np.float32(norm)) for pair in zip(parts, made, strict=True)]
        whole = cut.join(pipe.fetch(made))
        assert tree.structure(whole) == tree.structure(gradients)
        far = [
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-2))  # at most 1e-7 where all is small
            for a, b in zip(tree.leaves(whole), tree.leaves(gradients), strict=True)
        ]
        total = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in tree.leaves(gradients)))
        found.append((abs(float(value) / wanted - 1), abs(norm / total - 1), max(far)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_one_device(name: str) -> None:
    with inf.config(device="reference", cpu_devices=8):
        for numbers in distances(CASES[name]):
            assert max(numbers) <= 1e-5, numbers


def test_bytes_that_are_sent_are_those_of_the_guide() -> None:
    """Of docs/parallel.md: 2 v A for each place, A less at both ends; experts add to that."""
    rows = batches()[0]
    for case in (CASES["interleaved"], CASES["1f1b, experts"]):
        with inf.config(device="reference", cpu_devices=8):
            cut = stages.cut(case.config, case.config.num_layers)
            mesh = make_mesh(tuple(case.axes.values()), tuple(case.axes))
            pipe = parallel.pipeline(
                cut.functions(), cut.loss, mesh=mesh, num_microbatches=case.count, schedule=case.schedule
            )
            pipe(pipe.place(cut.split(start(case.config))), rows[:, :-1], rows[:, 1:])
        num_experts, virtual = case.config.num_experts, pipe.schedule.num_virtual
        forwards, backwards = (
            4 * BATCH * LENGTH * case.config.hidden_size + case.count * num_experts * each for each in (8, 4)
        )
        wanted = [virtual * (forwards + backwards)] * case.axes["pp"]
        wanted[0] -= backwards
        wanted[-1] -= forwards
        assert pipe.record is not None and list(pipe.record.sent_bytes) == wanted


# --- over processes -----------------------------------------------------------------------------------

JOBS = {
    2: {
        "gpipe": Case("gpt", {"pp": 2}, "gpipe"),
        "1f1b, experts": Case("experts", {"pp": 2}, count=4),
        "interleaved": Case("gpt", {"pp": 2}, "interleaved"),
    },
    4: {
        "1f1b": Case("gpt", LINE, count=4),
        "tensor, interleaved": Case("gpt", {"pp": 2, "tp": 2}, "interleaved", recipes.tensor()),
        "split experts": Case("experts", {"pp": 2, "ep": 2}, "gpipe", recipes.experts()),
        "zero3": Case("gpt", {"pp": 2, "dp": 2}, recipe=recipes.zero3()),
    },
}
SCRIPT = """
import json, os, sys
sys.path[:0] = json.loads(os.environ["TESTED_PATHS"])
import infini.parallel as parallel
parallel.initialize()
import test_recipes_pipelines as tested
found = {name: tested.distances(case) for name, case in tested.JOBS[parallel.process_count()].items()}
with open(os.path.join(os.environ["FOUND"], str(parallel.process_index())), "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def results(mpirun_path: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each process of a job of some size found, run when it is asked for first."""

    @functools.cache
    def of(size: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("found")
        kept = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
        settings = {
            "INFINI_DEVICE": "reference",
            "INFINI_NUM_THREADS": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "FOUND": str(folder),
            "TESTED_PATHS": json.dumps([str(Path(__file__).parent), *sys.path]),
        }
        command = [mpirun_path, "-n", str(size), sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=kept | settings)
        assert done.returncode == 0, done.stderr
        return [json.loads((folder / str(rank)).read_text()) for rank in range(size)]

    return of


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
@pytest.mark.parametrize(
    ("size", "name"),
    [pytest.param(size, name, id=f"{name}, {size} processes") for size in JOBS for name in JOBS[size]],
)
def test_ten_steps_over_processes_are_those_of_one_device(size: int, name: str, results: Any) -> None:
    for process in results(size):
        assert len(process[name]) == STEPS
        for numbers in process[name]:
            assert max(numbers) <= 1e-5, numbers
