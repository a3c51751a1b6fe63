"""Where answers of `infini chat` come from: an engine in this process, or a server asked over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from infini.cli.chat_session import Session
from infini.core import errors

if TYPE_CHECKING:
    import httpx

    from infini.llm.engine.outputs import RequestOutput
    from infini.llm.server.protocol import Engine, Stream

_CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer: of the thought before it, or of itself."""

    reasoning: str = ""
    content: str = ""


@dataclass(slots=True)
class Timing:
    """What an answer took.

    Args:
        num_prompt: tokens of the prompt; None when the source does not say.
        num_tokens: tokens of the answer; None likewise.
        first_s: seconds to the first piece.
        total_s: seconds to the last one.
        reason: why the answer ended.
    """

    num_prompt: int | None = None
    num_tokens: int | None = None
    first_s: float = 0.0
    total_s: float = 0.0
    reason: str | None = None

    def line(self) -> str:
        """One line for people."""
        found = []
        if self.num_tokens is not None:
            after = self.total_s - self.first_s
            speed = (
                f", {(self.num_tokens - 1) / after:,.1f} tokens/s"
                if self.num_tokens > 1 and after > 0
                else ""
            )
            found.append(f"{self.num_tokens} tokens{speed}")
        found.append(f"first after {self.first_s:.2f} s, all after {self.total_s:.2f} s")
        if self.num_prompt is not None:
            found.append(f"prompt of {self.num_prompt} tokens")
        if self.reason not in (None, "stop"):
            found.append(f"ended by {self.reason}")
        return " · ".join(found)


class Source(Protocol):
    """Answers conversations."""

    name: str

    def answer(self, session: Session, timing: Timing) -> Iterator[Piece]:
        """Pieces of an answer as they come; fills `timing`. Closing the iterator stops the answer."""

    def close(self) -> None:
        """End whatever was begun."""


def pieces_timed(pieces: Iterator[Piece], timing: Timing) -> Iterator[Piece]:
    """Pieces, with the seconds to the first and the last of them noted."""
    begin = time.perf_counter()
    is_first = True
    try:
        for piece in pieces:
            # A token may be half a character, and a server's first piece is no token.
            if is_first and (piece.reasoning or piece.content or timing.num_tokens):
                timing.first_s, is_first = time.perf_counter() - begin, False
            yield piece
    finally:
        timing.total_s = time.perf_counter() - begin


# --- an engine here ---------------------------------------------------------------------------


class Local:
    """An engine in this process.

    Args:
        engine: the engine; it belongs to this object.
        name: of the model.
        template: of conversations, in place of the model's.
    """

    def __init__(self, engine: Engine, name: str, *, template: str | None = None) -> None:
        self.name = name
        self._engine = engine
        assert engine.tokenizer is not None, "an engine without one raises"
        self._tokenizer = engine.tokenizer
        self._template = template
        self._runner = asyncio.Runner()
        self._count = 0

    def answer(self, session: Session, timing: Timing) -> Iterator[Piece]:
        """Pieces of an answer."""
        from infini.llm.text import chat, reasoning

        variables: dict[str, Any] = {}  # Any: JSON
        if session.thinks is not None:
            variables["enable_thinking"] = session.thinks
        prompt = chat.render(
            session.prompt(),
            tokenizer=self._tokenizer,
            chat_template=self._template,
            **variables,
        )
        ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        timing.num_prompt, timing.num_tokens = len(ids), 0
        parser = reasoning.parser_of(self._tokenizer)
        split = None if parser is None else parser.stream(prompt=prompt)
        params = self._params(session)
        self._count += 1
        stream = self._engine.generate(
            {"prompt_token_ids": ids}, params, request_id=f"chat-{self._count}", output_kind="delta"
        )
        try:
            self._runner.run(stream.start())
            for text in self._texts(stream, timing):
                if split is None:
                    yield Piece(content=text)
                else:
                    parts = split.push(text)
                    yield Piece(parts.reasoning, parts.content)
            if split is not None:
                parts = split.finish()
                yield Piece(parts.reasoning, parts.content)
        finally:
            self._runner.run(stream.aclose())

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._engine.shutdown())
        self._runner.close()

    def _params(self, session: Session) -> Any:  # Any: SamplingParams, which loads late
        default = self._engine.get_default_sampling_params()
        return dataclasses.replace(
            default, **({"max_tokens": None} | session.settings), stop=session.stop or default.stop
        )

    def _texts(self, stream: Stream, timing: Timing) -> Iterator[str]:
        outputs = aiter(stream)

        async def following() -> RequestOutput | None:
            return await anext(outputs, None)

        # One run of the loop for each piece: Ctrl-C then stops the answer between two of them, or the wait
        # for one.
        while (output := self._runner.run(following())) is not None:
            for made in output.outputs:
                timing.num_tokens = (timing.num_tokens or 0) + len(made.token_ids)
                timing.reason = made.finish_reason or timing.reason
                yield made.text


# --- a server ---------------------------------------------------------------------------------


class Server:
    """A server with OpenAI's interface.

    Args:
        url: its address, with or without `/v1`.
        api_key: what it asks for.
        model: which of its models; the first when absent.

    Raises:
        ValueMismatchError: it cannot be reached, or has no model.
    """

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        import httpx

        base = url.rstrip("/")
        self._base = base if base.endswith("/v1") else f"{base}/v1"
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
        )
        try:
            self.name = model or self._first_model()
        except BaseException:
            self.close()
            raise

    def answer(self, session: Session, timing: Timing) -> Iterator[Piece]:
        """Pieces of an answer."""
        import httpx

        body: dict[str, Any] = {  # Any: JSON
            "model": self.name,
            "messages": session.prompt(),
            "stream": True,
            "stream_options": {"include_usage": True},
            **session.settings,
        }
        if session.stop:
            body["stop"] = session.stop
        if session.thinks is not None:
            body["chat_template_kwargs"] = {"enable_thinking": session.thinks}
        try:
            with self._client.stream("POST", f"{self._base}/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _refusal(answer)
                yield from _pieces(answer.iter_lines(), timing)
        except httpx.TransportError as error:
            raise _unreachable(self._base, error) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _first_model(self) -> str:
        import httpx

        try:
            answer = self._client.get(f"{self._base}/models", timeout=_CONNECT_S)
        except httpx.TransportError as error:
            raise _unreachable(self._base, error) from error
        if answer.status_code != 200:
            raise _refusal(answer)
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise errors.ValueMismatchError(
                "the server has no list of models",
                got=f"{self._base}/models",
                fix="name one with --model-name",
            ) from error


def _pieces(lines: Iterator[str], timing: Timing) -> Iterator[Piece]:
    """Pieces of a stream of events."""
    for line in lines:
        kind, _, text = line.partition(":")
        if kind != "data":
            continue
        if text.strip().startswith("[DONE]"):
            return
        try:
            data = json.loads(text)
        except ValueError:
            continue
        if isinstance(data, dict) and "error" in data:
            raise errors.ValueMismatchError("the server broke the answer off", got=_message(data))
        usage = data.get("usage") or {}
        timing.num_prompt = usage.get("prompt_tokens", timing.num_prompt)
        timing.num_tokens = usage.get("completion_tokens", timing.num_tokens)
        for choice in data.get("choices") or ():
            delta = choice.get("delta") or {}
            timing.reason = choice.get("finish_reason") or timing.reason
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            yield Piece(thought, delta.get("content") or "")


def _refusal(answer: httpx.Response) -> errors.InfiniError:
    try:
        text = _message(answer.json())
    except ValueError:
        text = answer.text[:200]
    hint = {401: "pass --api-key, or set INFINI_API_KEY", 404: "check --model-name and the address"}
    return errors.ValueMismatchError(
        "the server refuses", got=f"{answer.status_code}: {text}", fix=hint.get(answer.status_code)
    )


def _message(data: Any) -> str:  # Any: JSON
    error = data.get("error") if isinstance(data, Mapping) else None
    return str(error.get("message", error) if isinstance(error, Mapping) else error or data)[:500]


def _unreachable(address: str, error: Exception) -> errors.InfiniError:
    return errors.ValueMismatchError(
        "the server cannot be reached", got=f"{address}: {error}", fix="start one with `infini serve MODEL`"
    )


def is_address(text: str) -> bool:
    """Whether a text names a server, and not a model."""
    return text.startswith(("http://", "https://"))


def texts(pieces: Sequence[Piece]) -> str:
    """The answer that pieces make, without the thought."""
    return "".join(piece.content for piece in pieces)
