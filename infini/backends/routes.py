"""How a backend computes an operation: the rules that backends share when they say which route they take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from infini.core import dtypes, errors, primitive
from infini.core.backend import Route
from infini.core.ir import Equation, Program
from infini.core.primitive import Effect, Primitive

# Operations of a program over a mesh, besides collectives; the partitioner takes them out.
_MESH: Final = frozenset({"axis_index", "shard_map", "sharding_constraint"})
# Operations that a transform turns into values before anything is compiled: checkify's.
_TRANSFORMED: Final = frozenset({"check"})


def without_program(op: Primitive, *, has_mesh: bool) -> Route | None:
    """The route of an operation that no single-device program is compiled with, or None for the others.

    Args:
        op: operation.
        has_mesh: whether the backend runs programs over several devices.
    """
    if op.effect is Effect.COLLECTIVE or op.name in _MESH:
        return "mesh" if has_mesh else "hole"
    is_defined = op.has(primitive.REFERENCE) or op.has(primitive.DECOMPOSE)
    if op.name in _TRANSFORMED or (op.has(primitive.TRANSPOSE) and not is_defined):
        return "transform"  # or it stands for a linear function until that is transposed
    return None


def compiled(
    program: Program,
    op: Primitive,
    *,
    passes: Callable[[Program], Program],
    has_route: Callable[[Equation], bool],
    routes: Collection[str],
    inlined: Collection[str],
    library: Collection[str] = (),
) -> Route:
    """The route of an operation in a backend that is made of passes and a table of routes.

    Args:
        program: program around the operation.
        op: operation.
        passes: what the backend does before lowering.
        has_route: whether it lowers an equation itself, alone or inside a kernel.
        routes: names of the operations that it lowers alone; all that its passes leave must be here.
        inlined: names of the operations whose bodies the passes put in their place.
        library: names of those in `routes` that call a library.
    """
    mine = [equation for equation in program.equations if equation.op is op]
    is_plain = not any(v.type.dtype in dtypes.COMPLEX for e in mine for v in (*e.inputs, *e.outputs))
    if mine and is_plain and not op.is_higher_order and all(map(has_route, mine)):
        # The passes leave it, or put it into a kernel; only complex numbers are rewritten in any case.
        return _own_route(op, routes, library)
    try:
        lowered = passes(program)
    except errors.InfiniError:
        return "hole"
    if any(equation.op.name not in routes and _has_elements(equation) for equation in _all(lowered)):
        return "hole"
    if op.name in inlined:
        return "inlined"
    if not mine and op.name not in routes:  # nobody gave an example
        return "decomposition" if op.has(primitive.DECOMPOSE) else "hole"
    return _own_route(op, routes, library) if all(map(has_route, mine)) else "decomposition"


def _own_route(op: Primitive, routes: Collection[str], library: Collection[str]) -> Route:
    if op.name in routes:
        return "library" if op.name in library else "own"
    return "kernel"


def _has_elements(equation: Equation) -> bool:
    return not equation.outputs or any(v.type.size for v in equation.outputs)


def _all(program: Program) -> Iterator[Equation]:
    """Equations of a program and of the loops and branches in it; the body of a kernel is its own affair."""
    for equation in program.equations:
        yield equation
        if equation.op.name != "kernel":
            for inner in equation.programs:
                yield from _all(inner)
