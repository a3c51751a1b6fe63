"""/v1/chat/completions: shapes of whole answers, streams, tools, thoughts and forms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infini.llm.sampling.params import SamplingParams
from tests.llm.server.conftest import Serve, chat, events
from tests.llm.server.scripted import Script, ScriptedEngine, letters

PATH = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
HERMES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = HERMES + "{# <think></think> #}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def joined(chunks: list[Any], field: str = "content", index: int = 0) -> str:
    """Text of one choice of a stream."""
    found = [
        choice["delta"].get(field) or ""
        for chunk in chunks
        if isinstance(chunk, dict)
        for choice in chunk["choices"]
        if choice["index"] == index
    ]
    return "".join(found)


def test_an_answer_has_openais_shape(serve: Serve) -> None:
    body = serve().post(PATH, json=chat(model="tiny")).json()
    assert body["object"] == "chat.completion" and body["model"] == "tiny"
    assert body["id"].startswith("chatcmpl-") and len(body["id"]) == len("chatcmpl-") + 32
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    usage = body["usage"]
    assert usage["completion_tokens"] == len("Hello!") + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_template_makes_the_prompt_and_adds_no_second_begin(serve: Serve) -> None:
    engine = ScriptedEngine()
    serve(engine).post(PATH, json=chat("hey"))
    text = engine.tokenizer.decode(engine.seen[0][0], skip_special_tokens=False)
    assert text == "<|im_start|>user\nhey<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_may_be_as_long_as_the_context_has_room(serve: Serve) -> None:
    engine = ScriptedEngine(max_model_len=100)
    serve(engine).post(PATH, json=chat())
    ids, params, _ = engine.seen[0]
    assert params.max_tokens == 100 - len(ids)


def test_max_completion_tokens_stands_above_max_tokens(serve: Serve) -> None:
    engine = ScriptedEngine(Script("abc", is_endless=True).text)
    body = serve(engine).post(PATH, json=chat(max_tokens=9, max_completion_tokens=2)).json()
    assert body["choices"][0]["message"]["content"] == "ab"
    assert body["choices"][0]["finish_reason"] == "length"


def test_fields_of_sampling_reach_the_engine(serve: Serve) -> None:
    engine = ScriptedEngine()
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "repetition_penalty": 1.1, "seed": -3, "stop": ["x", "y"], "n": 2,
        "min_tokens": 1, "max_tokens": 3, "stop_token_ids": [5], "ignore_eos": True, "logit_bias": {"4": 2},
        "bad_words": ["bad"], "skip_special_tokens": False, "include_stop_str_in_output": True,
        "allowed_token_ids": [1, 2], "typical_p": 0.8,
    }  # fmt: skip
    assert serve(engine).post(PATH, json=chat(**fields, priority=4)).status_code == 200
    _, params, how = engine.seen[0]
    expected = {**fields, "stop": ("x", "y"), "stop_token_ids": (5,), "logit_bias": {4: 2.0},
                "bad_words": ("bad",), "allowed_token_ids": (1, 2)}  # fmt: skip
    assert {name: getattr(params, name) for name in fields} == expected
    assert how["priority"] == 4


def test_defaults_are_the_models_and_above_them_the_owners(serve: Serve) -> None:
    engine = ScriptedEngine()
    engine.defaults = SamplingParams(temperature=0.3, top_k=9)
    client = serve(engine, default_sampling=(("top_k", 5),))
    client.post(PATH, json=chat())
    client.post(PATH, json=chat(temperature=0.9))
    assert [(p.temperature, p.top_k) for _, p, _ in engine.seen] == [(0.3, 5), (0.9, 5)]


def test_choices_come_in_order_and_differ(serve: Serve) -> None:
    body = serve(ScriptedEngine(letters)).post(PATH, json=chat(n=3, max_tokens=4)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3
    assert body["usage"]["completion_tokens"] == 12


def test_a_stop_string_ends_the_text_before_it(serve: Serve) -> None:
    client = serve(ScriptedEngine("one two three"))
    choice = client.post(PATH, json=chat(stop=" two")).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == (
        "one", "stop", " two",
    )  # fmt: skip


def test_logprobs_have_bytes_and_no_infinities(serve: Serve) -> None:
    body = serve(ScriptedEngine("é")).post(PATH, json=chat(logprobs=True, top_logprobs=2)).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert [item["bytes"] for item in content] == [[0xC3], [0xA9], list(b"</s>")]
    assert all(len(item["top_logprobs"]) == 2 for item in content)
    best = [top["logprob"] for top in content[0]["top_logprobs"]]
    assert best == sorted(best, reverse=True)
    wide = serve(ScriptedEngine("a")).post(PATH, json=chat(logprobs=True, top_logprobs=5)).text
    assert "-9999.0" in wide and "Infinity" not in wide


def test_logprobs_without_alternatives(serve: Serve) -> None:
    content = serve().post(PATH, json=chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert all(item["top_logprobs"] == [] for item in content)


def test_developers_speak_as_the_system_to_templates_that_know_none(serve: Serve) -> None:
    engine = ScriptedEngine()
    serve(engine).post(PATH, json={"messages": [{"role": "developer", "content": "be kind"}]})
    assert "<|im_start|>system\nbe kind" in engine.tokenizer.decode(engine.seen[0][0], False)


def test_parts_of_text_are_one_text(serve: Serve) -> None:
    engine = ScriptedEngine()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    serve(engine).post(PATH, json={"messages": [{"role": "user", "content": parts}]})
    assert "user\none\ntwo<|im_end|>" in engine.tokenizer.decode(engine.seen[0][0], False)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_media_are_refused(serve: Serve, kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://169.254.169.254/latest"}}
    answer = serve().post(PATH, json={"messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[0].type"


def test_the_last_message_can_be_continued(serve: Serve) -> None:
    engine = ScriptedEngine()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Once"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    assert serve(engine).post(PATH, json=body).status_code == 200
    assert engine.tokenizer.decode(engine.seen[0][0], False).endswith("assistant\nOnce")


# --- streams ------------------------------------------------------------------------------


def test_a_stream_begins_with_the_role_and_ends_with_a_reason(serve: Serve) -> None:
    answer = serve().post(PATH, json=chat(stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    chunks = events(answer.text)
    assert chunks[-1] == "[DONE]"
    first, last = chunks[0]["choices"][0], chunks[-2]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert last["finish_reason"] == "stop" and last["delta"] == {}
    assert joined(chunks) == "Hello!"
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks[:-1]} == {
        (chunks[0]["id"], chunks[0]["created"], "tiny", "chat.completion.chunk")
    }


def test_a_stream_never_splits_a_character(serve: Serve) -> None:
    chunks = events(serve(ScriptedEngine("aé€😀z")).post(PATH, json=chat(stream=True)).text)
    pieces = [choice["delta"].get("content") for c in chunks[:-1] for choice in c["choices"]]
    assert [piece for piece in pieces if piece] == ["a", "é", "€", "😀", "z"]


def test_a_stream_holds_back_what_may_be_a_stop_string(serve: Serve) -> None:
    answer = serve(ScriptedEngine("ab STOP cd")).post(PATH, json=chat(stream=True, stop="STOP"))
    assert joined(events(answer.text)) == "ab "


def test_usage_comes_last_with_no_choices_and_is_null_before(serve: Serve) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    chunks = events(serve().post(PATH, json=body).text)
    assert chunks[-2]["choices"] == [] and chunks[-2]["usage"]["completion_tokens"] == 7
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert "usage" not in events(serve().post(PATH, json=chat(stream=True)).text)[0]


def test_continuous_usage_grows_with_each_chunk(serve: Serve) -> None:
    body = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [c["usage"]["completion_tokens"] for c in events(serve().post(PATH, json=body).text)[:-1]]
    assert counts == sorted(counts) and counts[-1] == 7 and counts[0] >= 1


def test_choices_of_a_stream_are_told_apart_by_index(serve: Serve) -> None:
    engine = ScriptedEngine(letters)
    client = serve(engine)
    whole = client.post(PATH, json=chat(n=2, max_tokens=5, seed=3)).json()
    chunks = events(client.post(PATH, json=chat(n=2, max_tokens=5, seed=3, stream=True)).text)
    for choice in whole["choices"]:
        assert joined(chunks, index=choice["index"]) == choice["message"]["content"]
    roles = [c["index"] for chunk in chunks[:-1] for c in chunk["choices"] if "role" in c["delta"]]
    assert sorted(roles) == [0, 1]


def test_a_stream_has_the_logprobs_of_the_whole_answer(serve: Serve) -> None:
    client = serve(ScriptedEngine("héy"))
    whole = client.post(PATH, json=chat(logprobs=True, top_logprobs=1)).json()
    chunks = events(client.post(PATH, json=chat(logprobs=True, top_logprobs=1, stream=True)).text)
    found = [
        item
        for chunk in chunks[:-1]
        for choice in chunk["choices"]
        for item in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert found == whole["choices"][0]["logprobs"]["content"]


def test_a_fault_in_the_middle_of_a_stream_is_an_event(serve: Serve) -> None:
    engine = ScriptedEngine(lambda *_: Script("abc", error="the grammar broke"))
    chunks = events(serve(engine).post(PATH, json=chat(stream=True)).text)
    assert joined(chunks[:-2]) == "abc"
    assert (
        chunks[-2]["error"]["message"] == "the grammar broke"
        and chunks[-2]["error"]["type"] == "server_error"
    )
    assert chunks[-1] == "[DONE]"


def test_an_unknown_fault_in_a_stream_tells_only_a_number(serve: Serve) -> None:
    engine = ScriptedEngine(lambda *_: Script("abc", fault=RuntimeError("/home/me/secret 0xdeadbeef")))
    answer = serve(engine).post(PATH, json=chat(stream=True))
    error = events(answer.text)[-2]["error"]
    assert error["message"] == f"Internal server error; request {answer.headers['x-request-id']}."
    whole = serve(engine).post(PATH, json=chat())
    assert whole.status_code == 500 and "secret" not in whole.text


def test_what_cannot_be_served_is_refused_before_the_stream_opens(serve: Serve) -> None:
    answer = serve(ScriptedEngine(max_model_len=50)).post(PATH, json=chat("x" * 100, stream=True))
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_timings_come_when_they_are_asked_for(serve: Serve) -> None:
    client = serve()
    assert "timings" not in client.post(PATH, json=chat()).json()
    timings = client.post(PATH, json=chat(timings_per_token=True)).json()["timings"]
    assert set(timings) == {
        "cache_n", "prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms",
        "predicted_per_second",
    }  # fmt: skip
    assert timings["predicted_n"] == 7


# --- tools --------------------------------------------------------------------------------


def test_a_call_is_taken_out_of_the_text(serve: Serve) -> None:
    engine = ScriptedEngine(CALL, chat_template=HERMES)
    choice = serve(engine).post(PATH, json=chat(tools=[WEATHER])).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    call = choice["message"]["tool_calls"][0]
    assert call["type"] == "function" and call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_the_template_sees_the_tools(serve: Serve) -> None:
    engine = ScriptedEngine(CALL, chat_template=HERMES)
    serve(engine).post(PATH, json=chat(tools=[WEATHER]))
    assert '"name": "weather"' in engine.tokenizer.decode(engine.seen[0][0])


def test_a_streamed_call_has_its_name_first_and_then_arguments_alone(serve: Serve) -> None:
    engine = ScriptedEngine("I look." + CALL, chat_template=HERMES)
    chunks = events(serve(engine).post(PATH, json=chat(tools=[WEATHER], stream=True)).text)[:-1]
    assert joined(chunks) == "I look."
    parts = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert parts[0]["function"] == {"name": "weather", "arguments": ""} and parts[0]["type"] == "function"
    assert parts[0]["id"].startswith("call_")
    assert all(set(part) == {"index", "function"} and part["index"] == 0 for part in parts[1:])
    assert json.loads("".join(part["function"]["arguments"] for part in parts)) == {"city": "Rome"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_without_tools_nothing_is_parsed(serve: Serve) -> None:
    client = serve(ScriptedEngine(CALL, chat_template=HERMES))
    for body in (chat(), chat(tools=[WEATHER], tool_choice="none")):
        choice = client.post(PATH, json=body).json()["choices"][0]
        assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


def test_only_the_first_call_without_parallel_calls(serve: Serve) -> None:
    client = serve(ScriptedEngine(CALL + CALL, chat_template=HERMES))
    two = client.post(PATH, json=chat(tools=[WEATHER])).json()["choices"][0]["message"]
    one = client.post(PATH, json=chat(tools=[WEATHER], parallel_tool_calls=False)).json()["choices"][0][
        "message"
    ]
    assert (len(two["tool_calls"]), len(one["tool_calls"])) == (2, 1)


def test_a_named_tool_is_a_form_and_ends_with_stop(serve: Serve) -> None:
    engine = ScriptedEngine('{"city": "Rome"}', chat_template=HERMES)
    named = {"type": "function", "function": {"name": "weather"}}
    client = serve(engine)
    choice = client.post(PATH, json=chat(tools=[WEATHER], tool_choice=named)).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "weather", "arguments": '{"city": "Rome"}',
    }  # fmt: skip
    form = engine.seen[0][1].structured_outputs
    assert form is not None and form.json == WEATHER["function"]["parameters"]
    chunks = events(client.post(PATH, json=chat(tools=[WEATHER], tool_choice=named, stream=True)).text)[:-1]
    parts = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(part["function"]["arguments"] for part in parts) == '{"city": "Rome"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_tool_may_be_called_required(serve: Serve) -> None:
    tool = {"type": "function", "function": {"name": "required"}}
    body = chat(tools=[tool, TIME], tool_choice={"type": "function", "function": {"name": "required"}})
    choice = serve(ScriptedEngine('{"a": 1}')).post(PATH, json=body).json()["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "required", "arguments": '{"a": 1}'}


def test_required_calls_are_a_list_of_calls(serve: Serve) -> None:
    said = '[{"name": "time", "parameters": {}}, {"name": "weather", "parameters": {"city": "}{"}}]'
    engine = ScriptedEngine(said, chat_template=HERMES)
    client = serve(engine)
    body = chat(tools=[WEATHER, TIME], tool_choice="required")
    choice = client.post(PATH, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    calls = [(c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]]
    assert calls == [("time", "{}"), ("weather", '{"city": "}{"}')]
    chunks = events(client.post(PATH, json={**body, "stream": True}).text)[:-1]
    parts = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert [p["function"]["name"] for p in parts if "id" in p] == ["time", "weather"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_definitions_of_a_required_tool_move_to_the_top_of_the_form(serve: Serve) -> None:
    parameters = {
        "$defs": {"C": {"type": "string"}}, "type": "object", "properties": {"c": {"$ref": "#/$defs/C"}},
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    engine = ScriptedEngine('[{"name": "f", "parameters": {"c": "x"}}]')
    answer = serve(engine).post(PATH, json=chat(tools=[tool], tool_choice="required"))
    assert answer.status_code == 200
    form = engine.seen[0][1].structured_outputs
    assert form is not None and isinstance(form.json, dict)
    assert list(form.json["$defs"].values()) == [{"type": "string"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "auto"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "retrieval"}]},
        {"tools": [WEATHER], "tool_choice": "sometimes"},
        {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
        {"tools": [WEATHER] * 129},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * (256 << 10)}}]},
    ],
)
def test_tools_that_make_no_sense_are_refused(serve: Serve, fields: dict[str, Any]) -> None:
    answer = serve(ScriptedEngine(chat_template=HERMES)).post(PATH, json=chat(**fields))
    assert answer.status_code == 400, answer.text


# --- thoughts and forms -------------------------------------------------------------------


def test_thoughts_are_a_field_of_their_own(serve: Serve) -> None:
    client = serve(ScriptedEngine("<think>Hm.</think>\nYes.", chat_template=THINKS))
    body = client.post(PATH, json=chat()).json()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    assert "reasoning" not in message
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    chunks = events(client.post(PATH, json=chat(stream=True)).text)
    assert (joined(chunks, "reasoning_content"), joined(chunks)) == ("Hm.", "Yes.")


def test_thoughts_may_have_vllms_name_as_well(serve: Serve) -> None:
    engine = ScriptedEngine("<think>Hm.</think>Yes.", chat_template=THINKS)
    message = serve(engine, sends_reasoning=True).post(PATH, json=chat()).json()["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "Hm."


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "json", SCHEMA),
        ({"structured_outputs": {"regex": "[ab]+"}}, "regex", "[ab]+"),
        ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
        ({"guided_choice": ["a", "b"]}, "choice", ("a", "b")),
    ],
)  # fmt: skip
def test_forms_reach_the_engine(serve: Serve, fields: dict[str, Any], name: str, value: object) -> None:
    engine = ScriptedEngine()
    assert serve(engine).post(PATH, json=chat(**fields)).status_code == 200
    assert getattr(engine.seen[0][1].structured_outputs, name) == value


def test_text_is_no_form(serve: Serve) -> None:
    engine = ScriptedEngine()
    serve(engine).post(PATH, json=chat(response_format={"type": "text"}))
    assert engine.seen[0][1].structured_outputs is None


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "["}},
        {"structured_outputs": {"regex": "(a+)+$" * 1000}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {}},
        {"structured_outputs": {"grammar": "no grammar ((("}},
        {"structured_outputs": {"choice": []}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}}},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
    ],
)
def test_a_form_that_is_none_is_a_fault_of_the_call(serve: Serve, fields: dict[str, Any]) -> None:
    engine = ScriptedEngine()
    client = serve(engine)
    for stream in (False, True):
        answer = client.post(PATH, json=chat(**fields, stream=stream))
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.post(PATH, json=chat()).status_code == 200
    assert not engine.running
