"""The examples run, at sizes that take seconds, and do what they say."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import infini as inf
from infini.core import tree
from infini.llm.models import registry
from infini.parallel import schedules
from tests.llm.engine.conftest import make_checkpoint, write_folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_are_told_apart() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    assert _load("digits_mlp").main(epochs=3) > 0.9


def test_the_recurrent_network_learns_to_remember() -> None:
    example = _load("recurrent_network")
    assert example.main(steps=180, length=6, width=16) < 0.05


def test_gradients_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    error, off = _load("custom_gradient").main()
    assert error == 0.0
    assert off < 1e-6
    assert "as it is: [0.0, 0.0, 0.0], squared error 121.0" in capsys.readouterr().out


def test_the_gpt_learns_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    losses = _load("gpt_from_scratch").main(steps=30, num_written=20)
    assert losses[-1] < losses[0] - 1.0
    assert len(capsys.readouterr().out.partition("writes:\n")[2]) == 20


def test_the_pipeline_learns_as_the_schedule_says() -> None:
    losses, step = _load("pipeline").main(steps=4)
    assert losses[-1] < losses[0] - 0.3
    simulated = schedules.simulate(step.schedule)
    assert step.record.timeline.peak_activations == simulated.peak_activations == (4, 3, 2, 1)


@pytest.mark.parametrize("axes", [{"dp": 2, "tp": 2}, {"zero1": 2}, {"fsdp": 4, "tp": 2}], ids=str)
def test_a_gpt_over_a_mesh_has_the_losses_of_one_device(axes: dict[str, int]) -> None:
    example = _load("train_parallel")
    alone = example.main({"dp": 1}, steps=3)
    assert example.main(axes, steps=3) == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < alone[0] - 0.2


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
def test_a_gpt_over_processes_has_the_losses_of_one(mpirun_path: str) -> None:
    command = [mpirun_path, "-n", "4", sys.executable, str(EXAMPLES / "train_parallel.py"), "--steps", "2"]
    paths = {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | paths)
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r"^step \d+: loss (.*)$", done.stdout, re.MULTILINE)]
    alone = _load("train_parallel").main({"dp": 1}, steps=2)
    assert losses == pytest.approx(alone, abs=1e-4)  # four digits are printed


def test_the_language_model_learns_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    with inf.config(cache_dir=str(tmp_path / "cache")):
        before, after = _load("language_model").main(
            steps=20,
            vocab_size=300,
            paths=[EXAMPLES],
            out=tmp_path / "model",
            head_dim=8,
            max_length=128,
            **sizes,
        )
    assert after < before
    assert "tokens/s" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_many_prompts_run_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    stats = _load("offline_batch").main(num_copies=2, max_tokens=6)
    assert stats.num_steps < stats.generation_tokens / 3
    assert stats.prefix_cache_hits > stats.prefix_cache_queries / 2
    assert "likeliest of 3 answers" in capsys.readouterr().out


def test_a_model_of_ones_own_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    example = _load("add_model")
    before = list(registry._FAMILIES)
    try:
        assert len(example.main(steps=6)) == 11
    finally:
        registry._FAMILIES[:] = before
    assert "cohere: 2 blocks" in capsys.readouterr().out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with random weights, and one that mostly agrees with it."""
    place = tmp_path_factory.mktemp("models")
    large = make_checkpoint(3)
    random = np.random.default_rng(0)
    small = dataclasses.replace(
        large,
        params=tree.map(
            lambda leaf: (
                np.asarray(leaf) * (1 + 0.02 * random.standard_normal(leaf.shape)).astype(np.float32)
            ),
            large.params,
        ),
    )
    return write_folder(place / "large", large), write_folder(place / "small", small)


TINY = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "enforce_eager": True}


@pytest.mark.parametrize("has_draft", [True, False])
def test_guesses_change_no_answer(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], has_draft: bool
) -> None:
    large, small = folders
    draft = small if has_draft else None
    plain, guessed, stats = _load("speculative").main(large, draft, max_tokens=12, **TINY)
    assert guessed == plain
    assert (stats.spec_num_accepted_tokens > 5) == has_draft
    assert "3 of 3 answers are equal" in capsys.readouterr().out


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
def test_a_model_on_two_processes_answers_as_on_one(mpirun_path: str, folders: tuple[Path, Path]) -> None:
    path = str(EXAMPLES / "tensor_parallel_serving.py")
    command = [mpirun_path, "-n", "2", sys.executable, path, str(folders[0]), "--max-tokens", "6"]
    paths = {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | paths)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ tokens in \d+ steps$", done.stdout, re.MULTILINE)
    alone = _load("tensor_parallel_serving").main(folders[0], max_tokens=6, **TINY)
    for text in alone:
        assert repr(text) in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short_and_public(name: str) -> None:
    """A page or two each, and no name of infini that begins with an underscore or lies in a private layer."""
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) <= (60 if name == "gpt_from_scratch" else 120)
    imported = [line for line in lines if re.match(r"(from|import) infini", line)]
    layers = r"infini\.(core|transforms|compiler|backends)\b|\b_\w"
    # The client of a server knows nothing of infini.
    assert bool(imported) != (name == "openai_client")
    assert not [line for line in imported if re.search(layers, line)]


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert len(NAMES) == 12 and all(f"`{name}.py`" in page for name in NAMES)
    assert len(page.splitlines()) <= 24
