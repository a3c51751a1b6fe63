"""`infini devices`, `infini doctor` and `infini version`: what there is, and why something is not."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import infini as inf
import infini.numpy as inp
from infini.cli import output
from infini.compiler import disk_cache
from infini.core import backend, config, errors

_PACKAGES: Final = {
    "numpy": "arrays of the host",
    "ml_dtypes": "bfloat16 and narrower",
    "optree": "pytrees",
    "llvmlite": "machine code for CPUs",
    "msgpack": "programs on disk",
    "safetensors": "files of weights",
    "tokenizers": "tokenizers",
    "typer": "this command",
    "rich": "tables and bars",
    "sympy": "symbolic sizes of kernels",
    "triton": "machine code for GPUs",
    "cupy": "memory and launches on GPUs",
    "mpi4py": "several processes",
}
_DISTRIBUTIONS: Final = {"cupy": ("cupy-cuda12x", "cupy-cuda13x", "cupy")}
_JSON = typer.Option("--json", help="Print JSON instead of tables.")


def devices(as_json: Annotated[bool, _JSON] = False) -> None:
    """List the devices that programs can run on, and the backends that have none."""
    default = backend.default_device()
    found, missing = [], []
    for name in backend.names():
        reason = _why_unavailable(name)
        if reason is not None:
            missing.append({"backend": name, "reason": reason})
            continue
        found += [_device(device, is_default=device == default) for device in backend.devices(name)]
    if as_json:
        typer.echo(json.dumps({"devices": found, "unavailable": missing}, indent=2))
        return
    rows = [
        (row["device"], "default" if row["is_default"] else "", row["what"], _mib(row["bytes_in_use"]))
        for row in found
    ]
    output.show_table("devices", rows, header=("device", "", "what it is", "in use"))
    if missing:
        output.show_table("not available", [(row["backend"], row["reason"]) for row in missing])


def doctor(as_json: Annotated[bool, _JSON] = False) -> None:
    """Check the installation: versions, processor, memory, caches, backends, and small programs.

    The exit status is 1 when a check fails.
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    if not all(check["is_good"] for check in report["checks"]):
        raise typer.Exit(1)


def version() -> None:
    """Print the version."""
    typer.echo(f"infini {inf.__version__}")


def examine() -> dict[str, Any]:  # Any: JSON
    """Everything that `infini doctor` shows, as JSON."""
    from infini.cli import host

    return {
        "infini": inf.__version__,
        "place": str(Path(inf.__file__).parent),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "processor": host.processor(),
        "memory": host.memory(),
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "llvm": _llvm_version(),
        "mpi": _mpi(),
        "disk_cache": _disk_cache(),
        "backends": {name: _why_unavailable(name) or "available" for name in backend.names()},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("INFINI_")
            or name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        },
        "checks": [_checked(name, check) for name, check in _CHECKS.items()],
    }


def _show(report: dict[str, Any]) -> None:  # Any: JSON
    cpu, python, cache = report["processor"], report["python"], report["disk_cache"]
    rows = [
        ("infini", f"{report['infini']} in {report['place']}"),
        ("Python", f"{python['version']}, {python['executable']}"),
        ("system", report["system"]),
        ("processor", f"{cpu['model']} ({cpu['llvm_name']}, {cpu['architecture']})"),
        ("cores", _cores(cpu)),
        ("threads", f"{cpu['threads']}, {cpu['threads_set_by']}"),
        (
            "vectors",
            f"{cpu['float32_lanes']} float32 lanes: {' '.join(cpu['features']) or 'none of the known kinds'}",
        ),
        ("caches", ", ".join(map(_cache, cpu["caches"])) or "the system does not tell"),
        (
            "memory",
            ", ".join(f"{_gib(size)} {name.replace('_', ' ')}" for name, size in report["memory"].items()),
        ),
        ("compiled objects", f"{cache['num_objects']} ({_mib(cache['object_bytes'])}) in {cache['folder']}"),
        ("tokenised texts", f"{cache['num_texts']} ({_mib(cache['text_bytes'])})"),
        ("LLVM", report["llvm"]),
        ("MPI", report["mpi"]),
    ]
    output.show_table("infini doctor", rows)
    output.show_table(
        "packages", [(name, report["packages"][name], what) for name, what in _PACKAGES.items()]
    )
    output.show_table("backends", list(report["backends"].items()))
    if report["environment"]:
        output.show_table("environment", list(report["environment"].items()))
    marks = {True: "good", False: "FAILS"}
    output.show_table(
        "checks", [(marks[check["is_good"]], check["name"], check["found"]) for check in report["checks"]]
    )


def _device(device: backend.Device, *, is_default: bool) -> dict[str, Any]:  # Any: JSON
    from infini.cli import host

    cpu = host.processor()
    what = {
        "cpu": f"{cpu['model']}, {cpu['threads']} threads, {cpu['float32_lanes']} float32 lanes",
        "reference": "NumPy, equation by equation: slow, for comparison",
        "null": "compiles and counts, computes nothing",
    }.get(device.platform, "")
    return {
        "device": str(device),
        "is_default": is_default,
        "process": device.process_index,
        "what": what,
        **{name: int(size) for name, size in ({"bytes_in_use": 0} | device.memory_stats()).items()},
    }


def _package_version(name: str) -> str:
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _llvm_version() -> str:
    import llvmlite.binding as llvm

    return ".".join(map(str, llvm.llvm_version_info))


def _mpi() -> str:
    """The MPI library that mpi4py finds, without joining a job."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed; pip install 'infini[mpi]'"
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    try:
        library = importlib.import_module("mpi4py.MPI").Get_library_version()
    except (ImportError, RuntimeError) as error:
        return f"mpi4py finds no MPI library ({error}); pip install mpich or install the system's"
    beside = Path(sys.executable).parent / "mpirun"
    launcher = str(beside) if beside.exists() else shutil.which("mpirun")
    return f"{library.split(chr(10))[0].strip(chr(0)).strip()}, {launcher or 'but no mpirun'}"


def _disk_cache() -> dict[str, Any]:  # Any: JSON
    """What earlier runs left: the folder of each kind is made by those who use it."""
    texts = disk_cache.folder("tokens")
    num_objects, object_bytes = _count(texts.parent, leave_out=texts)
    _, text_bytes = _count(texts)
    return {
        "folder": str(texts.parent),
        "is_used": not config.get("no_cache"),
        "num_objects": num_objects,
        "object_bytes": object_bytes,
        "num_texts": len([path for path in texts.iterdir() if path.is_dir()]) if texts.is_dir() else 0,
        "text_bytes": text_bytes,
    }


def _count(root: Path, *, leave_out: Path | None = None) -> tuple[int, int]:
    """Files below a folder, and their bytes; there may be very many."""
    count = size = 0
    waiting = [str(root)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    count, size = count + 1, size + entry.stat(follow_symlinks=False).st_size
                elif entry.path != str(leave_out):
                    waiting.append(entry.path)
    return count, size


def _why_unavailable(name: str) -> str | None:
    """Why a backend has no device here; one that cannot be imported is a reason, too."""
    try:
        reason = backend.get(name).why_unavailable()
    except ImportError as error:
        return f"cannot be imported: {error}"
    if reason is not None and name == "cuda" and ctypes.util.find_library("cuda") is None:
        return f"{reason}; this machine has no NVIDIA driver (libcuda) either"
    return reason


# --- checks -------------------------------------------------------------------------------


def _check_gradient() -> str:
    gradient = inf.jit(inf.grad(lambda x: inp.sum(inp.square(x))))(inp.arange(3.0))
    if gradient.tolist() != [0.0, 2.0, 4.0]:
        raise errors.ValueMismatchError(f"the gradient of a square is {gradient.tolist()}")
    return f"a gradient on {backend.default_device()}"


def _check_product() -> str:
    x = inp.arange(64 * 64, dtype=inp.float32).reshape(64, 64) / 4096.0
    with inf.config(device="reference"):
        expected = (inp.asarray(x) @ x).tolist()
    found = inf.jit(lambda x: x @ x)(x)
    worst = max(
        abs(a - b)
        for row, other in zip(found.tolist(), expected, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    if worst > 1e-4:
        raise errors.ValueMismatchError(f"a product is off by {worst:.2g} from NumPy's")
    return "a product, within 1e-4 of NumPy's"


def _check_cache() -> str:
    if config.get("no_cache"):
        return "switched off by INFINI_NO_CACHE"
    folder = disk_cache.folder("tokens").parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
    free = shutil.disk_usage(folder).free
    return f"{folder} can be written to, {_gib(free)} free"


def _check_files() -> str:
    for name in ("safetensors", "tokenizers"):
        importlib.import_module(name)
    return "weights and tokenizers can be read"


_CHECKS: Final[dict[str, Callable[[], str]]] = {
    "compile and run": _check_gradient,
    "right numbers": _check_product,
    "cache on disk": _check_cache,
    "files of models": _check_files,
}


def _checked(name: str, check: Callable[[], str]) -> dict[str, Any]:  # Any: JSON
    try:
        return {"name": name, "is_good": True, "found": check()}
    except (errors.InfiniError, ImportError, OSError) as error:
        what = error.what if isinstance(error, errors.InfiniError) else str(error)
        return {"name": name, "is_good": False, "found": what}


# --- texts --------------------------------------------------------------------------------


def _cores(cpu: dict[str, Any]) -> str:  # Any: JSON
    text = f"{cpu['usable_cores']} usable, {cpu['usable_cpus']} of {cpu['logical_cpus']} logical processors"
    return text + (f", {cpu['cpu_quota']:g} processors' worth of time" if "cpu_quota" in cpu else "")


def _cache(cache: dict[str, Any]) -> str:  # Any: JSON
    kind = {"data": "d", "instruction": "i"}.get(cache["kind"], "")
    size = cache["bytes"]
    text = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    shared = cache["shared_by"]
    return f"L{cache['level']}{kind} {text}" + (f" for {shared}" if shared > 1 else "")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
