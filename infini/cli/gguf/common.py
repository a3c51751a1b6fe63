"""What the commands of `infini gguf` share: options, bars, sizes, and the report at the end."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from infini.cli import output
from infini.core import errors
from infini.io import gguf

Listener = Callable[[str, int, int], None]

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
MetaFilter = Annotated[str, typer.Option("--meta", "-m", help="Only keys like this, with * and ?.")]
TensorFilter = Annotated[str, typer.Option("--tensors", "-t", help="Only tensors like this, with * and ?.")]
MaxBytes = Annotated[
    str | None,
    typer.Option("--max-bytes", "-s", help="Bytes of tensors in a file at most: 2G, 500M, 1Gi ..."),
]
MaxTensors = Annotated[
    int | None, typer.Option("--max-tensors", "-t", help="Tensors in a file at most.", min=1)
]
NoTensorFirst = Annotated[
    bool, typer.Option("--no-tensor-first", help="Leave the first file without tensors.")
]
NoData = Annotated[
    bool,
    typer.Option("--no-data", help="Leave out the numbers: a file to look at, which no program can run."),
]


def nbytes_of(text: str | None) -> int | None:
    """A number of bytes such as 2G (powers of 1000) or 2Gi (powers of 1024).

    Raises:
        ValueMismatchError: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found is not None else 0
    if size < 1:
        raise errors.ValueMismatchError(
            "this is no number of bytes", got=text, expected="such as 500M, 2G or 1Gi"
        )
    return size


def shards_of(max_bytes: str | None, max_tensors: int | None, no_tensor_first: bool) -> gguf.Shards | None:
    """How to spread a model over files, as options say; None for one file."""
    if max_bytes is None and max_tensors is None and not no_tensor_first:
        return None
    return gguf.Shards(nbytes_of(max_bytes), max_tensors, no_tensor_first)


def models(patterns: list[str]) -> list[Path]:
    """One file of each model that some patterns name; files of one model count once.

    Raises:
        ValueMismatchError: a pattern names nothing.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).is_file() else _matching(pattern)
        if not paths:
            raise errors.ValueMismatchError(
                "no file has this name", got=pattern, expected="a file, or a pattern"
            )
        for path in paths:
            if path.is_file():
                first = gguf.shards(path)[0]
                found.setdefault(first.resolve(), first)
    return list(found.values())


def _matching(pattern: str) -> list[Path]:
    path = Path(pattern)
    return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))


@contextlib.contextmanager
def bar(what: str) -> Iterator[Listener]:
    """A bar on standard error while the block runs, when that is a terminal."""
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield lambda name, done, total: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[name]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, name="")
        yield lambda name, done, total: progress.update(task, completed=done, total=total, name=name)


def report(paths: list[Path], as_json: bool, **more: Any) -> None:  # Any: whatever JSON holds
    """What was written: paths on standard output, so that scripts can use them."""
    sizes = {str(path): path.stat().st_size for path in paths}
    if as_json:
        typer.echo(
            json.dumps({"files": [{"path": p, "num_bytes": n} for p, n in sizes.items()], **more}, indent=2)
        )
        return
    for path in sizes:
        typer.echo(path)
    facts = ", ".join(f"{key} {value}" for key, value in more.items())
    output.say(
        f"{size_text(sum(sizes.values()))} in {len(sizes)} file{'s'[: len(sizes) > 1]}"
        + (f", {facts}" if facts else "")
    )


def table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """A table in a terminal; lines with tabs elsewhere, for programs that search them."""
    if output.console().is_terminal:
        output.show_table(title, rows, header=header)
        return
    for row in rows:
        typer.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))


def size_text(nbytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"
