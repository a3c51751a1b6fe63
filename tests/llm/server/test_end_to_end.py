"""The server over the engine itself, with a tiny model: answers, streams, every block given back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infini.llm.engine.async_llm import AsyncLLM
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, make_tokenizer
from tests.llm.server.conftest import chat, events
from tests.llm.server.live import Live, request, serving, wait_until
from tests.llm.server.test_simple import metrics

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A server over an engine."""
    engine = AsyncLLM(make_checkpoint(), tokenizer=make_tokenizer(), max_num_queued_reqs=64, **OPTIONS)
    with serving(engine) as found:  # type: ignore[arg-type]
        yield found
    asyncio.run(engine.shutdown())


def post(live: Live, body: dict[str, Any], path: str = CHAT) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60)


def wait_until_free(live: Live) -> None:
    """Commands are obeyed between steps."""

    def is_free() -> bool:
        stats = live.engine.stats()
        return stats.num_free_blocks == stats.num_blocks and not stats.num_running + stats.num_waiting

    wait_until(is_free)


def test_an_answer_and_its_stream_are_the_same(live: Live) -> None:
    body = chat("one two", temperature=0, max_tokens=12, ignore_eos=True)
    whole = post(live, body).json()
    assert whole["usage"]["completion_tokens"] == 12 and whole["choices"][0]["finish_reason"] == "length"
    chunks = events(post(live, {**body, "stream": True}).text)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
    assert text == whole["choices"][0]["message"]["content"] != ""


def test_a_seed_gives_its_answer_beside_others(live: Live) -> None:
    def ask(seed: int) -> str:
        body = {"prompt": "the quick", "seed": seed, "max_tokens": 8, "temperature": 1.0}
        return post(live, body, "/v1/completions").json()["choices"][0]["text"]

    alone = [ask(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, [0, 1, 2, 3] * 3))
    assert together == alone * 3 and len(set(alone)) > 1


def test_echo_with_logprobs_tells_about_every_token(live: Live) -> None:
    body = {"prompt": "one two", "echo": True, "logprobs": 2, "max_tokens": 3, "temperature": 0}
    for stream in (False, True):
        answer = post(live, {**body, "stream": stream}, "/v1/completions")
        parts = events(answer.text)[:-1] if stream else [answer.json()]
        found = [choice["logprobs"] for part in parts for choice in part["choices"] if choice["logprobs"]]
        logprobs = [value for one in found for value in one["token_logprobs"]]
        tokens = [value for one in found for value in one["tokens"]]
        assert logprobs[0] is None and all(value <= 0 for value in logprobs[1:])
        text = "".join(choice["text"] for part in parts for choice in part["choices"])
        assert text.startswith("one two") and "".join(tokens).startswith("one two")


def test_a_form_is_kept(live: Live) -> None:
    body = chat("one", structured_outputs={"regex": "(ab|ba){3}"}, max_tokens=40)
    content = post(live, body).json()["choices"][0]["message"]["content"]
    assert len(content) == 6 and set(content) == {"a", "b"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
        "x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}}}  # fmt: skip
    named = {"type": "function", "function": {"name": "f"}}
    body = chat("one", tools=[tool], tool_choice=named, max_tokens=60)
    call = post(live, body).json()["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "f" and json.loads(call["arguments"])["x"] in (1, 2)


def test_a_form_that_is_none_hurts_nobody(live: Live) -> None:
    for form in ({"regex": "["}, {"grammar": "((("}, {"json": {"$ref": "#/nowhere"}}):
        assert post(live, chat(structured_outputs=form, stream=True)).status_code == 400
    assert post(live, chat(max_tokens=2)).status_code == 200


def test_a_context_that_is_too_small_is_the_clients_fault(live: Live) -> None:
    answer = post(live, {"prompt": [5] * 200, "max_tokens": 5, "stream": True}, "/v1/completions")
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


def test_blocks_come_back_from_clients_that_leave(live: Live) -> None:
    wait_until_free(live)
    body = chat("one two three", max_tokens=60, ignore_eos=True, stream=True)
    clients = [live.connect() for _ in range(24)]
    for number, client in enumerate(clients):
        # Every third one asks for a whole answer, and every fourth one for three.
        client.sendall(request({**body, "stream": number % 3 > 0, "n": 1 + 2 * (number % 4 == 0)}))
    assert clients[1].recv(10_000).startswith(b"HTTP/1.1 200")
    for client in clients:
        client.close()
    wait_until_free(live)
    assert post(live, chat(max_tokens=2)).status_code == 200


def test_metrics_are_the_engines(live: Live) -> None:
    before = metrics(httpx.get(f"{live.url}/metrics").text)
    usage = post(live, chat(max_tokens=5, ignore_eos=True)).json()["usage"]
    wait_until_free(live)
    after = metrics(httpx.get(f"{live.url}/metrics").text)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("vllm:generation_tokens_total") == 5
    assert grown("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("vllm:request_success_total") == grown("vllm:time_to_first_token_seconds_count") == 1
    assert after["vllm:kv_cache_usage_perc"] == 0
