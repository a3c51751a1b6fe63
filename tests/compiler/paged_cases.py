"""Random problems of attention over keys in blocks: tables with shared blocks and numbers out of range,
requests of no, few and many tokens, lengths that are multiples of nothing, padding, all options; what no
token sees is no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes
from infini.lax.composites import paged_definition
from infini.lax.composites.paged_definition import Operands, Options, operands_of

STORED = {
    "f32": dtypes.float32, "bf16": dtypes.bfloat16, "f16": dtypes.float16, "i8": dtypes.int8,
    "f8": dtypes.float8_e4m3fn,
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A problem: operands in order, and options."""

    operands: list[np.ndarray]
    options: Options

    @property
    def named(self) -> Operands[np.ndarray]:
        """Operands by name."""
        return operands_of(self.operands, self.options)

    def expected(self) -> np.ndarray:
        """The result, computed in float64."""
        wide = [x if x.dtype == np.int32 else x.astype(np.float64) for x in self.operands]
        return paged_definition.attention_in_numpy(*wide, **self.options.attrs())

    def check(self, found: np.ndarray) -> None:
        """Compare a result with NumPy's."""
        expected = self.expected()
        limit = 3e-5 if self.named.query.dtype == np.float32 else 1e-2
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=limit * scale)


def draw(seed: int, *, is_bfloat16: bool = False) -> Problem:
    """The problem of a seed, perhaps of bfloat16 throughout."""
    rng = np.random.default_rng(seed)
    key_heads, group = int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 2, 3, 4, 5, 8, 9, 16]))
    depth, size = int(rng.choice([8, 16, 20, 64, 80, 130])), int(rng.choice([16, 32, 5, 1, 48]))
    is_latent = rng.random() < 0.25
    width = int(rng.integers(1, depth + 1)) if is_latent else int(rng.choice([8, 16, 40, 64, 33]))
    if is_latent and rng.random() < 0.3:
        depth, width = 576, 512
    requests, tokens = int(rng.integers(1, 6)), int(rng.choice([1, 3, 8, 12, 40, 70, 130]))
    table = -(-int(rng.choice([20, 100, 700, 1500])) // size)
    blocks = int(rng.integers(1, max(2, min(requests * table, 300))))
    counts, left = np.zeros(requests, int), tokens
    for r in rng.permutation(requests):
        counts[r] = min(int(rng.choice([0, 1, 1, 2, rng.integers(0, left + 1)])), left)
        left -= counts[r]
    lengths = [int(rng.integers(n, table * size + 1)) if n <= table * size else table * size for n in counts]
    lengths = np.where(rng.random(requests) < 0.15, np.minimum(lengths, counts), lengths)
    kind = str(rng.choice(["bf16"] if is_bfloat16 else list(STORED)))
    has_scales = kind == "i8" or (kind == "f8" and rng.random() < 0.5)
    has_sinks = bool(rng.random() < 0.3)

    def cache(columns: int) -> np.ndarray:
        numbers = rng.normal(size=(blocks, key_heads, size, columns))
        return (numbers * (40 if kind == "i8" else 1)).clip(-127, 127).astype(STORED[kind])

    def scales() -> np.ndarray:
        return rng.uniform(0.005, 0.02, size=(blocks, key_heads, size)).astype(np.float32)

    query = rng.normal(size=(tokens, key_heads * group, depth))
    operands: list[Any] = [
        query.astype(np.float32 if rng.random() < 0.7 and not is_bfloat16 else dtypes.bfloat16),
        cache(depth),
        rng.integers(-1, blocks + 1, (requests, table)).astype(np.int32),
        lengths.astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    ]
    operands += [] if is_latent else [cache(width)]
    operands += [scales() for _ in range(has_scales * (1 if is_latent else 2))]
    operands += [rng.normal(size=key_heads * group).astype(np.float32)] * has_sinks
    options = Options(
        scale=depth**-0.5,
        window=int(rng.integers(1, 200)) if rng.random() < 0.3 else None,
        softcap=2.0 if rng.random() < 0.3 else None,
        value_width=width if is_latent else None,
        has_values=not is_latent,
        has_scales=has_scales,
        has_sinks=has_sinks,
    )
    problem = Problem(operands, options)
    _poison(problem.named)
    return problem


def _poison(operands: Operands[np.ndarray]) -> None:
    """Set what no request has to no number."""
    blocks, _, size = operands.keys.shape[:3]
    unused = np.ones((blocks, size), bool)
    for table, length in zip(operands.tables, operands.lengths, strict=True):
        numbers = np.arange(int(length))
        unused[table[numbers // size].clip(0, blocks - 1), numbers % size] = False
    for cache in (operands.keys, operands.values, operands.key_scales, operands.value_scales):
        if cache is not None and cache.dtype != np.int8:
            cache[np.where(unused)[0], :, np.where(unused)[1]] = np.nan
