"""What GPU kernels cost before they run, measured without a GPU: Triton's compilation, cold and from our
cache, and the host's work for a replayed program beside the calls of the driver.

The kernels are those of small programs of every family; the driver of the second measure does nothing.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from unittest import mock

import numpy as np

from infini import lax, tree
from infini.backends import cuda
from infini.backends.accelerator.driver import DeviceBuffer, Graph
from infini.backends.accelerator.executable import AcceleratorExecutable, tasks_of
from infini.backends.accelerator.tasks import Launch
from infini.compiler.triton import compile as compile_
from infini.compiler.triton.source import TritonSource
from infini.core import config, dtypes, trace
from infini.core.backend import CompileOptions
from infini.core.ir import ArrayType
from infini.perf import contestants, workload as workload_, workloads
from infini.perf.workload import Workload
from infini.perf.workloads import gpu

CAPABILITY: Final = 90
NUM_INPUTS: Final = (4, 100)
_CALLS: Final = 2000
_REPEATS: Final = 5


def sources(chosen: Sequence[Workload]) -> list[TritonSource]:
    """The kernels of some workloads, forward parts only, each once."""
    found: dict[str, TritonSource] = {}
    for workload in chosen:
        types = [
            ArrayType(x.shape, dtypes.canonical(x.dtype))
            for x in map(np.asarray, tree.leaves(workload.arguments(np.random.default_rng(contestants.SEED))))
        ]
        treedef = tree.structure(workload.arguments(np.random.default_rng(0)))
        program = workload.program(workload_.namespace("infini"))

        def flat(*values: Any, program: Any = program, treedef: Any = treedef) -> list[Any]:
            return tree.leaves(program(*tree.unflatten(treedef, values)))

        executable = _compiled(flat, types)
        for task in tasks_of(executable.block):
            source = task.source if isinstance(task, Launch) else task.kernel
            found.setdefault(source.key, source)
    return list(found.values())


def compile_seconds(kernels: Sequence[TritonSource]) -> tuple[list[float], list[float]]:
    """Seconds that each kernel takes to compile for compute capability 9.0: cold, and from our cache."""
    cold: list[float] = []
    cached: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        config.config(cache_dir=folder, no_cache=False),
        mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder}),
    ):
        for kernel in kernels:
            for found in (cold, cached):
                started = time.perf_counter()
                compile_.compile_source(kernel, CAPABILITY)
                found.append(time.perf_counter() - started)
    return cold, cached


def host_seconds(num_inputs: int) -> list[float]:
    """Seconds of a call that replays one graph and whose inputs stay where they are, by repeat."""

    def chain(x: Any, *weights: Any) -> list[Any]:
        for weight in weights:
            x = lax.tanh(lax.dot(x, weight))
        return [x]

    row, square = ArrayType((4, 16), dtypes.float32), ArrayType((16, 16), dtypes.float32)
    executable = _compiled(chain, [row, *[square] * num_inputs])
    driver: Any = _Silent()
    executable.driver = lambda number: driver
    inputs = [driver.allocate(t.nbytes) for t in executable.program.in_types]
    for _ in range(3):
        executable(inputs)
    assert executable.num_replays
    found = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        for _ in range(_CALLS):
            executable(inputs)
        found.append((time.perf_counter() - started) / _CALLS)
    return found


def report(*, is_quick: bool = False) -> dict[str, dict[str, float]]:
    """Both measures as medians with quartiles, in seconds."""
    chosen = [w for w in (*workloads.TINY, *gpu.TINY) if not w.is_step and not w.family.startswith("calls")]
    kernels = sources(chosen[:: 8 if is_quick else 1])
    cold, cached = compile_seconds(kernels)
    found = {"compile cold": _summary(cold), "compile cached": _summary(cached)}
    for count in NUM_INPUTS:
        found[f"host work of a replay, {count + 1} inputs"] = _summary(host_seconds(count))
    return found


def _compiled(function: Callable[..., list[Any]], types: Sequence[ArrayType]) -> AcceleratorExecutable:
    backend = cuda.CudaBackend()
    program = trace.stage(function, types).program
    return backend.compiled_for(backend, program, CompileOptions(deterministic=True))


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_s": median, "low_s": low, "high_s": high, "count": len(seconds)}


class _Silent:
    """A driver whose calls cost nothing: what remains is the work of the host."""

    number = 0
    has_graphs = True
    gemm_library = None
    facts = ()

    def __init__(self) -> None:
        self._end = 1 << 20

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Addresses that nobody has."""
        self._end += nbytes
        return DeviceBuffer(0, self._end, nbytes, None)

    def upload(self, host: np.ndarray) -> DeviceBuffer:
        """As `allocate`."""
        return self.allocate(host.nbytes)

    def duplicate(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """As `allocate`."""
        return self.allocate(buffer.nbytes)

    def beside(self) -> _Silent:
        """Itself."""
        return self

    @contextlib.contextmanager
    def capturing(self, captured: list[Graph]) -> Iterator[None]:
        """An empty graph."""
        yield
        captured.append(Graph(None, ()))

    def function(self, source: TritonSource) -> None:
        """Nothing."""

    def launch(self, *about: object) -> None:
        """Nothing."""

    def move(self, *about: object) -> None:
        """Nothing."""

    def replay(self, graph: Graph) -> None:
        """Nothing."""
