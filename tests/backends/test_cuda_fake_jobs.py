"""A GPU per process under mpirun, on stand-ins for CuPy and NCCL whose ranks meet through files; and what is
noted of exchanges that the host does not wait for.

One script runs under two processes and writes down what it found.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
import infini.numpy as inp
from infini import lax, parallel
from infini.backends import cuda
from infini.backends.accelerator import lookout
from infini.backends.spmd.activity import Activity, WatchedComm
from infini.backends.spmd.lockstep import LockstepComm
from infini.core import backend as backend_, errors, events, execute, ir
from infini.core.backend import CompileOptions
from infini.sharding import Collectives, NamedSharding, P, make_mesh
from infini.testing import collectives as counting
from tests.backends import fake_nccl
from tests.backends.fake_cupy import Machine

SCRIPT = """
import json, os, sys
sys.path[:0] = json.loads(os.environ["TESTED_PATHS"])
import infini.parallel as parallel
where = os.environ.get("COORDINATOR")
parallel.initialize(*([where, 2, int(os.environ["PROCESS"])] if where else []))
from tests.backends import test_cuda_fake_jobs
test_cuda_fake_jobs.run(os.environ["FOUND"])
"""
SIZE = 2
MODES = ("nccl", "host", "shared", "missing-in-one")
X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
SPECS = {"data": (P(), P("x")), "zero3": (P("x"), P("x"))}


def step(ws: Any, x: Any) -> Any:
    def loss(ws: Any) -> Any:
        y = x
        for w in ws:
            y = inp.tanh(y @ w)
        return (y * y).mean()

    value, gradients = inf.value_and_grad(loss)(ws)
    return (value, *(w - 0.1 * g for w, g in zip(ws, gradients, strict=True)))


def train(recipe: str) -> tuple[list[float], Any]:
    """Losses of two steps whose exchanges go on beside the rest, and what was counted."""
    mesh, (w_spec, x_spec) = make_mesh((SIZE,), ("x",)), SPECS[recipe]
    ws = [np.cos(np.arange(16, dtype=np.float32) + i).reshape(4, 4) for i in range(3)]
    program = inf.make_jaxpr(step)(ws, X)
    options = CompileOptions(mesh=mesh.abstract, collectives=Collectives(1, 1, 1))
    runner = execute.Runner(program, options)
    x = inf.device_put(X, NamedSharding(mesh, x_spec))
    losses = []
    with counting.count_collectives() as counts:
        for _ in range(2):
            ws = [inf.device_put(w, NamedSharding(mesh, w_spec)) for w in ws]
            value, *ws = runner([*ws, x])
            losses.append(float(value))
    return losses, [[*key, count.calls, count.nbytes] for key, count in sorted(counts.items())]


def moved() -> list[Any]:
    """Messages between the two, in a dtype that is added up by messages, too."""
    mesh = make_mesh((SIZE,), ("x",))

    def move(x: Any) -> Any:
        made = (
            lax.ppermute(x, "x", [(0, 1)]), lax.all_to_all(x, "x", 0, 1, tiled=True).reshape(x.shape),
            lax.psum(x, "x"), lax.axis_index("x"),
        )  # fmt: skip
        return made[0] + 2 * made[1] + 4 * made[2] + made[3].astype(x.dtype)

    mapped = inf.shard_map(move, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    y = inf.jit(mapped)(X.astype(inp.bfloat16))
    return np.asarray(inf.device_put(y, NamedSharding(mesh, P()))).astype(np.float32).tolist()


def run(folder: str) -> None:
    """What one process of the job does."""
    monkeypatch = pytest.MonkeyPatch()
    real, found = backend_.get, {}
    for mode in os.environ.get("MODES", " ".join(MODES)).split():
        machine = Machine()
        machine.capabilities = ("90",) * SIZE
        if mode == "shared":
            machine.bus_ids = {0: "0000:07:00.0", 1: "0000:07:00.0"}
        has_nccl = mode in ("nccl", "shared") or (mode == "missing-in-one" and parallel.process_index() == 0)
        library = fake_nccl.install(machine) if has_nccl else None
        machine.install(monkeypatch)
        made = cuda.CudaBackend()
        monkeypatch.setattr(backend_, "get", lambda name, made=made: made if name == "cuda" else real(name))
        execute.clear_caches()
        backend_.forget_default_device()
        with inf.config(device="cuda"), events.record() as told:
            found[mode] = {
                "devices": [str(device) for device in inf.devices()],
                "local": [str(device) for device in inf.local_devices()],
                "number": made.number(inf.local_devices()[0]),
                **{recipe: train(recipe) for recipe in SPECS},
                "moved": moved(),
                "joined": [] if library is None else library.joined,
                "calls": sum(event[0] == "nccl" for event in machine.events),
                "why": sorted({e.message for e in told if e.code == "exchanges-by-host"}),
            }
    (Path(folder) / str(parallel.process_index())).write_text(json.dumps(found))
    if "FAILS" in os.environ:
        machine = Machine()
        machine.capabilities = ("90",) * SIZE
        library = fake_nccl.install(machine)
        if os.environ["FAILS"] == str(parallel.process_index()):
            library.fails["allReduce"] = "unhandled system error"
        machine.install(monkeypatch)
        made = cuda.CudaBackend()
        execute.clear_caches()
        with inf.config(device="cuda"):
            train("data")


def settings(folder: Path) -> dict[str, str]:
    """The environment of the processes of a job."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    return kept | {
        "INFINI_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "FOUND": str(folder),
        "TESTED_PATHS": json.dumps([str(Path(__file__).resolve().parents[2]), *sys.path]),
        fake_nccl.FOLDER: str(folder / "nccl"),
    }


def start(mpirun_path: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [mpirun_path, "-n", str(SIZE), sys.executable, "-c", SCRIPT]
    environment = {**settings(folder), **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)


@pytest.fixture(scope="module")
def job(mpirun_path: str, tmp_path_factory: Any) -> Any:
    """What each process found."""
    folder = tmp_path_factory.mktemp("found")
    done = start(mpirun_path, folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / str(rank)).read_text()) for rank in range(SIZE)]


@pytest.fixture(scope="module")
def wanted() -> Any:
    execute.clear_caches()
    with inf.config(device="reference", cpu_devices=SIZE):
        return {**{recipe: train(recipe) for recipe in SPECS}, "moved": moved()}


def test_groups_are_made_over_any_communication_of_the_host(tmp_path: Path, wanted: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {**settings(tmp_path), "COORDINATOR": where, "MODES": "nccl"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**shared, "PROCESS": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(SIZE)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * SIZE, said
    for rank in range(SIZE):
        found = json.loads((tmp_path / str(rank)).read_text())["nccl"]
        assert found["joined"] == [[rank]] and found["calls"] > 0
        np.testing.assert_allclose(found["zero3"][0], wanted["zero3"][0], rtol=1e-5)


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
class TestJob:
    def test_each_process_has_the_gpu_of_its_number(self, job: Any) -> None:
        for rank, found in enumerate(job):
            assert found["nccl"]["devices"] == ["cuda:0", "cuda:1"]
            assert found["nccl"]["local"] == [f"cuda:{rank}"]
            assert found["nccl"]["number"] == rank
            assert found["nccl"]["joined"] == [[rank]]

    @pytest.mark.parametrize("mode", MODES)
    def test_training_is_that_of_devices_in_one_process(self, mode: str, job: Any, wanted: Any) -> None:
        for found in job:
            for recipe in SPECS:
                np.testing.assert_allclose(found[mode][recipe][0], wanted[recipe][0], rtol=1e-5)
                assert found[mode][recipe][1] == json.loads(json.dumps(wanted[recipe][1]))
            assert found[mode]["moved"] == wanted["moved"]

    def test_which_way_exchanges_go_is_the_same_in_every_process(self, job: Any) -> None:
        first, second = job
        assert first["nccl"]["calls"] == second["nccl"]["calls"] > 0
        assert first["nccl"]["why"] == second["nccl"]["why"] == []
        for mode in ("host", "shared", "missing-in-one"):
            assert first[mode]["calls"] == second[mode]["calls"] == 0
            assert first[mode]["why"] == second[mode]["why"]
            assert len(first[mode]["why"]) == 1
        assert "processes 0 and 1 share the device 0000:07:00.0" in first["shared"]["why"][0]
        assert "in process 1 on" in first["missing-in-one"]["why"][0]

    def test_a_failure_ends_the_job_with_the_operation_and_the_line(
        self, mpirun_path: str, tmp_path: Path
    ) -> None:
        done = start(mpirun_path, tmp_path, FAILS="1", MODES="")
        assert done.returncode != 0
        assert "psum over x failed: ncclAllReduce failed" in done.stderr
        assert "test_cuda_fake_jobs.py" in done.stderr and "process 1" in done.stderr


# --- what is noted of exchanges that the host does not wait for ----------------------------------------


class SlowDriver:
    """A stream whose work ends when it is told to."""

    def __init__(self) -> None:
        self.is_done = threading.Event()
        self.num_discarded = 0

    def record(self) -> int:
        return 1

    def has_happened(self, event: int) -> bool:
        return self.is_done.is_set()

    def discard(self, event: int) -> None:
        self.num_discarded += 1


def exchange() -> ir.Equation:
    """A psum at a line of this file."""
    mesh = make_mesh((2,), ("x",))
    add = inf.shard_map(lambda v: lax.psum(v, "x"), mesh=mesh, in_specs=P("x"), out_specs=P())
    (outer,) = inf.make_jaxpr(add)(X).equations
    return next(e for program in outer.programs for e in program.equations if e.op.name.startswith("psum"))


@pytest.fixture
def watched(monkeypatch: Any) -> Any:
    follower = lookout._Follower()
    monkeypatch.setattr(lookout, "_thread", lambda: follower)
    activity = Activity()
    with inf.config(device="reference", cpu_devices=2):
        return WatchedComm(LockstepComm(2), (0, 1), activity), activity, exchange()


def eventually(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(1e-3)


def test_an_exchange_is_among_the_collectives_of_its_process_until_it_ends(watched: Any) -> None:
    comm, activity, equation = watched
    first, second = SlowDriver(), SlowDriver()
    followed = lookout.Lookout(comm, lambda: None)
    followed.follow(equation, ((0, 1),), first)
    followed.follow(equation, ((0, 1),), second)
    eventually(lambda: activity.current)
    (entered,) = activity.current
    assert entered.op.startswith("psum") and "test_cuda_fake_jobs.py" in str(entered.where)
    assert entered.number == 1 and entered.group.processes == (0, 1)
    first.is_done.set()
    eventually(lambda: activity.current and activity.current[0].number == 2)
    second.is_done.set()
    eventually(lambda: second.num_discarded == 1 and not activity.current)
    assert activity.last is not None and activity.last.number == 2


def test_what_breaks_on_the_way_ends_the_thread_with_the_collective(watched: Any, monkeypatch: Any) -> None:
    comm, activity, equation = watched
    raised: list[Any] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda args: raised.append((args.exc_value, activity.place()))
    )

    def check() -> None:
        raise errors.CollectiveError("a collective of NCCL that was on its way failed")

    lookout.Lookout(comm, check).follow(equation, ((0, 1),), SlowDriver())
    eventually(lambda: raised)
    ((error, place),) = raised
    assert isinstance(error, errors.CollectiveError) and place.startswith("in psum")
