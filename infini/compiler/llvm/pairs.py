"""Products of bfloat16 matrices as products of pairs: processors with AVX-512 BF16 multiply two neighbours
along k and add both products to a float32 sum at once.

An operand with contiguous k is a matrix of 32-bit elements as it lies in memory. In any other order, pairs
are put together while it is packed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm.contraction import Dimension, Problem
from infini.compiler.llvm.target import Target
from infini.core import dtypes

FEATURE = "avx512bf16"


@dataclass(frozen=True, slots=True)
class Paired:
    """A product of pairs.

    Args:
        problem: the product; k counts pairs, and strides of an operand count what its dtype says.
        x_dtype: int32 where pairs lie in memory, bfloat16 where they have to be put together.
        y_dtype: the same of y.
        x_pair: elements from the first of a pair to the second, 0 where pairs lie in memory.
        y_pair: the same of y.
    """

    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    x_pair: int
    y_pair: int


def is_paired_kind(x_dtype: np.dtype, y_dtype: np.dtype, target: Target) -> bool:
    """Whether the processor multiplies pairs of these dtypes."""
    return x_dtype == y_dtype == dtypes.bfloat16 and target.has(FEATURE) and target.lanes == 16


def paired(problem: Problem, x_dtype: np.dtype, y_dtype: np.dtype, target: Target) -> Paired | None:
    """A product as one of pairs, when it can be."""
    if not is_paired_kind(x_dtype, y_dtype, target) or problem.depth % 2:
        return None
    (k,) = problem.k
    others = (*problem.batch, problem.m, problem.n)
    x_is_view = k.x == 1 and not any(d.x % 2 for d in others)
    y_is_view = k.y == 1 and not any(d.y % 2 for d in others)
    is_packable = (x_is_view or problem.m.x == 1) and (y_is_view or problem.n.y == 1)
    if not is_packable:
        return None

    def of(d: Dimension) -> Dimension:
        return Dimension(d.size, d.x // 2 if x_is_view else d.x, d.y // 2 if y_is_view else d.y, d.out)

    depth = Dimension(k.size // 2, 1 if x_is_view else 2 * k.x, 1 if y_is_view else 2 * k.y, 0)
    return Paired(
        dataclasses.replace(
            problem, batch=tuple(of(d) for d in problem.batch), m=of(problem.m), n=of(problem.n), k=(depth,)
        ),
        dtypes.int32 if x_is_view else x_dtype,
        dtypes.int32 if y_is_view else y_dtype,
        0 if x_is_view else k.x,
        0 if y_is_view else k.y,
    )
