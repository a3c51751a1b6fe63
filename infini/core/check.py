"""The checker: a program is well formed when every variable is defined once, before use, and every
equation re-types.

Run between passes when `INFINI_CHECK` is 1 or more. A fault is shown with the equations around it and the
user's line.
"""

from __future__ import annotations

import linecache
from pathlib import Path

from infini.core import errors, ir, source, text

NEIGHBOURHOOD = 3  # equations shown on either side of a fault


def check(program: ir.Program) -> ir.Program:
    """Return `program` if it is well formed.

    Raises:
        CheckError: it is not; the message shows the equation, its neighbours and the user's line.
    """
    _check(program, ())
    return program


def _check(program: ir.Program, path: tuple[str, ...]) -> None:
    defined: set[ir.Var] = set()

    def define(var: ir.Var, index: int) -> None:
        if var in defined:
            raise _fault(program, path, index, "a variable is defined twice")
        defined.add(var)

    for param in program.params:
        define(param, -1)
    for var, constant in program.consts:
        define(var, -1)
        problem = _problem_of_constant(var, constant)
        if problem:
            raise _fault(program, path, -1, problem)
    for index, equation in enumerate(program.equations):
        for number, var in enumerate(equation.inputs):
            if var not in defined:
                raise _fault(program, path, index, f"input {number} is not defined before its use")
        problem = _problem_of_types(equation)
        if problem:
            raise _fault(program, path, index, problem)
        for var in equation.outputs:
            define(var, index)
        for inner in equation.programs:
            _check(inner, (*path, f"@{program.name}: {equation.op.name}"))
    for number, var in enumerate(program.results):
        if var not in defined:
            raise _fault(program, path, len(program.equations), f"result {number} is not defined")


def _problem_of_constant(var: ir.Var, constant: ir.Constant) -> str | None:
    if constant.type != var.type or len(constant.data) != var.type.nbytes:
        return f"a constant of type {constant.type} defines a variable of type {var.type}"
    if var.type.size > ir.Constant.MAX_SIZE:
        return f"a constant has {var.type.size} elements; larger data are hidden parameters"
    return None


def _problem_of_types(equation: ir.Equation) -> str | None:
    name = equation.op.name
    try:
        types = ir.infer_types(equation.op, [v.type for v in equation.inputs], equation.attrs)
    except errors.InfiniError as error:
        given = f" (got {error.got})" if error.got else ""
        return f"the type rule of {name!r} refuses it: {error.what}{given}"
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        # A rule that is given attributes it does not know, or operands by another number.
        return f"the type rule of {name!r} cannot be applied: {error}"
    found = tuple(v.type for v in equation.outputs)
    if types != found:
        return f"the type rule of {name!r} gives {_listed(types)}, the equation has {_listed(found)}"
    return None


def _listed(types: tuple[ir.ArrayType, ...]) -> str:
    return ", ".join(map(str, types)) or "no result"


def _fault(program: ir.Program, path: tuple[str, ...], index: int, what: str) -> errors.CheckError:
    where = program.equations[index].where if 0 <= index < len(program.equations) else None
    inside = f" inside {' > '.join(path)}" if path else ""
    return errors.CheckError(
        f"@{program.name}{inside} is not well formed: {what}",
        got="\n" + neighbourhood(program, index) + _source_line(where),
        where=where,
    )


def neighbourhood(program: ir.Program, index: int) -> str:
    """The text of an equation, marked by an arrow, and the equations around it; -1 stands for the head."""
    # The head of the program, its constants, its equations, its results: one line each.
    lines = text.print_program(program).splitlines()[: len(program.consts) + len(program.equations) + 3]
    first = 1 + len(program.consts)
    marked = first + index if index >= 0 else 0
    around = []
    for number, content in enumerate(lines):
        if abs(number - marked) <= NEIGHBOURHOOD:
            around.append(f"{'  --> ' if number == marked else '      '}{content}")
    return "\n".join(around)


def _source_line(where: source.Where | None) -> str:
    """The text of the user's line, where the file is at hand."""
    if where is None or not Path(where.file).is_file():
        return ""
    content = linecache.getline(where.file, where.line).strip()
    return f"\n  made by:  {content}" if content else ""
