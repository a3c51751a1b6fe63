"""Products of narrow numbers as products of groups: one instruction multiplies some neighbours along k and
adds all of their products to one sum.

Processors with AVX-512 BF16 take pairs of bfloat16 and add in float32, those with VNNI four bytes and add
in int32, exactly. A group is an element of 32 bits. An operand with contiguous k is a matrix of groups as it
lies in memory; in any other order they are put together while it is packed.

VNNI multiplies unsigned bytes by signed ones. Where both operands are of one kind, y is copied with its sign
bits turned, which moves it by 128, and sums start with what that adds: 128 times the sum of a row of x.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infini.compiler.llvm.contraction import Dimension, Problem
from infini.compiler.llvm.target import Target
from infini.core import dtypes

BYTES = frozenset({dtypes.int8, dtypes.uint8})


@dataclass(frozen=True, slots=True)
class Paired:
    """A product of groups.

    Args:
        problem: the product; k counts groups, and strides of an operand count what its dtype says.
        x_dtype: int32 where groups lie in memory, the narrow dtype where they have to be put together.
        y_dtype: the same of y.
        x_pair: elements from one of a group to the next, 0 where groups lie in memory.
        y_pair: the same of y.
        x_element: dtype of the elements of x.
        depth: elements along k.
        count: elements of a group.
        unsigned: which operand of the instruction takes bytes without signs, A for x or B for y; None for
            pairs of bfloat16.
        row_factor: what the sum of a row of x is multiplied by and added to the sums of that row; not 0 where
            y is copied with its sign bits turned.
    """

    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    x_pair: int
    y_pair: int
    x_element: np.dtype
    depth: int
    count: int = 2
    unsigned: Literal["A", "B"] | None = None
    row_factor: int = 0

    @property
    def tail(self) -> int:
        """Elements of the last group, 0 when it is a whole one."""
        return self.depth % self.count


def is_paired_kind(x_dtype: np.dtype, y_dtype: np.dtype, target: Target) -> bool:
    """Whether the processor multiplies pairs of these dtypes."""
    return x_dtype == y_dtype == dtypes.bfloat16 and target.has("avx512bf16") and target.lanes == 16


def has_bytes(target: Target) -> bool:
    """Whether the processor multiplies groups of four bytes."""
    return (target.lanes == 16 and target.has("avx512vnni")) or (target.lanes == 8 and target.has("avxvnni"))


def paired(
    problem: Problem, x_dtype: np.dtype, y_dtype: np.dtype, dtype: np.dtype, target: Target
) -> Paired | None:
    """A product with results of `dtype` as one of groups, when it can be."""
    if is_paired_kind(x_dtype, y_dtype, target):
        return None if problem.depth % 2 else _grouped(problem, x_dtype, y_dtype, 2)
    if {x_dtype, y_dtype} <= BYTES and dtype in (dtypes.int32, dtypes.uint32) and has_bytes(target):
        found = _grouped(problem, x_dtype, y_dtype, 4)
        if found is None:
            return None
        x_is_unsigned, y_is_unsigned = x_dtype == dtypes.uint8, y_dtype == dtypes.uint8
        factor = 0 if x_is_unsigned != y_is_unsigned else 128 if x_is_unsigned else -128
        return dataclasses.replace(found, unsigned="A" if x_is_unsigned else "B", row_factor=factor)
    return None


def _grouped(problem: Problem, x_dtype: np.dtype, y_dtype: np.dtype, count: int) -> Paired | None:
    """The product with groups of `count` elements as elements."""
    (k,) = problem.k
    others = (*problem.batch, problem.m, problem.n)
    is_whole = k.size % count == 0
    x_is_view = is_whole and k.x == 1 and not any(d.x % count for d in others)
    y_is_view = is_whole and k.y == 1 and not any(d.y % count for d in others)
    # Bytes with contiguous k can be read from any address, pairs of bfloat16 only where rows of them begin.
    is_free = count == 4
    is_packable = (x_is_view or problem.m.x == 1 or (is_free and k.x == 1)) and (
        y_is_view or problem.n.y == 1 or (is_free and k.y == 1)
    )
    if not is_packable:
        return None

    def of(d: Dimension) -> Dimension:
        return Dimension(
            d.size, d.x // count if x_is_view else d.x, d.y // count if y_is_view else d.y, d.out
        )

    depth = Dimension(
        -(-k.size // count), 1 if x_is_view else count * k.x, 1 if y_is_view else count * k.y, 0
    )
    return Paired(
        dataclasses.replace(
            problem, batch=tuple(of(d) for d in problem.batch), m=of(problem.m), n=of(problem.n), k=(depth,)
        ),
        dtypes.int32 if x_is_view else x_dtype,
        dtypes.int32 if y_is_view else y_dtype,
        0 if x_is_view else k.x,
        0 if y_is_view else k.y,
        x_dtype,
        k.size,
        count,
    )
