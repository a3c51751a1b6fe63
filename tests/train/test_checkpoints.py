"""Checkpoints: whole or passed by, the newest ones kept, every array where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import msgpack
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import io
from infini.parallel import checkpoints
from infini.train.checkpoints import Position, Store

STATE = {
    "params": {"layers": [{"w": inp.arange(6.0).reshape(2, 3)}], "norm": inp.ones(3, dtype="bfloat16")},
    "optimizer": ((), {"count": inp.asarray(7, dtype=inp.int32)}),
}


def _position(step: int) -> Position:
    return Position(step, step * 4, step - 1, 1.5, 100 * step, 3.25, "ids", 0)


def _save(store: Store, *steps: int) -> None:
    for step in steps:
        store.save(STATE, _position(step))


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _save(store, 3)
    found = store.latest()
    assert found is not None and found.position == _position(3)
    state = store.load(found, inf.eval_shape(lambda: STATE))
    assert inf.tree.structure(state) == inf.tree.structure(STATE)
    for ours, theirs in zip(inf.tree.leaves(state), inf.tree.leaves(STATE), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    _save(Store(tmp_path, keep=2), 5, 10, 15, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


def test_those_of_a_course_that_was_left_are_deleted(tmp_path: Path) -> None:
    """A damaged newest checkpoint must not push the good one out that is written after going back."""
    store = Store(tmp_path, keep=1)
    _save(store, 20)
    (tmp_path / "step-00000020" / "index.msgpack").unlink()
    _save(store, 15)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015"]


def test_what_killed_processes_left_is_deleted(tmp_path: Path) -> None:
    for name in (".step-00000001.abc.new", ".step-00000001.99.trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_bytes(b"half")
    _save(Store(tmp_path), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").latest() is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "part-00000.safetensors is damaged"),
        ("bit", "part-00000.safetensors is damaged"),
        ("config", "config.toml is damaged"),
        ("missing", "part-00000.safetensors is missing"),
        ("index", "index.msgpack is missing"),
        ("text", "index.msgpack is damaged"),
        ("format", "format 99"),
    ],
)
def test_what_is_not_whole_is_passed_by(tmp_path: Path, damage: str, words: str) -> None:
    skipped: list[str] = []
    store = Store(tmp_path, config="a = 1\n", on_skip=skipped.append)
    _save(store, 1, 2)
    folder = tmp_path / "step-00000002"
    state, index = folder / "part-00000.safetensors", folder / "index.msgpack"
    match damage:
        case "cut":
            state.write_bytes(state.read_bytes()[:-1])
        case "bit":
            data = bytearray(state.read_bytes())
            data[-1] ^= 1
            state.write_bytes(data)
        case "config":
            (state.parent / "config.toml").write_text("a = 2\n")
        case "missing":
            state.unlink()
        case "index":
            index.unlink()
        case "text":
            index.write_text("{}")
        case "format":
            index.write_bytes(msgpack.packb(msgpack.unpackb(index.read_bytes()) | {"format": 99}))
    found = store.latest()
    assert found is not None and found.position.step == 1
    assert len(skipped) == 1 and "step-00000002 is passed by" in skipped[0] and words in skipped[0]


def test_when_none_is_whole_nothing_is_begun_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _save(store, 1)
    (tmp_path / "step-00000001" / "index.msgpack").unlink()
    with pytest.raises(io.CorruptFileError, match="no checkpoint of this run is whole"):
        store.latest()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"params": STATE["params"]}, "another model or optimizer"),
        (
            STATE | {"optimizer": ((), {"count": inp.zeros((), dtype="float32")})},
            "optimizer/1/count .*another type",
        ),
        (
            STATE | {"params": STATE["params"] | {"norm": inp.ones(4, dtype="bfloat16")}},
            "params/norm .*another type",
        ),
    ],
)
def test_a_state_of_another_kind_is_named(tmp_path: Path, like: dict, words: str) -> None:
    store = Store(tmp_path)
    _save(store, 1)
    found = store.latest()
    assert found is not None
    with pytest.raises(io.CorruptFileError, match=words):
        store.load(found, like)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoints.CheckpointWriteError, match="step 1 could not be written"):
        _save(Store(tmp_path / "file"), 1)


def test_nothing_of_a_checkpoint_is_executable_data(tmp_path: Path) -> None:
    _save(Store(tmp_path), 1)
    names = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    assert names == {"part-00000.safetensors", "config.toml", "index.msgpack"}


def _save_as_before(folder: Path, state: dict, position: Position) -> None:
    """A checkpoint of the format 1: one file, and a manifest in JSON."""
    folder.mkdir()
    leaves = inf.tree.leaves_with_path(state)
    tensors = {inf.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    io.write_tensors(folder / "state.safetensors", tensors)
    (folder / "config.toml").write_text("a = 1\n")
    files = {name: folder / name for name in ("state.safetensors", "config.toml")}
    facts = {
        name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for name, file in files.items()
    }
    manifest = {"format": 1, "infini": "0.1.0", "position": asdict(position), "files": facts}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_one_file_is_read(tmp_path: Path) -> None:
    _save_as_before(tmp_path / "step-00000005", STATE, _position(5))
    found = Store(tmp_path).latest()
    assert found is not None and found.position == _position(5)
    state = Store(tmp_path).load(found, inf.eval_shape(lambda: STATE))
    for ours, theirs in zip(inf.tree.leaves(state), inf.tree.leaves(STATE), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["state.safetensors", "config.toml", "manifest.json"])
def test_a_damaged_checkpoint_of_one_file_is_passed_by(tmp_path: Path, name: str) -> None:
    for step in (5, 6):
        _save_as_before(tmp_path / f"step-{step:08}", STATE, _position(step))
    damaged = tmp_path / "step-00000006" / name
    damaged.write_bytes(damaged.read_bytes()[:-2])
    skipped: list[str] = []
    found = Store(tmp_path, on_skip=skipped.append).latest()
    assert found is not None and found.position.step == 5
    assert f"{name} is damaged" in skipped[0]


def test_a_checkpoint_that_is_not_of_a_run_is_named(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, STATE, 3)
    with pytest.raises(io.CorruptFileError, match="step-00000003 is no checkpoint of a run"):
        Store(tmp_path).latest()
