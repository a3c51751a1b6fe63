"""What this machine can do at most: `python -m infini.perf.limits NUM_THREADS DEVICE` prints it as JSON.

The kernels that find out are those of `infini.backends.cpu.limits`; of a GPU, copies inside its memory.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Final

from infini.backends import cuda
from infini.backends.cpu import limits
from infini.backends.cpu.limits import Limits as Limits
from infini.core import config
from infini.perf import record

GPU_WORKING_SETS: Final = (32 << 20, 256 << 20, 2 << 30)  # read and written, in bytes


def measure(num_threads: int) -> Limits:
    """Measure with so many threads. The pool of this process must not be in use yet."""
    config.config.update("num_threads", num_threads)
    return limits.measure()


def measure_gpu(sizes: Sequence[int] = GPU_WORKING_SETS) -> Limits:
    """The rate at which the first GPU copies within its memory; its peak of operations is left open."""
    driver = cuda.CudaBackend().driver(0)
    copied = {}
    for size in sizes:
        source, target = driver.allocate(size // 2), driver.allocate(size // 2)
        measure = driver.timer(functools.partial(driver.move, source.address, target.address, size // 2), 10)
        copied[size] = size / min(measure() for _ in range(5))
    return Limits(0, math.inf, copied, copied)


if __name__ == "__main__":
    count = int(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, record.cpus()[:count])
    json.dump((measure_gpu() if sys.argv[2] == "cuda" else measure(count)).as_json(), sys.stdout)
