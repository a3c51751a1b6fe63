"""The core suite: import, compilation, cost per call, and the demo's train step, with JAX beside it.

Each framework runs in its own process on the same number of CPUs. They take turns case by case, with a pause
in between so that threads that still spin do not punish whoever comes next; the order alternates. A round has
new processes, because compiling for the first time happens once in each. Reported are medians, and the ratio
of the medians.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final

from infini.perf import record

PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table: what is asked of a worker, and in which unit people read it."""

    name: str
    what: str
    unit: str
    scale: float
    turns: int = 1
    count: int = 1


MEASURES: Final = (
    Measure("import", "import the package", "ms", 1e3, turns=3),
    Measure("first_step", "train step: trace, compile, first run", "s", 1.0),
    Measure("train_step", "train step", "ms", 1e3, turns=4, count=3),
    Measure("small_call", "call of a jitted function, 3 arrays", "us", 1e6, turns=5, count=3),
    Measure("tree_call", "call of a jitted function, 64 leaves", "us", 1e6, turns=5, count=3),
    Measure("eager_call", "x + y without jit", "us", 1e6, turns=5, count=3),
)


class Worker:
    """A contender's process."""

    def __init__(self, name: str, num_cpus: int) -> None:
        self.name = name
        # Compiled objects on disk would make the first call of infini a lookup; JAX keeps none by default.
        environment = {**os.environ, "INFINI_NO_CACHE": "1", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infini.perf.worker", name, str(num_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
            cwd=record.ROOT,
        )

    def ask(self, case: str, count: int, size: Mapping[str, int]) -> list[float]:
        """Seconds per call of a case."""
        requests = self.process.stdin
        assert requests is not None
        requests.write(json.dumps({"case": case, "count": count, "size": dict(size)}) + "\n")
        return list(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:  # Any: JSON
        answers: IO[str] | None = self.process.stdout
        assert answers is not None
        line = answers.readline()
        if not line:
            raise RuntimeError(
                f"the {self.name} worker ended with status {self.process.wait()}; see its error above"
            )
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def import_s(name: str) -> float:
    """Seconds that a new process takes to import a framework whose bytecode is there, as after a first use.

    An installation brings its bytecode; a working tree writes its own, unless the environment forbids it,
    and then every import would compile the sources.
    """
    code = f"import time; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"
    environment = {k: text for k, text in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=record.ROOT, env=environment,
        )  # fmt: skip
    return float(done.stdout)


@contextmanager
def running(names: Sequence[str], num_cpus: int) -> Iterator[list[Worker]]:
    """Workers for the frameworks named, ended when the block is left."""
    workers: list[Worker] = []
    try:
        for name in names:
            workers.append(Worker(name, num_cpus))  # noqa: PERF401  # those made so far are ended when one fails
        yield workers
    finally:
        for worker in workers:
            worker.close()


@dataclass(frozen=True, slots=True)
class Summary:
    """Durations of one measure and framework."""

    median_s: float
    low_s: float
    high_s: float
    num_samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """Median, and the quartiles around it."""
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0], len(seconds))
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))


def contenders() -> list[str]:
    """infini, and JAX when it is installed."""
    return ["infini", *(["jax"] if importlib.util.find_spec("jax") else [])]


def measure(
    names: Sequence[str],
    *,
    num_rounds: int,
    num_cpus: int,
    only: Sequence[str] = (),
    size: Mapping[str, int] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Seconds by measure and framework.

    Args:
        names: frameworks that take part.
        num_rounds: how many times new processes are started.
        num_cpus: CPUs of each process.
        only: names of the measures to take; all when empty.
        size: fields of `contenders.ModelSize` other than the demo's.
    """
    chosen = [m for m in MEASURES if not only or m.name in only]
    if any(m.name == "train_step" for m in chosen) and not any(m.name == "first_step" for m in chosen):
        chosen = [m for m in MEASURES if m in chosen or m.name == "first_step"]
    seconds: dict[str, dict[str, list[float]]] = {m.name: {name: [] for name in names} for m in chosen}
    for round_ in range(num_rounds):
        with running(names[:: 1 if round_ % 2 == 0 else -1], num_cpus) as workers:
            for item in chosen:
                for turn in range(item.turns):
                    for worker in workers[:: 1 if turn % 2 == 0 else -1]:
                        time.sleep(PAUSE_S)
                        is_import = item.name == "import"
                        found = (
                            [import_s(worker.name)]
                            if is_import
                            else worker.ask(item.name, item.count, size or {})
                        )
                        seconds[item.name][worker.name] += found
    return seconds


def report(seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:  # Any: JSON
    """Summaries by measure and framework, and the ratio JAX / infini of the medians.

    Above 1 infini is faster.
    """
    out: dict[str, Any] = {}
    for name, by_framework in seconds.items():
        out[name] = {
            framework: dataclasses.asdict(Summary.of(s)) for framework, s in by_framework.items() if s
        }
        if "jax" in out[name]:
            out[name]["jax_over_infini"] = out[name]["jax"]["median_s"] / out[name]["infini"]["median_s"]
    return out
