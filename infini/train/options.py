"""Trees of options as frozen dataclasses: read from TOML or from `name=value`, written back with comments.

An option is a field made by `option`, which says what it means and what it may be; its type annotation says
the rest. A name that does not exist is an error that gives the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from infini.core import errors

T = TypeVar("T")
Data = Mapping[str, Any]  # Any: whatever TOML holds


def option(
    default: Any,  # Any: options have different types
    doc: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """A field of a section.

    Args:
        default: its value when nothing is said; None for one that is then left to the program.
        doc: what it means, one line.
        above: numbers must be larger.
        least: numbers must not be smaller.
        below: numbers must be smaller.
        most: numbers must not be larger.
    """
    bounds = (("above", above), ("at least", least), ("below", below), ("at most", most))
    return dataclasses.field(
        default=default, metadata={"doc": doc, "bounds": tuple((w, b) for w, b in bounds if b is not None)}
    )


def section(kind: type, doc: str) -> Any:  # Any: sections have different types
    """A field that is itself a dataclass of options."""
    return dataclasses.field(default_factory=kind, metadata={"doc": doc})


def read_file(kind: type[T], path: Path) -> T:
    """Options from a TOML file.

    Raises:
        ValueMismatchError: the file is not there or not TOML, has an unknown key, or a wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ValueMismatchError(
            f"the configuration {path} cannot be read",
            got=str(error),
            expected="a TOML file",
            fix="write one with `infini train --print-config > run.toml`",
        ) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.ValueMismatchError(
            f"{path} is not TOML", got=str(error), expected="key = value", fix="correct the line"
        ) from error
    return build(kind, data, str(path))


def build(kind: type[T], data: Data, source: str) -> T:
    """Options from the tables of a TOML file; what is absent has its default.

    Args:
        kind: dataclass of options or sections.
        data: tables by name.
        source: where they come from, for errors.
    """
    return _build(kind, data, source, "", kind)


def override(options: T, assignments: Sequence[str]) -> T:
    """Options with some of them changed.

    Args:
        options: a tree of them.
        assignments: texts such as `optimizer.learning_rate=3e-4`. Values are TOML, texts need no quotes, and
            `none` stands for what is then left to the program.

    Raises:
        ValueMismatchError: one is no assignment, names no option, or has a wrong value.
    """
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise errors.ValueMismatchError(
                "--set takes a name and a value",
                got=repr(assignment),
                expected="section.name=value",
                fix="for example --set optimizer.learning_rate=3e-4",
            )
        options = _replaced(options, name.split("."), _value_of(text), name, type(options))
    return options


def names(kind: type, prefix: str = "") -> Iterator[str]:
    """Full names of all options of a dataclass, such as `run.steps`."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from names(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def flat(options: Any) -> dict[str, Any]:  # Any: a tree of options; their values
    """Values by full name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            found.update({f"{field.name}.{name}": inner for name, inner in flat(value).items()})
        else:
            found[field.name] = value
    return found


def to_toml(options: Any) -> str:  # Any: a tree of options
    """TOML that `build` reads, each option beside a comment that says what it means."""
    lines: list[str] = []
    _write(options, "", lines)
    return "\n".join(lines).strip() + "\n"


def _build(kind: type[T], data: Data, source: str, prefix: str, root: type) -> T:
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    values = {}
    for name, value in data.items():
        if name not in fields:
            raise _unknown(_first_name(f"{prefix}{name}", value), source, root)
        inner = hints[name]
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise _wrong(f"{prefix}{name}", value, f"a table [{prefix}{name}]", source)
            values[name] = _build(inner, value, source, f"{prefix}{name}.", root)  # type: ignore[arg-type]  # a type
        else:
            values[name] = _checked(fields[name], inner, value, f"{prefix}{name}", source)
    return kind(**values)


def _replaced(options: T, path: list[str], value: Any, name: str, root: type) -> T:  # Any: TOML, or None
    fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]  # a dataclass
    hint = typing.get_type_hints(type(options)).get(path[0])
    is_section = dataclasses.is_dataclass(hint)
    if path[0] not in fields or is_section != (len(path) > 1):
        raise _unknown(name, "--set", root)
    if is_section:
        inner: Any = _replaced(getattr(options, path[0]), path[1:], value, name, root)
    else:
        inner = _checked(fields[path[0]], hint, value, name, "--set")
    return dataclasses.replace(options, **{path[0]: inner})  # type: ignore[type-var]  # a dataclass


def _value_of(text: str) -> Any:  # Any: whatever TOML holds
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(
    field: dataclasses.Field[Any], hint: Any, value: Any, name: str, source: str
) -> Any:  # Any: TOML
    """A value as the type its option has."""
    # A choice or none is no `types.UnionType` before Python 3.14.
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if is_union else (hint,)
    if types.NoneType in options and value in (None, "none"):  # TOML has no word for it
        return None
    [kind] = [option for option in options if option is not types.NoneType]
    bounds = field.metadata.get("bounds", ())
    expected = _describe(kind, bounds)
    if types.NoneType in options:
        expected += ", or none"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        is_right = value in arguments
    elif origin is tuple:
        is_right = isinstance(value, list | tuple) and all(_is(item, arguments[0]) for item in value)
        value = tuple(value) if is_right else value
    else:
        is_right = _is(value, kind)
        value = kind(value) if is_right else value
    if not is_right or not all(_holds(word, bound, value) for word, bound in bounds):
        raise _wrong(name, value, expected, source, field.default)
    return value


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _holds(word: str, bound: float, value: float) -> bool:
    match word:
        case "above":
            return value > bound
        case "at least":
            return value >= bound
        case "below":
            return value < bound
    return value <= bound


def _describe(kind: Any, bounds: Sequence[tuple[str, float]]) -> str:  # Any: a type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(argument) for argument in arguments)
    if origin is tuple:
        return f"a list of {'texts' if arguments[0] is str else 'numbers'}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    return " ".join([plain, " and ".join(f"{word} {bound:g}" for word, bound in bounds)]).strip()


def _unknown(name: str, source: str, root: type) -> errors.InfiniError:
    known = list(names(root))
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    folder = nearest.rpartition(".")[0]
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == folder]
    return errors.ValueMismatchError(
        f"there is no option {name}",
        got=f"{name} in {source}",
        expected=f"in {folder}: {', '.join(siblings)}" if folder else ", ".join(known),
        fix=f"did you mean {nearest}? `infini train --print-config` lists all of them",
    )


def _wrong(
    name: str, value: object, expected: str, source: str, default: object = None
) -> errors.InfiniError:
    example = f", for example {name} = {toml_value(default)}" if default not in (None, ()) else ""
    return errors.ValueMismatchError(
        f"{name} cannot be {value!r}",
        got=f"{value!r} in {source}",
        expected=expected,
        fix=f"change it{example}",
    )


def _first_name(name: str, value: object) -> str:
    while isinstance(value, Mapping) and value:
        inner, value = next(iter(value.items()))
        name = f"{name}.{inner}"
    return name


def _write(options: Any, prefix: str, lines: list[str]) -> None:  # Any: a tree of options
    sections = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            sections.append((field, value))
            continue
        line = f"{field.name} = {toml_value('none' if value is None else value)}"
        if value is None and field.default is None:
            line = f"# {field.name} ="
        lines.append(f"{line:<29} # {field.metadata['doc']}")
    for field, value in sections:
        lines += ["", f"# {field.metadata['doc']}", f"[{prefix}{field.name}]"]
        _write(value, f"{prefix}{field.name}.", lines)


def toml_value(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a basic string of TOML
    return repr(value)
