"""Which convolutions are native code, and the phases of one."""

from __future__ import annotations

import functools
from typing import TypeAlias

from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.convolution import blocks, depthwise, depthwise_sums, few, product
from infini.compiler.llvm.convolution.problem import Problem, analyse
from infini.compiler.llvm.movement import BYTE_NS, Chunks, make_task
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.passes import convolutions
from infini.core import dtypes, primitive
from infini.core.ir import ArrayType, Attrs

Plan: TypeAlias = few.Plan | blocks.Plan | depthwise.Plan


@functools.lru_cache(maxsize=1024)
def plans(x: ArrayType, w: ArrayType, attrs: Attrs, target: Target) -> tuple[Plan, ...] | None:
    """The plans of a `windowed_dot`, one for each part without holes; None where another way is better."""
    if not all(dtypes.is_float(d) and d.itemsize >= 2 for d in (x.dtype, w.dtype, attrs["dtype"])):
        return None
    if 0 in x.shape or 0 in w.shape:
        return None
    problems = analyse(x, w, attrs)
    if problems is None or all(_is_plain(problem, x) for problem in problems):
        return None
    found = [_plan(problem, target) for problem in problems if problem.depth]
    if not found or any(plan is None for plan in found):
        return None
    return tuple(plan for plan in found if plan is not None)


def _plan(problem: Problem, target: Target) -> Plan | None:
    return (
        depthwise.make_plan(problem, target)
        or few.make_plan(problem, target)
        or blocks.make_plan(problem, target)
    )


def _is_plain(problem: Problem, x: ArrayType) -> bool:
    """Whether no element of the image is in two windows or in none, so that patches are the image."""
    used = problem.num_groups * problem.rows * problem.depth
    return used == x.size and not any(problem.bounds)


def emit(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """Native code of a `windowed_dot` that has plans."""
    x, w = types
    chosen = plans(x, w, attrs, target)
    assert chosen is not None, "a convolution that has no plan has a decomposition"
    phases: list[TaskFunction] = []
    if len(chosen) < len(analyse(x, w, attrs) or ()):
        phases.append(_zeros(x, w, attrs))
    for plan in chosen:
        if isinstance(plan, few.Plan):
            phases += few.Emission(plan).phases()
        elif isinstance(plan, depthwise.Plan):
            kind = depthwise_sums if plan.is_sum else depthwise
            phases += kind.Emission(plan).phases()
        else:
            phases += product.Emission(plan).phases()
    return tuple(phases)


def _zeros(x: ArrayType, w: ArrayType, attrs: Attrs) -> TaskFunction:
    """Zeros everywhere: places that meet no element of the kernel are written by nobody else."""
    (out,) = convolutions.windowed_dot_p.rule(primitive.TYPE)(x, w, **attrs)

    chunks = Chunks.of(out.nbytes, 1)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        f.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        first = f.mul(task, chunks.per_task)
        count = f.minimum(f.sub(out.nbytes, first), chunks.per_task)
        place = f.at(pointers[2], first, "i8")
        f.do(f"call void @llvm.memset.p0.i64(ptr {place}, i8 0, i64 {count}, i1 false)")

    return make_task("zeros", 3, chunks.num_tasks, out.nbytes * BYTE_NS, write)
