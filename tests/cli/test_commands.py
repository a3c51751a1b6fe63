"""The commands, on a tiny corpus."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import infini as inf
from infini.cli import app, demo
from infini.train import gpt, step

TINY = [
    "--steps", "3", "--batch-size", "2", "--seq-len", "16", "--vocab-size", "280", "--layers", "1",
    "--hidden-size", "16", "--intermediate-size", "24", "--heads", "2", "--kv-heads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for index in range(8):
        (folder / f"m{index}.py").write_text(f"def function_{index}(x):\n    return x + {index}\n" * 20)
    return folder


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("out") / "model"
    return out, _run("train", "--data", text, "--out", out, *TINY)


def test_train_writes_a_model_folder_and_measurements(trained: tuple[Path, Result]) -> None:
    out, result = trained
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    lines = [json.loads(line) for line in (out.parent / "model.metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "step", "step", "step", "end"]


def test_train_shows_losses_beside_the_entropy(trained: tuple[Path, Result]) -> None:
    _, result = trained
    for words in ("held-out loss before", "held-out loss after", "unigram entropy", "tokens/s"):
        assert words in result.output


def test_train_replaces_its_own_folder_and_no_other(
    text: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    out, _ = trained
    assert _run("train", "--data", text, "--out", out, *TINY).exit_code == 0
    (tmp_path / "mine.txt").write_text("precious")
    refused = _run("train", "--data", text, "--out", tmp_path, *TINY)
    assert refused.exit_code == 1
    assert "mine.txt" in refused.output
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_generate_continues_the_prompt(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    result = _run("generate", out, "-p", "def é(", "--max-new-tokens", 4, "--temperature", 0)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("def é(")
    assert "tokens/s" in result.stderr


def test_generate_depends_on_the_seed_only(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    texts = [
        _run("generate", out, "-p", "x", "--max-new-tokens", 8, "--seed", seed).stdout for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_generate_without_a_prompt_starts_a_document(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    assert _run("generate", out, "--max-new-tokens", 3).exit_code == 0


def test_errors_are_one_panel(tmp_path: Path) -> None:
    result = _run("generate", tmp_path / "missing", "-p", "x")
    assert result.exit_code == 1
    assert "no model folder" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "missing"],
        ["train", "--steps", "1", "--seconds", "1"],
        ["train", "--lr", "-1"],
        ["train", "--hidden-size", "30", "--heads", "4"],
        ["train", "--heads", "3", "--kv-heads", "2", "--hidden-size", "24"],
    ],
)
def test_wrong_options_fail_before_anything_is_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments)
    assert result.exit_code == 1, result.output
    assert "error" in result.output
    assert list(tmp_path.iterdir()) == []


def test_demo_trains_and_continues_a_prompt(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gpt.Config(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
    )
    monkeypatch.setattr(demo, "CONFIG", config)
    monkeypatch.setattr("infini.data.corpus.standard_library", lambda: text)
    result = _run(
        "demo", "--out", tmp_path / "model", "--seconds", 0.1, "-p", "def f(", "--max-new-tokens", 4
    )
    assert result.exit_code == 0, result.output
    assert "def f(" in result.output
    assert (tmp_path / "model" / "config.json").exists()


def test_the_defaults_are_those_of_the_demo() -> None:
    assert gpt.Config() == demo.CONFIG
    shapes = inf.eval_shape(lambda: gpt.init(inf.random.PRNGKey(0), demo.CONFIG))
    assert 5e6 < step.num_parameters(shapes) < 10e6


def test_devices_marks_the_default() -> None:
    result = _run("devices")
    assert result.exit_code == 0
    assert "default" in result.output


def test_doctor_says_what_is_missing() -> None:
    result = _run("doctor")
    assert result.exit_code == 0
    assert "backend cuda" in result.output
    assert "a small program" in result.output


def test_version() -> None:
    assert _run("version").output == f"infini {inf.__version__}\n"


def test_python_m_infini_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infini", "version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"infini {inf.__version__}\n"


def test_the_command_loads_heavy_libraries_when_it_needs_them() -> None:
    code = "import infini.cli, sys; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    heavy = ["tokenizers", "safetensors", "llvmlite", "triton", "cupy", "sympy", "mpi4py"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
