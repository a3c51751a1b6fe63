"""From nodes to a Kernel: merge axes, choose grid and tile, and write accesses and body.

Shapes of kernels: pointwise `(n,)` over the last axis or a block of it; rows `(C,)` for reductions of the
last axis, one program per row; columns `(R, BC)` for reductions of other axes, one program per block of
columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler import affine
from infini.compiler.affine import Affine
from infini.compiler.expression import Compute, Load, Node, NotFusable, Number, Place, Reduce
from infini.core import dtypes, ir, primitive
from infini.core.ir import ArrayType, Var
from infini.lax import positions
from infini.tile.program import Access, Kernel

MAX_BLOCK: Final = 4096
MIN_BLOCK: Final = 512
COLUMN_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel and what it takes: arrays, of which `flat` says whether they are passed as one dimension, and
    extents.
    """

    kernel: Kernel
    operands: tuple[Var, ...]
    flat: tuple[bool, ...]
    extents: tuple[Var, ...]


@dataclass(frozen=True, slots=True)
class Root:
    """A result: its variable, node, and the axes its elements follow in row-major order."""

    var: Var
    node: Node
    axes: tuple[int, ...]


def nodes_of(roots: Iterable[Node]) -> list[Node]:
    """Every node below `roots`, operands first."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in found:
            return
        for operand in (
            node.operands
            if isinstance(node, Compute)
            else (node.operand,)
            if isinstance(node, Reduce)
            else ()
        ):
            visit(operand)
        found[node] = None

    for root in roots:
        visit(root)
    return list(found)


def build(
    roots: Sequence[Root], sizes: Sequence[int], reduced: Sequence[int], bounded: Mapping[int, Var], name: str
) -> Built:
    """The kernel that computes `roots` over a domain.

    Args:
        roots: results.
        sizes: sizes of the axes of the domain.
        reduced: axes that reductions run over.
        bounded: axes of which only the points below a run-time extent are wanted.
        name: name of the kernel.

    Raises:
        NotFusable: the reduced axes cannot be walked as one; names an array to store in another order first.
    """
    nodes = nodes_of(root.node for root in roots)
    has_reduction = any(isinstance(node, Reduce) for node in nodes)
    if not has_reduction and all(set(reduced) <= set(root.axes) for root in roots):
        # What is left of a group that was cut before its reduction: every axis is kept.
        reduced = ()
    merged = _merge_axes(nodes, roots, sizes, reduced, bounded)
    return _Emitter(nodes, roots, sizes, merged, _tile(merged), name).run(bounded)


# --- axes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MergedAxis:
    """Adjacent axes of the domain walked as one; the step is that of the innermost member."""

    members: tuple[int, ...]
    size: int
    is_reduced: bool

    @property
    def innermost(self) -> int:
        """The member whose coefficient is the step."""
        return self.members[-1]


def _vectors(nodes: Sequence[Node], roots: Sequence[Root], sizes: Sequence[int]) -> list[Affine]:
    """Every index expression that a merge of axes must respect."""
    found: list[Affine] = [affine.flat(root.axes, sizes) for root in roots]
    for node in nodes:
        if isinstance(node, Load):
            if node.fill is None:
                found.append(affine.linearize(node.index, node.var.type.shape))
            else:
                found.extend(node.index)
        elif isinstance(node, Place):
            found.append(node.index)
    return list(dict.fromkeys(found))


def _merge_axes(
    nodes: Sequence[Node],
    roots: Sequence[Root],
    sizes: Sequence[int],
    reduced: Sequence[int],
    bounded: Mapping[int, Var],
) -> list[MergedAxis]:
    vectors = [dict(v.terms) for v in _vectors(nodes, roots, sizes)]
    merged: list[MergedAxis] = []
    for a, size in enumerate(sizes):
        last = merged[-1] if merged else None
        if (
            last is not None
            and not bounded.keys() & {last.innermost, a}
            and last.is_reduced == (a in reduced)
            and all(v.get(last.innermost, 0) == v.get(a, 0) * size for v in vectors)
        ):
            merged[-1] = MergedAxis((*last.members, a), last.size * size, last.is_reduced)
        else:
            merged.append(MergedAxis((a,), size, a in reduced))
    if sum(axis.is_reduced for axis in merged) > 1:
        # What is reduced does not lie in order; as an array of its own it does.
        raise NotFusable(next(node.source for node in nodes if isinstance(node, Reduce)))
    return merged


@dataclass(frozen=True, slots=True)
class Tile:
    """The axes inside a tile, outermost first, by position in the list of merged axes; `block` cuts the last
    one.

    `has_tail` says that the last block is not full, which only a domain of a single axis has.
    """

    axes: tuple[int, ...]
    block: int
    has_tail: bool = False


def _tile(merged: Sequence[MergedAxis]) -> Tile:
    reduced = next((i for i, axis in enumerate(merged) if axis.is_reduced), None)
    last = len(merged) - 1
    size = merged[last].size
    if reduced is None:
        block = _pointwise_block(size, is_alone=len(merged) == 1)
        return Tile((last,), block, has_tail=size % block != 0)
    if reduced == last:
        return Tile((last,), size)
    return Tile((reduced, last), _divisor(size, 1, COLUMN_BLOCK) or size)


def _pointwise_block(size: int, *, is_alone: bool) -> int:
    if size <= MAX_BLOCK:
        return size
    return _divisor(size, MIN_BLOCK, MAX_BLOCK) or (MAX_BLOCK // 2 if is_alone else size)


def _divisor(size: int, low: int, high: int) -> int | None:
    """The largest divisor of `size` between two bounds, multiples of 16 first."""
    candidates = [d for d in range(min(high, size), low - 1, -1) if size % d == 0]
    return next((d for d in candidates if d % 16 == 0), candidates[0] if candidates else None)


# --- accesses and body -------------------------------------------------------------------------


class _Emitter:
    def __init__(
        self,
        nodes: Sequence[Node],
        roots: Sequence[Root],
        sizes: Sequence[int],
        merged: Sequence[MergedAxis],
        tile: Tile,
        name: str,
    ) -> None:
        self.nodes, self.roots, self.sizes, self.merged, self.tile, self.name = (
            nodes,
            roots,
            sizes,
            merged,
            tile,
            name,
        )
        self.grid_axes = [i for i in range(len(merged)) if i not in tile.axes]
        last = tile.axes[-1]
        num_blocks = -(-merged[last].size // tile.block)
        self.grid = tuple(merged[i].size for i in self.grid_axes) + ((num_blocks,) if num_blocks > 1 else ())
        self.is_blocked = num_blocks > 1
        if not self.grid:
            self.grid = (1,)
        self.tile_shape = (*(merged[i].size for i in tile.axes[:-1]), tile.block)
        self.builder = ir.Builder()
        self.pids = [Var(ArrayType((), dtypes.int32)) for _ in self.grid]

    def run(self, bounded: Mapping[int, Var]) -> Built:
        """The kernel."""
        loads: list[Load] = [node for node in self.nodes if isinstance(node, Load)]
        env: dict[Node, Var] = {}
        params, accesses, flat = [], [], []
        for load in loads:
            access = self._access(self._index(load), load, self._fill(load))
            accesses.append(access)
            flat.append(load.fill is None)
            env[load] = Var(ArrayType(access.tile, load.dtype))
            params.append(env[load])
        for node in self.nodes:
            if node not in env:
                env[node] = self._node(node, env)
        stores, results = [], []
        for root in self.roots:
            access = self._access(
                [affine.flat(root.axes, self.sizes)], None, 0 if self.tile.has_tail else None, root.axes
            )
            stores.append(access)
            results.append(self._broadcast(env[root.node], access.tile))
        outputs = tuple(ArrayType((root.var.type.size,), root.var.type.dtype) for root in self.roots)
        body = self.builder.build([*params, *self.pids], results, name=self.name)
        extents, operands = self._extents(bounded, len(loads))
        kernel = Kernel(self.grid, tuple(accesses), tuple(stores), outputs, body, extents, self.name)
        return Built(kernel, tuple(node.var for node in loads), tuple(flat), operands)

    def _extents(
        self, bounded: Mapping[int, Var], num_loads: int
    ) -> tuple[tuple[tuple[int, int, int], ...], tuple[Var, ...]]:
        """Bounds of grid dimensions, as (grid dimension, points per program, operand), and the extents as
        operands.
        """
        found: list[tuple[int, int, int]] = []
        operands: dict[Var, int] = {}
        places = [(i, 1) for i in self.grid_axes] + (
            [(self.tile.axes[-1], self.tile.block)] if self.is_blocked else []
        )
        for dimension, (position, rows) in enumerate(places):
            extent = bounded.get(self.merged[position].innermost)
            if extent is not None:
                operands.setdefault(extent, num_loads + len(operands))
                found.append((dimension, rows, operands[extent]))
        return tuple(found), tuple(operands)

    def _fill(self, node: Load) -> complex | None:
        """What the load gives outside; only the tail of a domain of one axis lies outside when the index
        never does.
        """
        return 0 if node.fill is None and self.tile.has_tail and node.axes else node.fill

    def _index(self, node: Load) -> list[Affine]:
        return [affine.linearize(node.index, node.var.type.shape)] if node.fill is None else list(node.index)

    def _factors(self, index: Affine) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Coefficients per grid dimension and per tile axis."""
        grid = [index.coefficient(self.merged[i].innermost) for i in self.grid_axes]
        tile = [index.coefficient(self.merged[i].innermost) for i in self.tile.axes]
        if self.is_blocked:
            grid.append(tile[-1] * self.tile.block)
        return tuple(grid) or (0,), tuple(tile)

    def _shape(self, used: Iterable[int]) -> tuple[int, ...]:
        """Shape of a tile that depends on some axes of the domain: NumPy broadcasting puts it together with
        others.
        """
        touched = set(used)
        present = [bool(touched & set(self.merged[i].members)) for i in self.tile.axes]
        if not any(present):
            return ()
        first = present.index(True)
        return tuple(
            n if here else 1 for n, here in zip(self.tile_shape[first:], present[first:], strict=True)
        )

    def _access(
        self, index: Sequence[Affine], node: Load | None, fill: complex | None, axes: Sequence[int] = ()
    ) -> Access:
        used = {a for place in index for a, _ in place.terms} if node is not None else set(axes)
        shape = self._shape(used)
        factors = [self._factors(place) for place in index]
        return Access(
            shape,
            tuple(grid for grid, _ in factors),
            tuple(tile[len(tile) - len(shape) :] for _, tile in factors),
            tuple(place.offset for place in index),
            fill,
        )

    def _broadcast(self, var: Var, shape: tuple[int, ...]) -> Var:
        if var.type.shape == shape:
            return var
        kept = tuple(
            i - len(shape)
            for i, (n, m) in enumerate(
                zip(var.type.shape, shape[len(shape) - var.type.ndim :], strict=True),
                len(shape) - var.type.ndim,
            )
            if n == m
        )
        squeezed = tuple(
            n for n, m in zip(var.type.shape, shape[len(shape) - var.type.ndim :], strict=True) if n == m
        )
        if squeezed != var.type.shape:
            var = self.builder.emit1(primitive.by_name("reshape"), [var], shape=squeezed, ndim=var.type.ndim)
        return self.builder.emit1(primitive.by_name("broadcast_in_dim"), [var], shape=shape, dims=kept)

    def _node(self, node: Node, env: dict[Node, Var]) -> Var:
        if isinstance(node, Number):
            return self.builder.constant(node.value)
        if isinstance(node, Place):
            return self._place(node.index)
        if isinstance(node, Compute):
            operands = [env[x] for x in node.operands]
            outputs = self.builder.emit(node.op, operands, node.attrs, where=node.where)
            return outputs[node.output]
        assert isinstance(node, Reduce)
        operand = self._broadcast(env[node.operand], self._reduce_shape(env[node.operand]))
        axis = -len(self.tile.axes)
        is_position = node.op.name in positions.NAMES
        attrs = {"axis": axis, "index_dtype": node.dtype} if is_position else {"axes": (axis,)}
        (output,) = self.builder.emit(node.op, [operand], ir.Attrs(attrs), where=node.where)
        return output

    def _reduce_shape(self, operand: Var) -> tuple[int, ...]:
        """The operand's shape with the reduced axis present."""
        rank = len(self.tile.axes)
        shape = (1,) * (rank - operand.type.ndim) + operand.type.shape
        return (self.tile_shape[0], *shape[1:])

    def _place(self, index: Affine) -> Var:
        grid, tile = self._factors(index)
        total: Var | None = None if index.offset == 0 else self._number(index.offset)
        for pid, factor in zip(self.pids, grid, strict=True):
            if factor:
                total = self._sum(total, self._product(pid, factor))
        for position, factor in enumerate(tile):
            if factor:
                shape = tuple(n if i == position else 1 for i, n in enumerate(self.tile_shape))[position:]
                line = self.builder.emit1(
                    primitive.by_name("iota"), [], shape=shape, dimension=0, dtype=dtypes.int32
                )
                total = self._sum(total, self._product(line, factor))
        return total if total is not None else self._number(0)

    def _number(self, value: int) -> Var:
        return self.builder.constant(np.asarray(value, np.int32))

    def _product(self, var: Var, factor: int) -> Var:
        return (
            var if factor == 1 else self.builder.emit1(primitive.by_name("mul"), [var, self._number(factor)])
        )

    def _sum(self, total: Var | None, term: Var) -> Var:
        return term if total is None else self.builder.emit1(primitive.by_name("add"), [total, term])


def weight(nodes: Iterable[Node], cost: Callable[[str], float]) -> float:
    """Estimated work per point."""
    return math.fsum(cost(node.op.name) for node in nodes if isinstance(node, Compute))
