"""Stores that pass the cache by: for results so large that they would have left it before anybody reads them.

An ordinary store reads the line first, and drives out what is still wanted. A store past the cache needs an
aligned vector, and only addresses at run time tell whether an array is aligned, so both are written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.indexing import c_strides
from infini.compiler.llvm.types import I64
from infini.core.ir import ArrayType
from infini.tile.program import Access

MIN_BYTES: Final = 16 << 20  # of all results
MIN_VECTOR: Final = 32  # bytes of a vector


def is_worth(outputs: Sequence[ArrayType], lanes: int) -> bool:
    """Whether results are so large, and vectors of `lanes` of their elements so wide, that it pays."""
    if sum(t.nbytes for t in outputs) < MIN_BYTES:
        return False
    return all(lanes * t.dtype.itemsize >= MIN_VECTOR for t in outputs)


def are_vectors_aligned(stores: Sequence[Access], outputs: Sequence[ArrayType], lanes: int) -> bool:
    """Whether vectors of `lanes` elements that begin at multiples of them along the tiles are aligned when
    the results are."""
    for access, type_ in zip(stores, outputs, strict=True):
        strides = c_strides(type_.shape)
        num_grid = len(access.grid_strides[0]) if access.grid_strides else 0
        grid = _steps(strides, access.grid_strides, num_grid)
        tile = _steps(strides, access.tile_strides, len(access.tile))
        start = sum(s * n for s, n in zip(strides, access.offsets, strict=True))
        others = [n for n, size in zip(tile, access.tile, strict=True) if n != 1 and size > 1]
        if 1 not in tile or any(n % lanes for n in (*grid, *others, start)):
            return False
    return True


def _steps(strides: Sequence[int], rows: Sequence[Sequence[int]], count: int) -> list[int]:
    """Elements from one place of an array to the next along each of `count` dimensions of an access."""
    return [sum(s * row[i] for s, row in zip(strides, rows, strict=True)) for i in range(count)]


def can(f: Function, results: Sequence[Value], operands: Sequence[Value], nbytes: int) -> Value:
    """Whether results are aligned to `nbytes`, and none has the memory of an operand, which is in the cache
    already."""
    addresses = [f.convert("ptrtoint", pointer, I64) for pointer in results]
    joined = functools.reduce(lambda x, y: f.binary("or", x, y), addresses)
    rest = f.binary("and", joined, f.constant(nbytes - 1, I64))
    found = f.compare("eq", rest, f.constant(0, I64))
    for operand in operands:
        other = f.convert("ptrtoint", operand, I64)
        for address in addresses:
            found = f.binary("and", found, f.compare("ne", address, other))
    return found
