"""What the running processor can do, without LLVM: whether code that was made elsewhere may run here.

Only extensions count whose instructions a code generator uses on its own; what a program has to ask for
(system instructions, transactions, keys) is never in our code.
"""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path
from typing import Final

from infini.compiler.llvm import target as target_
from infini.compiler.llvm.target import Target
from infini.core import errors

_CPUINFO: Final = Path("/proc/cpuinfo")
# LLVM's name of an extension of x86, and the kernel's: "Documentation/arch/x86/cpuinfo.rst" of Linux.
EXTENSIONS: Final[dict[str, str]] = {
    "cx16": "cx16", "sahf": "lahf_lm", "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1",
    "sse4.2": "sse4_2", "sse4a": "sse4a", "crc32": "sse4_2", "popcnt": "popcnt", "lzcnt": "abm",
    "movbe": "movbe", "bmi": "bmi1", "bmi2": "bmi2", "tbm": "tbm", "adx": "adx", "aes": "aes",
    "pclmul": "pclmulqdq", "sha": "sha_ni", "gfni": "gfni", "vaes": "vaes", "vpclmulqdq": "vpclmulqdq",
    "avx": "avx", "avx2": "avx2", "f16c": "f16c", "fma": "fma", "fma4": "fma4", "xop": "xop",
    "avxvnni": "avx_vnni", "avxifma": "avx_ifma", "avxvnniint8": "avx_vnni_int8",
    "avxneconvert": "avx_ne_convert", "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw",
    "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq", "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect", "avx10.1": "avx10",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "amx-fp16": "amx_fp16",
    "amx-complex": "amx_complex",
}  # fmt: skip
_V1: Final = "+64bit,+cmov,+cx8,+fxsr,+mmx,+sse,+sse2,+x87"
_V2: Final = f"{_V1},+crc32,+cx16,+popcnt,+sahf,+sse3,+sse4.1,+sse4.2,+ssse3"
_V3: Final = f"{_V2},+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe"
_V4: Final = f"{_V3},+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl"
# The levels of the x86-64 ABI (https://gitlab.com/x86-psABIs/x86-64-ABI).
LEVELS: Final[dict[str, str]] = {"x86-64": _V1, "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}


def target(description: str) -> Target:
    """The processor that a text describes, of the system that is running.

    Args:
        description: empty for the running processor; else a level such as `x86-64-v3`, after which features
            of LLVM may be added: `x86-64-v3+avxvnni`.

    Raises:
        ValueMismatchError: it describes none.
    """
    host = target_.host_target()
    if not description:
        return host
    level, *more = description.split("+")
    unknown = [name for name in more if name not in EXTENSIONS]
    if level not in LEVELS or unknown or not host.is_x86:
        raise errors.ValueMismatchError(
            f"{description!r} describes no processor that code can be made for here",
            got=f"unknown: {', '.join(unknown)}" if unknown else f"{level!r} on {platform.machine()}",
            expected=f"nothing for this processor, or {', '.join(LEVELS)}, with features added by +",
        )
    features = ",".join([LEVELS[level], *(f"+{name}" for name in more)])
    return target_.make_target(host.triple, level, features)


def missing(wanted: Target) -> tuple[str, ...]:
    """What the running processor lacks to run code for another; empty when it can."""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if not wanted.triple.startswith(machine.replace("arm64", "aarch64")):
        return (f"architecture {wanted.triple.partition('-')[0]}",)
    if ("linux" in wanted.triple) != sys.platform.startswith("linux"):
        return (f"system {wanted.triple}",)
    needed = {name[1:] for name in wanted.features.split(",") if name.startswith("+")}
    if wanted.is_x86:
        needed &= set(EXTENSIONS)
    return tuple(sorted(needed - features()))


@functools.cache
def features() -> frozenset[str]:
    """Extensions of the running processor, by LLVM's names. Where Linux does not tell, LLVM is asked."""
    try:
        with _CPUINFO.open(encoding="utf-8") as file:
            flags = next(set(line.split()) for line in file if line.startswith("flags"))
    except (OSError, StopIteration):
        known = target_.host_target().features.split(",")
        return frozenset(name[1:] for name in known if name.startswith("+"))
    return frozenset(name for name, flag in EXTENSIONS.items() if flag in flags)
