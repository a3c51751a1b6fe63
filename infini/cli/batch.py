"""`infini batch`: answer a file of calls in the form of OpenAI's batches.

Each line goes through the server's own application, without a socket, so what a line may say and what its
answer looks like are those of `infini serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from infini.cli import output
from infini.cli.generate import model_path
from infini.core import errors
from infini.io import tensors

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]  # Any: whatever JSON holds
URLS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_PACKAGES: Final = ("starlette", "pydantic", "prometheus_client", "jinja2", "httpx")


def command(  # noqa: PLR0913, PLR0917  # options; typer passes them by name
    model: Annotated[
        str | None, typer.Argument(help="Model folder, GGUF file, or name of a pulled model.")
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", help="The same as an option.")] = None,
    input_file: Annotated[Path, typer.Option("--input-file", "-i", help="Lines to answer (JSONL).")] = ...,  # type: ignore[assignment]  # typer's mark of what is required
    output_file: Annotated[Path, typer.Option("--output-file", "-o", help="File of answers.")] = ...,  # type: ignore[assignment]  # likewise
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", "-np", help="Most sequences in a step.", min=1)
    ] = 16,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", "-b", help="Most tokens in a step.", min=1)
    ] = 512,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", "--ctx-size", "-c", help="Most tokens of a call.", min=1)
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", "-q", help="Quantise on load: int8, q8_0, q4_0, q4_k, q6_k."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of calls that bring none.", min=0)] = 0,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Answers do not depend on the other lines.")
    ] = False,
) -> None:
    """Answer every line of a file. Started again with the same files, it goes on where it was.

    A line is {"custom_id": "...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}. Answers
    are written as they come, each with the custom_id of its line.
    """
    named = model or model_option
    if not named:
        raise typer.BadParameter("name a model: infini batch MODEL -i FILE -o FILE")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.UnsupportedError(
            "`infini batch` needs packages that are not installed",
            got=f"no {', '.join(missing)}",
            fix='pip install "infini[llm]"',
        )
    calls = read_calls(input_file)
    done = read_done(output_file)
    todo = [call for call in calls if call.custom_id not in done]
    say = output.console(stderr=True).print
    if len(todo) < len(calls):
        say(f"{len(calls) - len(todo)} of {len(calls)} lines have answers in {output_file}")
    if not todo:
        return
    options: Json = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "dtype": dtype,
        "quantization": quantization,
        "seed": seed,
        "deterministic": deterministic,
        "enforce_eager": True,  # nobody waits for the first answer
    }
    try:
        failed = asyncio.run(_answer_all(model_path(named), options, todo, output_file))
    except KeyboardInterrupt:
        say(f"interrupted; what is done is in {output_file}, and the same command goes on")
        raise typer.Exit(130) from None
    say(f"{len(todo)} lines answered, {failed} of them with an error")


@dataclass(frozen=True, slots=True)
class Call:
    """One line of a file.

    Args:
        custom_id: its name.
        url: where it would be sent.
        body: what would be sent.
        error: what is wrong with the line; None when nothing is.
    """

    custom_id: str
    url: str
    body: Json
    error: str | None = None


def read_calls(file: Path) -> list[Call]:
    """The lines of a file.

    Raises:
        MissingFileError: it is not there.
        ValueMismatchError: two lines have one name, or a line has none.
    """
    found: dict[str, Call] = {}
    for number, line in _lines(file):
        call = _call(number, line)
        if call.custom_id in found:
            raise errors.ValueMismatchError(
                f"two lines of {file} have one custom_id", got=f"{call.custom_id!r}, again in line {number}"
            )
        found[call.custom_id] = call
    return list(found.values())


def read_done(file: Path) -> set[str]:
    """Names of the lines that have answers; a last line that was cut is taken away."""
    if not file.exists():
        return set()
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(file, end)
    found = set()
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            found.add(json.loads(line)["custom_id"])
        except (ValueError, KeyError, TypeError):
            raise errors.ValueMismatchError(
                f"line {number} of {file} is no answer of a batch",
                got=line[:80].decode("utf-8", "replace"),
                fix="name another file with -o",
            ) from None
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise tensors.MissingFileError(f"there is no {file}", fix="correct -i") from None
    except UnicodeDecodeError as error:
        raise errors.ValueMismatchError(f"{file} is no text in UTF-8", got=str(error)) from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _call(number: int, line: str) -> Call:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise errors.ValueMismatchError(f"line {number} is no JSON", got=str(error)) from None
    name = entry.get("custom_id") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise errors.ValueMismatchError(
            f"line {number} has no custom_id",
            got=line[:80],
            expected='{"custom_id": "...", "method": "POST", "url": "...", "body": {...}}',
        )
    url, body = entry.get("url"), entry.get("body")
    if entry.get("method", "POST") != "POST":
        return Call(name, "", {}, f"method has to be POST, not {entry['method']!r}")
    if url not in URLS:
        return Call(name, "", {}, f"url has to be one of {', '.join(URLS)}, not {url!r}")
    if not isinstance(body, dict):
        return Call(name, url, {}, "body has to be an object")
    if body.get("stream"):
        return Call(name, url, {}, "a line of a batch cannot be streamed")
    return Call(name, url, body)


async def _answer_all(model: Path, options: Json, calls: list[Call], file: Path) -> int:
    """Answer calls, many at a time, and write each answer as it comes; how many have an error."""
    import httpx

    from infini.llm.engine import async_llm
    from infini.llm.server import application, settings

    engine = async_llm.AsyncLLM(model, verbose=True, **options)
    names = {call.body["model"] for call in calls if isinstance(call.body.get("model"), str)}
    app = application.build(
        engine, settings.Settings(names=tuple(sorted(names)) or (model.name,), allowed_hosts=None)
    )
    failed = 0
    try:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client:
            found = _answers(client, calls, 2 * options["max_num_seqs"])
            # After an interrupt calls end before the engine does, which would refuse those that wait.
            async with contextlib.aclosing(found) as answers:
                with file.open("a", encoding="utf-8") as out, _bar(len(calls)) as advance:
                    async for answer in answers:
                        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
                        out.flush()
                        response = answer["response"]
                        failed += response is None or response["status_code"] != 200
                        advance()
    finally:
        await engine.shutdown()
    return failed


async def _answers(client: httpx.AsyncClient, calls: list[Call], width: int) -> AsyncGenerator[Json, None]:
    """Answers as they come, at most `width` calls at a time."""
    waiting = iter(calls)
    running: set[asyncio.Task[Json]] = set()
    try:
        while True:
            for call in waiting:
                running.add(asyncio.create_task(_answer(client, call)))
                if len(running) >= width:
                    break
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _answer(client: httpx.AsyncClient, call: Call) -> Json:
    answer: Json = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": call.custom_id}
    if call.error is not None:
        return answer | {"response": None, "error": {"code": "invalid_request", "message": call.error}}
    response = await client.post(call.url, json=call.body)
    told = {
        "status_code": response.status_code,
        "request_id": response.headers.get("x-request-id", ""),
        "body": response.json(),
    }
    return answer | {"response": told, "error": None}


@contextlib.contextmanager
def _bar(count: int) -> Iterator[Callable[[], None]]:
    """A bar of lines on standard error, where that is a terminal; call what it gives for every line."""
    console = output.console(stderr=True)
    progress = Progress(
        TextColumn("Answering lines"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = progress.add_task("", total=count)
    with progress:
        yield lambda: progress.update(task, advance=1)
