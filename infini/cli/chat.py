"""`infini chat`: talk to a model of this machine, or to a server, in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from infini.cli import chat_sources, output
from infini.cli.chat_session import NAMES, SETTINGS, Session
from infini.cli.chat_sources import Source, Timing
from infini.core import errors

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from infini.llm.server.protocol import Engine

_QUOTES: Final = '"""'


def command(  # noqa: PLR0913, PLR0917  # options; typer passes them by name
    model: Annotated[
        str, typer.Argument(help="Model folder, GGUF file, a pulled model, or the address of a server.")
    ],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="Ask once, print the answer, and end.")
    ] = None,
    system: Annotated[str, typer.Option("--system", "-s", help="What the model is told first.")] = "",
    temperature: Annotated[float | None, typer.Option("--temperature", "--temp", help="As /set.")] = None,
    top_p: Annotated[float | None, typer.Option(help="As /set.")] = None,
    top_k: Annotated[int | None, typer.Option(help="As /set.")] = None,
    seed: Annotated[int | None, typer.Option(help="As /set.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="As /set.")] = None,
    think: Annotated[
        bool | None, typer.Option(help="Ask the model to think first, or not to; else its template decides.")
    ] = None,
    stats: Annotated[bool, typer.Option(help="Show what an answer took.")] = True,
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation of /save.")] = None,
    history: Annotated[bool, typer.Option(help="Remember lines for the next time.")] = True,
    api_key: Annotated[
        str | None, typer.Option(envvar="INFINI_API_KEY", show_envvar=True, help="Key of the server.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="Which model of the server.")] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", "--ctx-size", "-c", help="Most tokens of a conversation.", min=1),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[
        str | None, typer.Option(help="Quantise on load: int8, q8_0, q4_0, q4_k, q6_k.")
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="File with a template of conversations.")] = None,
) -> None:
    """Talk to a model.

    Lines that begin with / are commands; /? lists them. Without a terminal, standard input is one question.
    """
    session = Session(system=system, thinks=think, shows_stats=stats)
    if load is not None:
        session.load(load)
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    session.settings |= {name: value for name, value in given.items() if value is not None}
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    source = _source(
        model,
        api_key=api_key,
        model_name=model_name,
        options={"max_model_len": max_model_len, "dtype": dtype, "quantization": quantization},
        template=chat_template,
    )
    try:
        if question is not None:
            session.messages.append({"role": "user", "content": question})
            if not answer(session, source):
                raise typer.Exit(130)
            return
        output.say(f"{source.name} · /? for help, Ctrl-D ends")
        talk(session, source, prompter(_history_file() if history else None))
    finally:
        source.close()


def talk(session: Session, source: Source, ask: PromptSession[str]) -> None:
    """Questions and answers until the end."""
    while True:
        try:
            line = read(ask.prompt)
        except KeyboardInterrupt:
            output.say("Ctrl-D or /bye ends")
            continue
        except EOFError:
            return
        try:
            step = session.take(line)
            if step.kind == "end":
                return
            if step.kind == "show":
                output.console().print(step.text, markup=False, highlight=False)
            elif step.kind == "answer":
                answer(session, source)
        except errors.InfiniError as error:
            output.show_error(error)


def answer(session: Session, source: Source) -> bool:
    """Write an answer as it comes, and keep it. Ctrl-C stops it; what there is stays.

    Returns:
        Whether it came to its end.

    Raises:
        InfiniError: it cannot be made; the question is taken back.
    """
    timing = Timing()
    parts: list[str] = []
    shown = _Shown()
    is_whole = True
    pieces = chat_sources.pieces_timed(source.answer(session, timing), timing)
    try:
        for piece in pieces:
            shown.write(piece.reasoning, is_thought=True)
            shown.write(piece.content)
            parts.append(piece.content)
    except KeyboardInterrupt:
        is_whole = False
        timing.reason = "Ctrl-C"
    except errors.InfiniError:
        shown.end()
        if not any(parts) and session.messages[-1:] and session.messages[-1]["role"] == "user":
            session.messages.pop()
        raise
    finally:
        pieces.close()  # type: ignore[attr-defined]  # it is a generator
    shown.end()
    session.answered("".join(parts))
    if session.shows_stats:
        output.say(timing.line())
    return is_whole


def read(prompt: Callable[[str], str]) -> str:
    """A question: a line, or the lines between two marks of three quotes."""
    line = prompt(">>> ")
    if not line.lstrip().startswith(_QUOTES):
        return line
    lines = [line.lstrip().removeprefix(_QUOTES)]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(prompt("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip("\n")


class _Shown:
    """Writes an answer: the thought dim, and nothing that moves the cursor or changes the terminal."""

    def __init__(self) -> None:
        self._is_styled = sys.stdout.isatty()
        self._is_thought = False
        self._has_text = False

    def write(self, text: str, *, is_thought: bool = False) -> None:
        """Write a piece."""
        if not text:
            return
        if is_thought != self._is_thought:
            self._change(is_thought)
        output.stream(printable(text))
        self._has_text = True

    def end(self) -> None:
        """End the line."""
        if self._is_thought:
            self._change(False)
        if self._has_text:
            output.stream("\n")

    def _change(self, is_thought: bool) -> None:
        if self._is_styled:
            output.stream("\x1b[2m" if is_thought else "\x1b[0m")
        if not is_thought:
            output.stream("\n\n")
        self._is_thought = is_thought


_SILENT: Final = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """A text without control characters, which a model must not send to a terminal.

    Example:
        >>> printable("a\\x1b[2Jb\\n")
        'a[2Jb\\n'
    """
    return text.translate(_SILENT)


def prompter(history: Path | None) -> PromptSession[str]:
    """Reads lines with editing, completion of commands and a history.

    Args:
        history: file of lines from earlier; None remembers nothing.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    class Commands(Completer):
        """Names of commands, and of what they take."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            first, *rest = document.text_before_cursor.split(" ")
            known = NAMES if not rest else _WORDS.get(first, ()) if len(rest) == 1 else ()
            last = rest[-1] if rest else first
            if first.startswith("/"):
                yield from (Completion(word, -len(last)) for word in known if word.startswith(last))

    return PromptSession(
        history=InMemoryHistory() if history is None else FileHistory(str(history)),
        completer=Commands(),
        complete_while_typing=False,
        key_bindings=keys,
    )


_WORDS: Final = {
    "/set": (*SETTINGS, "stop", "think", "stats"),
    "/show": ("system", "settings", "messages"),
    "/system": ("clear",),
}


def _history_file() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(base).expanduser() / "infini" / "chat_history"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    return file


def _source(
    model: str,
    *,
    api_key: str | None,
    model_name: str | None,
    options: dict[str, str | int | None],
    template: Path | None,
) -> Source:
    if chat_sources.is_address(model):
        return chat_sources.Server(model, api_key=api_key, model=model_name)
    from infini.llm import hub
    from infini.llm.engine.async_llm import AsyncLLM

    place = hub.place_of(model)
    text = None if template is None else template.read_text(encoding="utf-8")
    chosen = {name: value for name, value in options.items() if value is not None}
    engine = AsyncLLM(place, max_num_seqs=1, verbose=sys.stderr.isatty(), **chosen)  # type: ignore[arg-type]
    if engine.tokenizer is None:
        raise errors.ValueMismatchError(
            "the model has no tokenizer", got=model, fix="name a model that has one"
        )
    return chat_sources.Local(cast("Engine", engine), model, template=text)
