"""Looking inside: prints and callbacks from compiled programs with the names of `jax.debug`, why jitted
functions were traced again, every stage of a compiled program as a page, how fast its kernels are, where
a kernel goes wrong, and where arrays are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from infini.debug.caches import explain_cache
from infini.lax.effects import debug_callback as callback, debug_print as print  # noqa: A004  # JAX's name
from infini.lax.inspection import inspect_array_sharding as inspect_array_sharding

if TYPE_CHECKING:
    from infini.debug.differences import (
        Comparison as Comparison,
        Difference as Difference,
        compare as compare,
    )
    from infini.debug.pages import Page as Page, show as show
    from infini.debug.rooflines import Roofline as Roofline, Row as Row, roofline as roofline
    from infini.debug.shardings import (
        visualize_array_sharding as visualize_array_sharding,
        visualize_sharding as visualize_sharding,
    )

# What loads the compiler or a library for tables, at its first use.
_LATER = {
    "Comparison": "differences",
    "Difference": "differences",
    "Page": "pages",
    "Roofline": "rooflines",
    "Row": "rooflines",
    "compare": "differences",
    "roofline": "rooflines",
    "show": "pages",
    "visualize_array_sharding": "shardings",
    "visualize_sharding": "shardings",
}
__all__ = [
    "Comparison", "Difference", "Page", "Roofline", "Row", "callback", "compare", "explain_cache",
    "inspect_array_sharding", "print", "roofline", "show", "visualize_array_sharding", "visualize_sharding",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: what a module holds
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
