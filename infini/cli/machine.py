"""`infini devices`, `infini doctor` and `infini version`: what there is, and why something is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import typer

import infini as inf
import infini.numpy as inp
from infini.cli import output
from infini.core import backend, errors

_PACKAGES = [
    "numpy",
    "ml_dtypes",
    "optree",
    "llvmlite",
    "scipy-openblas64",
    "sympy",
    "safetensors",
    "tokenizers",
    "typer",
    "rich",
    "triton",
    "cupy",
    "mpi4py",
]


def devices() -> None:
    """List the devices that programs can run on."""
    default = backend.default_device()
    rows = []
    for name in backend.names():
        if _why_unavailable(name) is None:
            for device in backend.devices(name):
                memory = device.memory_stats().get("bytes_in_use", 0)
                rows.append(
                    (str(device), "default" if device == default else "", f"{memory / 2**20:,.1f} MiB in use")
                )
    output.show_table("devices", rows)


def doctor() -> None:
    """Check the installation: versions, backends, and a small program on the default device."""
    rows = [
        ("infini", inf.__version__),
        ("Python", f"{platform.python_version()} {sys.executable}"),
        ("system", f"{platform.platform()} {platform.machine()}, {os.cpu_count()} cores"),
    ]
    rows += [(name, _package_version(name)) for name in _PACKAGES]
    rows += [(f"backend {name}", _why_unavailable(name) or "available") for name in backend.names()]
    rows += [(name, value) for name, value in sorted(os.environ.items()) if name.startswith("INFINI_")]
    problem = _trial()
    rows.append(("a small program", problem or f"runs on {backend.default_device()}"))
    output.show_table("infini doctor", rows)
    if problem:
        raise typer.Exit(1)


def version() -> None:
    """Print the version."""
    typer.echo(f"infini {inf.__version__}")


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _why_unavailable(name: str) -> str | None:
    """Why a backend has no device here; one that cannot be imported is a reason, too."""
    try:
        return backend.get(name).why_unavailable()
    except ImportError as error:
        return f"cannot be imported: {error}"


def _trial() -> str | None:
    """What goes wrong when a gradient is computed; None when it is right."""
    try:
        gradient = inf.jit(inf.grad(lambda x: inp.sum(inp.square(x))))(inp.arange(3.0))
    except (errors.InfiniError, ImportError, OSError) as error:
        return f"fails: {error}"
    return None if gradient.tolist() == [0.0, 2.0, 4.0] else f"gives {gradient}, which is wrong"
