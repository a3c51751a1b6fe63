"""The checker: a program is well formed when every variable is defined once, before use, and every
equation re-types.

Run between passes when `INFINI_CHECK` is 1 or more. A fault is shown with the equations around it and the
user's line.
"""

from __future__ import annotations

from infini.core import errors, ir, text

_NEIGHBOURHOOD = 5


def check(program: ir.Program) -> ir.Program:
    """Return `program` if it is well formed.

    Raises:
        CheckError: it is not; the message shows the equation, its neighbours and the user's line.
    """
    defined: set[ir.Var] = set()

    def define(var: ir.Var, index: int) -> None:
        if var in defined:
            raise _fault(program, index, "a variable is defined twice")
        defined.add(var)

    for param in program.params:
        define(param, -1)
    for var, constant in program.consts:
        define(var, -1)
        if constant.type != var.type or len(constant.data) != var.type.nbytes:
            raise _fault(
                program, -1, f"a constant of type {constant.type} defines a variable of type {var.type}"
            )
        if var.type.size > ir.Constant.MAX_SIZE:
            raise _fault(
                program, -1, f"a constant has {var.type.size} elements; larger data are hidden parameters"
            )
    for index, equation in enumerate(program.equations):
        for var in equation.inputs:
            if var not in defined:
                raise _fault(program, index, "an input is not defined before its use")
        try:
            types = ir.infer_types(equation.op, [v.type for v in equation.inputs], equation.attrs)
        except errors.InfiniError as error:
            raise _fault(
                program, index, f"the type rule of {equation.op.name!r} refuses it: {error.what}"
            ) from error
        found = tuple(v.type for v in equation.outputs)
        if types != found:
            raise _fault(
                program,
                index,
                f"the type rule of {equation.op.name!r} gives {types}, the equation has {found}",
            )
        for var in equation.outputs:
            define(var, index)
        for inner in equation.programs:
            check(inner)
    for var in program.results:
        if var not in defined:
            raise _fault(program, len(program.equations), "a result is not defined")
    return program


def _fault(program: ir.Program, index: int, what: str) -> errors.CheckError:
    lines = text.print_program(program).splitlines()
    line = 1 + len(program.consts) + max(index, 0)
    around = "\n".join(
        ("  --> " if number == line and index >= 0 else "      ") + content
        for number, content in enumerate(lines)
        if abs(number - line) <= _NEIGHBOURHOOD
    )
    where = program.equations[index].where if 0 <= index < len(program.equations) else None
    return errors.CheckError(f"@{program.name} is not well formed: {what}", got="\n" + around, where=where)
