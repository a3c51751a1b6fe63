"""How a kernel is launched where somebody chose: warps per program, and loads in flight."""

from __future__ import annotations

import dataclasses

from infini.compiler.triton.source import TritonSource
from infini.tile.program import Kernel


def chosen(source: TritonSource, kernel: Kernel) -> TritonSource:
    """The source of a kernel with the launch options that the kernel asks for."""
    return dataclasses.replace(source, **dict(kernel.launch)) if kernel.launch else source
