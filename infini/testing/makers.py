"""One maker per family of operations: an equation on known variables, or None when none of them fits.

`testing.programs` chooses among `MAKERS`. Indices are drawn or computed from known integers, so they lie
inside and outside of the arrays; loops are short and their bodies are random programs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from hypothesis import strategies as st

from infini.core import dtypes, ir, primitive
from infini.core.ir import Program, Var
from infini.lax import elementwise, indexing

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]  # Any: strategies of any kind

DTYPES: Final = (dtypes.float32, dtypes.bfloat16, dtypes.int32, dtypes.uint8, dtypes.bool_)
# Functions without poles, so random programs stay finite for a while.
_UNARY: Final = ("neg", "abs", "sign", "tanh", "logistic", "sin", "cos", "floor", "ceil", "erf", "round_even")
_SMOOTH_UNARY: Final = ("neg", "tanh", "logistic", "sin", "cos", "erf")
_BINARY: Final = ("add", "sub", "mul", "max", "min")
_COMPARE: Final = ("eq", "ne", "lt", "le", "gt", "ge")
_BITWISE: Final = ("and", "or", "xor")


def shapes(
    *, min_rank: int = 0, max_rank: int = 3, max_size: int = 5, sizes: Sequence[int] | None = None
) -> st.SearchStrategy[ir.Shape]:
    """Shapes of few dimensions, some of size 1, none of size 0; loops of no turns make those."""
    size = st.integers(1, max_size) if sizes is None else st.sampled_from(list(sizes))
    return st.lists(size, min_size=min_rank, max_size=max_rank).map(tuple)


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
    size = x.type.size
    divisors = [n for n in range(1, max(size, 3) + 1) if size % n == 0]
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
    start = [draw(st.integers(0, max(n - 1, 0))) for n in x.type.shape]
    limit = [draw(st.integers(min(s + 1, n), n)) for s, n in zip(start, x.type.shape, strict=True)]
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


def _smooth(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, _is_float)
    return None if x is None else _emit(builder, draw(st.sampled_from(_SMOOTH_UNARY)), x)


def _argmax(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim) and var.type.dtype in elementwise.REAL)
    if x is None:
        return None
    axes = [axis for axis in range(-x.type.ndim, 0) if x.type.shape[axis]]
    if not axes:
        return None
    axis = draw(st.sampled_from(axes))
    return _emit(builder, "argmax", x, axis=axis, index_dtype=dtypes.int32)


def _sort(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim))
    return None if x is None else _emit(builder, "sort", x, num_keys=1, is_stable=True)


def _has_rows(var: Var) -> bool:
    """Whether something can be read at a row number, inside or beside."""
    return bool(var.type.ndim) and var.type.shape[0] > 0


def _rows_of(draw: Draw, builder: ir.Builder, size: int, count: int) -> Var:
    """`count` row numbers for a dimension of `size`, some of them outside."""
    rows = draw(st.lists(st.integers(-1, size), min_size=count, max_size=count))
    return builder.constant(np.array(rows, np.int32).reshape(count, 1))


_MODES: Final = ("fill", "clip")


def _gather(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, _has_rows)
    if x is None:
        return None
    shape = x.type.shape
    numbers = indexing.GatherDimensionNumbers(tuple(range(1, len(shape))), (0,), (0,))
    indices = _rows_of(draw, builder, shape[0], draw(st.integers(1, 4)))
    return _emit(
        builder, "gather", x, indices, dimension_numbers=numbers, slice_sizes=(1, *shape[1:]),
        mode=draw(st.sampled_from(_MODES)), fill_value=0,
        unique_indices=False,
    )  # fmt: skip


def _scatter(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = _pick(draw, known, lambda var: _has_rows(var) and var.type.dtype != dtypes.bool_)
    if x is None:
        return None
    rest = x.type.shape[1:]
    updates = _pick(
        draw, known, lambda v: v.type.dtype == x.type.dtype and v.type.ndim > 0 and v.type.shape[1:] == rest
    )
    assert updates is not None
    numbers = indexing.ScatterDimensionNumbers(tuple(range(1, x.type.ndim)), (0,), (0,))
    indices = _rows_of(draw, builder, x.type.shape[0], updates.type.shape[0])
    return _emit(
        builder, draw(st.sampled_from(("scatter", "scatter_add"))), x, indices, updates,
        dimension_numbers=numbers, mode=draw(st.sampled_from(_MODES)), unique_indices=False,
    )  # fmt: skip


def _starts(draw: Draw, builder: ir.Builder, known: Sequence[Var], rank: int) -> list[Var]:
    scalars = [v for v in known if v.type.dtype == dtypes.int32 and not v.type.ndim]
    drawn = [builder.constant(np.asarray(draw(st.integers(-1, 3)), np.int32)) for _ in range(rank)]
    return [draw(st.sampled_from([*scalars, start])) for start in drawn]


def _dynamic_slice(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))
    sizes = tuple(draw(st.integers(min(1, n), n)) for n in x.type.shape)
    return _emit(builder, "dynamic_slice", x, *_starts(draw, builder, known, x.type.ndim), slice_sizes=sizes)


def _dynamic_update(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x = draw(st.sampled_from(list(known)))

    def fits(v: Var) -> bool:
        return v.type.dtype == x.type.dtype and v.type.ndim == x.type.ndim and all(
            n <= m for n, m in zip(v.type.shape, x.type.shape, strict=True)
        )  # fmt: skip

    update = _pick(draw, known, fits)
    assert update is not None
    return _emit(builder, "dynamic_update_slice", x, update, *_starts(draw, builder, known, x.type.ndim))


# --- control flow ------------------------------------------------------------------------------

_INSIDE: Final = ("binary", "smooth", "reduce", "broadcast", "reshape", "slice", "concatenate")


def _body(draw: Draw, params: Sequence[ir.ArrayType], wanted: Sequence[ir.ArrayType]) -> Program:
    """A random program whose results have the wanted types; parameters of those types exist."""
    builder = ir.Builder()
    variables = [Var(type_) for type_ in params]
    known = list(variables)
    for _ in range(draw(st.integers(0, 4))):
        made = MAKERS[draw(st.sampled_from(_INSIDE))](draw, builder, known)
        if made is not None and made.type.size <= 512:
            known.append(made)
    results = [draw(st.sampled_from([v for v in known[::-1] if v.type == type_])) for type_ in wanted]
    return builder.build(variables, results)


def _scan(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    const, carry = draw(st.sampled_from(list(known))), draw(st.sampled_from(list(known)))
    xs = _pick(draw, known, lambda v: bool(v.type.ndim))
    inputs = [const, carry, *([xs] if xs is not None else [])]
    length = xs.type.shape[0] if xs is not None else draw(st.integers(0, 3))
    inner = [const.type, carry.type, *([xs.type.update(shape=xs.type.shape[1:])] if xs is not None else [])]
    body = _body(draw, inner, [carry.type, const.type])
    outputs = builder.emit(
        primitive.by_name("scan"), inputs, ir.Attrs({
            "body": body, "num_consts": 1, "num_carry": 1, "length": length, "reverse": draw(st.booleans())
        }),
    )  # fmt: skip
    return draw(st.sampled_from(outputs))


def _cond(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    x, y = draw(st.sampled_from(list(known))), draw(st.sampled_from(list(known)))
    branches = tuple(_body(draw, [x.type, y.type], [x.type]) for _ in range(2))
    which = builder.constant(np.asarray(draw(st.integers(0, 1)), np.int32))
    scalars = [v for v in known if v.type.dtype == dtypes.int32 and not v.type.ndim]
    return _emit(builder, "cond", draw(st.sampled_from([which, *scalars])), x, y, branches=branches)


def _while(draw: Draw, builder: ir.Builder, known: Sequence[Var]) -> Var | None:
    """A loop of a few turns over a counter and a carry."""
    carry = draw(st.sampled_from(list(known)))
    counter = ir.ArrayType((), dtypes.int32)
    turns = draw(st.integers(0, 3))
    test = ir.Builder()
    i, x = Var(counter), Var(carry.type)
    below = test.emit1(primitive.by_name("lt"), [i, test.constant(np.asarray(turns, np.int32))])
    condition = test.build([i, x], [below])
    body = _body(draw, [carry.type], [carry.type])
    step = ir.Builder()
    j, y = Var(counter), Var(carry.type)
    (moved,) = ir.inline(step, body, [y])
    following = step.emit1(primitive.by_name("add"), [j, step.constant(np.asarray(1, np.int32))])
    start = builder.constant(np.asarray(0, np.int32))
    outputs = builder.emit(
        primitive.by_name("while"), [start, carry], ir.Attrs({
            "cond": condition, "body": step.build([j, y], [following, moved]),
            "num_cond_consts": 0, "num_body_consts": 0,
        }),
    )  # fmt: skip
    return outputs[1]


MAKERS: Final[dict[str, Callable[[Draw, ir.Builder, Sequence[Var]], Var | None]]] = {
    "argmax": _argmax,
    "binary": _binary,
    "bitwise": _bitwise,
    "broadcast": _broadcast,
    "compare": _compare,
    "concatenate": _concatenate,
    "cond": _cond,
    "contract": _contract,
    "convert": _convert,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update": _dynamic_update,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reduce": _reduce,
    "reshape": _reshape,
    "reverse": _reverse,
    "scan": _scan,
    "scatter": _scatter,
    "select": _select,
    "slice": _slice,
    "smooth": _smooth,
    "sort": _sort,
    "transpose": _transpose,
    "unary": _unary,
    "while": _while,
}
