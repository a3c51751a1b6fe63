"""A conversation in the terminal: what was said, how answers are made, and the commands that change both.

Nothing here asks or prints: a line goes in, what to do comes out, so all of it can be tested without a
terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from infini.core import errors
from infini.io import folders

Message = dict[str, Any]  # Any: JSON

# Settings of sampling by name, with what reads their text.
SETTINGS: Final[dict[str, Callable[[str], Any]]] = {  # Any: numbers
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
}

HELP: Final = '''\
/set NAME VALUE     temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty,
                    frequency_penalty, seed, max_tokens; stop TEXT (again for more);
                    think on|off, stats on|off; a value `default` takes a setting back
/show [system|settings|messages]
/system [TEXT]      what the model is told before the conversation; `clear` takes it back
/clear              begin a new conversation
/retry              answer the last question again
/save FILE          write conversation and settings; /load FILE reads them
/bye                end (Ctrl-D as well)
/?                  this list
Ctrl-C stops an answer. """ begins and ends a text of several lines.'''


@dataclass(frozen=True, slots=True)
class Step:
    """What a line asks for.

    Args:
        kind: show a text, answer the conversation as it stands, end, or nothing more.
        text: what is shown.
    """

    kind: Literal["show", "answer", "end", "nothing"]
    text: str = ""


@dataclass(slots=True)
class Session:
    """A conversation and its settings.

    Args:
        system: what the model is told first; empty for nothing.
        messages: what was said.
        settings: of sampling, those that were set.
        stop: strings that end an answer.
        thinks: whether the model is asked to think before it answers; None leaves it to its template.
        shows_stats: whether the time of an answer is shown.
    """

    system: str = ""
    messages: list[Message] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # Any: numbers
    stop: list[str] = field(default_factory=list)
    thinks: bool | None = None
    shows_stats: bool = True

    def prompt(self) -> list[Message]:
        """All messages, the system's first."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.messages

    def take(self, line: str) -> Step:
        """What a line asks for: a command, or a question.

        Raises:
            ValueMismatchError: a command or a value is wrong.
        """
        text = line.strip()
        if not text:
            return Step("nothing")
        if not text.startswith("/") or text.startswith("//"):
            self.messages.append(
                {"role": "user", "content": line.removeprefix("/") if text[:2] == "//" else line}
            )
            return Step("answer")
        name, _, rest = text[1:].partition(" ")
        command = _COMMANDS.get(name.lower())
        if command is None:
            raise errors.ValueMismatchError(
                f"there is no command /{name}",
                expected="/? shows them",
                fix=f"//{name} ... to say it to the model",
            )
        return command(self, rest.strip())

    def answered(self, text: str) -> None:
        """Keep an answer; one without text is none."""
        if text:
            self.messages.append({"role": "assistant", "content": text})

    def set(self, name: str, text: str) -> str:
        """Change a setting.

        Returns:
            What it is now.

        Raises:
            ValueMismatchError: there is no such setting, or it has no such value.
        """
        if name in ("think", "stats"):
            if text not in ("on", "off", "default"):
                raise errors.ValueMismatchError(f"{name} is on or off", got=repr(text), fix=f"/set {name} on")
            if name == "think":
                self.thinks = None if text == "default" else text == "on"
            else:
                self.shows_stats = text != "off"
        elif name == "stop":
            self.stop = [] if text == "default" else [*self.stop, _unquoted(text)]
            if "" in self.stop:
                self.stop.remove("")
                raise errors.ValueMismatchError("an empty text cannot end an answer", fix="/set stop TEXT")
        elif name not in SETTINGS:
            known = ", ".join([*SETTINGS, "stop", "think", "stats"])
            raise errors.ValueMismatchError(f"there is no setting {name}", expected=known)
        elif text == "default":
            self.settings.pop(name, None)
        else:
            try:
                self.settings[name] = SETTINGS[name](text)
            except ValueError:
                raise errors.ValueMismatchError(
                    f"{name} is a number", got=repr(text), fix=f"/set {name} 1, or /set {name} default"
                ) from None
        return f"{name} is {text if text else 'empty'}"

    def save(self, path: Path) -> None:
        """Write conversation and settings as JSON."""
        data = {
            "system": self.system,
            "messages": self.messages,
            "settings": self.settings,
            "stop": self.stop,
            "thinks": self.thinks,
        }
        with folders.replacing_file(path) as file:
            file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Take conversation and settings from a file of `save`.

        Raises:
            ValueMismatchError: it is no such file.
        """
        try:
            data = json.loads(path.expanduser().read_text(encoding="utf-8"))
            messages = [
                {"role": str(row["role"]), "content": str(row["content"])} for row in data["messages"]
            ]
            settings = {name: SETTINGS[name](str(value)) for name, value in data.get("settings", {}).items()}
            stop, thinks = [str(text) for text in data.get("stop", [])], data.get("thinks")
            system = str(data.get("system", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.ValueMismatchError(
                f"{path} is no saved conversation",
                got=f"{type(error).__name__}: {error}",
                fix="name a file of /save",
            ) from error
        self.system, self.messages, self.settings = system, messages, settings
        self.stop, self.thinks = stop, thinks if isinstance(thinks, bool) else None


# --- commands ---------------------------------------------------------------------------------


def _set(session: Session, rest: str) -> Step:
    name, _, value = rest.removeprefix("parameter ").partition(" ")
    if name in ("verbose", "quiet"):
        name, value = "stats", "on" if name == "verbose" else "off"
    if name == "system":
        return _system(session, value)
    if not name or not value.strip():
        raise errors.ValueMismatchError("/set takes a name and a value", fix="/set temperature 0.7")
    return Step("show", session.set(name, value.strip()))


def _show(session: Session, rest: str) -> Step:
    system = f"system: {session.system or 'none'}"
    settings = [f"{name}: {session.settings.get(name, 'default')}" for name in SETTINGS]
    settings.append(f"stop: {', '.join(map(repr, session.stop)) or 'none'}")
    settings.append(f"think: {'default' if session.thinks is None else 'on' if session.thinks else 'off'}")
    messages = [f"{message['role']}: {message['content']}" for message in session.messages]
    parts = {
        "": [system, *settings, f"messages: {len(messages)}"],
        "system": [system],
        "settings": settings,
        "parameters": settings,
        "messages": messages or ["no messages"],
    }
    if rest not in parts:
        raise errors.ValueMismatchError(f"there is no {rest} to show", expected="system, settings, messages")
    return Step("show", "\n".join(parts[rest]))


def _system(session: Session, rest: str) -> Step:
    if not rest:
        return _show(session, "system")
    session.system = "" if rest == "clear" else _unquoted(rest)
    return Step("show", f"system: {session.system or 'none'}")


def _clear(session: Session, rest: str) -> Step:
    session.messages.clear()
    return Step("show", "a new conversation")


def _retry(session: Session, rest: str) -> Step:
    while session.messages and session.messages[-1]["role"] == "assistant":
        session.messages.pop()
    if not session.messages:
        raise errors.ValueMismatchError("there is no question to answer again", fix="ask one first")
    return Step("answer")


def _save(session: Session, rest: str) -> Step:
    path = _path(rest, "save")
    session.save(path)
    return Step("show", f"saved to {path}")


def _load(session: Session, rest: str) -> Step:
    path = _path(rest, "load")
    session.load(path)
    return Step("show", f"{len(session.messages)} messages from {path}")


def _path(rest: str, name: str) -> Path:
    if not rest:
        raise errors.ValueMismatchError(f"/{name} takes a file", fix=f"/{name} conversation.json")
    return Path(_unquoted(rest)).expanduser()


def _help(session: Session, rest: str) -> Step:
    return Step("show", HELP)


def _end(session: Session, rest: str) -> Step:
    return Step("end")


_COMMANDS: Final[dict[str, Callable[[Session, str], Step]]] = {
    "set": _set,
    "show": _show,
    "system": _system,
    "clear": _clear,
    "reset": _clear,
    "retry": _retry,
    "save": _save,
    "load": _load,
    "bye": _end,
    "exit": _end,
    "quit": _end,
    "?": _help,
    "help": _help,
}
NAMES: Final = tuple(f"/{name}" for name in _COMMANDS)


def _unquoted(text: str) -> str:
    """A text without the quotes around it, with `\\n` and the like read when it has quotes."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            found = json.loads(text)
        except ValueError:
            return text[1:-1]
        return found if isinstance(found, str) else text
    return text
