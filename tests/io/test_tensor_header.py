"""Safetensors files that are damaged or lie: a named error that says how, and never a wrong array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from infini import io
from infini.io import tensor_header

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


def file_of(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any, shape: Any, start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def read(tmp_path: Path, raw: bytes) -> io.tensors.TensorFiles:
    (tmp_path / "x.safetensors").write_bytes(raw)
    return io.read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [
    "bool", "uint8", "int16", "uint32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
    "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
])  # fmt: skip
def test_arrays_are_what_was_written(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.arange(1, 7).reshape(2, 3).astype(kind)
    tag = next(tag for tag, known in tensor_header.DTYPES.items() if known == kind)
    found = read(tmp_path, file_of({"a": entry(tag, [2, 3], 0, array.nbytes)}, array.tobytes()))
    assert found["a"].dtype == found.dtype("a") == kind
    assert found["a"].tobytes() == array.tobytes()


def test_mapped_arrays_are_read_only_and_keep_what_was_there(tmp_path: Path) -> None:
    io.write_tensors(tmp_path / "x.safetensors", {"a": FLOATS})
    mapped = io.read_tensors(tmp_path / "x.safetensors").mapped("a")
    io.write_tensors(tmp_path / "x.safetensors", {"a": FLOATS + 1})
    np.testing.assert_array_equal(mapped, FLOATS)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


def test_copies_may_be_written(tmp_path: Path) -> None:
    io.write_tensors(tmp_path / "x.safetensors", {"a": FLOATS})
    files = io.read_tensors(tmp_path / "x.safetensors")
    files["a"][:] = 0
    np.testing.assert_array_equal(files["a"], FLOATS)


def test_a_header_of_odd_length_makes_no_difference(tmp_path: Path) -> None:
    text = json.dumps({"a": entry("F32", [2, 3], 0, 24)}).encode()
    for more in range(4):
        found = read(tmp_path, file_of(text + b" " * more, FLOATS.tobytes()))
        np.testing.assert_array_equal(found.mapped("a"), FLOATS)


def test_empty_arrays_and_scalars(tmp_path: Path) -> None:
    header = {"none": entry("F32", [0, 5], 0, 0), "one": entry("F32", [], 0, 4)}
    found = read(tmp_path, file_of(header, FLOATS.tobytes()[:4]))
    assert found["none"].shape == (0, 5)
    assert found["one"].shape == ()


@pytest.mark.parametrize("raw, words", [
    (b"", "too few"),
    (b"\x01\x00\x00", "too few"),
    (file_of({}, b"", length=1 << 62), "more than 100000000"),
    (file_of({}, b"", length=3), "claims 3 bytes of the 10"),
    (file_of(b"\xff\xfe", b""), "not JSON"),
    (file_of(b"{", b""), "not JSON"),
    (file_of(b"[" * 100_000, b""), "nested|not JSON"),
    (file_of([], b""), "no table but list"),
    (file_of(b'{"a":{},"a":{}}', b""), "twice"),
    (file_of({"__metadata__": 3}, b""), "no table of texts"),
    (file_of({"a": 3}, b""), "a is no table"),
    (file_of({"a": entry("F7", [1], 0, 4)}, b"1234"), "'F7', which is not known"),
    (file_of({"a": entry(["F32"], [1], 0, 4)}, b"1234"), "not known"),
    (file_of({"a": entry("F32", [-1], 0, 4)}, b"1234"), "no shape"),
    (file_of({"a": entry("F32", [True], 0, 4)}, b"1234"), "no shape"),
    (file_of({"a": entry("F32", [1.0], 0, 4)}, b"1234"), "no shape"),
    (file_of({"a": entry("F32", [1 << 70], 0, 4)}, b"1234"), "no shape"),
    (file_of({"a": {"dtype": "F32", "shape": [1]}}, b"1234"), "no place"),
    (file_of({"a": entry("F32", [1 << 61, 1 << 61], 0, 4)}, b"1234"), "instead of"),
    (file_of({"a": entry("F32", [2], 0, 4)}, b"1234"), r"4 bytes instead of the 8 of F32\[2\]"),
    (file_of({"a": entry("F32", [2], 8, 0)}, b"12345678"), "-8 bytes instead of"),
    (file_of({"a": entry("F32", [2], 0, 8)}, b"1234"), "cut: it has"),
    (file_of({"a": entry("F32", [1], 0, 4)}, b"123456"), "2 bytes too many"),
    (file_of({"a": entry("F32", [1], 4, 8)}, b"12345678"), "the header and a have a hole"),
    (file_of({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, b"12345678"), "a and b overlap"),
])  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(io.CorruptFileError, match=words) as caught:
        read(tmp_path, raw)
    assert "x.safetensors is damaged" in str(caught.value)


WHOLE = file_of({"a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}, bytes(32))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 33), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_in_the_header_give_arrays_inside_the_file_or_an_error(
    changes: list[tuple[int, int]],
) -> None:
    raw = bytearray(WHOLE)
    for number, value in changes:
        raw[number] = value
    try:
        places, _ = tensor_header.parse(np.frombuffer(bytes(raw), np.uint8))
    except tensor_header.HeaderError:
        return
    for place in places.values():
        assert place.start >= 8 and place.start + place.nbytes <= len(raw)
        assert place.nbytes == int(np.prod(place.shape)) * place.dtype.itemsize


@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_file_is_never_whole(length: int) -> None:
    with pytest.raises(tensor_header.HeaderError):
        tensor_header.parse(np.frombuffer(WHOLE[:length], np.uint8))
