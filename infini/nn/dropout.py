"""Dropout in its variants. Noise needs a key; without one, a dropout is the identity."""

from __future__ import annotations

import math

import infini.numpy as inp
from infini import random
from infini.core import errors
from infini.core.value import Value
from infini.nn import parameters
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike
from infini.random.keys import KeyLike


def dropout(x: ArrayLike, p: float = 0.5, *, key: KeyLike, broadcast_dims: tuple[int, ...] = ()) -> Value:
    """Zero elements with probability `p` and scale the others so that the mean stays.

    Args:
        x: array.
        p: probability that an element is dropped, in [0, 1].
        key: a key.
        broadcast_dims: dimensions along which all elements share one decision.
    """
    value = parameters.operand("dropout", x)
    if p >= 1:
        return inp.zeros_like(value)
    sizes = tuple(
        1 if d in {b % value.ndim for b in broadcast_dims} else n for d, n in enumerate(value.shape)
    )
    kept = random.bernoulli(key, 1 - p, sizes)
    return inp.where(kept, value / (1 - p), inp.zeros((), value.dtype))


def is_drawn(name: str, p: float, key: KeyLike | None, training: bool | None) -> bool:
    """Whether there is noise: when a key is given, unless `training` says otherwise.

    Raises:
        ValueMismatchError: there should be noise and there is no key.
    """
    if training and key is None and p:
        raise errors.ValueMismatchError(
            f"{name} needs a key while training",
            got="training=True, key=None",
            fix="pass key=; a key alone turns training on",
        )
    return bool(p) and key is not None and training is not False


def _check(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise errors.ValueMismatchError(f"{name}: p is a probability", got=repr(p), expected="0 to 1")
    return p


class Dropout(Module):
    """Zero elements with probability `p` and scale the others so that the mean stays.

    Args:
        p: probability that an element is dropped.
        inplace: accepted for PyTorch's sake; arrays never change.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn, random
        >>> drop = nn.Dropout(0.5)
        >>> drop(inp.ones(4)).tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> sorted(set(drop(inp.ones(100), key=random.key(0)).tolist()))
        [0.0, 2.0]
    """

    p: float = field(static=True)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        self.p = _check("Dropout", p)

    def __call__(self, x: ArrayLike, *, key: KeyLike | None = None, training: bool | None = None) -> Value:
        """Drop elements when a key is given.

        Args:
            x: array.
            key: a key.
            training: True insists on a key; False never drops.
        """
        if not is_drawn("Dropout", self.p, key, training):
            return parameters.operand("Dropout", x)
        return dropout(x, self.p, key=key)


class ChannelDropout(Module):
    """Zero whole channels of (N, C, ...) with probability `p`, as PyTorch's Dropout1d, Dropout2d and
    Dropout3d, which are names of it.

    Args:
        p: probability that a channel is dropped.
        inplace: accepted for PyTorch's sake; arrays never change.
    """

    p: float = field(static=True)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        self.p = _check("ChannelDropout", p)

    def __call__(self, x: ArrayLike, *, key: KeyLike | None = None, training: bool | None = None) -> Value:
        """Drop channels when a key is given; `training` as of `Dropout`."""
        value = parameters.operand("ChannelDropout", x)
        if not is_drawn("ChannelDropout", self.p, key, training):
            return value
        return dropout(value, self.p, key=key, broadcast_dims=tuple(range(2, value.ndim)))


Dropout1d = Dropout2d = Dropout3d = ChannelDropout


class AlphaDropout(Module):
    """Dropout that keeps the mean 0 and variance 1 of `selu` networks.

    Args:
        p: probability that an element is dropped.
        inplace: accepted for PyTorch's sake; arrays never change.

    Source: Klambauer et al., https://arxiv.org/abs/1706.02515
    """

    p: float = field(static=True)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        self.p = _check("AlphaDropout", p)

    def __call__(self, x: ArrayLike, *, key: KeyLike | None = None, training: bool | None = None) -> Value:
        """Drop elements when a key is given; `training` as of `Dropout`."""
        value = parameters.operand("AlphaDropout", x)
        if not is_drawn("AlphaDropout", self.p, key, training):
            return value
        if self.p == 1:
            return inp.zeros_like(value)
        # The limit of selu at minus infinity stands for a dropped element.
        low = -1.7580993408473766
        scale = 1 / math.sqrt((1 - self.p) * (1 + self.p * low**2))
        kept = random.bernoulli(key, 1 - self.p, value.shape)
        return inp.where(kept, value, low) * scale - low * self.p * scale
