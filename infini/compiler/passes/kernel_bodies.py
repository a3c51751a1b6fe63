"""Bodies of kernels that people wrote, in the operations an emitter has code for inside of kernels.

They come as they were traced: with calls, rules of users and composed operations. The fuser's kernels are
made of plain operations already and stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from infini.compiler.passes import cse, dead_code, decompose, inline, rewrite
from infini.core import ir, primitive
from infini.core.ir import Equation, Program, Var
from infini.tile.program import Kernel, kernel_p


def plain(program: Program, has_code: Callable[[Equation], bool], *, backend: str) -> Program:
    """The program with every kernel's body made of operations that `has_code` accepts, as far as they have a
    definition.

    Args:
        program: program with kernels; those of loops and branches in it are left for later.
        has_code: whether the emitter has code for an equation inside a kernel.
        backend: name of the backend, for errors.
    """
    changed = []
    for equation in program.equations:
        kernel = equation.attrs["kernel"] if equation.op is kernel_p else None
        if kernel is not None and not _is_plain(kernel.body, has_code):
            attrs = equation.attrs.replace(kernel=_with_plain_body(kernel, has_code, backend))
            changed.append(
                Equation(equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)
            )
        else:
            changed.append(equation)
    return program.replace(equations=tuple(changed))


def _is_plain(body: Program, has_code: Callable[[Equation], bool]) -> bool:
    return all(has_code(e) and all(_is_plain(p, has_code) for p in e.programs) for e in body.equations)


def _with_plain_body(kernel: Kernel, has_code: Callable[[Equation], bool], backend: str) -> Kernel:
    body = _straight(inline.inline_calls(kernel.body))
    stays = lambda e: has_code(e) or not e.op.has(primitive.DECOMPOSE)  # noqa: E731
    body = decompose.decompose(body, stays, backend=backend)
    return dataclasses.replace(kernel, body=dead_code.eliminate_dead(cse.eliminate_common(body)))


def _straight(program: Program) -> Program:
    """The program, and those inside it, without what only derivatives need, and with all branches of a cond
    computed and one picked: nothing in a kernel has effects.
    """
    builder = ir.Builder()
    env: dict[Var, Var] = {param: param for param in program.params}
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        inputs = [env[v] for v in equation.inputs]
        attrs = rewrite.map_programs(equation.attrs, _straight)
        if equation.op.name == "stop_gradient":
            outputs = tuple(inputs)
        elif equation.op.name == "cond":
            outputs = _picked(builder, attrs["branches"], inputs)
        else:
            outputs = builder.emit(
                equation.op, inputs, attrs, where=equation.where, via=equation.via,
                out_types=[v.type for v in equation.outputs],
            )  # fmt: skip
        env.update(zip(equation.outputs, outputs, strict=True))
    return builder.build(program.params, [env[v] for v in program.results], name=program.name)


def _picked(builder: ir.Builder, branches: tuple[Program, ...], inputs: list[Var]) -> tuple[Var, ...]:
    index, *arguments = inputs
    chosen = ir.inline(builder, branches[0], arguments)
    for number, branch in enumerate(branches[1:], 1):
        least = builder.constant(np.asarray(number, index.type.dtype))
        is_later = builder.emit1(primitive.by_name("ge"), [index, least])
        found = ir.inline(builder, branch, arguments)
        select = primitive.by_name("select_n")
        chosen = tuple(
            builder.emit1(select, [is_later, old, new]) for old, new in zip(chosen, found, strict=True)
        )
    return chosen
