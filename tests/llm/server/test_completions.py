"""/v1/completions: prompts as text and ids, several at once, echo, logprobs in parallel lists, streams."""

from __future__ import annotations

from typing import Any

import pytest

from tests.llm.server.conftest import Serve, events
from tests.llm.server.scripted import Script, ScriptedEngine, letters

PATH = "/v1/completions"


def endless(prompt: str, *_: Any) -> Script:
    """Goes on for ever, differently for each prompt."""
    return Script(prompt.removeprefix("<s>").upper() + "...", is_endless=True)


def test_a_continuation_has_openais_shape(serve: Serve) -> None:
    body = serve(ScriptedEngine(" world")).post(PATH, json={"prompt": "hello"}).json()
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": " world", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert body["usage"]["prompt_tokens"] == len("hello") + 1


def test_sixteen_tokens_unless_told_otherwise(serve: Serve) -> None:
    client = serve(ScriptedEngine(letters))
    first = client.post(PATH, json={"prompt": "a"}).json()
    assert first["usage"]["completion_tokens"] == 16 and first["choices"][0]["finish_reason"] == "length"
    assert client.post(PATH, json={"prompt": "a", "max_tokens": 3}).json()["usage"]["completion_tokens"] == 3


def test_a_prompt_near_the_end_of_the_context_gets_what_is_left(serve: Serve) -> None:
    body = serve(ScriptedEngine(letters, max_model_len=20)).post(PATH, json={"prompt": "a" * 14}).json()
    assert body["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("prompt", ["ab", [65, 66], ["ab"], [[65, 66]]])
def test_a_prompt_is_text_or_ids_alone_or_in_a_list(serve: Serve, prompt: Any) -> None:
    engine = ScriptedEngine()
    answer = serve(engine).post(PATH, json={"prompt": prompt})
    assert len(answer.json()["choices"]) == 1
    expected = engine.tokenizer.encode("ab") if "ab" in (prompt, prompt[0]) else [65, 66]
    assert engine.seen[0][0] == expected


def test_choices_of_several_prompts_are_numbered_by_prompt(serve: Serve) -> None:
    client = serve(ScriptedEngine(endless))
    body = client.post(PATH, json={"prompt": ["abc", "xyz"], "n": 2, "max_tokens": 2}).json()
    found = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert found == [(0, "AB"), (1, "AB"), (2, "XY"), (3, "XY")]
    assert body["usage"]["prompt_tokens"] == 8 and body["usage"]["completion_tokens"] == 8


def test_several_prompts_in_one_stream(serve: Serve) -> None:
    client = serve(ScriptedEngine(endless))
    body = {
        "prompt": ["abc", "xyz"],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chunks = events(client.post(PATH, json=body).text)
    texts = {0: "", 1: ""}
    for chunk in chunks[:-2]:
        assert chunk["object"] == "text_completion" and chunk["usage"] is None
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "ABC", 1: "XYZ"}
    assert chunks[-2]["choices"] == [] and chunks[-2]["usage"]["completion_tokens"] == 6


def test_equal_seeds_give_equal_text_whatever_else_is_asked(serve: Serve) -> None:
    client = serve(ScriptedEngine(letters))
    alone = client.post(PATH, json={"prompt": "a", "seed": 5}).json()["choices"][0]["text"]
    others = client.post(PATH, json={"prompt": ["b", "a"], "seed": 5, "n": 2}).json()["choices"]
    other = client.post(PATH, json={"prompt": "a", "seed": 6}).json()["choices"][0]["text"]
    assert others[2]["text"] == alone != other


def test_logprobs_are_lists_beside_each_other(serve: Serve) -> None:
    body = serve(ScriptedEngine("ab")).post(PATH, json={"prompt": "x", "logprobs": 1}).json()
    found = body["choices"][0]["logprobs"]
    assert found["tokens"] == ["a", "b", "</s>"] and found["text_offset"] == [0, 1, 2]
    assert found["token_logprobs"] == [-1.0] * 3
    assert found["top_logprobs"][0] == {"I": -0.5, "a": -1.0}


def test_echo_puts_the_prompt_before_the_text(serve: Serve) -> None:
    client = serve(ScriptedEngine("cd"))
    body = client.post(PATH, json={"prompt": "ab", "echo": True, "logprobs": 0}).json()
    choice = body["choices"][0]
    assert choice["text"] == "abcd"
    found = choice["logprobs"]
    assert found["tokens"] == ["<s>", "a", "b", "c", "d", "</s>"]
    assert found["token_logprobs"] == [None, *[-1.0] * 5]
    assert found["text_offset"] == [0, 0, 1, 2, 3, 4]


def test_echo_in_a_stream_comes_once_for_each_choice(serve: Serve) -> None:
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "n": 2, "max_tokens": 2, "stream": True}
    chunks = events(serve(ScriptedEngine(letters)).post(PATH, json=body).text)[:-1]
    for index in (0, 1):
        pieces = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(piece["text"] for piece in pieces).startswith("ab")
        assert sum(len(piece["logprobs"]["tokens"]) for piece in pieces) == 5


def test_no_tokens_but_the_prompts_logprobs(serve: Serve) -> None:
    client = serve(ScriptedEngine("cd"))
    body = client.post(PATH, json={"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 0}).json()
    choice = body["choices"][0]
    assert choice["text"] == "ab" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["<s>", "a", "b"]
    assert body["usage"]["completion_tokens"] == 0
    assert client.post(PATH, json={"prompt": "ab", "max_tokens": 0}).status_code == 400


def test_prompt_logprobs_are_by_id(serve: Serve) -> None:
    body = serve().post(PATH, json={"prompt": [65, 66], "prompt_logprobs": 1}).json()
    first, second = body["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second["66"] == {"logprob": -1.0, "rank": 2, "decoded_token": "c"}


def test_ids_come_back_when_they_are_asked_for(serve: Serve) -> None:
    choice = serve(ScriptedEngine("a")).post(PATH, json={"prompt": [65], "return_token_ids": True}).json()
    ids = choice["choices"][0]
    assert ids["prompt_token_ids"] == [65] and len(ids["token_ids"]) == 2


def test_clients_may_share_blocks_only_with_the_same_salt_and_key(serve: Serve) -> None:
    engine = ScriptedEngine()
    client = serve(engine, api_keys=("one", "two"))
    for key, salt in (("one", None), ("two", None), ("one", "s")):
        body = {"prompt": "a"} if salt is None else {"prompt": "a", "cache_salt": salt}
        client.post(PATH, json=body, headers={"Authorization": f"Bearer {key}"})
    salts = [how["cache_salt"] for _, _, how in engine.seen]
    assert len(set(salts)) == 3 and not any("one" in str(salt) for salt in salts)
    plain = ScriptedEngine()
    serve(plain).post(PATH, json={"prompt": "a"})
    assert "cache_salt" not in plain.seen[0][2]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["a"] * 129},
        {"prompt": [1 << 20]},
        {"prompt": [-1]},
        {"prompt": 5},
        {"prompt": None},
        {"prompt": {"a": 1}},
        {"prompt": [1, "a"]},
        {},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "best_of": 2},
        {"prompt": "a", "logprobs": 21},
        {"prompt": "a", "logprobs": -2},
        {"prompt": ["a"] * 100, "n": 16},
        {"prompt": "a", "prompt_logprobs": 1, "stream": True},
    ],
)
def test_prompts_that_cannot_be_served_are_refused(serve: Serve, fields: dict[str, Any]) -> None:
    engine = ScriptedEngine()
    answer = serve(engine).post(PATH, json=fields)
    assert answer.status_code == 400, answer.text
    assert not engine.seen


def test_one_prompt_that_fails_takes_the_others_back(serve: Serve) -> None:
    engine = ScriptedEngine(letters, max_num_seqs=1, max_num_queued_reqs=1)
    answer = serve(engine).post(PATH, json={"prompt": ["a", "b", "c"]})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert not engine.running and len(engine.aborted) == 2
