"""Damaged files: whatever their bytes say, they are read or they are a named error."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

from infini.core import errors
from infini.io import gguf
from infini.io.gguf import header


def _text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _file(
    *, fields=(), tensors=(), data=b"", version=3, num_tensors=None, num_fields=None, magic=b"GGUF"
):  # a file by hand
    raw = magic + struct.pack("<I", version)
    raw += struct.pack(
        "<QQ",
        len(tensors) if num_tensors is None else num_tensors,
        len(fields) if num_fields is None else num_fields,
    )
    for key, kind, value in fields:
        raw += _text(key) + struct.pack("<I", kind) + value
    for name, sizes, kind, offset in tensors:
        raw += _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return raw + bytes(-len(raw) % 32) + data


U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
CASES = {
    "is not a GGUF file": _file(magic=b"GGML"),
    "a version of GGUF that is not read": _file(version=1),
    "a version of GGUF that is not read ": _file(version=4),
    "big-endian": _file(version=0x03000000),
    "ends within the number of tensors": b"GGUF" + struct.pack("<I", 3) + b"\0\0",
    "says that it has 65537 tensors": _file(num_tensors=65537),
    "says that it has 18446744073709551615 keys": _file(num_fields=2**64 - 1),
    "a key of metadata has 16777217 bytes": _file(num_fields=1)[:24] + struct.pack("<Q", (16 << 20) + 1),
    "a key of metadata is empty": _file(fields=[("", U32, b"\0\0\0\0")]),
    "a key of metadata is not UTF-8": _file(num_fields=1)[:24]
    + struct.pack("<Q", 2)
    + b"\xff\xff"
    + bytes(64),
    "the key 'a' is there twice": _file(fields=[("a", U32, b"\0\0\0\0")] * 2),
    "'a' has the unknown type 13": _file(fields=[("a", 13, b"\0" * 8)]),
    "'a' has a truth value": _file(fields=[("a", BOOL, b"\2")]),
    "'a' is an array of arrays": _file(fields=[("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
    "'a' has the unknown type 99": _file(fields=[("a", ARRAY, struct.pack("<IQ", 99, 1))]),
    "ends within the numbers of 'a'": _file(fields=[("a", ARRAY, struct.pack("<IQ", U32, 2**60))]),
    "ends within the texts of 'a'": _file(fields=[("a", ARRAY, struct.pack("<IQ", STRING, 2**60))]),
    "a text of 'a' has 9223372036854775808 bytes": _file(
        fields=[("a", ARRAY, struct.pack("<IQQ", STRING, 1, 2**63))]
    ),
    "general.alignment is 0": _file(fields=[("general.alignment", U32, struct.pack("<I", 0))]),
    "general.alignment is 48": _file(fields=[("general.alignment", U32, struct.pack("<I", 48))]),
    "general.alignment has the type string": _file(fields=[("general.alignment", STRING, _text("32"))]),
    "the tensor 'x' has 0 dimensions": _file(tensors=[("x", (), 0, 0)], data=bytes(64)),
    "the tensor 'x' has 5 dimensions": _file(tensors=[("x", (1,) * 5, 0, 0)], data=bytes(64)),
    "the tensor 'x' has a dimension of size 0": _file(tensors=[("x", (4, 0), 0, 0)], data=bytes(64)),
    "the tensor 'x' has the unknown type 5": _file(tensors=[("x", (4,), 5, 0)], data=bytes(64)),
    "not made of whole blocks of Q4_0": _file(tensors=[("x", (33,), 2, 0)], data=bytes(64)),
    "the tensor 'x' is not aligned": _file(tensors=[("x", (4,), 0, 4)], data=bytes(64)),
    "the tensor 'x' reaches beyond the end": _file(tensors=[("x", (17,), 0, 0)], data=bytes(64)),
    # Products that do not fit 64 bits: 2 ** 62 numbers of four bytes are 0 bytes there.
    "the tensor 'x' reaches beyond the end ": _file(tensors=[("x", (2**62,), 0, 0)], data=bytes(64)),
    "the tensor 'x' reaches beyond the end  ": _file(
        tensors=[("x", (2**32, 2**32, 2**32, 2**32), 0, 0)], data=bytes(64)
    ),
    "the tensor 'x' reaches beyond the end   ": _file(tensors=[("x", (4,), 0, 2**64 - 32)], data=bytes(64)),
    "the tensor 'x' is there twice": _file(tensors=[("x", (4,), 0, 0), ("x", (4,), 0, 32)], data=bytes(64)),
    "the tensors 'x' and 'y' overlap": _file(tensors=[("x", (9,), 0, 0), ("y", (4,), 0, 32)], data=bytes(64)),
    "the name of a tensor is empty or has a zero": _file(tensors=[("a\0b", (4,), 0, 0)], data=bytes(64)),
}


@pytest.mark.parametrize("what", CASES)
def test_what_is_wrong_is_named(what, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(CASES[what])
    with pytest.raises(gguf.GGUFError) as caught:
        gguf.read(path)
    assert what.strip() in str(caught.value)
    assert "a.gguf" in str(caught.value)


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.gguf").touch()
    with pytest.raises(gguf.GGUFError, match="empty"):
        gguf.read(tmp_path / "a.gguf")


def test_counts_that_lie_take_no_memory(tmp_path):
    raw = _file(fields=[("a", ARRAY, struct.pack("<IQ", STRING, 2**50))], num_tensors=65536)
    (tmp_path / "a.gguf").write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(gguf.GGUFError):
            gguf.read(tmp_path / "a.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a small file with everything in it, and where its header ends."""
    path = tmp_path_factory.mktemp("fuzz") / "a.gguf"
    fields = {
        "general.architecture": "llama", "general.alignment": 32, "llama.block_count": 1, "f": 0.5, "b": True,
        "texts": ["a", "bc"], "numbers": np.arange(3, dtype=np.int16), "flags": [True, False],
    }  # fmt: skip
    x = gguf.tensor("x", np.arange(64, dtype=np.float32).reshape(2, 32), "Q8_0")
    y = gguf.tensor("y", np.ones((2, 3), np.float32), "F16")
    gguf.write(path, fields, [x, y])
    return path.read_bytes(), gguf.read(path).headers[0].data_start


def _read(raw):
    """Parse a file, and look at all that it says it has."""
    found = header.parse(memoryview(raw), "a.gguf")
    for info in found.tensors:
        data = np.frombuffer(raw, np.uint8)[info.start : info.start + info.nbytes]
        assert data.size == info.nbytes
    return found


def test_no_byte_of_the_header_crashes_the_reader(sound):
    raw, end = sound
    outcomes = {"read": 0, "refused": 0}
    for place in range(end):
        for value in {0, 1, 0x7F, 0x80, 0xFF, raw[place] ^ 1, raw[place] ^ 0x10, (raw[place] + 1) % 256}:
            damaged = bytearray(raw)
            damaged[place] = value
            try:
                _read(bytes(damaged))
                outcomes["read"] += 1
            except gguf.GGUFError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 100


def test_no_end_of_the_file_crashes_the_reader(sound):
    raw, _ = sound
    for size in range(len(raw) - 1):
        if size >= len(raw) - 20:  # padding behind the last tensor, which has 12 bytes
            _read(raw[:size])
            continue
        with pytest.raises(gguf.GGUFError):
            _read(raw[:size])


def test_random_bytes_behind_the_magic_number_crash_nothing():
    rng = np.random.default_rng(3)
    for size in rng.integers(8, 400, 300):
        raw = b"GGUF" + struct.pack("<I", 3) + rng.integers(0, 256, size).astype(np.uint8).tobytes()
        small = raw[:8] + struct.pack("<QQ", 2, 3) + raw[24:]
        for damaged in (raw, small):
            with pytest.raises(gguf.GGUFError):
                _read(damaged)


def test_damage_is_an_error_of_values_too(tmp_path):
    """So that programs that know the errors of files catch it."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(errors.InfiniError) as caught:
        gguf.read(tmp_path / "a.gguf")
    assert isinstance(caught.value, ValueError)
