"""`infini gguf split`, `merge` and `set-meta`: the same tensors in other files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from infini.cli.gguf import common
from infini.core import errors
from infini.io import gguf, hugging_face

_TYPES: Final = {kind.name.lower(): kind for kind in gguf.ValueType}
_SHORT: Final = {
    "str": "string", "u8": "uint8", "i8": "int8", "u16": "uint16", "i16": "int16", "u32": "uint32",
    "i32": "int32", "u64": "uint64", "i64": "int64", "f32": "float32", "f64": "float64",
}  # fmt: skip

File = Annotated[Path, typer.Argument(help="A GGUF file, or one of several files of a model.")]


def split(  # noqa: PLR0917  # typer passes them by name
    file: File,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the files; that of the model when absent."),
    ] = None,
    max_tensors: common.MaxTensors = None,
    max_bytes: common.MaxBytes = None,
    no_tensor_first: common.NoTensorFirst = False,
    no_data: common.NoData = False,
    as_json: common.AsJson = False,
) -> None:
    """Spread a model over several files, NAME-00001-of-00003.gguf."""
    shards = common.shards_of(max_bytes, max_tensors, no_tensor_first)
    if shards is None:
        raise errors.ValueMismatchError(
            "nothing says how large the files may be", expected="--max-bytes 2G, or --max-tensors 128"
        )
    model = gguf.read(file)
    target = (output or file.parent) / f"{gguf.stem_of(file)}.gguf"
    _write(model, target, "splitting", shards=shards, no_data=no_data, as_json=as_json)


def merge(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    no_data: common.NoData = False,
    as_json: common.AsJson = False,
) -> None:
    """Put the files of a model together."""
    _write(gguf.read(file), output, "merging", shards=None, no_data=no_data, as_json=as_json)


def _write(
    model: gguf.GGUFFile,
    target: Path,
    what: str,
    *,
    shards: gguf.Shards | None,
    no_data: bool,
    as_json: bool,
) -> None:
    with common.bar(what) as bar:
        paths = gguf.write(
            target,
            model.metadata,
            model.tensors.values(),
            alignment=model.alignment,
            shards=shards,
            has_data=not no_data,
            on_progress=bar,
        )
    common.report(paths, as_json, tensors=len(model.tensors))


def set_meta(
    file: File,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            help="KEY=VALUE or KEY:TYPE=VALUE. Lists are written as in JSON.", metavar="[KEY=VALUE]..."
        ),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-r", help="A key to remove; may be repeated.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help='JSON file of values: {"key": value} or {"key": {"type": ..., "value": ...}}.'
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; the model itself when absent.")
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Change metadata of a model.

    A key keeps its type unless another one is named. New keys get the type of their value: whole numbers
    uint32, fractions float32, true and false bool, everything else string.
    """
    model = gguf.read(file)
    if len(model.paths) > 1:
        raise errors.ValueMismatchError(
            "metadata of a model in several files are not changed in place",
            got=f"{len(model.paths)} files",
            fix=f"put them together first: infini gguf merge {file} -o {gguf.stem_of(file)}.gguf",
        )
    fields = dict(model.metadata.fields)
    changes = _from_file(source, fields) if source is not None else {}
    for text in values or ():
        key, value = _parsed(text, fields)
        changes[key] = value
    unknown = [key for key in remove or () if key not in fields]
    if unknown:
        raise errors.ValueMismatchError("there is no such key to remove", got=unknown[0])
    if not changes and not remove:
        raise errors.ValueMismatchError("nothing is to be changed", expected="KEY=VALUE, --from or --remove")
    kept = {key: value for key, value in (fields | changes).items() if key not in (remove or ())}
    target = output or file
    with common.bar("writing") as bar:
        paths = gguf.write(target, kept, model.tensors.values(), on_progress=bar)
    common.report(paths, as_json, changed=len(changes), removed=len(remove or ()))


def _parsed(text: str, fields: dict[str, gguf.Value]) -> tuple[str, gguf.Value]:
    found = re.fullmatch(r"([^=:]+)(?::([A-Za-z0-9]+(?:\[\])?))?=(.*)", text, re.DOTALL)
    if found is None:
        raise errors.ValueMismatchError(
            "this is no value of metadata",
            got=text,
            expected="KEY=VALUE, or KEY:TYPE=VALUE such as a.b:uint32=7",
        )
    key, kind, value = found[1], found[2], found[3]
    if kind is None and key in fields:
        return key, _typed(key, value, fields[key].kind, fields[key].item)
    if kind is None:
        return key, gguf.value_of(_guessed(value))
    item = _type_of(kind.removesuffix("[]"))
    return key, _typed(key, value, *((gguf.ValueType.ARRAY, item) if kind.endswith("[]") else (item, None)))


def _type_of(name: str) -> gguf.ValueType:
    found = _TYPES.get(_SHORT.get(name.lower(), name.lower()))
    if found is None or found is gguf.ValueType.ARRAY:
        names = [own for own in _TYPES if own != "array"]
        raise errors.ValueMismatchError(
            "there is no such type of metadata",
            got=name,
            expected=", ".join(names) + ", or one of them with []",
        )
    return found


def _guessed(text: str) -> Any:  # Any: a value of metadata
    """A text as what it looks like; JSON's numbers, truth values and lists are what they are there."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    return found if isinstance(found, bool | int | float | list) else text


def _typed(
    key: str, text: Any, kind: gguf.ValueType, item: gguf.ValueType | None
) -> gguf.Value:  # Any: JSON, or a text
    """A value of a type, from a text of the command line or from JSON."""
    value = text
    if isinstance(text, str) and kind is not gguf.ValueType.STRING:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise errors.ValueMismatchError(
                f"{key} has the type {kind.name.lower()}", got=text, expected="a value as in JSON"
            ) from None
    return gguf.value_of(value, kind, item)


def _from_file(source: Path, fields: dict[str, gguf.Value]) -> dict[str, gguf.Value]:
    data = hugging_face.read_json(source)
    data = data["metadata"] if isinstance(data.get("metadata"), dict) else data  # what `dump` prints
    found = {}
    for key, value in data.items():
        if isinstance(value, dict):
            name = str(value.get("type", ""))
            item = _type_of(name.removeprefix("array of "))
            is_array = name.startswith("array of ")
            kind = gguf.ValueType.ARRAY if is_array else item
            found[key] = _typed(key, value.get("value"), kind, item if is_array else None)
        elif key in fields:
            found[key] = _typed(key, value, fields[key].kind, fields[key].item)
        else:
            found[key] = gguf.value_of(value)
    return found
