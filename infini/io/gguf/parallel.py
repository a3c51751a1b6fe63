"""Work on the blocks of a tensor, cut into pieces that fit a cache and given to threads.

NumPy releases the interpreter lock inside its loops. A piece has a fixed size, so results do not depend on
the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from infini.core import comm, config

PIECE: Final = 64 << 10  # numbers, of which some arrays of float32 stay in the second-level cache


def num_threads() -> int:
    """Threads to use: as the knob `num_threads` says, or one per core; processes of a job share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.get("num_threads") or max(1, cores // comm.processes().num_sharing)


def over_blocks(
    fn: Callable[[np.ndarray], np.ndarray], blocks: np.ndarray, out: np.ndarray, *, size: int
) -> np.ndarray:
    """Fill `out` with `fn` of `blocks`, some rows at a time.

    Args:
        fn: takes rows of `blocks` and gives the same rows of `out`.
        blocks: two dimensions.
        out: as many rows.
        size: numbers that a row stands for.
    """
    step = max(1, PIECE // size)
    starts = range(0, len(blocks), step)

    def piece(start: int) -> None:
        # Blocks of files hold whatever bytes they hold: infinite scales are no reason for a warning.
        with np.errstate(all="ignore"):
            out[start : start + step] = fn(blocks[start : start + step])

    count = min(num_threads(), len(starts))
    if count <= 1:
        for start in starts:
            piece(start)
        return out
    with ThreadPoolExecutor(count) as executor:
        for _ in executor.map(piece, starts):
            pass
    return out
