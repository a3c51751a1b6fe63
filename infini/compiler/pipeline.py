"""The passes in order, from a traced program to kernels and the operations that have a route of their own.

Between passes the program is checked when `INFINI_CHECK` is 1 or more, and written when `INFINI_DUMP` names
the pass (`dump`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from infini.compiler import dump, extents, fuse, inspection
from infini.compiler.grouping import is_fusable, is_reduction
from infini.compiler.passes import (
    attention,
    attention_views,
    complex_pairs,
    contractions,
    convolutions,
    cse,
    dead_code,
    decompose,
    inline,
    loop_panels,
    loop_products,
    loop_slices,
    loops,
    one_hot,
    panels,
    quantized,
    reductions,
    simplify,
)
from infini.core import check, config, primitive
from infini.core.ir import Equation, Program

# Is told the name of each pass, and the program before and after it.
Observer: TypeAlias = Callable[[str, Program, Program], None]


@dataclass(frozen=True, slots=True)
class Pass:
    """One step of the pipeline."""

    name: str
    run: Callable[[Program], Program]


def passes(
    has_route: Callable[[Equation], bool],
    *,
    backend: str,
    declared: extents.Declared = (),
    reads_panels: panels.Reads | None = None,
    wants_panels: loop_panels.Wants | None = None,
    takes_windows: convolutions.Takes | None = None,
    takes_bytes: quantized.Takes | None = None,
    reads_views: bool = False,
) -> tuple[Pass, ...]:
    """The pipeline for a backend that lowers the equations `has_route` accepts, with the declared run-time
    extents; `reads_panels` is given by one that has packed products, which `has_route` accepts,
    `wants_panels` by one that has loops packed for them, and `takes_windows` by one that convolves without a
    matrix of patches; one that `reads_views` lowers `attention_of_views`.
    """
    canonical = canonical_passes(has_route, backend=backend)
    if reads_views:
        canonical = (*canonical, Pass("attention_views", attention_views.read_in_place))
    if takes_windows is not None:
        from_images = Pass("convolutions", lambda program: convolutions.from_images(program, takes_windows))
        before = [step.name for step in canonical].index("decompose")
        canonical = (*canonical[:before], from_images, *canonical[before:])
    if takes_bytes is not None:
        of_bytes = Pass("quantized", lambda program: quantized.read_bytes(program, takes_bytes))
        before = [step.name for step in canonical].index("decompose")
        canonical = (*canonical[:before], of_bytes, *canonical[before:])
    fuse_ = Pass("fuse", lambda program: fuse.fuse(program, declared))
    if reads_panels is None:
        return (*canonical, fuse_)

    def packs(program: Program) -> Program:
        assert wants_panels is not None, "the pass is there"
        return loop_panels.pack_before(program, wants_panels)

    return (
        Pass("panels", panels.keep),
        canonical[0],
        Pass("panels_into_bodies", panels.into_bodies),
        *canonical[1:],
        *([] if wants_panels is None else [Pass("loop_panels", packs)]),
        Pass("panel_products", lambda program: panels.products(program, reads_panels)),
        fuse_,
    )


def canonical_passes(has_route: Callable[[Equation], bool], *, backend: str) -> tuple[Pass, ...]:
    """The passes before kernels are made."""
    return (
        Pass("inline", inline.inline_calls),
        Pass("complex_pairs", complex_pairs.split_complex),
        Pass("simplify", _simplified),
        Pass("decompose", lambda program: decompose.decompose(program, has_route, backend=backend)),
        Pass(
            "contractions",
            lambda program: contractions.canonical_contractions(program, reads_narrow=backend == "cpu"),
        ),
        Pass("simplify_again", _simplified),
        Pass("cse", cse.eliminate_common),
        Pass("dead_code", dead_code.eliminate_dead),
        Pass("loops", loops.move_invariants),
        Pass("loop_products", loop_products.leave_scans),
        Pass("loop_slices", loop_slices.absorb),
        Pass("one_hot", one_hot.one_per_row),
        Pass("reductions", reductions.canonical_reductions),
        Pass("dead_code_again", dead_code.eliminate_dead),
        Pass("attention", lambda program: attention.find(program, has_route)),
        *([Pass("narrow_operands", contractions.narrow_operands)] if backend == "cpu" else []),
    )


def _simplified(program: Program) -> Program:
    """Simplify; a branch that is known to be taken leaves a call behind."""
    return inline.inline_calls(simplify.simplify(program))


def basis_route(equation: Equation) -> bool:
    """Whether an equation stays as it is for a backend that lowers the basis and nothing else."""
    return is_fusable(equation) or is_reduction(equation) or not equation.op.has(primitive.DECOMPOSE)


def trace_passes(
    program: Program, has_route: Callable[[Equation], bool] = basis_route, *, backend: str = "basis"
) -> Iterator[tuple[str, Program]]:
    """The program after each pass, with the name of the pass."""
    for step in passes(has_route, backend=backend):
        program = step.run(program)
        yield step.name, program


def run(
    program: Program,
    has_route: Callable[[Equation], bool],
    *,
    backend: str,
    declared: extents.Declared = (),
    reads_panels: panels.Reads | None = None,
    wants_panels: loop_panels.Wants | None = None,
    takes_windows: convolutions.Takes | None = None,
    takes_bytes: quantized.Takes | None = None,
    reads_views: bool = False,
    observe: Observer | None = None,
) -> Program:
    """Apply every pass.

    Args:
        program: program to compile.
        has_route: whether the backend lowers an equation itself.
        backend: name of the backend, for errors.
        declared: run-time extents of the parameters, as `CompileOptions.extents`.
        reads_panels: whether the backend lowers a `packed_dot`; absent when it lowers none.
        wants_panels: the layout in which a loop's body would like a constant.
        takes_windows: whether the backend lowers a `windowed_dot`; absent when it lowers none.
        takes_bytes: which form of a product of bytes the backend lowers; absent when it lowers none.
        reads_views: whether it lowers `attention_of_views`.
        observe: sees every pass; when absent, those that the knob `dump` names are written to files.

    Raises:
        LoweringError: an operation has no route.
        CheckError: a pass made a malformed program (only looked for when `INFINI_CHECK` is set).
    """
    is_checked = config.get("check") >= 1
    recorder = dump.recorder() if observe is None else None
    watching, source = observe or recorder, program
    steps = passes(
        has_route,
        backend=backend,
        declared=declared,
        reads_panels=reads_panels,
        wants_panels=wants_panels,
        takes_windows=takes_windows,
        takes_bytes=takes_bytes,
        reads_views=reads_views,
    )
    for step in steps:
        before, program = program, step.run(program)
        if is_checked:
            check.check(program)
        if watching is not None:
            watching(step.name, before, program)
    if recorder is not None:
        dump.write(inspection.Inspection(source, backend, snapshots=tuple(recorder.snapshots)))
    return program
