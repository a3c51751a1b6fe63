"""`python -m infini.perf SUITE`: measure, print a table, and append the run to `bench/results/`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infini import parallel
from infini.core import dtypes
from infini.parallel import processes as job
from infini.perf import (
    accuracy as accuracy_suite,
    contestants,
    core as core_suite,
    cpu as cpu_suite,
    exhaustive,
    judge,
    llm as llm_suite,
    plot as plot_,
    record,
    replay as replay_run,
    tables,
    workload as workload_,
    workloads,
)
from infini.perf.workloads import gpu as gpu_workloads

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
def cpu(
    *,
    family: Annotated[
        list[str] | None, typer.Option(help="Take this family; may be given several times.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Take workloads whose name begins so, such as softmax; may be given several times."
        ),
    ] = None,
    peers: Annotated[
        str, typer.Option(help="Contenders beside infini, by commas: jax, torch, torch_compile.")
    ] = "jax,torch,torch_compile",
    rounds: Annotated[
        int, typer.Option(help="Rounds; each starts new processes; 0 for 5, or 1 with --quick.", min=0)
    ] = 0,
    threads: Annotated[int, typer.Option(help="Threads of each contender.", min=1)] = 2,
    quick: Annotated[bool, typer.Option(help="Few sizes, one round and short turns.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Print the workloads and measure nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this file (PNG, SVG, PDF).")] = None,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """Every workload of the CPU backend beside JAX and PyTorch, against its target."""
    chosen, probes = _chosen(family or (), only or (), is_quick=quick)
    if listed:
        every: list[workload_.Workload | cpu_suite.Probe] = [*chosen, *probes]
        for item in every:
            typer.echo(f"{item.family:14}{item.name}{'' if item.is_quick else '  (not in --quick)'}")
        return
    options = cpu_suite.Options(
        names=_contenders(peers),
        num_rounds=rounds or (1 if quick else 5),
        num_threads=threads,
        budget_s=0.05 if quick else 0.1,
    )
    asked = {"family": family or [], "only": only or [], "quick": quick}
    show = Show(as_json=as_json, plot=plot, save=save)
    _run_suite("cpu", chosen, probes, options, asked, show)


@app.command()
def gpu(
    *,
    family: Annotated[
        list[str] | None, typer.Option(help="Take this family; may be given several times.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Take workloads whose name begins so; may be given several times."),
    ] = None,
    peers: Annotated[
        str, typer.Option(help="Contenders beside infini, by commas: jax, torch, torch_compile, triton.")
    ] = "jax,torch,torch_compile,triton",
    rounds: Annotated[int, typer.Option(help="Rounds; each starts new processes.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """Kernels and models on an NVIDIA GPU beside JAX, PyTorch and kernels written by hand in Triton."""
    chosen = [
        w
        for w in gpu_workloads.WORKLOADS
        if (not family or w.family in family) and (not only or w.name.startswith(tuple(only)))
    ]
    if not chosen:
        raise typer.BadParameter(
            f"no workload is asked for; there are {', '.join(w.name for w in gpu_workloads.WORKLOADS)}"
        )
    options = cpu_suite.Options(
        names=_contenders(peers), num_rounds=rounds, num_threads=len(record.cpus()), device="cuda"
    )
    asked = {"family": family or [], "only": only or []}
    _run_suite("gpu", chosen, [], options, asked, Show(as_json=as_json, save=save))


@dataclass(frozen=True, slots=True)
class Show:
    """What becomes of a run: JSON instead of tables, a picture, a record."""

    as_json: bool = False
    plot: Path | None = None
    save: bool = True


def _contenders(peers: str) -> tuple[contestants.Name, ...]:
    """The contenders that are asked for and installed; says what is left out."""
    wanted = [name.strip() for name in peers.split(",") if name.strip()]
    names = tuple(name for name in contestants.NAMES if name in wanted or name == "infini")
    if unknown := sorted(set(wanted) - set(contestants.NAMES)):
        raise typer.BadParameter(
            f"there is no contender {unknown[0]!r}; there are {', '.join(contestants.NAMES)}"
        )
    found = cpu_suite.installed(names)
    if missing := set(names) - set(found):
        typer.echo(f"not installed, left out: {', '.join(sorted(missing))}", err=True)
    return found


def _run_suite(
    suite: str,
    chosen: Sequence[workload_.Workload],
    probes: Sequence[cpu_suite.Probe],
    options: cpu_suite.Options,
    asked: Mapping[str, object],
    show: Show,
) -> None:
    """Measure family by family, print each table when it is done, and keep the run."""
    out, err = Console(highlight=False, width=200), Console(stderr=True, highlight=False)
    plot = show.plot
    if plot is not None and not plot_.is_available():
        err.print("matplotlib is not installed, so nothing will be drawn: python -m pip install matplotlib")
        plot = None
    limits = cpu_suite.measure_limits(options.num_threads, options.device)
    err.print(tables.limits_text(limits))
    lines: list[judge.Line] = []
    is_whole = False
    try:
        for name in workload_.TARGETS:
            own = [w for w in chosen if w.family == name]
            own_probes = [p for p in probes if p.family == name]
            if not own and not own_probes:
                continue
            tell = err.status(name) if err.is_terminal else None
            progress = tell.update if tell else (lambda text: None)
            with tell or contextlib.nullcontext():
                measured = cpu_suite.measure(own, options, limits, progress)
                measured += cpu_suite.measure_probes(own_probes, options, progress)
            found = [judge.line(m) for m in measured]
            lines += found
            if not show.as_json:
                out.print(tables.family(name, found))
        is_whole = True
    except KeyboardInterrupt:
        err.print("interrupted: the families before this one are kept")
    verdicts = judge.verdicts(lines)
    results = judge.as_json(lines, verdicts)
    if show.as_json:
        typer.echo(json.dumps(results, indent=1))
    else:
        for table in (tables.failures(lines), tables.verdicts(verdicts)):
            if table is not None:
                out.print(table)
    if show.save and lines:
        about = {
            "options": dataclasses.asdict(options) | dict(asked),
            "limits": limits.as_json(),
            "is_whole": is_whole,
        }
        path = record.append(suite, about | results)
        err.print(f"appended to {path.relative_to(record.ROOT)}")
    if plot is not None:
        plot_.draw(lines, plot)


def _chosen(
    families: Sequence[str], names: Sequence[str], *, is_quick: bool
) -> tuple[list[workload_.Workload], list[cpu_suite.Probe]]:
    """The workloads and probes that the options ask for."""
    if unknown := sorted(set(families) - set(workload_.TARGETS)):
        raise typer.BadParameter(
            f"there is no family {unknown[0]!r}; there are {', '.join(workload_.TARGETS)}"
        )

    def is_asked(item: workload_.Workload | cpu_suite.Probe) -> bool:
        return (
            (not families or item.family in families)
            and (not names or item.name.startswith(tuple(names)))
            and (item.is_quick or not is_quick)
        )

    chosen = [w for w in workloads.WORKLOADS if is_asked(w)]
    probes = [p for p in cpu_suite.PROBES if is_asked(p)]
    if not chosen and not probes:
        raise typer.BadParameter("no workload is asked for; --list shows them all")
    return chosen, probes


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Records of the CPU suite: bench/results/cpu-*.json.")],
    *,
    commit: Annotated[str, typer.Option(help="Take the runs of this commit; its beginning will do.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this file (PNG, SVG, PDF).")] = None,
) -> None:
    """Recorded runs of the CPU suite together, each as one round, against the targets."""
    runs = [
        run
        for path in files
        for run in json.loads(path.read_text(encoding="utf-8"))
        if run["commit"].startswith(commit)
    ]
    if not runs:
        raise typer.BadParameter(f"no run of commit {commit!r} is recorded there")
    lines = judge.merged(runs)
    out = Console(highlight=False, width=200)
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    out.print(
        f"{len(runs)} runs at {commits}; load {', '.join(str(run['machine'].get('load')) for run in runs)}"
    )
    for name in workload_.TARGETS:
        if own := [item for item in lines if item.measured.family == name]:
            out.print(tables.family(name, own))
    for table in (tables.failures(lines), tables.verdicts(judge.verdicts(lines))):
        if table is not None:
            out.print(table)
    if plot is not None:
        plot_.draw(lines, plot)


@app.command()
def kernels(
    *,
    quick: Annotated[bool, typer.Option(help="Few kernels.")] = False,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """What GPU kernels cost before they run: compilation, and the host's work of a replay. Needs no GPU."""
    found = importlib.import_module("infini.perf.kernels").report(is_quick=quick)
    for name, summary in found.items():
        scale, unit = (1e3, "ms") if name.startswith("compile") else (1e6, "us")
        median, low, high = (summary[key] * scale for key in ("median_s", "low_s", "high_s"))
        typer.echo(f"{name:36}{median:9.3g} {unit}  ({low:.3g} .. {high:.3g}; {summary['count']:.0f})")
    if save:
        path = record.append("kernels", {"options": {"quick": quick}, "measures": found})
        typer.echo(f"appended to {path.relative_to(record.ROOT)}", err=True)


@app.command()
def comm(
    *,
    processes: Annotated[str, typer.Option(help="Numbers of processes, by commas.")] = "1,2,4",
    only: Annotated[
        list[str] | None, typer.Option(help="Take this recipe; may be given several times.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Few sizes, and a small model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """Collectives between processes beside mpi4py, and train steps beside the cost model; under mpirun, those
    of that job.
    """
    suite = importlib.import_module("infini.perf.comm")
    if unknown := sorted(set(only or ()) - set(suite.RECIPES)):
        raise typer.BadParameter(f"there is no recipe {unknown[0]!r}; there are {', '.join(suite.RECIPES)}")
    counts = [int(part) if part.strip().isdigit() else 0 for part in processes.split(",")]
    if min(counts) < 1:
        raise typer.BadParameter(f"{processes!r} are no numbers of processes, such as 1,2,4")
    asked = {"size": "quick" if quick else "full", "only": only or []}
    limits = cpu_suite.measure_limits(1)
    if job.is_in_job():
        parallel.initialize()
        found = [suite.measured(limits, **asked)]
        if parallel.process_index() > 0:
            return
    else:
        found = [suite.launched(count, limits, **asked) for count in counts]
    reports = [one.as_json() for one in found]
    if as_json:
        typer.echo(json.dumps(reports, indent=1))
    else:
        out = Console(highlight=False, width=140)
        for one in found:
            out.print(*tables.communication(one), sep="\n")
    if save:
        path = record.append("comm", {"options": asked, "jobs": reports})
        typer.echo(f"appended to {path.relative_to(record.ROOT)}", err=True)


@app.command()
def linear(
    *,
    ggml: Annotated[Path | None, typer.Option(help="libggml.so of a build of llama.cpp, as a peer.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Take this kind of weights; may be given several times.")
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(help="Rows of activations; may be given several times.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Outputs and inputs, such as 2048x2048; may be given several times."),
    ] = None,
    activations: Annotated[str, typer.Option(help="exact or int8, in products with few bits.")] = "int8",
    dtype: Annotated[str, typer.Option(help="Dtype of activations; that of the weight when empty.")] = "",
    arranged: Annotated[
        bool, typer.Option(help="Arrange quantized weights for the processor before.")
    ] = True,
    threads: Annotated[int, typer.Option(help="Threads of each contender.", min=1)] = 2,
    turns: Annotated[int, typer.Option(help="Turns of each contender.", min=1)] = 5,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """One linear layer of every kind of weights, beside ggml and the limits of the machine."""
    suite = importlib.import_module("infini.perf.linear")
    if unknown := sorted(set(kind or ()) - set(suite.KINDS) - set(suite.ggml_.TYPES)):
        raise typer.BadParameter(f"there is no kind {unknown[0]!r}; there are {', '.join(suite.KINDS)}")
    library = suite.library(ggml, threads)
    limits = cpu_suite.measure_limits(threads)
    typer.echo(tables.limits_text(limits), err=True)
    shapes = [tuple(int(part) for part in one.split("x")) for one in shape or ()]
    found = []
    for case in suite.cases(kind or suite.KINDS, rows or suite.ROWS, shapes or suite.SHAPES):
        one = suite.measure(
            case, library=library, turns=turns, activations=activations, dtype=dtype, is_arranged=arranged
        )
        row = one.row(limits)
        found.append({"name": case.name, **row, "seconds": one.seconds})
        peers = "".join(
            f"  {name} {row[f'{name}_us']:9.0f} us = {row[f'{name}_over_infini']:5.2f}x"
            for name in one.seconds
            if name != "infini"
        )
        typer.echo(
            f"{case.name:20}{row['infini_us']:9.0f} us{row['gb_per_s']:7.1f} GB/s"
            f" {row['share_of_bandwidth']:4.0%}{row['gflop_per_s']:8.0f} GFLOP/s {row['share_of_peak']:5.0%}"
            f"  error {row['error']:.0e}{peers}"
        )
    if save:
        options = {
            "threads": threads,
            "turns": turns,
            "activations": activations,
            "dtype": dtype,
            "arranged": arranged,
        }
        path = record.append("linear", {"options": options, "cases": found})
        typer.echo(f"appended to {path.relative_to(record.ROOT)}", err=True)


@app.command()
def llm(
    files: Annotated[list[Path], typer.Argument(help="GGUF files.")],
    *,
    peer: Annotated[Path | None, typer.Option(help="Folder with llama-bench; PATH if absent.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in turns.", min=1)] = 3,
    threads: Annotated[int, typer.Option("--threads", "-t", help="Threads of both.", min=1)] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.", min=4)] = 512,
    generated: Annotated[int, typer.Option(help="Tokens of a sequence.", min=1)] = 64,
    streams: Annotated[int, typer.Option(help="Sequences at once; 0 leaves that out.", min=0)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    save: Annotated[bool, typer.Option(help="Append the run to bench/results/.")] = True,
) -> None:
    """The language model engine beside llama.cpp: prompts, one sequence, several at once."""
    work = llm_suite.Work(threads, prompt, generated, streams)
    programs = llm_suite.Peer.found(peer)
    found = llm_suite.measure(
        files, programs, work, rounds=rounds, on_done=lambda line: typer.echo(line, err=True)
    )
    rows = llm_suite.summary(found)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        table = Table("file", "measure", "infini", "llama.cpp", "ratio", "of rounds")
        for row in rows:
            spread = f"{row['least_ratio']:.2f} to {row['most_ratio']:.2f}"
            ours, theirs = row[llm_suite.OURS], row[llm_suite.THEIRS]
            table.add_row(
                row["file"], row["measure"], f"{ours:.2f}", f"{theirs:.2f}", f"{row['ratio']:.2f}", spread
            )
        Console().print(table)
    if save:
        options = {"rounds": rounds, **dataclasses.asdict(work)}
        path = record.append("llm", {"options": options, "measures": found})
        typer.echo(f"appended to {path.relative_to(record.ROOT)}", err=True)


@app.command()
def replay(
    metrics_file: Annotated[Path, typer.Argument(help="The .metrics.jsonl that `infini train` wrote.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="The files and folders that the run was given.")
    ] = None,
    disturbed: Annotated[
        int, typer.Option(help="Further runs of JAX from parameters with noise in their last place.", min=0)
    ] = 0,
    save: Annotated[bool, typer.Option(help="Append the result to bench/results/.")] = True,
) -> None:
    """Repeat a training run in JAX, and compare the losses."""
    found = replay_run.replay(metrics_file, data or [], num_disturbed=disturbed)
    for name, value in found.items():
        typer.echo(f"{name:34}{value:.6g}")
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
    every: Annotated[
        int, typer.Option(help="Take every so manieth float32 instead; 1 for all, in minutes.", min=0)
    ] = 0,
) -> None:
    """Errors of elementwise functions in units in the last place."""
    if every:
        for function, worst in exhaustive.table(only, dtypes.float32, every):
            typer.echo(f"| `{function.name}` | {worst.ulp:.2f} | {worst.argument!r} | {function.bound} |")
        return
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
