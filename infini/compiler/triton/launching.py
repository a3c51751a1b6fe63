"""How a kernel is launched where somebody chose: warps per program, and loads in flight."""

from __future__ import annotations

import dataclasses

from infini.compiler.triton.source import TritonSource
from infini.tile.program import Kernel


def chosen(source: TritonSource, kernel: Kernel) -> TritonSource:
    """The source of a kernel with the launch options that the kernel asks for."""
    launch = dict(kernel.launch)
    return dataclasses.replace(
        source,
        num_warps=launch.get("num_warps", source.num_warps),
        num_stages=launch.get("num_stages", source.num_stages),
    )
