"""Writing rows of tokens into a cache of blocks, in place: a task has some heads and goes through all tokens
in order, so of equal slots the last one stays whatever the threads.
"""

from __future__ import annotations

import math
from typing import Final

from infini.compiler.llvm import movement
from infini.compiler.llvm.builder import I32, I64, Function, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core.ir import ArrayType, Attrs

SMALL_BYTES: Final = 64 << 10  # of all rows, up to which they are one task


def emit(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """Native code of `paged_update`: the result, behind the operands, begins as the cache."""
    cache, new, slots = types
    blocks, heads, size = cache.shape[:3]
    row = math.prod(cache.shape[3:]) * cache.dtype.itemsize
    (count,) = slots.shape
    num_tasks = 1 if new.nbytes <= SMALL_BYTES else heads
    share = heads // num_tasks

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        _, rows, places, out = pointers
        first = f.mul(task, share) if num_tasks > 1 else 0
        with f.loop(0, count) as token:
            slot = f.convert("sext", f.load(f.at(places, token.index, "i32"), I32), I64)
            # As an unsigned number a negative slot is large.
            with f.when(f.compare("ult", slot, f.integer(blocks * size))):
                block, place = f.divide(slot, size)
                with f.loop(first, f.add(first, share), runs=True) as head:
                    source = f.add(f.mul(token.index, heads), head.index)
                    into = f.add(f.mul(f.add(f.mul(block, heads), head.index), size), place)
                    movement.copy_bytes(
                        f, f.at(out, f.mul(into, row), "i8"), f.at(rows, f.mul(source, row), "i8"), row
                    )

    cost = 2 * new.nbytes * movement.BYTE_NS + count * heads * movement.RUN_NS
    return (movement.make_task("paged_update", 4, num_tasks, cost, write),)
