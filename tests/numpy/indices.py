"""Random indices of every kind: numbers, slices, None, Ellipsis, integer arrays, masks and lists."""

from __future__ import annotations

from typing import Any

import numpy as np


def draw_index(rng: np.random.Generator, *, outside: bool) -> tuple[tuple[int, ...], Any]:
    """A shape, and an index of an array of that shape, in which some numbers lie outside if `outside`."""
    shape = tuple(int(n) for n in rng.integers(1, 5, rng.integers(1, 5)))
    block = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 3)))
    parts: list[Any] = []
    dimension, has_ellipsis = 0, False
    while dimension < len(shape) and rng.random() < 0.85:
        size = shape[dimension]
        low, high = (-size - 2, size + 2) if outside else (-size, size)
        kind = int(rng.integers(0, 12))
        if kind == 0:
            parts.append(None)
            continue
        if kind == 1 and not has_ellipsis:
            parts.append(...)
            has_ellipsis = True
            dimension += int(rng.integers(0, len(shape) - dimension + 1))
            continue
        taken = 1
        if kind <= 4:
            ends = [None if rng.random() < 0.4 else int(rng.integers(-size - 2, size + 3)) for _ in range(2)]
            step = [None, 1, -1, 2, -2, 3][rng.integers(0, 6)]
            parts.append(slice(*ends, step))
        elif kind <= 6:
            parts.append(int(rng.integers(low, high)))
        elif kind <= 9:
            sizes = tuple(
                1 if rng.random() < 0.3 else n for n in block[int(rng.integers(0, len(block) + 1)) :]
            )
            dtype = ["int32", "int8", "uint8", "int64", "uint16"][rng.integers(0, 5)]
            parts.append(rng.integers(0 if dtype[0] == "u" else low, high, sizes or (1,)).astype(dtype))
        elif kind == 10:
            taken = int(rng.integers(1, min(2, len(shape) - dimension) + 1))
            mask = rng.random(shape[dimension : dimension + taken]) < 0.5
            # As many as the other arrays of the index have, or one.
            mask[np.cumsum(mask.reshape(-1)).reshape(mask.shape) > (block[-1] if block else 1)] = False
            mask.reshape(-1)[0] |= not mask.any()
            fits = mask.sum() == 1 or (block and mask.sum() == block[-1])
            parts.append(mask if fits else slice(None))
            taken = taken if isinstance(parts[-1], np.ndarray) else 1
        else:
            parts.append([int(rng.integers(low, high))])
        dimension += taken
    index = tuple(parts)
    return shape, index[0] if len(index) == 1 and not isinstance(
        index[0], list
    ) and rng.random() < 0.5 else index
