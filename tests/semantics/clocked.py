"""The reference backend with a choice to make at each product and a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infini.backends import reference
from infini.backends.spmd import executable as spmd_executable
from infini.compiler import choices
from infini.core import backend as backend_, ir
from infini.core.backend import CompileOptions

CANDIDATES = ("rows", "columns")


class ClockedExecutable(reference.ReferenceExecutable):
    """An interpreted program that remembers its choices."""

    def __init__(self, program: ir.Program, options: CompileOptions, chooser: choices.Chooser) -> None:
        super().__init__(program, options)
        self.decisions, self.choices = chooser.decisions, chooser.choices

    def text(self, stage: str) -> str:
        """The program, or its choices."""
        return choices.describe(self.decisions) if stage == "choices" else super().text(stage)


class ClockedBackend(reference.ReferenceBackend):
    """Computes products by rows or by columns, whichever its clock says is faster.

    Args:
        seconds: what a candidate takes; one that is missing raises.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)
        self.prepared: list[str] = []
        self.over_meshes: list[Any] = []  # Any: executables of programs for a mesh

    def install(self) -> None:
        """Take the place of the reference backend."""
        real = backend_.get
        backend_.get = lambda name: self if name == "reference" else real(name)

    def compile(self, program: ir.Program, options: CompileOptions) -> Any:  # Any: an executable
        """Choose, then check as the reference backend does."""
        if options.mesh is not None:
            self.over_meshes.append(spmd_executable.compile(self, program, options))
            return self.over_meshes[-1]
        chooser = choices.Chooser(options)
        for equation in program.equations:
            if equation.op.name == "dot":
                types = " ".join(str(v.type) for v in equation.inputs)
                chooser.choose(choices.Choice(f"dot {types}", CANDIDATES), self._prepare)
        return ClockedExecutable(program, options, chooser)

    def _prepare(self, name: str) -> Callable[[], float]:
        self.prepared.append(name)
        return lambda: self.seconds[name]
