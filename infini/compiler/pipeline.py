"""The passes in order, from a traced program to kernels and the operations that have a route of their own.

Between passes the program is checked when `INFINI_CHECK` is 1 or more, and written when `INFINI_DUMP` names
the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infini.compiler import extents, fuse
from infini.compiler.grouping import is_fusable, is_reduction
from infini.compiler.passes import (
    complex_pairs,
    contractions,
    cse,
    dead_code,
    decompose,
    inline,
    one_hot,
    reductions,
    simplify,
)
from infini.core import check, config, primitive, text
from infini.core.ir import Equation, Program


@dataclass(frozen=True, slots=True)
class Pass:
    """One step of the pipeline."""

    name: str
    run: Callable[[Program], Program]


def passes(
    has_route: Callable[[Equation], bool], *, backend: str, declared: extents.Declared = ()
) -> tuple[Pass, ...]:
    """The pipeline for a backend that lowers the equations `has_route` accepts, with the declared run-time
    extents.
    """
    return (
        Pass("inline", inline.inline_calls),
        Pass("complex_pairs", complex_pairs.split_complex),
        Pass("simplify", _simplified),
        Pass("decompose", lambda program: decompose.decompose(program, has_route, backend=backend)),
        Pass("contractions", contractions.canonical_contractions),
        Pass("simplify_again", _simplified),
        Pass("cse", cse.eliminate_common),
        Pass("dead_code", dead_code.eliminate_dead),
        Pass("one_hot", one_hot.one_per_row),
        Pass("reductions", reductions.canonical_reductions),
        Pass("dead_code_again", dead_code.eliminate_dead),
        Pass("fuse", lambda program: fuse.fuse(program, declared)),
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
    program: Program, has_route: Callable[[Equation], bool], *, backend: str, declared: extents.Declared = ()
) -> Program:
    """Apply every pass.

    Args:
        program: program to compile.
        has_route: whether the backend lowers an equation itself.
        backend: name of the backend, for errors.
        declared: run-time extents of the parameters, as `CompileOptions.extents`.

    Raises:
        LoweringError: an operation has no route.
        CheckError: a pass made a malformed program (only looked for when `INFINI_CHECK` is set).
    """
    is_checked, dumped = config.get("check") >= 1, config.get("dump")
    for step in passes(has_route, backend=backend, declared=declared):
        before, program = program, step.run(program)
        if is_checked:
            check.check(program)
        if step.name in dumped:
            _dump(step.name, before, program)
    return program


def _dump(name: str, before: Program, after: Program) -> None:
    folder = Path(config.get("dump_dir"))
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{before.name}.{before.fingerprint[:8]}.{name}"
    (folder / f"{stem}.before.ir").write_text(text.print_program(before) + "\n")
    (folder / f"{stem}.after.ir").write_text(text.print_program(after) + "\n")
