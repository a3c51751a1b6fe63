"""Where along a tile the conditions of a body change, so that between two such places they are constants.

What pads, joins arrays, rolls or masks by place is a choice whose condition compares a place to a number, or
an operand that ends somewhere inside the tile. Cut there, a loop has no choices left in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from infini.compiler.llvm.schedule import Schedule
from infini.core import dtypes, ir
from infini.core.ir import ArrayType, Equation, Var
from infini.tile.program import Kernel

MAX_CUTS: Final = 7
COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}
_INT32: Final = range(-(1 << 31), 1 << 31)


def cuts(kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule) -> tuple[int, ...]:
    """Places inside the tile of a kernel that has one pass over one dimension; none when there are many."""
    if len(plan.passes) != 1 or len(plan.passes[0].space) != 1 or plan.passes[0].axes is not None:
        return ()
    (size,) = plan.passes[0].space
    if any(equation.op.name in _MOVING for equation in kernel.body.equations):
        return ()
    found: set[int] = set()
    for load, type_ in zip(kernel.loads, in_types, strict=False):
        if load.fill is None or load.tile != (size,):
            continue
        for d, length in enumerate(type_.shape):
            if not any(load.grid_strides[d]):
                line = (load.tile_strides[d][0], load.offsets[d])
                found |= _flips(line, (0, 0), "ge", size) | _flips(line, (0, length), "lt", size)
    places = Places(plan.definitions, dict(kernel.body.consts))
    for equation in kernel.body.equations:
        if equation.op.name in COMPARISONS:
            x, y = (places.line(v) for v in equation.inputs)
            if x is not None and y is not None:
                found |= _flips(x, y, equation.op.name, size)
    return tuple(sorted(found)) if len(found) <= MAX_CUTS else ()


_MOVING: Final = frozenset({"reshape", "transpose", "slice", "rev"})  # what is read elsewhere in the tile
Line = tuple[int, int]  # a number at place t of the tile: the first times t, and the second


def _flips(x: Line, y: Line, comparison: str, size: int) -> set[int]:
    """Places from 1 to `size - 1` at which a comparison of two lines has another result than just before."""
    step, start = x[0] - y[0], x[1] - y[1]
    if step == 0:
        return set()
    holds = COMPARISONS[comparison]
    crossing = -start // step
    near = range(max(1, crossing - 1), min(size - 1, crossing + 2) + 1)
    return {t for t in near if holds(step * t + start, 0) != holds(step * (t - 1) + start, 0)}


class Places:
    """What is known of integers of a body: those that are a line along the tile.

    Args:
        definitions: equation of each variable that has one.
        constants: constant of each variable that is one.
    """

    def __init__(self, definitions: Mapping[Var, Equation], constants: Mapping[Var, ir.Constant]) -> None:
        self.definitions, self.constants = definitions, constants
        self.known: dict[Var, Line | None] = {}

    def line(self, var: Var) -> Line | None:
        """The line that a variable is; None when it depends on anything else."""
        if var not in self.known:
            self.known[var] = self._line(var) if var.type.dtype == dtypes.int32 else None
        return self.known[var]

    def _line(self, var: Var) -> Line | None:
        constant = self.constants.get(var)
        if constant is not None:
            return (0, int(constant.item())) if constant.is_scalar else None
        equation = self.definitions.get(var)
        if equation is None or var.type.ndim > 1:
            return None
        name = equation.op.name
        if name == "iota":
            return (1, 0) if var.type.size > 1 else (0, 0)
        if name not in ("add", "sub", "mul", "broadcast_in_dim"):
            return None
        operands = [self.line(v) for v in equation.inputs]
        if name == "broadcast_in_dim":
            return operands[0] if operands[0] is not None and operands[0][0] == 0 else None
        x, y = operands
        if x is None or y is None:
            return None
        found: Line
        if name == "mul":
            if x[0] and y[0]:
                return None
            found = (x[0] * y[1] + y[0] * x[1], x[1] * y[1])
        else:
            sign = 1 if name == "add" else -1
            found = (x[0] + sign * y[0], x[1] + sign * y[1])
        size = max(var.type.size, 1)
        does_fit = found[1] in _INT32 and found[0] * (size - 1) + found[1] in _INT32
        return found if does_fit else None

    def holds(self, equation: Equation, segment: range) -> bool | None:
        """What a comparison gives all along a segment of the tile that no cut divides; None if not known."""
        x, y = (self.line(v) for v in equation.inputs)
        if x is None or y is None:
            return None
        holds = COMPARISONS[equation.op.name]
        first, last = (holds(x[0] * t + x[1], y[0] * t + y[1]) for t in (segment[0], segment[-1]))
        # "eq" is the only one that may hold inside and at neither end, "ne" at both ends and not inside.
        if equation.op.name in ("eq", "ne") and len(segment) > 2 and x[0] != y[0]:
            step, start = x[0] - y[0], y[1] - x[1]
            if start % step == 0 and start // step in segment:
                return None
        return first if first == last else None
