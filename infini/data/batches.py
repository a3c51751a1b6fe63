"""Batches of token windows from one flat array.

They are chosen by (seed, step) alone, so a run can be resumed or replayed.

Imports nothing of ours but errors. Shapes: B windows of T inputs and the token after them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infini.core import errors


def random_windows(tokens: np.ndarray, *, batch_size: int, length: int, seed: int, step: int) -> np.ndarray:
    """Windows that start at random places.

    Args:
        tokens: ids, of shape (number of tokens,).
        batch_size: number B of windows.
        length: number T of inputs; a window has one token more.
        seed: seed of the run.
        step: number of the training step; the same seed and step always give the same windows.

    Returns:
        int32 of shape (B, T + 1).

    Raises:
        ValueMismatchError: there are fewer tokens than a window needs.
    """
    _check_enough(tokens, length)
    generator = np.random.default_rng([seed, step])
    starts = generator.integers(0, len(tokens) - length, size=batch_size)
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def spaced_windows(tokens: np.ndarray, *, count: int, length: int) -> np.ndarray:
    """At most `count` windows spread evenly over the tokens, which do not overlap in their inputs.

    Returns:
        int32 of shape (number of windows, T + 1).

    Raises:
        ValueMismatchError: there are fewer tokens than a window needs.
    """
    _check_enough(tokens, length)
    last = len(tokens) - length - 1
    starts = np.linspace(0, last, min(count, last // length + 1), dtype=np.int64)
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def unigram_entropy(tokens: np.ndarray) -> float:
    """Entropy of the tokens' own frequencies in nats: the loss of the best predictor without context."""
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def write_tokens(path: Path, tokens: np.ndarray) -> None:
    """Write ids as a NumPy file, uint16 where they fit."""
    largest = int(tokens.max(initial=0))
    np.save(path, tokens.astype(np.uint16 if largest < 1 << 16 else np.uint32), allow_pickle=False)


def read_tokens(path: Path) -> np.ndarray:
    """Ids that `write_tokens` wrote, mapped from the file instead of read.

    Raises:
        ValueMismatchError: the file does not hold ids.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise errors.ValueMismatchError(f"{path} is not a token file", got=str(error)) from error
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise errors.ValueMismatchError(
            f"{path} is not a token file",
            got=f"{tokens.dtype}{list(tokens.shape)}",
            expected="uint16[n] or uint32[n]",
        )
    return tokens


def _check_enough(tokens: np.ndarray, length: int) -> None:
    if len(tokens) <= length:
        raise errors.ValueMismatchError(
            "the text is too short for the sequence length",
            got=f"{len(tokens)} tokens",
            expected=f"more than {length}",
            fix="give more text with --data, or a smaller --seq-len",
        )
