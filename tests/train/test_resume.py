"""A run that is killed and resumed ends as one that was not, with equal bits in weights and measurements."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from infini import io
from infini.train import trainer

CONFIG = """
[model]
vocab_size = 270
hidden_size = 16
intermediate_size = 24
num_layers = 1
num_heads = 2
num_kv_heads = 1
[data]
paths = ["{folder}/text"]
cache = "{folder}/cache"
[run]
steps = {steps}
batch_size = 2
length = 16
evaluate_every = 4
evaluation_windows = 4
checkpoint_every = 3
keep_checkpoints = 2
"""

# Forks a process that trains and kills itself at the given call of a function that puts something on disk,
# then one that resumes, and so on; the last one is left alone. Nothing is computed before a fork.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from infini.train import configuration, runs

    folder, deadly = Path(sys.argv[1]), [int(number) for number in sys.argv[2:]]
    chosen = configuration.read(folder / "run.toml")
    places = runs.Places.of_run(folder / "killed")

    def killed_at(number):
        left = [number]
        def counted(function):
            def call(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)
            return call
        Path.rename, os.fsync = counted(Path.rename), counted(os.fsync)

    for number in [*deadly, 0]:
        if (child := os.fork()) == 0:
            killed_at(number)
            runs.run(chosen, places, is_resumed=places.config.is_file())
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(os.WTERMSIG(status), os.WEXITSTATUS(status))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, a configuration, and a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "text").mkdir()
    for number in range(8):
        (folder / "text" / f"{number}.py").write_text(f"def function_{number}(x): return x + {number}\n" * 30)
    (folder / "run.toml").write_text(CONFIG.format(folder=folder, steps=14))
    done = _train(folder, "straight").wait()
    assert done == 0
    return folder


def _train(folder: Path, out: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "infini", "train", "--out", str(folder / out)]
    if "--resume" not in options:
        command += ["--config", str(folder / "run.toml")]
    with (folder / f"{out}.log").open("ab") as log:
        return subprocess.Popen([*command, *options], stderr=log, stdout=log)


def _lines(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in trainer.TIMES} for line in lines]


def _assert_equal_runs(found: Path, expected: Path) -> None:
    assert _lines(found) == _lines(expected)
    for file in ("model/model.safetensors", "checkpoints/step-00000014/part-00000.safetensors"):
        ours, theirs = io.read_tensors(found / file), io.read_tensors(expected / file)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    assert {path.name for path in (found / "checkpoints").iterdir()} == {"step-00000012", "step-00000014"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_killed_while_it_writes_is_the_same_in_the_end(folder: Path) -> None:
    """A checkpoint takes about a dozen such calls; the numbers reach from the configuration to the model."""
    deadly = ["2", "9", "13", "22", "17"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), *deadly], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == ["9 0"] * len(deadly) + ["0 0"], done.stderr
    _assert_equal_runs(folder / "killed", folder / "straight")


def test_a_run_killed_at_any_moment_is_the_same_in_the_end(folder: Path, rng: np.random.Generator) -> None:
    process = _train(folder, "random")
    time.sleep(rng.uniform(0.2, 1.2))  # from the start of Python to about the end of the run
    process.kill()
    process.wait()
    resume = ["--resume"] if (folder / "random" / "config.toml").is_file() else []
    assert _train(folder, "random", *resume).wait() == 0, (folder / "random.log").read_text()
    _assert_equal_runs(folder / "random", folder / "straight")


def test_an_interrupted_run_says_how_to_go_on_and_is_the_same_in_the_end(folder: Path) -> None:
    out = "interrupted"
    process = _train(folder, out, "--set", "run.checkpoint_every=1000")
    metrics = folder / out / "metrics.jsonl"
    while not (metrics.is_file() and b'"step"' in metrics.read_bytes()):
        assert process.poll() is None, (folder / f"{out}.log").read_text()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    status = process.wait()
    log = (folder / f"{out}.log").read_text()
    if status == 130:  # it was not faster than the signal
        assert f"--out {folder / out} --resume" in log and "finishing the step" in log
        assert (folder / out / "model" / "config.json").is_file()
        assert _lines(folder / out)[-1]["event"] == "step"
    assert _train(folder, out, "--resume", "--set", "run.checkpoint_every=3").wait() == 0
    assert _lines(folder / out) == [
        line | ({"settings": line["settings"] | {"checkpoint_every": 1000}} if "settings" in line else {})
        for line in _lines(folder / "straight")
    ]
