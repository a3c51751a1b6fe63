"""Whole programs under mpirun: exchanges beside pieces, donation, and the bits of devices in one process.

One job runs under two and four processes, and tells what it found.
"""

import numpy as np
import pytest

import infini as inf
from infini.backends.spmd import executable, thread, walk
from infini.core import execute
from infini.core.backend import CompileOptions
from infini.sharding import Collectives, NamedSharding, P, make_mesh
from tests.parallel import jobs
from tests.parallel.test_list_scheduler import LAYER_BYTES, LAYERS, arguments, step


def runs(size):
    """Bits of two steps: of ZeRO-3, and of data parallelism, with sums in one order."""
    found = {}
    weights, x = arguments()
    mesh = make_mesh((size,), ("x",))
    program = inf.make_jaxpr(step)(weights, x)
    options = CompileOptions(
        donated=tuple(range(LAYERS)),
        donation="require",
        deterministic=True,
        collectives=Collectives(1, 1, LAYER_BYTES),
    )
    for name, spec in (("zero3", P("x")), ("data", P())):
        runner = execute.Runner(program, options)
        placed = [inf.device_put(w, NamedSharding(mesh, spec)) for w in weights]
        for _ in range(2):
            placed = list(runner([*placed, inf.device_put(x, NamedSharding(mesh, P("x")))]))
        whole = [inf.device_put(w, NamedSharding(mesh, P())) for w in placed]
        found[name] = [np.asarray(w).tobytes().hex() for w in whole]
    return found


def run(size):
    """What one process of the job finds."""
    begun, made = [], []
    real = walk.Walk.exchange

    def exchange(self, equation, env):  # of those that others wait for, and of those that are begun early
        number, make = len(begun), real(self, equation, env)
        begun.append(number)
        return lambda: made.append(number) or make()

    walk.Walk.exchange = exchange
    found = {"beside": runs(size)}
    found["begun"], found["made"] = list(begun), list(made)
    execute.clear_caches()
    executable.exchanger_of = lambda comm: thread.IMMEDIATE
    found["at once"] = runs(size)
    return found


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"{size} processes")
def job(request, mpirun_path, tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("found")
    return jobs.found(mpirun_path, request.param, run, folder, [request.param], INFINI_DEVICE="cpu")


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
class TestJob:
    def test_the_bits_are_those_of_devices_in_one_process(self, job):
        execute.clear_caches()
        with inf.config(device="cpu", cpu_devices=len(job)):
            expected = runs(len(job))
        execute.clear_caches()
        for found in job:
            assert found["beside"] == expected

    def test_the_bits_are_those_without_another_thread(self, job):
        for found in job:
            assert found["beside"] == found["at once"]

    def test_exchanges_are_made_in_the_order_of_the_schedule_in_every_process(self, job):
        for found in job:
            assert found["made"] == found["begun"] == job[0]["begun"]
            assert len(found["made"]) >= 2 * LAYERS
