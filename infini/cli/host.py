"""What the system tells about the processor, its caches and its memory. What it does not tell is left out."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from infini.backends.cpu import pool
from infini.compiler.llvm import target as target_
from infini.core import config

# Of the hundred that a processor lists: those that decide how wide and in which dtypes kernels compute.
_FEATURES: Final = (
    "sse4.2", "avx", "f16c", "fma", "avx2", "avxvnni", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512vnni", "avx512bf16", "avx512fp16", "amx-tile", "amx-bf16", "amx-int8",
    "neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip


def processor() -> dict[str, object]:
    """Model, cores, instruction sets, threads and caches."""
    target = target_.host_target()
    chosen = config.get("num_threads")
    facts: dict[str, object] = {
        "model": _model(),
        "architecture": platform.machine(),
        "llvm_name": target.cpu,
        "features": [name for name in _FEATURES if target.has(name)],
        "float32_lanes": target.lanes,
        "logical_cpus": os.cpu_count() or 1,
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "usable_cores": pool.num_cores(),
        "threads": pool.num_threads(),
        "threads_set_by": "INFINI_NUM_THREADS" if chosen else "one per usable core",
        "caches": _caches(),
    }
    quota = _cpu_quota()
    return facts if quota is None else facts | {"cpu_quota": quota}


def memory() -> dict[str, int]:
    """Bytes in all, available, and the limit of the control group."""
    found: dict[str, int] = {}
    if sys.platform.startswith("linux"):
        text = _read(Path("/proc/meminfo"))
        for name, key in (("total", "MemTotal"), ("available", "MemAvailable")):
            if match := re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE):
                found[name] = int(match[1]) << 10
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["total"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return found | ({"group_limit": int(limit)} if limit.isdigit() else {})


def _model() -> str:
    if match := re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE):
        return match[1]
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.processor()
    return platform.processor() or "unknown"


def _caches() -> list[dict[str, object]]:
    """Caches of the first processor that may be used: level, kind, bytes, and how many share one."""
    first = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    found: list[dict[str, object]] = []
    for folder in sorted(Path(f"/sys/devices/system/cpu/cpu{first}/cache").glob("index*")):
        facts = {name: _read(folder / name).strip() for name in ("level", "type", "size", "shared_cpu_list")}
        size = re.fullmatch(r"(\d+)([KM])", facts["size"])
        if size and facts["level"].isdigit():
            shift = 10 if size[2] == "K" else 20
            found.append(
                {
                    "level": int(facts["level"]),
                    "kind": facts["type"].lower(),
                    "bytes": int(size[1]) << shift,
                    "shared_by": _count(facts["shared_cpu_list"]),
                }
            )
    return found


def _count(cpus: str) -> int:
    """Number of processors in a list such as `0-3,8`."""
    total = 0
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1 if first.isdigit() else 0
    return total


def _cpu_quota() -> float | None:
    """Processors' worth of time that the control group allows; None for all."""
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
