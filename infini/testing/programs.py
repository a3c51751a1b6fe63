"""Hypothesis strategies for types, values and whole random Programs, to test passes, printers and backends
with.

Every program is well formed by construction: equations come from `Builder`, so each has passed its type
rule. Needs hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from hypothesis import strategies as st

from infini.core import dtypes, ir
from infini.core.ir import ArrayType, Program, Var
from infini.testing.makers import DTYPES, MAKERS, Draw, shapes

# Derivatives of these exist and mean something.
SMOOTH: Final = (
    "binary", "broadcast", "concatenate", "cond", "contract", "dynamic_slice", "dynamic_update", "gather",
    "pad", "reduce", "reshape", "reverse", "scan", "scatter", "slice", "smooth", "transpose",
)  # fmt: skip
# Roundings of 16-bit floats add up over the equations of a program, and a floor, a comparison or an order may
# turn one into a step; programs whose floats are compared between backends are made without these.
EXACT: Final = tuple(n for n in MAKERS if n not in ("argmax", "compare", "convert", "sort", "unary"))


def types(
    *,
    allowed: Sequence[np.dtype] = DTYPES,
    min_rank: int = 0,
    max_rank: int = 3,
    max_size: int = 5,
    sizes: Sequence[int] | None = None,
) -> st.SearchStrategy[ArrayType]:
    """Array types; `sizes` are those that dimensions may have, 1 to `max_size` when absent."""
    found = shapes(min_rank=min_rank, max_rank=max_rank, max_size=max_size, sizes=sizes)
    return st.builds(ArrayType, found, st.sampled_from(list(allowed)))


def values(type_: ArrayType, seed: int) -> np.ndarray:
    """An array of a type, the same for the same seed; floats lie between -2 and 2, integers between 0 and
    7."""
    rng = np.random.default_rng(seed)
    if type_.dtype in dtypes.FLOATS:
        return rng.uniform(-2, 2, type_.shape).astype(type_.dtype)
    return rng.integers(0, 2 if type_.dtype == dtypes.bool_ else 8, type_.shape).astype(type_.dtype)


def arguments(program: Program, seed: int = 0) -> list[np.ndarray]:
    """Arguments for a program."""
    return [values(type_, seed + number) for number, type_ in enumerate(program.in_types)]


@st.composite
def programs(
    draw: Draw,
    *,
    allowed: Sequence[np.dtype] = DTYPES,
    max_params: int = 3,
    min_equations: int = 1,
    max_equations: int = 12,
    families: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    min_rank: int = 0,
    is_all_used: bool = False,
) -> Program:
    """Whole programs of the first-order families.

    Args:
        draw: given by hypothesis.
        allowed: dtypes of the parameters.
        max_params: largest number of parameters, at least 1.
        min_equations: smallest number of equations.
        max_equations: largest number of equations.
        families: names of `MAKERS` to choose from; all of them when absent.
        sizes: those that dimensions of parameters may have; 1 to 5 when absent.
        min_rank: smallest number of dimensions of parameters.
        is_all_used: whether every value matters: results are those that no equation reads.
    """
    builder = ir.Builder()
    of_params = types(allowed=allowed, sizes=sizes, min_rank=min_rank)
    params = [Var(draw(of_params)) for _ in range(draw(st.integers(1, max_params)))]
    known = list(params)
    names = sorted(MAKERS if families is None else families)
    for _ in range(draw(st.integers(min_equations, max_equations))):
        made = MAKERS[draw(st.sampled_from(names))](draw, builder, known)
        if made is not None and made.type.size <= 4096:
            known.append(made)
    if is_all_used:
        read = {v for equation in builder.equations for v in equation.inputs}
        return builder.build(params, [v for v in known if v not in read and v not in params] or known[-1:])
    # Late values depend on much of the program.
    results = draw(st.lists(st.sampled_from(known[::-1]), min_size=1, max_size=3))
    return builder.build(params, results)
