"""`python -m infini.perf SUITE`: measure, print a table, and append the run to `bench/results/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infini.perf import accuracy as accuracy_suite, core as core_suite, record, replay as replay_run

app = typer.Typer(help="Measurements of infini, with its peers beside it.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Measurements of infini, with its peers beside it."""


@app.command()
def core(
    *,
    rounds: Annotated[int, typer.Option(help="Rounds; each starts new processes.", min=1)] = 3,
    cpus: Annotated[int, typer.Option(help="CPUs of each process; 0 means all this one may use.", min=0)] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="Take this measure; may be given several times.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Measure JAX too when it is installed.")] = True,
    layers: Annotated[int, typer.Option(help="Layers of the model.", min=1)] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """Import, trace and compilation, cost per call, and the train step of the demo's model."""
    known = [measure.name for measure in core_suite.MEASURES]
    if unknown := sorted(set(only or ()) - set(known)):
        raise typer.BadParameter(f"there is no measure {unknown[0]!r}; there are {', '.join(known)}")
    names = core_suite.contenders() if peers else ["infini"]
    num_cpus = cpus or len(record.cpus())
    seconds = core_suite.measure(
        names, num_rounds=rounds, num_cpus=num_cpus, only=only or (), size={"num_layers": layers}
    )
    found = core_suite.report(seconds)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _print(found, num_cpus)
    if save:
        options = {"rounds": rounds, "cpus": num_cpus, "layers": layers}
        path = record.append("core", {"options": options, "measures": found})
        typer.echo(f"appended to {path.relative_to(record.ROOT)}", err=True)


@app.command()
def replay(
    metrics_file: Annotated[Path, typer.Argument(help="The .metrics.jsonl that `infini train` wrote.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="The files and folders that the run was given.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Append the result to bench/results/.")] = True,
) -> None:
    """Repeat a training run in JAX, and compare the losses."""
    found = replay_run.replay(metrics_file, data or [])
    for name, value in found.items():
        typer.echo(f"{name:24}{value:.6g}")
    if save:
        path = record.append("replay", {"measures": found})
        typer.echo(f"appended to {path.relative_to(record.ROOT)}", err=True)


@app.command()
def accuracy(
    *,
    count: Annotated[int, typer.Option(help="Arguments per function and dtype.", min=40)] = 40_000,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this function; may be given several times.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the page of the documentation here.")] = None,
    claim: Annotated[str, typer.Option(help="Row of docs/claims.md that the page refers to.")] = "C11",
) -> None:
    """Errors of elementwise functions in units in the last place."""
    chosen = [f for f in accuracy_suite.FUNCTIONS if not only or f.name in only]
    rows = []
    for name, single, double in accuracy_suite.table(chosen, count):
        typer.echo(f"{name:12}{single:10.2f}{double:10.2f}")
        rows.append((name, single, double))
    if page is not None:
        page.write_text(accuracy_suite.page(rows, claim), encoding="utf-8")


def _print(found: dict[str, Any], num_cpus: int) -> None:  # Any: JSON
    table = Table("", "infini", "jax", "jax / infini", title=f"medians (quartiles), {num_cpus} CPUs each")
    for item in core_suite.MEASURES:
        if item.name not in found:
            continue
        row = found[item.name]
        cells = [_cell(row.get(name), item) for name in ("infini", "jax")]
        ratio = row.get("jax_over_infini")
        table.add_row(item.what, *cells, "" if ratio is None else f"{ratio:.2f}")
    Console(highlight=False, width=120).print(table)


def _cell(summary: dict[str, float] | None, item: core_suite.Measure) -> str:
    if summary is None:
        return "-"
    median, low, high = (summary[key] * item.scale for key in ("median_s", "low_s", "high_s"))
    return f"{median:.3g} {item.unit} ({low:.3g} .. {high:.3g})"


if __name__ == "__main__":
    app()
