"""From a fused program to steps: each equation by its route, kernels and contractions through their emitters.

`ROUTES` is the table of operations with a route of their own; elementwise operations, views and reductions
arrive as kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Final

import numpy as np

from infini.compiler.grouping import is_fusable, is_reduction
from infini.compiler.llvm import (
    attention,
    attention_gradient,
    attention_parts,
    columns_apart,
    cumulative,
    fourier,
    gemm,
    kernels,
    linear_algebra,
    movement,
    operations,
    paged,
    paged_problem,
    paged_update,
    picks,
    products,
    registers,
    schedule,
    sorting,
    top_k,
    wake,
    windows,
)
from infini.compiler.llvm.convolution import emission
from infini.compiler.llvm.quantized import products as quantized_products
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.passes import attention_views, convolutions, kernel_bodies, panels, quantized
from infini.compiler.steps import Alias, Block, Branch, HostCall, Loop, Phase, Step, reads_of, writes_of
from infini.core import ir, primitive
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.lax import indexing
from infini.lax.composites import paged_attention, paged_definition
from infini.tile.program import Kernel

Route = Callable[[Equation, Target], list[Step]]

# Routes that compute, and not with every dtype; others move bits.
_COMPUTING: Final = cumulative.NAMES | {
    name for name, kind in indexing.KINDS.items() if kind.combine is not None
}


def has_route(equation: Equation) -> bool:
    """Whether the CPU lowers an equation itself, alone or inside a kernel."""
    op = equation.op
    if op is panels.from_panels_p:
        return True  # until it is known who reads it; see `passes.panels`
    if op is convolutions.windowed_dot_p:
        return True  # made where `takes_windows` holds
    if op is attention_views.attention_of_views_p:
        return True  # made of what has a route
    if op in (quantized.activation_bytes_p, quantized.bytes_dot_p, quantized.codes_dot_p):
        return True  # made where `takes_bytes` says how
    if op.name in _ATTENTION:
        return attention_parts.is_suited([v.type for v in equation.inputs], equation.attrs)
    if op is paged_attention.paged_attention_p:
        options = paged_definition.Options(**equation.attrs)
        types = [v.type for v in equation.inputs]
        return paged_problem.is_suited(paged_definition.operands_of(types, options), options)
    if op.name in _COMPUTING and equation.inputs[0].type.dtype not in registers.SUPPORTED:
        return False
    if op.name in ROUTES or (equation.outputs and not any(v.type.size for v in equation.outputs)):
        return True
    if any(v.type.dtype not in registers.SUPPORTED for v in (*equation.inputs, *equation.outputs)):
        return False
    if is_reduction(equation):
        return True
    return is_fusable(equation) and (op.name in operations.NAMES or not op.has(primitive.SCALAR))


def reads_panels(equation: Equation, target: Target) -> bool:
    """Whether a `packed_dot` is a blocked product on this processor."""
    x, y = panels.logical_types(equation)
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    return gemm.takes_panels(x, y, spec=spec, dtype=dtype, panels=_panels(equation), target=target)


def takes_windows(x: ArrayType, w: ArrayType, attrs: Attrs, target: Target) -> bool:
    """Whether a `windowed_dot` is a product of this processor's."""
    return emission.plans(x, w, attrs, target) is not None


def takes_bytes(equation: Equation, target: Target) -> quantized.Form | None:
    """How this processor computes a product with a matrix in few bits, if it reads its bytes."""
    return quantized_products.form_of(equation, target)


def _panels(equation: Equation) -> gemm.Panels:
    return gemm.Panels(equation.attrs["operand"], *equation.attrs["tile"])


def lower(
    program: Program,
    target: Target,
    made: Callable[[TaskFunction], None] = lambda task: None,
    writable: Collection[int] = (),
) -> Block:
    """The steps of a program in which everything fusable has become kernels.

    Args:
        program: program in kernels.
        target: processor to make code for.
        made: called with every task function as soon as it is written; those of loops and branches come
            with the rest.
        writable: parameters that results may replace.
    """
    program = columns_apart.split(kernel_bodies.plain(program, schedule.has_code, backend="cpu"))
    found: list[Step] = []
    phases = joined(program, target, writable)
    early: set[Var] = set()  # what a phase makes that comes later than the equation, or keeps to itself
    waiting: list[Step] = []  # aliases of that
    done: set[Var] = set()
    for number, equation in enumerate(program.equations):
        if number in phases:
            phase = phases[number]
            if phase is None:
                early.update(v for v in equation.outputs if v not in done)
                continue
            done.update(phase.writes)
            early.update(equation.outputs)
            early -= done
            steps: list[Step] = [phase]
            for alias in waiting:
                if not early & set(reads_of(alias)):
                    steps.append(alias)
                    early -= set(writes_of(alias))
            waiting = [alias for alias in waiting if alias not in steps]
        elif equation.outputs and not any(v.type.size for v in equation.outputs):
            steps = _nothing(equation)
        else:
            steps = ROUTES[equation.op.name](equation, target)
            if early & set(equation.inputs):
                early.update(equation.outputs)
                waiting += steps
                continue
        for step in steps:
            for task in step.tasks if isinstance(step, Phase) else ():
                made(task)
        found += steps
    return Block(program.params, program.consts, tuple(found), program.results)


def joined(program: Program, target: Target, writable: Collection[int] = ()) -> dict[int, Phase | None]:
    """Phases in place of equations, by number: None for what became a part of another phase."""
    found = wake.phases(program, target)
    found |= picks.phases(program, target, found)
    found |= products.phases(program, target, found, writable)
    return found


def _nothing(equation: Equation) -> list[Step]:
    """Results without elements need memory of no bytes and no work."""
    return [Phase(equation.op.name, (), equation.inputs, equation.outputs, where=equation.where)]


# --- kernels and contractions --------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _kernel_tasks(
    kernel: Kernel, in_types: tuple[ArrayType, ...], target: Target
) -> tuple[TaskFunction, ...]:
    if wake.find(kernel, in_types) is not None:
        return wake.tasks(kernel, in_types, target)
    return (kernels.emit_kernel(kernel, in_types, target),)


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
    tasks = _kernel_tasks(kernel, types, target)
    pairs = kernels.in_place_pairs(kernel, types)
    scratch = max(task.scratch_bytes for task in tasks)
    return [
        Phase(
            kernel.name, tasks, equation.inputs, equation.outputs, pairs, scratch_bytes=scratch,
            where=equation.where,
        )
    ]  # fmt: skip


def _dot(equation: Equation, target: Target) -> list[Step]:
    x, y = equation.inputs
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    tasks = _contraction_tasks(x.type, y.type, spec, dtype, target)
    scratch = max((t.scratch_bytes for t in tasks), default=0)
    return [
        Phase(
            f"dot {spec}", tasks, (x, y), equation.outputs, scratch_bytes=scratch, where=equation.where,
            is_product=True,
        )
    ]  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _packed_tasks(
    x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, packed: gemm.Panels, target: Target
) -> tuple[TaskFunction, ...]:
    return gemm.emit_packed(x, y, spec=spec, dtype=dtype, panels=packed, target=target)


def _packed_dot(equation: Equation, target: Target) -> list[Step]:
    x, y = panels.logical_types(equation)
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    tasks = _packed_tasks(x, y, spec, dtype, _panels(equation), target)
    name = f"packed dot {spec}"
    return [Phase(name, tasks, equation.inputs, equation.outputs, where=equation.where, is_product=True)]


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


@functools.lru_cache(maxsize=1024)
def _attention_tasks(
    name: str,
    operands: tuple[ArrayType, ...],
    results: tuple[ArrayType, ...],
    attrs: Attrs,
    views: tuple[attention_views.View | None, ...],
    target: Target,
) -> tuple[TaskFunction, ...]:
    return _ATTENTION[name](operands, results, attrs, target, views)


def _attention(equation: Equation, target: Target) -> list[Step]:
    operands, results = (tuple(v.type for v in group) for group in (equation.inputs, equation.outputs))
    name, attrs, views = equation.op.name, equation.attrs, ()
    if equation.op is attention_views.attention_of_views_p:
        name, views = attrs["operation"], attrs["views"]
        operands, attrs = attention_views.logical_types(operands, views), attention_views.own_attrs(attrs)
    tasks = _attention_tasks(name, operands, results, attrs, views, target)
    scratch = max(t.scratch_bytes for t in tasks)
    return [
        Phase(
            name, tasks, equation.inputs, equation.outputs, scratch_bytes=scratch,
            where=equation.where,
        )
    ]  # fmt: skip


# --- aliases, control flow, effects --------------------------------------------------------------


def _aliases(equation: Equation, target: Target) -> list[Step]:
    return [Alias(x, y) for x, y in zip(equation.inputs, equation.outputs, strict=True)]


def carried(equation: Equation) -> range:
    """The parameters of the body of a loop that are its carry."""
    a = equation.attrs
    if equation.op.name == "scan":
        return range(a["num_consts"], a["num_consts"] + a["num_carry"])
    return range(a["num_body_consts"], a["num_body_consts"] + len(equation.outputs))


def _scan(equation: Equation, target: Target) -> list[Step]:
    a = equation.attrs
    return [
        Loop(
            "scan", None, lower(a["body"], target, writable=carried(equation)), equation.inputs,
            equation.outputs, 0, a["num_consts"], a["num_carry"], a["length"], a["reverse"], equation.where,
        )
    ]  # fmt: skip


def _while(equation: Equation, target: Target) -> list[Step]:
    a = equation.attrs
    num_carry = len(equation.outputs)
    return [
        Loop(
            "while", lower(a["cond"], target), lower(a["body"], target, writable=carried(equation)),
            equation.inputs, equation.outputs, a["num_cond_consts"], a["num_body_consts"], num_carry,
            where=equation.where,
        )
    ]  # fmt: skip


def _cond(equation: Equation, target: Target) -> list[Step]:
    blocks = tuple(lower(branch, target) for branch in equation.attrs["branches"])
    return [Branch("cond", blocks, equation.inputs, equation.outputs, equation.where)]


def _callback(equation: Equation, target: Target) -> list[Step]:
    function: ir.HostFunction = equation.attrs["callback"]
    return [HostCall(function, equation.inputs, equation.outputs, equation.where)]


_ATTENTION: Final = {
    "attention": attention.emit,
    "attention_sums": attention.emit,
    "attention_gradient": attention_gradient.emit,
}

ROUTES: Final[dict[str, Route]] = {
    "kernel": _kernel,
    "dot": _dot,
    "packed_dot": _packed_dot,
    "windowed_dot": _moved(emission.emit),
    "activation_bytes": _moved(quantized_products.emit_bytes),
    "bytes_dot": _moved(quantized_products.emit_dot),
    "codes_dot": _moved(quantized_products.emit_exact),
    **dict.fromkeys((*_ATTENTION, attention_views.attention_of_views_p.name), _attention),
    "paged_attention": _moved(paged.emit),
    "paged_update": _moved(paged_update.emit, updates=True),
    "reshape": _aliases,
    "optimization_barrier": _aliases,
    "view_as_real": _aliases,
    "view_as_complex": _aliases,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "debug_callback": _callback,
    "pure_callback": _callback,
    "io_callback": _callback,
    "gather": _moved(windows.gather),
    **{name: _moved(windows.scatter(name), updates=True) for name in indexing.KINDS},
    "dynamic_slice": _moved(movement.dynamic_slice),
    "dynamic_update_slice": _moved(movement.dynamic_update_slice, updates=True),
    "pad": _moved(movement.pad),
    "concatenate": _moved(movement.concatenate),
    "sort": _moved(sorting.sort),
    "top_k": _moved(top_k.top_k),
    "cholesky": _moved(linear_algebra.cholesky),
    "eig": _moved(linear_algebra.eig),
    "eigh": _moved(linear_algebra.eigh),
    "fft": _moved(fourier.fft),
    "lu": _moved(linear_algebra.lu),
    "qr": _moved(linear_algebra.qr),
    "svd": _moved(linear_algebra.svd),
    "triangular_solve": _moved(linear_algebra.triangular_solve),
    **{name: _moved(functools.partial(cumulative.cumulative, name)) for name in sorted(cumulative.NAMES)},
}
