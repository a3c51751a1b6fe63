"""The text of a Triton function that is written line by line, for operations that are no kernels of tiles."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from infini.compiler.triton.scalar import HELPERS
from infini.compiler.triton.source import SIGNATURE_NAMES, TritonSource, language_name
from infini.core.ir import ArrayType


class FunctionText:
    """Lines of one function, with indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append("    " * self.depth + text)

    @contextlib.contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Lines inside a statement such as a loop."""
        self.line(head)
        self.depth += 1
        yield
        self.depth -= 1

    def source(
        self, name: str, parameters: Sequence[tuple[str, ArrayType]], grid: int, *, num_warps: int = 4
    ) -> TritonSource:
        """The finished source.

        Args:
            name: name of the function.
            parameters: pointers it takes: x0 ... for operands, y0 ... for results, `scratch`.
            grid: number of programs.
            num_warps: warps of a program.
        """
        names = [p for p, _ in parameters]
        used = [
            text for helper, text in HELPERS.items()
            if any(re.search(rf"\b{helper}\b", line) for line in self.lines)
        ]  # fmt: skip
        head = "\n\n".join(["import triton\nimport triton.language as tl\n", *used])
        body = "\n".join(self.lines)
        return TritonSource(
            text=f"{head}\n\n@triton.jit\ndef {name}({', '.join(names)}):\n{body}\n",
            function_name=name,
            signature=tuple((p, _pointer(t)) for p, t in parameters),
            constexprs=(),
            divisibility=tuple(names),
            grid=(grid,),
            num_warps=num_warps,
            num_stages=2,
        )


def _pointer(type_: ArrayType) -> str:
    language_name(type_.dtype)  # refuses dtypes without a Triton form
    return f"*{SIGNATURE_NAMES[type_.dtype]}"
