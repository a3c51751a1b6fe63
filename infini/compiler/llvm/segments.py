"""Where along a tile the conditions of a body change, so that between two such places they are constants.

What pads, joins arrays, rolls or masks by place is a choice whose condition compares a place to a number, or
an operand that ends somewhere inside the tile. Cut there, a loop has no choices left in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.compiler.llvm.schedule import Schedule
from infini.core import dtypes
from infini.core.ir import ArrayType, Equation, Var
from infini.tile.program import Kernel

# What is read elsewhere in the tile.
MOVING: Final = frozenset({"reshape", "transpose", "slice", "dynamic_slice", "rev", "gather"})
MAX_CUTS: Final = 7
POINT: Final = 2  # elements, as of a complex number, that a nest reads together before it writes one
MAX_GRID_CUTS: Final = 3
COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}
Line: TypeAlias = tuple[int, int]  # a number at place t: the first times t, and the second
_FAR: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where conditions change.

    Args:
        places: in the tile, or numbers of programs along a dimension of the grid.
        lines: what is known of the body between them.
        dimension: of the grid; -1 for the tile.
    """

    places: tuple[int, ...]
    lines: Lines
    dimension: int = -1


def cuts(kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule) -> Cuts | None:
    """Cuts of the tile of a kernel that has one pass over one dimension; None when there are none or many."""
    if not _is_plain(plan):
        return None
    (size,) = plan.passes[0].space
    if size <= POINT:
        return None  # it may be written over an operand, so everything is read before
    lines = Lines(plan, None)
    found = _compared(plan, lines, size)
    for load, type_ in zip(kernel.loads, in_types, strict=False):
        if load.fill is None or load.tile != (size,):
            continue
        for d, length in enumerate(type_.shape):
            if not any(load.grid_strides[d]):
                found |= _ends((load.tile_strides[d][0], load.offsets[d]), length, size)
    return Cuts(tuple(sorted(found)), lines) if 0 < len(found) <= MAX_CUTS else None


def grid_cuts(kernel: Kernel, in_types: Sequence[ArrayType], plan: Schedule) -> Cuts | None:
    """Cuts of the grid of such a kernel, along the dimension that has the fewest."""
    if not _is_plain(plan) or kernel.extents:
        return None
    choices = []
    for dimension, size in enumerate(kernel.grid):
        lines = Lines(plan, kernel.body.params[len(kernel.loads) + dimension])
        found = _compared(plan, lines, size)
        for load, type_ in zip(kernel.loads, in_types, strict=False):
            for d, length in enumerate(type_.shape) if load.fill is not None else ():
                others = [n for i, n in enumerate(load.grid_strides[d]) if i != dimension]
                if not any(others) and not any(load.tile_strides[d]):
                    found |= _ends((load.grid_strides[d][dimension], load.offsets[d]), length, size)
        if 0 < len(found) <= MAX_GRID_CUTS:
            choices.append(Cuts(tuple(sorted(found)), lines, dimension))
    return min(choices, key=lambda choice: len(choice.places), default=None)


def _is_plain(plan: Schedule) -> bool:
    """Whether a kernel has one pass over one dimension, and reads nothing elsewhere in the tile."""
    if len(plan.passes) != 1 or len(plan.passes[0].space) != 1 or plan.passes[0].axes is not None:
        return False
    return plan.passes[0].block is None and not any(e.op.name in MOVING for e in plan.body.equations)


def _compared(plan: Schedule, lines: Lines, size: int) -> set[int]:
    found: set[int] = set()
    for equation in plan.body.equations:
        if equation.op.name in COMPARISONS:
            x, y = (lines.line(v) for v in equation.inputs)
            if x is not None and y is not None:
                found |= _flips(x, y, equation.op.name, size)
    return found


def _ends(line: Line, length: int, size: int) -> set[int]:
    """Where a line enters and leaves an array."""
    return _flips(line, (0, 0), "ge", size) | _flips(line, (0, length), "lt", size)


def _flips(x: Line, y: Line, comparison: str, size: int) -> set[int]:
    """Places from 1 to `size - 1` at which a comparison of two lines has another result than just before."""
    step, start = x[0] - y[0], x[1] - y[1]
    if step == 0:
        return set()
    holds = COMPARISONS[comparison]
    crossing = -start // step
    near = range(max(1, crossing - 1), min(size - 1, crossing + 2) + 1)
    return {t for t in near if holds(step * t + start, 0) != holds(step * (t - 1) + start, 0)}


class Lines:
    """What is known of integers of a body: those that are a line along the tile, or along the grid.

    Args:
        plan: the body in passes.
        program_id: number of a program along a dimension of the grid; None for the tile.
    """

    def __init__(self, plan: Schedule, program_id: Var | None) -> None:
        self.definitions, self.constants = plan.definitions, dict(plan.body.consts)
        self.program_id = program_id
        self.known: dict[Var, Line | None] = {}

    def line(self, var: Var) -> Line | None:
        """The line that a variable is; None when it depends on anything else."""
        if var not in self.known:
            self.known[var] = self._line(var) if var.type.dtype == dtypes.int32 else None
        return self.known[var]

    def _line(self, var: Var) -> Line | None:
        constant = self.constants.get(var)
        if constant is not None:
            return (0, int(constant.item().real)) if constant.is_scalar else None
        if var is self.program_id:
            return (1, 0)
        equation = self.definitions.get(var)
        if equation is None or var.type.ndim > 1:
            return None
        name = equation.op.name
        if name == "iota":
            return None if self.program_id is not None else (int(var.type.size > 1), 0)
        if name not in ("add", "sub", "mul", "broadcast_in_dim"):
            return None
        operands = [self.line(v) for v in equation.inputs]
        if name == "broadcast_in_dim":
            return operands[0] if operands[0] is not None and operands[0][0] == 0 else None
        x, y = operands
        if x is None or y is None:
            return None
        if name == "mul":
            if x[0] and y[0]:
                return None
            found = (x[0] * y[1] + y[0] * x[1], x[1] * y[1])
        else:
            sign = 1 if name == "add" else -1
            found = (x[0] + sign * y[0], x[1] + sign * y[1])
        # Far from where 32 bits end, for all places that there are.
        return found if abs(found[0]) < _FAR and abs(found[1]) < _FAR else None

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
