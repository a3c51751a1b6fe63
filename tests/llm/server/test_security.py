"""What strangers try: no key, odd hosts, huge and odd bodies, templates, paths as names, texts of errors."""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pydantic
import pytest

from infini.llm.sampling.limits import Limits
from infini.llm.server import failures, keys, requests, settings as settings_
from infini.llm.server.middleware import OPEN_PATHS, host_name
from infini.llm.server.routes import ROUTES
from tests.llm.server.client import Client
from tests.llm.server.conftest import Serve, chat
from tests.llm.server.scripted import ScriptedEngine

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer secret-key"}


# --- keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((route.method, route.shown_path) for route in ROUTES if route.path not in OPEN_PATHS),
        ("GET", "/openapi.json"), ("GET", "/nope"), ("GET", "/"), ("DELETE", "/v1/models"),
        ("POST", "/health/../v1/completions"), ("GET", "/health/"), ("GET", "//health"),
        ("GET", "/v1/models?x=/health"),
    ],
)  # fmt: skip
def test_every_path_needs_a_key(serve: Serve, method: str, path: str) -> None:
    client = serve(api_keys=("secret-key",))
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret-key"},
        {"X-Api-Key": ""},
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401, (path, headers)
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key(serve: Serve) -> None:
    client = serve(api_keys=("secret-key",))
    assert client.get("/health").status_code == client.get("/ping").status_code == 200


def test_metrics_need_a_key_unless_they_are_open(serve: Serve) -> None:
    assert serve(api_keys=("k",)).get("/metrics").status_code == 401
    assert serve(api_keys=("k",), is_metrics_open=True).get("/metrics").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        KEY,
        {"X-Api-Key": "secret-key"},
        {"Authorization": "bearer  secret-key"},
        {"Authorization": "Bearer other"},
    ],
)
def test_any_of_the_keys_opens_in_either_header(serve: Serve, headers: dict[str, str]) -> None:
    client = serve(api_keys=("secret-key", "other"))
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_host_that_looks_like_a_path_opens_nothing(serve: Serve) -> None:
    client = serve(api_keys=("secret-key",), allowed_hosts=None)
    for host in ("localhost/health?", "localhost/health#", "x/health", "health"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 401


def test_with_a_path_in_front_health_is_open_and_the_rest_is_not(serve: Serve) -> None:
    client = serve(api_keys=("secret-key",), root_path="/llm")
    app = Client(client.app, root_path="/llm")
    assert app.get("/llm/health").status_code == 200
    assert app.get("/llm/v1/models").status_code == 401


def test_keys_are_digests_compared_in_constant_time_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = secrets.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(secrets, "compare_digest", spy)
    known = keys.Keys(["a", "b", "c"])
    assert known.find([(b"authorization", b"Bearer a")]) == 0
    assert [other for _, other in compared] == [hashlib.sha256(key).digest() for key in (b"a", b"b", b"c")]
    assert known.find([(b"x-api-key", b"d")]) is None and len(compared) == 6
    assert "a" not in vars(known).values() and "secret" not in repr(settings_.Settings(api_keys=("secret",)))


# --- hosts and origins --------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "a b", "[::2]"]
)
def test_other_hosts_are_refused_on_the_loopback(serve: Serve, host: str) -> None:
    answer = serve().get("/health", headers={"Host": host})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."])
def test_names_of_this_machine_are_accepted(serve: Serve, host: str) -> None:
    assert serve().get("/health", headers={"Host": host}).status_code == 200


def test_a_name_is_what_stands_before_the_port() -> None:
    names = ["a:8000", "[::1]:80", "A.b", "a:80:80", "a/b", "a@b", "a\\b", "a?b", "[::1"]
    assert [host_name(name) for name in names] == ["a", "::1", "a.b", "", "", "", "", "", ""]


def test_no_page_of_the_web_may_call_unless_it_is_named(serve: Serve) -> None:
    page = {"Origin": "http://evil.example"}
    answer = serve().get("/v1/models", headers=page)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    ask = {**page, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in serve().options(CHAT, headers=ask).headers
    client = serve(allowed_origins=("http://good.example",), api_keys=("k",))
    good = {**ask, "Origin": "http://good.example"}
    assert client.options(CHAT, headers=good).headers["access-control-allow-origin"] == "http://good.example"
    assert "access-control-allow-origin" not in client.options(CHAT, headers=ask).headers
    assert "access-control-allow-credentials" not in client.options(CHAT, headers=good).headers


# --- bodies -------------------------------------------------------------------------------


def post(client: Client, body: bytes, path: str = CHAT, kind: str = "application/json") -> Any:
    """The answer to a raw body."""
    return client.post(path, content=body, headers={"Content-Type": kind})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"true",
        b"{}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "unknown": -1e999}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "a": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "x"}], "n": 1000000000}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 1e3}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999999}',
    ],
    ids=range(22),
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"])
def test_odd_bodies_are_faults_of_the_client(serve: Serve, body: bytes, path: str) -> None:
    if (
        path == "/tokenize"
        and body.startswith(b'{"messages": [{')
        and b"ud800" not in body
        and b"[[" not in body
    ):
        body = body.replace(b"messages", b"nothing")
    engine = ScriptedEngine()
    answer = post(serve(engine), body, path)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert not engine.seen


def test_strings_may_have_as_many_brackets_as_they_like(serve: Serve) -> None:
    assert serve().post(CHAT, json=chat("[" * 500 + '"{')).status_code == 200


def test_sixty_four_levels_are_not_too_many(serve: Serve) -> None:
    deep = json.dumps(chat())[:-1] + ', "x": ' + "[" * 63 + "]" * 63 + "}"
    assert post(serve(), deep.encode()).status_code == 200


def test_a_large_body_is_refused_whether_or_not_it_says_its_length(serve: Serve) -> None:
    client = serve(limits=Limits(body_nbytes=1000))
    large = json.dumps(chat("x" * 2000)).encode()
    assert post(client, large).status_code == 413

    async def cut() -> AsyncIterator[bytes]:
        for at in range(0, len(large), 100):
            yield large[at : at + 100]

    pieces = client.post(CHAT, content=cut(), headers={"Content-Type": "application/json"})  # fmt: skip
    assert pieces.status_code == 413 and pieces.json()["error"]["code"] == "request_too_large"
    assert client.post(CHAT, json=chat("x" * 500)).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_only_json_is_read(serve: Serve, kind: str) -> None:
    """A form of a web page cannot send JSON, so it cannot call without the browser asking first."""
    assert post(serve(), json.dumps(chat()).encode(), kind=kind).status_code == 400


def test_json_may_name_its_charset(serve: Serve) -> None:
    assert (
        post(serve(), json.dumps(chat()).encode(), kind="application/json; charset=utf-8").status_code == 200
    )


BAD = [
    {"temperature": 2.1}, {"temperature": -0.1}, {"temperature": "0.5"}, {"temperature": True},
    {"top_p": 0}, {"top_p": 1.1}, {"top_k": -2}, {"top_k": 1.5}, {"min_p": -0.1}, {"min_p": 1.1},
    {"presence_penalty": 2.1}, {"frequency_penalty": -2.1}, {"repetition_penalty": 0},
    {"seed": 1 << 63}, {"seed": 1.5}, {"max_tokens": 0}, {"max_completion_tokens": 0}, {"min_tokens": -1},
    {"min_tokens": 5, "max_tokens": 4}, {"n": 0}, {"n": 17}, {"n": 2, "temperature": 0},
    {"stop": ["a", "b", "c", "d", "e"]}, {"stop": ""}, {"stop": [""]}, {"stop": "x" * 257}, {"stop": [1]},
    {"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1},
    {"logprobs": 5}, {"logit_bias": {"1": 101}}, {"logit_bias": {"a": 1}}, {"logit_bias": {"100000": 1}},
    {"logit_bias": {str(i): 0 for i in range(1025)}}, {"logit_bias": []}, {"bad_words": ["a"] * 129},
    {"bad_words": [""]}, {"stop_token_ids": [-1]}, {"stop_token_ids": [10**6]}, {"allowed_token_ids": []},
    {"stream_options": {"include_usage": True}}, {"stream": "yes"}, {"metadata": {"a" * 65: "b"}},
    {"metadata": {"a": "b" * 513}}, {"metadata": {str(i): "" for i in range(17)}}, {"metadata": {"a": 1}},
    {"cache_salt": "a/b"}, {"cache_salt": "a@b"}, {"cache_salt": ""}, {"cache_salt": "x" * 129},
    {"priority": 1 << 63}, {"messages": []}, {"messages": "hi"},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "god", "content": "x"}]}, {"messages": [{}]}, {"messages": [None]},
    {"reasoning_effort": "infinite"}, {"max_tokens": 5000},
]  # fmt: skip


def _name(fields: dict[str, Any]) -> str:
    return " ".join(fields) + str(zlib.crc32(repr(fields).encode()) % 9973)


@pytest.mark.parametrize("fields", BAD, ids=_name)
def test_values_outside_their_range_are_refused(serve: Serve, fields: dict[str, Any]) -> None:
    answer = serve().post(CHAT, json={**chat(), **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    assert error["param"] is None or error["param"].partition("[")[0].partition(".")[0] in {
        *fields,
        "messages",
    }


GOOD = [
    {"temperature": 0}, {"temperature": 2}, {"temperature": 0.001}, {"top_k": -1}, {"top_k": 0}, {"n": 16},
    {"stop": None}, {"stop": []}, {"stop": ["a"] * 4}, {"seed": -(1 << 63)}, {"user": "me"}, {"store": True},
    {"metadata": {"a": "b"}}, {"service_tier": "auto"}, {"unknown_field": {"a": [1]}},
    {"logit_bias": {"5": -100}},
    {"parallel_tool_calls": True}, {"max_tokens": None}, {"logprobs": False}, {"ignore_eos": False},
]  # fmt: skip


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_values_at_the_ends_of_their_range_are_taken(serve: Serve, fields: dict[str, Any]) -> None:
    assert serve().post(CHAT, json=chat(**fields)).status_code == 200


def test_a_context_that_is_too_small_is_told_with_both_numbers(serve: Serve) -> None:
    answer = serve(ScriptedEngine(max_model_len=30)).post("/v1/completions", json={"prompt": "a" * 50})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "30" in error["message"] and "51" in error["message"]


# --- templates and names ------------------------------------------------------------------


def test_a_call_brings_no_template_unless_it_is_trusted(serve: Serve) -> None:
    body = chat(chat_template="{{ messages[0].content }}!")
    refused = serve().post(CHAT, json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "chat_template"
    assert serve().post("/tokenize", json=body).status_code == 400
    engine = ScriptedEngine()
    assert serve(engine, trusts_request_templates=True).post(CHAT, json=body).status_code == 200
    assert engine.tokenizer.decode(engine.seen[0][0]) == "hi!"


def test_even_a_trusted_template_stays_in_its_sandbox(serve: Serve) -> None:
    """`tests/llm/text` has the other ways out; here it is that a call goes through the same sandbox."""
    client = serve(trusts_request_templates=True)
    answer = client.post(CHAT, json=chat(chat_template="{{ cycler.__init__.__globals__ }}"))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["tokenize", "messages", "tools", "add_generation_prompt", "chat_template"])
def test_values_for_the_template_replace_nothing_of_ours(serve: Serve, name: str) -> None:
    engine = ScriptedEngine()
    assert serve(engine).post(CHAT, json=chat(chat_template_kwargs={name: True})).status_code == 400
    assert not engine.seen


def test_values_for_the_template_reach_it(serve: Serve) -> None:
    engine = ScriptedEngine(chat_template="{{ enable_thinking }}|{{ reasoning_effort }}")
    body = chat(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    assert serve(engine).post(CHAT, json=body).status_code == 200
    assert engine.tokenizer.decode(engine.seen[0][0]) == "False|low"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/x", "/etc/passwd", "a%00b", "C:%5cx"]
)
def test_names_of_models_are_no_paths(serve: Serve, name: str) -> None:
    client = serve()
    answer = client.get(f"/v1/models/{name}")
    assert answer.status_code == 404 and "root:" not in answer.text
    assert client.post(CHAT, json=chat(model=name)).status_code == 404


# --- texts of errors ----------------------------------------------------------------------


def test_errors_say_nothing_about_this_machine() -> None:
    text = "cannot read /home/me/models/x.gguf at 0x7ffc12345678 or C:\\Users\\me\\x, in org/model and a/b"
    assert failures.clean(text) == "cannot read <path> at <address> or <path>, in org/model and a/b"
    assert len(failures.clean("x" * 5000)) == 4000


def test_faults_of_ours_are_a_number_in_the_answer_and_whole_in_the_log(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret at /srv/secret/place")

    monkeypatch.setattr(engine, "generate", broken)
    answer = serve(engine).post(CHAT, json=chat())
    assert answer.status_code == 500
    number = answer.headers["x-request-id"]
    assert answer.json()["error"]["message"] == f"Internal server error; request {number}."
    assert "secret at /srv/secret/place" in caplog.text and number in caplog.text


def test_at_most_ten_faults_of_a_body_are_told_each_shortened(serve: Serve) -> None:
    metadata = {f"k{number}": ["x" * 1000] for number in range(16)}
    message = serve().post(CHAT, json=chat(metadata=metadata)).json()["error"]["message"]
    assert message.count("metadata.k") == 10 and "6 more" in message
    assert "x" * 300 not in message


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 9999},
        {"messages": [{"role": "user", "content": [1] * 9999}]},
        {"prompt": [0.5] * 9999},
        {"prompt": [[0.5] * 99] * 99},
        {"stop": [1] * 9999},
        {"stop_token_ids": ["a"] * 9999},
        {"logit_bias": {str(number): "a" for number in range(9999)}},
        {"metadata": {str(number): 1 for number in range(9999)}},
    ],
    ids=["messages", "parts", "prompt", "prompts", "stop", "ids", "bias", "metadata"],
)
def test_many_wrong_items_are_few_faults(fields: dict[str, Any]) -> None:
    # Each fault takes memory and time, and a body has room for millions of them.
    model = requests.CompletionRequest if "prompt" in fields else requests.ChatRequest
    with pytest.raises(pydantic.ValidationError) as caught:
        model.model_validate({**chat(), **fields} if model is requests.ChatRequest else fields)
    assert caught.value.error_count() <= 4


def test_texts_of_clients_are_not_in_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    serve().post(CHAT, json=chat("my secret"), headers={"Authorization": "Bearer my-key"})
    serve().get("/nope%1b[31m", headers={"Authorization": "Bearer my-key"})
    assert "my secret" not in caplog.text and "my-key" not in caplog.text and "\x1b" not in caplog.text


# --- too much at once ---------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    engine = ScriptedEngine(max_num_seqs=1, max_num_queued_reqs=1)
    engine.running = {"a": None, "b": None}  # type: ignore[dict-item]
    for stream in (False, True):
        answer = serve(engine).post(CHAT, json=chat(stream=stream))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1


def test_a_dead_engine_is_no_fault_of_the_client(serve: Serve) -> None:
    engine = ScriptedEngine()
    client = serve(engine)
    engine.is_dead = True
    assert client.post(CHAT, json=chat()).status_code == 503


def test_a_call_that_takes_too_long_ends_by_length_with_what_there_is(serve: Serve) -> None:
    engine = ScriptedEngine(lambda *_: "abc" * 400, delay_s=0.01)
    client = serve(engine, limits=Limits(request_s=0.2))
    choice = client.post(CHAT, json=chat()).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"].startswith("abc")
    assert not engine.running


def test_a_stream_without_tokens_for_too_long_ends_by_an_error(serve: Serve) -> None:
    engine = ScriptedEngine(lambda *_: "abc")
    client = serve(engine, limits=Limits(idle_stream_s=0.05))

    engine.delay_s = 0.5
    text = client.post(CHAT, json=chat(stream=True)).text
    assert '"code":"timeout"' in text and text.endswith("data: [DONE]\n\n")
    assert not engine.running and engine.aborted
