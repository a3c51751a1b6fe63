"""Tensors of kinds that weights have, from NumPy's random numbers."""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def tensors() -> dict[str, np.ndarray]:
    """Tensors (32, 1024) by kind."""
    rng = np.random.default_rng(11)
    shape = (32, 1024)
    normal = rng.standard_normal(shape)
    found = {
        "normal": normal * 0.02,
        "heavy tails": rng.standard_t(3, shape) * 0.02,
        "laplace": rng.laplace(size=shape) * 0.02,
        "uniform": rng.uniform(-1, 1, shape),
        "rows of different sizes": normal * np.exp(rng.standard_normal((32, 1))) * 0.02,
        "columns of different sizes": normal * np.exp(rng.standard_normal((1, 1024))) * 0.02,
        "to one side": normal * 0.02 + 0.05,
        "positive": np.abs(normal) * 0.02,
        "mostly zero": normal * (rng.random(shape) < 0.1),
        "large": normal * 1000,
    }
    return {name: x.astype(np.float32) for name, x in found.items()}
