"""Pipelines over processes. One script runs all cases under two and four processes, with one and two devices
each, and writes down how far gradients are from those of one device; each test looks at a case.
"""

import pytest

from tests.parallel import jobs

pytestmark = [pytest.mark.multi, pytest.mark.xdist_group("mpi")]

# Processes, devices of each; then the cases: mesh, names of its axes, and what `run` in the script takes.
JOBS = {
    "2 processes": (2, 1),
    "4 processes": (4, 1),
    "2 processes with 2 devices": (2, 2),
}
CASES = {
    "2 processes": {
        "1f1b": ([2], ["pp"], {}),
        "gpipe": ([2], ["pp"], {"schedule": "gpipe"}),
        "interleaved": ([2], ["pp"], {"schedule": "interleaved", "chunks": 4}),
        "large messages": ([2], ["pp"], {"schedule": "interleaved", "chunks": 4, "width": 260, "rows": 2048}),
        "dropout": ([2], ["pp"], {"model": "dropout"}),
        "trees": ([2], ["pp"], {"model": "trees"}),
        "bfloat16": ([2], ["pp"], {"model": "bfloat16"}),
        "tied": ([2], ["pp"], {"shared": [["0/up/weight", "1/up/weight"]]}),
        "tied, interleaved": (
            [2],
            ["pp"],
            {
                "schedule": "interleaved",
                "chunks": 4,
                "shared": [["0/up/weight", "3/up/weight"], ["1/up/bias", "2/up/bias", "3/up/bias"]],
            },
        ),
    },
    "4 processes": {
        "1f1b": ([4], ["pp"], {"chunks": 4}),
        "interleaved": ([4], ["pp"], {"schedule": "interleaved", "chunks": 8}),
        "dp": ([2, 2], ["dp", "pp"], {"batch": ["dp"]}),
        "tp": ([2, 2], ["pp", "tp"], {"schedule": "interleaved", "chunks": 4, "tensor": True}),
        "dp and dropout": ([2, 2], ["pp", "dp"], {"batch": ["dp"], "model": "dropout"}),
        "tied and split": (
            [2, 2],
            ["pp", "tp"],
            {"tensor": True, "shared": [["0/up/weight", "1/up/weight"]]},
        ),
    },
    "2 processes with 2 devices": {
        "a stage per process": ([2, 2], ["pp", "dp"], {"batch": ["dp"]}),
        "all stages in each": ([2, 2], ["dp", "pp"], {"batch": ["dp"]}),
    },
}
SCRIPT = """
import sys
import ml_dtypes
import numpy as np
import infini as inf, infini.numpy as inp, infini.parallel as parallel
from infini import random
from infini.core import comm as comm_, tree
from infini.parallel import schedules
from infini.sharding import NamedSharding, P, make_mesh
from tests.parallel.pipelined import TENSOR, layer, norm_of, pairs, squares, two_layers, unsharded
from tests.parallel.test_pipeline_mpi import CASES

parallel.initialize()
me, found = parallel.process_index(), {}

def with_mask(params, x):
    if not isinstance(x, dict):
        x = {"x": x, "keep": x > 0, "number": np.int8(3)}
    return {**x, "x": two_layers(params, x["x"]) * x["keep"]}

def dropped(params, x, key):
    return two_layers(params, inp.where(random.bernoulli(key, 0.5, x.shape), x, 0))

def error(gradient, expected):
    worst = 0.0
    for a, b in zip(tree.leaves(gradient), tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        b = np.asarray(b).astype(np.float64)
        for shard in a.addressable_shards if me in owners(a) else ():
            part = np.asarray(shard.data).astype(np.float64) - b[shard.index]
            worst = max(worst, np.abs(part).max() / max(np.abs(b).max(), 1e-30))
    return float(worst)

def owners(array):
    return {device.process_index for device in array.sharding.devices}

def run(
    shape, names, schedule="1f1b", chunks=2, width=8, rows=16, model="", batch=(), tensor=False, shared=()
):
    rng = np.random.default_rng(5)
    params = pairs(rng, chunks, width)
    places = lambda name: (int(name.split("/")[0]), *name.split("/")[1:])
    for group in shared:
        c, *path = places(group[0])
        for d, *_ in map(places, group):
            params[d][path[0]][path[1]] = params[c][path[0]][path[1]]
    x, t = rng.normal(size=(2, rows, width)).astype(np.float32)
    if model == "bfloat16":
        params, x = tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), (params, x))
    stage = {"dropout": dropped, "trees": with_mask}.get(model, two_layers)
    loss = (lambda y, t: squares(y["x"], t)) if model == "trees" else squares
    key = random.key(1) if model == "dropout" else None
    step = parallel.pipeline(
        [stage] * chunks, loss, mesh=make_mesh(shape, names), num_microbatches=4, schedule=schedule,
        param_specs=[TENSOR] * chunks if tensor else None, batch_spec=P(*batch), shared=shared,
    )
    with inf.config(cpu_devices=1):
        value, expected = unsharded([stage] * chunks, loss, params, x, t, key, 4)
        expected = [tree.map(np.asarray, part) for part in expected]
    for group in shared:
        members = [places(name) for name in group]
        total = sum(expected[c][a][b] for c, a, b in members)
        for c, a, b in members:
            expected[c][a][b] = total
    again = {places(name) for group in shared for name in group[1:]}
    counted = [leaf for c, part in enumerate(expected) for path, leaf in tree.flatten_with_path(part)[0]
               if (c, *tree.keystr(path, simple=True, separator="/").split("/")) not in again]
    placed = step.place(params)
    first, gradient = step(placed, x, t, key=key)
    # One loop over all parameters: it does nothing to those of other processes.
    moved = tree.map(lambda p, g: p - 0.125 * g, placed, gradient)
    after = [tree.map(lambda p, g: np.asarray(p) - (0.125 * g).astype(p.dtype), *pair)
             for pair in zip(params, expected, strict=True)]
    second, _ = step(moved, x, t, key=key)
    timeline = step.record.timeline
    simulated = schedules.simulate(step.schedule)
    return {
        "loss": abs(float(first) - float(value)) / abs(float(value)),
        "evaluate": abs(float(step.evaluate(placed, x, t, key=key)) - float(first)) / abs(float(first)),
        "gradient": error(gradient, expected),
        "moved": error(moved, after),
        "norm": abs(step.norm(gradient) / norm_of(counted) - 1),
        "falls": float(second) < float(first),
        "tasks": [[s.task for s in row] for row in timeline.spans]
        == [[s.task for s in row] for row in simulated.spans],
        "waits": all(a.end <= b.start for row in timeline.spans for a, b in zip(row, row[1:])),
        "activations": timeline.peak_activations == simulated.peak_activations,
        "here": [c for c, part in enumerate(gradient) if any(len(g.buffers) for g in tree.leaves(part))],
        "elsewhere": [repr(g) for g in tree.leaves(gradient) if not len(g.buffers)][:1],
    }

for name, (shape, names, options) in CASES[sys.argv[2]].items():
    found[name] = run(shape, names, **options)
if len(inf.devices()) > parallel.process_count():
    try:
        parallel.pipeline([layer] * 4, squares, mesh=make_mesh((4,), ("pp",)), num_microbatches=4)
    except inf.InfiniError as error:
        found["refused"] = str(error)
"""


@pytest.fixture(scope="module")
def results(mpirun_path, tmp_path_factory):
    """What each process of each job found, run when it is asked for first."""
    done = {}

    def of(job):
        if job not in done:
            done[job] = launch(mpirun_path, tmp_path_factory.mktemp("found"), job)
        return done[job]

    return of


def launch(mpirun, folder, job):
    size, num_devices = JOBS[job]
    return jobs.found_by(mpirun, size, SCRIPT, folder, job, INFINI_CPU_DEVICES=num_devices)


@pytest.mark.parametrize(
    ("job", "case"), [pytest.param(job, case, id=f"{case}, {job}") for job in JOBS for case in CASES[job]]
)
def test_a_step_over_processes_equals_one_on_one_device(job, case, results):
    tolerance = 2e-2 if case == "bfloat16" else 1e-5
    chunks_seen = set()
    for found in (process[case] for process in results(job)):
        for what in ("loss", "evaluate", "gradient", "norm", "moved"):
            assert found[what] <= tolerance, what
        for what in ("falls", "tasks", "waits", "activations"):
            assert found[what], what
        chunks_seen.update(found["here"])
    chunks = CASES[job][case][2].get("chunks", 2)
    assert chunks_seen == set(range(chunks))


def test_gradients_of_other_processes_have_no_parts(results):
    for rank, process in enumerate(results("2 processes")):
        assert process["1f1b"]["here"] == [rank]
        assert process["1f1b"]["elsewhere"][0].startswith("Array(<f32[")


def test_a_process_that_holds_some_of_the_ranks_is_refused(results):
    for rank, process in enumerate(results("2 processes with 2 devices")):
        assert "one rank of a pipeline, or the same of all ranks" in process["refused"]
        assert (
            f"process {rank} with devices of the ranks {(2 * rank, 2 * rank + 1)} of 4" in process["refused"]
        )
