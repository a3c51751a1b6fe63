"""`infini train`: a language model on text of the user's choice, which can be interrupted and resumed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

from infini import parallel
from infini.cli import output, training
from infini.core import errors
from infini.train import configuration as configuration_, options, runs
from infini.train.configuration import Configuration

# Set by the launchers of MPICH and its kin, and of Open MPI.
_JOB_SIZES: Final = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
INTERRUPTED: Final = 130  # what shells report of a program that Ctrl-C ended


def command(  # noqa: PLR0917  # typer passes them by name
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
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option, such as optimizer.learning_rate=3e-4; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all options as TOML and do nothing.")
    ] = False,
) -> None:
    """Train a language model on text.

    The folder of the run holds its configuration, measurements, checkpoints, and at the end the model as a
    Hugging Face folder. Ctrl-C saves a checkpoint; --resume goes on from the newest one.
    """
    changes = _assignments(data, steps, seconds, set_ or [])
    if print_config:
        start = configuration_.read(config) if config else Configuration()
        typer.echo(options.to_toml(options.override(start, changes)), nl=False)
        return
    _join_job()
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
        raise typer.Exit(INTERRUPTED)
    output.say(f'to try it: infini generate {shlex.quote(str(out))} -p "..."')


def _join_job() -> None:
    """Under `mpirun -n 2` and more, share the run with the other processes."""
    if any(int(os.environ.get(name) or 1) > 1 for name in _JOB_SIZES):
        parallel.initialize()


def _assignments(
    data: list[str] | None, steps: int | None, seconds: float | None, given: list[str]
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
    return found + given
