"""Finding and loading a vendor's library, or saying where it was looked for.

Names are no proof: two vendors have a `libhccl.so`, two a `libmccl.so`, and several a `libcudart.so`. So the
files of the vendor's own folders come first, each is loaded by its whole path and for itself alone
(RTLD_LOCAL), and one that lacks a function that the table needs is left.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infini.backends.vendors import slots
from infini.backends.vendors.slots import Bound
from infini.backends.vendors.tables import LibraryTable, Operation, Places


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
    for path in _candidates(table, places):
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
    return None, _reason(table, places, refused)


def preload(names: tuple[str, ...], places: Places) -> None:
    """Load what another library needs, where it is there, with its symbols visible to that one."""
    for name in names:
        for path in _candidates(LibraryTable((name,), {}), places):
            try:
                ctypes.CDLL(path, mode=os.RTLD_GLOBAL)
            except OSError:
                continue
            break


def _candidates(table: LibraryTable, places: Places) -> Iterator[str]:
    """Paths that exist, then bare names, which the loader looks up by LD_LIBRARY_PATH and its cache."""
    for folder in _folders(places):
        for name in table.libraries:
            if (folder / name).exists():
                yield str(folder / name)
    yield from table.libraries


def _folders(places: Places) -> Iterator[Path]:
    given = [Path(os.environ[name]) for name in places.homes if os.environ.get(name)]
    for home in [*given, *map(Path, places.defaults)]:
        for folder in places.folders:
            yield home / folder


def _reason(table: LibraryTable, places: Places, refused: list[str]) -> str:
    if refused:
        return f"{'; '.join(refused)}; {places.install}"
    looked = ", ".join(map(str, _folders(places))) or "no folder"
    unset = [name for name in places.homes if not os.environ.get(name)]
    homes = f" ({', '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set)" if unset else ""
    return (
        f"{' or '.join(table.libraries)} was not found: looked in {looked}{homes}, and where the system's "
        f"loader looks; {places.install}"
    )
