"""Algebraic identities, one row each. Only exact ones: signs of zero, NaN and rounding are kept.

`x + 0 = x` is false for floats (`-0 + 0` is `+0`), so the neutral element of addition there is `-0`; `x * 0 =
0` holds for integers alone. Constants are folded where every IEEE implementation gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from infini.compiler import views as index_maps
from infini.compiler.passes import rewrite
from infini.compiler.passes.rewrite import Match, Rule
from infini.core import dtypes, ir, primitive
from infini.core.ir import Program, Var
from infini.lax import positions, reduction

# --- arithmetic ------------------------------------------------------------------------------


def _same(match: Match, var: Var) -> Var | None:
    """`var` when it has the type of the result; broadcasting may have made the result larger."""
    return var if var.type == match.out else None


def _neutral(number: float, *, both: bool) -> Callable[[Match], Var | None]:
    def apply(match: Match) -> Var | None:
        if match.is_scalar(match.y, number):
            return _same(match, match.x)
        return _same(match, match.y) if both and match.is_scalar(match.x, number) else None

    return apply


def _add_zero(match: Match) -> Var | None:
    zero = -0.0 if match.out.dtype in dtypes.INEXACT else 0
    for var, other in ((match.x, match.y), (match.y, match.x)):
        if match.is_scalar(var, zero):
            return _same(match, other)
    return None


def _sub_zero(match: Match) -> Var | None:
    return _same(match, match.x) if match.is_scalar(match.y, 0.0) else None


def _mul_zero(match: Match) -> Var | None:
    if match.out.dtype not in dtypes.INTEGERS:
        return None
    zero = next((v for v in match.inputs if match.is_scalar(v, 0)), None)
    return None if zero is None else _filled(match, 0)


def _filled(match: Match, number: float) -> Var:
    scalar = match.literal(np.asarray(number).astype(match.out.dtype))
    return (
        match.emit("broadcast_in_dim", scalar, shape=match.out.shape, dims=()) if match.out.shape else scalar
    )


def _add_neg(match: Match) -> Var | None:
    if inner := match.defined_by(match.y, "neg"):
        return match.emit("sub", match.x, inner.inputs[0])
    if inner := match.defined_by(match.x, "neg"):
        return match.emit("sub", match.y, inner.inputs[0])
    return None


def _sub_neg(match: Match) -> Var | None:
    inner = match.defined_by(match.y, "neg")
    return match.emit("add", match.x, inner.inputs[0]) if inner else None


def _involution(match: Match) -> Var | None:
    inner = match.defined_by(match.x, match.equation.op.name)
    return inner.inputs[0] if inner else None


def _idempotent(match: Match) -> Var | None:
    return _same(match, match.x) if match.x is match.y else None


# --- choice and conversion ---------------------------------------------------------------------


def _select(match: Match) -> Var | None:
    which, on_false, on_true = match.inputs
    value = match.scalar(which)
    if value is not None:
        return _same(match, on_true if value else on_false)
    return _same(match, on_true) if on_true is on_false else None


def _is_lossless(source: np.dtype, target: np.dtype) -> bool:
    if source == dtypes.bool_:
        return target != dtypes.bool_
    if source in dtypes.FLOATS and target in dtypes.FLOATS:
        return target.itemsize > source.itemsize and source.itemsize >= 2
    same_sign = (source in dtypes.SIGNED) == (target in dtypes.SIGNED)
    return (
        source in dtypes.INTEGERS
        and target in dtypes.INTEGERS
        and same_sign
        and target.itemsize > source.itemsize
    )


def _convert(match: Match) -> Var | None:
    target = match.attrs["new_dtype"]
    if match.x.type.dtype == target:
        return match.x
    inner = match.defined_by(match.x, "convert_element_type")
    if inner and _is_lossless(inner.inputs[0].type.dtype, match.x.type.dtype):
        source = inner.inputs[0]
        return (
            source
            if source.type.dtype == target
            else match.emit("convert_element_type", source, new_dtype=target)
        )
    return None


def _convert_of_broadcast(match: Match) -> Var | None:
    inner = match.defined_by(match.x, "broadcast_in_dim")
    if inner is None or inner.inputs[0].type.size >= match.x.type.size:
        return None
    small = match.emit_attrs(match.equation.op.name, inner.inputs, match.attrs)
    return match.emit_attrs("broadcast_in_dim", [small], inner.attrs)


# --- views -------------------------------------------------------------------------------------


def _reshape(match: Match) -> Var | None:
    if match.x.type == match.out:
        return match.x
    inner = match.defined_by(match.x, "reshape")
    source = inner.inputs[0] if inner else match.x
    if source.type == match.out:
        return source
    canonical = ir.Attrs({"shape": match.out.shape, "ndim": source.type.ndim})
    if inner or match.attrs != canonical:
        return match.emit_attrs("reshape", [source], canonical)
    return None


def _view_of_filled(match: Match) -> Var | None:
    """A view of one repeated number is that number, repeated."""
    inner = match.defined_by(match.x, "broadcast_in_dim")
    if inner is None or inner.inputs[0].type.shape:
        return None
    return (
        match.emit("broadcast_in_dim", inner.inputs[0], shape=match.out.shape, dims=())
        if match.out.shape
        else None
    )


def full_permutation(ndim: int, permutation: Sequence[int]) -> tuple[int, ...]:
    """A permutation of the last dimensions as one of all, in numbers from 0."""
    return (*range(ndim - len(permutation)), *(p + ndim for p in permutation))


def _transpose(match: Match) -> Var | None:
    ndim = match.out.ndim
    outer = full_permutation(ndim, match.attrs["permutation"])
    if outer == tuple(range(ndim)):
        return match.x
    inner = match.defined_by(match.x, "transpose")
    if inner:
        first = full_permutation(ndim, inner.attrs["permutation"])
        both = tuple(first[p] - ndim for p in outer)
        return match.emit("transpose", inner.inputs[0], permutation=both)
    moved = [p for p in outer if match.x.type.shape[p] != 1]
    if moved == sorted(moved):
        return match.emit("reshape", match.x, shape=match.out.shape, ndim=ndim)
    return None


def _broadcast(match: Match) -> Var | None:
    if match.x.type == match.out:
        return match.x
    inner = match.defined_by(match.x, "broadcast_in_dim")
    if inner:
        dims = index_maps.kept(match.equation)
        both = tuple(dims[d] - match.out.ndim for d in index_maps.kept(inner))
        return match.emit("broadcast_in_dim", inner.inputs[0], shape=match.out.shape, dims=both)
    if 0 < match.x.type.size == match.out.size:
        return match.emit("reshape", match.x, shape=match.out.shape, ndim=match.x.type.ndim)
    return None


def _slice(match: Match) -> Var | None:
    if match.x.type == match.out:
        return match.x
    inner = match.defined_by(match.x, "slice")
    if inner is None or len(inner.attrs["start"]) != len(match.attrs["start"]):
        return None
    rows = zip(
        inner.attrs["start"],
        inner.attrs["strides"],
        *(match.attrs[k] for k in ("start", "limit", "strides")),
        strict=True,
    )
    start, limit, strides = [], [], []
    for inner_start, inner_stride, outer_start, outer_limit, outer_stride in rows:
        start.append(inner_start + inner_stride * outer_start)
        limit.append(
            inner_start + inner_stride * (outer_limit - 1) + 1 if outer_limit > outer_start else start[-1]
        )
        strides.append(inner_stride * outer_stride)
    return match.emit(
        "slice", inner.inputs[0], start=tuple(start), limit=tuple(limit), strides=tuple(strides)
    )


def _slice_of_concatenate(match: Match) -> Var | None:
    inner = match.defined_by(match.x, "concatenate")
    if inner is None:
        return None
    axis, start, limit = inner.attrs["axis"], match.attrs["start"], match.attrs["limit"]
    if len(start) < -axis or any(k != 1 for k in match.attrs["strides"]):
        return None
    whole = match.x.type.shape[match.x.type.ndim - len(start) :]
    if any(
        s != 0 or e != n
        for i, (s, e, n) in enumerate(zip(start, limit, whole, strict=True))
        if i - len(start) != axis
    ):
        return None
    position = 0
    for operand in inner.inputs:
        if position == start[axis] and position + operand.type.shape[axis] == limit[axis]:
            return operand
        position += operand.type.shape[axis]
    return None


def _pad_nothing(match: Match) -> Var | None:
    nothing = not any((*match.attrs["low"], *match.attrs["high"])) and match.x.type == match.out
    return match.x if nothing else None


def _rev(match: Match) -> Var | None:
    if all(match.out.shape[a] == 1 for a in match.attrs["axes"]):
        return match.x
    inner = match.defined_by(match.x, "rev")
    return inner.inputs[0] if inner and inner.attrs["axes"] == match.attrs["axes"] else None


def _concatenate_one(match: Match) -> Var | None:
    axis = match.attrs["axis"]
    parts = [v for v in match.inputs if v.type.shape[axis] != 0]
    if len(parts) == 1:
        return parts[0]
    return match.emit("concatenate", *parts, axis=axis) if parts and len(parts) < len(match.inputs) else None


def _reduce_nothing(match: Match) -> Var | None:
    axes = match.attrs["axes"]
    if not axes:
        return match.x
    if not all(match.x.type.shape[a] == 1 for a in axes):
        return None
    element = match.emit("reshape", match.x, shape=match.out.shape, ndim=match.x.type.ndim)
    if match.equation.op.name == "reduce_sum" and match.out.dtype in dtypes.INEXACT:
        # A sum starts from +0, which turns -0 into +0.
        return match.emit("add", element, match.literal(np.zeros((), match.out.dtype)))
    return element


def _position_of_one(match: Match) -> Var | None:
    return _filled(match, 0) if match.x.type.shape[match.attrs["axis"]] == 1 else None


def _reduce_of_empty(match: Match) -> Var | None:
    if match.x.type.size or not match.out.size:
        return None
    return _filled(match, reduction.identity_of(match.equation.op, match.out.dtype))


def _reduce_of_reduce(match: Match) -> Var | None:
    if match.equation.op.name in ("reduce_sum", "reduce_prod"):
        return None  # another order would round differently
    inner = match.defined_by(match.x, match.equation.op.name)
    if inner is None:
        return None
    source, ndim = inner.inputs[0], inner.inputs[0].type.ndim
    kept = [d - ndim for d in range(ndim) if d - ndim not in inner.attrs["axes"]]
    axes = tuple(sorted({*inner.attrs["axes"], *(kept[a] for a in match.attrs["axes"])}))
    return match.emit(match.equation.op.name, source, axes=axes)


# --- constants ---------------------------------------------------------------------------------

_EXACT: Final = (
    "add", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "floor", "ceil", "round_even",
    "sqrt", "and", "or", "xor", "not", "shift_left", "shift_right_logical",
    "eq", "ne", "lt", "le", "gt", "ge", "is_finite", "select_n", "convert_element_type",
    "bitcast_convert_type", "reshape", "transpose", "slice", "concatenate", "rev",
)  # fmt: skip


def _fold(match: Match) -> Var | None:
    if not match.inputs or match.out.size > ir.Constant.MAX_SIZE or match.out.dtype in dtypes.COMPLEX:
        return None
    arrays = [match.constant(v) for v in match.inputs]
    if any(a is None for a in arrays):
        return None
    with np.errstate(all="ignore"):
        found = match.equation.op.rule(primitive.REFERENCE)(*arrays, **match.attrs)
    return match.literal(np.asarray(found))


def _known_branch(match: Match) -> Sequence[Var] | None:
    index = match.constant(match.x)
    if index is None:
        return None
    branches = match.attrs["branches"]
    body: Program = branches[int(np.clip(int(index), 0, len(branches) - 1))]
    return match.emit_all("call", match.inputs[1:], ir.Attrs({"body": body}))


RULES: Final = (
    *(Rule("fold", op, _fold, "an exact operation on constants is a constant") for op in _EXACT),
    Rule("mul_one", "mul", _neutral(1, both=True), "x * 1 = x"),
    Rule("mul_zero", "mul", _mul_zero, "x * 0 = 0 for integers"),
    Rule("div_one", "div", _neutral(1, both=False), "x / 1 = x"),
    Rule("add_zero", "add", _add_zero, "x + (-0) = x; x + 0 = x for integers"),
    Rule("sub_zero", "sub", _sub_zero, "x - 0 = x"),
    Rule("add_neg", "add", _add_neg, "x + (-y) = x - y"),
    Rule("sub_neg", "sub", _sub_neg, "x - (-y) = x + y"),
    Rule("neg_neg", "neg", _involution, "-(-x) = x"),
    Rule("not_not", "not", _involution, "not not x = x"),
    Rule("max_self", "max", _idempotent, "max(x, x) = x"),
    Rule("min_self", "min", _idempotent, "min(x, x) = x"),
    Rule("and_self", "and", _idempotent, "x and x = x"),
    Rule("or_self", "or", _idempotent, "x or x = x"),
    Rule("select_known", "select_n", _select, "select(true, f, t) = t; select(p, x, x) = x"),
    Rule(
        "convert_convert", "convert_element_type", _convert, "convert after a lossless convert is one convert"
    ),
    Rule("convert_broadcast", "convert_element_type", _convert_of_broadcast, "convert before repeating"),
    Rule("reshape_reshape", "reshape", _reshape, "the last shape wins"),
    Rule("reshape_filled", "reshape", _view_of_filled, "a reshape of one repeated number repeats it"),
    Rule(
        "transpose_transpose", "transpose", _transpose, "permutations compose; moving sizes of 1 is a reshape"
    ),
    Rule("transpose_filled", "transpose", _view_of_filled, "a transpose of one repeated number repeats it"),
    Rule("slice_filled", "slice", _view_of_filled, "a slice of one repeated number repeats it"),
    Rule(
        "broadcast_broadcast",
        "broadcast_in_dim",
        _broadcast,
        "repetitions compose; one that only adds sizes of 1 is a reshape",
    ),
    Rule("slice_slice", "slice", _slice, "slices compose; a slice of everything is the array"),
    Rule("slice_concatenate", "slice", _slice_of_concatenate, "the part that was joined"),
    Rule("pad_nothing", "pad", _pad_nothing, "padding by nothing is the array"),
    Rule("rev_rev", "rev", _rev, "reversed twice, or along sizes of 1, is the array"),
    Rule("concatenate_one", "concatenate", _concatenate_one, "empty parts do not count"),
    *(
        Rule("reduce_nothing", op, _reduce_nothing, "a reduction over one element is the element")
        for op in reduction.MONOIDS
    ),
    *(
        Rule("reduce_empty", op, _reduce_of_empty, "a reduction of nothing is its neutral element")
        for op in reduction.MONOIDS
    ),
    *(
        Rule("position_of_one", op, _position_of_one, "the extremum of one element is the first")
        for op in sorted(positions.NAMES)
    ),
    *(
        Rule("reduce_reduce", op, _reduce_of_reduce, "reductions of one kind compose where nothing rounds")
        for op in reduction.MONOIDS
    ),
    Rule("known_branch", "cond", _known_branch, "a branch chosen by a constant is a call"),
)


def simplify(program: Program) -> Program:
    """Apply the identities of `RULES`."""
    return rewrite.rewrite(program, RULES, "simplify")
