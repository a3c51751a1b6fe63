"""The openai client, unchanged, against a server over a scripted engine: what it reads of our answers."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from infini.llm.sampling.params import SamplingParams
from tests.llm.server.live import Live, serving
from tests.llm.server.scripted import Script, ScriptedEngine, letters

KEY = "test-key"
ASK: list[Any] = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# <think></think> #}"
)
CALL = 'Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def reply(prompt: str, params: SamplingParams, index: int) -> Script:
    """What the prompt asks for: its last line in capitals is the name of a script."""
    if params.structured_outputs is not None:
        return Script('{"city": "Rome", "days": 3}')
    if "weather" in prompt:
        return Script(CALL)
    if "THINK" in prompt:
        return Script("<think>Hm.</think>Yes.")
    if "LETTERS" in prompt:
        return letters(prompt, params, index)
    if "BREAK" in prompt:
        return Script("abc", error="it broke")
    return Script("Grüße, 世界 😀!")


SAID = "Grüße, 世界 😀!"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A server with a key."""
    engine = ScriptedEngine(reply, chat_template=TEMPLATE)
    with serving(engine, api_keys=(KEY,)) as found:
        yield found


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    """The client as users make it."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def letters_prompt(**_: Any) -> list[Any]:
    return [{"role": "user", "content": "LETTERS"}]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "infini"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK)
    assert answer.choices[0].message.content == SAID and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer._request_id is not None


def test_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAID
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None


def test_the_helper_for_streams_puts_an_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=ASK) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == SAID


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=100)
    assert [choice.text for choice in answer.choices] == [SAID, SAID]
    pieces = client.completions.create(model="tiny", prompt="a", max_tokens=100, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == SAID


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and len(content[0].top_logprobs) == 3
    told = b"".join(bytes(item.bytes or ()) for item in content[:-1])
    assert told.decode() == SAID
    answers = client.completions.create(model="tiny", prompt="a", logprobs=2, echo=True)
    found = answers.choices[0].logprobs
    assert found is not None and found.token_logprobs is not None and found.token_logprobs[0] is None


def test_n_stop_and_seed(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> list[str]:
        answer = client.chat.completions.create(
            model="tiny", messages=letters_prompt(), max_tokens=8, n=3, **fields
        )
        return [choice.message.content or "" for choice in answer.choices]

    first = ask(seed=1)
    assert first == ask(seed=1) != ask(seed=2) and len(set(first)) == 3
    cut = first[0][4]
    assert ask(seed=1, stop=[cut])[0] == first[0].partition(cut)[0]


def test_tools(client: openai.OpenAI) -> None:
    message = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS).choices[0]
    assert message.finish_reason == "tool_calls" and message.message.content == "Let me see."
    call: Any = message.message.tool_calls[0]  # type: ignore[index]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    with client.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls is not None
    assert json.loads(final.tool_calls[0].function.arguments) == {"city": "Rome"}


def test_the_result_of_a_tool_goes_back(client: openai.OpenAI, live: Live) -> None:
    message = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS).choices[0].message
    call: Any = message.tool_calls[0]  # type: ignore[index]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    again = client.chat.completions.create(model="tiny", messages=[*ASK, message, result])  # type: ignore[list-item]
    assert again.choices[0].message.content == SAID
    prompt = live.engine.tokenizer.decode(live.engine.seen[-1][0], skip_special_tokens=False)
    assert "<|im_start|>tool\nsun<|im_end|>" in prompt


class Trip(pydantic.BaseModel):
    """What an answer is parsed as."""

    city: str
    days: int


def test_a_schema(client: openai.OpenAI, live: Live) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Trip)
    assert answer.choices[0].message.parsed == Trip(city="Rome", days=3)
    form = live.engine.seen[-1][1].structured_outputs
    assert (
        form is not None and isinstance(form.json, dict) and set(form.json["properties"]) == {"city", "days"}
    )


def test_thoughts(client: openai.OpenAI) -> None:
    ask: list[Any] = [{"role": "user", "content": "THINK"}]
    message: Any = client.chat.completions.create(model="tiny", messages=ask).choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm.", "Yes.")


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="hi", instructions="be kind")
    assert answer.output_text == SAID and answer.status == "completed"
    assert answer.usage is not None and answer.usage.input_tokens > 0
    kinds = []
    with client.responses.stream(model="tiny", input="hi") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == SAID
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    parsed = client.responses.parse(model="tiny", input="hi", text_format=Trip)
    assert parsed.output_parsed == Trip(city="Rome", days=3)


def test_a_response_with_a_call(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", **TOOLS[0]["function"], "strict": True}]
    first = client.responses.create(model="tiny", input="hi", tools=tools)
    call: Any = first.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        {"city": "Rome"},
    )
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    items: list[Any] = [{"role": "user", "content": "hi"}, *first.output, result]
    assert client.responses.create(model="tiny", input=items).output_text == SAID
    with client.responses.stream(model="tiny", input="hi", tools=tools) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]


def test_errors_by_class(client: openai.OpenAI, live: Live) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as refused:
        ask(model="tiny", messages=ASK, temperature=3)
    assert refused.value.param == "temperature" and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="other", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="tiny", prompt="x" * 2000, stream=True)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError):  # its class for every status from 500
        client.embeddings.create(model="tiny", input="a")
    live.engine.is_loading = True
    try:
        with pytest.raises(openai.InternalServerError) as busy:
            ask(model="tiny", messages=ASK)
        assert busy.value.status_code == 503
    finally:
        live.engine.is_loading = False


def test_an_error_in_the_middle_of_a_stream(client: openai.OpenAI) -> None:
    ask: list[Any] = [{"role": "user", "content": "BREAK"}]
    said = ""
    with pytest.raises(openai.APIError, match="it broke"):
        for chunk in client.chat.completions.create(model="tiny", messages=ask, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == "abc"


def test_the_client_tries_again_when_the_queue_is_full(live: Live) -> None:
    engine = ScriptedEngine(lambda *_: Script("ok"), max_num_seqs=1, max_num_queued_reqs=1)
    with (
        serving(engine) as busy,
        openai.OpenAI(base_url=f"{busy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        engine.running = {"a": None, "b": None}  # type: ignore[dict-item]
        with pytest.raises(openai.InternalServerError) as full:
            client.completions.create(model="tiny", prompt="a")
        assert full.value.response.headers["retry-after"] == "1"
        engine.running = {}
        assert client.completions.create(model="tiny", prompt="a").choices[0].text == "ok"


def test_the_asynchronous_client(live: Live) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="tiny", messages=ASK) for _ in range(8))
            )
            assert {answer.choices[0].message.content for answer in answers} == {SAID}
            stream = await client.chat.completions.create(model="tiny", messages=ASK, stream=True)
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            assert text == SAID
            async with client.responses.stream(model="tiny", input="hi") as events:
                assert (await events.get_final_response()).output_text == SAID
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("other")

    asyncio.run(run())


def test_a_stream_that_is_closed_ends_the_call(client: openai.OpenAI, live: Live) -> None:
    stream = client.chat.completions.create(model="tiny", messages=letters_prompt(), stream=True)
    next(iter(stream))
    stream.close()
    for _ in range(2000):
        if not live.engine.running:
            break
        asyncio.run(asyncio.sleep(0.005))
    assert not live.engine.running


def test_fields_of_others_pass_in_extra_body(client: openai.OpenAI, live: Live) -> None:
    body = {"top_k": 5, "min_p": 0.1, "structured_outputs": {"json": {"type": "object"}}, "something": [1]}
    client.chat.completions.create(model="tiny", messages=ASK, extra_body=body)
    params = live.engine.seen[-1][1]
    assert (params.top_k, params.min_p) == (5, 0.1) and params.structured_outputs is not None


def test_the_example_runs(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).resolve().parents[3] / "examples" / "openai_client.py"
    spec = importlib.util.spec_from_file_location("example_openai_client", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(f"{live.url}/v1", KEY) == {"city": "Rome", "days": 3}
    said = capsys.readouterr().out
    assert "the server has tiny" in said and "temperature is refused" in said


def test_the_bytes_of_a_character_come_with_its_tokens(client: openai.OpenAI) -> None:
    """A token of half a character has bytes, and clients put them together."""
    answer = client.chat.completions.create(model="tiny", messages=ASK, logprobs=True)
    content: Any = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    joined = base64.b64encode(bytes(byte for item in content[:-1] for byte in item.bytes))
    assert joined == base64.b64encode(SAID.encode())
