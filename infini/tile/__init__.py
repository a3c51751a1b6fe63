"""The kernel language and the kernel type.

`program` has what the compiler needs: `Kernel`, its accesses, its meaning and the op `kernel`. The language
itself loads SymPy, so its names are found at their first use; see `docs/kernels.md`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infini.debug.differences import compare as compare
    from infini.export.building import build as build
    from infini.export.loading import load as load
    from infini.tile import arrangements as arrangements
    from infini.tile.arrangement import Tensor as Tensor
    from infini.tile.drawing import Drawing as Drawing, draw as draw
    from infini.tile.function import KernelFunction as KernelFunction, kernel as kernel
    from infini.tile.scattering import (
        scatter as scatter,
        scatter_add as scatter_add,
        scatter_max as scatter_max,
        scatter_min as scatter_min,
    )
    from infini.tile.simulation import simulate as simulate
    from infini.tile.symbols import Symbol as Symbol, block_size as block_size
    from infini.tile.within import (
        array_shape as array_shape,
        offsets as offsets,
        program_id as program_id,
        random_bits as random_bits,
        result_offsets as result_offsets,
        stack as stack,
        uniform as uniform,
    )

_LANGUAGE = {
    "Drawing": "drawing",
    "KernelFunction": "function",
    "Symbol": "symbols",
    "Tensor": "arrangement",
    "array_shape": "within",
    "block_size": "symbols",
    "draw": "drawing",
    "kernel": "function",
    "offsets": "within",
    "program_id": "within",
    "random_bits": "within",
    "result_offsets": "within",
    "scatter": "scattering",
    "scatter_add": "scattering",
    "scatter_max": "scattering",
    "scatter_min": "scattering",
    "simulate": "simulation",
    "stack": "within",
    "uniform": "within",
}
# Tools of higher layers, under the name where users of kernels look for them.
_ABOVE = {
    "build": "infini.export.building",
    "compare": "infini.debug.differences",
    "load": "infini.export.loading",
}
__all__ = (
    "Drawing",
    "KernelFunction",
    "Symbol",
    "Tensor",
    "arrangements",
    "array_shape",
    "block_size",
    "build",
    "compare",
    "draw",
    "kernel",
    "load",
    "offsets",
    "program_id",
    "random_bits",
    "result_offsets",
    "scatter",
    "scatter_add",
    "scatter_max",
    "scatter_min",
    "simulate",
    "stack",
    "uniform",
)


def __getattr__(name: str) -> Any:  # Any: what a module holds
    if name == "arrangements":
        return importlib.import_module(f"{__name__}.arrangements")
    if name in _ABOVE:
        return getattr(importlib.import_module(_ABOVE[name]), name)
    if name not in _LANGUAGE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LANGUAGE[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
