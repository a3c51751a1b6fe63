"""`show`: every stage of a compiled program as one page that needs nothing else."""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from infini.compiler import dump, inspection
from infini.core import config, ir
from infini.core.backend import CompileOptions
from infini.debug import layout, subject as subject_


@dataclass(frozen=True, slots=True)
class Page:
    """A page on disk. It is a path for whoever opens files, and shows itself in a notebook."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> str:
        """The HTML."""
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        content = html.escape(self.read(), quote=True)
        return f'<iframe srcdoc="{content}" style="width: 100%; height: 44rem; border: 0"></iframe>'


@runtime_checkable
class Inspects(Protocol):
    """What a backend may offer: all stages of a program."""

    def inspect(self, program: ir.Program, options: CompileOptions) -> inspection.Inspection:
        """Every stage of a program, from traced to assembly."""


def show(function: Any, /, *args: Any, path: str | Path | None = None, **kwargs: Any) -> Page:  # Any: pytrees
    """Write a page with every stage of a function, print where it is, and return it.

    The page has the program before and after every pass, the tile program, LLVM text and assembly of every
    kernel, and the user's lines beside them: hover over a line on either side to see what it became, or type
    to search in everything. It loads nothing, so it can be mailed.

    Args:
        function: a function, jitted or not, or what `lower` or `compile` of a jitted one gave.
        args: its arguments, or `ShapeDtypeStruct` in their place when the function is lowered.
        path: the file; in the folder of the knob `dump_dir` when absent.
        kwargs: its keyword arguments.

    Returns:
        The page, which `open` and notebooks understand.

    Raises:
        UnsupportedError: the program runs on several devices.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> page = inf.debug.show(lambda x: inp.tanh(x) * 2, inp.ones(8))  # doctest: +SKIP
    """
    subject = subject_.of(function, args, kwargs)
    backend, program = subject.device.backend, subject.program
    if isinstance(backend, Inspects):
        found = backend.inspect(program, subject.options)
    else:
        found = inspection.Inspection(program, backend.name)
    place = Path(path) if path is not None else Path(config.get("dump_dir")) / f"{dump.stem(program)}.html"
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.part")
    part.write_text(layout.page(found), encoding="utf-8")
    part.replace(place)
    sys.stdout.write(f"wrote {place}\n")
    return Page(place)
