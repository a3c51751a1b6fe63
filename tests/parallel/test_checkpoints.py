"""Checkpoints of split state: any mesh reads what any mesh wrote; what is damaged is not taken for whole."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import infini as inf
import infini.numpy as inp
from infini import io, random
from infini.core import dtypes, errors, events, ir
from infini.core.formats import Format
from infini.core.layout import Layout
from infini.parallel import checkpoints
from infini.parallel.checkpoints import index, parts, pieces
from infini.sharding import NamedSharding, P, make_mesh

PART = "part-00000.safetensors"


def _bits(x: object) -> tuple[str, tuple[int, ...], bytes]:
    host = np.asarray(x)
    return host.dtype.name, host.shape, host.tobytes()


def _assert_equal_bits(found: object, expected: object) -> None:
    assert inf.tree.structure(found) == inf.tree.structure(expected)
    for ours, theirs in zip(inf.tree.leaves(found), inf.tree.leaves(expected), strict=True):
        assert _bits(ours) == _bits(theirs)


@pytest.fixture
def eight() -> Iterator[None]:
    """Eight devices in this process."""
    with inf.config(cpu_devices=8):
        yield


HOST = {
    "both": np.arange(16 * 24, dtype=np.float32).reshape(16, 24),
    "rows": np.arange(64, dtype=np.int16).reshape(16, 4),
    "whole": np.arange(5, dtype=np.uint8),
    "joint": np.arange(32, dtype=np.float16),
}


def _placed(axes: dict[str, int], **specs: P) -> dict[str, NamedSharding]:
    mesh = make_mesh(tuple(axes.values()), tuple(axes))
    return {name: NamedSharding(mesh, specs.get(name, P())) for name in HOST}


def _two_by_two() -> dict[str, inf.Array]:
    places = _placed({"a": 2, "b": 2}, both=P("a", "b"), rows=P("b"), joint=P(("b", "a")))
    return {name: inf.device_put(host, places[name]) for name, host in HOST.items()}


@pytest.mark.parametrize(
    ("axes", "specs"),
    [
        ({"x": 8}, {"both": P("x"), "rows": P("x"), "joint": P("x")}),
        ({"x": 8}, {"both": P(None, "x")}),
        ({"x": 1}, {"both": P("x")}),
        ({"x": 4, "y": 2}, {"both": P("y", "x"), "rows": P("x", "y"), "joint": P(("x", "y"))}),
        ({"x": 4, "y": 2}, {}),
        ({"b": 2, "a": 2}, {"both": P("a", "b")}),
    ],
)
@pytest.mark.usefixtures("eight")
def test_what_two_by_two_devices_saved_any_mesh_loads(tmp_path: Path, axes: dict, specs: dict) -> None:
    checkpoints.save(tmp_path, _two_by_two(), 1)
    places = _placed(axes, **specs)
    like = {
        name: inf.ShapeDtypeStruct(host.shape, host.dtype, sharding=places[name])
        for name, host in HOST.items()
    }
    found = checkpoints.load(tmp_path, like)
    _assert_equal_bits(found, HOST)
    for name, array in found.items():
        assert array.sharding == places[name] and array.committed
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, HOST[name][shard.index])


@pytest.mark.usefixtures("eight")
def test_terms_of_a_sum_are_stored_as_the_sum(tmp_path: Path) -> None:
    mesh = make_mesh((4, 2), ("a", "b"))
    place = NamedSharding(mesh, P("b", unreduced={"a"}))
    product = inf.shard(lambda x, y: x @ y, mesh=mesh, in_specs=(P("b", "a"), P("a")), out_specs=place.spec)
    x, y = np.arange(16, dtype=np.float32).reshape(2, 8), np.ones((8, 3), np.float32)
    made = product(x, y)
    assert made.sharding.spec == place.spec
    checkpoints.save(tmp_path, {"sum": made}, 1)
    types = inf.ShapeDtypeStruct((2, 3), np.float32), inf.ShapeDtypeStruct((2, 3), np.float32, sharding=place)
    for like in types:
        np.testing.assert_array_equal(checkpoints.load(tmp_path, {"sum": like})["sum"], x @ y)


@pytest.mark.usefixtures("eight")
def test_without_a_sharding_arrays_come_to_the_default_device(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, _two_by_two(), 1)
    found = checkpoints.load(tmp_path, inf.eval_shape(lambda: {k: inp.asarray(v) for k, v in HOST.items()}))
    _assert_equal_bits(found, HOST)
    assert all(array.devices() == {inf.devices()[0]} and not array.committed for array in found.values())


@pytest.mark.usefixtures("eight")
def test_one_device_saves_what_eight_load(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, {"w": inp.arange(16.0)}, 1)
    where = NamedSharding(make_mesh((8,), ("x",)), P("x"))
    found = checkpoints.load(tmp_path, {"w": inf.ShapeDtypeStruct((16,), "float32", sharding=where)})
    assert [np.asarray(s.data).tolist() for s in found["w"].addressable_shards][3] == [6.0, 7.0]


def test_every_kind_of_leaf_comes_back_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = {dtype.name: rng.integers(0, 256, 12 * dtype.itemsize, np.uint8) for dtype in dtypes.ALL}
    words["bool"] &= 1
    state = {
        "kinds": {name: inp.asarray(x.view(name).reshape(3, 4), dtype=name) for name, x in words.items()},
        "scalars": [inp.float32(1.5), inp.asarray(True), inp.asarray(3, dtype="bfloat16")],
        "empty": (inp.zeros((0, 4)), inp.zeros((3, 0), dtype="int8")),
        "key": random.split(random.key(7), 3),
        "none": None,
    }
    checkpoints.save(tmp_path, state, 1)
    _assert_equal_bits(checkpoints.load(tmp_path, state), state)
    assert isinstance(checkpoints.load(tmp_path, inf.eval_shape(lambda: state))["key"], type(state["key"]))


def test_numbers_and_numpy_arrays_come_back_as_arrays(tmp_path: Path) -> None:
    state = {"count": 3, "rate": 0.5, "is_on": True, "wide": np.arange(3, dtype=np.int64)}
    checkpoints.save(tmp_path, state, 1)
    found = checkpoints.load(tmp_path, state)
    assert {name: (x.dtype.name, x.weak_type) for name, x in found.items()} == {
        "count": ("int32", True),
        "rate": ("float32", True),
        "is_on": ("bool", False),
        "wide": ("int64", False),
    }
    assert (int(found["count"]), float(found["rate"]), bool(found["is_on"])) == (3, 0.5, True)


def test_a_tree_that_is_one_array(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, inp.arange(3), 1)
    assert checkpoints.load(tmp_path, inf.ShapeDtypeStruct((3,), "int32")).tolist() == [0, 1, 2]


def test_layouts_of_memory_are_not_stored(tmp_path: Path) -> None:
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    where = inf.device_put(host).sharding
    columns = inf.device_put(host, Format(Layout((1, 0)), where))
    checkpoints.save(tmp_path, {"w": columns}, 1)
    plain = checkpoints.load(tmp_path, {"w": inf.ShapeDtypeStruct((2, 3), "float32")})["w"]
    assert plain.layout is None and _bits(plain) == _bits(host)
    like = {"w": inf.ShapeDtypeStruct((2, 3), "float32", sharding=Format(Layout((1, 0)), where))}
    again = checkpoints.load(tmp_path, like)["w"]
    assert again.layout == columns.layout and _bits(again) == _bits(host)


def test_parts_are_files_for_everybody(tmp_path: Path) -> None:
    state = {"w": inp.arange(6.0).reshape(2, 3), "n": inp.arange(2, dtype="bfloat16"), "b": inp.asarray(True)}
    folder = checkpoints.save(tmp_path, state, 1).wait()
    with safe_open(folder / PART, framework="np") as file:
        assert {key: file.get_tensor(key).tolist() for key in file.keys()} == {  # noqa: SIM118  # no mapping
            "w": [[0, 1, 2], [3, 4, 5]],
            "n": [0, 1],
            "b": True,
        }


@pytest.mark.usefixtures("eight")
def test_names_that_look_like_pieces_are_no_pieces(tmp_path: Path) -> None:
    where = NamedSharding(make_mesh((2,), ("x",)), P("x"))
    state = {
        "w": inf.device_put(np.arange(4.0, dtype=np.float32), where),
        "w[0:2]": inp.ones(2),
        "__metadata__": inp.asarray(7),
    }
    checkpoints.save(tmp_path, state, 1)
    _assert_equal_bits(checkpoints.load(tmp_path, state), state)


# --- who writes what ----------------------------------------------------------------------------


def _leaf(name: str, size: int, *holders: tuple[int, ...]) -> pieces.Leaf:
    step = size // len(holders)
    found = tuple(pieces.Piece(((i * step, (i + 1) * step),), held) for i, held in enumerate(holders))
    return pieces.Leaf(name, ir.ArrayType((size,), dtypes.float32), "", found, lambda slices: np.zeros(0))


def test_each_piece_is_written_once_and_bytes_are_balanced() -> None:
    everyone = (0, 1, 2, 3)
    leaves = [
        _leaf(f"replicated {i}", size, everyone) for i, size in enumerate([400, 300, 300, 200, 100, 100])
    ]
    leaves += [_leaf("split", 400, (0, 2), (1, 3)), _leaf("owned", 80, (0,), (1,), (2,), (3,))]
    dealt = pieces.deal(leaves, 4)
    assert sorted(piece for own in dealt for piece in own) == [
        (i, j) for i, leaf in enumerate(leaves) for j in range(len(leaf.pieces))
    ]
    sizes = [
        sum(pieces.num_bytes(dtypes.float32, leaves[i].pieces[j].slices) for i, j in own) for own in dealt
    ]
    assert max(sizes) - min(sizes) <= 400
    assert all(process in leaves[i].pieces[j].holders for process, own in enumerate(dealt) for i, j in own)


@pytest.mark.usefixtures("eight")
def test_replicas_are_written_once(tmp_path: Path) -> None:
    where = NamedSharding(make_mesh((4, 2), ("x", "y")), P("y"))
    folder = checkpoints.save(tmp_path, {"w": inf.device_put(np.ones(1024, np.float32), where)}, 1).wait()
    assert 4096 < (folder / PART).stat().st_size < 4096 + 512


# --- a folder of checkpoints --------------------------------------------------------------------


def _save(folder: Path, *steps: int, **options: object) -> None:
    for step in steps:
        checkpoints.save(folder, {"w": np.full(4, step)}, step, **options)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 5, 10, 15, 20, keep=2)
    assert _names(tmp_path) == ["step-00000015", "step-00000020"]
    _save(tmp_path, 25, 30, keep=None)
    assert len(_names(tmp_path)) == 4


def test_later_ones_of_a_course_that_was_left_are_deleted(tmp_path: Path) -> None:
    _save(tmp_path, 10, 20, 15)
    assert _names(tmp_path) == ["step-00000010", "step-00000015"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, {"w": np.zeros(4)}, 1, texts={"a.txt": "first"})
    checkpoints.save(tmp_path, {"w": np.ones(4)}, 1)
    assert checkpoints.load(tmp_path, {"w": np.zeros(4)})["w"].tolist() == [1, 1, 1, 1]
    assert _names(tmp_path / "step-00000001") == ["index.msgpack", PART]


def test_position_and_texts_come_back(tmp_path: Path) -> None:
    position = {"step": 7, "loss": 0.1, "name": "a", "windows": [1, 2], "more": {"x": None}}
    checkpoints.save(tmp_path, {}, position, texts={"config.toml": "a = 1\n"})
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.step == 7 and found.position == position
    assert (found.folder / "config.toml").read_text() == "a = 1\n"


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "none") is None
    with pytest.raises(io.MissingFileError, match="there is no checkpoint in"):
        checkpoints.load(tmp_path, {})


def test_one_that_a_kill_kept_from_its_name_is_found(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / ".step-00000002.abc123.ready")
    with events.record() as seen:
        found = checkpoints.latest(tmp_path)
    assert found is not None and found.step == 2
    assert [event.code for event in seen] == ["folder-recovered"]


# --- writing beside the program -----------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is written to disk before the flag is up."""
    flag, put = threading.Event(), parts._put
    monkeypatch.setattr(parts, "_put", lambda file, chunk: (flag.wait(30), put(file, chunk)))
    yield flag
    flag.set()


@pytest.mark.parametrize("num_devices", [1, 4])
def test_arrays_may_be_donated_while_they_are_written(
    tmp_path: Path, held: threading.Event, num_devices: int
) -> None:
    """The memory of a donated array is overwritten by the result, so what is written must be a copy."""
    with inf.config(cpu_devices=num_devices):
        host = np.arange(64, dtype=np.float32)
        where = NamedSharding(make_mesh((num_devices,), ("x",)), P("x"))
        state = {"w": inf.device_put(host, where) if num_devices > 1 else inp.asarray(host)}
        pending = checkpoints.save(tmp_path, state, 1, asynchronous=True)
        with events.record() as seen:
            step = inf.jit(lambda s: {"w": s["w"] * -1.0}, donate_argnums=0, donation="require")
            after = step(state)
        assert state["w"].is_deleted() and not [e for e in seen if "donat" in e.code]
        assert not pending.done() and checkpoints.latest(tmp_path) is None
        held.set()
        assert pending.wait() == tmp_path / "step-00000001" and pending.done()
        _assert_equal_bits(checkpoints.load(tmp_path, after), {"w": host})


def test_a_numpy_array_may_change_while_it_is_written(tmp_path: Path, held: threading.Event) -> None:
    state = {"w": np.zeros(4)}
    pending = checkpoints.save(tmp_path, state, 1, asynchronous=True)
    state["w"][:] = 1
    held.set()
    pending.wait()
    assert checkpoints.load(tmp_path, state)["w"].tolist() == [0, 0, 0, 0]


def test_a_second_save_waits_for_the_first(tmp_path: Path) -> None:
    first = checkpoints.save(tmp_path, {"w": np.zeros(4)}, 1, asynchronous=True)
    second = checkpoints.save(tmp_path, {"w": np.ones(4)}, 2, asynchronous=True)
    assert first.done()
    second.wait()
    assert _names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_relative_folder_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.chdir(tmp_path)
    pending = checkpoints.save("here", {"w": np.zeros(4)}, 1, asynchronous=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    held.set()
    assert pending.wait() == tmp_path / "here" / "step-00000001"
    assert _names(tmp_path / "here") == ["step-00000001"]


def test_threads_save_one_after_another(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other", "third")]

    def work(folder: Path) -> None:
        for step in range(4):
            checkpoints.save(folder, {"w": np.full(1000, step)}, step, asynchronous=True)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    checkpoints.save(tmp_path / "last", {"w": np.zeros(1)}, 0)  # waits for the one before
    for folder in folders:
        assert _names(folder) == ["step-00000001", "step-00000002", "step-00000003"]
        assert checkpoints.load(folder, {"w": np.zeros(1000, int)})["w"][0] == 3


# --- faults -------------------------------------------------------------------------------------


@contextmanager
def _full_disk(num_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond a length: writing fails as it does when no space is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _has_four_parts(error: errors.InfiniError) -> bool:
    return bool(error.what and error.got and error.expected and error.fix)


@pytest.mark.parametrize("num_bytes", [0, 100, 5000])
def test_a_full_disk_is_named_and_leaves_the_earlier_ones(tmp_path: Path, num_bytes: int) -> None:
    _save(tmp_path, 1)
    with (
        _full_disk(num_bytes),
        pytest.raises(checkpoints.CheckpointWriteError, match="step 2 could not be written") as caught,
    ):
        checkpoints.save(tmp_path, {"w": np.ones(10_000)}, 2)
    assert _has_four_parts(caught.value) and "File too large" in str(caught.value)
    assert _names(tmp_path) == ["step-00000001"]
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.step == 1


def test_what_went_wrong_beside_the_program_the_next_save_tells(tmp_path: Path) -> None:
    with _full_disk(100):
        pending = checkpoints.save(tmp_path, {"w": np.ones(10_000)}, 1, asynchronous=True)
        while not pending.done():
            pass
    with pytest.raises(checkpoints.CheckpointWriteError, match="step 1 could not be written"):
        _save(tmp_path, 2)
    with pytest.raises(checkpoints.CheckpointWriteError, match="step 1 could not be written"):
        pending.wait()
    _save(tmp_path, 3)
    assert _names(tmp_path) == ["step-00000003"]


def _damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    match how:
        case "missing":
            file.unlink()
        case "truncated":
            file.write_bytes(data[:-1])
        case "empty":
            file.write_bytes(b"")
        case "longer":
            file.write_bytes(data + b"x")
        case "flipped":
            file.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))


@pytest.mark.parametrize("name", [PART, "index.msgpack", "config.toml"])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "longer", "flipped"])
def test_a_damaged_checkpoint_is_named_and_passed_by(tmp_path: Path, name: str, how: str) -> None:
    _save(tmp_path, 1, 2, texts={"config.toml": "a = 1\n"})
    _damage(tmp_path / "step-00000002" / name, how)
    kind = io.MissingFileError if how == "missing" else io.CorruptFileError
    with pytest.raises(kind, match="the checkpoint step-00000002") as caught:
        checkpoints.load(tmp_path / "step-00000002", {"w": np.zeros(4, int)})
    assert _has_four_parts(caught.value) and name in str(caught.value)
    skipped: list[str] = []
    found = checkpoints.latest(tmp_path, on_skip=skipped.append)
    assert found is not None and found.step == 1
    assert len(skipped) == 1 and "step-00000002 is passed by" in skipped[0] and name in skipped[0]


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    for name in (PART, "index.msgpack"):
        data = (folder / name).read_bytes()
        for at in range(len(data)):
            (folder / name).write_bytes(bytes([*data[:at], data[at] ^ 0x20, *data[at + 1 :]]))
            with pytest.raises(io.CorruptFileError):
                checkpoints.latest(tmp_path)
        (folder / name).write_bytes(data)
    assert checkpoints.latest(tmp_path) is not None


def test_a_part_that_changes_after_it_was_checked_is_named(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    for how, kind in (("truncated", io.CorruptFileError), ("missing", io.MissingFileError)):
        _damage(found.folder / PART, how)
        with pytest.raises(kind, match=PART) as caught:
            checkpoints.load(found, {"w": np.zeros(4, int)})
        assert _has_four_parts(caught.value)


def test_an_index_that_lacks_a_piece_is_no_array_of_anything(tmp_path: Path) -> None:
    """What no file holds must never come back as whatever was in the memory."""
    _save(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    stored = index.read(folder)
    array = stored.arrays["w"]
    short = index.StoredArray(array.dtype, (6,), "", array.pieces)
    (folder / "index.msgpack").write_bytes(
        index.pack(index.Index(stored.position, {"w": short}, stored.files, stored.version))
    )
    with pytest.raises(io.CorruptFileError, match=r"index.msgpack .* is damaged") as caught:
        checkpoints.load(tmp_path, {"w": np.zeros(6, int)})
    assert "no place for 2 elements of w" in str(caught.value)


@pytest.mark.parametrize(
    ("like", "kind", "words"),
    [
        ({}, errors.ValueMismatchError, "such as w, which the checkpoint has"),
        ({"w": np.zeros(4, int), "v": 1}, errors.ValueMismatchError, "such as v, which the tree has"),
        ({"w": np.zeros(5, int)}, errors.TypeMismatchError, "w in the checkpoint step-00000001 has another"),
        ({"w": np.zeros(4, np.float32)}, errors.TypeMismatchError, "expected: f32"),
    ],
)
def test_another_tree_is_named(tmp_path: Path, like: dict, kind: type, words: str) -> None:
    _save(tmp_path, 1)
    with pytest.raises(kind, match=words) as caught:
        checkpoints.load(tmp_path, like)
    assert _has_four_parts(caught.value)


@pytest.mark.parametrize(
    ("tree", "position", "options", "words"),
    [
        ({"a": object()}, 1, {}, "a is nothing that a checkpoint can hold"),
        ({"a/b": 1, "a": {"b": 2}}, 1, {}, "two arrays of a tree have one name"),
        ({}, {"x": 1}, {}, "position of a checkpoint cannot be stored"),
        ({}, -1, {}, "position of a checkpoint cannot be stored"),
        ({}, {"step": 1, "x": np.zeros(2)}, {}, "position of a checkpoint cannot be stored"),
        ({}, 1, {"keep": 0}, "a save has to keep its own checkpoint"),
        ({}, 1, {"texts": {"../x": ""}}, "cannot have this name"),
        ({}, 1, {"texts": {"index.msgpack": ""}}, "cannot have this name"),
    ],
)
def test_what_cannot_be_saved_is_named(
    tmp_path: Path, tree: dict, position: object, options: dict, words: str
) -> None:
    with pytest.raises(errors.InfiniError, match=words) as caught:
        checkpoints.save(tmp_path, tree, position, **options)
    assert _has_four_parts(caught.value) and not _names(tmp_path)


def test_a_donated_array_is_named(tmp_path: Path) -> None:
    state = {"w": inp.ones(3)}
    state["w"].delete()
    with pytest.raises(errors.DeletedBufferError, match="w was donated or deleted before it could be saved"):
        checkpoints.save(tmp_path, state, 1)
