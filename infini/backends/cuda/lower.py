"""From a fused program to steps of launches: the CUDA counterpart of the CPU's table of routes.

Tasks of a phase are `Launch`es and `Product`s. An operation that is neither in the table nor fusable is
decomposed by the pipeline, and refused there when it has no decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from infini.backends.cuda.products import Products
from infini.backends.cuda.tasks import Launch
from infini.compiler import expression
from infini.compiler.grouping import is_fusable, is_reduction
from infini.compiler.steps import Alias, Block, Branch, HostCall, Loop, Phase, Step
from infini.compiler.triton import cumulative, launching, movement, sorting
from infini.compiler.triton.emit import emit_triton
from infini.compiler.triton.source import LANGUAGE_NAMES, TritonSource
from infini.core import ir
from infini.core.ir import ArrayType, Attrs, Equation, Program
from infini.lax import contraction, indexing
from infini.tile.program import Kernel

Route = Callable[[Equation, Products], list[Step]]
Sources = Callable[[Sequence[ArrayType], Attrs], tuple[TritonSource, ...]]


# Operations of dtypes that kernels do not compute with are decomposed into those of wider ones.
_COMPUTING: Final = cumulative.NAMES | expression.REDUCTIONS


def has_route(equation: Equation) -> bool:
    """Whether this backend lowers an equation itself, alone or inside a kernel."""
    kind = indexing.KINDS.get(equation.op.name)
    if kind is not None and kind.combine and equation.inputs[0].type.dtype not in LANGUAGE_NAMES:
        return False  # scatters that overwrite move bits of any dtype, those that compute do not
    if equation.op.name in _COMPUTING and equation.inputs[0].type.dtype not in LANGUAGE_NAMES:
        return False
    return (
        equation.op.name in ROUTES
        or is_fusable(equation)
        or is_reduction(equation)
        or not any(v.type.size for v in equation.outputs)
    )


def lower(program: Program, products: Products) -> Block:
    """The steps of a program in which everything fusable has become kernels.

    Args:
        program: the program.
        products: chooses how contractions are computed.

    Raises:
        LoweringError: a kernel has no Triton form.
    """
    found: list[Step] = []
    for equation in program.equations:
        if equation.outputs and not any(v.type.size for v in equation.outputs):
            found.append(Phase(equation.op.name, (), equation.inputs, equation.outputs, where=equation.where))
        else:
            found += ROUTES[equation.op.name](equation, products)
    return Block(program.params, program.consts, tuple(found), program.results)


def _types(equation: Equation) -> tuple[ArrayType, ...]:
    return tuple(v.type for v in equation.inputs)


def _kernel(equation: Equation, products: Products) -> list[Step]:
    kernel: Kernel = equation.attrs["kernel"]
    launch = Launch(launching.chosen(emit_triton(kernel, _types(equation)), kernel))
    pairs = _in_place(kernel, _types(equation))
    return [Phase(kernel.name, (launch,), equation.inputs, equation.outputs, pairs, where=equation.where)]


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


def _dot(equation: Equation, products: Products) -> list[Step]:
    x, y = _types(equation)
    spec, dtype = equation.attrs["spec"], equation.attrs["dtype"]
    a, b, _ = contraction.parse_spec(spec)
    assert x.ndim == len(a) and y.ndim == len(b), "the pass `contractions` gives loop dimensions letters"
    task = products.product(x, y, spec, dtype)
    return [Phase(f"dot {spec}", (task,), equation.inputs, equation.outputs, where=equation.where)]


def _moved(sources: Sources, *, updates: bool = False) -> Route:
    """Route of an operation that moves elements; with `updates` its result starts as its first operand."""

    def route(equation: Equation, products: Products) -> list[Step]:
        types = _types(equation)
        tasks = tuple(Launch(source) for source in sources(types, equation.attrs))
        return [
            Phase(
                equation.op.name,
                tasks,
                equation.inputs,
                equation.outputs,
                must_share=((0, 0),) if updates else (),
                scratch_bytes=movement.scratch_bytes(equation.op.name, types),
                where=equation.where,
            )
        ]

    return route


def _sorted(equation: Equation, products: Products) -> list[Step]:
    types = _types(equation)
    return [
        Phase(
            "sort",
            tuple(Launch(source) for source in sorting.sort(types, equation.attrs)),
            equation.inputs,
            equation.outputs,
            scratch_bytes=sorting.scratch_bytes(types, equation.attrs),
            where=equation.where,
        )
    ]


def _scanned(equation: Equation, products: Products) -> list[Step]:
    name, types = equation.op.name, _types(equation)
    return [
        Phase(
            name,
            tuple(Launch(source) for source in cumulative.cumulative(name, types, equation.attrs)),
            equation.inputs,
            equation.outputs,
            scratch_bytes=cumulative.scratch_bytes(name, types, equation.attrs),
            where=equation.where,
        )
    ]


def _aliases(equation: Equation, products: Products) -> list[Step]:
    return [Alias(x, y) for x, y in zip(equation.inputs, equation.outputs, strict=True)]


def _scan(equation: Equation, products: Products) -> list[Step]:
    a = equation.attrs
    return [
        Loop(
            "scan", None, lower(a["body"], products), equation.inputs, equation.outputs, 0, a["num_consts"],
            a["num_carry"], a["length"], a["reverse"], equation.where,
        )
    ]  # fmt: skip


def _while(equation: Equation, products: Products) -> list[Step]:
    a = equation.attrs
    return [
        Loop(
            "while", lower(a["cond"], products), lower(a["body"], products),
            equation.inputs, equation.outputs,
            a["num_cond_consts"], a["num_body_consts"], len(equation.outputs), where=equation.where,
        )
    ]  # fmt: skip


def _cond(equation: Equation, products: Products) -> list[Step]:
    blocks = tuple(lower(branch, products) for branch in equation.attrs["branches"])
    return [Branch("cond", blocks, equation.inputs, equation.outputs, equation.where)]


def _callback(equation: Equation, products: Products) -> list[Step]:
    function: ir.HostFunction = equation.attrs["callback"]
    return [HostCall(function, equation.inputs, equation.outputs, equation.where)]


ROUTES: Final[dict[str, Route]] = {
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
    "gather": _moved(movement.gather),
    **{name: _moved(movement.scatter(name), updates=True) for name in indexing.KINDS},
    "dynamic_slice": _moved(movement.dynamic_slice),
    "dynamic_update_slice": _moved(movement.dynamic_update_slice, updates=True),
    "pad": _moved(movement.pad),
    "sort": _sorted,
    **dict.fromkeys(sorted(cumulative.NAMES), _scanned),
}
