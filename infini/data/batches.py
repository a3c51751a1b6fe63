"""Batches of token windows from one flat array: which windows a step sees depends on the seed and the number
of the step alone, so a run can be resumed or replayed from one integer.

Shapes: B windows of T inputs and the token after them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from infini.core import errors
from infini.data import permutation

Order = Literal["shuffled", "sequential", "random"]
_COUNTED = 1 << 24  # tokens counted at once: NumPy makes 64-bit integers of them


@dataclass(frozen=True, slots=True)
class Batches:
    """The batch of every step.

    With the orders `shuffled` and `sequential` the tokens are packed: cut into windows one after the other,
    so an epoch predicts each token once, but for those left at the end. `random` windows start anywhere.

    Args:
        tokens: ids, of shape (number of tokens,).
        batch_size: number B of windows of a step.
        length: number T of inputs of a window.
        seed: seed of the order.
        order: `shuffled` anew in each epoch, `sequential`, or `random`.
        shard: number of this process and of processes; each gets its rows of the batch.

    Raises:
        ValueMismatchError: there are fewer tokens than a window needs, or the processes do not divide the
            batch.
    """

    tokens: np.ndarray
    batch_size: int
    length: int
    seed: int = 0
    order: Order = "shuffled"
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        _check_enough(self.tokens, self.length)
        if self.batch_size % self.shard[1]:
            raise errors.ValueMismatchError(
                "the processes do not divide the batch",
                got=f"{self.batch_size} windows for {self.shard[1]} processes",
                fix="set run.batch_size to a multiple of the number of processes",
            )

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return (len(self.tokens) - 1) // self.length

    def at(self, step: int) -> np.ndarray:
        """The rows of this process in the batch of a step.

        Returns:
            int32 of shape (B / number of processes, T + 1).
        """
        starts = self._starts(step)
        process, count = self.shard
        rows = len(starts) // count
        starts = starts[process * rows : (process + 1) * rows]
        return self.tokens[starts[:, None] + np.arange(self.length + 1)].astype(np.int32)

    def _starts(self, step: int) -> np.ndarray:
        if self.order == "random":
            generator = np.random.default_rng([self.seed, step])
            return generator.integers(0, len(self.tokens) - self.length, size=self.batch_size)
        taken = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs, items = np.divmod(taken, self.num_windows)
        if self.order == "shuffled":
            for epoch in np.unique(epochs):
                of_epoch = epochs == epoch
                items[of_epoch] = permutation.shuffled(
                    items[of_epoch], size=self.num_windows, seed=self.seed, epoch=int(epoch)
                )
        return items * self.length


def random_windows(tokens: np.ndarray, *, batch_size: int, length: int, seed: int, step: int) -> np.ndarray:
    """Windows that start at random places: `Batches(..., order="random").at(step)`."""
    return Batches(tokens, batch_size, length, seed, "random").at(step)


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
    counts = np.zeros(int(tokens.max(initial=0)) + 1, np.int64)
    for at in range(0, len(tokens), _COUNTED):
        counts += np.bincount(tokens[at : at + _COUNTED], minlength=len(counts))
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def _check_enough(tokens: np.ndarray, length: int) -> None:
    if len(tokens) <= length:
        raise errors.ValueMismatchError(
            "the text is too short for the sequence length",
            got=f"{len(tokens)} tokens",
            expected=f"more than {length}",
            fix="give more text with --data, or a smaller run.length",
        )
