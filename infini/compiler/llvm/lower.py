"""From a fused program to steps: each equation by its route, kernels and contractions through their emitters.

`ROUTES` is the table of operations with a route of their own; elementwise operations, views and reductions
arrive as kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from infini.compiler import expression
from infini.compiler.grouping import is_fusable
from infini.compiler.llvm import gemm, kernels, movement, operations, registers, schedule, sorting, windows
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Alias, Block, Branch, HostCall, Loop, Phase, Step
from infini.core import ir, primitive
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.tile.program import Kernel

Route = Callable[[Equation, Target], list[Step]]


def has_route(equation: Equation) -> bool:
    """Whether the CPU lowers an equation itself, alone or inside a kernel."""
    op = equation.op
    if op.name in ROUTES or (equation.outputs and not any(v.type.size for v in equation.outputs)):
        return True
    if any(v.type.dtype not in registers.SUPPORTED for v in (*equation.inputs, *equation.outputs)):
        return False
    if op.name in expression.REDUCTIONS:
        return True  # the pass `reductions` brings it into a form that kernels compute
    return is_fusable(equation) and (op.name in operations.NAMES or not op.has(primitive.SCALAR))


def lower(program: Program, target: Target) -> Block:
    """The steps of a program in which everything fusable has become kernels."""
    found: list[Step] = []
    for equation in program.equations:
        if equation.outputs and not any(v.type.size for v in equation.outputs):
            found += _nothing(equation)
        else:
            found += ROUTES[equation.op.name](equation, target)
    return Block(program.params, program.consts, tuple(found), program.results)


def _nothing(equation: Equation) -> list[Step]:
    """Results without elements need memory of no bytes and no work."""
    return [Phase(equation.op.name, (), equation.inputs, equation.outputs, where=equation.where)]


# --- kernels and contractions --------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _kernel_task(kernel: Kernel, in_types: tuple[ArrayType, ...], target: Target) -> TaskFunction:
    return kernels.emit_kernel(kernel, in_types, target)


@functools.lru_cache(maxsize=1024)
def _contraction_tasks(
    x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, target: Target
) -> tuple[TaskFunction, ...]:
    return gemm.emit_contraction(x, y, spec=spec, dtype=dtype, target=target)


@functools.lru_cache(maxsize=1024)
def _task(
    emit: Callable[..., tuple[TaskFunction, ...]], types: tuple[ArrayType, ...], attrs: Attrs, target: Target
) -> tuple[TaskFunction, ...]:
    return emit(types, attrs, target)


def _kernel(equation: Equation, target: Target) -> list[Step]:
    kernel: Kernel = equation.attrs["kernel"]
    types = tuple(v.type for v in equation.inputs)
    task = _kernel_task(kernel, types, target)
    return [
        Phase(
            kernel.name,
            (task,),
            equation.inputs,
            equation.outputs,
            in_place_pairs(kernel, types),
            scratch_bytes=task.scratch_bytes,
            where=equation.where,
        )
    ]


def in_place_pairs(kernel: Kernel, in_types: Sequence[ArrayType]) -> tuple[tuple[int, int], ...]:
    """Loads and stores of which every program reads an element last in the pass that writes it, and it alone
    writes it.
    """
    pairs = []
    last_read, stored = _passes_of(kernel)
    for j, (store, out) in enumerate(zip(kernel.stores, kernel.outputs, strict=True)):
        for i, (load, type_) in enumerate(zip(kernel.loads, in_types, strict=False)):
            same_elements = (load.tile, load.grid_strides, load.tile_strides, load.offsets) == (
                store.tile, store.grid_strides, store.tile_strides, store.offsets,
            )  # fmt: skip
            same_size = type_.shape == out.shape and type_.dtype.itemsize == out.dtype.itemsize
            if same_elements and same_size and last_read[i] <= stored[j]:
                pairs.append((i, j))
    return tuple(pairs)


def _passes_of(kernel: Kernel) -> tuple[list[int], list[int]]:
    """The last pass that reads each load, and the pass that writes each store."""
    plan = schedule.make_schedule(kernel.body)
    last_read, stored = [-1] * len(kernel.loads), [0] * len(kernel.stores)
    numbers = {var: i for i, var in enumerate(kernel.body.params[: len(kernel.loads)])}
    for number, one in enumerate(plan.passes):
        for j in one.stores:
            stored[j] = number
        pending = list(one.block.inputs) if one.block is not None else one.roots(kernel.body)
        seen: set[Var] = set()
        while pending:
            var = pending.pop()
            if var in seen:
                continue
            seen.add(var)
            if var in numbers:
                last_read[numbers[var]] = number
            equation = plan.definitions.get(var)
            if equation is not None and equation.op.name not in schedule.REDUCTIONS | schedule.BLOCKS:
                pending += equation.inputs
    return last_read, stored


def _dot(equation: Equation, target: Target) -> list[Step]:
    x, y = equation.inputs
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    tasks = _contraction_tasks(x.type, y.type, spec, dtype, target)
    scratch = max((t.scratch_bytes for t in tasks), default=0)
    return [
        Phase(f"dot {spec}", tasks, (x, y), equation.outputs, scratch_bytes=scratch, where=equation.where)
    ]


def _moved(emit: Callable[..., tuple[TaskFunction, ...]], *, updates: bool = False) -> Route:
    """Route of an operation whose tasks `emit` makes; with `updates` its result starts as the operand."""

    def route(equation: Equation, target: Target) -> list[Step]:
        tasks = _task(emit, tuple(v.type for v in equation.inputs), equation.attrs, target)
        shared = ((0, 0),) if updates else ()
        scratch = max((t.scratch_bytes for t in tasks), default=0)
        return [
            Phase(
                equation.op.name, tasks, equation.inputs, equation.outputs, must_share=shared,
                scratch_bytes=scratch, where=equation.where,
            )
        ]  # fmt: skip

    return route


# --- aliases, control flow, effects --------------------------------------------------------------


def _aliases(equation: Equation, target: Target) -> list[Step]:
    return [Alias(x, y) for x, y in zip(equation.inputs, equation.outputs, strict=True)]


def _scan(equation: Equation, target: Target) -> list[Step]:
    a = equation.attrs
    return [
        Loop(
            "scan", None, lower(a["body"], target), equation.inputs, equation.outputs, 0, a["num_consts"],
            a["num_carry"], a["length"], a["reverse"], equation.where,
        )
    ]  # fmt: skip


def _while(equation: Equation, target: Target) -> list[Step]:
    a = equation.attrs
    num_carry = len(equation.outputs)
    return [
        Loop(
            "while", lower(a["cond"], target), lower(a["body"], target), equation.inputs, equation.outputs,
            a["num_cond_consts"], a["num_body_consts"], num_carry, where=equation.where,
        )
    ]  # fmt: skip


def _cond(equation: Equation, target: Target) -> list[Step]:
    blocks = tuple(lower(branch, target) for branch in equation.attrs["branches"])
    return [Branch("cond", blocks, equation.inputs, equation.outputs, equation.where)]


def _callback(equation: Equation, target: Target) -> list[Step]:
    function: ir.HostFunction = equation.attrs["callback"]
    return [HostCall(function, equation.inputs, equation.outputs, equation.where)]


ROUTES: Final[dict[str, Route]] = {
    "kernel": _kernel,
    "dot": _dot,
    "reshape": _aliases,
    "optimization_barrier": _aliases,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "debug_callback": _callback,
    "gather": _moved(windows.gather),
    "scatter": _moved(windows.scatter, updates=True),
    "scatter_add": _moved(windows.scatter_add, updates=True),
    "dynamic_slice": _moved(movement.dynamic_slice),
    "dynamic_update_slice": _moved(movement.dynamic_update_slice, updates=True),
    "pad": _moved(movement.pad),
    "concatenate": _moved(movement.concatenate),
    "sort": _moved(sorting.sort),
}
