"""Operations that only move elements, as index maps: which element of which operand is element `index` of the
result.

A `Piece` with bounds is valid where its bounds hold; elsewhere the next piece applies, or for `pad` the
padding value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler import affine
from infini.compiler.affine import Affine, IndexMap
from infini.core.ir import Equation, Var
from infini.lax import view as view_ops
from infini.lax.windows import unfolding


@dataclass(frozen=True, slots=True)
class Piece:
    """One source of a view.

    Args:
        operand: where the elements come from.
        index: index there.
        bounds: pairs (place, size): the piece applies where `0 <= place < size`.
    """

    operand: Var
    index: IndexMap
    bounds: tuple[tuple[Affine, int], ...] = ()


Rule = Callable[[Equation, IndexMap, Sequence[int]], list[Piece]]


def _padded_dims(dims: Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(d + ndim for d in dims)


def kept(equation: Equation) -> tuple[int, ...]:
    """For each dimension of the operand of a `broadcast_in_dim` that of its result, loop dimensions first."""
    ndim = equation.output.type.ndim
    loops = ndim - len(equation.attrs["shape"])
    return (*range(loops), *_padded_dims(equation.attrs["dims"], ndim))


def _reshape(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    (x,) = equation.inputs
    shape = equation.output.type.shape
    moved: list[Affine] = [affine.ZERO] * x.type.ndim
    for sources, targets in matching(x.type.shape, shape):
        if len(sources) == len(targets) == 1:
            # The index may lie outside here, where a position in memory would be another row's.
            moved[sources[0]] = index[targets[0]]
            continue
        position = affine.linearize([index[d] for d in targets], tuple(shape[d] for d in targets))
        found = affine.delinearize(position, tuple(x.type.shape[d] for d in sources), sizes)
        for d, place in zip(sources, found, strict=True):
            moved[d] = place
    return [Piece(x, tuple(moved))]


def matching(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of two shapes, without those of size 1, in the smallest groups of equal size; one group of
    all when there are no elements.
    """
    ins = [d for d, n in enumerate(source) if n != 1]
    outs = [d for d, n in enumerate(target) if n != 1]
    if 0 in source:
        return [(ins, outs)]
    groups = []
    while ins or outs:
        group_in, group_out = [ins.pop(0)], [outs.pop(0)]
        a, b = source[group_in[0]], target[group_out[0]]
        while a != b:
            if a < b:
                group_in.append(ins.pop(0))
                a *= source[group_in[-1]]
            else:
                group_out.append(outs.pop(0))
                b *= target[group_out[-1]]
        groups.append((group_in, group_out))
    return groups


def _transpose(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    (x,) = equation.inputs
    permutation = equation.attrs["permutation"]
    order = (*range(x.type.ndim - len(permutation)), *_padded_dims(permutation, x.type.ndim))
    moved: list[Affine] = [affine.ZERO] * x.type.ndim
    for position, source in enumerate(order):
        moved[source] = index[position]
    return [Piece(x, tuple(moved))]


def _broadcast(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    (x,) = equation.inputs
    return [Piece(x, tuple(index[d] for d in kept(equation)))]


def _slice(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    (x,) = equation.inputs
    start, strides = equation.attrs["start"], equation.attrs["strides"]
    loops = x.type.ndim - len(start)
    moved = [place.scaled(k).shifted(s) for place, s, k in zip(index[loops:], start, strides, strict=True)]
    return [Piece(x, (*index[:loops], *moved))]


def _unfold(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    (x,) = equation.inputs
    attrs = equation.attrs
    moved = list(index[: x.type.ndim])
    offsets = index[x.type.ndim :]
    for a, offset, stride, dilation in zip(
        attrs["axes"], offsets, attrs["strides"], attrs["dilations"], strict=True
    ):
        moved[a] = moved[a].scaled(stride).plus(offset.scaled(dilation))
    return [Piece(x, tuple(moved))]


def _rev(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    (x,) = equation.inputs
    moved = list(index)
    for a in equation.attrs["axes"]:
        moved[a] = moved[a].scaled(-1).shifted(x.type.shape[a] - 1)
    return [Piece(x, tuple(moved))]


def _pad(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    x, fill = equation.inputs
    if any(equation.attrs["interior"]):
        raise affine.NotAffine
    loops = x.type.ndim - len(equation.attrs["low"])
    moved = [place.shifted(-low) for place, low in zip(index[loops:], equation.attrs["low"], strict=True)]
    bounds = _needed_bounds(zip(moved, x.type.shape[loops:], strict=True), sizes)
    return [Piece(x, (*index[:loops], *moved), bounds), Piece(fill, ())]


def _concatenate(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    a = equation.attrs["axis"] + equation.output.type.ndim
    low, high = index[a].range(sizes)
    pieces, start = [], 0
    for operand in equation.inputs:
        size = operand.type.shape[a]
        if start <= high and low < start + size:
            moved = index[a].shifted(-start)
            bounds = _needed_bounds([(moved, size)], sizes)
            pieces.append(Piece(operand, (*index[:a], moved, *index[a + 1 :]), bounds))
        start += size
    return pieces


def _needed_bounds(
    places: Iterable[tuple[Affine, int]], sizes: Sequence[int]
) -> tuple[tuple[Affine, int], ...]:
    found = []
    for place, size in places:
        low, high = place.range(sizes)
        if low < 0 or high >= size:
            found.append((place, size))
    return tuple(found)


RULES: Final[Mapping[str, Rule]] = {
    view_ops.reshape_p.name: _reshape,
    view_ops.transpose_p.name: _transpose,
    view_ops.broadcast_in_dim_p.name: _broadcast,
    view_ops.slice_p.name: _slice,
    view_ops.rev_p.name: _rev,
    unfolding.unfold_p.name: _unfold,
    view_ops.pad_p.name: _pad,
    view_ops.concatenate_p.name: _concatenate,
}
# Views with one source and no condition: they cost nothing wherever they are inlined.
PLAIN: Final = frozenset({"reshape", "transpose", "broadcast_in_dim", "slice", "rev", "unfold"})


def pieces(equation: Equation, index: IndexMap, sizes: Sequence[int]) -> list[Piece]:
    """Sources of element `index` of a view; the first whose bounds hold.

    Raises:
        SplitAxis: a reshape needs a finer axis.
        NotAffine: the index is not affine.
    """
    return RULES[equation.op.name](equation, index, sizes)


def operand_index(index: IndexMap, operand_shape: Sequence[int], shape: Sequence[int]) -> IndexMap:
    """Index of an operand of an elementwise operation, which broadcasts as NumPy does."""
    missing = len(shape) - len(operand_shape)
    return tuple(affine.ZERO if size == 1 else index[missing + d] for d, size in enumerate(operand_shape))
