"""The thread pool of the CPU backend: every task runs once, and results do not depend on the threads."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from infini.backends.cpu import objects, runtime
from infini.backends.cpu.pool import Pool, num_cores, shared
from infini.compiler.llvm import kernels
from infini.compiler.llvm.target import host_target
from infini.core import config, dtypes, errors
from infini.lax import elementwise as e
from tests.compiler import llvm_kernels as k

LINUX = sys.platform.startswith("linux")
KINDS = [pytest.param(True, marks=pytest.mark.skipif(not LINUX, reason="futex is Linux's")), False]

# Adds the task's number plus one to element `task` of an array of i64.
COUNT = """
define void @count_tasks(ptr %args, i64 %task) nounwind {
  %place = getelementptr i64, ptr %args, i64 %task
  %before = load i64, ptr %place
  %more = add i64 %task, 1
  %after = add i64 %before, %more
  store i64 %after, ptr %place
  ret void
}
"""


@pytest.fixture(scope="module")
def count() -> int:
    target = host_target()
    text = f'target triple = "{target.triple}"\n{COUNT}'
    with config.config(no_cache=True):
        return objects.load([objects.compile_module(text, target)], ["count_tasks"])["count_tasks"]


@pytest.fixture(params=KINDS, ids=["native", "portable"])
def is_native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[1, 2, 4])
def pool(request: pytest.FixtureRequest, is_native: bool) -> Iterator[Pool]:
    made = Pool(request.param, is_native=is_native)
    yield made
    made.stop()


def test_every_task_of_many_tiny_phases_runs_once(pool: Pool, count: int) -> None:
    numbers = (ctypes.c_int64 * 100)()
    sizes = [1, 2, 3, 7, 16, 100]
    for i in range(600):
        pool.run(count, ctypes.addressof(numbers), sizes[i % len(sizes)], wake=i % 5 == 0)
    runs = [sum(100 for size in sizes if task < size) for task in range(100)]
    assert list(numbers) == [(task + 1) * n for task, n in enumerate(runs)]


def all_have_parked(pool: Pool) -> bool:
    """Whether all workers sleep at some moment; one may look up again at the next, so it is seen once."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if pool.num_parked() == pool.num_threads - 1:
            return True
        time.sleep(0.001)
    return False


def test_workers_park_and_come_back(pool: Pool, count: int) -> None:
    numbers = (ctypes.c_int64 * 64)()
    for round_ in range(1, 4):
        pool.run(count, ctypes.addressof(numbers), 64)
        assert all_have_parked(pool)
        assert list(numbers) == [(task + 1) * round_ for task in range(64)]


@pytest.mark.skipif(not LINUX, reason="futex is Linux's")
def test_short_programs_wake_workers_only_when_they_are_many(count: int) -> None:
    pool, numbers = Pool(2, is_native=True), (ctypes.c_int64 * 8)()
    epoch = ctypes.c_int32.from_address(pool.memory + runtime.EPOCH)
    assert all_have_parked(pool)
    before, few = epoch.value, runtime.WAKE_TASKS // 8 - 1
    for _ in range(few):
        pool.run(count, ctypes.addressof(numbers), 8, wake=False)
    assert epoch.value == before
    pool.run(count, ctypes.addressof(numbers), 8, wake=False)
    assert epoch.value == before + 1
    assert list(numbers) == [(task + 1) * (few + 1) for task in range(8)]
    pool.stop()


def test_programs_of_several_python_threads_do_not_mix(pool: Pool, count: int) -> None:
    arrays = [(ctypes.c_int64 * 50)() for _ in range(4)]

    def work(numbers: ctypes.Array[ctypes.c_int64]) -> None:
        for _ in range(100):
            pool.run(count, ctypes.addressof(numbers), 50)

    threads = [threading.Thread(target=work, args=(numbers,)) for numbers in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(list(numbers) == [(task + 1) * 100 for task in range(50)] for numbers in arrays)


def test_begin_and_end_nest(pool: Pool, count: int) -> None:
    begin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)(pool.symbols["infini_begin"])
    end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(pool.symbols["infini_end"])
    numbers = (ctypes.c_int64 * 20)()
    begin(pool.memory, 1)
    pool.run(count, ctypes.addressof(numbers), 20)
    assert ctypes.c_int64.from_address(pool.memory + runtime.OWNER).value != 0
    end(pool.memory)
    assert ctypes.c_int64.from_address(pool.memory + runtime.OWNER).value == 0


def test_more_tasks_than_a_byte_counts(is_native: bool, count: int) -> None:
    pool = Pool(2, is_native=is_native)
    numbers = (ctypes.c_int64 * 100_000)()
    pool.run(count, ctypes.addressof(numbers), 100_000)
    assert list(numbers) == list(range(1, 100_001))
    pool.stop()


def test_results_are_equal_bit_by_bit_for_any_number_of_threads(
    is_native: bool, rng: np.random.Generator
) -> None:
    x, y = (rng.standard_normal((300, 257)).astype(np.float32) for _ in range(2))
    kernel = k.blocks(lambda a, b: e.mul(e.tanh(a), b), x.size, 512, dtypes.float32, dtypes.float32)
    phase = kernels.emit_kernel(kernel, [t.update(shape=(x.size,)) for t in k.types(x, y)], host_target())
    (function,) = k.load([phase])
    results = []
    for num_threads in (1, 2, 4):
        pool = Pool(num_threads, is_native=is_native)
        out = np.zeros_like(x)
        args = (ctypes.c_void_p * 3)(x.ctypes.data, y.ctypes.data, out.ctypes.data)
        for _ in range(20):
            pool.run(function, ctypes.addressof(args), phase.num_tasks)
        results.append(out.tobytes())
        pool.stop()
    assert results[0] == results[1] == results[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_a_fork_has_a_working_pool(is_native: bool, count: int) -> None:
    numbers = (ctypes.c_int64 * 30)()
    with config.config(pool="native" if is_native else "portable", num_threads=2):
        pool = shared()
        pool.run(count, ctypes.addressof(numbers), 30)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pool.run(count, ctypes.addressof(numbers), 30)
                renewed = shared()
                renewed.run(count, ctypes.addressof(numbers), 30)
                is_right = list(numbers) == [(task + 1) * 3 for task in range(30)]
                code = 0 if is_right and renewed is not pool else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pool.run(count, ctypes.addressof(numbers), 30)
        assert list(numbers) == [(task + 1) * 2 for task in range(30)]


def test_shared_pool_follows_the_knobs() -> None:
    with config.config(num_threads=3, pool="portable"):
        first, again = shared(), shared()
    assert first is again
    assert (first.num_threads, first.is_native) == (3, False)
    assert num_cores() >= 1


@pytest.mark.skipif(LINUX, reason="Linux has it")
def test_native_pool_elsewhere_is_refused() -> None:
    with pytest.raises(errors.DeviceError, match="needs Linux"):
        Pool(2, is_native=True)


@pytest.mark.parametrize("triple, platform", [
    ("aarch64-unknown-linux-gnu", "linux"),
    ("arm64-apple-darwin", "darwin"),
    ("x86_64-pc-windows-msvc", "win32"),
])  # fmt: skip
def test_runtime_compiles_for_other_systems(triple: str, platform: str) -> None:
    from infini.compiler.llvm.target import make_target

    cpu = "x86-64" if triple.startswith("x86") else "generic"
    target = make_target(triple, cpu, "+sse2" if triple.startswith("x86") else "+neon")
    text = runtime.runtime_text(target, platform, is_native=platform == "linux")
    with config.config(no_cache=True):
        assert len(objects.compile_module(text, target)) > 500
