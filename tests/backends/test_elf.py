"""Object files loaded without LLVM: what LLVM's linker makes of the same files is the oracle."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import infini as inf
from infini.backends.cpu import code_memory, elf, generator, jit_link, objects
from infini.compiler.llvm import target
from infini.core import errors

pytestmark = pytest.mark.skipif(not elf.is_supported(), reason="objects are loaded so on Linux on x86-64")

# Constants, a table of jumps, a zeroed variable, functions of this file and of the C library.
TEXT = """
@count = internal global i64 0
@table = private constant [4 x i64] [i64 11, i64 22, i64 33, i64 44]

declare double @cbrt(double)
declare i64 @outside(i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define i64 @counted() {
  %before = load i64, ptr @count
  %after = add i64 %before, 1
  store i64 %after, ptr @count
  ret i64 %after
}

define i64 @of_table(i64 %i) {
  %p = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %x = load i64, ptr %p
  ret i64 %x
}

define double @root(double %x) {
  %y = call double @cbrt(double %x)
  %z = fmul double %y, 3.25
  ret double %z
}

define i64 @asks(i64 %x) {
  %y = call i64 @outside(i64 %x)
  %z = add i64 %y, 1
  ret i64 %z
}

define i64 @chosen(i64 %x) {
  switch i64 %x, label %other [
    i64 0, label %a i64 1, label %b i64 2, label %c i64 3, label %d i64 4, label %e
  ]
a:
  %u = call i64 @counted()
  ret i64 100
b:
  %v = call i64 @of_table(i64 2)
  ret i64 %v
c:
  ret i64 7
d:
  %w = call i64 @asks(i64 5)
  ret i64 %w
e:
  ret i64 -3
other:
  ret i64 0
}

define i64 @cleared(i64 %n) {
  %p = alloca i8, i64 %n
  store i8 9, ptr %p
  call void @llvm.memset.p0.i64(ptr %p, i8 1, i64 %n, i1 false)
  %x = load i8, ptr %p
  %y = zext i8 %x to i64
  ret i64 %y
}
"""
NAMES = ["counted", "of_table", "root", "asks", "chosen", "cleared"]


def compiled(text: str) -> bytes:
    host = target.host_target()
    return generator.generate(f'target triple = "{host.triple}"\n{text}', host, objects.CODE_LEVEL)


def far_function() -> int:
    """A function that doubles its argument, in the lowest 2 GiB: out of reach of code mapped as usual."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    low = 0x40  # MAP_32BIT
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | low
    page = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert 0 < page < 1 << 32
    ctypes.memmove(page, b"\x48\x8d\x04\x3f\xc3", 5)  # lea rax, [rdi + rdi]; ret
    assert libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) == 0
    return int(page)


def results(loaded: Any) -> list[float]:
    def function(name: str, result: type, *types: type) -> Any:
        return ctypes.CFUNCTYPE(result, *types)(loaded.addresses[name])

    number = ctypes.c_int64
    counted, chosen = function("counted", number), function("chosen", number, number)
    root, of_table = function("root", ctypes.c_double, ctypes.c_double), function("of_table", number, number)
    return [
        counted(), counted(), *(of_table(i) for i in range(4)), root(27.0), root(-2.0),
        function("asks", number, number)(21), *(chosen(i) for i in range(-1, 6)), counted(),
        function("cleared", number, number)(100_000),
    ]  # fmt: skip


def test_functions_do_what_they_do_when_llvm_loads_them() -> None:
    code, externs = compiled(TEXT), {"outside": far_function()}
    ours, theirs = elf.load([code], NAMES, externs), jit_link.load([code], NAMES, externs)
    assert results(ours) == results(theirs)
    assert results(ours)[8] == 43


def test_files_call_each_other() -> None:
    first = compiled("declare i64 @two()\ndefine i64 @one() {\n%x = call i64 @two()\nret i64 %x\n}")
    second = compiled("define i64 @two() {\nret i64 2\n}")
    loaded = elf.load([first, second], ["one"], {})
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(loaded.addresses["one"])() == 2


def test_code_cannot_be_written_and_variables_not_executed() -> None:
    library = elf.load([compiled(TEXT)], NAMES, {"outside": far_function()})
    rights = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(x, 16) for x in line.split()[0].split("-"))
        for name, address in (("code", library.addresses["root"]), ("data", library.pages.data)):
            if start <= address < stop:
                rights[name] = line.split()[1]
    assert rights == {"code": "r-xp", "data": "rw-p"}


def test_memory_is_used_again_and_takes_few_maps() -> None:
    code = compiled("define i64 @one() {\nret i64 1\n}")
    held = [elf.load([code], ["one"], {}) for _ in range(3)]
    before = len(Path("/proc/self/maps").read_text().splitlines())
    held += [elf.load([code], ["one"], {}) for _ in range(500)]
    assert len(Path("/proc/self/maps").read_text().splitlines()) < before + 20
    places = {x.pages.code for x in held[3:]}
    del held[3:]
    gc.collect()
    again = [elf.load([code], ["one"], {}) for _ in range(400)]
    assert len(places & {x.pages.code for x in again}) >= 390
    assert all(ctypes.CFUNCTYPE(ctypes.c_int64)(x.addresses["one"])() == 1 for x in again)


def test_code_outlives_the_module_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a process, where the names of a module are gone before the last objects are."""
    pages = code_memory.CodePages(10, 0)
    monkeypatch.setattr(code_memory, "_ALLOCATOR", None)
    pages.__del__()


@pytest.mark.parametrize(
    "text",
    [
        "@v = global i64 5\ndefine i64 @f() {\n%x = load i64, ptr @v\nret i64 %x\n}",
        "@v = thread_local global i64 0\ndefine i64 @f() {\n%x = load i64, ptr @v\nret i64 %x\n}",
    ],
)
def test_what_is_not_loaded_here_is_refused(text: str) -> None:
    with pytest.raises(elf.UnsupportedError):
        elf.load([compiled(text)], ["f"], {})


def test_what_is_refused_goes_to_llvm() -> None:
    code = compiled("@v = global i64 5\ndefine i64 @f() {\n%x = load i64, ptr @v\nret i64 %x\n}")
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(objects.load([code], ["f"])["f"])() == 5


def test_broken_files_are_refused() -> None:
    code = compiled(TEXT)
    for broken in (
        b"",
        b"\x7fELF",
        code[:40],
        code[:300],
        code[: len(code) // 2],
        code[:-100],
        b"#!/bin/sh\n" * 50,
    ):
        with pytest.raises((elf.UnsupportedError, KeyError)):
            elf.load([broken], NAMES, {"outside": 1})


def test_a_missing_function_is_named() -> None:
    code = compiled("declare i64 @nowhere()\ndefine i64 @f() {\n%x = call i64 @nowhere()\nret i64 %x\n}")
    with pytest.raises(errors.LoweringError, match="nowhere"):
        objects.load([code], ["f"])
    with pytest.raises(errors.LoweringError, match="another"):
        objects.load([compiled("define i64 @f() {\nret i64 1\n}")], ["another"])


WARM = """
import sys
import infini as inf, infini.numpy as inp

x = inp.linspace(0.0, 1.0, 12).reshape(3, 4)
step = inf.jit(inf.value_and_grad(lambda x: (inp.sin(x) @ x.T).sum() + inp.cumsum(x, 0).max()))
print(*step(x)[1].ravel(), "llvmlite" in sys.modules)
"""


def test_a_warm_start_needs_no_llvm(tmp_path: Path) -> None:
    def run() -> list[str]:
        knobs = {"INFINI_CACHE_DIR": str(tmp_path), "INFINI_DEVICE": "cpu", "INFINI_NO_CACHE": ""}
        done = subprocess.run(
            [sys.executable, "-c", WARM], capture_output=True, text=True, check=True,
            env={**os.environ, **knobs},
        )  # fmt: skip
        return done.stdout.split()

    cold, warm = run(), run()
    assert cold[:-1] == warm[:-1]
    assert (cold[-1], warm[-1]) == ("True", "False")


def test_programs_give_the_same_when_llvm_links_them(monkeypatch: Any) -> None:
    def found() -> list[float]:
        inf.clear_caches()
        return [float(x) for x in inf.jit(lambda x: inf.numpy.tanh(x * 1.125))(inf.numpy.arange(9.0))]

    with inf.config(no_cache=True):
        ours = found()
        monkeypatch.setattr(elf, "is_supported", lambda: False)
        assert found() == ours
