"""Forms of answers that call functions: tools and a choice become a schema, or marked parts in free text.

Functions are given as names with the schemas of their arguments. Definitions that a schema refers to move
to the top of the whole form under names of their own, so functions may use equal names for different things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from infini.core import errors
from infini.llm.sampling.params import StructuredOutputsParams

Json = Any  # Any: what `json.loads` gives
Functions = Sequence[tuple[str, Mapping[str, Json] | None]]

_DEFINITIONS: Final = ("$defs", "definitions")
_ANY_ARGUMENTS: Final[dict[str, Json]] = {"type": "object"}
_DEEPEST: Final = 64  # levels that are looked through; `guided` allows fewer


def forced_calls(functions: Functions, choice: str, *, is_single: bool = False) -> StructuredOutputsParams:
    """The form of an answer that has to call.

    Args:
        functions: what may be called.
        choice: "required", or the name of the one function that has to be called.
        is_single: whether there is exactly one call.

    Returns:
        For a named function the form is its arguments; else an array of `{"name": ..., "parameters": ...}`.

    Raises:
        ValueMismatchError: there are no functions, or none of that name.

    Example:
        >>> forced_calls([("now", None)], "now").json
        {'type': 'object'}
    """
    if not functions:
        raise errors.ValueMismatchError("tool_choice needs tools", got=choice)
    if choice != "required":
        found = next((parameters for name, parameters in functions if name == choice), _MISSING)
        if found is _MISSING:
            raise errors.ValueMismatchError(
                "tool_choice names a function that is not among the tools",
                got=choice,
                expected=", ".join(name for name, _ in functions),
            )
        return StructuredOutputsParams(json=dict(found or _ANY_ARGUMENTS))
    definitions: dict[str, Json] = {}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": _moved(parameters, at, definitions)},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for at, (name, parameters) in enumerate(functions)
    ]
    schema: dict[str, Json] = {"type": "array", "minItems": 1, "items": calls[0]}
    if len(calls) > 1:
        schema["items"] = {"anyOf": calls}
    if is_single:
        schema["maxItems"] = 1
    if definitions:
        schema["$defs"] = definitions
    return StructuredOutputsParams(json=schema)


_MISSING: Final[Mapping[str, Json]] = {"": "no such function"}


def tagged_calls(
    functions: Functions,
    *,
    begin: str = "<tool_call>",
    end: str = "</tool_call>",
    name_key: str = "name",
    arguments_key: str = "arguments",
) -> StructuredOutputsParams:
    """The form of free text that may call, each call between two marks, with arguments that fit their schema.

    Args:
        functions: what may be called.
        begin: mark before a call; after it the model is held to the form.
        end: mark after it.
        name_key: key of a call's name.
        arguments_key: key of its arguments.

    Raises:
        ValueMismatchError: there are no functions.
    """
    if not functions:
        raise errors.ValueMismatchError("a form of calls needs tools")
    structures = []
    for name, parameters in functions:
        definitions: dict[str, Json] = {}
        call: dict[str, Json] = {
            "type": "object",
            "properties": {name_key: {"const": name}, arguments_key: _moved(parameters, 0, definitions)},
            "required": [name_key, arguments_key],
            "additionalProperties": False,
        }
        if definitions:
            call["$defs"] = definitions
        structures.append({"begin": begin, "schema": call, "end": end})
    tag = {"triggers": [begin], "structures": structures}
    return StructuredOutputsParams(structural_tag=json.dumps(tag))


def _moved(parameters: Mapping[str, Json] | None, at: int, definitions: dict[str, Json]) -> Json:
    """A schema without its definitions, which are added to `definitions` under the number of the function."""
    inner = dict(parameters or _ANY_ARGUMENTS)
    renamed: dict[str, str] = {"#": "#"}
    found: list[tuple[str, Json]] = []
    for key in _DEFINITIONS:
        own = inner.pop(key, None)
        if isinstance(own, Mapping):
            for name, schema in own.items():
                renamed[f"#/{key}/{name}"] = f"#/$defs/{at}.{name}"
                found.append((f"{at}.{name}", schema))
    if not found and not _refers_to_itself(inner):
        return inner
    # A reference to the whole schema of the arguments needs a name for it, too.
    renamed["#"] = f"#/$defs/{at}"
    for name, schema in found:
        definitions[name] = _with_names(schema, renamed)
    whole = _with_names(inner, renamed)
    if not _refers_to_itself(inner) and not any(_refers_to_itself(schema) for _, schema in found):
        return whole
    definitions[str(at)] = whole
    return {"$ref": renamed["#"]}


def _refers_to_itself(schema: Json) -> bool:
    return any(reference == "#" for reference in _references(schema))


def _references(schema: Json) -> list[str]:
    """All references of a schema, whatever its depth."""
    found, open_ = [], [schema]
    while open_:
        part = open_.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("$ref"), str):
                found.append(part["$ref"])
            open_ += part.values()
        elif isinstance(part, list):
            open_ += part
    return found


def _with_names(schema: Json, renamed: Mapping[str, str], depth: int = 0) -> Json:
    """A schema whose references have other names. What is nested too deeply stays, and is refused later."""
    if depth > _DEEPEST:
        return schema
    if isinstance(schema, Mapping):
        return {
            key: _renamed(value, renamed)
            if key == "$ref" and isinstance(value, str)
            else _with_names(value, renamed, depth + 1)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_with_names(each, renamed, depth + 1) for each in schema]
    return schema


def _renamed(reference: str, renamed: Mapping[str, str]) -> str:
    """A reference to a definition or into it, by its new name."""
    names = sorted((old for old in renamed if reference == old or reference.startswith(old + "/")), key=len)
    return renamed[names[-1]] + reference[len(names[-1]) :] if names else reference
