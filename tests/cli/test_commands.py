"""The commands, on a tiny corpus."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import infini as inf
from infini.cli import app, demo, machine
from infini.core import backend, errors
from infini.train import configuration, gpt, model_files, options, step

TINY = """
[model]
vocab_size = 280
hidden_size = 16
intermediate_size = 24
num_layers = 1
num_heads = 2
num_kv_heads = 1
[run]
steps = 3
batch_size = 2
length = 16
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for index in range(8):
        (folder / f"m{index}.py").write_text(f"def function_{index}(x):\n    return x + {index}\n" * 20)
    return folder


@pytest.fixture(scope="module")
def config(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "run.toml").write_text(f"{TINY}[data]\npaths = ['{text}']\ncache = '{folder / 'cache'}'\n")
    return folder / "run.toml"


def _run(*arguments: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("out") / "run"
    return out, _run("train", "--config", config, "--out", out)


def test_train_fills_the_folder_of_a_run(trained: tuple[Path, Result], config: Path) -> None:
    out, result = trained
    assert result.exit_code == 0, result.output
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "config.toml",
        "metrics.jsonl",
        *(
            f"checkpoints/step-00000003/{name}"
            for name in ("config.toml", "index.msgpack", "part-00000.safetensors")
        ),
        *(
            f"model/{name}"
            for name in (
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            )
        ),
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "step", "step", "step", "end"]
    assert configuration.read(out / "config.toml") == configuration.read(config)


def test_train_shows_losses_beside_the_entropy(trained: tuple[Path, Result]) -> None:
    _, result = trained
    for words in ("held-out loss before", "held-out loss after", "unigram entropy", "tokens/s", "made now"):
        assert words in result.output


def test_train_spoils_no_folder(trained: tuple[Path, Result], config: Path, tmp_path: Path) -> None:
    out, _ = trained
    again = _run("train", "--config", config, "--out", out)
    assert again.exit_code == 1 and "already holds a run" in again.output
    (tmp_path / "mine.txt").write_text("precious")
    refused = _run("train", "--config", config, "--out", tmp_path)
    assert refused.exit_code == 1 and "mine.txt" in refused.output
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_train_goes_on_with_a_run(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _run("train", "--config", config, "--out", out, "--steps", 2).exit_code == 0
    result = _run("train", "--out", out, "--resume", "--steps", 4)
    assert result.exit_code == 0, result.output
    assert "run.steps changes from 2 to 4" in result.output and "found from an earlier run" in result.output
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 0, 1, 2, 3, None]
    assert configuration.read(out / "config.toml").run.steps == 4


def test_train_says_which_checkpoint_cannot_be_used(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--set", "run.checkpoint_every=1"]
    assert _run("train", "--config", config, "--out", out, *options).exit_code == 0
    part = out / "checkpoints" / "step-00000003" / "part-00000.safetensors"
    part.write_bytes(b"")
    result = _run("train", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert "step-00000003 is passed by: part-00000.safetensors is damaged" in result.output
    assert part.stat().st_size > 0


def test_train_starts_from_a_model(trained: tuple[Path, Result], config: Path, tmp_path: Path) -> None:
    """Its sizes and its tokenizer are taken, whatever the configuration says about them."""
    first, out = trained[0] / "model", tmp_path / "run"
    changes = ["--set", f"model.start_from={first}", "--set", "model.num_layers=7"]
    result = _run("train", "--config", config, "--out", out, *changes)
    assert result.exit_code == 0, result.output
    before, after = model_files.load(first), model_files.load(out / "model")
    assert after.config == before.config
    assert after.tokenizer.to_json() == before.tokenizer.to_json()
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (trained[0], out)]
    assert json.loads(lines[1][0])["held_out_loss"] == pytest.approx(
        json.loads(lines[0][-1])["held_out_loss"]
    )
    assert _run("train", "--out", out, "--resume").exit_code == 0


def test_print_config_is_a_configuration(config: Path) -> None:
    result = _run(
        "train", "--print-config", "--config", config, "--set", "run.seed=5", "--data", "a b", "--steps", 9
    )
    found = options.build(configuration.Configuration, tomllib.loads(result.stdout), "standard output")
    assert (found.run.seed, found.run.steps, found.data.paths) == (5, 9, ("a b",))
    assert found.model == configuration.read(config).model


def test_generate_continues_the_prompt(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    result = _run("generate", out / "model", "-p", "def é(", "--max-new-tokens", 4, "--temperature", 0)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("def é(")
    assert "tokens/s" in result.stderr


def test_generate_takes_the_prompt_from_a_file_or_standard_input(
    trained: tuple[Path, Result], tmp_path: Path
) -> None:
    out, _ = trained
    (tmp_path / "prompt.txt").write_text("def é(")
    common = ("generate", out, "-n", 4, "--temperature", 0)
    texts = [
        _run(*common, "-p", "def é(").stdout,
        _run(*common, "--prompt-file", tmp_path / "prompt.txt").stdout,
        _run(*common, typed="def é(").stdout,
    ]
    assert texts[0] == texts[1] == texts[2]


def test_generate_depends_on_the_seed_only(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    texts = [_run("generate", out, "-p", "x", "-n", 8, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generate_ends_at_a_text(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    whole = _run("generate", out, "-p", "x", "-n", 12).stdout.removesuffix("\n")
    stop = whole[5:7]
    ended = _run("generate", out, "-p", "x", "-n", 12, "--stop", "never", "--stop", stop).stdout
    assert ended == whole[: whole.index(stop, 1)] + "\n"


def test_generate_samples_as_the_folder_says(trained: tuple[Path, Result], tmp_path: Path) -> None:
    model = model_files.load(trained[0] / "model")
    model_files.save(tmp_path / "greedy", replace(model, generation={"top_k": 1}))
    texts = [
        _run("generate", tmp_path / "greedy", "-p", "x", "-n", 8, "--seed", seed).stdout for seed in (1, 2)
    ]
    assert texts[0] == texts[1]


def test_generate_without_a_prompt_starts_a_document(trained: tuple[Path, Result]) -> None:
    assert _run("generate", trained[0], "-n", 3, typed="").exit_code == 0


def test_generate_computes_in_the_dtype_asked_for(trained: tuple[Path, Result]) -> None:
    result = _run("generate", trained[0], "-p", "x", "-n", 3, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "x", "--prompt-file", "y"], "two prompts"),
        (["--prompt-file", "missing"], "cannot be read"),
        (["-p", "x", "--stop", ""], "cannot end"),
        (["-p", "x", "-n", "5000"], "longer than the model"),
        (["-p", "x", "--top-p", "0"], "top_p"),
        (["-p", "x", "--temperature", "-1"], "temperature"),
    ],
)
def test_generate_names_what_is_wrong(trained: tuple[Path, Result], arguments: list[str], words: str) -> None:
    result = _run("generate", trained[0], *arguments)
    assert result.exit_code == 1
    assert words in result.output and "Traceback" not in result.output


def test_errors_are_one_panel(tmp_path: Path) -> None:
    result = _run("generate", tmp_path / "missing", "-p", "x")
    assert result.exit_code == 1
    assert "there is no model" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "missing"],
        ["--steps", "1", "--seconds", "1"],
        ["--set", "optimizer.learning_rate=-1"],
        ["--set", "optimizer.learning_rat=1"],
        ["--set", "model.hidden_size=30"],
        ["--set", "model.num_heads=3", "--set", "model.hidden_size=24"],
        ["--set", "model.qk_norm=true", "--set", "model.mlp_bias=true"],
        ["--set", "model.start_from=missing"],
        ["--set", "data.tokenizer=missing"],
        ["--config", "missing.toml"],
        ["--resume"],
    ],
)
def test_wrong_options_fail_before_anything_is_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run("train", *arguments)
    assert result.exit_code == 1, result.output
    assert "error" in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_a_panel(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _run("train", "--config", config, "--out", tmp_path / "file" / "run")
    assert result.exit_code == 1
    assert "the system refused" in result.output and "Traceback" not in result.output


def test_a_reader_that_goes_away_is_no_error(trained: tuple[Path, Result]) -> None:
    command = [sys.executable, "-m", "infini", "generate", str(trained[0]), "-p", "x", "-n", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert "Traceback" not in process.stderr.read()
    assert process.wait() == 1


def test_demo_trains_and_continues_a_prompt(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = options.build(configuration.Configuration, tomllib.loads(TINY), "test")
    tiny = options.override(tiny, ["run.steps=none", f"data.cache={tmp_path / 'cache'}"])
    monkeypatch.setattr(demo, "CONFIGURATION", tiny)
    monkeypatch.setattr("infini.data.files.standard_library", lambda: text)
    result = _run(
        "demo", "--out", tmp_path / "model", "--seconds", 0.1, "-p", "def f(", "--max-new-tokens", 4
    )
    assert result.exit_code == 0, result.output
    assert "def f(" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.metrics.jsonl", "cache"}
    assert (tmp_path / "model" / "config.json").exists()
    # The last step: the folder is served by a process of its own, asked once, and stopped.
    assert "/v1/chat/completions" in result.output
    assert "the server has ended with status 0" in result.output


def test_demo_replaces_its_own_folder_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    refused = _run("demo", "--out", tmp_path, "--seconds", 0.1)
    assert refused.exit_code == 1
    assert "mine.txt" in refused.output


def test_the_defaults_are_those_of_the_demo() -> None:
    assert gpt.Config() == demo.CONFIGURATION.model.to_gpt()
    shapes = inf.eval_shape(lambda: gpt.init(inf.random.PRNGKey(0), gpt.Config()))
    assert 5e6 < step.num_parameters(shapes) < 10e6


def test_devices_marks_the_default() -> None:
    result = _run("devices")
    assert result.exit_code == 0
    assert "default" in result.output and "float32 lanes" in result.output
    found = json.loads(_run("devices", "--json").stdout)
    assert [row["device"] for row in found["devices"] if row["is_default"]] == [str(inf.devices()[0])]
    names = {row["device"].partition(":")[0] for row in found["devices"]}
    assert names | {row["backend"] for row in found["unavailable"]} == set(backend.names())


def test_doctor_says_what_there_is_and_what_is_missing(tmp_path: Path) -> None:
    with inf.config(cache_dir=str(tmp_path / "cache")):
        result = _run("doctor")
    assert result.exit_code == 0, result.output
    for words in ("cores", "threads", "caches", "LLVM", "MPI", "cuda", "compile and run", "good"):
        assert words in result.output
    with inf.config(cache_dir=str(tmp_path / "cache")):
        found = json.loads(_run("doctor", "--json").stdout)
    assert found["processor"]["threads"] >= 1 and found["memory"]["total"] > 1 << 28
    assert found["packages"]["numpy"] == np.__version__
    assert set(found["backends"]) == set(backend.names())
    assert all(check["is_good"] for check in found["checks"])


def test_doctor_fails_when_a_check_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing() -> str:
        raise errors.ValueMismatchError("everything is off by one")

    monkeypatch.setitem(machine._CHECKS, "right numbers", failing)
    with inf.config(cache_dir=str(tmp_path / "cache")):
        result = _run("doctor")
    assert result.exit_code == 1
    assert "FAILS" in result.output and "off by one" in result.output


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
