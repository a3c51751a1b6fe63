"""One engine in several processes: process 0 schedules and samples, all of them compute the model.

Programs over a mesh of several processes have to be called in each of them, in one order, with equal arrays.
So process 0 sends before every call which program it is and its arrays, as msgpack, and the others call what
they are told until the end. Weights and caches never travel; nothing is unpickled.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by name then
import msgpack
import numpy as np

from infini import parallel
from infini.core import backend, comm as comm_, errors
from infini.parallel import processes
from infini.sharding import Mesh, make_mesh

_END: Final = "end"
Call = Callable[..., Any]  # Any: programs take and give pytrees


class Channel:
    """The line from process 0 to the others.

    Args:
        comm: a communicator of its own.
        is_leader: whether this is process 0.
    """

    def __init__(self, comm: comm_.Comm, *, is_leader: bool) -> None:
        self._comm, self.is_leader = comm, is_leader
        self._is_open = True

    def announced(self, name: str, program: Call) -> Call:
        """A program that tells the other processes its name and arrays before it runs.

        Args:
            name: how `follow` knows it.
            program: takes NumPy arrays, and numbers by name.
        """
        if not self.is_leader:
            return program

        def run(*arrays: np.ndarray, **numbers: int) -> Any:  # Any: what the program gives
            self._send(name, arrays, numbers)
            return program(*arrays, **numbers)

        return run

    def follow(self, programs: Mapping[str, Call]) -> None:
        """Run what process 0 runs, until it closes the line.

        Signals that ask a job to end reach all of its processes. Process 0 decides what they mean, for
        example that running answers are finished first; this one goes on until it is let go.

        Args:
            programs: by their names.
        """
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_IGN)
        while True:
            name, arrays, numbers = msgpack.unpackb(self._comm.broadcast(b""))
            if name == _END:
                return
            programs[name](*(_unpacked(*array) for array in arrays), **numbers)

    def agreed(self, number: int) -> int:
        """What process 0 has decided; all processes call this together."""
        return msgpack.unpackb(self._comm.broadcast(msgpack.packb(number)))

    def close(self) -> None:
        """Let the other processes go. May be called again."""
        if self.is_leader and self._is_open:
            self._is_open = False
            self._send(_END, (), {})

    def _send(self, name: str, arrays: Sequence[np.ndarray], numbers: Mapping[str, int]) -> None:
        content = (name, [_packed(np.asarray(array)) for array in arrays], dict(numbers))
        self._comm.broadcast(msgpack.packb(content))


def _packed(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()


def _unpacked(dtype: str, shape: Sequence[int], content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.dtype(dtype)).reshape(shape)


def join(count: int) -> bool:
    """Take part in the job that shares a model.

    Args:
        count: how many devices share it.

    Returns:
        Whether this process leads: others only compute what it computes.
    """
    if count > 1 and processes.is_in_job():
        parallel.initialize()
    return count == 1 or comm_.processes().index == 0


def mesh_of(count: int) -> Mesh:
    """The devices that share a model, as a mesh with the axis "tp".

    Args:
        count: how many.

    Raises:
        ValueMismatchError: there are not so many, or this job has more processes.
    """
    job, devices = comm_.processes(), backend.devices()
    if job.count > 1 and job.count != count:
        raise errors.ValueMismatchError(
            "tensor_parallel_size is not the number of processes",
            got=f"tensor_parallel_size={count} in a job of {job.count} processes",
            expected=f"tensor_parallel_size={job.count}",
            fix=f"start it with mpirun -n {count}",
        )
    if len(devices) < count:
        raise errors.ValueMismatchError(
            "there are fewer devices than should share the model",
            got=f"tensor_parallel_size={count}, {len(devices)} devices",
            fix=f"start it with mpirun -n {count}",
        )
    return make_mesh((count,), ("tp",), devices=devices[:count])


def channel() -> Channel | None:
    """A line to the other processes of this job; None where there are none. They all call this together."""
    job = comm_.processes()
    if job.launcher is None or job.count == 1:
        return None
    comm = job.launcher.unwatched_comm(tuple(range(job.count)))
    return Channel(comm, is_leader=job.index == 0)
