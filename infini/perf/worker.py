"""One framework in a process of its own: `python -m infini.perf.worker infini|jax NUM_CPUS`.

Reads requests `{"case": name, "count": n, "size": {...}}` from standard input, one per line, and answers each
with a line of JSON: seconds per call. JAX's process has the package infini in memory, which holds the cases,
and uses nothing else of it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from infini.perf import contenders, record


def main(name: contenders.Name, num_cpus: int) -> None:
    """Answer requests until standard input ends."""
    # Both frameworks size their thread pools by the CPUs they may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, record.cpus()[:num_cpus])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # Whatever a framework prints must not be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session = Session(name)
    for line in sys.stdin:
        answers.write(json.dumps(session.answer(json.loads(line))) + "\n")


class Session:
    """The cases of one framework, each made at its first request."""

    def __init__(self, name: contenders.Name) -> None:
        self.framework = contenders.load(name)
        self.made: dict[str, Any] = {}  # Any: a case, or a training whose construction was the measurement

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        """Seconds of one request."""
        case, count = request["case"], request.get("count", 1)
        if case == "first_step":
            size = contenders.ModelSize(**request.get("size", {}))
            self.made["train_step"] = contenders.Training(self.framework, size)
            return {"seconds": [self.made["train_step"].first_s]}
        if case not in self.made:
            self.made[case] = contenders.CASES[case](self.framework)
        return {"seconds": self.made[case](count)}


if __name__ == "__main__":
    main("jax" if sys.argv[1] == "jax" else "infini", int(sys.argv[2]))
