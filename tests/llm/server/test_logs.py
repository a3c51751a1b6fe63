"""The log: lines for people and for programs, and what a call used."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from infini.core import errors
from infini.llm.engine.requests import EngineDeadError
from infini.llm.server import logs
from infini.llm.server.settings import Settings
from tests.llm.server.conftest import Serve, chat, events
from tests.llm.server.scripted import Script, ScriptedEngine

PATH = "/v1/chat/completions"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where the log goes; afterwards the loggers are as they were."""
    names = ("infini.server", "uvicorn", "uvicorn.error", "uvicorn.access")
    before = [(log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, names)]
    yield tmp_path / "log"
    for log, handlers, level, propagate in before:
        for handler in log.handlers:
            if handler not in handlers:
                handler.close()
        log.handlers[:], log.level, log.propagate = handlers, level, propagate
    logging.getLogger("infini.server").manager._clear_cache()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_a_line_with_what_it_used(serve: Serve, file: Path, stream: bool) -> None:
    logs.configure(form="json", file=str(file))
    serve().post(PATH, json=chat(stream=stream), headers={"X-Request-Id": "mine"})
    line = next(json.loads(text) for text in file.read_text().splitlines() if '"request"' in text)
    assert (line["method"], line["path"], line["status"]) == ("POST", PATH, 200)
    assert line["request_id"] == "mine" and line["made_tokens"] == 7 and line["prompt_tokens"] > 0
    assert line["level"] == "info" and line["seconds"] >= 0 and line["time"].endswith("Z")


def test_lines_for_people(serve: Serve, file: Path) -> None:
    logs.configure(file=str(file))
    serve().get("/v1/models")
    serve().get("/health")
    text = file.read_text()
    assert "GET /v1/models 200 client=127.0.0.1" in text
    assert "/health" not in text, "monitors are for level debug"


def test_calls_are_told_with_their_sampling_and_without_their_texts(serve: Serve, file: Path) -> None:
    logs.configure(form="json", file=str(file))
    client = serve(logs_requests=True)
    client.post(PATH, json=chat("secret", temperature=0.5, stop=["hidden"], guided_regex="concealed"))
    text = file.read_text()
    line = next(json.loads(text) for text in text.splitlines() if '"call"' in text)
    assert line["sampling"]["temperature"] == 0.5 and line["sampling"]["stop"] == "..."
    assert "secret" not in text and "hidden" not in text and "concealed" not in text


def test_unknown_fields_are_named_at_level_debug(serve: Serve, file: Path) -> None:
    logs.configure(level="debug", file=str(file))
    serve().post(PATH, json=chat(**{"strange\n": 1}))
    assert "ignored: strange?" in file.read_text()


def test_an_engine_that_dies_in_the_middle_is_told_to_its_clients(serve: Serve) -> None:
    engine = ScriptedEngine(lambda *_: Script("abc", fault=EngineDeadError("the loop has ended")))
    client = serve(engine)
    error = events(client.post(PATH, json=chat(stream=True)).text)[-2]["error"]
    assert (error["code"], error["type"]) == ("engine_dead", "server_error")
    assert client.post(PATH, json=chat()).status_code == 503


def test_a_template_of_the_owner_is_tried_before_anybody_calls(serve: Serve) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no chat template of this name"):
        serve(chat_template="chatml")
    with pytest.raises(errors.InfiniError):
        serve(chat_template="{% for %}")
    with pytest.raises(errors.ValueMismatchError, match="there is no tool-call parser"):
        serve(tool_parser="other")
    with pytest.raises(errors.ValueMismatchError, match="does not exist"):
        serve(default_sampling=(("temprature", 1.0),))
    assert Settings().chat_template is None
