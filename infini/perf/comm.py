"""Communication: what collectives cost between the processes of a job, and train steps split over them,
beside what the cost model predicts with the links that were measured.

    python -m infini.perf comm                       # starts jobs of 1, 2 and 4 processes with mpirun
    mpirun -n 8 python -m infini.perf comm           # measures the job that it is in

Every process of a job measures; process 0 reports. Collectives take turns with the same calls made through
mpi4py, where the job is one of MPI. A step's prediction is the time that the whole step takes in each process
while all of them compute it, times the share of the work that the partitioner leaves to one device, and the
seconds of its collectives on the measured links. Nothing is assumed to overlap.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import infini as inf
from infini import lax, optim, parallel, random
from infini.backends.spmd import mpi
from infini.compiler import cost
from infini.compiler.partition import costs
from infini.core import comm as comm_, errors, ir
from infini.core.machine import Link, Machine
from infini.parallel import processes, recipes
from infini.perf import limits as limits_
from infini.sharding import Mesh, P, make_mesh
from infini.train import gpt

AXIS: Final = "x"
_TURN_S: Final = 0.03  # of one turn at a collective
_TURNS: Final = 5
_NUM_STEPS: Final = 5

COLLECTIVES: Final[Mapping[str, Callable[[Any], Any]]] = {  # Any: an array
    "psum": lambda x: lax.psum(x, AXIS),
    "all_gather": lambda x: lax.all_gather(x, AXIS, tiled=True),
    "psum_scatter": lambda x: lax.psum_scatter(x, AXIS, tiled=True),
    "all_to_all": lambda x: lax.all_to_all(x, AXIS, 0, 0, tiled=True),
    "ppermute": lambda x: lax.ppermute(x, AXIS, _ring(lax.axis_size(AXIS))),
}
RECIPES: Final[Mapping[str, recipes.Recipe]] = {
    "data": recipes.data(AXIS),
    "zero1": recipes.zero1(AXIS),
    "zero3": recipes.zero3(AXIS),
    "tensor": recipes.tensor(AXIS),
    "tensor and sequence": recipes.product(recipes.tensor(AXIS), recipes.sequence(AXIS)),
}


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured.

    Args:
        collectives: bytes that each process gives.
        model: configuration of the model.
        batch: rows of the whole batch, which the processes share.
        length: tokens of a row.
    """

    collectives: tuple[int, ...]
    model: gpt.Config
    batch: int
    length: int


_FULL: Final = Size(
    tuple(1 << power for power in (10, 14, 18, 20, 22, 24)),
    gpt.Config(
        vocab_size=2048, hidden_size=256, intermediate_size=1024, num_layers=4, num_heads=8, num_kv_heads=8,
        head_dim=32,
    ),
    batch=8, length=128,
)  # fmt: skip
_QUICK: Final = Size(
    (1 << 10, 1 << 20),
    gpt.Config(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, num_kv_heads=4,
        head_dim=16,
    ),
    batch=8, length=32,
)  # fmt: skip
SIZES: Final[Mapping[str, Size]] = {"full": _FULL, "quick": _QUICK}


@dataclass(frozen=True, slots=True)
class Sample:
    """A collective: its name, the bytes that each process gives, and the median seconds of a call; of the
    same call through mpi4py too, if there is one.
    """

    name: str
    nbytes: int
    seconds: float
    mpi_s: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A train step under a recipe.

    Args:
        recipe: its name.
        seconds: median, quartile below and above.
        predicted_s: of the cost model.
        communication_s: the part of the prediction that is spent on collectives.
        sent: bytes that each device sends, as predicted.
        peak_bytes: memory that each device needs.
        loss_difference: largest difference of a loss from that of one process, relative.
    """

    recipe: str
    seconds: tuple[float, float, float]
    predicted_s: float
    communication_s: float
    sent: int
    peak_bytes: int
    loss_difference: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a job of so many processes found. `alone` are median and quartiles of the whole step in each
    process, all computing it at the same time.
    """

    num_processes: int
    alone: tuple[float, float, float]
    machine: Machine
    samples: tuple[Sample, ...]
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """For a record."""
        found = dataclasses.asdict(dataclasses.replace(self, machine=None))  # type: ignore[arg-type]  # below
        link = self.machine.link
        return found | {
            "machine": {
                "bytes_per_s": link.bytes_per_s,
                "latency_s": link.latency_s,
                "start_s": self.machine.start_s,
                "flops_per_s": self.machine.flops_per_s,
                "memory_bytes_per_s": self.machine.memory_bytes_per_s,
            }
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Report:  # Any: JSON
        """The opposite of `as_json`."""
        numbers = dict(found["machine"])
        link = Link(numbers.pop("bytes_per_s"), numbers.pop("latency_s"))
        return cls(
            found["num_processes"],
            tuple(found["alone"]),
            Machine(link, **numbers),
            tuple(Sample(**sample) for sample in found["samples"]),
            tuple(Step(**step | {"seconds": tuple(step["seconds"])}) for step in found["steps"]),
        )


def launched(
    num_processes: int, limits: limits_.Limits, *, size: str = "full", only: Sequence[str] = ()
) -> Report:
    """Measure in a job of this machine.

    Args:
        num_processes: how many, with one thread each.
        limits: of one thread.
        size: how much, a key of `SIZES`.
        only: names of recipes; all when empty.

    Raises:
        DeviceError: there is no mpirun.
        CollectiveError: the job failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        asked = {"size": size, "only": list(only), "limits": limits.as_json(), "target": str(target)}
        settings = {"INFINI_DEVICE": "cpu", "INFINI_NUM_THREADS": "1", "INFINI_CPU_DEVICES": "1"}
        command = [
            *processes.mpirun(num_processes),
            sys.executable,
            "-m",
            "infini.perf.comm",
            json.dumps(asked),
        ]
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
        if done.returncode or not target.exists():
            raise errors.CollectiveError(
                f"the job of {num_processes} processes failed",
                got=f"status {done.returncode}: {done.stderr.strip()[-2000:]}",
                expected="a report of process 0",
            )
        return Report.from_json(json.loads(target.read_text(encoding="utf-8")))


def measured(limits: limits_.Limits, *, size: str = "full", only: Sequence[str] = ()) -> Report:
    """Measure in the job of this process; all of its processes call this.

    Args:
        limits: of what one process computes with.
        size: how much, a key of `SIZES`.
        only: names of recipes; all when empty.
    """
    count = parallel.process_count()
    mesh = make_mesh((count,), (AXIS,))
    chosen_size = SIZES[size]
    samples = [] if count == 1 else _samples(mesh, chosen_size.collectives)
    machine = _machine(samples, count, limits)
    training = Training(chosen_size)
    alone, losses = training.timed(inf.jit(training.step, donate_argnums=(0, 1)), *training.start())
    chosen = {name: recipe for name, recipe in RECIPES.items() if not only or name in only}
    steps = [
        training.measured(name, recipe, mesh, machine, alone=alone[0], losses=losses)
        for name, recipe in (chosen.items() if count > 1 else ())
    ]
    return Report(count, alone, machine, tuple(samples), tuple(steps))


# --- collectives --------------------------------------------------------------------------------


def _ring(size: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % size) for i in range(size)]


def _samples(mesh: Mesh, sizes: Sequence[int]) -> list[Sample]:
    """Every collective with every size."""
    return [_sample(name, nbytes, mesh) for name in COLLECTIVES for nbytes in sizes]


def _sample(name: str, nbytes: int, mesh: Mesh) -> Sample:
    """One collective; calls through mpi4py take turns with ours."""
    count = mesh.size
    own = np.ones(max(nbytes // 4 // count, 1) * count, np.float32)
    x = inf.make_array_from_process_local_data(inf.sharding.NamedSharding(mesh, P(AXIS)), own)
    ours = inf.jit(
        inf.shard_map(COLLECTIVES[name], mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)
    )
    calls: dict[str, Callable[[], object]] = {"infini": lambda: inf.block_until_ready(ours(x))}
    if theirs := _through_mpi(name, own, count):
        calls["mpi"] = theirs
    found: dict[str, list[float]] = {key: [] for key in calls}
    for key, call in calls.items():
        call()
        _seconds(call, 1, found[key])
    times = {key: _told(max(1, round(_TURN_S / max(min(s), 1e-6)))) for key, s in found.items()}
    for turn in range(_TURNS):
        for key in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            _seconds(calls[key], times[key], found[key])
    return Sample(
        name,
        own.nbytes,
        statistics.median(found["infini"][1:]),
        statistics.median(found["mpi"][1:]) if "mpi" in found else None,
    )


def _seconds(call: Callable[[], object], times: int, found: list[float]) -> None:
    """Add the mean of some calls."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    found.append((time.perf_counter() - begin) / times)


def _told(number: int) -> int:
    """The number of process 0."""
    launcher = comm_.processes().launcher
    assert launcher is not None, "there are several processes"
    world = launcher.comm(tuple(range(parallel.process_count())))
    return int(world.broadcast(str(number).encode()))


def _through_mpi(name: str, own: np.ndarray, count: int) -> Callable[[], object] | None:
    """The same through mpi4py; None in jobs without MPI."""
    try:
        library = mpi.load()
    except errors.DeviceError:
        return None
    if not library.Is_initialized() or library.COMM_WORLD.Get_size() != count:
        return None
    world, index = library.COMM_WORLD, parallel.process_index()
    same, part = np.empty_like(own), np.empty(own.size // count, own.dtype)
    if name == "psum":
        return functools.partial(world.Allreduce, own, same)
    if name == "all_gather":
        return functools.partial(world.Allgather, own, np.empty(own.size * count, own.dtype))
    if name == "psum_scatter":
        return functools.partial(world.Reduce_scatter_block, own, part)
    if name == "all_to_all":
        return functools.partial(world.Alltoall, own, same)
    there, back = (index + 1) % count, (index - 1) % count
    return functools.partial(world.Sendrecv, own, there, recvbuf=same, source=back)


def _machine(samples: Sequence[Sample], count: int, limits: limits_.Limits) -> Machine:
    """A machine whose costs are nearest to the samples, relatively; nothing costs less than nothing."""
    flops_per_s, memory_bytes_per_s = limits.flops_per_s, min(limits.copy_bytes_per_s.values())
    if not samples:
        return Machine(
            Link(memory_bytes_per_s), flops_per_s=flops_per_s, memory_bytes_per_s=memory_bytes_per_s
        )
    facts = np.array(
        [(1.0, costs.num_messages(s.name, count), costs.wire_bytes(s.name, s.nbytes, count)) for s in samples]
    )
    facts /= np.array([[s.seconds] for s in samples])
    start_s, latency_s, s_per_byte = nearest(facts)
    return Machine(
        Link(1 / max(s_per_byte, 1e-15), latency_s),
        start_s=start_s,
        flops_per_s=flops_per_s,
        memory_bytes_per_s=memory_bytes_per_s,
    )


def nearest(facts: np.ndarray) -> tuple[float, ...]:
    """Weights of the columns, none negative, that make every row's sum nearest to 1.

    Args:
        facts: (rows, columns).
    """
    num_columns = facts.shape[1]
    best, least = np.zeros(num_columns), np.inf
    for size in range(1, num_columns + 1):
        for kept in itertools.combinations(range(num_columns), size):
            scale = np.abs(facts[:, kept]).max(0)
            scale[scale == 0] = 1
            found = np.linalg.lstsq(facts[:, kept] / scale, np.ones(len(facts)), rcond=None)[0] / scale
            error = float(np.square(facts[:, kept] @ found - 1).sum())
            if (found >= 0).all() and error < least:
                least, best = error, np.zeros(num_columns)
                best[list(kept)] = found
    return tuple(best.tolist())


# --- train steps --------------------------------------------------------------------------------


class Training:
    """Steps of a GPT on batches of random tokens.

    Args:
        size: of the model and of the batches.
    """

    def __init__(self, size: Size) -> None:
        self.config = size.model
        self.optimizer = optim.adamw(1e-3, eps=1e-3)
        rng = np.random.default_rng(0)
        shape = size.batch, size.length + 1
        self.batches = [
            rng.integers(0, size.model.vocab_size, shape).astype(np.int32) for _ in range(2 + _NUM_STEPS)
        ]

    def start(self) -> tuple[Any, Any]:  # Any: trees of arrays
        """Parameters, and what the optimizer keeps."""
        params = gpt.init(random.PRNGKey(0), self.config)
        return params, self.optimizer.init(params)

    def step(self, params: Any, state: Any, windows: Any) -> tuple[Any, Any, Any]:  # Any: trees of arrays
        """New parameters and state, and the loss."""
        value, gradients = inf.value_and_grad(lambda p: gpt.loss(p, windows, self.config))(params)
        updates, state = self.optimizer.update(gradients, state, params)
        return optim.apply_updates(params, updates), state, value

    def timed(
        self, run: Callable[..., Any], params: Any, state: Any
    ) -> tuple[tuple[float, float, float], list[float]]:  # Any: trees of arrays
        """Median and quartiles of the steps behind the first two, and the losses of all."""
        seconds, losses = [], []
        for windows in self.batches:
            begin = time.perf_counter()
            params, state, value = run(params, state, windows)
            losses.append(float(value))
            seconds.append(time.perf_counter() - begin)
        low, median, high = statistics.quantiles(seconds[2:], n=4, method="inclusive")
        return (median, low, high), losses

    def measured(
        self,
        name: str,
        recipe: recipes.Recipe,
        mesh: Mesh,
        machine: Machine,
        *,
        alone: float,
        losses: Sequence[float],
    ) -> Step:
        """The step under a recipe, measured and predicted."""
        params, state = self.start()
        specs = recipe.params(params, mesh), recipe.optimizer(state, mesh)
        run = inf.shard(
            self.step,
            mesh=mesh,
            in_specs=(*specs, recipe.of_batch()),
            out_specs=(*specs, P()),
            named=recipe.of_names(),
            donate_argnums=(0, 1),
        )
        shown = parallel.explain_sharding(run, params, state, self.batches[0])
        seconds, found = self.timed(run, params, state)
        communication = sum(
            costs.seconds(c.name, c.axes, c.nbytes, shown.found.mesh, machine) * (c.times or 1)
            for c in shown.collectives
        )
        share = _work_s(shown.found.program, machine) / _work_s(shown.program, machine)
        return Step(
            name,
            seconds,
            alone * share + communication,
            communication,
            sum(c.wire_bytes * (c.times or 1) for c in shown.collectives),
            shown.memory["peak"],
            max(abs(one - other) / abs(other) for one, other in zip(found, losses, strict=True)),
        )


def _work_s(program: ir.Program, machine: Machine) -> float:
    """Seconds of the equations of a program, one after another."""
    return sum(
        times * costs.compute_seconds(equation, 1, machine)
        for equation, times in cost.executed(program)
        if equation.op.name not in costs.COLLECTIVES
    )


def _main(asked: Mapping[str, Any]) -> None:  # Any: JSON
    parallel.initialize()
    found = measured(limits_.Limits.from_json(asked["limits"]), size=asked["size"], only=asked["only"])
    if parallel.process_index() == 0:
        Path(asked["target"]).write_text(json.dumps(found.as_json()), encoding="utf-8")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
