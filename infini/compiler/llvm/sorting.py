"""Native code of `sort`: a stable merge sort of row positions, one row after another, rows spread over tasks.

The order of the keys is that of numbers, with NaN last and zeros of both signs equal; operands follow their
positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from infini.compiler.llvm import builder as b, movement, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs

_NS_PER_STEP = 3.0


def sort(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `sort` over the last dimension."""
    length = types[0].shape[-1]
    rows = math.prod(types[0].shape[:-1])
    steps = length * max(1, (length - 1).bit_length())
    chunks = movement.Chunks.of(rows, steps * _NS_PER_STEP * 10)
    keys = types[: attrs["num_keys"]]
    row_bytes = 2 * 4 * length

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        operands, outputs, scratch = pointers[: len(types)], pointers[len(types) : -1], pointers[-1]
        first = f.at(scratch, f.mul(task, row_bytes) if chunks.num_tasks > 1 else 0, "i8")
        second = f.at(first, length, "i32")
        with chunks.loop(f, task) as row:
            start = f.mul(row, length)
            at = [
                f.at(p, start, registers.memory_element(t.dtype))
                for p, t in zip(operands, types, strict=True)
            ]
            order = _merge_sort(f, at[: len(keys)], [t.dtype for t in keys], length, first, second)
            for source, out, type_ in zip(at, outputs, types, strict=True):
                element = b.scalar(registers.memory_element(type_.dtype))
                to = f.at(out, start, element.element)
                with f.loop(0, length) as loop:
                    place = f.convert("zext", f.load(f.at(order, loop.index, "i32"), b.I32), b.I64)
                    f.store(
                        f.load(f.at(source, place, element.element), element),
                        f.at(to, loop.index, element.element),
                    )

    task = movement.make_task(
        "sort", 2 * len(types) + 1, chunks.num_tasks, rows * steps * _NS_PER_STEP, write
    )
    return (dataclasses.replace(task, scratch_bytes=chunks.num_tasks * row_bytes),)


def _merge_sort(
    f: Function, keys: Sequence[Value], dtypes_: Sequence[np.dtype], length: int, first: Value, second: Value
) -> Value:
    """Positions of a row in order; the two buffers take turns."""
    with f.loop(0, length) as loop:
        f.store(f.convert("trunc", f.integer(loop.index), b.I32), f.at(first, loop.index, "i32"))
    source, target, width = first, second, 1
    while width < length:
        with f.loop(0, length, 2 * width) as block:
            low = block.index
            middle = f.minimum(f.add(low, width), length)
            high = f.minimum(f.add(low, 2 * width), length)
            with f.loop(low, high, 1, [low, middle], runs=True) as merge:
                left, right = merge.carried
                a = _position(f, source, f.minimum(left, length - 1))
                c = _position(f, source, f.minimum(right, length - 1))
                has_left, has_right = f.compare("slt", left, middle), f.compare("slt", right, high)
                # Stable: the right one goes first only when it is strictly smaller.
                takes_right = f.binary("and", has_right, _less(f, keys, dtypes_, c, a))
                no_left = f.binary("xor", has_left, f.constant(True, b.I1))
                right_first = f.binary("or", takes_right, no_left)
                chosen = f.select(right_first, c, a)
                f.store(f.convert("trunc", chosen, b.I32), f.at(target, merge.index, "i32"))
                step = f.convert("zext", right_first, b.I64)
                merge.next = [
                    _as_value(f, f.add(left, f.sub(1, step))),
                    _as_value(f, f.add(right, step)),
                ]
        source, target, width = target, source, 2 * width
    return source


def _as_value(f: Function, number: Int) -> Value:
    return f.integer(number)


def _position(f: Function, buffer: Value, place: Value) -> Value:
    return f.convert("zext", f.load(f.at(buffer, place, "i32"), b.I32), b.I64)


def _less(f: Function, keys: Sequence[Value], dtypes_: Sequence[np.dtype], i: Value, j: Value) -> Value:
    """Whether the element at `i` comes before the one at `j`, by the first key that tells them apart."""
    result: Value | None = None
    for pointer, dtype in reversed(list(zip(keys, dtypes_, strict=True))):
        element = registers.memory_element(dtype)
        x = registers.load(f, f.at(pointer, i, element), dtype, 1)
        y = registers.load(f, f.at(pointer, j, element), dtype, 1)
        before, after = _before(f, dtype, x, y), _before(f, dtype, y, x)
        if result is not None:
            tied = f.binary("xor", after, f.constant(True, b.I1))
            before = f.binary("or", before, f.binary("and", tied, result))
        result = before
    assert result is not None
    return result


def _before(f: Function, dtype: np.dtype, x: Value, y: Value) -> Value:
    if x.type.is_float:
        less = f.compare("olt", x, y)
        nan_last = f.binary("and", f.compare("uno", y, y), f.compare("ord", x, x))
        return f.binary("or", less, nan_last)
    return f.compare("slt" if dtype in dtypes.SIGNED else "ult", x, y)
