"""Whole numbers: types and values of programs, and what all makers are written with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from hypothesis import strategies as st

from infini import lax, numpy as inp
from infini.core import dtypes, ir
from infini.core.ir import ArrayType, Program, Var
from infini.testing.makers import Draw

Function: TypeAlias = Callable[..., Sequence[Any]]  # Any: traced arrays
Made: TypeAlias = tuple[Function, Sequence[Var]]  # a function and the variables it is applied to
Known: TypeAlias = Sequence[Var]
Maker: TypeAlias = Callable[[Draw, Known], Made | None]  # None when no variable fits

BOUND: Final = 8
DTYPES: Final = tuple(sorted(dtypes.ALL, key=str))
REAL: Final = tuple(t for t in DTYPES if t not in dtypes.COMPLEX)
# Sizes around those of vectors and blocks, and none at all.
_SIZES: Final = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130)
MAX_ELEMENTS: Final = 20_000


def shapes(*, max_rank: int = 4, max_elements: int = 5_000) -> st.SearchStrategy[ir.Shape]:
    """Shapes of odd sizes; some have no elements."""
    dimensions = st.lists(st.sampled_from(_SIZES), max_size=max_rank)
    return dimensions.map(tuple).filter(lambda shape: math.prod(shape) <= max_elements)


def values(type_: ArrayType, seed: int) -> np.ndarray:
    """An array of whole numbers of a type, the same for the same seed."""
    rng = np.random.default_rng(seed)
    if type_.dtype == dtypes.bool_:
        return rng.integers(0, 2, type_.shape).astype(bool)
    low = 0 if type_.dtype in dtypes.UNSIGNED else -BOUND
    found = rng.integers(low, BOUND, type_.shape, endpoint=True)
    if type_.dtype in dtypes.COMPLEX:
        return (found + 1j * rng.integers(low, BOUND, type_.shape, endpoint=True)).astype(type_.dtype)
    return found.astype(type_.dtype)


def arguments(program: Program, seed: int = 0) -> list[np.ndarray]:
    """Arguments for a program of whole numbers."""
    return [values(type_, seed + number) for number, type_ in enumerate(program.in_types)]


def small(x: Any) -> Any:  # Any: a traced array
    """The number itself, or the nearest within the bound."""
    if x.dtype == dtypes.bool_:
        return x
    if x.dtype in dtypes.COMPLEX:
        return lax.complex(small(lax.real(x)), small(lax.imag(x)))
    low = 0 if x.dtype in dtypes.UNSIGNED else -BOUND
    return lax.clamp(np.asarray(low).astype(x.dtype), x, np.asarray(BOUND).astype(x.dtype))


def pick(draw: Draw, known: Known, fits: Callable[[Var], bool] = lambda var: True) -> Var | None:
    """One of the variables that fit; None when none does."""
    found = [var for var in known if fits(var)]
    return draw(st.sampled_from(found)) if found else None


def is_real(var: Var) -> bool:
    """Whether a variable is not complex."""
    return var.type.dtype not in dtypes.COMPLEX


def is_number(var: Var) -> bool:
    """Whether a variable is not boolean."""
    return var.type.dtype != dtypes.bool_


def is_real_number(var: Var) -> bool:
    """Whether a variable is neither complex nor boolean."""
    return is_real(var) and is_number(var)


def broadcasts(var: Var, x: Var) -> bool:
    """Whether two variables of one dtype broadcast to an array that is not too large."""
    pairs = zip(var.type.shape[::-1], x.type.shape[::-1], strict=False)
    if var.type.dtype != x.type.dtype or not all(1 in pair or pair[0] == pair[1] for pair in pairs):
        return False
    return math.prod(np.broadcast_shapes(var.type.shape, x.type.shape)) <= MAX_ELEMENTS


def of_shape(x: Any, shape: ir.Shape) -> Any:  # Any: a traced array
    """An array of another shape with the elements of this one, as often as needed."""
    count, flat = math.prod(shape), inp.ravel(x)
    if flat.size == 0:
        return inp.zeros(shape, x.dtype)
    repeats = -(-count // flat.size)
    return inp.reshape(inp.tile(flat, repeats)[:count], shape)


def with_axes(draw: Draw, known: Known, fits: Callable[[Var], bool]) -> tuple[Var, tuple[int, ...]] | None:
    """A variable that fits, and some of its axes; None when none fits."""
    x = pick(draw, known, lambda var: bool(var.type.ndim) and fits(var))
    if x is None:
        return None
    return x, tuple(sorted(draw(st.sets(st.integers(0, x.type.ndim - 1), min_size=1))))
