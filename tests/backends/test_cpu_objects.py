"""Object files: compiled once, kept on disk, never taken when broken or foreign, loaded together."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from infini.backends.cpu import generator, objects
from infini.compiler.llvm.target import host_target
from infini.core import config, errors

TARGET = host_target()


def text_of(name: str, body: str, declares: str = "") -> str:
    return (
        f'target triple = "{TARGET.triple}"\n{declares}\ndefine i64 @{name}(i64 %x) nounwind {{\n{body}\n}}\n'
    )


def call(address: int, number: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(number))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with config.config(cache_dir=str(tmp_path), no_cache=False):
        yield tmp_path


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_second_compilation_is_read_from_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of("twice", "  %y = mul i64 %x, 2\n  ret i64 %y")
    first = objects.compile_module(text, TARGET)
    monkeypatch.setattr(generator, "generate", lambda *_: pytest.fail("compiled again"))
    assert objects.compile_module(text, TARGET) == first
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("damage", [b"", b"foreign", None], ids=["empty", "foreign", "cut"])
def test_broken_entry_is_replaced(cache: Path, damage: bytes | None) -> None:
    text = text_of("thrice", "  %y = mul i64 %x, 3\n  ret i64 %y")
    code = objects.compile_module(text, TARGET)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-7] if damage is None else damage)
    assert objects.compile_module(text, TARGET) == code
    assert entry.read_bytes() == whole


def test_key_depends_on_text_and_processor() -> None:
    other = dataclasses.replace(TARGET, cpu="x86-64")
    keys = {objects.object_key(text, target) for text in ("a", "b") for target in (TARGET, other)}
    assert len(keys) == 4


def test_no_cache_leaves_the_disk_alone(tmp_path: Path) -> None:
    with config.config(cache_dir=str(tmp_path), no_cache=True):
        objects.compile_module(text_of("alone", "  ret i64 %x"), TARGET)
    assert entries(tmp_path) == []


def test_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with config.config(cache_dir=str(blocked)):
        assert objects.compile_module(text_of("blocked", "  ret i64 %x"), TARGET)


def test_objects_call_each_other_and_externs(cache: Path) -> None:
    inner = text_of("inner_function", "  %y = add i64 %x, 1\n  ret i64 %y")
    outer = text_of(
        "outer_function",
        "  %y = call i64 @inner_function(i64 %x)\n  %z = call i64 @given_function(i64 %y)\n  ret i64 %z",
        "declare i64 @inner_function(i64)\ndeclare i64 @given_function(i64)",
    )
    given = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda x: 10 * x)
    address = ctypes.cast(given, ctypes.c_void_p).value
    assert address is not None
    ahead = objects.Compilations(TARGET, num_threads=2)
    ahead.begin(inner)  # the other is compiled when it is asked for
    codes = [ahead.code(inner), ahead.code(outer)]
    library = objects.load(codes, ["outer_function"], {"given_function": address})
    assert call(library["outer_function"], 4) == 50
    with pytest.raises(errors.LoweringError, match="missing_function"):
        objects.load(codes, ["missing_function"], {"given_function": address})


def test_wrong_text_is_refused_with_llvms_reason() -> None:
    with pytest.raises(errors.LoweringError, match="LLVM refuses"):
        objects.compile_module("define void @broken( {", TARGET)
