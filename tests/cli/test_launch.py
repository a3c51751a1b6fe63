"""`infini train --processes N --max-restarts K`: who starts what; a killed process changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infini import cli, io
from infini.cli import launch
from infini.core import errors
from infini.parallel import processes
from infini.train import trainer

START, RESUME = ["train", "--steps", "9"], ["train", "--resume"]


class Runs:
    """Stands for the processes that are started: gives one status after another."""

    def __init__(self, *statuses: int, was_asked: bool = False) -> None:
        self.statuses, self.was_asked = list(statuses), was_asked
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> tuple[int, bool]:
        """Note the arguments of `infini`."""
        self.commands.append(list(command)[list(command).index("infini") + 1 :])
        return self.statuses.pop(0), self.was_asked


def supervised(
    monkeypatch: pytest.MonkeyPatch, runs: Runs, *, max_restarts: int, can_resume: bool = True
) -> int:
    monkeypatch.setattr(launch, "_run", runs)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return launch.supervise(
        START,
        RESUME,
        processes=1,
        max_restarts=max_restarts,
        can_resume=lambda: can_resume,
        newest=lambda: "from step-00000003",
    )


def test_a_run_that_ends_well_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(0)
    assert supervised(monkeypatch, runs, max_restarts=3) == 0
    assert runs.commands == [START]


def test_a_run_that_fails_goes_on_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(9, 137, 0)
    assert supervised(monkeypatch, runs, max_restarts=3) == 0
    assert runs.commands == [START, RESUME, RESUME]
    said = capsys.readouterr().err
    assert "ended with status 9 (SIGKILL): restart 1 of 3, from step-00000003" in said
    assert "ended with status 137 (SIGKILL): restart 2 of 3" in said


def test_restarts_are_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(1, 1, 7)
    assert supervised(monkeypatch, runs, max_restarts=2) == 7
    assert len(runs.commands) == 3 and "all 2 restarts are used" in capsys.readouterr().err


def test_a_run_that_never_began_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(1)
    assert supervised(monkeypatch, runs, max_restarts=2, can_resume=False) == 1
    assert "before there was anything to go on with" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "was_asked"), [(launch.INTERRUPTED, False), (1, True)])
def test_a_run_that_was_interrupted_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, status: int, was_asked: bool
) -> None:
    runs = Runs(status, was_asked=was_asked)
    assert supervised(monkeypatch, runs, max_restarts=2) == status
    assert len(runs.commands) == 1


def test_a_signal_goes_to_the_child_and_ends_the_supervision() -> None:
    child = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    before = signal.getsignal(signal.SIGTERM)
    assert launch._run([sys.executable, "-c", child]) == (128 + signal.SIGTERM, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_mpirun_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.DeviceError, match="there is no mpirun") as raised:
        processes.mpirun(2)
    assert "pip install infini[mpi]" in str(raised.value)


def test_inside_a_job_the_error_shows_the_command_without_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("COLUMNS", "200")
    command = ["train", "--out", "my run", "--steps", "5", "--processes", "2", "--max-restarts", "3"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 1
    expected = (
        "leave mpirun out: infini train --out 'my run' --set run.steps=5 --set run.seconds=none "
        "--processes 2 --max-restarts 3"
    )
    assert expected in done.stderr


# --- a killed process ------------------------------------------------------------------------

CONFIGURATION = """
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
steps = 60
batch_size = 4
length = 16
evaluate_every = 10
evaluation_windows = 4
checkpoint_every = 4
"""


def _train(folder: Path, out: str, *options: str) -> subprocess.Popen[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    environment |= {
        "INFINI_NUM_THREADS": "1",
        "COLUMNS": "160",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    command = [sys.executable, "-m", "infini", "train", "--config", str(folder / "run.toml")]
    command += ["--out", str(folder / out), "--processes", "2", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _lines(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in trainer.TIMES} for line in lines]


def _processes_of(run: Path) -> Iterator[tuple[int, int]]:
    """Number in the job, and id, of the processes of a run."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        found = re.search(rb"(?:^|\0)(?:PMI_RANK|OMPI_COMM_WORLD_RANK)=(\d+)", environment)
        if found and str(run).encode() in command and b"--processes" not in command:
            yield int(found.group(1)), int(entry.name)


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_process_killed_in_the_middle_of_training_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.py").write_text("def function(x): return x + 1\n" * 60)
    (tmp_path / "run.toml").write_text(CONFIGURATION.format(folder=tmp_path))
    straight = _train(tmp_path, "straight")
    _, said = straight.communicate(timeout=120)
    assert straight.returncode == 0, said

    killed, run = _train(tmp_path, "killed", "--max-restarts", "2", "--log-ranks", "all"), tmp_path / "killed"
    victims: list[int] = []
    while not (victims and list(run.glob("checkpoints/step-*"))) and killed.poll() is None:
        victims = victims or [process for number, process in _processes_of(run) if number == 1]
        time.sleep(0.002)
    for process in victims:
        os.kill(process, signal.SIGKILL)
    _, said = killed.communicate(timeout=120)
    assert victims and killed.returncode == 0, said

    assert "process 1 was gone first: killed, crashed" in said
    assert re.search(r"ended with status 9 \(SIGKILL\): restart 1 of 2, from step-000000\d\d", said), said
    assert "[1] " in said
    assert _lines(run) == _lines(tmp_path / "straight")
    ours, theirs = (
        io.read_tensors(out / "model" / "model.safetensors") for out in (run, tmp_path / "straight")
    )
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
