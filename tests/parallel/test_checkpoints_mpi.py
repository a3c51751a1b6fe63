"""Checkpoints under mpirun: another number of processes loads, a killed run goes on as if nothing was."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

import infini as inf
from infini import io
from infini.parallel import checkpoints
from infini.sharding import NamedSharding, P, make_mesh
from infini.train import trainer
from tests.parallel import jobs

pytestmark = [pytest.mark.multi, pytest.mark.xdist_group("mpi")]

HEAD = """
import os, signal, sys
from pathlib import Path
import numpy as np
import infini as inf, infini.parallel as parallel
from infini.parallel import checkpoints
from infini.sharding import NamedSharding, P, make_mesh
parallel.initialize()
folder = Path(sys.argv[1])
rank, count = parallel.process_index(), parallel.process_count()
HOST = np.arange(12 * 24, dtype=np.float32).reshape(12, 24)
"""


def _mpirun(path: str, count: int, body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return jobs.run(path, count, "-c", HEAD + textwrap.dedent(body), str(folder), INFINI_DEVICE="cpu")


SAVE = """
mesh = make_mesh((2, 2), ("a", "b"))
place = lambda *spec: NamedSharding(mesh, P(*spec))
make = lambda where: inf.make_array_from_callback(HOST.shape, where, lambda index: HOST[index])
state = {"both": make(place("a", "b")), "rows": make(place("b")), "whole": make(place())}
negative = inf.jit(lambda tree: inf.tree.map(lambda x: -x, tree), donate_argnums=0)
pending = checkpoints.save(folder, state, {"step": 1, "rank": rank}, asynchronous=True)
after = negative(state)
assert pending.wait() == folder / "step-00000001"
checkpoints.save(folder, after, 2)
"""

LOAD = """
mesh = make_mesh((count,), ("x",))
for step, sign in ((1, 1), (2, -1)):
    for spec in (P("x"), P(None, "x"), P()):
        like = {name: inf.ShapeDtypeStruct((12, 24), "float32", sharding=NamedSharding(mesh, spec))
                for name in ("both", "rows", "whole")}
        for array in checkpoints.load(folder / f"step-{step:08}", like).values():
            (own,) = array.addressable_shards
            np.testing.assert_array_equal(own.data, sign * HOST[own.index])
found = checkpoints.latest(folder)
assert found.step == 2
os.write(1, f"{rank} of {count}\\n".encode())
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, mpirun_path: str) -> Path:
    """What four processes on a mesh of 2 by 2 saved: one beside a donating step, and what the step made."""
    folder = tmp_path_factory.mktemp("saved")
    done = _mpirun(mpirun_path, 4, SAVE, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_three_processes_load_what_four_saved(saved: Path, mpirun_path: str) -> None:
    done = _mpirun(mpirun_path, 3, LOAD, saved)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 of 3", "1 of 3", "2 of 3"]


def test_one_process_with_eight_devices_loads(saved: Path) -> None:
    host = np.arange(12 * 24, dtype=np.float32).reshape(12, 24)
    assert len(list((saved / "step-00000001").glob("part-*.safetensors"))) == 4
    with inf.config(cpu_devices=8):
        where = NamedSharding(make_mesh((4, 2), ("x", "y")), P("x", "y"))
        like = {
            name: inf.ShapeDtypeStruct((12, 24), "float32", sharding=where)
            for name in ("both", "rows", "whole")
        }
        found = checkpoints.load(saved / "step-00000001", like)
        for array in found.values():
            np.testing.assert_array_equal(array, host)
    assert checkpoints.latest(saved).position == {"step": 2}


CONFIG = """
[model]
vocab_size = 270
hidden_size = 16
intermediate_size = 24
num_layers = 1
num_heads = 2
num_kv_heads = 1
[data]
paths = ["{folder}/text.py"]
cache = "{folder}/cache"
[run]
steps = 8
batch_size = 4
length = 16
checkpoint_every = 2
keep_checkpoints = 2
"""

RUN = """
from infini.parallel.checkpoints import parts
from infini.train import configuration, runs

# The victim dies at the given piece of a checkpoint that it puts on disk.
put, left = parts._put, [VICTIM[1] if rank == VICTIM[0] else 0]
def counted(file, chunk):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    put(file, chunk)
parts._put = counted

places = runs.Places.of_run(folder / OUT)
is_resumed = places.config.is_file()
chosen = configuration.read(folder / "run.toml")
runs.run(chosen, places, is_resumed=is_resumed)
"""


def _lines(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in trainer.TIMES} for line in lines]


def test_a_run_whose_process_is_killed_is_the_same_in_the_end(tmp_path: Path, mpirun_path: str) -> None:
    (tmp_path / "text.py").write_text("def function(x): return x + 1\n" * 60)
    (tmp_path / "run.toml").write_text(CONFIG.format(folder=tmp_path))

    def run(out: str, victim: tuple[int, int]) -> int:
        body = f"VICTIM, OUT = {victim}, {out!r}\n" + RUN
        done = _mpirun(mpirun_path, 2, body, tmp_path)
        return done.returncode

    assert run("straight", (0, 0)) == 0
    assert run("killed", (1, 25)) != 0  # in the middle of the second checkpoint
    names = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert [name for name in names if name[0] != "."] == ["step-00000002"]
    assert [name.split(".")[1] for name in names if name[0] == "."] == ["step-00000004"]
    assert run("killed", (0, 0)) == 0
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    assert _lines(killed) == _lines(straight)
    ours, theirs = (io.read_tensors(folder / "model" / "model.safetensors") for folder in (killed, straight))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    for folder in (killed, straight):
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["step-00000006", "step-00000008"]
