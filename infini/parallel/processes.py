"""The processes of a job: those of an `mpirun`, or those that meet at an address. Nothing is joined until
`initialize` is called: importing has no side effects.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgpack

from infini.backends.spmd import control, failures, job as job_, mpi, tcp
from infini.core import backend, comm, config, errors

_FOR_EVER_S: Final = 1e7
# Set by the launchers of MPICH and its kin, of Open MPI, and by srun.
_JOB_SIZES: Final = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join a job; `infini.devices()` then lists the devices of all processes.

    The arguments are those of `jax.distributed.initialize`. Call it before anything else, in every process.
    Without arguments it is the MPI job this process was started in, or a job of one. With all three the
    processes meet at an address, and talk by TCP, which is for machines without an MPI. When a process
    raises, the whole job ends.

    Args:
        coordinator_address: host of process 0 and a free port there, such as `10.0.0.1:1234`.
        num_processes: number of processes of the job.
        process_id: number of this one, from 0.

    Raises:
        DeviceError: mpi4py or an MPI library is missing, the launcher is that of another MPI, or process 0
            cannot listen at the address.
        ValueMismatchError: only some of the arguments were given, or one has a wrong value.
        CollectiveError: the other processes did not come within the seconds of the knob
            `collective_timeout_s`, or their numbers do not make a job.

    Example:
        >>> import infini.parallel
        >>> infini.parallel.process_count()
        1
    """
    if comm.processes().launcher is not None:
        return
    if coordinator_address is None and num_processes is None and process_id is None:
        with _in_time():
            comm.install_processes(_wait_for_all_processes_to_start())
    elif coordinator_address is None or num_processes is None or process_id is None:
        raise errors.ValueMismatchError(
            "initialize needs all of its arguments, or none",
            got=f"{coordinator_address=}, {num_processes=}, {process_id=}",
            expected="coordinator_address, num_processes and process_id; or nothing under mpirun",
        )
    else:
        timeout_s = config.get("collective_timeout_s") or _FOR_EVER_S
        comm.install_processes(
            _job(tcp.TcpCarrier(coordinator_address, num_processes, process_id, timeout_s))
        )
    backend.forget_default_device()


def _wait_for_all_processes_to_start() -> comm.Processes:
    """The MPI job, when all of its processes are here.

    Raises:
        DeviceError: the launcher is of another MPI, so that every process is alone.
    """
    carrier = mpi.MpiLauncher()
    if carrier.count == 1 and (told := _told_sizes()):
        (name, count), *_ = told.items()
        raise errors.DeviceError(
            "this process was started beside others, and MPI does not know them",
            got=f"{name}={count}, and one process in MPI: {mpi.load().Get_library_version().splitlines()[0]}",
            expected="a launcher of the MPI that mpi4py loads",
            fix="start with the mpirun of that MPI; the one of `pip install infini[mpi]` is beside python",
        )
    return _job(carrier)


def _job(carrier: job_.Carrier) -> comm.Processes:
    """The job of a carrier, watched."""
    job = job_.Job(carrier)
    if job.count == 1:
        return comm.Processes(0, 1, job)
    hooks = failures.Failures(job)
    hooks.install()
    world = carrier.comm(tuple(range(job.count))).duplicate()
    control.open_channel(job, world, hooks)
    return comm.Processes(job.index, job.count, job, *_neighbours(world, job.index))


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


def _neighbours(world: comm.Comm, index: int) -> tuple[int, int]:
    """How many processes may use a core that this one may use, and its number among those of its machine;
    they find out together.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    told = [
        msgpack.unpackb(found) for found in world.gather_bytes(msgpack.packb([socket.gethostname(), cpus]))
    ]
    host, own = told[index]
    num_sharing = sum(other == host and (not own or bool(set(own) & set(theirs))) for other, theirs in told)
    return num_sharing, sum(other == host for other, _ in told[:index])


def process_index() -> int:
    """Number of this process in its job, from 0."""
    return comm.processes().index


def process_count() -> int:
    """Number of processes of the job."""
    return comm.processes().count


def is_in_job() -> bool:
    """Whether a launcher has started this process beside others."""
    return bool(_told_sizes())


def _told_sizes() -> dict[str, int]:
    """How many processes the launchers say that there are, by variable, where they are several."""
    found = {name: os.environ.get(name, "") for name in _JOB_SIZES}
    return {name: int(text) for name, text in found.items() if text.isdecimal() and int(text) > 1}


def mpirun(processes: int) -> list[str]:
    """The beginning of a command that starts so many processes on this machine; nothing for one.

    Args:
        processes: how many.

    Raises:
        DeviceError: there is no mpirun beside this Python, nor in PATH.
    """
    if processes == 1:
        return []
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise errors.DeviceError(
            "there is no mpirun to start several processes with",
            got=f"none beside {sys.executable}, and none in PATH",
            fix="install one with `pip install infini[mpi]`",
        )
    return [found, "-n", str(processes)]
