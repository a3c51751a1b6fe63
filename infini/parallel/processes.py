"""The processes of a job under `mpirun`. Nothing is joined until `initialize` is called: importing has
no side effects.
"""

from __future__ import annotations

from infini.backends.spmd import control, failures, job as job_, mpi
from infini.core import backend, comm


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
    carrier = mpi.MpiLauncher()
    job = job_.Job(carrier)
    comm.install_processes(comm.Processes(job.index, job.count, job))
    if job.count > 1:
        hooks = failures.Failures(job)
        hooks.install()
        control.open_channel(job, carrier.comm(tuple(range(job.count))).duplicate(), hooks)
    backend.forget_default_device()


def process_index() -> int:
    """Number of this process in its job, from 0."""
    return comm.processes().index


def process_count() -> int:
    """Number of processes of the job."""
    return comm.processes().count
