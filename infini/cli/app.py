"""The command put together, and how it fails: one readable panel and exit code 1 instead of a traceback.

Modules of ours are imported here; the heavy libraries behind them load when a command needs them.
"""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from infini.cli import (
    batch,
    bench,
    cache,
    chat,
    demo,
    evaluate,
    generate,
    gguf,
    machine,
    models,
    output,
    serve,
    serve_values,
    tokenize,
    train,
)
from infini.core import comm, errors


class _Group(TyperGroup):
    """A group whose commands report our errors as panels."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # Any: as its base
        try:
            return super().invoke(ctx)
        except errors.InfiniError as error:
            _fail(error)
        except BrokenPipeError:  # whoever read our output has seen enough
            output.discard_the_rest()
            raise typer.Exit(1) from None
        except OSError as error:
            _fail(_of_the_system(error))


def _fail(error: errors.InfiniError) -> NoReturn:
    """Show an error and end; under mpirun the whole job, whose other processes would wait for this one."""
    processes = comm.processes()
    if processes.launcher is not None and processes.count > 1:
        output.show_error(error, where=f" in process {processes.index}, {processes.launcher.place()}")
        processes.launcher.abort(1)
    output.show_error(error)
    raise typer.Exit(1) from None


def _of_the_system(error: OSError) -> errors.InfiniError:
    """What the system refused: permissions, space, and the like."""
    return errors.InfiniError(
        f"the system refused: {error.strerror or error}",
        got=None if error.filename is None else str(error.filename),
        fix="see to permissions and free space there, or name another place",
    )


app = typer.Typer(
    name="infini",
    cls=_Group,
    help="infini: arrays, transformations and language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("generate")(generate.command)
app.command("batch")(batch.command)
app.command(
    "serve", cls=serve_values.Command, context_settings={"auto_envvar_prefix": serve_values.ENVIRONMENT}
)(serve.command)
app.command("chat")(chat.command)
app.command("tokenize")(tokenize.command)
app.command("pull")(models.pull)
app.add_typer(models.app, name="models")
app.command("demo")(demo.command)
app.add_typer(bench.app, name="bench")
app.add_typer(evaluate.app, name="eval")
app.command("devices")(machine.devices)
app.command("doctor")(machine.doctor)
app.add_typer(cache.app, name="cache")
app.add_typer(gguf.app, name="gguf")
app.command("version")(machine.version)


def main() -> None:
    """Run the command with the arguments of the process."""
    app()
