"""Huawei's Ascend NPUs (CANN): where their runtime is looked for; `ascend_tables` is loaded then."""

from __future__ import annotations

import functools

from infini.backends.vendors.adapter import AdapterBackend, Sought
from infini.backends.vendors.places import Places
from infini.core import backend as backend_

SOUGHT = Sought(
    name="ascend",
    vendor="Ascend",
    places=Places(
        homes=("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_HOME"),
        defaults=("/usr/local/Ascend/ascend-toolkit/latest",),
        folders=("lib64", "lib"),
        install="install Huawei's CANN toolkit and run its set_env.sh, which sets ASCEND_HOME_PATH",
    ),
    libraries=("libascendcl.so", "libacl_rt.so"),
    tables="infini.backends.vendors.ascend_tables",
)


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this adapter, for the registry."""
    return AdapterBackend(SOUGHT)
