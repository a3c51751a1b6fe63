"""`infini chat`: the conversation, where answers come from, and the terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from typer.testing import CliRunner

from infini.cli import app, chat, chat_session, chat_sources
from infini.cli.chat_session import Session
from infini.cli.chat_sources import Local, Server, Timing
from infini.core import errors
from tests.llm.server import live
from tests.llm.server.scripted import Script, ScriptedEngine

ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"


def _echo(prompt: str, params: Any, index: int) -> str:
    """The last question, in capitals."""
    return prompt.split("<|im_start|>user\n")[-1].split("<|im_end|>")[0].upper()


# --- the conversation -------------------------------------------------------------------------


def test_lines_are_questions_and_commands() -> None:
    session = Session(system="be kind")
    assert session.take("  ").kind == "nothing"
    assert session.take("hello ").kind == "answer"
    session.answered("hi")
    assert session.take("//etc is a folder").kind == "answer"
    assert session.prompt() == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello "},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "/etc is a folder"},
    ]
    assert session.take("/bye").kind == session.take("/exit").kind == "end"
    assert "/retry" in session.take("/?").text


def test_settings_are_set_shown_and_taken_back() -> None:
    session = Session()
    for line in (
        "/set temperature 0.5",
        "/set parameter top_k 7",
        '/set stop "\\n\\n"',
        "/set stop END",
        "/set think off",
    ):
        assert session.take(line).kind == "show"
    assert (session.settings, session.stop, session.thinks) == (
        {"temperature": 0.5, "top_k": 7}, ["\n\n", "END"], False
    )  # fmt: skip
    assert "temperature: 0.5" in session.take("/show settings").text
    for line in ("/set temperature default", "/set stop default", "/set think default", "/set quiet"):
        session.take(line)
    assert (session.settings, session.stop, session.thinks, session.shows_stats) == (
        {"top_k": 7},
        [],
        None,
        False,
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("/nothing", "no command /nothing"),
        ("/set", "a name and a value"),
        ("/set temperature", "a name and a value"),
        ("/set temperature warm", "is a number"),
        ("/set colour red", "no setting colour"),
        ('/set stop ""', "empty"),
        ("/set think maybe", "on or off"),
        ("/show x", "no x to show"),
        ("/retry", "no question"),
        ("/save", "takes a file"),
        ("/load /nowhere.json", "no saved conversation"),
    ],
)
def test_wrong_commands_are_named_and_change_nothing(line: str, text: str) -> None:
    session = Session()
    with pytest.raises(errors.ValueMismatchError, match=text):
        session.take(line)
    assert session == Session()


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    session = Session("S", [{"role": "user", "content": "ü"}], {"seed": 3}, ["x"], True)
    session.take(f"/save {tmp_path / 'c.json'}")
    other = Session()
    assert "1 messages" in other.take(f"/load {tmp_path / 'c.json'}").text
    assert other == session
    (tmp_path / "bad.json").write_text('{"messages": [{"role": "user"}]}')
    with pytest.raises(errors.ValueMismatchError, match="no saved conversation"):
        other.take(f"/load {tmp_path / 'bad.json'}")
    assert other == session


def test_retry_clear_and_system() -> None:
    session = Session()
    session.take("a")
    session.answered("b")
    assert session.take("/retry").kind == "answer"
    assert session.messages == [{"role": "user", "content": "a"}]
    session.take("/system be brief")
    session.take("/clear")
    assert session.prompt() == [{"role": "system", "content": "be brief"}]
    assert session.take("/system clear").text == "system: none"


# --- where answers come from ------------------------------------------------------------------

Make = Callable[..., Any]


@pytest.fixture(params=["local", "server"])
def source(request: pytest.FixtureRequest) -> Iterator[Make]:
    """`source(reply)`: the same scripted engine, in this process or behind a server."""
    open_: list[Any] = []

    def make(reply: Any = _echo, **options: Any) -> Any:
        engine = ScriptedEngine(reply, **options)
        if request.param == "local":
            open_.append(Local(engine, "tiny"))
        else:
            context = live.serving(engine)
            started = context.__enter__()
            request.addfinalizer(lambda: context.__exit__(None, None, None))
            open_.append(Server(started.url))
        open_[-1].engine = engine
        return open_[-1]

    yield make
    for each in open_:
        each.close()


def test_answers_come_in_pieces_and_are_timed(source: Make) -> None:
    session, timing = Session(system="S"), Timing()
    session.take("grüß dich")
    found = source()
    pieces = list(chat_sources.pieces_timed(found.answer(session, timing), timing))
    assert chat_sources.texts(pieces) == "GRÜSS DICH"
    assert len(pieces) > 3
    assert timing.reason == "stop" and timing.num_tokens is not None and timing.num_tokens > 9
    assert re.fullmatch(
        r"\d+ tokens, .* tokens/s · first after .* s, all after .* s · prompt of \d+ tokens", timing.line()
    )


def test_settings_reach_the_engine(source: Make) -> None:
    session = Session(settings={"temperature": 0.5, "seed": 7, "max_tokens": 3}, stop=["END"])
    session.take("hello")
    found = source()
    assert chat_sources.texts(list(found.answer(session, timing := Timing()))) == "HEL"
    _, params, _ = found.engine.seen[0]
    assert (params.temperature, params.seed, params.max_tokens, list(params.stop)) == (0.5, 7, 3, ["END"])
    assert timing.reason == "length"
    assert timing.line().endswith("ended by length")


def test_thoughts_are_told_from_answers(source: Make) -> None:
    template = "{{ messages[0].content }}{% if false %}<think></think>{% endif %}"
    found = source("<think>hm</think>\n\nyes", chat_template=template)
    session = Session()
    session.take("?")
    pieces = list(found.answer(session, Timing()))
    assert "".join(piece.reasoning for piece in pieces) == "hm"
    assert chat_sources.texts(pieces) == "yes"


def test_a_refusal_is_an_error_with_its_reason(source: Make) -> None:
    found = source(max_model_len=16)
    session = Session(settings={"temperature": -1.0})
    session.take("hello")
    with pytest.raises(errors.InfiniError, match=r"temperature|16"):
        list(found.answer(session, Timing()))


def test_closing_an_answer_stops_the_engine(source: Make) -> None:
    found = source(lambda *_: Script("abc" * 300, is_endless=True), delay_s=0.002)
    session = Session()
    session.take("go on")
    pieces = found.answer(session, Timing())
    next(pieces)
    pieces.close()
    live.wait_until(lambda: not found.engine.running)
    assert found.engine.finished["abort"] == 1


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(
    source: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    found = source(lambda *_: Script("abc" * 300, is_endless=True), delay_s=0.002)
    session = Session()
    session.take("go on")
    timer = threading.Timer(0.15, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    assert not chat.answer(session, found)
    timer.join()
    assert session.messages[-1]["role"] == "assistant"
    assert "abc".startswith(session.messages[-1]["content"][:3])
    assert "ended by Ctrl-C" in capsys.readouterr().err
    live.wait_until(lambda: not found.engine.running)


def test_a_server_may_send_anything() -> None:
    lines = [
        "data: 5",
        "data: [1]",
        'data: {"choices": 5, "usage": 3}',
        "data: " + "[" * 100_000,
        "data: {cut",
    ]
    lines += ['data: {"choices": [7, {"delta": 1}, {"delta": {"content": {"a": 1}}, "finish_reason": [2]}]}']
    lines += [
        'data: {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": "x"}}',
        "data: [DONE]",
    ]
    timing = Timing()
    assert chat_sources.texts(list(chat_sources._pieces(iter(lines), timing))) == "a"
    assert timing.reason is None and timing.num_prompt is None


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(errors.ValueMismatchError, match="cannot be reached"):
        Server("http://127.0.0.1:9")


def test_a_server_with_a_key_is_asked_with_it() -> None:
    with live.serving(ScriptedEngine(_echo), api_keys=("secret",)) as started:
        with pytest.raises(errors.ValueMismatchError, match="refuses") as caught:
            Server(started.url)
        assert "--api-key" in str(caught.value)
        found = Server(f"{started.url}/v1/", api_key="secret")
        session = Session()
        session.take("hello")
        assert chat_sources.texts(list(found.answer(session, Timing()))) == "HELLO"
        found.close()


# --- the terminal -----------------------------------------------------------------------------


def _typed(keys: str, source: Any, session: Session | None = None) -> Session:
    """A conversation typed on a keyboard."""
    session = session or Session()
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        chat.talk(session, source, chat.prompter(None))
    return session


@pytest.fixture
def local() -> Iterator[Local]:
    found = Local(ScriptedEngine(_echo), "tiny")
    yield found
    found.close()


def test_a_conversation_in_the_terminal(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ENTER.join(["hello", "/set seed 3", "again", "/retry", "/show messages", "/wrong", "/bye", ""])
    session = _typed(keys, local)
    assert [message["content"] for message in session.messages] == ["hello", "HELLO", "again", "AGAIN"]
    shown = capsys.readouterr()
    assert shown.out.count("AGAIN\n") == 3  # twice answered, once shown
    assert "seed is 3" in shown.out and "there is no command /wrong" in shown.err
    assert len(re.findall(r"tokens/s", shown.err)) == 3


def test_ctrl_c_at_the_prompt_ends_nothing_and_ctrl_d_does(
    local: Local, capsys: pytest.CaptureFixture[str]
) -> None:
    session = _typed("half a line" + CTRL_C + "whole" + ENTER + CTRL_D, local)
    assert [message["content"] for message in session.messages] == ["whole", "WHOLE"]
    assert "Ctrl-D or /bye ends" in capsys.readouterr().err


def test_a_text_of_several_lines(local: Local) -> None:
    keys = ENTER.join(['"""one', "two  ", 'three"""', '"""', "four", '"""', '"""five"""', ""])
    session = _typed(keys + CTRL_D, local)
    assert [message["content"] for message in session.messages[::2]] == ["one\ntwo  \nthree", "four", "five"]


def test_a_failed_question_is_taken_back(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    session = _typed(ENTER.join(["/set temperature -3", "hello", ""]) + CTRL_D, local)
    assert session.messages == []
    assert "temperature" in capsys.readouterr().err


def test_a_model_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    found = Local(ScriptedEngine("\x1b[2J\x07safe\n\tline\x9b"), "tiny")
    session = Session()
    session.take("?")
    chat.answer(session, found)
    found.close()
    assert capsys.readouterr().out == "[2Jsafe\n\tline\n"


def test_lines_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = chat._history_file()
    assert file.stat().st_mode & 0o077 == 0
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("hello" + ENTER)
        assert chat.prompter(file).prompt() == "hello"
    assert "+hello" in file.read_text()


def test_commands_are_completed() -> None:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        completer = chat.prompter(None).completer
        assert completer is not None
        for text, found in (("/cle", {"/clear"}), ("/set top_", {"top_k", "top_p"}), ("hello", set())):
            assert {each.text for each in completer.get_completions(Document(text), CompleteEvent())} == found


# --- the command ------------------------------------------------------------------------------


def test_one_question_to_a_server() -> None:
    with live.serving(ScriptedEngine(_echo)) as started:
        done = CliRunner().invoke(app, ["chat", started.url, "-q", "hello", "-s", "S", "--max-tokens", "4"])
        assert (done.exit_code, done.stdout) == (0, "HELL\n"), done.output
        done = CliRunner().invoke(app, ["chat", started.url, "--no-stats"], input="from a pipe")
        assert (done.exit_code, done.output) == (0, "FROM A PIPE\n")


def test_a_model_that_is_not_here_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["chat", "org/nothing", "-q", "x"], env={"HF_HOME": str(tmp_path)})
    assert done.exit_code == 1
    assert "infini pull org/nothing" in done.output


def test_help_names_every_command() -> None:
    for name in chat_session.NAMES:
        assert name in chat_session.HELP or name in ("/reset", "/exit", "/quit", "/help")


def test_a_saved_conversation_is_plain_json(tmp_path: Path) -> None:
    Session(messages=[{"role": "user", "content": "é"}]).save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["messages"] == [{"role": "user", "content": "é"}]
