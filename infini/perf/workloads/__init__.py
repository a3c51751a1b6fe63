"""The workloads of the CPU suite, one file per family, and in `gpu` those of the GPU suite. A file has
`WORKLOADS`, and `TINY`: the same kinds at sizes that a test can afford.
"""

from __future__ import annotations

from typing import Final

from infini.perf.workload import Workload
from infini.perf.workloads import (
    attention,
    calls,
    convolution,
    elementwise,
    gpu,
    matmul,
    mlp,
    models,
    movement,
    paged,
    rows,
    tiles,
)

_FILES: Final = (
    elementwise,
    rows,
    movement,
    matmul,
    mlp,
    attention,
    paged,
    convolution,
    models,
    calls,
    tiles,
)
WORKLOADS: Final[tuple[Workload, ...]] = tuple(w for file in _FILES for w in file.WORKLOADS)
TINY: Final[tuple[Workload, ...]] = tuple(w for file in _FILES for w in file.TINY)


def by_name(name: str) -> Workload:
    """The workload of that name in either suite, tiny ones included.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


_BY_NAME: Final = {w.name: w for w in (*TINY, *WORKLOADS, *gpu.TINY, *gpu.WORKLOADS)}
