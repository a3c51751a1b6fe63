"""What this machine can do at most: `python -m infini.perf.limits NUM_THREADS` prints it as JSON.

The kernels that find out are those of `infini.backends.cpu.limits`.
"""

from __future__ import annotations

import json
import os
import sys

from infini.backends.cpu import limits
from infini.backends.cpu.limits import Limits as Limits
from infini.core import config
from infini.perf import record


def measure(num_threads: int) -> Limits:
    """Measure with so many threads. The pool of this process must not be in use yet."""
    config.config.update("num_threads", num_threads)
    return limits.measure()


if __name__ == "__main__":
    count = int(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, record.cpus()[:count])
    json.dump(measure(count).as_json(), sys.stdout)
