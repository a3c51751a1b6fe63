"""From the equations of a fused program to Triton sources: the table of routes that every backend with a
Triton compiler shares.

`STRUCTURE` are the operations that such a backend arranges by itself: loops, branches, calls of the host,
and other names for the same memory. Everything else is in `ROUTES`, or goes into kernels, or is decomposed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.compiler import expression
from infini.compiler.grouping import is_fusable, is_reduction
from infini.compiler.triton import (
    attention,
    cumulative,
    fourier,
    launching,
    matmul,
    movement,
    naming,
    paged,
    sorting,
)
from infini.compiler.triton.emit import emit_triton
from infini.compiler.triton.source import LANGUAGE_NAMES, TritonSource
from infini.compiler.triton.target import GENERIC, Target
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.lax import contraction, indexing

Names: TypeAlias = Mapping[Var, str]
Sources: TypeAlias = Callable[[Sequence[ArrayType], Attrs, Target], tuple[TritonSource, ...]]

# Operations of dtypes that kernels do not compute with are decomposed into those of wider ones.
_COMPUTING: Final = cumulative.NAMES | expression.REDUCTIONS
STRUCTURE: Final = frozenset({
    "reshape", "view_as_complex", "view_as_real", "optimization_barrier", "scan", "while", "cond",
    "debug_callback", "pure_callback", "io_callback",
})  # fmt: skip


def has_route(equation: Equation) -> bool:
    """Whether Triton has a route for an equation, alone or inside a kernel."""
    kind = indexing.KINDS.get(equation.op.name)
    if kind is not None and kind.combine and equation.inputs[0].type.dtype not in LANGUAGE_NAMES:
        return False  # scatters that overwrite move bits of any dtype, those that compute do not
    if equation.op.name in _COMPUTING and equation.inputs[0].type.dtype not in LANGUAGE_NAMES:
        return False
    if equation.op.name == "stop_gradient":
        return False  # it is its operand, and the passes see more without it
    if equation.op.name in attention.NAMES:
        return attention.is_suited([v.type for v in equation.inputs], equation.attrs)
    if equation.op.name == paged.NAME:
        return paged.is_suited([v.type for v in equation.inputs], equation.attrs)
    return (
        equation.op.name in ROUTES
        or equation.op.name in STRUCTURE
        or is_fusable(equation)
        or is_reduction(equation)
        or not any(v.type.size for v in equation.outputs)
    )


def sources(
    equation: Equation, target: Target = GENERIC, names: Names | None = None
) -> tuple[TritonSource, ...]:
    """The functions that compute an equation of a fused program, in their order.

    Args:
        equation: an equation whose operation is in `ROUTES`.
        target: what the text is for.
        names: the user's names of values.

    Raises:
        LoweringError: it has no Triton form for this target.
    """
    roles = {} if names is None else roles_of(equation, names)
    if equation.op.name == "kernel":
        types = tuple(v.type for v in equation.inputs)
        kernel = equation.attrs["kernel"]
        source = launching.chosen(emit_triton(kernel, types, target=target, names=roles), kernel)
        return (dataclasses.replace(source, where=equation.where),)
    types = tuple(v.type for v in equation.inputs)
    return tuple(marked(s, equation, roles) for s in ROUTES[equation.op.name](types, equation.attrs, target))


def marked(source: TritonSource, equation: Equation, roles: Mapping[str, str]) -> TritonSource:
    """A source with the user's names and line."""
    where = equation.where
    found = dataclasses.replace(source.renamed(roles), where=where)
    return found if where is None or not where.file else found.commented(naming.note(where))


def roles_of(equation: Equation, names: Names) -> dict[str, str]:
    """The user's names of operands and results by role; of equal names the first stays."""
    places = [*((f"x{i}", v) for i, v in enumerate(equation.inputs))]
    places += [(f"y{i}", v) for i, v in enumerate(equation.outputs)]
    found: dict[str, str] = {}
    for role, var in places:
        name = names.get(var, "")
        if name and name not in found.values():
            found[role] = name
    return found


def scratch_bytes(equation: Equation) -> int:
    """Scratch memory that the functions of an equation share."""
    name, types = equation.op.name, tuple(v.type for v in equation.inputs)
    if name == "sort":
        return sorting.scratch_bytes(types, equation.attrs)
    if name == paged.NAME:
        return paged.scratch_bytes(types, equation.attrs)
    if name == "fft":
        return fourier.scratch_bytes(types, equation.attrs)
    if name in cumulative.NAMES:
        return cumulative.scratch_bytes(name, types, equation.attrs)
    return movement.scratch_bytes(name, types) if name in indexing.KINDS else 0


def product(x: ArrayType, y: ArrayType, attrs: Attrs, target: Target = GENERIC) -> TritonSource:
    """A contraction without loop dimensions by a tile kernel, with the usual tiles."""
    kernel = matmul.matmul_kernel(x, y, attrs["spec"], attrs["dtype"])
    return emit_triton(kernel, (x, y), name="matmul", target=target)


@dataclass(frozen=True, slots=True)
class Emitted:
    """An equation of a fused program and the functions that compute it."""

    equation: Equation
    sources: tuple[TritonSource, ...]


def of_program(fused: Program, target: Target = GENERIC) -> Iterator[Emitted]:
    """The functions of every equation of a fused program, those of its loops and branches included."""
    names = naming.of_values(fused)
    for equation in fused.equations:
        if equation.op.name in ROUTES and any(v.type.size for v in equation.outputs):
            yield Emitted(equation, sources(equation, target, names))
        elif equation.op.name in STRUCTURE:
            for inner in equation.programs:
                yield from of_program(inner, target)


def _dot(types: Sequence[ArrayType], attrs: Attrs, target: Target) -> tuple[TritonSource, ...]:
    a, b, _ = contraction.parse_spec(attrs["spec"])
    x, y = types
    assert x.ndim == len(a) and y.ndim == len(b), "the pass `contractions` gives loop dimensions letters"
    return (product(x, y, attrs, target),)


def _scanned(name: str) -> Sources:
    return lambda types, attrs, target: cumulative.cumulative(name, types, attrs, target)


def _kernel(types: Sequence[ArrayType], attrs: Attrs, target: Target) -> tuple[TritonSource, ...]:
    return (emit_triton(attrs["kernel"], types, target=target),)


ROUTES: Final[Mapping[str, Sources]] = {
    "kernel": _kernel,
    "dot": _dot,
    "attention": attention.attention,
    "attention_sums": attention.attention_sums,
    "attention_gradient": attention.attention_gradient,
    paged.NAME: paged.paged_attention,
    "gather": movement.gather,
    **{name: movement.scatter(name) for name in indexing.KINDS},
    "concatenate": movement.concatenate,
    "dynamic_slice": movement.dynamic_slice,
    "dynamic_update_slice": movement.dynamic_update_slice,
    "pad": movement.pad,
    "fft": fourier.fft,
    "sort": sorting.sort,
    **{name: _scanned(name) for name in sorted(cumulative.NAMES)},
}
