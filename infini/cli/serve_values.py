"""Values of `infini serve`: numbers such as `32k`, JSON, `--a.b v`, and files of options."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperCommand

ENVIRONMENT: Final = "INFINI_SERVE"
_UNITS: Final = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)(?:i?B)?\Z")
_DOTTED: Final = re.compile(r"(--[a-z-]+)\.([A-Za-z_.]+)(?:=(.*))?\Z", re.DOTALL)
_TAKES_JSON: Final = frozenset({"--speculative-config", "--override-generation-config"})


def count(value: Any) -> int:  # Any: what a file of options holds
    """A number: `32768`, `32k` (thousands) or `32K` (of 1024).

    Args:
        value: text, or a number of a file.

    Raises:
        BadParameter: it is none.

    Example:
        >>> count("4K"), count("1.5k")
        (4096, 1500)
    """
    found = _NUMBER.match(str(value).strip())
    if found is None or isinstance(value, bool):
        raise typer.BadParameter(f"{value!r} is no number such as 4096, 4k (4000) or 4K (4096)")
    number = float(found[1]) * _UNITS[found[2]]
    if number != int(number):
        raise typer.BadParameter(f"{value!r} is no whole number")
    return int(number)


def json_object(value: Any) -> dict[str, Any]:  # Any: JSON
    """An object: its text, or a table of a file.

    Args:
        value: the text.

    Raises:
        BadParameter: it is none.
    """
    if isinstance(value, dict):
        return value
    try:
        found = json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("JSON, but no object")
    return found


class Command(TyperCommand):
    """A command in which `--speculative-config.method ngram` is a part of `--speculative-config`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: typer's own context
        """Join the dotted options before anything is read."""
        return super().parse_args(ctx, joined(args))


def joined(args: list[str]) -> list[str]:
    """Arguments with dotted options as one JSON object for each option.

    Args:
        args: of the command.

    Example:
        >>> joined(["m", "--speculative-config.method", "ngram", "--speculative-config.prompt_lookup_max=3"])
        ['m', '--speculative-config', '{"method": "ngram", "prompt_lookup_max": 3}']
    """
    rest: list[str] = []
    objects: dict[str, dict[str, Any]] = {}  # Any: JSON
    words = iter(args)
    for word in words:
        found = _DOTTED.match(word)
        if found is None or found[1] not in _TAKES_JSON:
            rest.append(word)
            continue
        text = next(words, "") if found[3] is None else found[3]
        *path, last = found[2].split(".")
        inner = objects.setdefault(found[1], {})
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = _scalar(text)
    for name, value in objects.items():
        rest += [name, json.dumps(value)]
    return rest


def _scalar(text: str) -> Any:  # Any: JSON
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_file(context: typer.Context, path: str | None) -> str | None:
    """Take what a file says as defaults of the options; the callback of `--config`.

    Args:
        context: of the command.
        path: the file; None leaves everything as it is.

    Raises:
        BadParameter: the file cannot be read, or has an option that does not exist.
    """
    if path is None:
        return None
    names = {}
    for parameter in context.command.params:
        if parameter.name is not None:
            for option in (parameter.name, *parameter.opts):
                names[option.lstrip("-").replace("-", "_")] = parameter.name
    found = {}
    for key, value in _read(Path(path)).items():
        name = names.get(key.replace("-", "_"))
        if name is None or name == "config":
            raise typer.BadParameter(f"{path} has an unknown option {key}")
        is_list = isinstance(value, list)
        found[name] = value if is_list or name not in _REPEATED else [value]
    context.default_map = {**(context.default_map or {}), **found}
    return path


_REPEATED: Final = frozenset({"api_key", "allowed_hosts", "allowed_origins", "served_model_name"})


def _read(path: Path) -> dict[str, Any]:  # Any: options
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        if path.suffix in (".yaml", ".yml"):
            found = _yaml(text)
        else:
            found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path} has no options by name")
    return found


def _yaml(text: str) -> Any:  # Any: YAML
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise typer.BadParameter("YAML needs the package pyyaml; TOML and JSON need none") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
