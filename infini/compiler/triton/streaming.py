"""Kernels whose tiles are too large for registers, walked in chunks along one dimension.

Dimensions of the body's values that walk together form classes; the largest class is cut into chunks. Values
that have it are computed chunk by chunk, again in every pass that needs them; a reduction over it ends a
pass, and what follows from its result is computed in a later one. So a softmax over a long row is three
passes, and the sum of a tall column one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler import views
from infini.compiler.triton import access as access_, reductions, scalar
from infini.compiler.triton.access import Tail
from infini.compiler.triton.body import Body
from infini.compiler.triton.source import language_name, literal, padded
from infini.compiler.triton.writer import Operand, Tile
from infini.core import dtypes, ir, primitive
from infini.core.ir import ArrayType, Equation, Shape, Var
from infini.lax import reduction
from infini.tile.program import Kernel

MAX_TILE: Final = 1 << 16  # elements of a tile that is kept in registers: 128 per thread at 16 warps
CHUNK: Final = 1 << 13  # elements of a chunk, all dimensions together

Dim = tuple[Var, int]
Load = Callable[[int, Tail, ArrayType], Tile]
Store = Callable[[int, Tile, Tail | None], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a kernel is walked.

    Args:
        axes: streamed dimension of each value that has one.
        size: how many elements it has.
        chunk: elements per step.
        levels: pass in which each value of the body can be computed; one that is reduced is ready in the
            next.
    """

    axes: dict[Var, int]
    size: int
    chunk: int
    levels: dict[Var, int]

    @property
    def num_passes(self) -> int:
        """Walks over the dimension."""
        return 1 + max(self.levels.values(), default=0)

    def cut(self, var: Var) -> ArrayType:
        """Type of a value in one step."""
        axis = self.axes[var]
        shape = tuple(self.chunk if d == axis else n for d, n in enumerate(var.type.shape))
        return var.type.update(shape=shape)


def plan(kernel: Kernel, most: int = MAX_TILE) -> Plan | None:
    """A plan for a kernel with a tile of more than `most` elements; None when there is no need, or no way."""
    variables = [*kernel.body.params, *(v for e in kernel.body.equations for v in e.outputs)]
    if any(access.levels for access in kernel.loads):
        return None
    if max((math.prod(padded(v.type.shape)) for v in variables), default=0) <= min(most, MAX_TILE):
        return None
    classes = _classes(kernel.body)
    if classes is None:
        return None
    largest = max((d for d in classes), key=lambda d: d[0].type.shape[d[1]])
    members = {d for d, root in classes.items() if root == classes[largest]}
    if len({var for var, _ in members}) != len(members):
        return None
    axes = dict(members)
    size = largest[0].type.shape[largest[1]]
    others = max(math.prod(padded(v.type.shape)) // padded((size,))[0] for v in axes)
    levels = _levels(kernel.body, axes)
    return None if levels is None else Plan(axes, size, max(min(CHUNK, most) // max(others, 1), 16), levels)


def _classes(program: ir.Program) -> dict[Dim, Dim] | None:
    """The representative of the class of every dimension; None when an operation mixes dimensions."""
    parent: dict[Dim, Dim] = {}

    def find(dim: Dim) -> Dim:
        while parent.setdefault(dim, dim) != dim:
            dim = parent[dim]
        return dim

    for var in program.params:
        for d in range(var.type.ndim):
            find((var, d))
    for equation in program.equations:
        pairs = _pairs(equation)
        if pairs is None:
            return None
        for output in equation.outputs:
            for d in range(output.type.ndim):
                find((output, d))
        for first, second in pairs:
            parent[find(first)] = find(second)
    return {dim: find(dim) for dim in list(parent)}


def _pairs(equation: Equation) -> list[tuple[Dim, Dim]] | None:
    """Dimensions of operands and that of the result that walks with each; None for other operations."""
    name, attrs = equation.op.name, equation.attrs
    if len(equation.outputs) != 1:
        return None
    out = equation.output
    if equation.op.has(primitive.SCALAR):
        return [
            ((v, d), (out, d + out.type.ndim - v.type.ndim))
            for v in equation.inputs
            for d in range(v.type.ndim)
            if v.type.shape[d] == out.type.shape[d + out.type.ndim - v.type.ndim]
        ]
    if name == "iota":
        return []
    (x,) = equation.inputs if len(equation.inputs) == 1 else (None,)
    if x is None:
        return None
    ndim = x.type.ndim
    if name == "broadcast_in_dim":
        return [((x, i), (out, d)) for i, d in enumerate(views.kept(equation))]
    if name == "transpose":
        order = attrs["permutation"]
        full = [*range(ndim - len(order)), *(p + ndim for p in order)]
        return [((x, p), (out, d)) for d, p in enumerate(full)]
    if name in reduction.MONOIDS:
        reduced = {a + ndim for a in attrs["axes"]}
        return [((x, d), (out, i)) for i, d in enumerate(d for d in range(ndim) if d not in reduced)]
    if name == "reshape":
        before = [d for d in range(ndim) if x.type.shape[d] != 1]
        after = [d for d in range(out.type.ndim) if out.type.shape[d] != 1]
        if [x.type.shape[d] for d in before] == [out.type.shape[d] for d in after]:
            return [((x, p), (out, q)) for p, q in zip(before, after, strict=True)]
    return None


def _levels(program: ir.Program, axes: dict[Var, int]) -> dict[Var, int] | None:
    """Pass in which each value is ready; None when a reduction over the dimension cannot be continued."""
    levels = dict.fromkeys((*program.params, *(v for v, _ in program.consts)), 0)
    for equation in program.equations:
        level = max((levels[v] for v in equation.inputs), default=0)
        level += ends_pass(equation, axes)
        levels.update(dict.fromkeys(equation.outputs, level))
    return levels


def ends_pass(equation: Equation, axes: dict[Var, int]) -> bool:
    """Whether an equation reduces the streamed dimension."""
    if equation.op.name not in reduction.MONOIDS or equation.inputs[0] not in axes:
        return False
    x = equation.inputs[0]
    return axes[x] - x.type.ndim in equation.attrs["axes"]


# --- emission --------------------------------------------------------------------------------


class Stream:
    """Emits a kernel by a plan. `load` and `store` take a position along the dimension."""

    def __init__(self, body: Body, kernel: Kernel, plan: Plan, load: Load, store: Store) -> None:
        self.body, self.kernel, self.plan = body, kernel, plan
        self.load, self.store = load, store
        self.env: dict[Var, Operand] = {}

    def run(self, whole: Sequence[Operand | None]) -> None:
        """Emit every pass.

        Args:
            whole: values of the parameters that do not have the dimension, None for the others.
        """
        program, plan = self.kernel.body, self.plan
        self.env.update({v: x for v, x in zip(program.params, whole, strict=True) if x is not None})
        self.env.update((var, self.body.constant(constant)) for var, constant in program.consts)
        # A pass of each level: a walk if something is reduced or stored in it, then what follows from it.
        for level in range(plan.num_passes):
            self.whole_equations(level)
            self.walk(level)
        for number, var in enumerate(program.results):
            if var not in plan.axes:
                self.store(number, self.body.tile(self.env[var]), None)

    def whole_equations(self, level: int) -> None:
        """Equations of this level without the dimension."""
        for equation in self.kernel.body.equations:
            is_streamed = any(v in self.plan.axes for v in (*equation.inputs, *equation.outputs))
            if not is_streamed and self.plan.levels[equation.output] == level:
                self.env.update(
                    zip(equation.outputs, self.body.equation(equation, self.operands(equation)), strict=True)
                )

    def operands(self, equation: Equation) -> list[Operand]:
        """Values of the operands of an equation without the dimension."""
        return [self.env[v] for v in equation.inputs]

    def walk(self, level: int) -> None:
        """One loop over the chunks."""
        program, plan, writer = self.kernel.body, self.plan, self.body.writer
        ends = [
            e for e in program.equations if ends_pass(e, plan.axes) and plan.levels[e.output] == level + 1
        ]
        stored = [(k, v) for k, v in enumerate(program.results) if v in plan.axes and plan.levels[v] == level]
        if not ends and not stored:
            return
        needed = self.needed([*(e.inputs[0] for e in ends), *(v for _, v in stored)])
        totals = [self.start(equation) for equation in ends]
        counter, position = writer.fresh("i"), writer.fresh("k")
        writer.leave_block()
        writer.line(f"for {counter} in range(0, {-(-plan.size // plan.chunk)}):")
        writer.depth += 1
        writer.line(f"{position} = tl.full((), 0, tl.int32) + {counter}")
        env = dict(self.env)
        for number, var in enumerate(program.params):
            if var in needed:
                env[var] = self.load(number, self.tail(var, position), plan.cut(var))
        for equation in program.equations:
            if equation.output in needed:
                env.update(self.streamed(equation, env, position))
        for total, equation in zip(totals, ends, strict=True):
            self.add(total, equation, self.body.tile(env[equation.inputs[0]]), position)
        for number, var in stored:
            self.store(number, self.body.tile(env[var]), self.tail(var, position))
        writer.depth -= 1
        for total, equation in zip(totals, ends, strict=True):
            is_bool = equation.output.type.dtype == dtypes.bool_
            text = f"({total.name} != 0)" if is_bool else total.name
            self.env[equation.output] = self.body.rounded(text, equation.output.type)

    def needed(self, roots: Sequence[Var]) -> set[Var]:
        """Values with the dimension that `roots` are computed from."""
        found = {v for v in roots if v in self.plan.axes}
        for equation in reversed(self.kernel.body.equations):
            if equation.output in found:
                found.update(v for v in equation.inputs if v in self.plan.axes)
        return found

    def tail(self, var: Var, position: str) -> Tail:
        """Where a chunk lies along the dimension of a value."""
        return Tail(position, self.plan.chunk, self.plan.size, self.plan.axes[var])

    def streamed(
        self, equation: Equation, env: dict[Var, Operand], position: str
    ) -> Iterator[tuple[Var, Operand]]:
        """One equation on a chunk."""
        plan, out = self.plan, equation.output
        operands = [env[v] for v in equation.inputs]
        if equation.op.name == "iota" and equation.attrs["dimension"] == plan.axes[out]:
            type_ = plan.cut(out)
            lane = access_.lane(padded(type_.shape), plan.axes[out])
            text = f"({position} * {plan.chunk} + {lane}).to({language_name(type_.dtype)})"
            yield out, self.body.writer.tile(f"tl.broadcast_to({text}, {list(padded(type_.shape))})", type_)
            return
        attrs = equation.attrs
        if "shape" in attrs:
            rank = len(attrs["shape"])
            axis = plan.axes[out] - (out.type.ndim - rank)
            shape: Shape = tuple(plan.chunk if d == axis else n for d, n in enumerate(attrs["shape"]))
            attrs = attrs.replace(shape=shape)
        inputs = tuple(Var(plan.cut(v)) if v in plan.axes else v for v in equation.inputs)
        cut = Equation(equation.op, inputs, attrs, (Var(plan.cut(out)),), equation.where)
        yield out, self.body.equation(cut, operands)[0]

    # --- reductions ---------------------------------------------------------------------------

    def start(self, equation: Equation) -> Tile:
        """The variable that a reduction over the chunks goes on in; 16-bit floats in float32, booleans as
        numbers."""
        type_ = self.wide(equation.output.type)
        identity = literal(reduction.identity_of(equation.op, equation.output.type.dtype), type_.dtype)
        shape = list(padded(type_.shape)) if type_.shape else "()"
        return self.body.writer.tile(
            f"tl.full({shape}, {identity}, {language_name(type_.dtype)})", type_, base="carry"
        )

    def add(self, total: Tile, equation: Equation, tile: Tile, position: str) -> None:
        """Go on with the elements of one chunk."""
        plan, name, x = self.plan, equation.op.name, equation.inputs[0]
        dtype: np.dtype = total.type.dtype
        identity = reduction.identity_of(equation.op, x.type.dtype)
        axes = sorted((a + x.type.ndim for a in equation.attrs["axes"]), reverse=True)
        text = self.body.filled(tile, axes, identity)
        text = f"{text}.to(tl.int32)" if x.type.dtype == dtypes.bool_ else text
        if plan.size % plan.chunk:
            lane = access_.lane(tile.shape, plan.axes[x])
            inside = f"{position} * {plan.chunk} + {lane} < {plan.size}"
            text = (
                f"tl.where({inside}, {text}, tl.full((), {literal(identity, dtype)}, {language_name(dtype)}))"
            )
        for axis in axes:
            text = reductions.reduced(name, text, axis, dtype)
        text = f"{text}.to({language_name(dtype)})" if dtype in dtypes.INTEGERS else text
        join = reduction.MONOIDS[name].name
        found = scalar.expression(join, [total.name, text], [dtype, dtype], ir.NO_ATTRS)
        self.body.writer.line(f"{total.name} = {found}")

    def wide(self, type_: ArrayType) -> ArrayType:
        """The type arithmetic goes on in."""
        if type_.dtype == dtypes.bool_:
            return type_.update(dtype=dtypes.int32)
        return type_ if scalar.is_wide(type_.dtype) else type_.update(dtype=dtypes.float32)
