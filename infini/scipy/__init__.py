"""Functions of `jax.scipy`, under its names. Modules load when they are imported, or first used."""

import importlib
from types import ModuleType

_MODULES = ("fft", "linalg", "signal", "special", "stats")


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"infini.scipy.{name}")
    raise AttributeError(f"module 'infini.scipy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
