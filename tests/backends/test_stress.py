"""Threads, forks, nested calls, interruption, thousands of compilations: results stay right, memory stays."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax

ON_CPU = {**os.environ, "INFINI_DEVICE": "cpu", "INFINI_NUM_THREADS": "2"}


def run_python(text: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-W", "ignore::DeprecationWarning", "-c", text],
        capture_output=True, text=True, timeout=600, env={**ON_CPU, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- threads ----------------------------------------------------------------------------------------


def _programs() -> list[tuple[Any, Callable[[int], tuple[Any, ...]], list[bytes]]]:
    """Three jitted functions, makers of their arguments, and the bits of their results for 8 arguments."""
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal((200, 300)).astype(np.float32) for _ in range(8)]
    square = rng.standard_normal((300, 300)).astype(np.float32)
    small = inf.jit(lambda x, y: (x * 2 + y, (x - y).sum()))
    large = inf.jit(lambda x: inp.tanh(x @ square) / (1 + inp.exp(x).sum(-1, keepdims=True)))
    step = inf.jit(
        lambda state, x: {k: v * 0.5 + x[: v.shape[0]] for k, v in state.items()}, donate_argnums=0
    )
    calls: list[tuple[Any, Callable[[int], tuple[Any, ...]]]] = [
        (small, lambda i: (inp.asarray(wide[i][0]), inp.asarray(wide[i][1]))),
        (large, lambda i: (inp.asarray(wide[i]),)),
        (
            step,
            lambda i: ({"a": inp.asarray(wide[i]), "b": inp.asarray(wide[i][:50])}, inp.asarray(wide[-i])),
        ),
    ]
    return [(f, given, [_bits(f(*given(i))) for i in range(8)]) for f, given in calls]


def _bits(results: Any) -> bytes:
    return b"".join(np.asarray(x).tobytes() for x in inf.tree.leaves(results))


def _call_from_threads(seconds: float) -> int:
    """Calls made by 8 threads, each result compared."""
    made = _programs()
    end = time.monotonic() + seconds

    def work(number: int) -> int:
        count = 0
        while time.monotonic() < end or count < 10:
            function, given, expected = made[(count + number) % 3]
            i = (count * 5 + number) % 8
            assert _bits(function(*given(i))) == expected[i]
            count += 1
        return count

    with ThreadPoolExecutor(8) as threads:
        return sum(threads.map(work, range(8)))


def test_threads_that_share_programs_get_their_own_results() -> None:
    with inf.config(device="cpu"):
        assert _call_from_threads(2.0) >= 80


@pytest.mark.night
def test_threads_that_share_programs_for_a_minute() -> None:
    assert _call_from_threads(60.0) >= 80


def test_programs_run_while_others_are_compiled() -> None:
    made, is_over = _programs(), threading.Event()

    def compile_others() -> None:
        for i in range(15):
            value = float(inf.jit(lambda x, i=i: (x * i + 1).sum())(inp.ones(50 + i)))
            assert value == (50 + i) * (i + 1)
        is_over.set()

    def call(number: int) -> None:
        while not is_over.is_set():
            for function, given, expected in made:
                assert _bits(function(*given(number))) == expected[number]

    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(compile_others), *(threads.submit(call, i) for i in range(3))]
        for job in jobs:
            job.result()


def test_a_function_may_be_forgotten_while_it_runs() -> None:
    """Its machine code and the words of its calls live until the call is over."""
    function = [inf.jit(lambda x: lax.fori_loop(0, 40, lambda i, v: inp.sin(v) * 1.01, x))]
    x = inp.asarray(np.linspace(0, 1, 20_000, dtype=np.float32))
    expected = _bits(function[0](x))
    _ = function[0](x), function[0](x)

    def call() -> None:
        for _ in range(12):
            assert _bits(function[0](x)) == expected

    def replace() -> None:
        for _ in range(12):
            body = function[0].fun
            function[0] = inf.jit(body)
            inf.clear_caches()
            gc.collect()

    with ThreadPoolExecutor(3) as threads:
        for job in (threads.submit(call), threads.submit(call), threads.submit(replace)):
            job.result()


def test_a_callback_may_call_jitted_functions() -> None:
    inner = inf.jit(lambda x: inp.tanh(x @ x).sum())

    def host(x: np.ndarray) -> np.ndarray:
        return np.asarray(inner(x))

    outer = inf.jit(
        lambda x: inf.pure_callback(host, inf.ShapeDtypeStruct((), np.float32), inp.sin(x)) + inp.cos(x).sum()
    )
    x = np.random.default_rng(2).standard_normal((300, 300)).astype(np.float32)
    expected = float(inner(inp.sin(x))) + float(inp.cos(x).sum())
    for _ in range(5):
        assert float(outer(x)) == pytest.approx(expected, rel=1e-5)


FORK = """
import os
import numpy as np
import infini as inf, infini.numpy as inp
from infini.backends.cpu import pool

x = np.random.default_rng(0).standard_normal((700, 700)).astype(np.float32)
f = inf.jit(lambda x: inp.tanh(x @ x).sum(0))

def bits():
    return np.asarray(f(inp.asarray(x))).tobytes()

expected, before = [bits() for _ in range(3)][0], pool.shared()

def is_right():
    compiled = float(inf.jit(lambda x: x * 3)(2.0)) == 6
    renewed = pool.shared()
    return compiled and all(bits() == expected for _ in range(3)) and renewed is not before and (
        renewed.num_threads == 2
    )

def in_child(check):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

assert in_child(is_right)
assert in_child(lambda: is_right() and in_child(is_right) and is_right())
assert pool.shared() is before and bits() == expected
print("parent and children agree")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_programs_run_in_parallel_on_both_sides_of_a_fork() -> None:
    assert run_python(FORK) == "parent and children agree\n"


# --- interruption -----------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, threading
import numpy as np
import infini as inf, infini.numpy as inp
from infini import lax

kept, given = inp.arange(5.0), inp.ones((600, 600))
steps = inf.jit(lambda x, k: lax.fori_loop(0, 10**9, lambda i, v: inp.tanh(v @ x) + k[0], x))
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    steps(given, kept)
    raise SystemExit("it ended by itself")
except KeyboardInterrupt:
    pass
assert not given.is_deleted()
assert float(given.sum()) == 360_000 and kept.sum() == 10
assert float(inf.jit(lambda x: (x @ x).sum())(given)) == 600.0**3
print("usable")
"""


def test_arrays_stay_usable_after_an_interruption() -> None:
    assert run_python(INTERRUPTED) == "usable\n"


# --- floating-point mode ----------------------------------------------------------------------------


def test_workers_keep_subnormal_numbers_as_the_caller_does() -> None:
    tiny = np.full(2_000_000, 3e-39, np.float32)
    with inf.config(num_threads=3, device="cpu"):
        halves = np.asarray(inf.jit(lambda x: x * 0.5)(tiny))
    assert (halves == np.float32(3e-39) * np.float32(0.5)).all()
    assert (halves > 0).all()


ROUNDING = """
import ctypes
import numpy as np
import infini as inf, infini.numpy as inp

library = ctypes.CDLL("libm.so.6")
x = inp.asarray(np.linspace(1, 2, 3_000_000, dtype=np.float32))
y = inp.asarray(np.float32(3.0))
f = inf.jit(lambda x, y: x / y)
nearest = np.asarray(f(x, y))
UPWARD = 0x800
assert library.fesetround(UPWARD) == 0
upward = np.asarray(f(x, y))
library.fesetround(0)
exact = np.asarray(x).astype(np.float64) / 3
assert (upward >= exact).all(), "some threads round to nearest"
assert (upward != nearest).any()
assert (np.asarray(f(x, y)) == nearest).all(), "a worker kept the mode"
print("rounded alike")
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="fesetround's numbers are x86's"
)
def test_workers_round_as_the_caller_does() -> None:
    assert run_python(ROUNDING) == "rounded alike\n"


# --- memory -----------------------------------------------------------------------------------------

COMPILATIONS = """
import ctypes, functools, gc, sys
import numpy as np
import infini as inf, infini.numpy as inp
from infini.backends.cpu import call_path, link
from infini.core import execute

# Caches with a bound are made small or emptied: what is left is what would grow for ever.
execute._executables.limit = 20
execute._equations.limit = 20

def empty_bounded():
    for item in gc.get_objects():
        if isinstance(item, functools._lru_cache_wrapper) and item.__module__.startswith("infini"):
            if item.cache_parameters()["maxsize"] is not None:
                item.cache_clear()

def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def compile_one(i):
    captured = inp.full(100, float(i))
    function = inf.jit(lambda x, s: {"sum": (inp.tanh(x) * float(i) + captured).sum(), "x": x @ x.T - s})
    for _ in range(3):
        x = inp.ones((3, 100))
        found = function(x, 2.0)
    assert float(found["x"][0, 0]) == 98.0

def counts():
    empty_bounded()
    gc.collect()
    return [len(gc.get_objects()), len(link._loaded), len(call_path._LIVE), resident()]

warm, count = int(sys.argv[1]), int(sys.argv[2])
for i in range(warm):
    compile_one(i)
before = counts()
for i in range(warm, warm + count):
    compile_one(i)
after = counts()
print(*[b - a for a, b in zip(before, after)])
"""


def _growth(warm: int, count: int) -> tuple[float, ...]:
    """What one compilation leaves behind: objects, loaded libraries, call paths, resident bytes."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILATIONS, str(warm), str(count)],
        capture_output=True, text=True, timeout=3000, env={**ON_CPU, "INFINI_NO_CACHE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tuple(int(text) / count for text in done.stdout.split())


def test_compilations_leave_nothing_behind() -> None:
    num_objects, num_libraries, num_paths, num_bytes = _growth(60, 240)
    assert num_objects < 0.2
    assert num_libraries < 0.2
    assert num_paths < 0.2
    assert num_bytes < 40_000  # the heap still settles; code that stays mapped was 200 kB a compilation


@pytest.mark.night
def test_ten_thousand_compilations_leave_nothing_behind() -> None:
    num_objects, _, _, num_bytes = _growth(2000, 10_000)
    assert num_objects < 0.1
    assert num_bytes < 2_000
