"""One request to a server as a client sees it: when text arrives, and how much.

Servers that speak OpenAI's completions or chat completions; the answer is streamed. Times are of the client's
clock, from sending the request. The parser of server-sent events keeps what a network packet cuts in two
(https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from infini.llm.benchmarks.datasets import Sample

if TYPE_CHECKING:
    import httpx

Backend = Literal["infini", "vllm", "openai", "openai-chat"]
PATHS: Final[Mapping[Backend, str]] = {
    "infini": "/v1/completions",
    "vllm": "/v1/completions",
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
_ERROR_CHARACTERS: Final = 300


@dataclass(slots=True)
class Outcome:
    """What became of one request.

    Args:
        prompt_tokens: ids of the prompt.
        start_s: when it was sent, on the clock of `time.perf_counter`.
        is_success: whether an answer arrived whole.
        text: the answer.
        output_tokens: tokens of the answer as the server counts them; None when it does not say.
        ttft_s: seconds until the first text, None when there was none.
        latency_s: seconds until the last text.
        gaps_s: seconds between pieces of text.
        error: why it failed.
    """

    prompt_tokens: int
    start_s: float = 0.0
    is_success: bool = False
    text: str = ""
    output_tokens: int | None = None
    ttft_s: float | None = None
    latency_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    error: str = ""


def body(
    sample: Sample, *, backend: Backend, model: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON of a request.

    Args:
        sample: what to ask.
        backend: what the server speaks.
        model: its name there; left out when absent.
        options: more fields, such as `temperature` or `ignore_eos`.
    """
    found: dict[str, Any] = {  # Any: whatever JSON holds
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    }
    if model is not None:
        found["model"] = model
    if backend == "openai-chat":
        found["messages"] = [{"role": "user", "content": sample.prompt}]
        found["max_completion_tokens"] = sample.output_tokens
    else:
        found["prompt"] = list(sample.prompt) if isinstance(sample.prompt, tuple) else sample.prompt
        found["max_tokens"] = sample.output_tokens
    return found | dict(options)


async def request(
    client: httpx.AsyncClient,
    url: str,
    sample: Sample,
    content: Mapping[str, Any],
    headers: Mapping[str, str],
) -> Outcome:
    """Send one request and follow its answer.

    Args:
        client: connections to the server.
        url: of the endpoint.
        sample: what is asked.
        content: the body.
        headers: more headers.

    Returns:
        What became of it; failures are told there, not raised.
    """
    import httpx

    found = Outcome(sample.prompt_tokens, start_s=time.perf_counter())
    try:
        async with client.stream("POST", url, json=dict(content), headers=dict(headers)) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode("utf-8", "replace")
                found.error = f"{response.status_code}: {text[:_ERROR_CHARACTERS]}"
                return found
            await _follow(response.aiter_bytes(), found)
    except httpx.HTTPError as error:
        found.error = f"{type(error).__name__}: {error}"
    return found


async def _follow(pieces: AsyncIterator[bytes], found: Outcome) -> None:
    last = found.start_s
    is_done = False
    async for data in events(pieces):
        if data.startswith("[DONE]"):
            is_done = True
            break
        try:
            message = json.loads(data)
        except json.JSONDecodeError:
            found.error = f"an event is not JSON: {data[:_ERROR_CHARACTERS]}"
            return
        if message.get("error"):
            found.error = json.dumps(message["error"])[:_ERROR_CHARACTERS]
            return
        if message.get("usage"):
            found.output_tokens = message["usage"].get("completion_tokens")
        text = _text(message)
        if text is None:
            continue
        now = time.perf_counter()
        if found.ttft_s is None:
            found.ttft_s = now - found.start_s
        else:
            found.gaps_s.append(now - last)
        last = now
        found.text += text
    found.latency_s = last - found.start_s
    if not is_done and not found.text:
        found.error = "the stream ended without an answer"
        return
    found.is_success = found.ttft_s is not None
    if not found.is_success:
        found.error = "the answer has no text"


def _text(message: Mapping[str, Any]) -> str | None:
    """Text that an event brings; None for one without, such as that with the usage.

    The piece may be empty: a token that is half a character is a token.
    """
    choices = message.get("choices")
    if not choices:
        return None
    choice = choices[0]
    if "text" in choice:
        return choice["text"] or ("" if choice.get("finish_reason") is None else None)
    delta = choice.get("delta") or {}
    if "role" in delta and not delta.get("content"):
        return None  # the first event of a chat names the role before anything was computed
    content = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    return content if content else None


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Data of the events in a stream of bytes, however it is cut; comments are left out."""
    held = b""
    async for piece in pieces:
        held += piece
        *whole, held = held.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            data = [line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield b"\n".join(data).decode("utf-8", "replace")
