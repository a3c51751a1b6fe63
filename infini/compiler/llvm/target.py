"""The processor code is made for: triple, model, features, and how many float32 lanes a vector register
holds.

Everything an emitter asks about the machine is a field of `Target`, so the text for another one can be made
anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infini.compiler import disk_cache


@dataclass(frozen=True, slots=True)
class Target:
    """A processor.

    Args:
        triple: LLVM's name of architecture and system.
        cpu: LLVM's name of the model.
        features: LLVM's feature string, such as `+avx2,-sse4a`.
        lanes: float32 lanes of a vector register.
        num_registers: vector registers the instruction set has.
    """

    triple: str
    cpu: str
    features: str
    lanes: int
    num_registers: int

    @property
    def is_x86(self) -> bool:
        """Whether x86 intrinsics may be used."""
        return self.triple.startswith(("x86_64", "amd64"))

    @property
    def is_linux(self) -> bool:
        """Whether Linux system calls may be used."""
        return "linux" in self.triple

    def has(self, feature: str) -> bool:
        """Whether a feature such as `avx512bf16` is switched on."""
        return f"+{feature}" in self.features.split(",")


def make_target(triple: str, cpu: str, features: str) -> Target:
    """The target with lanes and registers found from its features."""
    names = set(features.split(","))
    if triple.startswith(("x86_64", "amd64")):
        if "+avx512f" in names and "+avx512vl" in names and "+avx512dq" in names and "+avx512bw" in names:
            return Target(triple, cpu, features, 16, 32)
        return Target(triple, cpu, features, 8 if "+avx2" in names else 4, 16)
    return Target(triple, cpu, features, 4, 32)


@functools.cache
def host_target() -> Target:
    """The processor this process runs on."""
    return make_target(*_host()[:3])


def llvm_version() -> str:
    """Version of the LLVM that makes code here."""
    return _host()[3]


# --- what LLVM says about this machine, which is kept on disk: loading LLVM takes as long as everything else
# --- that a start from the disk cache does


KIND: Final = "processors"  # of entries of the disk cache
_CPUINFO: Final = Path("/proc/cpuinfo")
_DECISIVE: Final = frozenset(
    {
        b"vendor_id", b"cpu family", b"model", b"model name", b"stepping", b"flags",  # x86
        b"CPU implementer", b"CPU variant", b"CPU part", b"CPU revision", b"Features",  # ARM
    }
)  # fmt: skip


@functools.cache
def _host() -> tuple[str, str, str, str]:
    """LLVM's triple, name and features of this processor, and its version."""
    key = _identity()
    found = None if key is None else disk_cache.read(KIND, key)
    if found is not None:
        triple, cpu, features, version = found.decode().split("\n")
        return triple, cpu, features, version
    llvm = importlib.import_module("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    asked = (
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        ".".join(map(str, llvm.llvm_version_info)),
    )
    if key is not None:
        disk_cache.write(KIND, key, "\n".join(asked).encode())
    return asked


def _identity() -> str | None:
    """A key of this processor, as the system describes it, and of the LLVM that is installed; None where the
    system does not.
    """
    package = importlib.util.find_spec("llvmlite")
    if package is None or package.origin is None:
        return None
    library = Path(package.origin).parent / "binding" / "libllvmlite.so"
    try:
        status = library.stat()
        with _CPUINFO.open("rb") as file:
            first = file.read(1 << 14).split(b"\n\n")[0]
    except OSError:
        return None
    lines = [line for line in first.splitlines() if line.partition(b":")[0].strip() in _DECISIVE]
    facts = [str(library), str(status.st_size), str(status.st_mtime_ns), platform.machine()]
    return hashlib.blake2b("\0".join(facts).encode() + b"\0".join(lines), digest_size=20).hexdigest()
