"""What a step of a program starts on a device: a kernel, or a product that a library may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infini.backends.accelerator.driver import Driver
from infini.backends.accelerator.gemm import Gemm
from infini.compiler.triton.source import TritonSource


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel; parameters x, n are operands in order, y results, `scratch` the phase's scratch memory."""

    source: TritonSource


@dataclass(frozen=True, slots=True)
class Product:
    """A contraction: by the device's library when there is one with a call for it, by a kernel elsewhere."""

    library: Gemm | None
    kernel: TritonSource


Task: TypeAlias = Launch | Product


def start(driver: Driver, task: Task, reads: Sequence[int], writes: Sequence[int], scratch: int = 0) -> None:
    """Start a kernel or a product on the driver's stream.

    Args:
        driver: the device.
        task: what to start.
        reads: addresses of the operands.
        writes: addresses of the results.
        scratch: address of the scratch memory.
    """
    if isinstance(task, Product):
        if task.library is not None and driver.gemm_library is not None:
            numbers = task.library.numbers(reads[0], reads[1], writes[0])
            driver.gemm(numbers, task.library.compute, task.library.scalar)
            return
        task = Launch(task.kernel)
    names = {f"y{i}": address for i, address in enumerate(writes)} | {"scratch": scratch}
    loads = [role for role in task.source.roles if role[0] in "xn"]
    if loads:
        # Operands stand in order: those that are loaded, then run-time extents.
        places = [int(name[1:]) if name[0] == "x" else -1 for name in loads]
        num_loads = max(places) + 1
        for name, place in zip(loads, places, strict=True):
            names[name] = reads[place if place >= 0 else num_loads + int(name[1:])]
    function = driver.function(task.source)
    driver.launch(function, task.source.grid, [names[role] for role in task.source.roles])
