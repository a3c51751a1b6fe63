"""Records of measurements: what ran on which machine at which commit, appended to a dated JSON file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "bench" / "results"
PACKAGES: Final = ("infini", "numpy", "ml_dtypes", "llvmlite", "jax", "jaxlib", "torch", "triton")


def cpus() -> list[int]:
    """Numbers of the CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def machine() -> dict[str, str | int | float]:
    """The machine in a few facts; `load` is how many threads wanted to run in the last minute, on average."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "num_cpus": len(cpus()),
        **({"load": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of what takes part and is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the tree, with `+` when files differ from it; `unknown` outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def append(suite: str, results: Mapping[str, Any], folder: Path = RESULTS) -> Path:  # Any: JSON
    """Append one run to `folder/<suite>-<date>.json`, a list of runs, and return the path.

    Args:
        suite: name of the suite.
        results: what was measured and with which options; must be JSON.
        folder: where the files are.
    """
    now = datetime.datetime.now(datetime.UTC)
    path = folder / f"{suite}-{now:%Y-%m-%d}.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    runs.append(
        {
            "time": now.isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            **results,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path
