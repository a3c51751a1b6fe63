"""The client of `infini bench serve` against a server of known delays, and its numbers against NumPy's."""

from __future__ import annotations

import asyncio
import json
import re

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infini.core import errors
from infini.llm.benchmarks import client, datasets, report, serving
from tests.llm.benchmarks import stub as stub_

SAMPLES = [datasets.Sample((1, 2, 3), 3, 4)] * 6


def outcome(ttft_s: float, gaps_s: list[float], *, start_s: float = 0.0, tokens: int | None = None):
    count = len(gaps_s) + 1 if tokens is None else tokens
    latency = ttft_s + sum(gaps_s)
    return client.Outcome(5, start_s, True, "x" * count, count, ttft_s, latency, gaps_s)


@pytest.fixture(scope="module")
def measured():
    with stub_.serving(stub_.Stub()) as stub:
        target = serving.Target(stub.url, api_key="secret", options={"ignore_eos": True})
        yield stub, target, serving.run(target, SAMPLES, serving.Load(max_concurrency=2), num_warmups=1)


def test_every_request_is_answered_with_the_tokens_asked_for(measured):
    _, _, run = measured
    assert [o.is_success for o in run.outcomes] == [True] * 6
    assert [o.text for o in run.outcomes] == [" w0 w1 w2 w3"] * 6
    assert [o.output_tokens for o in run.outcomes] == [4] * 6
    assert [len(o.gaps_s) for o in run.outcomes] == [3] * 6


def test_times_hold_the_delays_of_the_server(measured):
    stub, _, run = measured
    for one in run.outcomes:
        assert one.ttft_s >= stub.first_s
        assert one.latency_s >= stub.first_s + 3 * stub.gap_s
        assert one.latency_s == pytest.approx(one.ttft_s + sum(one.gaps_s))


def test_no_more_requests_are_under_way_than_allowed(measured):
    assert measured[0].most_open == 2


def test_requests_have_the_model_of_the_server_the_key_and_the_options(measured):
    stub, _, _ = measured
    body = stub.bodies[-1]
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("stub-model", [1, 2, 3], 4)
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and body["ignore_eos"]
    assert set(stub.keys) == {"Bearer secret"}


def test_the_report_has_the_lines_of_vllm(measured):
    _, _, run = measured
    text = report.as_text(serving.summarize(run), run, serving.Load(max_concurrency=2))
    lines = text.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * 50
    assert "Successful requests:                     6" in lines
    assert "Maximum request concurrency:             2" in lines
    assert "Total generated tokens:                  24" in lines
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "---------------Inter-token Latency----------------" in lines
    for label in (
        "Mean TTFT (ms):",
        "Median TPOT (ms):",
        "P99 ITL (ms):",
        "Output token throughput (tok/s):",
    ):
        assert re.search("^" + re.escape(f"{label:<40} ") + r"\d+\.\d\d$", text, re.MULTILINE), label
    # What the counters of the server grew by during the run: six requests, the one before left out.
    assert "Acceptance rate (%):                     50.00" in lines
    assert "Acceptance length:                       3.00" in lines
    assert "Prefix cache hit (%):                    25.00" in lines
    assert "Preemptions:                             0" in lines


def test_the_json_has_the_keys_of_vllm(measured):
    _, target, run = measured
    found = report.as_json(serving.summarize(run), run, serving.Load(), target, is_detailed=True)
    keys = {
        "date",
        "backend",
        "model_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
    }
    keys |= {
        "completed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "output_throughput",
    }
    keys |= {"total_token_throughput", "mean_ttft_ms", "median_tpot_ms", "std_itl_ms", "p99_ttft_ms"}
    keys |= {"input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"}
    assert keys <= found.keys()
    assert json.loads(json.dumps(found))["output_lens"] == [4] * 6


def test_a_chat_counts_from_its_first_text_and_not_from_the_role():
    samples = [datasets.Sample("hello", 1, 3)]
    with stub_.serving(stub_.Stub(first_s=0.05, has_usage=False)) as stub:
        run = serving.run(serving.Target(stub.url, "openai-chat"), samples, serving.Load())
    (one,) = run.outcomes
    assert one.ttft_s >= 0.05
    assert one.output_tokens is None
    assert serving.summarize(run).total_output_tokens == 3
    assert stub.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_refused_requests_are_counted_and_told():
    with stub_.serving(stub_.Stub(fails_from=4)) as stub:
        run = serving.run(serving.Target(stub.url), SAMPLES, serving.Load(max_concurrency=1))
    found = serving.summarize(run)
    assert (found.completed, found.failed) == (4, 2)
    assert found.total_input_tokens == 12
    assert "503" in run.outcomes[-1].error and "the queue is full" in run.outcomes[-1].error


def test_a_server_that_is_not_there_is_an_error_with_a_way_out():
    target = serving.Target("http://127.0.0.1:9")
    with pytest.raises(errors.InfiniError, match="which model") as caught:
        serving.run(target, SAMPLES, serving.Load())
    assert "infini serve" in caught.value.fix


def test_numbers_are_those_of_their_definitions():
    outcomes = [outcome(0.1, [0.02, 0.04]), outcome(0.3, [0.05]), outcome(0.2, [])]
    run = serving.Run(outcomes, 2.0, {}, {})
    found = serving.summarize(run, percentiles=(50, 90), goals_ms={"ttft": 250, "e2el": 205})
    ttfts = np.array([0.1, 0.3, 0.2]) * 1e3
    assert found.ttft.mean == pytest.approx(ttfts.mean())
    assert found.ttft.std == pytest.approx(ttfts.std())
    assert found.ttft.percentiles[90] == pytest.approx(np.percentile(ttfts, 90))
    assert found.tpot.mean == pytest.approx((30 + 50) / 2)  # one token has no time per further token
    assert found.itl.median == pytest.approx(40)
    assert found.output_throughput == pytest.approx(6 / 2)
    assert found.total_token_throughput == pytest.approx((6 + 15) / 2)
    assert found.request_goodput == pytest.approx(2 / 2)


def test_peaks_are_of_single_seconds():
    outcomes = [
        outcome(0.1, [0.1] * 4, start_s=10.0),
        outcome(0.1, [0.1] * 2, start_s=10.2),
        outcome(0.5, [2.0], start_s=11.5),
    ]
    found = serving.summarize(serving.Run(outcomes, 4.0, {}, {}))
    assert found.max_output_tokens_per_s == 8
    assert found.max_concurrent_requests == 2


def test_without_answers_there_are_zeros_and_no_error():
    run = serving.Run([client.Outcome(5, error="refused")], 1.0, {}, {})
    found = serving.summarize(run)
    assert (found.completed, found.failed, found.ttft.mean) == (0, 1, 0.0)
    assert "Failed requests:                         1" in report.as_text(found, run, serving.Load())


@given(st.lists(st.text(max_size=20), max_size=5), st.lists(st.integers(1, 9), max_size=60))
def test_events_are_the_same_however_the_stream_is_cut(texts, sizes):
    texts = [t.replace("\r", "").replace("\n", "") for t in texts]
    raw = b": a comment\n\n" + b"".join(f"data: {t}x\r\n\r\n".encode() for t in texts)

    async def pieces():
        rest = raw
        for size in sizes:
            yield rest[:size]
            rest = rest[size:]
        yield rest

    async def all_of():
        return [event async for event in client.events(pieces())]

    assert asyncio.run(all_of()) == [f"{t}x".lstrip(" ") for t in texts]


def test_arrivals_follow_rate_and_seed():
    load = serving.Load(request_rate=50.0, seed=3)
    times = np.array(load.arrivals(4000))
    assert times[0] == 0.0
    assert np.diff(times).mean() == pytest.approx(1 / 50, rel=0.1)
    assert load.arrivals(5) == list(times[:5])
    even = np.diff(serving.Load(request_rate=50.0, burstiness=100.0).arrivals(1000))
    assert even.std() < 0.2 * np.diff(times).std()
    assert serving.Load().arrivals(3) == [0.0] * 3


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_growing_rate_ends_denser_than_it_began(strategy):
    load = serving.Load(ramp_up=strategy, start_rate=1.0, end_rate=100.0, burstiness=1e4)
    gaps = np.diff(load.arrivals(101))
    assert gaps[0] == pytest.approx(1.0, rel=0.1)
    assert gaps[-1] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("field", ["request_rate", "burstiness"])
def test_a_load_refuses_what_is_not_positive(field):
    with pytest.raises(errors.ValueMismatchError, match=field):
        serving.Load(**{field: 0.0})
