"""`infini pull` and `infini models`: models from hubs, and those on this machine."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infini.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress, TaskID

    from infini.llm import hub
    from infini.llm.hub import remote

app = typer.Typer(help="Models on this machine.", no_args_is_help=True)

_NAME = typer.Argument(
    help="ORG/MODEL, ORG/MODEL:VARIANT for a GGUF file, ORG/MODEL@REVISION.", show_default=False
)


@app.command("pull")
def pull(  # noqa: PLR0917  # typer passes them by name
    name: Annotated[str, _NAME],
    source: Annotated[Literal["huggingface", "modelscope"], typer.Option(help="Which hub.")] = "huggingface",
    endpoint: Annotated[
        str | None, typer.Option(help="Address of a mirror; else HF_ENDPOINT or MODELSCOPE_ENDPOINT.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Proof of who asks; else HF_TOKEN or MODELSCOPE_API_TOKEN.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of files to fetch; may be repeated. Else what models need."),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern of files to leave out.")] = None,
) -> None:
    """Fetch a model from a hub. A pull that was cut off goes on where it ended."""
    from infini.llm import hub

    if revision is not None:
        base, colon, variant = name.partition(":")
        name = f"{base}@{revision}{colon}{variant}"
    try:
        with _progress() as progress:
            place = hub.pull(
                name,
                source=source,
                endpoint=endpoint,
                token=token,
                include=include or (),
                exclude=exclude or (),
                progress=progress,
            )
    except KeyboardInterrupt:
        output.say("stopped; the same command goes on where it ended")
        raise typer.Exit(130) from None
    typer.echo(place)


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models of the store and of Hugging Face's cache."""
    from infini.llm import hub

    found = hub.models()
    if as_json:
        typer.echo(json.dumps([_facts(model) for model in found], indent=2))
        return
    if not found:
        output.say(f"no models in {hub.root()}; fetch one with `infini pull ORG/MODEL`")
        return
    rows = [
        (
            model.name,
            _variants(model) or model.kind,
            _size(model.nbytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(model.changed)),
            model.where,
        )
        for model in found
    ]
    output.show_table("models", rows, header=("name", "kind", "size", "changed", "where"))


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a model that is here, or a path.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what a model is: files, architecture, context, tokenizer, chat template."""
    from infini.llm import hub

    place = hub.place_of(name)
    facts = _described(place, next((model for model in hub.models() if model.path == place), None))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    shown = {key: value for key, value in facts.items() if key not in ("files", "chat_template", "nbytes")}
    shown["size"] = _size(facts["nbytes"])
    rows = [
        (key.replace("_", " "), _text(value)) for key, value in shown.items() if value not in (None, [], "")
    ]
    template = facts["chat_template"]
    rows.append(("chat template", f"{len(template):,} letters" if template else "none"))
    output.show_table(name, rows)
    output.show_table("files", [(file, _size(nbytes)) for file, nbytes in facts["files"].items()])


@app.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(help="ORG/MODEL, or ORG/MODEL:VARIANT.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete pulled models."""
    from infini.llm import hub

    for name in names:
        if not yes and sys.stdin.isatty():
            typer.confirm(f"delete {name}?", abort=True, err=True)
        model = hub.remove(name)
        output.say(f"deleted {name} from {model.path.parent}")


# --- what is shown ----------------------------------------------------------------------------


def _facts(model: hub.Model) -> dict[str, Any]:  # Any: JSON
    return {
        "name": model.name,
        "path": str(model.path),
        "where": model.where,
        "kind": model.kind,
        "variants": _variants(model).split(", ") if _variants(model) else [],
        "nbytes": model.nbytes,
        "commit": model.commit,
        "changed": int(model.changed),
    }


def _variants(model: hub.Model) -> str:
    from infini.llm.hub import store

    return ", ".join(store.variants(model.files))


def _described(place: Path, model: hub.Model | None) -> dict[str, Any]:  # Any: JSON
    """Facts of a model by its files; what cannot be read is left out."""
    from infini.core import errors
    from infini.io import gguf, hugging_face
    from infini.llm.text import reasoning, tokenizer, tools

    folder = place if place.is_dir() else place.parent
    files = {place.name: place.stat().st_size} if place.is_file() else _files(folder)
    config: dict[str, Any] = {}
    with contextlib.suppress(errors.InfiniError):
        if place.suffix == ".gguf":
            metadata = gguf.read(place, has_data=False).metadata
            kind = str(metadata.get("general.architecture", ""))
            config = {
                "model_type": kind,
                "max_position_embeddings": metadata.get(f"{kind}.context_length"),
                "num_hidden_layers": metadata.get(f"{kind}.block_count"),
                "hidden_size": metadata.get(f"{kind}.embedding_length"),
            }
        else:
            config = hugging_face.read_optional_json(folder / hugging_face.CONFIG)
    tokens = None
    with contextlib.suppress(errors.InfiniError):
        tokens = tokenizer.load(place)
    parsers = [getattr(find(tokens), "name", None) for find in (tools.parser_of, reasoning.parser_of)]
    return {
        "path": str(place),
        "commit": "" if model is None else model.commit,
        "architecture": config.get("model_type"),
        "context_length": _number(config.get("max_position_embeddings")),
        "layers": _number(config.get("num_hidden_layers")),
        "hidden_size": _number(config.get("hidden_size")),
        "dtype": config.get("torch_dtype") or config.get("dtype"),
        "vocabulary": None if tokens is None else tokens.vocab_size,
        "ends_with": [] if tokens is None else [tokens.token_text(id) for id in tokens.eos_ids],
        "tool_calls": parsers[0],
        "reasoning": parsers[1],
        "chat_template": None if tokens is None else tokens.chat_template,
        "files": files,
        "nbytes": sum(files.values()),
    }


def _files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _number(value: Any) -> int | None:  # Any: JSON, or NumPy's number
    return None if value is None else int(value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


# --- progress ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress() -> Iterator[hub.Progress]:
    """A bar for each file and one for all; without a terminal a line for each file."""
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


class _Bars:
    """Bars of the files that are on their way."""

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._all: TaskID | None = None
        self._bars: dict[str, TaskID] = {}
        self._sizes: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def begin(self, files: Sequence[remote.RemoteFile]) -> None:
        """Show the bar of all files."""
        self._sizes = {file.path: file.size for file in files}
        if files:
            total = sum(file.size or 0 for file in files)
            self._all = self._progress.add_task(f"{len(files)} files", total=total)

    def advance(self, path: str, nbytes: int) -> None:
        """Move the bars of a file and of all."""
        with self._lock:
            if path not in self._bars:
                self._bars[path] = self._progress.add_task(path, total=self._sizes.get(path))
        self._progress.advance(self._bars[path], nbytes)
        if self._all is not None:
            self._progress.advance(self._all, nbytes)

    def end(self, path: str) -> None:
        """Take the bar of a file away."""
        with self._lock:
            bar = self._bars.pop(path, None)
        if bar is not None:
            self._progress.remove_task(bar)


class _Lines:
    """Lines for logs."""

    def begin(self, files: Sequence[remote.RemoteFile]) -> None:
        """Say how much there is."""
        total = sum(file.size or 0 for file in files)
        count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
        output.say(f"{count}, {_size(total)}" if files else "nothing to fetch: all is here")

    def advance(self, path: str, nbytes: int) -> None:
        """Say nothing."""

    def end(self, path: str) -> None:
        """Say that a file is here."""
        output.say(f"{path} is here")
