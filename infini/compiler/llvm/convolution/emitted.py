"""What the emitters of convolutions share: finished task functions, blocks of two sizes, repeated values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I1, scalar
from infini.core import dtypes


def finish(kind: str, functions: Sequence[Function], num_tasks: int, cost_ns: float) -> TaskFunction:
    """A task function of its text, under a name made from it."""
    text = "".join(f.finish() for f in functions)
    name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    declares = frozenset[str]().union(*(f.declares for f in functions))
    return TaskFunction(name, text.replace("@TASK", f"@{name}"), declares, num_tasks, 0, cost_ns)


def sizes(f: Function, number: Int, count: int, usual: int, total: int) -> Iterator[int]:
    """The size of block `number` of `count` that cut `total`, each yielded inside the branch taken for it."""
    rest = total - usual * (count - 1)
    if count == 1:
        yield rest
    elif rest == usual:
        yield usual
    else:
        is_last = f.compare("eq", f.integer(number), f.integer(count - 1))
        with f.when(f.binary("xor", is_last, f.constant(True, I1))):
            yield usual
        with f.when(is_last):
            yield rest


def splat(f: Function, pointer: Value, dtype: np.dtype, compute: np.dtype, lanes: int) -> Value:
    """An element from memory in all lanes of a register."""
    if (dtype, compute) == (dtypes.bfloat16, dtypes.float32):
        # The element in both halves of every lane, and then without the lower ones, is its float32.
        halves = f.splat(f.load(pointer, scalar("i16")), 2 * lanes)
        pairs = f.convert("bitcast", halves, halves.type.with_element("i32").with_lanes(lanes))
        return f.bitcast(f.binary("and", pairs, f.constant(-0x10000, pairs.type)), "float")
    one = operations.convert(f, dtype, registers.load(f, pointer, dtype, 1), new_dtype=compute)
    return f.splat(one, lanes)
