"""Models, health, versions, load, tokens of texts, metrics and the line about throughput."""

from __future__ import annotations

import dataclasses
from typing import Any

import infini
from infini.llm.server import throughput
from tests.llm.server.conftest import Serve, chat
from tests.llm.server.scripted import ScriptedEngine


def test_every_name_of_the_model_is_listed_and_found(serve: Serve) -> None:
    client = serve(names=("org/tiny", "alias"), created=7)
    body = client.get("/v1/models").json()
    assert body["object"] == "list" and [model["id"] for model in body["data"]] == ["org/tiny", "alias"]
    one = client.get("/v1/models/org/tiny").json()
    assert one == body["data"][0]
    assert one["object"] == "model" and one["created"] == 7 and one["max_model_len"] == 1024
    assert client.get("/models").json() == body


def test_a_call_may_use_any_name_and_is_answered_by_it(serve: Serve) -> None:
    client = serve(names=("org/tiny", "alias"))
    path = "/v1/chat/completions"
    assert client.post(path, json=chat()).json()["model"] == "org/tiny"
    assert client.post(path, json=chat(model="alias")).json()["model"] == "alias"


def test_an_unknown_model_is_not_found(serve: Serve) -> None:
    answer = serve().post("/v1/completions", json={"prompt": "a", "model": "other"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `other` does not exist.", "type": "invalid_request_error", "param": "model",
        "code": "model_not_found",
    }  # fmt: skip


def test_health_says_whether_calls_are_taken(serve: Serve) -> None:
    engine = ScriptedEngine()
    client = serve(engine)
    assert (client.get("/health").status_code, client.get("/health").json()) == (200, {"status": "ok"})
    engine.is_loading = True
    assert (client.get("/health").status_code, client.get("/ping").json()) == (503, {"status": "loading"})
    assert client.post("/v1/chat/completions", json=chat()).status_code == 503
    engine.is_dead = True
    assert client.get("/health").json() == {"status": "dead"}


def test_version_and_load(serve: Serve) -> None:
    client = serve()
    assert client.get("/version").json() == {"version": infini.__version__}
    assert client.get("/load").json() == {"server_load": 0}


def test_tokens_of_a_prompt_and_back(serve: Serve) -> None:
    client = serve()
    body = client.post("/tokenize", json={"prompt": "ab", "return_token_strs": True}).json()
    assert body["count"] == 3 and body["max_model_len"] == 1024 and body["token_strs"] == ["<s>", "a", "b"]
    bare = client.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False}).json()
    assert bare["tokens"] == body["tokens"][1:] and bare["token_strs"] is None
    assert client.post("/detokenize", json={"tokens": bare["tokens"]}).json()["prompt"] == "ab"


def test_llama_cpps_form_of_tokenize(serve: Serve) -> None:
    client = serve()
    assert set(client.post("/tokenize", json={"content": "ab"}).json()) == {"tokens"}
    assert client.post("/detokenize", json={"tokens": [64]}).json()["content"] == "a"


def test_tokens_of_a_conversation_are_those_of_its_prompt(serve: Serve) -> None:
    engine = ScriptedEngine()
    client = serve(engine)
    client.post("/v1/chat/completions", json=chat("x"))
    assert client.post("/tokenize", json=chat("x")).json()["tokens"] == engine.seen[0][0]


def test_tokenize_takes_exactly_one_text(serve: Serve) -> None:
    client = serve()
    for body in ({}, {"prompt": "a", "content": "b"}, {"prompt": 5}, {"messages": []}):
        assert client.post("/tokenize", json=body).status_code == 400
    assert client.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_embeddings_are_said_to_be_missing(serve: Serve) -> None:
    answer = serve().post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 501 and answer.json()["error"]["code"] == "not_implemented"


def test_unknown_paths_and_methods_are_errors_in_json(serve: Serve) -> None:
    client = serve()
    assert client.get("/nope").json()["error"]["code"] == "not_found"
    assert client.get("/v1/models/").status_code == 404
    answer = client.get("/v1/chat/completions")
    assert answer.status_code == 405 and answer.json()["error"]["code"] == "method_not_allowed"


# --- numbers of calls ---------------------------------------------------------------------


def test_a_call_has_a_number_that_it_may_bring(serve: Serve) -> None:
    client = serve()
    assert len(client.get("/health").headers["x-request-id"]) == 32
    assert client.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = client.get("/health", headers={"X-Request-Id": "a b\tc" * 40}).headers["x-request-id"]
    assert len(odd) == 32
    assert "x-request-id" in client.get("/nope").headers


# --- metrics ------------------------------------------------------------------------------


def metrics(text: str) -> dict[str, float]:
    """Samples by name, labels left out; those of several labels are added."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.replace("{", " ", 1).partition(" ")
            found[name] = found.get(name, 0.0) + float(value.rpartition(" ")[2])
    return found


def test_metrics_have_the_names_of_vllms_dashboard(serve: Serve) -> None:
    client = serve()
    client.post("/v1/chat/completions", json=chat(stream=True))
    client.post("/v1/completions", json={"prompt": "a"})
    found = metrics(client.get("/metrics").text)
    for name in (
        "e2e_request_latency_seconds_bucket", "prompt_tokens_total", "generation_tokens_total",
        "inter_token_latency_seconds_count", "num_requests_running", "num_requests_waiting",
        "time_to_first_token_seconds_bucket", "kv_cache_usage_perc", "request_prompt_tokens_bucket",
        "request_generation_tokens_bucket", "request_success_total", "request_queue_time_seconds_sum",
        "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum",
        "request_max_num_generation_tokens_sum", "request_time_per_output_token_seconds_count",
        "cache_config_info", "prefix_cache_hits_total", "num_preemptions_total",
        "iteration_tokens_total_bucket", "gpu_cache_usage_perc", "time_per_output_token_seconds_count",
    ):  # fmt: skip
        assert f"vllm:{name}" in found, name
    assert found["vllm:generation_tokens_total"] == 14 and found["vllm:request_success_total"] == 2
    assert found["vllm:time_to_first_token_seconds_count"] == 2
    assert found["vllm:inter_token_latency_seconds_count"] == 6
    assert found["infini:kv_blocks_free"] == 64 and found["http_requests_total"] == 2


def test_labels_say_which_model_and_how_calls_ended(serve: Serve) -> None:
    client = serve()
    client.post("/v1/completions", json={"prompt": "a"})
    text = client.get("/metrics").text
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0' in text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 1.0' in text


def test_paths_that_nobody_serves_have_one_label(serve: Serve) -> None:
    client = serve()
    for index in range(3):
        client.get(f"/nope/{index}")
    text = client.get("/metrics").text
    assert 'http_requests_total{handler="unknown",method="GET",status="4xx"} 3.0' in text
    assert "/nope" not in text


def test_metrics_may_have_our_names_alone(serve: Serve) -> None:
    text = serve(has_vllm_metrics=False).get("/metrics").text
    assert "vllm:" not in text and "infini:num_requests_running" in text


def test_two_servers_in_one_process_count_apart(serve: Serve) -> None:
    one, two = serve(), serve()
    one.post("/v1/completions", json={"prompt": "a"})
    assert metrics(two.get("/metrics").text)["vllm:e2e_request_latency_seconds_count"] == 0


# --- the line about throughput ------------------------------------------------------------


def test_the_line_about_throughput_is_vllms_and_silent_when_idle() -> None:
    clock: dict[str, Any] = {}
    base = ScriptedEngine().stats()
    line = throughput.Throughput(lambda: dataclasses.replace(base, **clock))
    assert line.line() is None
    line._time -= 10.0
    clock |= {
        "prompt_tokens": 1203, "generation_tokens": 8501, "num_running": 12, "kv_cache_usage": 0.081,
        "prefix_cache_queries": 1000, "prefix_cache_hits": 432,
    }  # fmt: skip
    assert line.line() == (
        "Engine 000: Avg prompt throughput: 120.3 tokens/s, Avg generation throughput: 850.1 tokens/s, "
        "Running: 12 reqs, Waiting: 0 reqs, GPU KV cache usage: 8.1%, Prefix cache hit rate: 43.2%"
    )
    clock |= {"num_running": 0, "num_preemptions": 2}
    assert "Waiting: 0 reqs, Preemptions: 2, GPU KV cache usage" in str(line.line())
    assert line.line() is None
