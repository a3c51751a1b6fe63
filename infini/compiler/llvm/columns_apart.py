"""Kernels whose column reductions need each other's results, taken apart into one kernel per step.

A variance over leading axes reads its columns twice: for the mean, then for the squares. In one kernel each
program reads 64 columns of all rows, in pieces a row apart, and finds little of them in the cache the second
time. As two kernels both walk whole rows in the order of memory (`by_rows`).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import columns, schedule
from infini.compiler.llvm.columns import Columns
from infini.compiler.llvm.schedule import REDUCTIONS
from infini.core.ir import ArrayType, Equation, Program, Shape, Var
from infini.tile.program import Access, Kernel

MIN_BYTES: Final = 1 << 20  # of an array whose columns are reduced
FEW_PROGRAMS: Final = 4


def split(program: Program) -> Program:
    """The program with such kernels taken apart."""
    equations: list[Equation] = []
    for equation in program.equations:
        equations += _split(equation) if equation.op.name == "kernel" else [equation]
    if len(equations) == len(program.equations):
        return program
    return dataclasses.replace(program, equations=tuple(equations))


def _split(equation: Equation) -> list[Equation]:
    kernel: Kernel = equation.attrs["kernel"]
    if equation.attrs.get("definition") is not None:  # a user's kernel is left as it is
        return [equation]
    parts = _parts(kernel, tuple(v.type for v in equation.inputs))
    if parts is None:
        return [equation]
    made = tuple(Var(type_) for type_ in parts.first.outputs)
    first = dataclasses.replace(
        equation,
        inputs=tuple(equation.inputs[i] for i in parts.first_reads),
        attrs=equation.attrs.replace(kernel=parts.first),
        outputs=made,
        via="columns_apart",
    )
    rest = dataclasses.replace(
        equation,
        inputs=(*(equation.inputs[i] for i in parts.rest_reads), *made),
        attrs=equation.attrs.replace(kernel=parts.rest),
        via="columns_apart",
    )
    return [first, *_split(rest)]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The first reductions of a kernel and what is left of it, and which operands each reads; what is left
    reads the results of the first besides."""

    first: Kernel
    first_reads: tuple[int, ...]
    rest: Kernel
    rest_reads: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def _parts(kernel: Kernel, in_types: tuple[ArrayType, ...]) -> _Parts | None:
    """How to take a kernel apart; None when it has one step, or a part would not walk rows."""
    body = kernel.body
    if kernel.extents or any(e.op.name in schedule.BLOCKS for e in body.equations):
        return None
    if sum(e.op.name in REDUCTIONS for e in body.equations) < 2:
        return None
    plan = schedule.make_schedule(body)
    steps = [p for p in plan.passes if p.reductions]
    if len(steps) < 2 or steps[0].stores or steps[0].kept or steps[0].axes != {0} or len(steps[0].space) != 2:
        return None
    results = tuple(e.output for e in steps[0].reductions)
    stored = _store_of(kernel, results[0].type.shape)
    if stored is None:
        return None
    access, shape = stored
    outputs = tuple(ArrayType(shape, v.type.dtype) for v in results)
    ids = body.params[len(kernel.loads) :]
    first, first_reads = _part(kernel, results, ())
    rest, rest_reads = _part(kernel, body.results, results)
    parts = _Parts(
        dataclasses.replace(
            kernel,
            loads=tuple(kernel.loads[i] for i in first_reads),
            stores=(access,) * len(results),
            outputs=outputs,
            body=dataclasses.replace(first, params=(*first.params, *ids)),
        ),
        first_reads,
        dataclasses.replace(
            kernel,
            loads=(*(kernel.loads[i] for i in rest_reads), *(access,) * len(results)),
            body=dataclasses.replace(rest, params=(*rest.params, *results, *ids)),
        ),
        rest_reads,
    )
    rest_types = (*(in_types[i] for i in rest_reads), *outputs)
    found = columns.find(parts.first, tuple(in_types[i] for i in first_reads))
    if found is None or not _pays(found):
        return None
    if columns.find(parts.rest, rest_types) is None and _parts(parts.rest, rest_types) is None:
        return None
    return parts


def _pays(found: Columns) -> bool:
    """Whether programs find little in the cache the second time, or are too few for the threads."""
    nbytes = found.rows * found.width * max(e.inputs[0].type.dtype.itemsize for e in found.reductions)
    is_spread = found.width > found.plan.passes[0].space[1]
    return (is_spread and nbytes >= MIN_BYTES) or found.kernel.num_programs < FEW_PROGRAMS


def _store_of(kernel: Kernel, tile: Shape) -> tuple[Access, Shape] | None:
    """A store of tiles like the results of the reductions, and the shape of its array."""
    for access, type_ in zip(kernel.stores, kernel.outputs, strict=True):
        if access.tile == tile and access.fill is None:
            return access, type_.shape
    return None


def _part(
    kernel: Kernel, results: tuple[Var, ...], given: tuple[Var, ...]
) -> tuple[Program, tuple[int, ...]]:
    """The part of a body that makes some of its variables, from operands and given ones; and the numbers of
    the operands it reads, which are its parameters."""
    body = kernel.body
    needed: set[Var] = set(results)
    equations: list[Equation] = []
    for equation in reversed(body.equations):
        if needed.intersection(equation.outputs) and not set(equation.outputs) <= set(given):
            equations.append(equation)
            needed.update(equation.inputs)
    tiles = body.params[: len(kernel.loads)]
    reads = tuple(i for i, v in enumerate(tiles) if v in needed)
    consts = tuple((v, c) for v, c in body.consts if v in needed)
    params = tuple(tiles[i] for i in reads)
    return Program(params, tuple(reversed(equations)), results, consts), reads
