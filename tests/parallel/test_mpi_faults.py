"""What must not go wrong silently in a job: processes that are out of step, or have different arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, os, threading
import numpy as np
import infini as inf, infini.parallel as parallel
from infini import lax
from infini.core import errors
from infini.experimental import io_callback
from infini.sharding import Mesh, NamedSharding, P, make_mesh

parallel.initialize()
me, count = parallel.process_index(), parallel.process_count()
mesh = make_mesh((count,), ("x",))
rows = NamedSharding(mesh, P("x"))
found = {}


def own(array):
    return np.asarray(array.addressable_shards[0].data).tolist()


def message(call):
    try:
        return str(call())
    except errors.InfiniError as error:
        return f"{type(error).__name__}: {error}"


x = np.ones((count, 2), np.float32)
x[1, 0] = np.nan
for name, reduce in {"max": lambda a: a.max(0), "min": lambda a: a.min(0)}.items():
    found[name] = str(own(inf.shard(reduce, mesh=mesh, in_specs=P("x"))(x)))

whole = np.arange(4, dtype=np.int32)
found["whole given"] = own(inf.make_array_from_process_local_data(rows, whole, (4,)))
found["part given"] = own(inf.make_array_from_process_local_data(rows, whole[2 * me : 2 * me + 2], (4,)))
found["neither"] = message(lambda: inf.make_array_from_process_local_data(rows, whole[:3], (4,)))
with inf.config(check=1):
    found["different"] = message(lambda: inf.device_put(whole + me, NamedSharding(mesh, P())))
first = Mesh(np.array(inf.devices()[:1]), ("x",))
made = inf.make_array_from_callback((4,), NamedSharding(first, P()), lambda i: whole, np.int32)
found["moved"] = message(lambda: inf.device_put(made, NamedSharding(mesh, P())))
found["no dtype"] = message(lambda: inf.make_array_from_callback((4,), made.sharding, lambda i: whole))

square = inf.shard(lambda a: (a * a).sum(), mesh=mesh, in_specs=P("x"))


def tenfold_sum(a):
    return 10 * a.sum()


tenfold = inf.shard(tenfold_sum, mesh=mesh, in_specs=P("x"))
y = inf.device_put(np.ones(2 * count, np.float32), rows)
square(y), tenfold(y)
first, second = (square, tenfold) if me == 0 else (tenfold, square)
found["order"] = message(lambda: first(y))
found["afterwards"] = float(square(y))
inside, go_on = threading.Event(), threading.Event()


def wait(value):
    inside.set()
    go_on.wait()
    return np.float32(1)


slow = inf.shard(lambda a: io_callback(wait, inf.ShapeDtypeStruct((), np.float32), a.sum()) * a.sum(),
                 mesh=mesh, in_specs=P("x"))
thread = threading.Thread(target=lambda: found.update(slow=float(slow(y))))
thread.start()
if me == 0:  # where the callback runs
    inside.wait()
    found["two threads"] = message(lambda: square(y))
    go_on.set()
thread.join()


def broken(value):
    if me == 0 and float(value) > 10:
        raise ValueError("boom")
    return np.float32(1)


called = inf.shard(lambda a: a.sum() * io_callback(broken, inf.ShapeDtypeStruct((), np.float32), a.sum()),
                   mesh=mesh, in_specs=P("x"))
called(y)
larger = y * 10


def keep():
    with open(os.path.join(os.environ["FOUND"], str(me)), "w") as file:
        json.dump(found, file)


if me == 1:  # which waits for the other in vain, from here on
    keep()
try:
    called(larger)
except Exception as error:
    found["left"] = type(error).__name__
found["after"] = message(lambda: square(y))
keep()
os._exit(0)
"""


@pytest.fixture(scope="module")
def job(mpirun_path: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("found")
    settings = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "FOUND": str(folder)}
    settings |= {"INFINI_DEVICE": "reference", "INFINI_CPU_DEVICES": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [mpirun_path, "-n", "2", sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **settings}
    )
    assert all((folder / str(i)).exists() for i in range(2)), done.stderr
    return [json.loads((folder / str(i)).read_text()) for i in range(2)]


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
class TestJob:
    def test_maxima_keep_what_is_not_a_number_in_every_process(self, job: list[dict[str, Any]]) -> None:
        for found in job:
            assert found["max"] == found["min"] == "[nan, 1.0]"

    def test_of_the_whole_each_process_takes_its_part(self, job: list[dict[str, Any]]) -> None:
        for me, found in enumerate(job):
            assert found["whole given"] == found["part given"] == [2 * me, 2 * me + 1]
            assert "2 elements for the devices of this process, or all 4" in found["neither"]

    def test_processes_put_equal_arrays(self, job: list[dict[str, Any]]) -> None:
        for found in job:
            assert found["different"].startswith("CollectiveError: device_put: the processes of this job put")
            assert "process 1 has another than process 0" in found["different"]

    def test_arrays_of_other_processes_cannot_be_moved(self, job: list[dict[str, Any]]) -> None:
        for found in job:
            assert found["moved"].startswith(
                "DeviceError: an array cannot be moved to processes that have no"
            )
        assert "cannot know the dtype" in job[1]["no dtype"]

    def test_programs_in_another_order_are_told(self, job: list[dict[str, Any]]) -> None:
        for me, found in enumerate(job):
            assert "run their programs in different orders" in found["order"]
            assert f"process {1 - me} runs {['<lambda>', 'tenfold_sum'][1 - me]}" in found["order"]
            assert found["afterwards"] == 4

    def test_two_threads_are_refused(self, job: list[dict[str, Any]]) -> None:
        assert "two threads run programs over several processes at once" in job[0]["two threads"]
        assert [found["slow"] for found in job] == [4, 4]

    def test_nothing_runs_after_a_program_that_ended_in_the_middle(self, job: list[dict[str, Any]]) -> None:
        assert job[0]["left"]
        assert "no longer in step" in job[0]["after"] and "boom" in job[0]["after"]


@pytest.mark.multi
def test_a_launcher_of_another_mpi_is_named(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "HYDRA"))}
    code = "import infini.parallel as parallel; parallel.initialize()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**kept, "OMPI_COMM_WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "MPI does not know them" in done.stderr and "OMPI_COMM_WORLD_SIZE=2" in done.stderr
