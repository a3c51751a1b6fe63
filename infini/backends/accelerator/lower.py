"""From a fused program to steps of launches: the counterpart of the CPU's table of routes.

Tasks of a phase are `Launch`es and `Product`s; matrices are factored on the host, by NumPy. An operation that
is neither in the table nor fusable is decomposed by the pipeline, and refused there when it has no
decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from infini.backends.accelerator.products import Products
from infini.backends.accelerator.tasks import Launch
from infini.compiler.steps import Alias, Block, Branch, HostCall, Loop, Phase, Step
from infini.compiler.triton import lower as triton, naming
from infini.compiler.triton.target import GENERIC, Target
from infini.core import host, ir, primitive
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.lax import contraction, indexing, linalg
from infini.tile.program import Kernel


@dataclass(frozen=True, slots=True)
class Context:
    """What routes need besides the equation: who chooses products, what kernels are for, and the user's names
    of values.
    """

    products: Products
    target: Target
    names: Mapping[Var, str]


Route = Callable[[Equation, Context], list[Step]]


def has_route(equation: Equation) -> bool:
    """Whether an equation is lowered as it is, alone or inside a kernel."""
    return equation.op.name in linalg.NAMES or triton.has_route(equation)


def lower(program: Program, products: Products, target: Target = GENERIC) -> Block:
    """The steps of a program in which everything fusable has become kernels.

    Args:
        program: the program.
        products: chooses how contractions are computed.
        target: what kernels are for.

    Raises:
        LoweringError: a kernel has no Triton form, or the target lacks what it needs.
    """
    found: list[Step] = []
    context = Context(products, target, naming.of_values(program))
    for equation in program.equations:
        if equation.outputs and not any(v.type.size for v in equation.outputs):
            found.append(Phase(equation.op.name, (), equation.inputs, equation.outputs, where=equation.where))
        else:
            found += ROUTES[equation.op.name](equation, context)
    return Block(program.params, program.consts, tuple(found), program.results)


def _inner(program: Program, context: Context) -> Block:
    return lower(program, context.products, context.target)


def _types(equation: Equation) -> tuple[ArrayType, ...]:
    return tuple(v.type for v in equation.inputs)


def _kernel(equation: Equation, context: Context) -> list[Step]:
    kernel: Kernel = equation.attrs["kernel"]
    pairs = _in_place(kernel, _types(equation))
    tasks = _launches(equation, context)
    return [Phase(kernel.name, tasks, equation.inputs, equation.outputs, pairs, where=equation.where)]


def _launches(equation: Equation, context: Context) -> tuple[Launch, ...]:
    return tuple(Launch(source) for source in triton.sources(equation, context.target, context.names))


def _in_place(kernel: Kernel, types: Sequence[ArrayType]) -> tuple[tuple[int, int], ...]:
    """Operands whose every element is read by the one program that writes that element of a result, before it
    does.
    """
    if len(kernel.stores) > 1 and any(e.op.name.startswith("reduce_") for e in kernel.body.equations):
        return ()  # in a kernel of several passes one result may be stored before the next pass reads
    pairs = []
    for j, (store, out) in enumerate(zip(kernel.stores, kernel.outputs, strict=True)):
        for i, (load, type_) in enumerate(zip(kernel.loads, types, strict=False)):
            is_same_map = (load.tile, load.grid_strides, load.tile_strides, load.offsets) == (
                store.tile, store.grid_strides, store.tile_strides, store.offsets,
            )  # fmt: skip
            is_same_size = type_.shape == out.shape and type_.dtype.itemsize == out.dtype.itemsize
            if is_same_map and is_same_size and not load.levels:
                pairs.append((i, j))
    return tuple(pairs)


def _dot(equation: Equation, context: Context) -> list[Step]:
    x, y = _types(equation)
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    a, b, _ = contraction.parse_spec(spec)
    assert x.ndim == len(a) and y.ndim == len(b), "the pass `contractions` gives loop dimensions letters"
    task = context.products.product(x, y, spec, dtype)
    kernel = triton.marked(task.kernel, equation, triton.roles_of(equation, context.names))
    task = replace(task, kernel=kernel)
    return [Phase(f"dot {spec}", (task,), equation.inputs, equation.outputs, where=equation.where)]


def _emitted(equation: Equation, context: Context) -> list[Step]:
    """An operation with functions of its own; that of an update starts as its first operand."""
    name = equation.op.name
    return [
        Phase(
            name,
            _launches(equation, context),
            equation.inputs,
            equation.outputs,
            must_share=((0, 0),) if name in _UPDATES else (),
            scratch_bytes=triton.scratch_bytes(equation),
            where=equation.where,
        )
    ]


def _aliases(equation: Equation, context: Context) -> list[Step]:
    return [Alias(x, y) for x, y in zip(equation.inputs, equation.outputs, strict=True)]


def _scan(equation: Equation, context: Context) -> list[Step]:
    a = equation.attrs
    return [
        Loop(
            "scan", None, _inner(a["body"], context), equation.inputs, equation.outputs, 0, a["num_consts"],
            a["num_carry"], a["length"], a["reverse"], equation.where,
        )
    ]  # fmt: skip


def _while(equation: Equation, context: Context) -> list[Step]:
    a = equation.attrs
    return [
        Loop(
            "while", _inner(a["cond"], context), _inner(a["body"], context),
            equation.inputs, equation.outputs,
            a["num_cond_consts"], a["num_body_consts"], len(equation.outputs), where=equation.where,
        )
    ]  # fmt: skip


def _cond(equation: Equation, context: Context) -> list[Step]:
    blocks = tuple(_inner(branch, context) for branch in equation.attrs["branches"])
    return [Branch("cond", blocks, equation.inputs, equation.outputs, equation.where)]


def _callback(equation: Equation, context: Context) -> list[Step]:
    function: ir.HostFunction = equation.attrs["callback"]
    return [HostCall(function, equation.inputs, equation.outputs, equation.where)]


def _factored(equation: Equation, context: Context) -> list[Step]:
    """An operation of `lax.linalg`: no vendor's library for these is common, and none is in every driver."""
    rule, attrs = equation.op.rule(primitive.REFERENCE), equation.attrs

    def factored(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        found = rule(*arrays, **attrs)
        return (found,) if isinstance(found, np.ndarray) else found

    factored.__name__ = equation.op.name
    function = host.register(factored, key=("factored", equation.op, attrs))
    return [HostCall(function, equation.inputs, equation.outputs, equation.where)]


_UPDATES: Final = frozenset({*indexing.KINDS, "dynamic_update_slice"})
ROUTES: Final[dict[str, Route]] = {
    **dict.fromkeys(sorted(triton.ROUTES), _emitted),
    **dict.fromkeys(sorted(linalg.NAMES), _factored),
    "kernel": _kernel,
    "dot": _dot,
    "reshape": _aliases,
    "view_as_complex": _aliases,
    "view_as_real": _aliases,
    "optimization_barrier": _aliases,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "debug_callback": _callback,
    "pure_callback": _callback,
    "io_callback": _callback,
}
