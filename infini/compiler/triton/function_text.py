"""The text of one Triton function under construction, and the module around it: the one way to a
`TritonSource`.

Lines use `pid`, the number of the program, which the module's text defines: programs beyond the target's
grid are folded there. Parameters are called by their roles: x0 ... for operands, y0 ... for results,
`scratch`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

from infini.compiler.triton import language, polish, target as target_
from infini.compiler.triton.scalar import HELPERS
from infini.compiler.triton.source import SIGNATURE_NAMES, TritonSource, code, language_name
from infini.compiler.triton.target import GENERIC, Folded, Target
from infini.core import dtypes
from infini.core.ir import ArrayType

_INT32_MAX: Final = (1 << 31) - 1


class FunctionText:
    """Lines of one function, with indentation.

    Args:
        target: what the text is for.
    """

    def __init__(self, target: Target = GENERIC) -> None:
        self.target = target
        self.lines: list[str] = []
        self.notes: dict[int, str] = {}
        self.helpers: list[str] = []
        self.depth = 1

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append("    " * self.depth + text)

    def note(self, text: str) -> None:
        """A comment above the next line."""
        self.notes[len(self.lines)] = text

    @contextlib.contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Lines inside a statement such as a loop."""
        self.line(head)
        self.depth += 1
        yield
        self.depth -= 1

    def finished(self, line: str) -> str:
        """A line, or the lines of a long call."""
        code_, mark, comment = line.partition("  # ")
        if len(line) <= polish.LONGEST + 10 or line.rstrip().endswith(":"):
            return line
        indent = code_[: len(code_) - len(code_.lstrip())]
        return "\n".join(polish.wrapped(code_, indent, mark + comment))

    def source(
        self,
        name: str,
        parameters: Sequence[tuple[str, ArrayType]],
        programs: int,
        *,
        num_warps: int = 4,
        num_stages: int = 2,
        about: Sequence[str] = (),
        index: str = "tl.int32",
    ) -> TritonSource:
        """The finished source.

        Args:
            name: name of the function.
            parameters: role and type of the pointers it takes.
            programs: number of programs.
            num_warps: warps of a program.
            num_stages: loads in flight.
            about: comments above the function.
            index: dtype of `pid`.

        Raises:
            LoweringError: the target lacks something that the text needs, or a dtype has no Triton form.
        """
        lines = [self.finished(line) for line in self.lines]
        body = [
            f"{line[: len(line) - len(line.lstrip())]}# {self.notes[number]}\n{line}"
            if number in self.notes
            else line
            for number, line in enumerate(lines)
        ]
        return module(
            name, parameters, body, programs, target=self.target, num_warps=num_warps, num_stages=num_stages,
            about=[*about, *(f"  {role}: {type_}" for role, type_ in parameters)], index=index,
            helpers=self.helpers,
        )  # fmt: skip


def module(  # noqa: PLR0913  # the parts of a module
    name: str,
    parameters: Sequence[tuple[str, ArrayType]],
    body: Sequence[str],
    programs: int,
    *,
    target: Target,
    num_warps: int,
    num_stages: int,
    about: Sequence[str] = (),
    index: str = "tl.int32",
    helpers: Sequence[str] = (),
    polishes: polish.Polish | None = None,
) -> TritonSource:
    """The source of a function from the lines of its body.

    Args:
        name: name of the function.
        parameters: role and type of the pointers it takes.
        body: lines, which use `pid`.
        programs: number of programs.
        target: what the text is for.
        num_warps: warps of a program.
        num_stages: loads in flight.
        about: comments above the function.
        index: dtype of `pid`.
        helpers: functions of its own that it calls.
        polishes: makes the final lines from the raw ones; absent when they are final.

    Raises:
        LoweringError: the target lacks something that the text needs, or a dtype has no Triton form.
    """
    folded = target_.fold(programs, target)
    index = "tl.int64" if programs > _INT32_MAX else index
    lines = _started(folded, body, programs, index)
    if polishes is not None:
        lines = polishes(lines, len(lines) - len(body))
    used = [
        text
        for helper, text in HELPERS.items()
        if any(re.search(rf"(?<![\w.]){helper}[(,)]", code(x)) for x in [*lines, *helpers])
    ]
    roles = [role for role, _ in parameters]
    head = "".join(f"# {line}".rstrip() + "\n" for line in about)
    text = "\n\n".join(["import triton\nimport triton.language as tl\n", *used, *helpers])
    text += f"\n\n{head}@triton.jit\ndef {name}({', '.join(roles)}):\n" + "\n".join(lines) + "\n"
    signature = tuple((role, _pointer(type_)) for role, type_ in parameters)
    needed = language.capabilities(iter(re.findall(r"\btl\.(\w+)", text)))
    needed |= {language.SIGNATURE_NEEDS[k[1:]] for _, k in signature if k[1:] in language.SIGNATURE_NEEDS}
    target_.require(target, needed, f"the kernel {name}")
    return TritonSource(
        text=text,
        function_name=name,
        signature=signature,
        constexprs=(),
        divisibility=tuple(roles),
        grid=folded.grid,
        num_warps=min(num_warps, target.max_warps),
        num_stages=num_stages,
        roles=tuple(roles),
    )


def index_dtype(*sizes: int) -> str:
    """The dtype of positions in arrays of these sizes, with room for the last block of a grid."""
    return "tl.int64" if max(sizes, default=0) > _INT32_MAX - (1 << 16) else "tl.int32"


def _started(folded: Folded, body: Sequence[str], programs: int, index: str) -> list[str]:
    """The body with the number of the program before it."""
    own = "tl.program_id(0)" + (".to(tl.int64)" if index == "tl.int64" else "")
    if folded.step:
        return [
            f"    for program in range({own}, {programs}, {folded.step}):",
            f"        pid = tl.full((), 0, {index}) + program",
            *("    " + line.replace("\n", "\n    ") for line in body),
        ]
    others = [f" + tl.program_id({d}) * {math.prod(folded.grid[:d])}" for d in range(1, len(folded.grid))]
    lines = [f"    pid = {own}" + "".join(others)]
    if folded.is_ragged:
        lines += [f"    if pid >= {programs}:", "        return"]
    return [*lines, *body]


def _pointer(type_: ArrayType) -> str:
    """Triton's name of a pointer; floats of 8 bits move as bytes."""
    if type_.dtype not in (dtypes.float8_e4m3fn, dtypes.float8_e5m2):
        language_name(type_.dtype)  # refuses dtypes without a Triton form
    return f"*{SIGNATURE_NAMES[type_.dtype]}"
