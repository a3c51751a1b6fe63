"""MetaX's GPUs (MACA): where their runtime is looked for; `metax_tables` is loaded when it is there."""

from __future__ import annotations

import functools

from infini.backends.vendors.adapter import AdapterBackend, Sought
from infini.backends.vendors.places import Places
from infini.core import backend as backend_

SOUGHT = Sought(
    name="metax",
    vendor="MetaX",
    places=Places(
        homes=("MACA_PATH", "MACA_HOME", "MACA_ROOT"),
        defaults=("/opt/maca",),
        folders=("lib", "lib64"),
        install="install the MACA SDK of MetaX and set MACA_PATH to its folder",
    ),
    libraries=("libmcruntime.so",),
    tables="infini.backends.vendors.metax_tables",
)


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this adapter, for the registry."""
    return AdapterBackend(SOUGHT)
