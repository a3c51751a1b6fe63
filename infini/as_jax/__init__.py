"""Programs and libraries written for JAX, run on infini without a change: `import jax` finds infini.

`python -m infini.as_jax PROGRAM.py` runs a program this way, and `install()` does it for the process. The
idea: one importer serves every module of JAX from the module of infini of the same name, with the few names
that infini keeps elsewhere added by `infini.as_jax.table`. A name that neither has is an error that says so.

May import everything below it; nothing imports it.
"""

from infini.as_jax.importer import (
    install as install,
    installed as installed,
    is_installed as is_installed,
    uninstall as uninstall,
)

__all__ = ["install", "installed", "is_installed", "uninstall"]
