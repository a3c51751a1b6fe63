"""`python -m infini.backends`: which operation each backend computes, and how.

Exit code 1 when `--missing` finds one. Routes: own (an emitter or rule of the backend), kernel (inside fused
kernels), library, inlined (its body takes its place), decomposition (its definition in others), mesh
(communication of a program over several devices), transform (never reaches a backend), hole (none).
"""

from __future__ import annotations

import json as json_
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infini.backends import coverage
from infini.core import backend as backend_, errors, primitive, text
from infini.core.backend import Route

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_STYLES: dict[Route, str] = {
    "own": "green", "kernel": "green", "library": "green", "inlined": "dim", "decomposition": "cyan",
    "mesh": "magenta", "transform": "dim", "hole": "bold red",
}  # fmt: skip


@app.command()
def command(
    *,
    op: Annotated[str | None, typer.Option(help="One operation, with its rules and definition.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Backends to show; absent: all.")] = None,
    examples: Annotated[bool, typer.Option("--examples", help="Try every example, not one a dtype.")] = False,
    dtypes: Annotated[bool, typer.Option("--dtypes", help="A row for every dtype.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Only what a backend cannot compute.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON, by operation, backend and dtype.")] = False,
) -> None:
    """Show which operation each backend computes, and by which route."""
    try:
        names = _names(backend)
        rows = coverage.table(names, op, every_example=examples)
    except errors.InfiniError as error:
        typer.echo(f"{error.what}\n  expected: {error.expected}" if error.expected else error.what, err=True)
        raise typer.Exit(1) from None
    if missing:
        rows = [row for row in rows if any(row.worst(name) == "hole" for name in names)]
    if json:
        typer.echo(json_.dumps({row.op.name: row.routes for row in rows}, indent=1))
    elif missing and not rows:
        typer.echo(f"no operation is missing in {', '.join(names)}")
    else:
        console = Console(highlight=False)
        title = "operations that are missing" if missing else ""
        console.print(_table(rows, names, by_dtype=dtypes, title=title))
        if op is not None:
            console.print(_details(rows[0].op) if rows else "", markup=False, soft_wrap=True)
        elif not missing:
            console.print(_summary(rows, names), markup=False, soft_wrap=True)
    if missing and rows:
        raise typer.Exit(1)


def _names(chosen: Sequence[str] | None) -> list[str]:
    """The backends to show: those asked for, or all that can be loaded; `null` repeats `cpu`.

    Raises:
        DeviceError: there is no backend of a name.
    """
    if not chosen:
        loaded = [n for n in backend_.names() if not isinstance(backend_.get(n), backend_.Broken)]
        return [name for name in loaded if name != "null"]
    names = list(chosen)
    for name in names:
        found = backend_.get(name)
        if isinstance(found, backend_.Broken):
            raise errors.DeviceError(f"the backend {name!r} {found.reason}")
    return names


def _table(rows: Sequence[coverage.Row], names: Sequence[str], *, by_dtype: bool, title: str) -> Table:
    table = Table(title=title or None, title_justify="left")
    for column in ("operation", *(["dtype"] if by_dtype else []), *names):
        table.add_column(column)
    for row in rows:
        if not by_dtype:
            table.add_row(row.op.name, *(_cell(row, name) for name in names))
            continue
        for number, dtype in enumerate(row.routes[names[0]]):
            cells = [Text(row.routes[name][dtype], _STYLES[row.routes[name][dtype]]) for name in names]
            table.add_row(row.op.name if number == 0 else "", dtype, *cells)
    return table


def _cell(row: coverage.Row, name: str) -> Text:
    """The route of most dtypes, and those that take another one."""
    counts = Counter(row.routes[name].values())
    (main, _), *_ = counts.most_common()
    cell = Text(main, _STYLES[main])
    for other in sorted(set(counts) - {main}, key=coverage.ORDER.index):
        cell.append(f"\n{other}: {', '.join(row.dtypes_of(name, other))}", _STYLES[other])
    return cell


def _summary(rows: Sequence[coverage.Row], names: Sequence[str]) -> str:
    """One line per backend: how many operations take which route at worst, and why it has no device."""
    lines = []
    for name in names:
        counts = Counter(row.worst(name) for row in rows)
        parts = ", ".join(f"{counts[route]} {route}" for route in coverage.ORDER if counts[route])
        reason = backend_.get(name).why_unavailable()
        lines.append(f"{name}: {parts}" + (f" (no device here: {reason})" if reason else ""))
    for name in backend_.names():
        found = backend_.get(name)
        if isinstance(found, backend_.Broken):
            lines.append(f"{name}: {found.reason}")
    return "\n".join(lines)


def _details(op: primitive.Primitive) -> str:
    """What an operation declares, and its definition at the first of its examples."""
    lines = [f"rules: {', '.join(sorted(key.name for key in op.rules))}"]
    if isinstance(op.signature, primitive.Signature):
        lines.insert(0, f"signature: {op.signature}")
    sample = next(coverage.samples(op), None)
    if sample is not None:
        lines += ["", "example:", text.print_program(sample.program, lines=False)]
        if op.has(primitive.DECOMPOSE):
            lines += ["", "definition:", text.print_program(coverage.definition(sample), lines=False)]
    return "\n".join(lines)


if __name__ == "__main__":
    app()
