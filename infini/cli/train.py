"""`infini train`: a language model on text of the user's choice, which can be interrupted and resumed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from infini import parallel
from infini.cli import launch, output, training
from infini.core import config as config_, errors
from infini.parallel import processes as processes_
from infini.train import configuration as configuration_, options, runs
from infini.train.configuration import Configuration


def command(  # noqa: PLR0917, PLR0913  # options; typer passes them by name
    config: Annotated[
        Path | None, typer.Option(help="TOML file with options; --print-config writes one.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="File, folder or pattern of text; may be repeated. Default: Python's standard library."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    steps: Annotated[int | None, typer.Option(help="Number of steps: --set run.steps=N.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of training: --set run.seconds=S. Default: 90.")
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(help="How devices share the run, such as dp=2,tp=2: --set mesh.dp=2 --set mesh.tp=2."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option, such as optimizer.learning_rate=3e-4; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes to start, by mpirun.")] = 1,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often to go on from the newest checkpoint after a failure.")
    ] = 0,
    log_ranks: Annotated[
        str | None, typer.Option(help="Processes that say how it goes, such as 0,2 or all. Default: 0.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all options as TOML and do nothing.")
    ] = False,
) -> None:
    """Train a language model on text.

    The folder of the run holds its configuration, measurements, checkpoints, and at the end the model as a
    Hugging Face folder. Ctrl-C saves a checkpoint; --resume goes on from the newest one.
    """
    changes = _assignments(data, steps, seconds, mesh, set_ or [])
    if print_config:
        start = configuration_.read(config) if config else Configuration()
        typer.echo(options.to_toml(options.override(start, changes)), nl=False)
        return
    if log_ranks is not None:
        config_.config.update("log_ranks", log_ranks)
    if processes > 1 or max_restarts > 0:
        raise typer.Exit(_launch(out, processes, max_restarts, _typed(config, changes, resume, log_ranks)))
    if processes_.is_in_job():
        parallel.initialize()
    if resume:
        chosen, notes = runs.resume_configuration(out, config, changes)
        for note in notes:
            output.say(f"{note}: from here on this is another run")
    else:
        if parallel.process_index() == 0:  # the others may come when it has begun
            runs.check_new(out)
        chosen = options.override(configuration_.read(config) if config else Configuration(), changes)
    result = training.run(chosen, runs.Places.of_run(out), is_resumed=resume)
    if result.outcome.stopped_by == "interrupt":
        output.say(
            f"interrupted after {result.outcome.num_steps} steps, checkpoint: {result.outcome.checkpoint}\n"
            f"to go on: infini train --out {shlex.quote(str(out))} --resume"
        )
        raise typer.Exit(launch.INTERRUPTED)
    output.say(f'to try it: infini generate {shlex.quote(str(out))} -p "..."')


def _typed(config: Path | None, changes: list[str], resume: bool, log_ranks: str | None) -> list[str]:
    """The options of this command for the processes that it starts, but for the folder."""
    found = [] if config is None else ["--config", str(config)]
    found += [word for change in changes for word in ("--set", change)]
    found += ["--resume"] if resume else []
    return found + ([] if log_ranks is None else ["--log-ranks", log_ranks])


def _launch(out: Path, processes: int, max_restarts: int, typed: list[str]) -> int:
    """Start the processes of a run, again after each failure while there is a run to resume."""
    start = ["train", "--out", str(out), *typed]
    launch.check_outside(processes, max_restarts, start)
    checkpoints = runs.Places.of_run(out).checkpoints
    assert checkpoints is not None

    def newest() -> str:
        names = sorted((path.name for path in checkpoints.glob("step-*")), key=lambda name: (len(name), name))
        return f"from {names[-1]}" if names else "from the start, for there is no checkpoint yet"

    return launch.supervise(
        start,
        # The folder has the configuration by then, with every change.
        start
        if "--resume" in typed
        else ["train", "--out", str(out), "--resume", *_only(typed, "--log-ranks")],
        processes=processes,
        max_restarts=max_restarts,
        can_resume=(out / "config.toml").is_file,
        newest=newest,
    )


def _only(arguments: list[str], option: str) -> list[str]:
    """An option with its value, when it is there."""
    at = arguments.index(option) if option in arguments else len(arguments)
    return arguments[at : at + 2]


def _assignments(
    data: list[str] | None, steps: int | None, seconds: float | None, mesh: str | None, given: list[str]
) -> list[str]:
    """The short options as assignments, before those given by --set."""
    if steps is not None and seconds is not None:
        raise errors.ValueMismatchError(
            "give either a number of steps or a time",
            got=f"--steps {steps} and --seconds {seconds}",
            expected="one of them",
            fix="leave one out",
        )
    found = []
    if data:
        found.append(f"data.paths=[{', '.join(options.toml_value(path) for path in data)}]")
    if steps is not None:
        found += [f"run.steps={steps}", "run.seconds=none"]
    if seconds is not None:
        found += [f"run.seconds={seconds}", "run.steps=none"]
    if mesh is not None:
        found += [f"mesh.{part.strip()}" for part in mesh.split(",")]
    return found + given
