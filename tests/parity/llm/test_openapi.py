"""The published OpenAPI document, and calls that schemathesis makes of it: none is a fault of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import jsonschema
import pytest
import schemathesis

from infini.llm.server import application, openapi
from infini.llm.server.routes import ROUTES
from infini.llm.server.settings import Settings
from tests.llm.server.client import Client
from tests.llm.server.conftest import chat
from tests.llm.server.scripted import ScriptedEngine

EXAMPLES = hypothesis.settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
DOCUMENT = openapi.document(ROUTES, has_keys=False)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A server whose faults are answers."""
    app = application.build(ScriptedEngine("ok", max_model_len=4096), Settings(names=("tiny",)))
    with Client(app) as found:
        yield found


@SCHEMA.parametrize()
@EXAMPLES
def test_no_call_is_a_fault_of_the_server(case: Any, client: Client) -> None:
    sent = case.as_transport_kwargs(base_url="http://localhost")
    raw = sent.pop("data", None)
    sent = {name: value for name, value in sent.items() if name not in ("auth", "cookies")}
    if isinstance(raw, (str, bytes)):
        sent["content"] = raw
    answer = client.request(**sent)
    is_missing = case.path == "/v1/embeddings"
    assert answer.status_code in ((200, 400, 404, 405, 501) if is_missing else (200, 400, 404, 405)), (
        answer.text
    )
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert '"error":{' not in answer.text


def test_the_document_is_openapi(client: Client) -> None:
    found = client.get("/openapi.json").json()
    assert found == DOCUMENT and found["openapi"] == "3.1.0"
    for name, schema in found["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name
    paths = {path: set(methods) for path, methods in found["paths"].items()}
    assert paths["/v1/chat/completions"] == {"post"} and paths["/v1/models/{model}"] == {"get"}
    assert "security" not in str(found["paths"]["/v1/models"])


def test_the_document_says_where_keys_are_needed() -> None:
    found = openapi.document(ROUTES, has_keys=True)
    assert found["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert found["paths"]["/v1/completions"]["post"]["security"] == [{"bearer": []}]
    assert "security" not in found["paths"]["/health"]["get"]


def test_what_the_document_allows_is_what_is_taken(client: Client) -> None:
    """Ranges of the document are those of the server: a value beyond them is refused by both."""
    schema = {"$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    for fields in (
        {"temperature": 2.5}, {"top_p": 0}, {"n": 0}, {"seed": "x"}, {"messages": []}, {"tools": []},
        {"logprobs": 3}, {"presence_penalty": -3}, {"temperature": 1.0}, {"n": 2}, {"max_tokens": 5},
    ):  # fmt: skip
        body = {**chat(), **fields}
        assert validator.is_valid(body) == (client.post("/v1/chat/completions", json=body).status_code == 200)
