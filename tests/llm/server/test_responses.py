"""/v1/responses: items in and out, OpenAI's order of events, and no store."""

from __future__ import annotations

from typing import Any

import pytest

from tests.llm.server.conftest import Serve, events
from tests.llm.server.scripted import Script, ScriptedEngine
from tests.llm.server.test_chat import CALL, HERMES, THINKS

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


def test_a_response_has_one_message(serve: Serve) -> None:
    body = serve().post(PATH, json={"input": "hi"}).json()
    assert body["object"] == "response" and body["id"].startswith("resp_") and body["status"] == "completed"
    assert body["store"] is False and body["error"] is None and body["incomplete_details"] is None
    (item,) = body["output"]
    assert item["type"] == "message" and item["role"] == "assistant" and item["status"] == "completed"
    assert item["content"] == [{"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}]
    usage = body["usage"]
    assert usage["output_tokens"] == 7
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_instructions_are_the_system(serve: Serve) -> None:
    engine = ScriptedEngine()
    serve(engine).post(PATH, json={"input": "hi", "instructions": "be kind"})
    text = engine.tokenizer.decode(engine.seen[0][0], False)
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi")


def test_items_become_messages(serve: Serve) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.tool_calls is defined }}]{% endfor %}"
    )
    engine = ScriptedEngine(chat_template=template)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
    ]
    assert serve(engine).post(PATH, json={"input": items}).status_code == 200
    text = engine.tokenizer.decode(engine.seen[0][0], False)
    assert text == "[user|a|False][assistant||True][tool|sun|False][assistant|b|False]"


def test_too_few_tokens_leave_a_response_incomplete(serve: Serve) -> None:
    body = serve().post(PATH, json={"input": "hi", "max_output_tokens": 2}).json()
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_calls_and_thoughts_are_items(serve: Serve) -> None:
    thinking = "<think>Hm.</think>" + CALL
    engine = ScriptedEngine(thinking, chat_template=THINKS)
    output = serve(engine).post(PATH, json={"input": "hi", "tools": [TOOL]}).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert output[1]["name"] == "weather" and output[1]["call_id"].startswith("call_")


def test_a_form_is_asked_for_by_text_format(serve: Serve) -> None:
    engine = ScriptedEngine("{}")
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    assert serve(engine).post(PATH, json={"input": "hi", "text": {"format": form}}).status_code == 200
    assert engine.seen[0][1].structured_outputs.json == {"type": "object"}  # type: ignore[union-attr]


def test_logprobs_come_when_they_are_included(serve: Serve) -> None:
    body = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    part = serve().post(PATH, json=body).json()["output"][0]["content"][0]
    assert part["logprobs"][0]["token"] == "H" and len(part["logprobs"][0]["top_logprobs"]) == 1


def test_logprobs_of_a_stream_are_those_of_the_whole(serve: Serve) -> None:
    """Those of half a character as well, whose text comes with the other half."""
    body = {"input": "hi", "include": ["message.output_text.logprobs"]}
    client = serve(ScriptedEngine("é!"))
    whole = client.post(PATH, json=body).json()["output"][0]["content"][0]["logprobs"]
    found = events(client.post(PATH, json={**body, "stream": True}).text)
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == whole
    assert len(whole) == 4  # two bytes, a letter, and the end


def test_events_come_in_openais_order(serve: Serve) -> None:
    answer = serve(ScriptedEngine("ab")).post(PATH, json={"input": "hi", "stream": True})
    found = events(answer.text)
    assert [event["type"] for event in found] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.delta", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in found] == list(range(10))
    names = [line.removeprefix("event: ") for line in answer.text.split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in found]
    assert found[6]["text"] == "ab" and found[-1]["response"]["output"] == [found[8]["item"]]
    assert found[-1]["response"]["usage"]["output_tokens"] == 3


def test_every_item_of_a_stream_is_ended_before_the_next_begins(serve: Serve) -> None:
    engine = ScriptedEngine("<think>Hm.</think>Look." + CALL + CALL, chat_template=THINKS)
    found = events(serve(engine).post(PATH, json={"input": "hi", "tools": [TOOL], "stream": True}).text)
    edges = [
        (event["type"].rpartition(".")[2], event["output_index"], event["item"]["type"])
        for event in found
        if event["type"].startswith("response.output_item")
    ]
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert edges == [(edge, i, kind) for i, kind in enumerate(kinds) for edge in ("added", "done")]
    done = [event for event in found if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == ['{"city": "Rome"}'] * 2
    assert [item["type"] for item in found[-1]["response"]["output"]] == kinds


def test_a_fault_in_a_stream_fails_the_response(serve: Serve) -> None:
    engine = ScriptedEngine(lambda *_: Script("ab", error="broken"))
    last = events(serve(engine).post(PATH, json={"input": "hi", "stream": True}).text)[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["message"] == "broken"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": None}, "input"),
    ],
)
def test_what_needs_a_store_or_is_no_text_is_refused(
    serve: Serve, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        answer = serve(ScriptedEngine(chat_template=HERMES)).post(
            PATH, json={"input": "hi", "stream": stream, **fields}
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
