"""`python -m infini.testing.conformance --backend NAME`: the checks as a table.

Exit code 1 when a check failed, or with `--strict` was not available; 2 when there is no such backend.
"""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infini.core import errors
from infini.testing.conformance.checks import SECTIONS, Outcome, Subject, run
from infini.testing.conformance.suite import all_checks

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_STYLES = {"passed": "green", "failed": "bold red", "not available": "yellow"}


@app.command()
def command(
    *,
    backend: Annotated[str, typer.Option(help="Name of the backend, such as metax or ascend.")],
    section: Annotated[
        list[str] | None, typer.Option(help=f"Sections to run: {', '.join(SECTIONS)}; absent: all.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What is not available counts as failed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON, a list of outcomes.")] = False,
) -> None:
    """Check that a backend's devices do what infini asks of them."""
    try:
        subject = Subject(backend)
    except errors.DeviceError as error:
        typer.echo(f"{error.what}\n  expected: {error.expected}\n  fix: {error.fix}", err=True)
        raise typer.Exit(2) from None
    unknown = sorted(set(section or ()) - set(SECTIONS))
    if unknown:
        typer.echo(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}", err=True)
        raise typer.Exit(2)
    checks = [check for check in all_checks() if not section or check.section in section]
    outcomes = list(run(subject, checks))
    if json:
        typer.echo(json_.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        _show(backend, outcomes)
    bad = ("failed", "not available") if strict else ("failed",)
    raise typer.Exit(int(any(outcome.status in bad for outcome in outcomes)))


def _show(name: str, outcomes: list[Outcome]) -> None:
    console = Console(highlight=False)
    table = Table(title=f"conformance of {name}", title_justify="left")
    for column in ("section", "check", "status", "what was seen"):
        table.add_column(column, overflow="fold")
    section, reasons = "", set()
    for outcome in outcomes:
        if section not in ("", outcome.section):
            table.add_section()
        # One reason stands for all checks that it stops.
        is_repeated = outcome.status == "not available" and outcome.detail in reasons
        table.add_row(
            outcome.section if section != outcome.section else "",
            outcome.name,
            f"[{_STYLES[outcome.status]}]{outcome.status}[/]",
            "as above" if is_repeated else escape(outcome.detail),
        )
        section = outcome.section
        reasons.add(outcome.detail)
    console.print(table)
    counts = {s: sum(outcome.status == s for outcome in outcomes) for s in _STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))


if __name__ == "__main__":
    app()
