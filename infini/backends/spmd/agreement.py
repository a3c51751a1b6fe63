"""Processes of one job take the same choices: rank 0 of the mesh makes them, the others are told.

A message is exchanged only where the program itself would make the processes wait for each other, so it can
hang no program that does not hang without it:

- Programs of one process are its own affair: it decides alone, and tells nobody.
- A program for a mesh over several processes is agreed on when it runs for the first time, never when it is
  compiled: any process may compile or print a program alone, but its collectives make all of them run it.
- Where a program may run without meeting the others (no collective, or only inside a branch), nothing is
  measured and everyone takes the first candidates, which are the same everywhere.
- What was agreed is remembered per group of processes, apart from the executables, which each process forgets
  when it likes. Only an exchange changes that memory, and every process of the group takes part in every
  exchange, so they hold the same entries and agree on whether there is something to exchange.

The message names the program, so processes that run different ones get an error instead of each other's
choices. When rank 0 fails, it says so before it raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, TypeAlias

from infini.core import errors, events
from infini.core.comm import Comm
from infini.core.execute import BoundedCache

Choices: TypeAlias = tuple[tuple[str, str], ...]
Owners: TypeAlias = tuple[int, ...]  # the process of each rank

LIMIT: Final = 4096
# What each group of processes agreed on, by program; at most LIMIT, the oldest goes first, at the same time
# in every process. It is never emptied: the others could not know.
_agreed: Final[dict[Owners, BoundedCache[str, Choices]]] = {}


def agree(comm: Comm, owners: Owners, program: str, make: Callable[[], Choices]) -> Choices:
    """The choices of rank 0 for a program, in every process.

    Args:
        comm: communication among the ranks.
        owners: process of each rank.
        program: digest of the program and its options.
        make: makes the choices; called by rank 0 alone, the first time.

    Raises:
        CollectiveError: rank 0 runs another program.
        LoweringError: rank 0 could not make the choices.
    """
    table = _agreed.setdefault(owners, BoundedCache(LIMIT))
    found = table.get(program)
    return found if found is not None else table.put(program, _exchanged(comm, owners, program, make))


def _exchanged(comm: Comm, owners: Owners, program: str, make: Callable[[], Choices]) -> Choices:
    if 0 in comm.local_ranks:
        try:
            made = make()
        except BaseException as error:  # the others wait
            comm.broadcast(_message(program, failure=f"{type(error).__name__}: {error}"))
            raise
        comm.broadcast(_message(program, choices=made))
        events.emit("choices-agreed", f"{len(made)} choices told to {len(owners) - 1}", level="debug")
        return made
    message = json.loads(comm.broadcast(b""))
    if message["program"] != program:
        raise errors.CollectiveError(
            "the processes of this job run different programs over one mesh",
            got=f"program {program[:12]}, while process {owners[0]} runs {message['program'][:12]}",
            fix="call the same functions with the same shapes and knobs in the same order everywhere",
        )
    if message["failure"] is not None:
        raise errors.LoweringError(
            f"process {owners[0]}, which makes the choices, failed", got=message["failure"]
        )
    received = tuple((str(key), str(name)) for key, name in message["choices"])
    events.emit("choices-agreed", f"{len(received)} choices of process {owners[0]}", level="debug")
    return received


def _message(program: str, *, choices: Choices = (), failure: str | None = None) -> bytes:
    return json.dumps({"program": program, "choices": choices, "failure": failure}).encode()
