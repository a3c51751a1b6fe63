"""Bodies that nobody would send: whatever they are, they are no fault of the server's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from infini.llm.server import application, bodies, failures
from infini.llm.server.requests import ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest
from infini.llm.server.settings import Settings
from tests.llm.server.client import Client
from tests.llm.server.scripted import ScriptedEngine

LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["user", "text", "auto", "json_object", "function", "required", "tiny", "", "0", "-1"])
)  # fmt: skip
KEYS = st.sampled_from(
    ["role", "content", "type", "text", "name", "function", "parameters", "schema", "json", "regex", "choice",
     "arguments", "id", "tool_calls", "include_usage", "1", "$ref", "properties", "effort", "format", "x"]
)  # fmt: skip
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
MODELS = {
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    "/v1/completions": (CompletionRequest, {"prompt": "x"}),
    "/v1/responses": (ResponsesRequest, {"input": "x"}),
    "/tokenize": (TokenizeRequest, {"prompt": "x"}),
}


def odd_bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """A body that works, with a few fields of its kind replaced by anything."""
    model, good = MODELS[path]
    names = st.sampled_from([field.alias or name for name, field in model.model_fields.items()])
    return st.dictionaries(names, JSON, max_size=4).map(lambda odd: {**good, "max_tokens": 3, **odd})


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    app = application.build(ScriptedEngine("ok"), Settings(names=("tiny",), trusts_request_templates=False))
    with Client(app) as found:
        yield found


@pytest.mark.parametrize("path", MODELS)
@given(data=st.data())
def test_odd_fields_are_answered(client: Client, path: str, data: st.DataObject) -> None:
    body = data.draw(odd_bodies(path))
    answer = client.post(path, json=body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_bytes_become_an_object_or_an_error(body: bytes) -> None:
    try:
        assert isinstance(bodies.parse(body, Settings().limits), dict)
    except failures.ApiError as error:
        assert error.status == 400


@given(value=JSON)
def test_depth_counts_brackets_outside_of_strings(value: Any) -> None:
    def deepest(inner: Any) -> int:
        if isinstance(inner, (dict, list)):
            return 1 + max(map(deepest, inner.values() if isinstance(inner, dict) else inner), default=0)
        return 0

    assert bodies.depth(json.dumps(value).encode()) == deepest(value)


@given(text=st.text(max_size=200))
def test_any_text_can_be_told_to_a_client(text: str) -> None:
    failures.ApiError(400, text).response()
