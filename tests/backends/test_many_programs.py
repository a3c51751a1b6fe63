"""Programs are mapped memory, of which the system gives a process only so much."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.backends.cpu import elf, jit_link, objects
from infini.core import errors


def test_functions_of_arrays_keep_few_programs() -> None:
    gc.collect()
    before = len(objects._LIBRARIES)
    for n in range(1, 200):
        inp.tanh(inp.ones(n))
    infini.clear_caches()
    gc.collect()
    assert len(objects._LIBRARIES) < before + 150


def test_too_many_programs_of_llvm_s_linker_is_an_error_and_not_the_end(monkeypatch: Any) -> None:
    kept = []
    with infini.config(no_cache=True):
        gc.collect()
        monkeypatch.setattr(elf, "is_supported", lambda: False)
        monkeypatch.setattr(objects, "MAX_LIBRARIES", jit_link.num_loaded() + 6)
        with pytest.raises(errors.LoweringError, match="too many compiled programs"):
            for i in range(40):
                kept.append(infini.jit(lambda x, i=i: inp.sin(x) + inp.cumsum(x) * (i + 0.123)))
                kept[-1](np.ones(5, np.float32))
        monkeypatch.undo()
    np.testing.assert_allclose(infini.jit(lambda x: x * 3)(np.ones(2)), [3, 3])


# Pages of free memory lie 3 GiB from each other, as in a long process that has mapped and unmapped much.
SCATTERED = """
import ctypes, sys
import numpy as np
import infini as inf, infini.numpy as inp
from infini.backends.cpu import elf

page, GiB = 4096, 1 << 30
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def reserve(size):
    anonymous_private_unreserved = 0x4022
    return libc.mmap(None, size, 0, anonymous_private_unreserved, -1, 0)

if sys.argv[1:] == ["llvm"]:
    elf.is_supported = lambda: False
inf.jit(lambda x: x + 1)(1.0)
start = reserve(300 * GiB)
for size in (GiB, GiB >> 4, GiB >> 8, GiB >> 12, GiB >> 16, page):
    while (filled := reserve(size)) > start:
        pass
    libc.munmap(filled, size)
for i in range(1, 99):
    assert libc.munmap(start + 3 * i * GiB, page) == 0
for i in range(12):
    found = inf.jit(lambda x: inp.sin(x) * i + inp.exp(x))(np.ones(7, np.float32))
    np.testing.assert_allclose(found, np.sin(np.ones(7)) * i + np.exp(np.ones(7)), rtol=1e-6)
print("linked")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the flags of mmap are Linux's")
@pytest.mark.parametrize("linker", ["own", "llvm"])
def test_programs_link_where_free_memory_is_scattered(linker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCATTERED, linker], capture_output=True, text=True, timeout=300,
        env={**os.environ, "INFINI_DEVICE": "cpu", "INFINI_NO_CACHE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "linked\n"
