"""What commands write to the terminal: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from infini.core import comm, errors


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now, which tests may have replaced."""
    return Console(stderr=stderr, highlight=False)


def show_error(error: errors.InfiniError, *, where: str = "") -> None:
    """One panel with the parts of an error; the user's line is ours here, and is left out."""
    body = Text(error.what)
    for label, part in (("got", error.got), ("expected", error.expected), ("fix", error.fix)):
        if part:
            body.append(f"\n{label}: ", style="bold").append(part)
    console(stderr=True).print(Panel(body, title=f"error{where}", title_align="left", border_style="red"))


def show_table(title: str, rows: Iterable[tuple[str, ...]], *, header: tuple[str, ...] = ()) -> None:
    """Rows of text with aligned columns."""
    table = Table(title=title, title_justify="left", show_header=bool(header), title_style="bold")
    rows = list(rows)
    for index in range(len(header) or len(rows[0])):
        table.add_column(header[index] if header else "", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def say(text: str) -> None:
    """Lines for people, on standard error, from the processes that the knob `log_ranks` names."""
    if comm.speaks():
        text = "\n".join(comm.prefix() + line for line in text.splitlines())
        console(stderr=True).print(text, soft_wrap=True, markup=False)


def discard_the_rest() -> None:
    """Standard output leads nowhere any more: what Python still writes at its end is thrown away."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stream(text: str) -> None:
    """Write text at once, replacing what the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
