"""Jobs of two processes that are killed, or run out of space, while they write a checkpoint.

The processes are forks of one small script that talk by sockets, as the ranks of mpirun do by MPI; a process
whose peer is gone ends, as the launcher sees to there. Many jobs fit into a second that way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.parallel import jobs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

JOB = """
import os, resource, shutil, signal, socket, sys, threading, traceback
from pathlib import Path
import msgpack
import numpy as np
import infini as inf
from infini.core import comm, errors
from infini.parallel import checkpoints
from infini.parallel.checkpoints import notes, parts
from infini.sharding import NamedSharding, P, make_mesh

ROOT = Path(sys.argv[1])
CHANGING = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree",
            "tempfile.mkdtemp"}

class Line:
    '''What the ranks of a job say to each other: rank 0 collects and tells.'''
    def __init__(self, index, sockets):
        self.local_ranks, self.index, self.sockets = (index,), index, sockets
    def duplicate(self):
        return self
    def say(self, to, content):
        to.sendall(len(content).to_bytes(8, "little") + content)
    def hear(self, of):
        def exactly(count):
            data = b""
            while len(data) < count:
                more = of.recv(count - len(data))
                if not more:
                    os._exit(7)  # as mpirun ends a job one process of which is gone
                data += more
            return data
        return exactly(int.from_bytes(exactly(8), "little"))
    def broadcast(self, content):
        if self.index:
            return self.hear(self.sockets[0])
        for to in self.sockets:
            self.say(to, content)
        return content
    def gather_bytes(self, content):
        if self.index:
            self.say(self.sockets[0], content)
            return msgpack.unpackb(self.broadcast(b""))
        words = [content, *(self.hear(of) for of in self.sockets)]
        self.broadcast(msgpack.packb(words))
        return words

class Launcher:
    def __init__(self, line):
        self.line = line
    def comm(self, process_of_rank):
        return self.line

def job(work, count=2):
    '''Run work(index) in processes; gives how each ended.'''
    pairs = [socket.socketpair() for _ in range(count - 1)]
    children = []
    for index in range(count):
        if (child := os.fork()) == 0:
            status = 1
            try:
                mine = [a for a, _ in pairs] if index == 0 else [pairs[index - 1][1]]
                for pair in pairs:
                    for end in pair:
                        end in mine or end.close()
                comm.install_processes(comm.Processes(index, count, Launcher(Line(index, mine))))
                work(index)
                status = 0
            except errors.InfiniError as error:
                os.write(2, f"[{index}] {type(error).__name__}: {error}\\n".encode())
                status = 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    for pair in pairs:
        for end in pair:
            end.close()
    found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return found

def state(step, rows=8):
    mesh = make_mesh((2,), ("x",), devices=inf.devices("reference"))
    host = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 1000 * step
    place = lambda *spec: NamedSharding(mesh, P(*spec))
    make = lambda where: inf.make_array_from_callback(host.shape, where, lambda index: host[index])
    return {"rows": make(place("x")), "columns": make(place(None, "x")), "whole": make(place()), "step": step}

def check(folder, steps):
    '''In a process of its own: the newest checkpoint is one of these, and holds what was saved.'''
    def work(index):
        found = checkpoints.latest(folder)
        step = found.step if found else None
        assert step in steps, (step, steps)
        loaded = checkpoints.load(found, STATE)
        host = np.arange(32, dtype=np.float32).reshape(8, 4) + 1000 * step
        for name in ("rows", "columns", "whole"):
            np.testing.assert_array_equal(np.asarray(loaded[name]), host)
        assert int(loaded["step"]) == step
    work(0)

STATE = {"rows": np.zeros((8, 4), np.float32), "columns": np.zeros((8, 4), np.float32),
         "whole": np.zeros((8, 4), np.float32), "step": 0}

def dies_at(number):
    '''Kill this process at an operation on files; gives a function that says how many there were.'''
    done = [0]
    def count():
        done[0] += 1
        if done[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, arguments):
        if event in CHANGING and any(str(ROOT) in str(a) or isinstance(a, int) for a in arguments[:1]):
            count()
    sys.addaudithook(hook)
    def counted(function):
        def call(*arguments, **options):
            count()
            return function(*arguments, **options)
        return call
    os.fsync, parts._put = counted(os.fsync), counted(parts._put)
    return lambda: done[0]
"""


def _job(tmp_path: Path, body: str) -> tuple[str, str]:
    script = textwrap.dedent(JOB) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env=jobs.environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_job_killed_at_any_operation_leaves_what_loads(
    tmp_path: Path, victim: int, asynchronous: bool
) -> None:
    """Killed at its first operation on a file, at its second ... until it survives; a save after it works."""
    out, _ = _job(
        tmp_path,
        f"""
        assert job(lambda index: checkpoints.save(ROOT / "before", state(1), 1)) == [0, 0]
        number = 0
        outcomes = set()
        while True:
            number += 1
            folder = ROOT / "killed"
            shutil.copytree(ROOT / "before", folder)
            def work(index):
                tree = state(2)
                if index == {victim}:
                    dies_at(number)
                checkpoints.save(folder, tree, 2, keep=1, asynchronous={asynchronous}).wait()
            ended = job(work)
            check(folder, (2,) if ended == [0, 0] else (1, 2))
            outcomes.add((ended[{victim}], ended[1 - {victim}]))
            if ended == [0, 0]:
                break
            assert ended[{victim}] == -signal.SIGKILL, ended
            assert job(lambda index: checkpoints.save(folder, state(3), 3, keep=1)) == [0, 0]
            check(folder, (3,))
            assert [path.name for path in folder.iterdir()] == ["step-00000003"], list(folder.iterdir())
            shutil.rmtree(folder)
        print(number - 1, sorted(outcomes))
        """,
    )
    num_operations = int(out.split()[0])
    assert num_operations > (25 if victim == 0 else 4), out


def test_a_process_without_space_is_named_in_all(tmp_path: Path) -> None:
    out, err = _job(
        tmp_path,
        """
        assert job(lambda index: checkpoints.save(ROOT, state(1), 1)) == [0, 0]
        def work(index):
            tree = state(2, rows=4096)
            if index == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            pending = checkpoints.save(ROOT, tree, 2, asynchronous=True)
            checkpoints.save(ROOT, tree, 3)
        print(job(work))
        check(ROOT, (1,))
        print([path.name for path in ROOT.iterdir()])
        """,
    )
    assert out.splitlines() == ["[2, 2]", "['step-00000001']"]
    assert err.count("CheckpointWriteError: the checkpoint of step 2 could not be written") == 2
    assert err.count("File too large in process 1") == 2


def test_a_disk_that_holds_no_note_either_is_named_in_all(tmp_path: Path) -> None:
    """A process that cannot even say so in the folder says so when all meet."""
    out, err = _job(
        tmp_path,
        """
        def work(index):
            if index == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            checkpoints.save(ROOT, state(1), 1)
        print(job(work), list(ROOT.iterdir()))
        """,
    )
    assert out.splitlines() == ["[2, 2] []"]
    assert err.count("File too large in process 1") == 2


def test_processes_that_save_different_things_are_told(tmp_path: Path) -> None:
    out, err = _job(
        tmp_path,
        """
        print(job(lambda index: checkpoints.save(ROOT, state(1) | ({"more": 1} if index else {}), 1)))
        print(job(lambda index: checkpoints.save(ROOT, state(1), 1 + index)))
        print(job(lambda index: checkpoints.save(ROOT, {"w": object() if index else 1}, 1)))
        print(list(ROOT.iterdir()))
        """,
    )
    assert out.splitlines() == ["[2, 2]"] * 3 + ["[]"]
    assert err.count("the processes of this job save different things") == 4
    assert err.count("rows: f32[8,4] P('x') over Mesh(axis_sizes=(2,), axis_names=('x',)") == 2
    assert err.count("in process 0, more: i32[]") == 2
    assert err.count("step 1 in process 0, step 2 in process 1") == 2
    assert "process 1 could not begin a checkpoint" in err


def test_a_folder_that_not_all_see_is_named(tmp_path: Path) -> None:
    out, err = _job(
        tmp_path,
        """
        def work(index):
            if index == 1:
                notes.appears = lambda folder, patience_s: False
            checkpoints.save(ROOT / "disk", state(1), 1)
        print(job(work), list((ROOT / "disk").iterdir()))
        """,
    )
    assert out.splitlines() == ["[2, 2] []"]
    assert err.count("process 1 does not see the folder") == 2


def test_damage_that_one_process_finds_all_know(tmp_path: Path) -> None:
    out, err = _job(
        tmp_path,
        """
        assert job(lambda index: [checkpoints.save(ROOT, state(step), step) for step in (1, 2)]) == [0, 0]
        part = ROOT / "step-00000002" / "part-00001.safetensors"
        part.write_bytes(part.read_bytes()[:-1])
        def work(index):
            found = checkpoints.latest(ROOT, on_skip=lambda text: os.write(1, f"{text}\\n".encode()))
            assert found.step == 1
            checkpoints.load(ROOT / "step-00000002", state(1))
        print(job(work))
        """,
    )
    lines = out.splitlines()
    assert lines[2] == "[2, 2]" and lines[0] == lines[1]
    assert lines[0].startswith("step-00000002 is passed by: part-00001.safetensors is damaged: it has")
    assert err.count("CorruptFileError: the checkpoint step-00000002 is damaged") == 2


def test_a_job_loads_what_another_number_of_processes_saved(tmp_path: Path) -> None:
    out, _ = _job(
        tmp_path,
        """
        assert job(lambda index: checkpoints.save(ROOT, state(1), 1), count=2) == [0, 0]
        names = sorted(path.name for path in (ROOT / "step-00000001").iterdir())
        def work(index):
            mesh = make_mesh((4,), ("y",), devices=inf.devices("reference"))
            where = NamedSharding(mesh, P("y"))
            like = {name: inf.ShapeDtypeStruct((8, 4), "float32", sharding=where)
                    for name in ("rows", "columns", "whole")} | {"step": 0}
            loaded = checkpoints.load(ROOT, like)
            for name in ("rows", "columns", "whole"):
                (own,) = loaded[name].addressable_shards
                np.testing.assert_array_equal(np.asarray(own.data).ravel(), 1000 + 8 * index + np.arange(8))
            checkpoints.save(ROOT, loaded, 2)
        assert job(work, count=4) == [0] * 4
        print(*names, len(list((ROOT / "step-00000002").glob("part-*"))))
        saved = checkpoints.load(ROOT, STATE)
        print(float(saved["rows"].sum()), float(saved["columns"].sum()))
        """,
    )
    total = float(sum(range(32)) + 32_000)
    assert out.splitlines() == [
        "index.msgpack part-00000.safetensors part-00001.safetensors 4",
        f"{total} {total}",
    ]
