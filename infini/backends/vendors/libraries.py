"""Finding and loading a vendor's library, or saying where it was looked for.

Names are no proof: two vendors have a `libhccl.so`, two a `libmccl.so`, and several a `libcudart.so`. So the
files of the vendor's own folders come first, each is loaded by its whole path and for itself alone
(RTLD_LOCAL), and one that lacks a function that the table needs is left.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infini.backends.vendors import slots
from infini.backends.vendors.places import Places
from infini.backends.vendors.slots import Bound
from infini.backends.vendors.tables import LibraryTable, Operation


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library with the functions of a table.

    Args:
        path: where it was found.
        functions: by operation; those that it lacks are not there.
        handle: what keeps it loaded.
    """

    path: str
    functions: Mapping[str, Bound]
    handle: ctypes.CDLL


def load(
    table: LibraryTable,
    operations: Mapping[str, Operation],
    places: Places,
    structures: Mapping[str, Any] | None = None,  # Any: types of ctypes
) -> tuple[Library | None, str | None]:
    """The library of a table, or why there is none.

    Args:
        table: its file names and calls.
        operations: what it may be asked for.
        places: where to look.
        structures: types of the structures in its calls.
    """
    calls = table.parsed(operations)
    refused = []
    for path in places.candidates(table.libraries):
        try:
            handle = ctypes.CDLL(path, mode=os.RTLD_LOCAL | os.RTLD_NOW)
        except OSError as error:
            if Path(path).is_absolute():  # it is there and does not load; a bare name is merely not there
                refused.append(f"{path} cannot be loaded: {error}")
            continue
        bound = {name: slots.bind(handle, call, structures) for name, call in calls.items()}
        found = {name: function for name, function in bound.items() if function is not None}
        lacking = [
            " or ".join(calls[name].symbols)
            for name, operation in operations.items()
            if operation.is_required and name not in found
        ]
        if table.proof and not any(hasattr(handle, symbol) for symbol in table.proof):
            lacking.append(" or ".join(table.proof))
        if not lacking:
            return Library(path, found, handle), None
        refused.append(f"{path} has no {', '.join(lacking)}")
    if refused:
        return None, f"{'; '.join(refused)}; {places.install}"
    return None, places.not_found(table.libraries)


def preload(names: tuple[str, ...], places: Places) -> None:
    """Load what another library needs, where it is there, with its symbols visible to that one."""
    for name in names:
        for path in places.candidates((name,)):
            try:
                ctypes.CDLL(path, mode=os.RTLD_GLOBAL)
            except OSError:
                continue
            break
