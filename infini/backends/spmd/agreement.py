"""Processes of one job run the same programs, and take the same choices: rank 0 of the mesh makes them, the
others are told.

A message is exchanged only where the program itself would make the processes wait for each other, so it can
hang no program that does not hang without it:

- Programs of one process are its own affair: it decides alone, and tells nobody.
- A program for a mesh over several processes is compared when it runs for the first time, never when it is
  compiled: any process may compile or print a program alone, but its collectives make all of them run it.
- Where a program may run without meeting the others (no collective, or only inside a branch), nothing is
  compared or measured, and everyone takes the first candidates, which are the same everywhere.
- What was agreed is remembered per group of processes, apart from the executables, which each process forgets
  when it likes. Only an exchange changes that memory, and every process of the group takes part in every
  exchange, so they hold the same entries and agree on whether there is something to exchange.

Messages travel on a communicator of their own: a process that compares a program and one that runs another
wait for each other, which the watchdog tells, and never take each other's bytes. When programs differ, every
process gets an error that shows where; see `differences`. When rank 0 fails, it says so before it raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, TypeAlias

from infini.backends.spmd import activity, differences
from infini.backends.spmd.differences import Subject
from infini.core import errors, events, source
from infini.core.comm import Comm
from infini.core.execute import BoundedCache

Choices: TypeAlias = tuple[tuple[str, str], ...]
Owners: TypeAlias = tuple[int, ...]  # the process of each rank

LIMIT: Final = 4096
# What each group of processes agreed on, by program; at most LIMIT, the oldest goes first, at the same time
# in every process. It is never emptied: the others could not know.
_agreed: Final[dict[Owners, BoundedCache[str, Choices]]] = {}
_comms: Final[dict[Owners, Comm]] = {}  # the communicator of each group's messages


def agree(comm: Comm, owners: Owners, subject: Subject, make: Callable[[], Choices] | None) -> Choices:
    """The choices of rank 0 for a program, in every process, after all have shown that it is the same one.

    Args:
        comm: communication among the ranks.
        owners: process of each rank.
        subject: the program and its options.
        make: makes the choices; called by rank 0 alone, the first time. None when there is nothing to choose.

    Raises:
        CollectiveError: the processes run different programs.
        LoweringError: rank 0 could not make the choices.
    """
    table = _agreed.setdefault(owners, BoundedCache(LIMIT))
    found = table.get(subject.key)
    if found is not None:
        return found
    if owners not in _comms:
        _comms[owners] = comm.duplicate()
    with activity.doing("the comparison of programs", subject.where):
        _compare(_comms[owners], owners, subject)
        choices = () if make is None else _exchanged(_comms[owners], owners, make, subject.where)
    return table.put(subject.key, choices)


def check_turn(comm: Comm, owners: Owners, subject: Subject) -> None:
    """Raise in every process when they are about to run different programs, though all are known.

    Args:
        comm: communication among the ranks.
        owners: process of each rank.
        subject: the program and its options.

    Raises:
        CollectiveError: one of them runs another.
    """
    if owners not in _comms:
        _comms[owners] = comm.duplicate()
    apart = _comms[owners]
    everyone = (tuple(range(len(owners))),)
    with activity.doing(*subject.first):
        (found,) = apart.all_gather([subject.short_key], everyone)
        if (found == subject.short_key).all():
            return
        told = [content.decode() for content in apart.gather_bytes(subject.title.encode())]
    (rank,) = comm.local_ranks
    other = next(i for i, key in enumerate(found) if key != subject.short_key)
    raise errors.CollectiveError(
        "the processes of this job run their programs in different orders",
        got=f"process {owners[other]} runs {told[other]}",
        expected=f"{told[rank]}, as in process {owners[rank]}",
        fix="call functions over several processes in one order, not as a process sees fit",
        where=subject.where,
    )


def _compare(comm: Comm, owners: Owners, subject: Subject) -> None:
    """Raise in every process when one has another program than rank 0."""
    keys = comm.gather_bytes(subject.key.encode())
    if len(set(keys)) == 1:
        return
    (rank,) = comm.local_ranks
    told = [differences.unpack(found) for found in comm.gather_bytes(differences.pack(subject))]
    other = next(i for i, key in enumerate(keys) if key != keys[rank])
    shown = differences.show((owners[rank], told[rank]), (owners[other], told[other]))
    raise errors.CollectiveError(
        f"the processes of this job run different programs over one mesh: {shown.what}",
        got=shown.got,
        expected=shown.expected,
        fix=shown.fix,
        where=subject.where,
    )


def _exchanged(
    comm: Comm, owners: Owners, make: Callable[[], Choices], where: source.Where | None
) -> Choices:
    if 0 in comm.local_ranks:
        try:
            made = make()
        except BaseException as error:  # the others wait
            comm.broadcast(_message(failure=f"{type(error).__name__}: {error}"))
            raise
        comm.broadcast(_message(choices=made))
        events.emit("choices-agreed", f"{len(made)} choices told to {len(owners) - 1}", level="debug")
        return made
    message = json.loads(comm.broadcast(b""))
    if message["failure"] is not None:
        raise errors.LoweringError(
            f"process {owners[0]}, which makes the choices, failed", got=message["failure"], where=where
        )
    received = tuple((str(key), str(name)) for key, name in message["choices"])
    events.emit("choices-agreed", f"{len(received)} choices of process {owners[0]}", level="debug")
    return received


def _message(*, choices: Choices = (), failure: str | None = None) -> bytes:
    return json.dumps({"choices": choices, "failure": failure}).encode()
