"""`infini gguf diff` and `verify`: whether two files are the same, and whether one makes sense."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path
from typing import Annotated

import typer

from infini.cli import output
from infini.cli.gguf import common
from infini.core import errors
from infini.io import gguf
from infini.io.gguf import comparing


def diff(
    first: Annotated[Path, typer.Argument(help="A GGUF file, or one of several files of a model.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    meta: common.MetaFilter = "*",
    tensors: common.TensorFilter = "*",
    as_json: common.AsJson = False,
) -> None:
    """Show in what two models differ. The exit code is 1 when they do.

    Tensors of different types are compared as floats; `rms` is the size of the difference relative to the
    first.
    """
    a, b = gguf.read(first), gguf.read(second)
    filters = {"metadata": meta, "tensor": tensors}
    with common.bar("comparing") as bar:
        found = [
            own
            for own in comparing.differences(a, b, on_progress=bar)
            if fnmatch.fnmatchcase(own.name, filters[own.kind]) and own.name not in gguf.SPLIT_KEYS
        ]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(own) for own in found], indent=2))
    elif found:
        rows = [
            (
                own.kind,
                own.name,
                own.first or "-",
                own.second or "-",
                "" if own.rms is None else f"{own.rms:.2e}",
            )
            for own in found
        ]
        common.table("differences", rows, header=("", "name", first.name, second.name, "rms"))
    else:
        output.say("no differences")
    if found:
        raise typer.Exit(1)


def verify(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Files or patterns. Of a model in several files, any one of them.", metavar="FILE..."
        ),
    ],
    as_json: common.AsJson = False,
) -> None:
    """Check files: form, sizes, whether all numbers are finite, whether the parts of the tokenizer go
    together, and whether the tensors are those of the architecture. The exit code is 1 when something is
    wrong.
    """
    reports = {}
    for path in common.models(files):
        with common.bar("verifying") as bar:
            reports[str(path)] = _faults(path, bar)
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
    else:
        for name, found in reports.items():
            if found:
                common.table(
                    name, [(own["name"], own["what"]) for own in found], header=("where", "what is wrong")
                )
            else:
                output.say(f"{name}: nothing is wrong")
    if any(reports.values()):
        raise typer.Exit(1)


def _faults(path: Path, bar: common.Listener) -> list[dict[str, str]]:
    from infini.llm import checkpoints

    try:
        file = gguf.read(path)
    except errors.InfiniError as error:
        return [{"name": "file", "what": _sentence(error)}]
    found = [dataclasses.asdict(own) for own in comparing.faults(file, on_progress=bar)]
    if file.tensors:
        try:
            checkpoints.check(path)
        except errors.InfiniError as error:
            found.append({"name": "model", "what": _sentence(error)})
    return found


def _sentence(error: errors.InfiniError) -> str:
    return error.what + (f": {error.got}" if error.got else "")
