"""The CPU and GPU suites: every workload on infini, JAX, and PyTorch eager and compiled.

Each contender has a process of its own, with the same number of threads; they take turns workload by
workload, with a pause in between so that threads that still spin do not punish whoever comes next, in an
order that alternates. A round has new processes. What a process measures is in `contestants`; what needs a
fresh process for every number (start, compilation, memory) is in `probe`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from infini.perf import record
from infini.perf.contestants import NAMES, Name
from infini.perf.limits import Limits
from infini.perf.workload import Family, Workload

PAUSE_S: Final = 0.04
_PROBE: Final = Path(__file__).with_name("probe.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure.

    Args:
        names: contenders that take part; infini is always one.
        num_rounds: how many times new processes are started.
        num_threads: threads, and CPUs, of each contender.
        turns: how often each contender has its turn at a workload, in each round.
        budget_s: about how long a turn computes.
        patience_s: a contender that needs longer for one answer is ended and counts as failed.
        device: `cpu` or `cuda`.
    """

    names: tuple[Name, ...]
    num_rounds: int = 5
    num_threads: int = 2
    turns: int = 2
    budget_s: float = 0.1
    patience_s: float = 600.0
    device: str = "cpu"


@dataclass(slots=True)
class Measured:
    """What was found about one workload or probe.

    Args:
        name: of the workload.
        family: of the workload.
        unit: `s`, or `B` for memory.
        samples: by contender, one list per round.
        failed: by contender, why there are no samples.
        differences: by contender, largest relative difference of its result from infini's.
        tolerance: largest difference that counts as equal.
        least_s: the shortest time that the measured limits allow; 0 when that says nothing.
        least_share: share of that limit asked of infini.
    """

    name: str
    family: Family
    unit: str = "s"
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    least_s: float = 0.0
    least_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A number that needs a fresh process each.

    Args:
        name: of the line in the table.
        family: row of the table of targets.
        kind: what `probe.py` is asked for.
        options: its options.
        names: contenders it makes sense for.
        has_cache: whether caches on disk are filled, by a run before that is not counted.
        cold_peer: whether infini with its cache meets the peers without theirs.
        unit: `s` or `B`.
        is_quick: whether `--quick` includes it.
    """

    name: str
    family: Family
    kind: str
    names: tuple[Name, ...]
    options: tuple[tuple[str, int], ...] = ()
    has_cache: bool = False
    cold_peer: bool = False
    unit: str = "s"
    is_quick: bool = False


_MODEL: Final = (("layers", 12), ("width", 256), ("batch", 1), ("length", 128))
_BIG: Final = (("layers", 4), ("width", 256), ("batch", 4), ("length", 256))
PROBES: Final = (
    Probe(
        name="gpt_step/l12_m256", family="compile_cold", kind="compile",
        names=("infini", "jax", "torch_compile"), options=_MODEL, is_quick=True,
    ),
    Probe(
        name="gpt_step/l12_m256/warm_to_cold", family="compile_warm", kind="compile",
        names=("infini", "jax"), options=_MODEL, has_cache=True, cold_peer=True, is_quick=True,
    ),
    Probe(
        name="small_program/warm", family="start", kind="start",
        names=("infini", "jax", "torch"), has_cache=True, is_quick=True,
    ),
    Probe(
        name="gpt_step/l4_m256_b4_t256", family="memory", kind="memory",
        names=("infini", "jax", "torch", "torch_compile"), options=_BIG, has_cache=True, unit="B",
        is_quick=True,
    ),
    Probe(
        name="gpt_step/l12_m768_b2_t256", family="memory", kind="memory",
        names=("infini", "jax", "torch", "torch_compile"),
        options=(("layers", 12), ("width", 768), ("batch", 2), ("length", 256)), has_cache=True, unit="B",
    ),
)  # fmt: skip


class WorkerError(RuntimeError):
    """A contender's process ended, or did not answer in time."""


class Worker:
    """A contender's process, started when it is first asked, and again after it failed."""

    def __init__(self, name: Name, options: Options, folder: Path) -> None:
        self.name, self.options, self.folder = name, options, folder
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **request: Any) -> dict[str, Any]:  # Any: JSON
        """The answer to a request.

        Raises:
            WorkerError: there is none.
        """
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
        except BrokenPipeError:
            self._end()
            raise WorkerError(f"the process of {self.name} has ended") from None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            is_ready = bool(selector.select(self.options.patience_s))
        line = process.stdout.readline() if is_ready else ""
        if not line:
            status = self._end()
            why = (
                f"ended with status {status}" if is_ready else f"took more than {self.options.patience_s:g} s"
            )
            raise WorkerError(f"the process of {self.name} {why}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process, after what it does at the moment."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
            self._end()

    def _end(self) -> int:
        """End the process now; the next request starts another. Returns its status."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        self._process = None
        # One that is on its way out has a status of its own, which says more than that it was killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.kill()
        status = process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return status

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable, "-m", "infini.perf.cpu_worker",
                self.name, str(self.options.num_threads), str(self.folder), self.options.device,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=record.ROOT,
            env=environment(self.options.num_threads, self.options.device),
        )  # fmt: skip


def environment(num_threads: int, device: str = "cpu") -> dict[str, str]:
    """Variables that give every contender the same threads and device, and each what is best for it."""
    # On a GPU, float32 is float32 for everyone, and nobody takes the memory of the others.
    on_gpu = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {
        **os.environ,
        **(on_gpu if device == "cuda" else {}),
        "INFINI_DEVICE": device,
        "INFINI_NUM_THREADS": str(num_threads),
        "INFINI_LOG": "error",
        "JAX_PLATFORMS": device,
        "OMP_NUM_THREADS": str(num_threads),
        # Unbound, the workers of PyTorch's OpenMP wake on the caller's CPU after a pause, at a tenth of the
        # speed.
        "OMP_PROC_BIND": "true",
        "OMP_PLACES": "threads",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def installed(names: Sequence[Name] = NAMES) -> tuple[Name, ...]:
    """Those of the contenders whose packages are there, infini first. Kernels in Triton take PyTorch's
    tensors.
    """
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if name != "triton"]
    there = [name for name in names if importlib.util.find_spec(name.partition("_")[0])]
    return ("infini", *(name for name in there if name != "infini"))


def measure_limits(num_threads: int, device: str = "cpu") -> Limits:
    """The limits of the machine, measured in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "infini.perf.limits", str(num_threads), device],
        capture_output=True, text=True, check=True, cwd=record.ROOT,
    )  # fmt: skip
    return Limits.from_json(json.loads(done.stdout))


def measure(
    workloads: Sequence[Workload], options: Options, limits: Limits, progress: Callable[[str], None]
) -> list[Measured]:
    """Take turns at every workload.

    Args:
        workloads: which.
        options: how.
        limits: of this machine.
        progress: told what comes next.
    """
    found = {
        w.name: Measured(w.name, w.family, tolerance=w.tolerance, least_share=w.least_share)
        for w in workloads
    }
    for round_ in range(options.num_rounds):
        with _workers(options) as workers:
            for number, workload in enumerate(workloads):
                progress(f"round {round_ + 1}, {number + 1} of {len(workloads)}: {workload.name}")
                _take_turns(workload, workers, options, limits, found[workload.name], round_)
    return list(found.values())


def _take_turns(
    workload: Workload,
    workers: Sequence[Worker],
    options: Options,
    limits: Limits,
    measured: Measured,
    round_: int,
) -> None:
    """One round of one workload."""
    ready = []
    for worker in workers:
        if worker.name in measured.failed or not _can_run(workload, worker.name):
            continue
        try:
            answer = worker.ask(do="prepare", workload=workload.name)
        except WorkerError as error:
            answer = {"error": str(error)}
        if "error" in answer:
            measured.failed[worker.name] = answer["error"]
            continue
        if worker.name == "infini" and (workload.num_bytes is None or workload.num_bytes or workload.flops):
            read, written = answer["read"], answer["written"]
            if workload.num_bytes is not None:
                read, written = workload.num_bytes, 0.0
            measured.least_s = limits.least_s(workload.flops, read, written)
        if "difference" in answer:
            measured.differences[worker.name] = answer["difference"]
        measured.samples.setdefault(worker.name, []).append([])
        ready.append(worker)
    for turn in range(options.turns):
        for worker in ready[:: 1 if (turn + round_) % 2 == 0 else -1]:
            if worker.name in measured.failed:
                continue
            time.sleep(PAUSE_S)
            try:
                seconds = worker.ask(do="time", budget_s=options.budget_s)["seconds"]
            except WorkerError as error:
                measured.failed[worker.name] = str(error)
                continue
            measured.samples[worker.name][-1] += seconds
    for worker in ready:
        if worker.name in measured.failed:
            measured.samples.pop(worker.name, None)


def _can_run(workload: Workload, name: Name) -> bool:
    if name == "triton":
        return workload.triton is not None
    return workload.torch is not None or not name.startswith("torch")


@contextlib.contextmanager
def _workers(options: Options) -> Iterator[list[Worker]]:
    """The contenders' processes, ended when the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(name, options, Path(folder)) for name in options.names]
        try:
            yield workers
        finally:
            for worker in workers:
                worker.close()


def measure_probes(
    probes: Sequence[Probe], options: Options, progress: Callable[[str], None]
) -> list[Measured]:
    """Take turns at what needs a fresh process for every number."""
    found = []
    for probe in probes:
        measured = Measured(probe.name, probe.family, unit=probe.unit)
        with tempfile.TemporaryDirectory() as folder:
            for round_ in range(options.num_rounds):
                progress(f"round {round_ + 1}: {probe.family} {probe.name}")
                names = [name for name in probe.names if name in options.names]
                for name in names[:: 1 if round_ % 2 == 0 else -1]:
                    if name in measured.failed:
                        continue
                    is_cached = probe.has_cache and (name == "infini" or not probe.cold_peer)
                    cache = Path(folder) / name if is_cached else None
                    try:
                        if is_cached and round_ == 0:
                            _run_probe(probe, name, options, cache)
                        value = _run_probe(probe, name, options, cache)
                    except (WorkerError, subprocess.TimeoutExpired) as error:
                        measured.failed[name] = str(error)[:300]
                        continue
                    measured.samples.setdefault(name, []).append([value])
        found.append(measured)
    return found


def _run_probe(probe: Probe, name: Name, options: Options, cache: Path | None) -> float:
    """One number; without a folder for caches, there are none on disk."""
    time.sleep(PAUSE_S)
    with tempfile.TemporaryDirectory() as empty:
        folder = str(cache or empty)
        environ = environment(options.num_threads) | {
            "INFINI_CACHE_DIR": folder,
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_ENABLE_COMPILATION_CACHE": "true" if cache else "false",
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "BENCHMARK_CPUS": ",".join(map(str, record.cpus()[: options.num_threads])),
            "PYTHONPATH": str(record.ROOT),
        }
        # An installation brings its bytecode; a working tree writes its own, unless it is told not to.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        # Compiling is what is measured: every contender may use all threads for it.
        environ.pop("TORCHINDUCTOR_COMPILE_THREADS", None)
        arguments = dict(probe.options) | ({"num_threads": options.num_threads} if probe.options else {})
        done = subprocess.run(
            [sys.executable, "-P", str(_PROBE), probe.kind, name, json.dumps(arguments)],
            capture_output=True, text=True, check=False, env=environ, timeout=options.patience_s,
        )  # fmt: skip
    if done.returncode:
        # The parts of our errors are indented; the line that names the exception is not.
        named = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
        last = (named or ["no message"])[-1]
        raise WorkerError(f"{name} ended with status {done.returncode}: {last}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["value"])
