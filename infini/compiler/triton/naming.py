"""Names and lines of the user's code for emitted text: nothing here changes what a kernel computes."""

from __future__ import annotations

import ast
import functools
import keyword
import re
from collections.abc import Sequence
from typing import Final

from infini.compiler import inspection
from infini.core.ir import Equation, Program, Var
from infini.core.source import Where

LONGEST: Final = 80
_NAME: Final = re.compile(r"[A-Za-z]\w*", re.ASCII)


@functools.lru_cache(maxsize=4096)
def targets(line: str) -> tuple[str, ...]:
    """The names that a line assigns to; none when it is no assignment to names."""
    try:
        (statement,) = ast.parse(line.strip()).body
    except (SyntaxError, ValueError):
        found = re.match(r"\s*([A-Za-z]\w*)\s*=(?!=)", line)  # the first line of a longer statement
        return (found[1],) if found else ()
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return (statement.target.id,)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return ()
    (target,) = statement.targets
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    return tuple(part.id if isinstance(part, ast.Name) else "" for part in parts)


def results_of(equation: Equation, after: Equation | None) -> tuple[str, ...]:
    """Names for the results of an equation, if it is the last of its line; `after` is the next equation."""
    if (
        equation.where is None
        or not equation.where.file
        or (after is not None and after.where == equation.where)
    ):
        return ()
    return tuple(map(plain, targets(inspection.source_line(equation.where))))


def note(where: Where) -> str:
    """The user's line, and where it is."""
    line = inspection.source_line(where)
    shown = line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
    return f"{where}: {shown}" if line else str(where)


def plain(name: str) -> str:
    """A name as the text can use it; empty when it cannot."""
    stripped = name.strip("_")
    return stripped if _NAME.fullmatch(stripped) and not keyword.iskeyword(stripped) else ""


def of_values(program: Program) -> dict[Var, str]:
    """Names of the values of a program, where its variables or the user's lines have any. Another shape of a
    value has its name, and a result without one is called so.
    """
    found = {v: plain(v.hint) for v in program.params if v.hint}
    equations = program.equations
    following: Sequence[Equation | None] = [*equations, None][1:]
    for equation, after in zip(equations, following, strict=True):
        named = zip(equation.outputs, results_of(equation, after), strict=False)
        found.update({var: name for var, name in named if name})
        if equation.op.name == "reshape" and equation.output not in found and equation.inputs[0] in found:
            found[equation.output] = found[equation.inputs[0]]
    for number, var in enumerate(program.results):
        found.setdefault(var, "result" if len(program.results) == 1 else f"result_{number}")
    for equation in reversed(equations):
        if equation.op.name == "reshape" and equation.output in found:
            found.setdefault(equation.inputs[0], found[equation.output])
    return found
