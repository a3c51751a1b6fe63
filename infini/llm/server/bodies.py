"""The body of a request as JSON, within limits: size, time, depth, no NaN, no half of a surrogate pair."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from typing import Any, Final, NoReturn, TypeVar

import pydantic
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from infini.llm.sampling.limits import Limits
from infini.llm.server import failures, logs

# Larger bodies are read beside the event loop, which would stand still.
_LARGE: Final = 64 << 10
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
M = TypeVar("M", bound=pydantic.BaseModel)


async def read(request: Request, model: type[M], limits: Limits, *, seconds: float = 60.0) -> M:
    """The validated body of a request.

    Args:
        request: the request; nothing of its body was read yet.
        model: what the body must be.
        limits: bounds.
        seconds: time for the body to arrive.

    Returns:
        The body.

    Raises:
        ApiError: the body is too large, late, no JSON object, or not what the model says.
        ClientDisconnect: the client left while it sent.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise failures.invalid(
            "the header Content-Type must be application/json", code="unsupported_content_type"
        )
    try:
        async with asyncio.timeout(seconds):
            body = await _bytes(request, limits.body_nbytes)
    except TimeoutError:
        raise failures.ApiError(
            408, f"the body did not arrive in {seconds:g} s", code="request_timeout"
        ) from None
    if len(body) > _LARGE:
        return await run_in_threadpool(_validated, body, model, limits)
    return _validated(body, model, limits)


def _validated(body: bytes, model: type[M], limits: Limits) -> M:
    value = parse(body, limits)
    try:
        found = model.model_validate(value)
    except pydantic.ValidationError as error:
        raise failures.of_validation(error) from None
    if found.model_extra and logs.LOGGER.isEnabledFor(logging.DEBUG):
        names = ", ".join(logs.printable(name, 40) for name in list(found.model_extra)[:20])
        logs.say("unknown_fields", f"ignored: {names}", level=logging.DEBUG)
    return found


async def _bytes(request: Request, most: int) -> bytes:
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most:
        raise _too_large(most)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> failures.ApiError:
    return failures.ApiError(
        413,
        f"the body is larger than {most} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def parse(body: bytes, limits: Limits) -> dict[str, Any]:  # Any: JSON
    """The JSON object in a body.

    Args:
        body: bytes in UTF-8.
        limits: bounds.

    Returns:
        The object.

    Raises:
        ApiError: it is not JSON, no object, or too deep.
    """
    if depth(body) > limits.json_depth:
        raise _invalid_json(f"it is nested more than {limits.json_depth} deep")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_constant, parse_float=_finite)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise _invalid_json("it is no text in UTF-8") from None
    except UnicodeEncodeError:
        raise _invalid_json("it holds half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise _invalid_json(str(error)) from None
    if not isinstance(value, dict):
        raise failures.invalid(
            f"the body must be a JSON object, not {_KINDS.get(type(value), 'null')}", code="invalid_json"
        )
    return value


_KINDS: Final = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def depth(body: bytes) -> int:
    """How many lists and objects of a JSON text lie inside of each other at most.

    Args:
        body: the text, which need not be valid.

    Returns:
        The depth: 0 of a number, 1 of `{}`.
    """
    deepest = level = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        if bracket.group() in b"[{":
            level += 1
            deepest = max(deepest, level)
        else:
            level -= 1
    return deepest


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than any number")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _invalid_json(why: str) -> failures.ApiError:
    return failures.invalid(f"the body is not valid JSON: {why}", code="invalid_json")
