"""Hypothesis strategies for types, values and whole random Programs, to test passes, printers and backends
with.

Every program is well formed by construction: equations come from `Builder`, so each has passed its type
rule. Needs hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from infini.core import dtypes, ir, primitive
from infini.core.ir import ArrayType, Program, Var
from infini.lax import elementwise

Draw = Callable[[st.SearchStrategy[Any]], Any]  # Any: strategies of any kind

DTYPES: Final = (dtypes.float32, dtypes.bfloat16, dtypes.int32, dtypes.uint8, dtypes.bool_)
# Functions without poles, so random programs stay finite for a while.
_UNARY: Final = ("neg", "abs", "sign", "tanh", "logistic", "sin", "cos", "floor", "ceil", "erf", "round_even")
_BINARY: Final = ("add", "sub", "mul", "max", "min")
_COMPARE: Final = ("eq", "ne", "lt", "le", "gt", "ge")
_BITWISE: Final = ("and", "or", "xor")


def shapes(*, max_rank: int = 3, max_size: int = 5) -> st.SearchStrategy[ir.Shape]:
    """Shapes of few dimensions, some of size 1, none of size 0."""
    return st.lists(st.integers(1, max_size), max_size=max_rank).map(tuple)


def types(
    *, allowed: Sequence[np.dtype] = DTYPES, max_rank: int = 3, max_size: int = 5
) -> st.SearchStrategy[ArrayType]:
    """Array types."""
    return st.builds(ArrayType, shapes(max_rank=max_rank, max_size=max_size), st.sampled_from(list(allowed)))


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
    max_equations: int = 12,
    families: Sequence[str] | None = None,
) -> Program:
    """Whole programs of the first-order families.

    Args:
        draw: given by hypothesis.
        allowed: dtypes of the parameters.
        max_params: largest number of parameters, at least 1.
        max_equations: largest number of equations.
        families: names of `MAKERS` to choose from; all of them when absent.
    """
    builder = ir.Builder()
    params = [Var(draw(types(allowed=allowed))) for _ in range(draw(st.integers(1, max_params)))]
    known = list(params)
    names = sorted(MAKERS if families is None else families)
    for _ in range(draw(st.integers(1, max_equations))):
        made = MAKERS[draw(st.sampled_from(names))](draw, builder, known)
        if made is not None and made.type.size <= 4096:
            known.append(made)
    results = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    return builder.build(params, results)


# --- one maker per family: an equation on known variables, or None when none of them fits ---------


def _pick(draw: Draw, known: Sequence[Var], fits: Callable[[Var], bool]) -> Var | None:
    found = [var for var in known if fits(var)]
    return draw(st.sampled_from(found)) if found else None


def _is_float(var: Var) -> bool:
    return var.type.dtype in dtypes.FLOATS


def _emit(builder: ir.Builder, name: str, *inputs: Var, **attrs: object) -> Var:
    return builder.emit1(primitive.by_name(name), inputs, **attrs)


def _partner(draw: Draw, known: Sequence[Var], x: Var) -> Var:
    """A variable of the same dtype whose shape broadcasts with that of `x`; `x` itself always does."""

    def fits(var: Var) -> bool:
        pairs = zip(var.type.shape[::-1], x.type.shape[::-1], strict=False)
        return var.type.dtype == x.type.dtype and all(1 in pair or pair[0] == pair[1] for pair in pairs)

    found = _pick(draw, known, fits)
    assert found is not None
    return found


def _unary(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, _is_float)
    return None if x is None else _emit(builder, draw(st.sampled_from(_UNARY)), x)


def _binary(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: var.type.dtype != dtypes.bool_)
    return None if x is None else _emit(builder, draw(st.sampled_from(_BINARY)), x, _partner(draw, known, x))


def _bitwise(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: var.type.dtype in elementwise.BITS)
    return None if x is None else _emit(builder, draw(st.sampled_from(_BITWISE)), x, _partner(draw, known, x))


def _compare(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))
    return _emit(builder, draw(st.sampled_from(_COMPARE)), x, _partner(draw, known, x))


def _select(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    which = _pick(draw, known, lambda var: var.type.dtype == dtypes.bool_)
    if which is None:
        return None
    x = _pick(draw, known, lambda var: var.type.shape == which.type.shape)
    assert x is not None
    return _emit(builder, "select_n", which, x, _partner(draw, [v for v in known if v.type == x.type], x))


def _convert(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))
    return _emit(builder, "convert_element_type", x, new_dtype=draw(st.sampled_from(DTYPES)))


def _reduce(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim))
    if x is None:
        return None
    axes = draw(st.sets(st.integers(-x.type.ndim, -1), min_size=1))
    name = draw(st.sampled_from(("reduce_sum", "reduce_max", "reduce_min")))
    if x.type.dtype == dtypes.bool_:
        name = "reduce_max"
    return _emit(builder, name, x, axes=tuple(sorted(axes)))


def _reshape(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))
    size, divisors = x.type.size, [n for n in range(1, x.type.size + 1) if x.type.size % n == 0]
    first = draw(st.sampled_from(divisors))
    shape = draw(st.sampled_from([(size,), (first, size // first), (1, first, size // first)]))
    return _emit(builder, "reshape", x, shape=shape, ndim=x.type.ndim)


def _transpose(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: var.type.ndim >= 2)
    if x is None:
        return None
    order = draw(st.permutations(range(-x.type.ndim, 0)))
    return _emit(builder, "transpose", x, permutation=tuple(order))


def _broadcast(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: var.type.ndim <= 3)
    if x is None:
        return None
    shape, dims = list(x.type.shape), list(range(x.type.ndim))
    place = draw(st.integers(0, x.type.ndim))
    shape.insert(place, draw(st.integers(1, 4)))
    dims = [d + (d >= place) - len(shape) for d in dims]
    return _emit(builder, "broadcast_in_dim", x, shape=tuple(shape), dims=tuple(dims))


def _slice(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))
    start = [draw(st.integers(0, n - 1)) for n in x.type.shape]
    limit = [draw(st.integers(s + 1, n)) for s, n in zip(start, x.type.shape, strict=True)]
    strides = [draw(st.integers(1, 2)) for _ in start]
    return _emit(builder, "slice", x, start=tuple(start), limit=tuple(limit), strides=tuple(strides))


def _pad(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))
    fill = builder.constant(np.ones((), x.type.dtype))
    low, high, interior = (tuple(draw(st.integers(0, 2)) for _ in x.type.shape) for _ in range(3))
    return _emit(builder, "pad", x, fill, low=low, high=high, interior=interior)


def _concatenate(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim))
    if x is None:
        return None
    y = _pick(draw, known, lambda var: var.type == x.type)
    assert y is not None
    return _emit(builder, "concatenate", x, y, axis=draw(st.integers(-x.type.ndim, -1)))


def _reverse(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim))
    return None if x is None else _emit(builder, "rev", x, axes=(draw(st.integers(-x.type.ndim, -1)),))


def _iota(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    shape = draw(shapes().filter(bool))
    dimension = draw(st.integers(0, len(shape) - 1))
    return _emit(
        builder,
        "iota",
        shape=shape,
        dimension=dimension,
        dtype=draw(st.sampled_from((dtypes.int32, dtypes.float32))),
    )


def _contract(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: var.type.ndim >= 1 and _is_float(var))
    if x is None:
        return None
    same = [
        v
        for v in known
        if v.type.dtype == x.type.dtype and v.type.ndim and v.type.shape[-1] == x.type.shape[-1]
    ]
    y = draw(st.sampled_from(same))
    left, right = "abc"[: x.type.ndim - 1], "def"[: y.type.ndim - 1]
    if x.type.ndim > 4 or y.type.ndim > 4:
        return None
    if math.prod((*x.type.shape[:-1], *y.type.shape[:-1])) > 4096:
        return None
    return _emit(builder, "dot", x, y, spec=f"{left}k,{right}k->{left}{right}", dtype=x.type.dtype)


MAKERS: Final[dict[str, Callable[[Draw, ir.Builder, Sequence[Var]], Var | None]]] = {
    "binary": _binary,
    "bitwise": _bitwise,
    "broadcast": _broadcast,
    "compare": _compare,
    "concatenate": _concatenate,
    "contract": _contract,
    "convert": _convert,
    "iota": _iota,
    "pad": _pad,
    "reduce": _reduce,
    "reshape": _reshape,
    "reverse": _reverse,
    "select": _select,
    "slice": _slice,
    "transpose": _transpose,
    "unary": _unary,
}
