"""Contractions that cuBLAS, or a library with its calls, takes as they lie: every group of letters walks
memory evenly, one of each matrix's steps is 1.

Nothing is transposed or copied: the order of dimensions becomes transposes, leading dimensions and strides.
cuBLAS counts columns first, so a row-major result is computed as the transposed product with its operands
exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.triton.access import c_strides
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax import contraction

# cudaDataType_t and cublasComputeType_t.
_DATA_TYPES: Final = {dtypes.float32: 0, dtypes.float64: 1, dtypes.float16: 2, dtypes.bfloat16: 14}
_COMPUTE_32F: Final = 68
_COMPUTE_64F: Final = 70


@dataclass(frozen=True, slots=True)
class Gemm:
    """One call of `gemmStridedBatchedEx`, without addresses.

    Args:
        swaps: whether the second operand is cuBLAS's first.
        transposes: 0 or 1 for each of cuBLAS's operands.
        sizes: m, n, k of cuBLAS.
        leading: leading dimensions of cuBLAS's operands and the result.
        strides: elements between two matrices of each, for batches.
        types: data types of each.
        count: number of products.
        compute: type to compute in.
        scalar: dtype of the factors.
    """

    swaps: bool
    transposes: tuple[int, int]
    sizes: tuple[int, int, int]
    leading: tuple[int, int, int]
    strides: tuple[int, int, int]
    types: tuple[int, int, int]
    count: int
    compute: int
    scalar: np.dtype

    def numbers(self, x: int, y: int, out: int) -> list[int]:
        """Arguments of `Driver.gemm` at these addresses."""
        addresses = (y, x, out) if self.swaps else (x, y, out)
        found = [*self.transposes, *self.sizes]
        for address, type_, leading, stride in zip(
            addresses, self.types, self.leading, self.strides, strict=True
        ):
            found += [address, type_, leading, stride]
        return [*found, self.count]


def plan(x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype) -> Gemm | None:
    """The cuBLAS call of a contraction without loop dimensions; None when its layout or dtypes do not allow
    one.
    """
    if x.dtype != y.dtype or x.dtype not in _DATA_TYPES or dtype not in (x.dtype, _widened(x.dtype)):
        return None
    a, b, out = contraction.parse_spec(spec)
    result = ArrayType(tuple(_sizes(a, b, x, y)[c] for c in out), dtype)
    groups = {
        "batch": [c for c in out if c in a and c in b],
        "m": [c for c in a if c not in b],
        "n": [c for c in b if c not in a],
        "k": [c for c in a if c in b and c not in out],
    }
    if not set(groups["m"] + groups["n"]) <= set(out) or not groups["k"] or 0 in result.shape:
        return None
    # The letters of a group follow their order in the result; those summed away, in the left operand.
    order = {
        **{name: [c for c in out if c in groups[name]] for name in ("batch", "m", "n")},
        "k": groups["k"],
    }
    left, right, target = (_Matrices.of(letters, t, order) for letters, t in ((a, x), (b, y), (out, result)))
    if left is None or right is None or target is None:
        return None
    sizes = {name: _product(order[name], _sizes(a, b, x, y)) for name in order}
    first, second, swaps, m, n = left, right, False, "m", "n"
    if target.step("n", sizes) == 1:  # row-major
        first, second, swaps, m, n = right, left, True, "n", "m"
    elif target.step("m", sizes) != 1:
        return None
    ways = [first.operand(m, "k", sizes), second.operand("k", n, sizes), target.operand(m, n, sizes)]
    if any(way is None for way in ways) or ways[2] is None or ways[2][0]:
        return None
    flags, leading = zip(*(way for way in ways if way is not None), strict=True)
    is_double = dtype == dtypes.float64
    return Gemm(
        swaps,
        (flags[0], flags[1]),
        (sizes[m], sizes[n], sizes["k"]),
        (leading[0], leading[1], leading[2]),
        (first.batch_step(sizes), second.batch_step(sizes), target.batch_step(sizes)),
        (_DATA_TYPES[x.dtype], _DATA_TYPES[x.dtype], _DATA_TYPES[dtype]),
        sizes["batch"],
        _COMPUTE_64F if is_double else _COMPUTE_32F,
        dtypes.float64 if is_double else dtypes.float32,
    )


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Step of each group of letters in one array."""

    steps: dict[str, int]

    @classmethod
    def of(cls, letters: str, type_: ArrayType, order: dict[str, list[str]]) -> _Matrices | None:
        """The steps, or None when a group does not walk memory evenly."""
        strides = dict(zip(letters, c_strides(type_.shape), strict=True))
        sizes = dict(zip(letters, type_.shape, strict=True))
        steps = {}
        for name, group in order.items():
            present = [c for c in group if c in strides and sizes[c] != 1]
            if any(strides[p] != strides[q] * sizes[q] for p, q in itertools.pairwise(present)):
                return None
            steps[name] = strides[present[-1]] if present else 0
        return cls(steps)

    def step(self, name: str, sizes: dict[str, int]) -> int:
        """Elements from one index of a group to the next; a group of size 1 counts as lying closest."""
        return self.steps[name] if sizes[name] > 1 else 1

    def batch_step(self, sizes: dict[str, int]) -> int:
        """Elements from one matrix to the next; 0 for a single one."""
        return self.steps["batch"] if sizes["batch"] > 1 else 0

    def operand(self, rows: str, columns: str, sizes: dict[str, int]) -> tuple[int, int] | None:
        """(transpose, leading dimension) of a matrix with column-major rows and columns; None when no step is
        1.
        """
        for flag, near, far in ((0, rows, columns), (1, columns, rows)):
            leading = self.steps[far] if sizes[far] > 1 else sizes[near]
            if self.step(near, sizes) == 1 and leading >= sizes[near]:
                return flag, max(leading, 1)
        return None


def _sizes(a: str, b: str, x: ArrayType, y: ArrayType) -> dict[str, int]:
    return dict(zip(a, x.shape, strict=True)) | dict(zip(b, y.shape, strict=True))


def _product(letters: Sequence[str], sizes: dict[str, int]) -> int:
    total = 1
    for letter in letters:
        total *= sizes[letter]
    return total


def _widened(dtype: np.dtype) -> np.dtype:
    return dtypes.float32 if dtype in (dtypes.float16, dtypes.bfloat16) else dtype
