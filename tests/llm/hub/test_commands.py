"""`infini pull`, `infini models` and `infini tokenize`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import infini as inf
from infini.cli import app
from infini.io import gguf
from tests.llm.hub import fake
from tests.llm.text import vocabularies as v


@pytest.fixture(autouse=True)
def models_dir(tmp_path: Path) -> Iterator[Path]:
    with inf.config(models_dir=str(tmp_path / "models")):
        yield tmp_path / "models"


def _run(*words: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, list(words), input=typed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = "{{ messages[0].content }}<tool_call></think>"
    return v.write_folder(
        tmp_path_factory.mktemp("words"), v.byte_level(), eos_token="<|im_end|>", chat_template=template
    )


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tokenizer and next to no model."""
    path = tmp_path_factory.mktemp("gguf") / "small-Q8_0.gguf"
    metadata = {"general.architecture": "llama", "llama.context_length": 512, "llama.block_count": 2}
    tokens = v.gguf_metadata(v.sentencepiece(), pre=None)
    tokens["tokenizer.ggml.scores"] = np.array(tokens["tokenizer.ggml.scores"], np.float32)
    tokens["tokenizer.ggml.token_type"] = np.array(tokens["tokenizer.ggml.token_type"], np.int32)
    for name in ("bos", "eos", "unknown"):
        tokens[f"tokenizer.ggml.{name}_token_id"] = np.uint32(tokens[f"tokenizer.ggml.{name}_token_id"])
    gguf.write(path, metadata | tokens, [gguf.tensor("x", np.ones((2, 32), np.float32), "Q8_0")])
    return path


def test_a_text_as_tokens_and_back(folder: Path) -> None:
    shown = json.loads(_run("tokenize", str(folder), "naïve 🦉", "--json").stdout)
    assert shown["count"] == len(shown["tokens"]) == len(shown["token_strs"])
    ids = [str(id) for id in shown["tokens"]]
    assert _run("tokenize", str(folder), "--decode", *ids).stdout == "naïve 🦉\n"
    assert (
        json.loads(_run("tokenize", str(folder), "-d", ",".join(ids), "--json").stdout)["text"] == "naïve 🦉"
    )
    assert _run("tokenize", str(folder), "--count", "naïve 🦉").stdout == f"{shown['count']}\n"


def test_tokens_as_lines_from_standard_input(folder: Path) -> None:
    done = _run("tokenize", str(folder), "-", typed="hi\n")
    assert done.exit_code == 0
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["'h'", "'i'", "'\\n'"]
    assert "3 tokens, 3 bytes" in done.stderr


def test_tokens_of_a_gguf_file(gguf_file: Path) -> None:
    shown = json.loads(_run("tokenize", str(gguf_file), "the fox", "--json").stdout)
    assert (shown["tokens"][0], "".join(shown["token_strs"])) == (1, "<s> the fox")
    shown = json.loads(_run("tokenize", str(gguf_file), "the fox", "--json", "--no-special").stdout)
    assert shown["token_strs"][0] != "<s>"


def test_wrong_ids_and_models_are_named(folder: Path, tmp_path: Path) -> None:
    assert "an id is no number" in _run("tokenize", str(folder), "--decode", "1", "x").output
    assert "no model" in _run("tokenize", str(tmp_path / "nothing"), "x").output


def test_pull_shows_what_it_does_and_prints_the_place(hub: fake.Hub, models_dir: Path) -> None:
    done = _run("pull", "org/model")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{models_dir / 'org' / 'model'}\n"
    assert "3 files, 1.3 MB" in done.stderr and "config.json is here" in done.stderr
    assert "nothing to fetch" in _run("models", "pull", "org/model").stderr


def test_pull_takes_patterns_and_revisions(hub: fake.Hub) -> None:
    done = _run("pull", "org/model", "--include", "*.json", "--exclude", "tok*", "--exclude", "onnx/*")
    assert done.exit_code == 0 and "1 file, " in done.stderr
    done = _run("pull", "org/model", "--revision", "v2")
    assert done.exit_code == 1 and "no org/model at v2" in done.output
    done = _run("pull", "../model")
    assert done.exit_code == 1 and "no name of a model" in done.output


def test_models_are_listed_and_removed(hub: fake.Hub, gguf_file: Path) -> None:
    assert "infini pull" in _run("models", "list").stderr
    hub.files = {gguf_file.name: gguf_file.read_bytes()}
    _run("pull", "org/model:Q8_0")
    rows = json.loads(_run("models", "list", "--json").stdout)
    assert [(row["name"], row["variants"], row["where"]) for row in rows] == [
        ("org/model", ["Q8_0"], "store")
    ]
    assert "org/model" in _run("models", "list").stdout
    assert _run("models", "rm", "org/model", "-y").exit_code == 0
    assert json.loads(_run("models", "list", "--json").stdout) == []
    done = _run("models", "rm", "org/model")
    assert done.exit_code == 1 and "not in the store" in done.output


def test_a_model_is_described(folder: Path, gguf_file: Path) -> None:
    facts = json.loads(_run("models", "show", str(folder), "--json").stdout)
    assert facts["vocabulary"] == 425 and facts["ends_with"] == ["<|im_end|>"]
    assert (facts["tool_calls"], facts["reasoning"]) == ("hermes", "think")
    facts = json.loads(_run("models", "show", str(gguf_file), "--json").stdout)
    assert (facts["architecture"], facts["context_length"], facts["layers"]) == ("llama", 512, 2)
    done = _run("models", "show", str(gguf_file))
    assert done.exit_code == 0 and "512" in done.stdout and "small-Q8_0.gguf" in done.stdout
