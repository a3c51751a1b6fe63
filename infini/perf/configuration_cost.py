"""A roofline for configurations of a kernel: how long a program of the grid takes at least, and how well
programs fill the device. It orders configurations, so that only the likely ones are measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infini.backends.cpu import limits as limits_
from infini.compiler import cost
from infini.core import ir
from infini.core.backend import Device
from infini.core.ir import ArrayType, Attrs
from infini.tile.program import Access, Kernel, kernel_p

_L2_OF_LINUX: Final = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_L2_BYTES: Final = 1 << 20  # where the system does not tell
_REGISTER_BYTES: Final = 256 << 10  # of a multiprocessor, since 2012
_LANES: Final = 128  # float32 lanes of a multiprocessor
_PRODUCT_FACTOR: Final = 8.0  # by which matrix units are faster
_CPU_PROGRAM_S: Final = 1e-7  # of a program besides its work: loops, masks
_GPU_PROGRAM_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What decides which tiles fit, and which are fast.

    Args:
        name: of the device, with everything else that measurements depend on.
        num_units: programs that run at a time.
        flops_per_s: of the whole device.
        memory_bytes_per_s: from and to its memory.
        cache_bytes_per_s: from and to the cache that programs share.
        register_bytes: that the tiles of a program may take at a time.
        shared_bytes: that operands of products may take at a time; for CPUs the nearest cache that holds
            tiles.
        program_s: what a program takes besides its work.
    """

    name: tuple[str, ...]
    num_units: int
    flops_per_s: float
    memory_bytes_per_s: float
    cache_bytes_per_s: float
    register_bytes: int
    shared_bytes: int
    program_s: float


def facts_of(device: Device) -> DeviceFacts:
    """The facts of a device; those of a CPU are measured once, which takes a second or two."""
    if device.platform == "cuda":
        found: Any = device.backend  # Any: the CUDA backend, which has drivers
        return _cuda(found.driver(device.id))
    known = limits_.known()
    rates = known.copy_bytes_per_s
    return DeviceFacts(
        name=(*_processor(device), f"{known.num_threads} threads"),
        num_units=known.num_threads,
        flops_per_s=known.flops_per_s,
        memory_bytes_per_s=rates[max(rates)],
        cache_bytes_per_s=max(rates.values()),
        register_bytes=_l2_bytes(),  # tiles that do not fit the registers stay in the cache
        shared_bytes=_l2_bytes(),
        program_s=_CPU_PROGRAM_S,
    )


def _processor(device: Device) -> tuple[str, ...]:
    target = limits_.target_.host_target()
    return (device.platform, target.cpu, target.features, limits_.target_.llvm_version())


def _l2_bytes() -> int:
    try:
        text = _L2_OF_LINUX.read_text(encoding="ascii").strip()
    except OSError:
        return _L2_BYTES
    return int(text[:-1]) << 10 if text.endswith("K") and text[:-1].isdigit() else _L2_BYTES


def _cuda(driver: Any) -> DeviceFacts:  # Any: a Driver
    found = driver.cupy.cuda.runtime.getDeviceProperties(driver.number)
    units = int(found["multiProcessorCount"])
    clock_hz = float(found["clockRate"]) * 1e3
    # Two transfers per clock of the memory, each as wide as the bus.
    memory = 2.0 * float(found["memoryClockRate"]) * 1e3 * float(found["memoryBusWidth"]) / 8
    return DeviceFacts(
        name=driver.facts,
        num_units=units,
        flops_per_s=2.0 * units * _LANES * clock_hz,
        memory_bytes_per_s=memory,
        cache_bytes_per_s=4.0 * memory,
        register_bytes=_REGISTER_BYTES,
        shared_bytes=int(found["sharedMemPerBlockOptin"]),
        program_s=_GPU_PROGRAM_S,
    )


def why_not(kernel: Kernel, types: Sequence[ArrayType], facts: DeviceFacts) -> str | None:
    """Why a configuration cannot be fast, as its tiles do not fit; None when they do."""
    held = max([_tile_bytes(a, t) for a, t in _pairs(kernel, types)], default=0)
    if held > facts.register_bytes:
        return f"a tile of {held} bytes does not fit {facts.register_bytes}"
    stages = dict(kernel.launch).get("num_stages", 1)
    walked = sum(_tile_bytes(a, t) for a, t in _pairs(kernel, types) if a.levels)
    if walked * stages > facts.shared_bytes:
        return f"{walked * stages} bytes of walked tiles do not fit {facts.shared_bytes}"
    return None


def predicted_s(kernel: Kernel, types: Sequence[ArrayType], facts: DeviceFacts) -> float:
    """The shortest time that the limits of a device allow a kernel."""
    equation = ir.single_equation(kernel_p, types, Attrs({"kernel": kernel})).equations[0]
    flops = cost.effort(equation)
    if any(e.op.name == "dot" for body in _bodies(kernel.body) for e in body.equations):
        flops /= _PRODUCT_FACTOR if facts.program_s == _GPU_PROGRAM_S else 1.0
    moved = sum(cost.traffic(equation))
    programs = kernel.num_programs
    through_cache = programs * sum(_all_bytes(a, t) for a, t in _pairs(kernel, types))
    work_s = max(
        flops / facts.flops_per_s, moved / facts.memory_bytes_per_s, through_cache / facts.cache_bytes_per_s
    )
    if not programs:
        return 0.0
    # The last programs run while other units have none left.
    rounds = programs / facts.num_units
    return work_s * math.ceil(rounds) / rounds + math.ceil(rounds) * facts.program_s


def _bodies(program: ir.Program) -> list[ir.Program]:
    return [program, *(body for e in program.equations for inner in e.programs for body in _bodies(inner))]


def _pairs(kernel: Kernel, types: Sequence[ArrayType]) -> list[tuple[Access, ArrayType]]:
    return [
        *zip(kernel.loads, types, strict=False),
        *zip(kernel.stores, kernel.outputs, strict=True),
    ]


def _tile_bytes(access: Access, type_: ArrayType) -> int:
    """Bytes of the tile at one step."""
    return math.prod(access.tile[access.levels :]) * type_.dtype.itemsize


def _all_bytes(access: Access, type_: ArrayType) -> int:
    """Bytes of a program's tiles at all steps."""
    return math.prod(access.tile) * type_.dtype.itemsize
