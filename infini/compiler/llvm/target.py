"""The processor code is made for: triple, model, features, and how many float32 lanes a vector register
holds.

Everything an emitter asks about the machine is a field of `Target`, so the text for another one can be made
anywhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import llvmlite.binding as llvm


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
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    return make_target(llvm.get_process_triple(), llvm.get_host_cpu_name(), features.flatten())
