"""What the emitters of this folder hand to whoever assembles a program: the native code of one phase, as
text.

A phase is a number of independent tasks that the pool's threads claim one by one. Every task function has
one shape, `void name(ptr args, i64 task)`, so the runtime needs to know nothing about what it runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskFunction:
    """Native code of one phase: `void name(ptr args, i64 task)`.

    `args` points to an array of pointers: operands in order, then outputs, then (when any phase of the same
    operation has `scratch_bytes`) one scratch pointer, aligned to 64 bytes.

    Args:
        name: symbol of the function, derived from a hash of its text, so equal kernels share one function.
        text: LLVM IR of the function and its private helpers, which have internal linkage.
        declares: declarations the text needs (intrinsics, functions of the C library).
        num_tasks: fixed by the shapes, never by the number of threads, so results do not depend on that.
        scratch_bytes: shared memory that stays alive during this phase and the following ones of the same
            operation.
        cost_ns: estimated time of all tasks on one thread, to decide whether to wake the workers.
    """

    name: str
    text: str
    declares: frozenset[str]
    num_tasks: int
    scratch_bytes: int = 0
    cost_ns: float = 0.0
