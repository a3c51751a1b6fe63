"""What happens to a job when one of its processes fails: it ends, and says which one, why, and where.

One `mpirun` per case; the scripts say little, because starting Python is most of what they cost.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.multi, pytest.mark.xdist_group("mpi")]

LIMIT_S = 30  # a job that failed has ended by then

HEAD = """
import os, signal, sys, threading, time
import numpy as np
import infini as inf, infini.numpy as inp, infini.parallel as parallel
from infini import lax
from infini.sharding import NamedSharding, P, make_mesh
parallel.initialize()
rank, count = parallel.process_index(), parallel.process_count()
mesh = make_mesh((count,), ("x",))
split = NamedSharding(mesh, P("x"))
x = inf.device_put(np.arange(4 * count, dtype=np.float32), split)
total = inf.jit(inf.shard_map(lambda x: lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()))
"""


@dataclass(frozen=True)
class Done:
    """A job that has ended."""

    code: int
    out: str
    err: str


def run(mpirun_path: str, folder: Path, body: str, *, count: int = 2, before: str = "", **knobs: str) -> Done:
    """Run a script under mpirun, from a file, so that errors show its lines."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(before) + HEAD + textwrap.dedent(body))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    environment = kept | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "INFINI_DEVICE": "reference",
        "INFINI_NUM_THREADS": "1",
        "COLUMNS": "160",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    environment |= {f"INFINI_{name.upper()}": text for name, text in knobs.items()}
    start = time.monotonic()
    done = subprocess.run(
        [mpirun_path, "-n", str(count), sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,
        env=environment,
    )
    assert time.monotonic() - start < LIMIT_S
    return Done(done.returncode, done.stdout, done.stderr)


# --- a process raises ------------------------------------------------------------------------


def test_an_error_names_its_process_and_the_collective_before_it(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        total(x)
        if rank == 1:
            raise RuntimeError("out of luck")
        total(x)
        """,
    )
    assert done.code != 0
    assert "RuntimeError: out of luck" in done.err and "Traceback" in done.err
    assert "process 1 of 2 ended the job by this error, after psum at script.py:12, number 1 of" in done.err


def test_an_error_inside_a_collective_names_it(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        from infini.backends.spmd import mpi
        def broken(*rest):
            raise OSError("the network is down")
        total(x)
        if rank == 1:
            mpi.MpiComm.all_reduce = broken
        total(x)
        """,
    )
    assert done.code != 0 and "OSError: the network is down" in done.err
    assert "process 1 of 2 ended the job by this error, in psum at script.py:12, number 2 of" in done.err


def test_an_error_in_a_thread_ends_the_job(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        def load():
            raise ValueError("no more files")
        if rank == 1:
            threading.Thread(target=load, name="loader").start()
            time.sleep(60)
        total(x)
        """,
    )
    assert done.code != 0 and "ValueError: no more files" in done.err
    assert "process 1 of 2 ended the job by this error, in its thread loader, before its first" in done.err


def test_an_error_of_a_command_names_its_process_and_collective(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        import typer
        from infini.cli import app
        def command():
            total(x)
            if rank == 1:
                x.reshape(3)
            total(x)
        app.command("broken")(command)
        app(["broken"])
        """,
    )
    assert done.code != 0
    assert "error in process 1, after psum at script.py:12, number 1 of processes 0, 1" in done.err
    assert "reshape" in done.err


# --- a process has another program -----------------------------------------------------------


def test_processes_with_other_programs_are_told_where_they_differ_and_can_go_on(
    mpirun_path: str, tmp_path: Path
) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        from infini.core import errors
        def attempt(case, body, x=x):
            function = inf.jit(inf.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P()))
            try:
                function(x)
            except errors.CollectiveError as error:
                os.write(1, f"<{rank} {case}>{error}</{rank} {case}>".encode())
        def longer(x):
            y = x * 2
            if rank == 1:
                y = inp.sin(y)
            return lax.psum(y, "x")
        attempt("equation", longer)
        numbers = np.arange(3.0) + rank
        attempt("constant", lambda x: lax.psum(x, "x").sum() + inp.asarray(numbers))
        attempt("scalar", lambda x: lax.psum(x * (rank + 0.5), "x"))
        wide = inf.device_put(np.zeros((count * (2 + rank), 3), np.float32), split)
        attempt("shape", lambda x: lax.psum(x.sum(), "x"), wide)
        with inf.config(no_fuse=bool(rank)):
            attempt("knob", lambda x: lax.psum(-x, "x"))
        assert float(total(x).sum()) == 28.0  # nothing was left in the way
        """,
    )
    assert done.code == 0, done.err

    def told(case: str) -> str:
        texts = [done.out.split(f"<{rank} {case}>")[1].split(f"</{rank} {case}>")[0] for rank in range(2)]
        assert texts[0] == texts[1]
        return texts[0]

    equation = told("equation")
    assert "run different programs over one mesh: they differ first in equation 2" in equation
    assert "process 0: %3: f32[4] = psum(" in equation and "at script.py:25" in equation
    assert "process 1: %3: f32[4] = sin(" in equation and "at script.py:24" in equation
    constant = told("constant")
    assert "a constant depends on the process" in constant
    assert "process 0: f32[3] = [0.0, 1.0, 2.0], used at script.py:28" in constant
    assert "process 1: f32[3] = [1.0, 2.0, 3.0], used at script.py:28" in constant
    scalar = told("scalar")
    assert "a constant depends on the process" in scalar and "0.5" in scalar and "1.5" in scalar
    assert "argument 0 has another type" in told("shape") and "f32[3,3]" in told("shape")
    assert "INFINI_NO_FUSE = True" in told("knob") and "set INFINI_NO_FUSE alike" in told("knob")


# --- a process is gone, or does not arrive ---------------------------------------------------

SOON = {"collective_timeout_s": "2"}


def assert_named_as_gone(done: Done, process: int) -> None:
    """By us, unless mpirun was faster: it ends the others at once, and then names the system's id itself."""
    assert done.code != 0
    identity = re.search(r"<(\d+)>", done.err)
    assert identity is not None
    by_us = f"infini.CollectiveError: process {process} of this job is gone" in done.err
    assert by_us or f"PID {identity.group(1)} RUNNING" in done.out + done.err, done


def test_a_killed_process_is_named(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        total(x)
        if rank == 1:
            time.sleep(1)
            os.write(2, f"<{os.getpid()}>".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        total(x)
        """,
    )
    assert_named_as_gone(done, 1)


def test_the_first_process_is_named_when_it_is_killed(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        total(x)
        if rank == 0:
            time.sleep(1)
            os.write(2, f"<{os.getpid()}>".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        total(x)
        """,
    )
    assert_named_as_gone(done, 0)


def test_a_sleeping_process_is_named_with_its_line_and_what_the_others_do(
    mpirun_path: str, tmp_path: Path
) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        total(x)
        if rank == 2:
            time.sleep(600)
        total(x)
        """,
        count=3,
        **SOON,
    )
    assert done.code != 0
    assert "[collective-waits] process 2 did not arrive at psum at script.py:12: process 0 has" in done.err
    assert "infini.CollectiveError: process 2 did not arrive at psum at script.py:12\n" in done.err
    report = done.err.split("infini.CollectiveError: ")[1]
    assert "process 0 has been in psum at script.py:12, called at script.py:17, for 2." in report
    assert report.count("number 3 of processes 0 to 2") == 2
    assert "process 2 is at script.py:16" in report


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named(mpirun_path: str, tmp_path: Path, stopped: int) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        f"""
        total(x)
        if rank == {stopped}:
            os.kill(os.getpid(), signal.SIGSTOP)
        total(x)
        """,
        **SOON,
    )
    assert done.code != 0
    assert f"process {stopped} did not arrive at psum at script.py:12, and does not answer" in done.err


def test_a_process_that_leaves_early_is_named_with_its_status_and_line(
    mpirun_path: str, tmp_path: Path
) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        total(x)
        def give_up():
            sys.exit(3)
        if rank == 1:
            give_up()
        total(x)
        """,
    )
    assert done.code != 0
    assert "process 1 has ended, and the others wait for it in psum at script.py:12" in done.err
    assert "process 1 has ended its program by sys.exit(3) at script.py:18" in done.err
    assert "process 1 left here:" in done.err and "in give_up" in done.err


def test_processes_in_other_collectives_are_shown(mpirun_path: str, tmp_path: Path) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        """
        last = inf.jit(inf.shard_map(
            lambda x: lax.all_gather(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False))
        longer = inf.jit(inf.shard_map(
            lambda x: lax.psum(x + 1, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()))
        total(x), last(x)
        if rank == 0:
            total(x)
        longer(x)
        """,
        **SOON,
    )
    assert done.code != 0
    assert "the processes wait for each other in different collectives" in done.err
    assert "process 0 has been in psum at script.py:12" in done.err
    assert "process 1 has been in the comparison of programs at script.py:17" in done.err


def test_processes_that_wait_for_one_that_never_joins_end_and_say_where(
    mpirun_path: str, tmp_path: Path
) -> None:
    done = run(
        mpirun_path,
        tmp_path,
        "",
        before="""
        import os, time
        if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
            time.sleep(600)
        """,
        **SOON,
    )
    assert done.code != 0
    assert "Timeout" in done.err and "in _wait_for_all_processes_to_start" in done.err
