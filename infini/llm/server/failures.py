"""Errors as clients see them: OpenAI's object, a status, and a text without paths and addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import pydantic
from starlette.responses import JSONResponse

from infini.core import errors

INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"
_MAX_CHARACTERS: Final = 4000
_MAX_FAULTS: Final = 10
_MAX_INPUT: Final = 200
# Absolute paths of two parts or more (`org/model` has no leading slash), and `0x7f...`.
_PATH: Final = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:)?[/\\](?:[\w.@+~-]+[/\\])+[\w.@+~-]*")
_ADDRESS: Final = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")


class ApiError(Exception):
    """Something that a client is told.

    Args:
        status: status of HTTP.
        message: a sentence for people; paths and addresses are taken out of it.
        type: OpenAI's class of error.
        code: stable name of what is wrong.
        param: field of the request that is wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.type, self.code, self.param = status, type, code, param
        self.message = clean(message)
        self.headers = dict(headers or {})
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:  # Any: JSON
        """The object `{"error": {...}}`."""
        found = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": found}

    def response(self) -> JSONResponse:
        """The answer with this error."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def clean(text: str) -> str:
    """A text without paths and addresses of this machine, of bounded length.

    Args:
        text: what an error says.

    Returns:
        The text for a client.
    """
    # A text may be echoed from a request and hold half of a surrogate pair, which cannot be encoded.
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = _ADDRESS.sub("<address>", _PATH.sub("<path>", text))
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 3] + "..."


def invalid(message: str, param: str | None = None, *, code: str | None = "invalid_value") -> ApiError:
    """A request that cannot be served as it is: status 400.

    Args:
        message: what is wrong.
        param: field it is about.
        code: stable name of what is wrong.
    """
    return ApiError(400, message, code=code, param=param)


def too_long(num_tokens: int, max_tokens: int | None, max_model_len: int, param: str) -> ApiError:
    """Prompt and answer do not fit the model's context.

    Args:
        num_tokens: tokens of the prompt.
        max_tokens: tokens asked for, when stated.
        max_model_len: tokens that the model takes.
        param: field of the prompt.
    """
    asked = "" if max_tokens is None else f" and {max_tokens} tokens were asked for"
    fix = (
        "shorten the prompt" if max_tokens is None or num_tokens >= max_model_len else "ask for fewer tokens"
    )
    return ApiError(
        400,
        f"This model's maximum context length is {max_model_len} tokens, but the prompt has {num_tokens} "
        f"tokens{asked}: {fix}.",
        code="context_length_exceeded",
        param=param,
    )


def unknown_model(name: str) -> ApiError:
    """No model of this name is served: status 404.

    Args:
        name: what the client asked for.
    """
    return ApiError(
        404, f"The model `{name[:_MAX_INPUT]}` does not exist.", code="model_not_found", param="model"
    )


def overloaded(what: str, *, retry_after_s: int = 1) -> ApiError:
    """The server cannot take this call now: status 503, to be tried again.

    Args:
        what: why.
        retry_after_s: seconds that a client should wait.
    """
    return ApiError(
        503, what, type=SERVER, code="overloaded", headers={"Retry-After": str(max(1, retry_after_s))}
    )


def not_offered(what: str) -> ApiError:
    """A feature that this server has not: status 501.

    Args:
        what: the feature and why.
    """
    return ApiError(501, what, type=SERVER, code="not_implemented")


def internal(request_id: str) -> ApiError:
    """A fault of ours: status 500, and nothing but a number to find it in the log by.

    Args:
        request_id: the number.
    """
    return ApiError(500, f"Internal server error; request {request_id}.", type=SERVER, code="internal_error")


def of_validation(error: pydantic.ValidationError) -> ApiError:
    """Fields that are not what they should be, as one error.

    Args:
        error: pydantic's.

    Returns:
        Status 400; `param` is the first field.
    """
    faults = error.errors(include_url=False, include_context=False)
    texts = []
    for fault in faults[:_MAX_FAULTS]:
        place = _place(fault["loc"])
        given = _shortened(fault.get("input"))
        # Ours are raised as ValueError with a whole sentence; pydantic puts a word in front of it.
        said = fault["msg"].removeprefix("Value error, ")
        is_about_value = fault["type"] not in ("missing", "value_error")
        texts.append(f"{place + ': ' if place else ''}{said}" + (f" (got {given})" if is_about_value else ""))
    if len(faults) > _MAX_FAULTS:
        texts.append(f"and {len(faults) - _MAX_FAULTS} more")
    first = _place(faults[0]["loc"])
    code = "missing_required_parameter" if faults[0]["type"] == "missing" else "invalid_value"
    return invalid("; ".join(dict.fromkeys(texts)), first or None, code=code)


def of_infini(error: errors.InfiniError, param: str | None = None) -> ApiError:
    """An error of the library about what a client sent, without the line of our program.

    Args:
        error: ours.
        param: field it is about.
    """
    parts = [error.what]
    parts += [f"{label} {part}" for label, part in (("got", error.got), ("expected", error.expected)) if part]
    return invalid("; ".join(parts) + (f" ({error.fix})" if error.fix else ""), param)


def _place(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` of the parts of a path. Names of pydantic's union members are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and (part[0].islower() or part[0] == "_") and part not in _MEMBERS:
            text += f".{part}" if text else part
    return text


# What pydantic calls the members of a union in the path of a fault.
_MEMBERS: Final = frozenset({"str", "int", "float", "bool", "list", "dict", "none", "constrained"})


def _shortened(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=lambda _: "...")
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= _MAX_INPUT else text[:_MAX_INPUT] + "..."
