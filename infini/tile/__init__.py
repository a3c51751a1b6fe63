"""The kernel language and the kernel type.

`program` has what the compiler needs: `Kernel`, its accesses, its meaning and the op `kernel`. The language
itself loads SymPy, so its names are found at their first use; see `docs/kernels.md`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infini.tile import arrangements as arrangements
    from infini.tile.arrangement import Tensor as Tensor
    from infini.tile.function import (
        KernelFunction as KernelFunction,
        kernel as kernel,
        program_id as program_id,
    )
    from infini.tile.simulation import simulate as simulate
    from infini.tile.symbols import Symbol as Symbol, block_size as block_size

_LANGUAGE = {
    "KernelFunction": "function",
    "Symbol": "symbols",
    "Tensor": "arrangement",
    "block_size": "symbols",
    "kernel": "function",
    "program_id": "function",
    "simulate": "simulation",
}
__all__ = (
    "KernelFunction",
    "Symbol",
    "Tensor",
    "arrangements",
    "block_size",
    "kernel",
    "program_id",
    "simulate",
)


def __getattr__(name: str) -> Any:  # Any: what a module holds
    if name == "arrangements":
        return importlib.import_module(f"{__name__}.arrangements")
    if name not in _LANGUAGE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LANGUAGE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
