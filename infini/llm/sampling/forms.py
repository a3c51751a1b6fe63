"""What a request for structured output says, reduced to a kind and a text, and held against the limits.

Nothing here needs the library that compiles it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from infini.core import errors
from infini.llm.sampling.limits import Limits
from infini.llm.sampling.params import STRUCTURES, StructuredOutputsParams

Json = Any  # Any: what `json.loads` gives

WITHOUT_SPACE: Final = "json without white space"


def definition(form: StructuredOutputsParams, limits: Limits) -> tuple[str, str]:
    """Which form is asked for, and its text; equal ones compile to the same.

    Args:
        form: what the request asks for.
        limits: how large it may be.

    Raises:
        ValueMismatchError: it is larger, or no JSON where that is meant.
    """
    # The schema `false` is a form, too: one that nothing has.
    name = next((name for name in STRUCTURES if getattr(form, name) not in (None, False)), "json")
    given = getattr(form, name)
    if name in ("json", "json_object"):
        if isinstance(given, str):
            _check_size(name, len(given), limits.schema_nbytes, "characters")
        schema = {"type": "object"} if name == "json_object" else _schema(given)
        _check_schema(schema, limits)
        text = json.dumps(schema)
        name = WITHOUT_SPACE if form.disable_any_whitespace else "json"
    elif name == "regex":
        _check_size("regex", len(given), limits.regex_chars, "characters")
        text = _unanchored(given)
    elif name == "choice":
        _check_size("choice", len(given), limits.num_choices, "strings")
        text = json.dumps(list(given))
    else:
        text = given
    _check_size(name, len(text.encode("utf-8", "surrogatepass")), limits.schema_nbytes, "bytes")
    return name, text


def _schema(given: str | Mapping[str, Json] | bool) -> Json:
    if not isinstance(given, str):
        return given
    try:
        schema = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise errors.ValueMismatchError(
            "structured_outputs.json is no JSON", got=first_line(str(error))
        ) from None
    if not isinstance(schema, (dict, bool)):
        raise errors.ValueMismatchError(
            "structured_outputs.json is no JSON schema", got=type(schema).__name__, expected="an object"
        )
    return schema


def _check_schema(schema: Json, limits: Limits) -> None:
    """Depth and expressions, without recursion: the schema may be nested very deeply."""
    open_: list[tuple[Json, int]] = [(schema, 1)]
    while open_:
        part, depth = open_.pop()
        _check_size("json", depth, limits.schema_depth, "levels of nesting")
        inner: Iterable[Json] = ()
        if isinstance(part, Mapping):
            inner = part.values()
            pattern = part.get("pattern")
            if isinstance(pattern, str):
                _check_size("json", len(pattern), limits.regex_chars, "characters in each pattern")
        elif isinstance(part, (list, tuple)):
            inner = part
        open_ += [(each, depth + 1) for each in inner if isinstance(each, (Mapping, list, tuple))]


def _check_size(name: str, count: int, limit: int, unit: str) -> None:
    if count > limit:
        raise errors.ValueMismatchError(
            f"structured_outputs.{name} is too large", got=f"{count} {unit}", expected=f"at most {limit}"
        )


def _unanchored(regex: str) -> str:
    """The whole answer has to match, so anchors at the ends say nothing; the library does not know them."""
    start = 1 if regex.startswith("^") else 0
    body = regex[start:]
    if body.endswith("$"):
        num_escapes = len(body) - 1 - len(body[:-1].rstrip("\\"))
        if num_escapes % 2 == 0:
            return body[:-1]
    return body


def parts(text: str, limits: Limits) -> list[tuple[str, str, Json, str]]:
    """Trigger, beginning, schema and end of each part of a structural tag."""
    try:
        tag = json.loads(text)
        triggers, structures = tag["triggers"], tag["structures"]
        parts = [(part["begin"], part["schema"], part["end"]) for part in structures]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise errors.ValueMismatchError(
            "structured_outputs.structural_tag has another form",
            expected='JSON: {"triggers": [text], "structures": [{"begin": text, "schema": {}, "end": text}]}',
        ) from None
    found = []
    for begin, schema, end in parts:
        _check_schema(schema, limits)
        trigger = next((trigger for trigger in triggers if trigger and str(begin).startswith(trigger)), None)
        if trigger is None:
            raise errors.ValueMismatchError(
                "a structure has to begin with one of the triggers", got=repr(begin), expected=repr(triggers)
            )
        found.append((str(trigger), str(begin), schema, str(end)))
    if not found:
        raise errors.ValueMismatchError("structured_outputs.structural_tag has no structures")
    return found


def first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines)[:300] if lines else "no reason given"
