"""Words between the processes of a job: small messages, on a comm of their own.

Only the thread that calls `save`, `wait`, `latest` and `load` speaks. Threads that write files are silent, so
a checkpoint that is written beside a step cannot come between the collectives of the step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import msgpack

from infini.core import comm


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes of this job, as one of them sees them.

    Args:
        index: number of this process.
        count: number of all.
        line: how they talk; None for a process alone.
    """

    index: int
    count: int
    line: comm.Comm | None

    def gather(self, word: Any) -> list[Any]:  # Any: what msgpack holds
        """What each process says, in every process."""
        if self.line is None:
            return [word]
        return [msgpack.unpackb(found) for found in self.line.gather_bytes(msgpack.packb(word))]

    def tell(self, word: Any) -> Any:  # Any: what msgpack holds
        """What process 0 says, in every process."""
        return word if self.line is None else msgpack.unpackb(self.line.broadcast(msgpack.packb(word)))


def find() -> Peers:
    """The processes of the job that this one has joined; call it in all of them."""
    return _found(comm.processes())


@functools.lru_cache(maxsize=1)
def _found(job: comm.Processes) -> Peers:
    if job.launcher is None or job.count == 1:
        return Peers(0, 1, None)
    return Peers(job.index, job.count, job.launcher.comm(tuple(range(job.count))).duplicate())
