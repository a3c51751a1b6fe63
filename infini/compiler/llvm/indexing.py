"""Places in tiles: an index has an entry per dimension, `base + lane * stride`; a view changes the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infini.compiler.llvm import schedule
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.types import I64
from infini.core import dtypes, errors, ir
from infini.core.ir import Equation


@dataclass(frozen=True, slots=True)
class Index:
    """Place along one dimension: `base + lane * stride`."""

    base: Int
    stride: int = 0


ZERO = Index(0)


def c_strides(shape: ir.Shape) -> tuple[int, ...]:
    """Elements from one index to the next along each dimension of a dense array."""
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    return tuple(strides)


def broadcast_index(index: tuple[Index, ...], shape: ir.Shape, out_shape: ir.Shape) -> tuple[Index, ...]:
    """Index of an operand that broadcasts by NumPy's rule to a result."""
    if shape == out_shape:
        return index
    skipped = len(out_shape) - len(shape)
    return tuple(
        ZERO if n == 1 and out_shape[skipped + d] != 1 else index[skipped + d] for d, n in enumerate(shape)
    )


def view_index(f: Function, equation: Equation, index: tuple[Index, ...]) -> tuple[Index, ...]:
    """Index of the operand of a view that is read at `index`."""
    attrs, operand = equation.attrs, equation.inputs[0]
    name, rank = equation.op.name, operand.type.ndim
    if name == "broadcast_in_dim":
        loops = rank - len(attrs["dims"])
        return index[:loops] + tuple(index[len(index) + d] for d in attrs["dims"])
    if name == "transpose":
        core = len(attrs["permutation"])
        order = [*range(rank - core), *(p + rank for p in attrs["permutation"])]
        places = {p: index[i] for i, p in enumerate(order)}
        return tuple(places[d] for d in range(rank))
    if name == "slice":
        core = len(attrs["start"])
        moved = tuple(
            Index(f.add(f.mul(i.base, k), s), i.stride * k)
            for i, s, k in zip(index[rank - core :], attrs["start"], attrs["strides"], strict=True)
        )
        return index[: rank - core] + moved
    if name == "rev":
        axes = {axis % rank for axis in attrs["axes"]}
        return tuple(
            Index(f.sub(operand.type.shape[d] - 1, i.base), -i.stride) if d in axes else i
            for d, i in enumerate(index)
        )
    if name == "reshape":
        return _reshape_index(f, equation, index)
    raise errors.LoweringError(f"the LLVM emitter has no code for the view {name!r}")


def sliced_index(
    f: Function, equation: Equation, index: tuple[Index, ...], starts: Sequence[Value]
) -> tuple[Index, ...]:
    """Index of the operand of a dynamic_slice, given where it starts: kept inside, as everywhere."""
    whole, part = equation.inputs[0].type.shape, equation.output.type.shape
    places = list(index)
    for d, (start, var) in enumerate(zip(starts, equation.inputs[1:], strict=True), len(whole) - len(starts)):
        if whole[d] > part[d]:
            wide = f.convert("sext" if var.type.dtype in dtypes.SIGNED else "zext", start, I64)
            place = f.minimum(f.maximum(wide, 0), whole[d] - part[d])
            places[d] = Index(f.add(places[d].base, place), places[d].stride)
    return tuple(places)


def _reshape_index(f: Function, equation: Equation, index: tuple[Index, ...]) -> tuple[Index, ...]:
    source, target = equation.inputs[0].type.shape, equation.output.type.shape
    places = [ZERO] * len(source)
    for group_in, group_out in schedule.reshape_groups(equation):
        linear = linear_index(f, [index[d] for d in group_out], [target[d] for d in group_out])
        if len(group_in) > 1:
            # The operand is in a buffer, dense and in C order: its last dimension may run over all of them.
            places[group_in[-1]] = linear
        else:
            places[group_in[0]] = linear
    return tuple(places)


def linear_index(f: Function, index: Sequence[Index], shape: Sequence[int]) -> Index:
    """Index into the dimensions joined to one."""
    base: Int = 0
    stride = 0
    for place, n in zip(index, c_strides(tuple(shape)), strict=True):
        base = f.add(base, f.mul(place.base, n))
        stride += place.stride * n
    return Index(base, stride)
