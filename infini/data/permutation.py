"""A shuffled order that needs no memory: where item `i` of an epoch comes from is computed, not looked up.

A Feistel network permutes the numbers below a power of four; numbers that land outside the range are sent
through it again until they land inside, which keeps it a permutation. Its keys are made from the seed and the
epoch, so a run is resumed from the number of items taken alone.

References: format-preserving encryption by cycle walking (Black and Rogaway, 2002); the mixing function is
that of SplitMix64 (Steele et al., 2014).
"""

from __future__ import annotations

from typing import Final

import numpy as np

_ROUNDS: Final = 6


def shuffled(items: np.ndarray, *, size: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Where items stand after range(size) has been shuffled.

    Args:
        items: integers in [0, size).
        size: number of items of an epoch.
        seed: seed of the order, at least 0.
        epoch: each epoch has an order of its own.

    Returns:
        int64 of the same shape. Over all items it is a permutation.

    Example:
        >>> sorted(shuffled(np.arange(5), size=5, seed=1).tolist())
        [0, 1, 2, 3, 4]
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _keys(seed, epoch)
    found = _encrypt(np.asarray(items, np.uint64), half_bits, keys)
    outside = found >= np.uint64(size)
    while outside.any():
        found[outside] = _encrypt(found[outside], half_bits, keys)
        outside = found >= np.uint64(size)
    return found.astype(np.int64)


def _encrypt(numbers: np.ndarray, half_bits: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = numbers >> half_bits, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return np.asarray((left << half_bits) | right)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of `x`; products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, epoch: int) -> list[np.uint64]:
    """One key per round, from NumPy's hash of seed and epoch."""
    words = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    return list(words)
