"""Model folders: what is written is read, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from infini import io

FILES = io.ModelFiles(
    config={"hidden_size": 4},
    tensors={"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.ones(3, np.float16)},
    tokenizer='{"é": 1}',
    tokenizer_config={"bos_token": "<s>"},
    generation_config={"top_p": 0.5},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    io.write_model(tmp_path / "model", FILES)
    return tmp_path / "model"


def test_round_trip(folder: Path) -> None:
    read = io.read_model(folder)
    assert replace(read, tensors={}) == replace(FILES, tensors={})
    assert read.tensors.keys() == FILES.tensors.keys()
    for name, tensor in FILES.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read.tensors[name], tensor)


def test_bfloat16_round_trip(tmp_path: Path) -> None:
    tensor = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    io.write_model(tmp_path / "model", replace(FILES, tensors={"a": tensor}))
    read = io.read_model(tmp_path / "model").tensors["a"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, tensor)


def test_weights_in_several_files_are_read_together(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(FILES.tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert io.read_model(folder).tensors.keys() == FILES.tensors.keys()


def test_large_weights_are_spread_over_files(tmp_path: Path) -> None:
    io.write_model(tmp_path / "model", FILES, max_shard_bytes=24)
    names = {path.name for path in (tmp_path / "model").glob("*.safetensors")}
    assert names == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    read = io.read_model(tmp_path / "model").tensors
    assert {name: read[name].tolist() for name in read} == {n: t.tolist() for n, t in FILES.tensors.items()}
    io.write_model(tmp_path / "model", FILES)  # replaces the several files, too
    assert [path.name for path in (tmp_path / "model").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_weight_that_no_file_has_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys([*FILES.tensors, "c.weight"], "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(io.CorruptFileError, match=r"lacks c\.weight"):
        io.read_model(folder)


@pytest.mark.parametrize(
    ("missing", "instead", "words"),
    [
        ("model.safetensors", "pytorch_model.bin", "a pickle, which is never read"),
        ("tokenizer.json", "tokenizer.model", "save_pretrained"),
    ],
)
def test_other_formats_are_named_with_the_way_out(
    folder: Path, missing: str, instead: str, words: str
) -> None:
    (folder / missing).rename(folder / instead)
    with pytest.raises(io.MissingFileError, match=words):
        io.read_model(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(io.MissingFileError, match="no model folder"):
        io.read_model(tmp_path / "missing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(io.MissingFileError, match=f"{name} is missing"):
        io.read_model(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}']
)
def test_json_that_python_cannot_hold_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(io.CorruptFileError, match=r"config\.json is not"):
        io.read_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_cut_file_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(io.CorruptFileError, match=name):
        io.read_model(folder)


def test_a_failure_while_writing_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **options: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("safetensors.numpy.save_file", failing)
    with pytest.raises(OSError, match="no space"):
        io.write_model(folder, replace(FILES, config={"hidden_size": 8}))
    assert io.read_model(folder).config == FILES.config
