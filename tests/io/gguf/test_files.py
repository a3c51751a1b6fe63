"""Files written and read again: metadata of every type, tensors, several files of one model."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from infini.core import errors
from infini.io import gguf
from infini.io.tensors import MissingFileError

VALUES = {
    "a.uint8": gguf.value_of(200, gguf.ValueType.UINT8),
    "a.int8": gguf.value_of(-100, gguf.ValueType.INT8),
    "a.uint16": gguf.value_of(60000, gguf.ValueType.UINT16),
    "a.int16": gguf.value_of(-30000, gguf.ValueType.INT16),
    "a.uint32": gguf.value_of(4_000_000_000),
    "a.int32": gguf.value_of(-2_000_000_000),
    "a.uint64": gguf.value_of(2**63 + 1),
    "a.int64": gguf.value_of(-(2**40)),
    "a.float32": gguf.value_of(0.1),
    "a.float64": gguf.value_of(0.1, gguf.ValueType.FLOAT64),
    "a.bool": gguf.value_of(True),
    "a.string": gguf.value_of("naïve 🦉\n"),
    "a.empty": gguf.value_of(""),
    "b.strings": gguf.value_of(["", "ab", "é"]),
    "b.no strings": gguf.value_of([], item=gguf.ValueType.STRING),
    "b.bools": gguf.value_of([True, False]),
    **{
        f"b.{name}": gguf.value_of(np.array([1, 2, 100], name))
        for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
    },
    "b.float32": gguf.value_of([0.5, -1.25]),
    "b.float64": gguf.value_of(np.array([0.1, 0.2])),
}


def _tensors():
    rng = np.random.default_rng(0)
    return [
        gguf.tensor("vector", rng.standard_normal(5).astype(np.float32), "F32"),
        gguf.tensor("half", rng.standard_normal((3, 7)).astype(np.float32), "F16"),
        gguf.tensor("blocks", rng.standard_normal((4, 64)).astype(np.float32), "Q4_0"),
        gguf.tensor("deep", rng.standard_normal((2, 3, 2, 32)).astype(np.float32), "BF16"),
    ]


def test_metadata_of_every_type_come_back(tmp_path):
    gguf.write(tmp_path / "a.gguf", VALUES, [])
    found = gguf.read(tmp_path / "a.gguf").metadata
    assert found.fields == VALUES
    assert list(found) == list(VALUES)
    assert found["a.uint64"] == 2**63 + 1
    assert found["b.strings"] == ["", "ab", "é"]


def test_values_that_are_read_and_written_again_are_the_same_bytes(tmp_path):
    gguf.write(tmp_path / "a.gguf", VALUES, _tensors())
    file = gguf.read(tmp_path / "a.gguf")
    gguf.write(tmp_path / "b.gguf", file.metadata, file.tensors.values())
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_texts_that_are_no_utf8_keep_their_bytes(tmp_path):
    text = b"\xff\xfe ok".decode("utf-8", "surrogateescape")
    gguf.write(tmp_path / "a.gguf", {"a": text, "b": [text]}, [])
    raw = (tmp_path / "a.gguf").read_bytes()
    assert raw.count(b"\xff\xfe ok") == 2
    assert gguf.read(tmp_path / "a.gguf").metadata["b"] == [text]


def test_tensors_come_back(tmp_path):
    written = _tensors()
    gguf.write(tmp_path / "a.gguf", {}, written)
    found = gguf.read(tmp_path / "a.gguf").tensors
    assert list(found) == [x.name for x in written]
    for x in written:
        assert (found[x.name].type, found[x.name].shape) == (x.type, x.shape)
        np.testing.assert_array_equal(found[x.name].data, x.data)


def test_a_tensor_is_a_view_of_the_file(tmp_path):
    gguf.write(tmp_path / "a.gguf", {}, _tensors())
    data = gguf.read(tmp_path / "a.gguf").tensors["blocks"].data
    assert data.shape == (4, 36)
    assert not data.flags.owndata
    assert not data.flags.writeable


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_tensors_begin_at_multiples_of_the_alignment(tmp_path, alignment):
    gguf.write(tmp_path / "a.gguf", {"general.architecture": "llama"}, _tensors(), alignment=alignment)
    file = gguf.read(tmp_path / "a.gguf")
    assert file.alignment == alignment
    assert all(info.start % alignment == 0 for info in file.headers[0].tensors)
    np.testing.assert_array_equal(file.tensors["vector"].numpy(), _tensors()[0].numpy())


def test_the_second_version_is_read(tmp_path):
    gguf.write(tmp_path / "a.gguf", VALUES, _tensors())
    raw = bytearray((tmp_path / "a.gguf").read_bytes())
    raw[4:8] = struct.pack("<I", 2)
    (tmp_path / "a.gguf").write_bytes(raw)
    assert gguf.read(tmp_path / "a.gguf").headers[0].version == 2


# --- several files ----------------------------------------------------------------------------


def test_files_of_a_model_are_read_together(tmp_path):
    paths = gguf.write(tmp_path / "m.gguf", VALUES, _tensors(), shards=gguf.Shards(max_tensors=2))
    assert [path.name for path in paths] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for path in paths:  # by any of them
        file = gguf.read(path)
        assert list(file.tensors) == ["vector", "half", "blocks", "deep"]
        assert file.metadata["a.bool"] is True
        assert file.metadata["split.tensors.count"] == 4


def test_files_are_cut_by_bytes(tmp_path):
    paths = gguf.write(tmp_path / "m.gguf", {}, _tensors(), shards=gguf.Shards(max_nbytes=200))
    counts = [len(header.tensors) for header in gguf.read(paths[0]).headers]
    assert counts == [2, 1, 1]  # 20 + 42, 144, 768 bytes


def test_the_first_file_may_be_without_tensors(tmp_path):
    shards = gguf.Shards(max_tensors=4, is_first_empty=True)
    paths = gguf.write(tmp_path / "m.gguf", VALUES, _tensors(), shards=shards)
    assert [len(header.tensors) for header in gguf.read(paths[1]).headers] == [0, 4]


def test_one_file_is_enough_when_all_fits(tmp_path):
    paths = gguf.write(tmp_path / "m.gguf", {}, _tensors(), shards=gguf.Shards(max_tensors=9))
    assert paths == [tmp_path / "m.gguf"]


def test_files_that_are_put_together_are_the_file_that_was_split(tmp_path):
    gguf.write(tmp_path / "m.gguf", VALUES, _tensors(), alignment=64)
    whole = gguf.read(tmp_path / "m.gguf")
    shards = gguf.Shards(max_tensors=1)
    paths = gguf.write(tmp_path / "s.gguf", whole.metadata, whole.tensors.values(), shards=shards)
    parts = gguf.read(paths[2])
    gguf.write(tmp_path / "n.gguf", parts.metadata, parts.tensors.values())
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "n.gguf").read_bytes()


def test_a_missing_file_of_a_model_is_named(tmp_path):
    paths = gguf.write(tmp_path / "m.gguf", {}, _tensors(), shards=gguf.Shards(max_tensors=2))
    paths[1].unlink()
    with pytest.raises(MissingFileError, match="m-00002-of-00002"):
        gguf.read(paths[0])


def test_a_file_under_a_false_number_is_an_error(tmp_path):
    paths = gguf.write(tmp_path / "m.gguf", {}, _tensors(), shards=gguf.Shards(max_tensors=2))
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(gguf.GGUFError, match="does not say of itself"):
        gguf.read(paths[0])


def test_one_of_several_files_is_no_model_alone(tmp_path):
    paths = gguf.write(tmp_path / "m.gguf", {}, _tensors(), shards=gguf.Shards(max_tensors=2))
    alone = paths[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(gguf.GGUFError, match=r"split\.count 2"):
        gguf.read(alone)


# --- writing ----------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    gguf.write(tmp_path / "a.gguf", {"a": 1}, [])

    def fails():
        raise OSError("no more data")

    broken = gguf.GGUFTensor("x", gguf.type_of("F32"), (4,), fails)
    with pytest.raises(OSError, match="no more data"):
        gguf.write(tmp_path / "a.gguf", {"a": 2}, [broken])
    assert gguf.read(tmp_path / "a.gguf").metadata["a"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_only_one_tensor_is_made_at_a_time(tmp_path):
    made = []
    tensors = [
        gguf.tensor(f"x{i}", lambda i=i: made.append(i) or np.full(3, i, np.float32), "F32", (3,))
        for i in range(3)
    ]
    seen = []
    gguf.write(
        tmp_path / "a.gguf",
        {},
        tensors,
        on_progress=lambda name, done, total: seen.append((name, len(made), done, total)),
    )
    assert seen == [("x0", 1, 12, 36), ("x1", 2, 24, 36), ("x2", 3, 36, 36)]


def test_files_without_numbers_can_be_looked_at(tmp_path):
    gguf.write(tmp_path / "a.gguf", VALUES, _tensors(), has_data=False)
    assert len(gguf.read(tmp_path / "a.gguf", has_data=False).tensors) == 4
    with pytest.raises(gguf.GGUFError, match=r"ends before|beyond the end"):
        gguf.read(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ([("x", (2,)), ("x", (2,))], "two tensors"),
        ([("n" * 64, (2,))], "length"),
        ([("", (2,))], "length"),
        ([("x", ())], "shape"),
        ([("x", (0, 2))], "shape"),
        ([("x", (1, 1, 1, 1, 2))], "shape"),
    ],
)
def test_tensors_that_llama_cpp_cannot_read_are_not_written(tmp_path, tensors, word):
    made = [
        gguf.GGUFTensor(name, gguf.type_of("F32"), shape, lambda: np.zeros(8, np.uint8))
        for name, shape in tensors
    ]
    with pytest.raises(errors.ValueMismatchError, match=word):
        gguf.write(tmp_path / "a.gguf", {}, made)


def test_bytes_that_do_not_fit_the_shape_are_an_error(tmp_path):
    wrong = gguf.GGUFTensor("x", gguf.type_of("F32"), (4,), lambda: np.zeros(8, np.uint8))
    with pytest.raises(errors.TypeMismatchError, match="16 bytes"):
        gguf.write(tmp_path / "a.gguf", {}, [wrong])


@pytest.mark.parametrize("alignment", [0, 3, 48, -8, 2**21])
def test_an_alignment_that_is_no_power_of_two_is_an_error(tmp_path, alignment):
    with pytest.raises(errors.ValueMismatchError, match="aligned"):
        gguf.write(tmp_path / "a.gguf", {}, [], alignment=alignment)


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, None, [[1]], ["a", 1], 2**64, -(2**63) - 1, np.zeros((2, 2)), 1j, np.zeros(2, np.complex64)],
)
def test_values_that_files_do_not_have_are_an_error(value):
    with pytest.raises(errors.InfiniError):
        gguf.value_of(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (300, "UINT8"),
        (-1, "UINT32"),
        (1.5, "INT32"),
        ("a", "FLOAT32"),
        (2, "BOOL"),
        (7, "STRING"),
        (True, "INT8"),
    ],
)
def test_values_that_do_not_fit_a_type_are_an_error(value, kind):
    with pytest.raises(errors.ValueMismatchError):
        gguf.value_of(value, gguf.ValueType[kind])


def test_numbers_of_a_list_get_the_smallest_type_that_holds_them():
    kinds = [
        gguf.value_of(data).item.name for data in ([1, -1], [2**31, 1], [2**40], [2**63], [0.5, 1], [True])
    ]
    assert kinds == ["INT32", "UINT32", "INT64", "UINT64", "FLOAT32", "BOOL"]


# --- looking into files -----------------------------------------------------------------------


def test_a_sound_file_has_no_faults(tmp_path):
    gguf.write(tmp_path / "a.gguf", VALUES, _tensors())
    assert gguf.faults(gguf.read(tmp_path / "a.gguf")) == []


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "IQ4_XS"])
def test_numbers_that_are_not_finite_are_found(tmp_path, type):
    found = gguf.type_of(type)
    raw = np.zeros(4 * found.row_nbytes(256), np.uint8)
    if found.is_quantized:
        raw[: found.block_nbytes] = 0xFF  # scales that are NaN
    else:
        raw[:4] = np.frombuffer(np.array([np.inf], found.dtype).tobytes() * 2, np.uint8)[:4]
    x = gguf.GGUFTensor("x", found, (4, 256), lambda: raw)
    gguf.write(tmp_path / "a.gguf", {}, [x])
    (fault,) = gguf.faults(gguf.read(tmp_path / "a.gguf"))
    assert fault.name == "x"
    assert "NaN or infinite" in fault.what


def test_parts_of_a_tokenizer_that_do_not_go_together_are_found(tmp_path):
    metadata = {
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": np.zeros(3, np.float32),
        "tokenizer.ggml.eos_token_id": 2,
    }
    x = gguf.tensor("token_embd.weight", np.zeros((3, 4), np.float32), "F32")
    gguf.write(tmp_path / "a.gguf", metadata, [x])
    names = {fault.name for fault in gguf.faults(gguf.read(tmp_path / "a.gguf"))}
    assert names == {"tokenizer.ggml.scores", "tokenizer.ggml.eos_token_id", "token_embd.weight"}


def test_differences_are_found(tmp_path):
    first = _tensors()
    gguf.write(tmp_path / "a.gguf", {"k": 1, "only a": 1}, first)
    changed = [
        gguf.tensor("vector", first[0].numpy() * np.float32(1.5), "F32"),
        first[1],
        gguf.tensor("blocks", first[2].numpy(), "Q8_0"),
        gguf.tensor("new", np.ones(1, np.float32), "F32"),
    ]
    gguf.write(tmp_path / "b.gguf", {"k": 2}, changed)
    found = {
        d.name: d for d in gguf.differences(gguf.read(tmp_path / "a.gguf"), gguf.read(tmp_path / "b.gguf"))
    }
    assert set(found) == {"k", "only a", "vector", "blocks", "deep", "new"}
    assert found["vector"].rms == pytest.approx(0.5)
    assert found["blocks"].rms < 0.02
    assert (found["deep"].second, found["new"].first) == (None, None)
