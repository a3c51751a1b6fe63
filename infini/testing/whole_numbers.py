"""Random programs whose every number is small and whole, so that every backend must give the same bits.

Sums of whole numbers do not round, whatever their order; what may grow is clamped to [-8, 8], which even
floats of 8 bits hold. Comparisons, sorts, conversions and indices are then tested in the middle of programs,
and dots, convolutions and loops with them, in every dtype. Needs hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from hypothesis import strategies as st

from infini import lax, numpy as inp
from infini.core import config, dtypes, ir, trace
from infini.core.ir import ArrayType, Program, Var
from infini.testing.makers import Draw
from infini.transforms import batching, staging

Function: TypeAlias = Callable[..., Sequence[Any]]  # Any: traced arrays
Made: TypeAlias = tuple[Function, Sequence[Var]]  # a function and the variables it is applied to
Known: TypeAlias = Sequence[Var]

BOUND: Final = 8
DTYPES: Final = tuple(sorted(dtypes.ALL, key=str))
REAL: Final = tuple(t for t in DTYPES if t not in dtypes.COMPLEX)
_NUMBERS: Final = tuple(t for t in REAL if t != dtypes.bool_)
# Sizes around those of vectors and blocks, and none at all.
_SIZES: Final = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130)
_MAX_ELEMENTS: Final = 20_000
_MAX_PRODUCTS: Final = 2_000_000
_SEVERAL: Final = 3


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


def _small(x: Any) -> Any:  # Any: a traced array
    """The number itself, or the nearest within the bound."""
    if x.dtype == dtypes.bool_:
        return x
    if x.dtype in dtypes.COMPLEX:
        return lax.complex(_small(lax.real(x)), _small(lax.imag(x)))
    low = 0 if x.dtype in dtypes.UNSIGNED else -BOUND
    return lax.clamp(np.asarray(low).astype(x.dtype), x, np.asarray(BOUND).astype(x.dtype))


def _pick(draw: Draw, known: Known, fits: Callable[[Var], bool] = lambda var: True) -> Var | None:
    found = [var for var in known if fits(var)]
    return draw(st.sampled_from(found)) if found else None


def _is_real(var: Var) -> bool:
    return var.type.dtype not in dtypes.COMPLEX


def _is_number(var: Var) -> bool:
    return var.type.dtype != dtypes.bool_


def _is_real_number(var: Var) -> bool:
    return _is_real(var) and _is_number(var)


def _broadcasts(var: Var, x: Var) -> bool:
    pairs = zip(var.type.shape[::-1], x.type.shape[::-1], strict=False)
    if var.type.dtype != x.type.dtype or not all(1 in pair or pair[0] == pair[1] for pair in pairs):
        return False
    return math.prod(np.broadcast_shapes(var.type.shape, x.type.shape)) <= _MAX_ELEMENTS


def _of_shape(x: Any, shape: ir.Shape) -> Any:  # Any: a traced array
    """An array of another shape with the elements of this one, as often as needed."""
    count, flat = math.prod(shape), inp.ravel(x)
    if flat.size == 0:
        return inp.zeros(shape, x.dtype)
    repeats = -(-count // flat.size)
    return inp.reshape(inp.tile(flat, repeats)[:count], shape)


# --- elements -------------------------------------------------------------------------------------


def _arithmetic(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, _is_number)
    if x is None:
        return None
    y = _pick(draw, known, lambda var: _broadcasts(var, x))
    ordered = ("max", "min") if _is_real(x) else ()
    op = getattr(lax, draw(st.sampled_from(("add", "sub", "mul", *ordered))))
    return lambda a, b: [_small(op(*inp.broadcast_arrays(a, b)))], [x, y]  # type: ignore[list-item]


def _unary(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, _is_real_number)
    if x is None:
        return None
    names = ["neg", "abs", "sign", "square"]
    if x.type.dtype in dtypes.FLOATS:
        names += ["floor", "ceil", "round_even"]
    else:
        names += ["bitwise_not", "population_count", "clz"]
    if x.type.dtype in dtypes.UNSIGNED:
        names.remove("abs")
    op = getattr(lax, draw(st.sampled_from(names)))
    return lambda a: [_small(op(a))], [x]


def _bits(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, lambda var: var.type.dtype in dtypes.INTEGERS or not _is_number(var))
    if x is None:
        return None
    y = _pick(draw, known, lambda var: _broadcasts(var, x))
    names = ["bitwise_and", "bitwise_or", "bitwise_xor"]
    if _is_number(x):
        names += ["left_shift", "right_shift", "floor_divide", "remainder"]
    name = draw(st.sampled_from(names))

    def apply(a: Any, b: Any) -> list[Any]:
        if name.endswith("shift"):
            b = b & 3
        if name in ("floor_divide", "remainder"):
            b = inp.where(b == 0, inp.ones_like(b), b)
        return [_small(getattr(inp, name)(a, b))]

    return apply, [x, y]  # type: ignore[list-item]


def _compare(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known)
    assert x is not None
    y = _pick(draw, known, lambda var: _broadcasts(var, x))
    names = ("equal", "not_equal", "less", "greater_equal") if _is_real(x) else ("equal", "not_equal")
    op = getattr(inp, draw(st.sampled_from(names)))
    return lambda a, b: [op(a, b)], [x, y]  # type: ignore[list-item]


def _select(draw: Draw, known: Known) -> Made | None:
    which = _pick(draw, known, lambda var: not _is_number(var))
    x = _pick(draw, known)
    if which is None or x is None:
        return None
    y = _pick(draw, known, lambda var: _broadcasts(var, x))
    assert y is not None
    try:
        whole = np.broadcast_shapes(which.type.shape, x.type.shape, y.type.shape)
    except ValueError:
        return None
    if math.prod(whole) > _MAX_ELEMENTS:
        return None
    return lambda w, a, b: [inp.where(w, a, b)], [which, x, y]


def _convert(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known)
    assert x is not None
    dtype = draw(st.sampled_from(DTYPES if _is_real(x) else tuple(dtypes.COMPLEX)))
    negative = x.type.dtype in dtypes.FLOATS and dtype in dtypes.UNSIGNED
    # What a negative float is as an unsigned number is for every processor to choose.
    return lambda a: [(inp.abs(a) if negative else a).astype(dtype)], [x]


def _parts(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, lambda var: not _is_real(var))
    if x is None:
        return None
    op = draw(st.sampled_from((lax.real, lax.imag, lax.conj)))
    return lambda a: [op(a)], [x]


def _random(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, lambda var: var.type.dtype == dtypes.uint32)
    if x is None:
        return None
    key = np.uint32(draw(st.integers(0, 2**32 - 1)))

    def apply(a: Any) -> list[Any]:
        return [y & np.uint32(7) for y in lax.threefry2x32(inp.full_like(a, key), a, a, a + np.uint32(1))]

    return apply, [x]


# --- along axes -----------------------------------------------------------------------------------


def _with_axes(draw: Draw, known: Known, fits: Callable[[Var], bool]) -> tuple[Var, tuple[int, ...]] | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim) and fits(var))
    if x is None:
        return None
    return x, tuple(sorted(draw(st.sets(st.integers(0, x.type.ndim - 1), min_size=1))))


def _reduce(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: True)
    if found is None:
        return None
    x, axes = found
    names = ["sum"] if _is_number(x) else ["all", "any"]
    if _is_real(x) and all(x.type.shape[a] for a in axes):
        names += ["max", "min", "prod"] if _is_number(x) else ["max", "min"]
    name, keeps = draw(st.sampled_from(names)), draw(st.booleans())

    def apply(a: Any) -> list[Any]:
        if name == "prod":
            return [inp.prod(lax.sign(a), axis=axes, keepdims=keeps, dtype=a.dtype)]
        if name == "sum":
            # Sums of floats of 8 or 16 bits are only whole while they are small.
            a = lax.sign(a) if a.dtype in dtypes.FLOATS and a.dtype.itemsize <= 2 else a
            return [_small(inp.sum(a, axis=axes, keepdims=keeps, dtype=a.dtype))]
        return [getattr(inp, name)(a, axis=axes, keepdims=keeps)]

    return apply, [x]


def _argument(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: _is_real(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, axes = found
    op = draw(st.sampled_from((lax.argmax, lax.argmin)))
    kind = draw(st.sampled_from((dtypes.int32, dtypes.int64, dtypes.uint8)))
    return lambda a: [_small(op(a, axes[0], kind))], [x]


def _cumulative(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, _is_number)
    if found is None:
        return None
    x, axes = found
    names = ("cumsum", "cummax", "cummin", "cumprod") if _is_real(x) else ("cumsum",)
    name, reverse = draw(st.sampled_from(names)), draw(st.booleans())
    # A running sum of narrow floats rounds on its way.
    narrow = x.type.dtype in dtypes.FLOATS and x.type.dtype.itemsize == 1

    def apply(a: Any) -> list[Any]:
        if name == "cumprod":
            a = lax.sign(a)
        elif name == "cumsum" and narrow:
            a = a.astype(dtypes.float32)
        return [_small(getattr(lax, name)(a, axes[0], reverse)).astype(x.type.dtype)]

    return apply, [x]


def _sort(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, _is_real)
    if found is None:
        return None
    x, axes = found
    others = [v for v in known if v.type.shape == x.type.shape and _is_real(v)]
    operands = [x, *draw(st.lists(st.sampled_from(others), max_size=2))]
    keys = draw(st.integers(1, len(operands)))
    return lambda *xs: list(lax.sort(list(xs), axes[0], is_stable=True, num_keys=keys)), operands


def _order(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, _is_real_number)
    if found is None:
        return None
    x, axes = found
    size = x.type.shape[axes[0]]
    if draw(st.booleans()) or not size:
        descending = draw(st.booleans())
        return lambda a: [_small(inp.argsort(a, axis=axes[0], descending=descending))], [x]
    count = draw(st.integers(1, size))

    def apply(a: Any) -> list[Any]:
        best, where = lax.top_k(a, count, axis=axes[0])
        return [best, _small(where)]

    return apply, [x]


def _windows(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: _is_real_number(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, _ = found
    rank = x.type.ndim
    window = tuple(draw(st.integers(1, min(3, n))) for n in x.type.shape)
    strides = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    padding = [(draw(st.integers(0, 1)), draw(st.integers(0, 1))) for _ in range(rank)]
    if any(
        (w - 1) * d + 1 > n + sum(p)
        for w, d, n, p in zip(window, dilation, x.type.shape, padding, strict=True)
    ):
        dilation = (1,) * rank
    name = draw(st.sampled_from(("add", "max", "min")))
    wide = dtypes.float32 if x.type.dtype in dtypes.FLOATS else x.type.dtype

    def apply(a: Any) -> list[Any]:
        a = a.astype(wide)
        start = {"add": 0, "max": -BOUND, "min": BOUND}[name]
        start = 0 if name == "max" and wide in dtypes.UNSIGNED else start
        init = np.asarray(start).astype(wide)
        result = lax.reduce_window(
            a, init, getattr(lax, name), window, strides, padding, window_dilation=dilation
        )
        return [_small(result).astype(x.type.dtype)]

    return apply, [x]


# --- sums of products -----------------------------------------------------------------------------


def _dot(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, lambda var: _is_number(var) and bool(var.type.ndim))
    if x is None:
        return None
    y = _pick(draw, known, lambda var: var.type.dtype == x.type.dtype and bool(var.type.ndim))
    assert y is not None
    left, right = list(range(x.type.ndim)), list(range(y.type.ndim))
    pairs = []
    for _ in range(draw(st.integers(0, 3))):
        equal = [(i, j) for i in left for j in right if x.type.shape[i] == y.type.shape[j]]
        if not equal:
            break
        i, j = draw(st.sampled_from(equal))
        pairs.append((i, j))
        left.remove(i)
        right.remove(j)
    batch = pairs[: draw(st.integers(0, len(pairs)))]
    contracted = pairs[len(batch) :]
    products = x.type.size * math.prod(y.type.shape[j] for j in right)
    outputs = math.prod([x.type.shape[i] for i in left + [i for i, _ in batch]]) * math.prod(
        y.type.shape[j] for j in right
    )
    if products > _MAX_PRODUCTS or outputs > _MAX_ELEMENTS:
        return None
    if len(left) + len(right) + len(batch) > 5:
        return None
    numbers = (
        ([i for i, _ in contracted], [j for _, j in contracted]),
        ([i for i, _ in batch], [j for _, j in batch]),
    )
    dtype = x.type.dtype
    preferred: np.dtype | None = None
    if dtype in dtypes.FLOATS:
        preferred = draw(st.sampled_from((dtype, dtypes.float32))) if dtype != dtypes.float64 else None
    elif dtype == dtypes.int8:
        preferred = draw(st.sampled_from((None, dtypes.int32)))
    return lambda a, b: [_small(lax.dot_general(a, b, numbers, preferred_element_type=preferred))], [x, y]


_CONVOLVED: Final = (
    dtypes.float32,
    dtypes.float64,
    dtypes.float16,
    dtypes.bfloat16,
    dtypes.int32,
    dtypes.int8,
)
_ORDERS: Final = {
    1: (("NCH", "OIH", "NCH"), ("NHC", "HIO", "NHC")),
    2: (("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC"), ("CNHW", "IOHW", "NHWC")),
}


def _convolution(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, lambda var: var.type.dtype in _CONVOLVED)
    if x is None:
        return None
    y = _pick(draw, known, lambda var: var.type.dtype == x.type.dtype)
    assert y is not None
    rank = draw(st.integers(1, 2))
    orders = draw(st.sampled_from(_ORDERS[rank]))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    each_in, each_out = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    sizes = [draw(st.integers(3, 17 if rank == 2 else 65)) for _ in range(rank)]
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    named = {"N": draw(st.integers(1, 3)), "C": groups * each_in, "O": groups * each_out, "I": each_in}
    named |= dict(zip("HW", sizes, strict=False))
    image = tuple(named[c] for c in orders[0])
    named |= dict(zip("HW", kernel, strict=False))
    filters = tuple(named[c] for c in orders[1])
    strides, window = ([draw(st.integers(1, 2)) for _ in range(rank)] for _ in range(2))
    base = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    padding = [(draw(st.integers(0, 3)), draw(st.integers(0, 2))) for _ in range(rank)]
    wide = dtypes.float32 if x.type.dtype in dtypes.FLOATS and x.type.dtype.itemsize < 4 else None

    def apply(a: Any, b: Any) -> list[Any]:
        result = lax.conv_general_dilated(
            _of_shape(a, image), _of_shape(b, filters), strides, padding, base, window, orders,
            feature_group_count=groups, preferred_element_type=wide,
        )  # fmt: skip
        return [_small(result)]

    return apply, [x, y]


# --- places ---------------------------------------------------------------------------------------


def _view(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known, lambda var: bool(var.type.ndim))
    if x is None:
        return None
    shape, rank = x.type.shape, x.type.ndim
    kind = draw(
        st.sampled_from(("transpose", "reshape", "slice", "reverse", "pad", "broadcast", "roll", "squeeze"))
    )
    if kind == "transpose":
        order = tuple(draw(st.permutations(range(rank))))
        return lambda a: [inp.transpose(a, order)], [x]
    if kind == "reshape":
        divisors = [n for n in range(1, x.type.size + 1) if x.type.size % n == 0][:64] or [1]
        first = draw(st.sampled_from(divisors))
        new = draw(
            st.sampled_from([(x.type.size,), (first, x.type.size // first), (x.type.size // first, 1, first)])
        )
        return lambda a: [inp.reshape(a, new)], [x]
    if kind == "slice":
        starts = [draw(st.integers(0, max(n - 1, 0))) for n in shape]
        stops = [draw(st.integers(s, n)) for s, n in zip(starts, shape, strict=True)]
        steps = [draw(st.integers(1, 3)) for _ in shape]
        cut = tuple(slice(*item) for item in zip(starts, stops, steps, strict=True))
        return lambda a: [a[cut]], [x]
    if kind == "reverse":
        axes = tuple(draw(st.sets(st.integers(0, rank - 1), min_size=1)))
        return lambda a: [inp.flip(a, axes)], [x]
    if kind == "pad":
        widths = [
            (draw(st.integers(-1, 2)), draw(st.integers(-1, 2)), draw(st.integers(0, 1))) for _ in shape
        ]
        if any(
            n + (n - 1) * w[2] + w[0] + w[1] < 0 or n + min(w[0], 0) + min(w[1], 0) < 0
            for n, w in zip(shape, widths, strict=True)
        ):
            return None
        return lambda a: [lax.pad(a, np.ones((), a.dtype), widths)], [x]
    if kind == "broadcast":
        count = draw(st.sampled_from((1, 2, 7)))
        place = draw(st.integers(0, rank))
        whole = (*shape[:place], count, *shape[place:])
        return lambda a: [inp.broadcast_to(inp.expand_dims(a, place), whole)], [x]
    if kind == "roll":
        steps_ = draw(st.integers(-9, 9))
        axis = draw(st.integers(0, rank - 1))
        return lambda a: [inp.roll(a, steps_, axis)], [x]
    return lambda a: [inp.squeeze(a, tuple(i for i, n in enumerate(shape) if n == 1))], [x]


def _join(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: True)
    if found is None:
        return None
    x, (axis, *_) = found

    def fits(v: Var) -> bool:
        return (
            v.type.dtype == x.type.dtype
            and v.type.ndim == x.type.ndim
            and all(
                m == n for i, (m, n) in enumerate(zip(v.type.shape, x.type.shape, strict=True)) if i != axis
            )
        )

    pieces = draw(st.lists(st.sampled_from([v for v in known if fits(v)]), min_size=1, max_size=3))
    return lambda *xs: [inp.concatenate(xs, axis)], [x, *pieces]


def _rows(draw: Draw, size: int) -> np.ndarray:
    """A few places along an axis; some lie outside."""
    shape = draw(st.sampled_from(((1,), (3,), (2, 3), (9,))))
    count = math.prod(shape)
    return np.array(
        draw(st.lists(st.integers(-size - 1, size + 1), min_size=count, max_size=count)), np.int32
    ).reshape(shape)


_GATHER_MODES: Final = ("fill", "clip", "wrap")
_SCATTER_MODES: Final = ("drop", "clip")


def _take(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: 0 not in var.type.shape)
    if found is None:
        return None
    x, (axis, *_) = found
    mode = draw(st.sampled_from(_GATHER_MODES))
    indices = _pick(draw, known, lambda v: v.type.dtype == dtypes.int32 and v.type.size <= 64)
    fill = np.ones((), x.type.dtype)
    if indices is not None and draw(st.booleans()):
        if indices.type.size * x.type.size > _MAX_ELEMENTS:
            return None
        return lambda a, i: [inp.take(a, i, axis, mode=mode, fill_value=fill)], [x, indices]
    rows = _rows(draw, x.type.shape[axis])
    return lambda a: [inp.take(a, rows, axis, mode=mode, fill_value=fill)], [x]


def _take_along(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: _is_real(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, (axis, *_) = found
    return lambda a: [inp.take_along_axis(a, inp.argsort(a, axis=axis), axis)], [x]


def _points(draw: Draw, known: Known) -> Made | None:
    """Elements at pairs of indices, with the axes between them or before them."""
    x = _pick(draw, known, lambda v: v.type.ndim >= 2 and 0 not in v.type.shape)
    if x is None:
        return None
    a, b = sorted(draw(st.permutations(range(x.type.ndim)))[:2])
    rows, columns = _rows(draw, x.type.shape[a]), _rows(draw, x.type.shape[b])
    if rows.shape != columns.shape:
        return None
    index: list[Any] = [slice(None)] * x.type.ndim
    index[a], index[b] = rows, columns
    return lambda z: [z.at[tuple(index)].get(mode="fill", fill_value=1)], [x]


def _put(draw: Draw, known: Known) -> Made | None:
    found = _with_axes(draw, known, lambda var: _is_number(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, (axis, *_) = found
    rows = _rows(draw, x.type.shape[axis])
    ordered = ("max", "min") if _is_real(x) else ()
    how, mode = draw(st.sampled_from(("set", "add", *ordered))), draw(st.sampled_from(_SCATTER_MODES))
    y = _pick(draw, known, lambda v: v.type.dtype == x.type.dtype)
    assert y is not None
    index = (*[slice(None)] * axis, rows)
    shape = (*x.type.shape[:axis], *rows.shape, *x.type.shape[axis + 1 :])
    if math.prod(shape) > _MAX_ELEMENTS:
        return None

    def apply(a: Any, b: Any) -> list[Any]:
        return [_small(getattr(a.at[index], how)(_of_shape(b, shape), mode=mode))]

    return apply, [x, y]


def _count(draw: Draw, known: Known) -> Made | None:
    """Sums of elements with the same index, an index that is computed."""
    x = _pick(draw, known, lambda v: _is_real_number(v) and bool(v.type.size))
    if x is None:
        return None
    count = draw(st.sampled_from((1, 5, 17)))

    def apply(a: Any) -> list[Any]:
        where = inp.ravel(a).astype(dtypes.int32)
        return [_small(inp.zeros(count, dtypes.int32).at[where].add(1, mode="drop"))]

    return apply, [x]


def _scalars(draw: Draw, known: Known, count: int) -> list[Any]:
    """Starts: known scalars or drawn numbers."""
    found = [v for v in known if v.type.dtype == dtypes.int32 and not v.type.ndim]
    return [draw(st.sampled_from([*found, draw(st.integers(-2, 4))])) for _ in range(count)]


def _dynamic_slice(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known)
    assert x is not None
    sizes = [draw(st.integers(0, n)) for n in x.type.shape]
    starts = _scalars(draw, known, x.type.ndim)
    variables = [s for s in starts if isinstance(s, Var)]

    def apply(a: Any, *given: Any) -> list[Any]:
        each = iter(given)
        return [lax.dynamic_slice(a, [next(each) if isinstance(s, Var) else s for s in starts], sizes)]

    return apply, [x, *variables]


def _dynamic_update(draw: Draw, known: Known) -> Made | None:
    x = _pick(draw, known)
    assert x is not None

    def fits(v: Var) -> bool:
        return v.type.dtype == x.type.dtype and v.type.ndim == x.type.ndim and all(
            n <= m for n, m in zip(v.type.shape, x.type.shape, strict=True)
        )  # fmt: skip

    update = _pick(draw, known, fits)
    assert update is not None
    starts = _scalars(draw, known, x.type.ndim)
    variables = [s for s in starts if isinstance(s, Var)]

    def apply(a: Any, b: Any, *given: Any) -> list[Any]:
        each = iter(given)
        return [lax.dynamic_update_slice(a, b, [next(each) if isinstance(s, Var) else s for s in starts])]

    return apply, [x, update, *variables]


# --- programs inside programs ---------------------------------------------------------------------


def _applied(program: Program, *args: Any) -> list[Any]:
    return list(trace.evaluate(program, [trace.as_value(a) for a in args]))


def _scan(draw: Draw, known: Known) -> Made | None:
    const, carry, xs = _pick(draw, known), _pick(draw, known), _pick(draw, known, lambda v: bool(v.type.ndim))
    assert const is not None
    assert carry is not None
    length = draw(st.integers(0, 4))
    if xs is None:
        body = _inner(draw, [const.type, carry.type], [carry.type, const.type])
    else:
        length = min(xs.type.shape[0], 9)
        row = xs.type.update(shape=xs.type.shape[1:])
        body = _inner(draw, [const.type, carry.type, row], [carry.type, row])
        if length * max(row.size, 1) > _MAX_ELEMENTS:
            return None
    if xs is None and length * max(const.type.size, 1) > _MAX_ELEMENTS:
        return None
    reverse, unroll = draw(st.booleans()), draw(st.sampled_from((1, 1, 2)))

    def apply(c: Any, start: Any, *rows: Any) -> list[Any]:
        def step(carried: Any, row: Any) -> tuple[Any, Any]:
            found = _applied(body, c, carried, *([] if row is None else [row]))
            return found[0], found[1]

        given = rows[0][:length] if rows else None
        last, every = lax.scan(step, start, given, length=length, reverse=reverse, unroll=unroll)
        return [last, every]

    return apply, [const, carry, *([] if xs is None else [xs])]


def _while(draw: Draw, known: Known) -> Made | None:
    const, carry = _pick(draw, known), _pick(draw, known)
    assert const is not None
    assert carry is not None
    body = _inner(draw, [const.type, carry.type], [carry.type])
    turns = draw(st.integers(0, 4))

    def apply(c: Any, start: Any) -> list[Any]:
        if turns % 2:
            return [lax.fori_loop(0, turns, lambda i, v: _applied(body, c, v)[0], start)]
        (_, result) = lax.while_loop(
            lambda pair: pair[0] < turns,
            lambda pair: (pair[0] + 1, _applied(body, c, pair[1])[0]),
            (0, start),
        )
        return [result]

    return apply, [const, carry]


def _cond(draw: Draw, known: Known) -> Made | None:
    x, y = _pick(draw, known), _pick(draw, known)
    assert x is not None
    assert y is not None
    branches = [_inner(draw, [x.type, y.type], [x.type, y.type]) for _ in range(draw(st.integers(1, 3)))]
    (which,) = _scalars(draw, known, 1)
    functions = [lambda a, b, body=body: tuple(_applied(body, a, b)) for body in branches]
    if isinstance(which, Var):
        return lambda w, a, b: list(lax.switch(w, functions, a, b)), [which, x, y]
    return lambda a, b: list(lax.switch(which, functions, a, b)), [x, y]


def _call(draw: Draw, known: Known) -> Made | None:
    """A jitted function inside, or a batched one."""
    x, y = _pick(draw, known), _pick(draw, known, lambda v: bool(v.type.ndim))
    assert x is not None
    if y is None or draw(st.booleans()):
        body = _inner(draw, [x.type], [x.type])
        return lambda a: [staging.jit(lambda b: _applied(body, b)[0])(a)], [x]
    row = y.type.update(shape=y.type.shape[1:])
    if y.type.shape[0] == 0:
        return None
    body = _inner(draw, [x.type, row], [row, x.type])
    if y.type.shape[0] * x.type.size > _MAX_ELEMENTS:
        return None
    mapped = batching.vmap(lambda a, b: tuple(_applied(body, a, b)), in_axes=(None, 0))
    return lambda a, b: list(mapped(a, b)), [x, y]


_LEAVES: Final[dict[str, Callable[[Draw, Known], Made | None]]] = {
    "argument": _argument,
    "arithmetic": _arithmetic,
    "bits": _bits,
    "compare": _compare,
    "convert": _convert,
    "convolution": _convolution,
    "count": _count,
    "cumulative": _cumulative,
    "dot": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update": _dynamic_update,
    "join": _join,
    "order": _order,
    "parts": _parts,
    "points": _points,
    "put": _put,
    "random": _random,
    "reduce": _reduce,
    "select": _select,
    "sort": _sort,
    "take": _take,
    "take_along": _take_along,
    "unary": _unary,
    "view": _view,
    "windows": _windows,
}
_NESTS: Final[dict[str, Callable[[Draw, Known], Made | None]]] = {
    "call": _call,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
MAKERS: Final = {**_LEAVES, **_NESTS}


def _grow(draw: Draw, builder: ir.Builder, known: list[Var], names: Sequence[str]) -> None:
    """Append one more application to a program."""
    made = MAKERS[draw(st.sampled_from(names))](draw, known)
    if made is None:
        return
    function, inputs = made
    with config.config(host64="keep"):
        staged = trace.stage(function, [v.type for v in inputs])
    assert not staged.captures
    found = ir.inline(builder, staged.program, inputs)
    known += [v for v in found if v.type.size <= _MAX_ELEMENTS and v.type.ndim <= 6]


def _inner(draw: Draw, params: Sequence[ArrayType], wanted: Sequence[ArrayType]) -> Program:
    """A random program whose results have the wanted types; parameters of those types exist."""
    builder = ir.Builder()
    variables = [Var(type_) for type_ in params]
    known = list(variables)
    names = [*_LEAVES, *(_NESTS if draw(st.integers(0, 3)) == 0 else ())]
    for _ in range(draw(st.integers(0, 4))):
        _grow(draw, builder, known, names)
    results = [draw(st.sampled_from([v for v in known[::-1] if v.type == type_])) for type_ in wanted]
    return builder.build(variables, results)


@st.composite
def programs(
    draw: Draw,
    *,
    allowed: Sequence[np.dtype] = DTYPES,
    max_params: int = 3,
    max_applications: int = 8,
    families: Sequence[str] | None = None,
) -> Program:
    """Whole programs of every family.

    Args:
        draw: given by hypothesis.
        allowed: dtypes of the parameters.
        max_params: largest number of parameters, at least 1.
        max_applications: largest number of applications of functions; each is a few equations.
        families: names of `MAKERS` to choose from; all of them when absent.
    """
    builder = ir.Builder()
    # Few dtypes in one program, so that operations find partners.
    some = draw(st.lists(st.sampled_from(list(allowed)), min_size=1, max_size=2))
    types = st.builds(ArrayType, shapes(), st.sampled_from(some))
    params = [Var(draw(types)) for _ in range(draw(st.integers(1, max_params)))]
    if draw(st.booleans()):
        params.append(Var(params[0].type))
    known = list(params)
    names = sorted(MAKERS if families is None else families)
    for _ in range(draw(st.integers(1, max_applications))):
        _grow(draw, builder, known, names)
    results = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
    return builder.build(params, results)
