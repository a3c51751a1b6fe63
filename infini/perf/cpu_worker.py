"""One contender in a process of its own: `python -m infini.perf.cpu_worker NAME NUM_THREADS FOLDER DEVICE`.

Reads requests from standard input, one line of JSON each, and answers each with a line of JSON:

    {"do": "prepare", "workload": name}   -> {"first_s", "difference", "read", "written"} or {"error"}
    {"do": "time", "budget_s": seconds}   -> {"seconds": [per call]}

infini leaves what it computed in FOLDER, and the others compare theirs with that.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from infini import tree
from infini.perf import contestants, record, workloads
from infini.perf.contestants import Name


def main(name: Name, num_threads: int, folder: Path, device: str) -> None:
    """Answer requests until standard input ends."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, record.cpus()[:num_threads])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # Whatever a framework prints must not be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session = Session(contestants.contestant(name, num_threads, device), folder)
    for line in sys.stdin:
        answers.write(json.dumps(session.answer(json.loads(line))) + "\n")


class Session:
    """The workload that is prepared at the moment."""

    def __init__(self, contestant: contestants.Contestant, folder: Path) -> None:
        self.contestant = contestant
        self.folder = folder
        self.timing: contestants.Timing | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        """The answer to one request."""
        if request["do"] == "time":
            assert self.timing is not None
            return {"seconds": self.timing.seconds(request["budget_s"])}
        self.timing = None
        gc.collect()
        try:
            return self._prepare(request["workload"])
        except Exception as error:  # noqa: BLE001  # whatever a framework raises is a finding, not our end
            text = str(error).strip().splitlines() or [""]
            return {"error": f"{type(error).__name__}: {text[0][:300]}"}

    def _prepare(self, name: str) -> dict[str, Any]:  # Any: JSON
        workload = workloads.by_name(name)
        self.timing = timing = contestants.Timing(self.contestant, workload)
        kept = contestants.digest(timing.result)
        arguments = tree.leaves(workload.arguments(np.random.default_rng(0)))
        answer = {
            "first_s": timing.first_s,
            "read": sum(x.nbytes for x in arguments),
            "written": sum(x.nbytes for x in timing.result),
        }
        timing.result.clear()
        file = self.folder / "expected.npz"
        if self.contestant.name == "infini":
            np.savez(file, workload=np.array(name), **kept)  # type: ignore[arg-type]  # the stub means `allow_pickle`
        elif file.exists():
            with np.load(file) as saved:
                expected = dict(saved)
            if str(expected.pop("workload")) == name:
                answer["difference"] = contestants.difference(kept, expected, workload.compared)
        return answer


if __name__ == "__main__":
    name, count, folder, device = sys.argv[1:]
    main(name, int(count), Path(folder), device)  # type: ignore[arg-type]  # a name we pass ourselves
