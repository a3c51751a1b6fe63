"""Sums in parts: where a result has few elements and each is a long sum, tasks share the sum and not the
result. Parts follow from the shapes and are added in order, so results do not depend on the threads.
"""

from __future__ import annotations

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int
from infini.compiler.llvm.convolution.emitted import finish, sizes
from infini.compiler.llvm.convolution.problem import Problem
from infini.compiler.llvm.movement import Chunks
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR

NS_PER_ELEMENT = 0.1
TASK_BYTES = 64 << 10


def is_whole(problem: Problem) -> bool:
    """Whether the problem writes every element of an array without gaps, so that parts are arrays too."""
    spread = [(g.size, g.out) for g in problem.groups] + [(a.size, a.other) for a in problem.m]
    last = sum((size - 1) * stride for size, stride in [*spread, problem.n[::2]])
    return problem.out_first == 0 and last + 1 == size_of(problem)


def size_of(problem: Problem) -> int:
    """Elements of the result."""
    return problem.num_groups * problem.rows * problem.n[0]


def added(
    problem: Problem, num_parts: int, *, compute: np.dtype, lanes: int, before: int = 0
) -> TaskFunction:
    """A phase that adds the parts of every sum, in order.

    Args:
        problem: the convolution; the result is its third array, scratch its fourth.
        num_parts: how often scratch has the result.
        compute: dtype of the parts.
        lanes: of a register.
        before: elements of scratch in front of the parts.
    """
    size, dtype = size_of(problem), problem.out_dtype
    element, memory = registers.memory_element(compute), registers.memory_element(dtype)
    f = Function("TASK", [(PTR, "args"), (I64, "task")])
    out, scratch = (f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in (2, 3))
    scratch = f.at(scratch, before, element)
    count = -(-size // lanes)
    per_task = max(1, TASK_BYTES // (num_parts * lanes * compute.itemsize))
    chunks = Chunks(count, min(per_task, count))
    zero = f.constant(0, registers.register_type(compute, lanes))
    with chunks.loop(f, f.parameters[1]) as number:
        start: Int = f.mul(number, lanes)
        for width in sizes(f, number, count, lanes, size):
            mask = None if width == lanes else f.first_lanes(width, lanes)
            with f.loop(0, num_parts, 1, [zero]) as parts:
                here = f.at(scratch, f.add(f.mul(parts.index, size), start), element)
                if mask is None:
                    more = registers.load(f, here, compute, lanes)
                else:
                    more = registers.masked_load(f, here, compute, mask, 0)
                parts.next = [f.binary("fadd", parts.carried[0], more)]
            total = registers.rounded(
                f, operations.convert(f, compute, parts.results[0], new_dtype=dtype), dtype
            )
            registers.store(f, total, f.at(out, start, memory), dtype, mask)
    return finish("added", [f], chunks.num_tasks, size * num_parts * NS_PER_ELEMENT)
