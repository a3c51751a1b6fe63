"""What one kernel computes, as a graph of nodes over the axes of its iteration domain, pulled from its
results.

Each result asks for its element at the current point; elementwise operations ask their operands, views change
the index, a reduction adds the reduced axes, and materialised arrays become loads. A value asked for twice at
one index is one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler import affine, views
from infini.compiler.affine import Affine, IndexMap
from infini.core import dtypes, ir, primitive
from infini.core.ir import Attrs, Equation, Var
from infini.core.source import Where
from infini.lax import positions, reduction

REDUCTIONS: Final = frozenset(reduction.MONOIDS) | positions.NAMES


def reduced_axes(equation: Equation) -> tuple[int, ...]:
    """Axes that a reduction runs over, counted from the right."""
    is_position = equation.op.name in positions.NAMES
    return (equation.attrs["axis"],) if is_position else tuple(equation.attrs["axes"])


class NotFusable(Exception):  # noqa: N818  # control flow inside the fuser, never seen by users
    """`var` cannot be computed inside this kernel and has to be an array."""

    def __init__(self, var: Var) -> None:
        super().__init__(var)
        self.var = var


@dataclass(frozen=True, slots=True)
class Domain:
    """Points of a kernel, row-major: `outer * reduced * inner`; the middle part is what reductions run over.

    Args:
        outer: points left of the reduced ones.
        reduced: points that reductions run over; 1 when there are no reductions.
        inner: points right of them; 1 for reductions of rows.
    """

    outer: int
    reduced: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Number of points."""
        return self.outer * self.reduced * self.inner


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A value of a kernel at the current point; `axes` are those it depends on."""

    dtype: np.dtype
    axes: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Load(Node):
    """An element of an array; `fill` outside of it when the index may lie there."""

    var: Var
    index: IndexMap
    fill: complex | None


@dataclass(frozen=True, slots=True, eq=False)
class Number(Node):
    """A constant."""

    value: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Place(Node):
    """The value of an index, int32."""

    index: Affine


@dataclass(frozen=True, slots=True, eq=False)
class Compute(Node):
    """An elementwise operation; `output` chooses among several results."""

    op: primitive.Primitive
    attrs: Attrs
    operands: tuple[Node, ...]
    output: int = 0
    where: Where | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Node):
    """A reduction over the reduced axes of the domain; `source` is the variable it reduces."""

    op: primitive.Primitive
    operand: Node
    source: Var
    where: Where | None = None


class Puller:
    """Builds the nodes of one kernel.

    Args:
        definition: the equation that makes a variable; None for arrays that exist when the kernel runs.
        constant: elements of a constant of one repeated number, else None.
        sizes: sizes of the axes of the domain.
        reduced: the axes that reductions run over.
    """

    def __init__(
        self,
        definition: Callable[[Var], Equation | None],
        constant: Callable[[Var], np.ndarray | None],
        sizes: Sequence[int],
        reduced: Sequence[int],
    ) -> None:
        self.definition, self.constant = definition, constant
        self.sizes, self.reduced = tuple(sizes), tuple(reduced)
        self.computed: set[Var] = set()  # variables that are computed here and not loaded
        self._memo: dict[tuple[Var, IndexMap, bool], Node] = {}
        self._computed: dict[object, Node] = {}

    def root(self, var: Var, axes: Sequence[int]) -> Node:
        """The node of a result whose elements follow `axes` in row-major order."""
        try:
            index = affine.delinearize(affine.flat(axes, self.sizes), var.type.shape, self.sizes)
        except affine.NotAffine:
            raise NotFusable(var) from None
        equation = self.definition(var)
        return self._pull_equation(equation, var, index, False) if equation else self.pull(var, index)

    def pull(self, var: Var, index: IndexMap, guarded: bool = False) -> Node:
        """The element of `var` at an index; `guarded` when the index may lie outside and the result is then
        not used.
        """
        key = (var, index, guarded)
        if key not in self._memo:
            equation = self.definition(var)
            if equation is None:
                self._memo[key] = self._array(var, index, guarded)
            else:
                self._memo[key] = self._pull_equation(equation, var, index, guarded)
        return self._memo[key]

    def _array(self, var: Var, index: IndexMap, guarded: bool) -> Node:
        number = self.constant(var)
        if number is not None:
            return Number(var.type.dtype, frozenset(), number.reshape(-1)[:1].reshape(()))
        used = frozenset(a for place in index for a, _ in place.terms)
        is_outside = guarded and not all(
            low >= 0 and high < size
            for (low, high), size in zip((p.range(self.sizes) for p in index), var.type.shape, strict=True)
        )
        return Load(var.type.dtype, used, var, index, 0 if is_outside else None)

    def _pull_equation(self, equation: Equation, var: Var, index: IndexMap, guarded: bool) -> Node:
        self.computed.add(var)
        op = equation.op
        if op.name in views.RULES:
            return self._view(equation, index, guarded)
        if op.name == "iota":
            place = index[equation.attrs["dimension"]]
            return self._converted(self.place(place), var.type.dtype)
        if op.name in REDUCTIONS:
            return self._reduce(equation, index, guarded)
        if not op.has(primitive.SCALAR):
            raise NotFusable(var)
        shape = equation.outputs[0].type.shape
        operands = tuple(
            self.pull(x, views.operand_index(index, x.type.shape, shape), guarded) for x in equation.inputs
        )
        output = equation.outputs.index(var)
        return self.compute(op, equation.attrs, operands, var.type.dtype, output, equation.where)

    def compute(
        self,
        op: primitive.Primitive,
        attrs: Attrs,
        operands: tuple[Node, ...],
        dtype: np.dtype,
        output: int = 0,
        where: Where | None = None,
    ) -> Node:
        """The node of an elementwise operation; the first of several users' lines is kept."""
        key = (op, attrs, operands, output)
        if key not in self._computed:
            used = frozenset[int]().union(*(x.axes for x in operands))
            self._computed[key] = Compute(dtype, used, op, attrs, operands, output, where)
        return self._computed[key]

    def place(self, index: Affine) -> Node:
        """The node of an index."""
        if index not in self._computed:
            self._computed[index] = Place(dtypes.int32, frozenset(a for a, _ in index.terms), index)
        return self._computed[index]

    def _converted(self, node: Node, dtype: np.dtype) -> Node:
        if node.dtype == dtype:
            return node
        return self.compute(
            primitive.by_name("convert_element_type"), Attrs({"new_dtype": dtype}), (node,), dtype
        )

    def _view(self, equation: Equation, index: IndexMap, guarded: bool) -> Node:
        try:
            found = views.pieces(equation, index, self.sizes)
        except affine.NotAffine:
            # The operand may be made an array; a view that is not affine even then has its own route.
            raise NotFusable(equation.output) from None
        result: Node | None = None
        for piece in reversed(found):
            node = self.pull(piece.operand, piece.index, guarded or bool(piece.bounds))
            result = node if result is None else self._where(piece, node, result)
        if result is None:
            # No element of the domain has its source here: a condition further out chooses something else.
            assert guarded, "a view has a source for every element"
            return Number(equation.output.type.dtype, frozenset(), np.zeros((), equation.output.type.dtype))
        return result

    def _where(self, piece: views.Piece, inside: Node, outside: Node) -> Node:
        if not piece.bounds:
            return inside
        # A load of the operand itself has these very bounds, so what it gives outside is the other value.
        if (
            isinstance(inside, Load)
            and inside.var is piece.operand
            and isinstance(outside, Number)
            and np.isfinite(outside.value)
        ):
            fill = outside.value.item()
            return Load(inside.dtype, inside.axes, inside.var, inside.index, fill)
        condition: Node | None = None
        for place, size in piece.bounds:
            low, high = place.range(self.sizes)
            if low < 0:
                condition = self._both(condition, self._compare("ge", place, 0))
            if high >= size:
                condition = self._both(condition, self._compare("lt", place, size))
        assert condition is not None
        select = primitive.by_name("select_n")
        return self.compute(select, ir.NO_ATTRS, (condition, outside, inside), inside.dtype)

    def _compare(self, op: str, place: Affine, bound: int) -> Node:
        number = self._number(bound)
        return self.compute(primitive.by_name(op), ir.NO_ATTRS, (self.place(place), number), dtypes.bool_)

    def _number(self, value: int) -> Node:
        key = ("number", value)
        if key not in self._computed:
            self._computed[key] = Number(dtypes.int32, frozenset(), np.asarray(value, np.int32))
        return self._computed[key]

    def _both(self, first: Node | None, second: Node) -> Node:
        if first is None:
            return second
        return self.compute(primitive.by_name("and"), ir.NO_ATTRS, (first, second), dtypes.bool_)

    def _reduce(self, equation: Equation, index: IndexMap, guarded: bool) -> Node:
        (x,) = equation.inputs
        dims = [a + x.type.ndim for a in reduced_axes(equation)]
        shape = tuple(x.type.shape[d] for d in dims)
        used = {a for place in index for a, _ in place.terms}
        if (
            math.prod(shape) != math.prod(self.sizes[a] for a in self.reduced)
            or used & set(self.reduced)
            or guarded
        ):
            raise NotFusable(equation.output)
        try:
            inside = affine.delinearize(affine.flat(self.reduced, self.sizes), shape, self.sizes)
        except affine.NotAffine:
            raise NotFusable(equation.output) from None
        rest, reduced = iter(index), iter(inside)
        operand = self.pull(x, tuple(next(reduced) if d in dims else next(rest) for d in range(x.type.ndim)))
        key = (equation.op, operand, equation.output.type.dtype)
        if key not in self._computed:
            axes_left = operand.axes - set(self.reduced)
            dtype = equation.output.type.dtype
            self._computed[key] = Reduce(dtype, axes_left, equation.op, operand, x, equation.where)
        return self._computed[key]
