"""The processes of a job under `mpirun`. Nothing is joined until `initialize` is called: importing has
no side effects.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
from collections.abc import Iterator

import msgpack

from infini.backends.spmd import control, failures, job as job_, mpi
from infini.core import backend, comm, config


def initialize() -> None:
    """Join the MPI job this process was started in; `infini.devices()` then lists the devices of all
    processes.

    Call it before anything else, in every process. Without `mpirun` it makes a job of one. When a
    process raises, the whole job ends.

    Raises:
        DeviceError: mpi4py or an MPI library is missing.
        CollectiveError: this process has joined a job before, in another way.

    Example:
        >>> import infini.parallel
        >>> infini.parallel.process_count()
        1
    """
    if comm.processes().launcher is not None:
        return
    with _in_time():
        comm.install_processes(_wait_for_all_processes_to_start())
    backend.forget_default_device()


def _wait_for_all_processes_to_start() -> comm.Processes:
    """The job, when all of its processes are here."""
    carrier = mpi.MpiLauncher()
    job = job_.Job(carrier)
    if job.count == 1:
        return comm.Processes(0, 1, job)
    hooks = failures.Failures(job)
    hooks.install()
    world = carrier.comm(tuple(range(job.count))).duplicate()
    control.open_channel(job, world, hooks)
    return comm.Processes(job.index, job.count, job, _num_sharing(world, job.index))


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """A block in which processes wait for those that never come, and nobody watches yet: a timer of C, which
    needs no lock of Python's, shows where this process is and ends it.
    """
    timeout_s = config.get("collective_timeout_s")
    if not timeout_s or sys.__stderr__ is None:
        yield
        return
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _num_sharing(world: comm.Comm, index: int) -> int:
    """How many processes may use a core that this one may use; they find out together."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    told = [
        msgpack.unpackb(found) for found in world.gather_bytes(msgpack.packb([socket.gethostname(), cpus]))
    ]
    host, own = told[index]
    return sum(other == host and (not own or bool(set(own) & set(theirs))) for other, theirs in told)


def process_index() -> int:
    """Number of this process in its job, from 0."""
    return comm.processes().index


def process_count() -> int:
    """Number of processes of the job."""
    return comm.processes().count
