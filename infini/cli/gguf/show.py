"""`infini gguf show` and `infini gguf dump`: what a GGUF file says and holds."""

from __future__ import annotations

import fnmatch
import json
import math
from typing import Annotated, Any

import numpy as np
import typer

from infini.cli.gguf import common
from infini.core import errors
from infini.io import gguf
from infini.io.gguf import comparing

Json = dict[str, Any]  # Any: whatever JSON holds

Files = Annotated[
    list[str],
    typer.Argument(
        help="Files or patterns. Of a model in several files, any one of them.", metavar="FILE..."
    ),
]
Elements = Annotated[
    str, typer.Option("--elements", "-n", help="Elements of arrays to show: a number, or `all`.")
]


def show(
    files: Files,
    elements: Elements = "8",
    meta: common.MetaFilter = "*",
    tensors: common.TensorFilter = "*",
    data: Annotated[
        str | None, typer.Option("--data", help="Show this tensor's numbers instead of the lists.")
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Show metadata and tensors of models."""
    count = _count(elements)
    reports = []
    for path in common.models(files):
        file = gguf.read(path)
        if data is not None:
            reports.append(_numbers(file, data, count))
        elif as_json:
            reports.append(_everything(file, meta, tensors, count))
        else:
            _tables(file, meta, tensors, count)
    if as_json:
        typer.echo(json.dumps(reports if len(reports) > 1 else reports[0], indent=2))
    elif data is not None:
        for found in reports:
            common.table(f"{found['file']}: {data}", [(k, str(v)) for k, v in found.items() if k != "file"])


def dump(
    files: Files,
    meta: common.MetaFilter = "*",
    tensors: common.TensorFilter = "*",
    elements: Elements = "all",
) -> None:
    """Print all metadata, with types, and the list of tensors as JSON.

    Metadata of the same form go into a file for `infini gguf set-meta --from`.
    """
    reports = [_everything(gguf.read(path), meta, tensors, _count(elements)) for path in common.models(files)]
    typer.echo(json.dumps(reports if len(reports) > 1 else reports[0], indent=2))


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise errors.ValueMismatchError("-n takes a number or `all`", got=text)
    return int(text)


def _tables(file: gguf.GGUFFile, meta: str, tensors: str, count: int | None) -> None:
    name = str(file.path) + (f" and {len(file.paths) - 1} more" if len(file.paths) > 1 else "")
    fields = [
        (key, value.type_name, comparing.shown(value.plain(), count))
        for key, value in file.metadata.fields.items()
        if fnmatch.fnmatchcase(key, meta)
    ]
    if fields:
        common.table(f"{name}: metadata", fields, header=("key", "type", "value"))
    rows = [
        (x.name, x.type.name, " × ".join(map(str, x.shape)), common.size_text(x.nbytes))
        for x in file.tensors.values()
        if fnmatch.fnmatchcase(x.name, tensors)
    ]
    if rows:
        common.table(f"{name}: tensors", rows, header=("name", "type", "shape", "size"))
    if file.tensors:
        common.table(
            f"{name}: types", _types(file), header=("type", "tensors", "numbers", "size", "bits each")
        )


def _types(file: gguf.GGUFFile) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    found: dict[str, list[gguf.GGUFTensor]] = {}
    for x in file.tensors.values():
        found.setdefault(x.type.name, []).append(x)
    groups = sorted(found.items(), key=lambda item: -sum(x.nbytes for x in item[1]))
    for name, own in [*groups, ("all", list(file.tensors.values()))]:
        numbers, nbytes = sum(math.prod(x.shape) for x in own), sum(x.nbytes for x in own)
        rows.append(
            (name, str(len(own)), f"{numbers:,}", common.size_text(nbytes), f"{8 * nbytes / numbers:.2f}")
        )
    return rows


def _everything(file: gguf.GGUFFile, meta: str, tensors: str, count: int | None) -> Json:
    header = file.headers[0]
    return {
        "files": [str(path) for path in file.paths],
        "version": header.version,
        "alignment": file.alignment,
        "num_bytes": file.nbytes,
        "metadata": {
            key: {"type": value.type_name, "value": _cut(value.plain(), count)}
            for key, value in file.metadata.fields.items()
            if fnmatch.fnmatchcase(key, meta)
        },
        "tensors": {
            info.name: {
                "type": info.type.name,
                "shape": list(info.shape),
                "num_bytes": info.nbytes,
                "start": info.start,
                "file": number,
            }
            for number, own in enumerate(file.headers)
            for info in own.tensors
            if fnmatch.fnmatchcase(info.name, tensors)
        },
    }


def _cut(value: Any, count: int | None) -> Any:  # Any: a value of metadata
    return value[:count] if isinstance(value, list) and count is not None else value


def _numbers(file: gguf.GGUFFile, name: str, count: int | None) -> Json:
    x = file.tensors.get(name)
    if x is None:
        near = [own for own in file.tensors if name in own]
        raise errors.ValueMismatchError(
            f"{file.path.name} has no tensor of this name",
            got=name,
            expected=", ".join(near[:6]) or "one that `infini gguf show` lists",
        )
    numbers = x.numpy().astype(np.float64).reshape(-1)
    finite = numbers[np.isfinite(numbers)]
    some = finite if finite.size else np.zeros(1)
    return {
        "file": str(file.path),
        "type": x.type.name,
        "shape": list(x.shape),
        "num_bytes": x.nbytes,
        "min": float(some.min()),
        "max": float(some.max()),
        "mean": float(some.mean()),
        "deviation": float(some.std()),
        "not_finite": int(numbers.size - finite.size),
        "first": [float(f"{v:.6g}") for v in (numbers if count is None else numbers[:count])],
    }
