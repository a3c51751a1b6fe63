"""Prometheus metrics: vLLM's names, so that its dashboards and scrapers work, and what only infini has.

Counts of the engine are read from its `stats()` when somebody asks for them; times of requests are observed
as their outputs pass. All of it lives in a registry of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from infini.llm.engine.outputs import ITERATION_TOKEN_BUCKETS, EngineStats, RequestMetrics

_FIRST_TOKEN_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
_CHOICES: Final = (1, 2, 5, 10, 20)
_HTTP_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LABELS: Final = ("model_name", "engine")
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Histograms of requests: name, what it says, upper ends. `None` stands for tokens up to the model's length.
_HISTOGRAMS: Final[tuple[tuple[str, str, tuple[float, ...] | None], ...]] = (
    ("time_to_first_token_seconds", "Seconds from a request's arrival to its first token.", _FIRST_TOKEN_S),
    ("inter_token_latency_seconds", "Seconds between two outputs of a request.", _TOKEN_S),
    ("time_per_output_token_seconds", "The former name of inter_token_latency_seconds.", _TOKEN_S),
    (
        "request_time_per_output_token_seconds",
        "Mean seconds per token of a request, after the first.",
        _TOKEN_S,
    ),
    ("e2e_request_latency_seconds", "Seconds from a request's arrival to its end.", _REQUEST_S),
    ("request_queue_time_seconds", "Seconds that a request waited.", _REQUEST_S),
    ("request_prefill_time_seconds", "Seconds from a request's first step to its first token.", _REQUEST_S),
    ("request_decode_time_seconds", "Seconds from a request's first token to its last.", _REQUEST_S),
    ("request_inference_time_seconds", "Seconds from a request's first step to its last token.", _REQUEST_S),
    ("request_prompt_tokens", "Tokens of a request's prompt.", None),
    ("request_generation_tokens", "Tokens made for a request.", None),
    ("request_max_num_generation_tokens", "Tokens of the longest choice of a request.", None),
    ("request_prefill_kv_computed_tokens", "Tokens of a prompt that were not in the prefix cache.", None),
    ("request_params_max_tokens", "Tokens that a request asked for at most.", None),
    ("request_params_n", "Choices that a request asked for.", _CHOICES),
    ("request_num_preemptions", "How often a request lost its blocks.", (0, 1, 2, 5, 10)),
)


class Metrics:
    """The metrics of one server.

    Args:
        stats: reads the engine's counts.
        model_name: label of every metric.
        max_model_len: tokens of the longest request.
        cache_config: labels of `cache_config_info`.
        has_vllm_names: whether the prefix is `vllm:`; otherwise `infini:`.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        *,
        model_name: str,
        max_model_len: int,
        cache_config: Mapping[str, object],
        has_vllm_names: bool = True,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        prefix = "vllm:" if has_vllm_names else "infini:"
        labels = (model_name, "0")
        tokens = tuple(_one_two_five(max_model_len))
        self._histograms = {
            name: Histogram(
                prefix + name, text, _LABELS, buckets=buckets or tokens, registry=self.registry
            ).labels(*labels)
            for name, text, buckets in _HISTOGRAMS
        }
        self._http_requests = Counter(
            "http_requests", "Answered calls.", ("method", "handler", "status"), registry=self.registry
        )
        self._http_s = Histogram(
            "http_request_duration_seconds", "Seconds of answered calls.", ("method", "handler"),
            buckets=_HTTP_S, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_OfEngine(stats, prefix, labels, cache_config))

    def observe_http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """A call was answered.

        Args:
            method: of HTTP.
            handler: path of the route, never the path that was asked for: there are few of the one.
            status: of the answer.
            seconds: that it took.
        """
        self._http_requests.labels(method, handler, f"{status // 100}xx").inc()
        self._http_s.labels(method, handler).observe(seconds)

    def observe_first_token(self, seconds: float) -> None:
        """A request's first token was there after so many seconds."""
        self._histograms["time_to_first_token_seconds"].observe(seconds)

    def observe_token(self, seconds: float) -> None:
        """A request's next output came so many seconds after the last one."""
        self._histograms["inter_token_latency_seconds"].observe(seconds)
        self._histograms["time_per_output_token_seconds"].observe(seconds)

    def observe_request(
        self,
        *,
        num_prompt: int,
        num_cached: int,
        num_made: tuple[int, ...],
        max_tokens: int,
        seconds: float,
        times: RequestMetrics | None,
    ) -> None:
        """A request ended.

        Args:
            num_prompt: tokens of its prompt.
            num_cached: those of them that the prefix cache had.
            num_made: tokens of each of its choices.
            max_tokens: tokens asked for at most.
            seconds: from its arrival to its end.
            times: what the engine measured.
        """
        observed: dict[str, float] = {
            "e2e_request_latency_seconds": seconds,
            "request_prompt_tokens": num_prompt,
            "request_generation_tokens": sum(num_made),
            "request_max_num_generation_tokens": max(num_made, default=0),
            "request_prefill_kv_computed_tokens": num_prompt - num_cached,
            "request_params_max_tokens": max_tokens,
            "request_params_n": len(num_made),
        }
        if times is not None:
            observed |= _durations(times, max(num_made, default=0))
            observed["request_num_preemptions"] = times.num_preemptions
        for name, value in observed.items():
            self._histograms[name].observe(value)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)


def _durations(times: RequestMetrics, num_made: int) -> dict[str, float]:
    """Parts of a request's life, those that it came to."""
    found = {}
    arrival, scheduled = times.arrival_time, times.first_scheduled_time
    first, last = times.first_token_time, times.last_token_time
    if scheduled is not None:
        found["request_queue_time_seconds"] = scheduled - arrival
        if first is not None:
            found["request_prefill_time_seconds"] = first - scheduled
        if last is not None:
            found["request_inference_time_seconds"] = last - scheduled
    if first is not None and last is not None:
        found["request_decode_time_seconds"] = last - first
        if num_made > 1:
            found["request_time_per_output_token_seconds"] = (last - first) / (num_made - 1)
    return found


def _one_two_five(most: int) -> Iterator[int]:
    for exponent in itertools.count():
        for digit in (1, 2, 5):
            if digit * 10**exponent > most:
                return
            yield digit * 10**exponent


class _OfEngine(Collector):
    """Counts of the engine, read when they are asked for."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        prefix: str,
        labels: tuple[str, str],
        cache_config: Mapping[str, object],
    ) -> None:
        self._stats, self._prefix, self._labels = stats, prefix, labels
        self._cache_config = {name: str(value) for name, value in cache_config.items()}

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield from self._gauges(stats)
        yield from self._counters(stats)
        yield self._iterations(stats)
        yield from self._own(stats)

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> Metric:
        return self._family(GaugeMetricFamily, name, text, [(labels, value)])

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return self._family(CounterMetricFamily, name, text, [({}, value)])

    def _family(
        self,
        kind: Any,  # Any: families have a common shape and no common base
        name: str,
        text: str,
        values: Iterable[tuple[Mapping[str, str], float]],
    ) -> Any:
        values = list(values)
        name = name if ":" in name else self._prefix + name
        own = tuple(values[0][0]) if values else ()
        family = kind(name, text, labels=(*_LABELS, *own))
        for labels, value in values:
            family.add_metric((*self._labels, *labels.values()), value)
        return family

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("num_requests_running", "Requests in the batch.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", stats.num_waiting)
        yield self._family(
            GaugeMetricFamily, "num_requests_waiting_by_reason", "Requests in the queue by reason.",
            [({"reason": "capacity"}, stats.num_waiting), ({"reason": "deferred"}, 0)],
        )  # fmt: skip
        usage = "Share of the cache's blocks that requests hold, from 0 to 1."
        yield self._gauge("kv_cache_usage_perc", usage, stats.kv_cache_usage)
        yield self._gauge(
            "gpu_cache_usage_perc", "The former name of kv_cache_usage_perc.", stats.kv_cache_usage
        )
        yield self._gauge("engine_sleep_state", "1: the engine is awake.", 1, sleep_state="awake")
        yield self._gauge("cache_config_info", "How the cache is made.", 1, **self._cache_config)

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._counter("prompt_tokens", "Tokens of prompts.", stats.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens made.", stats.generation_tokens)
        cached = stats.prompt_tokens_cached
        yield self._counter("prompt_tokens_cached", "Tokens of prompts that the prefix cache had.", cached)
        yield self._family(
            CounterMetricFamily, "prompt_tokens_by_source", "Tokens of prompts by where they came from.",
            [
                ({"source": "local_compute"}, stats.prompt_tokens - cached),
                ({"source": "local_cache_hit"}, cached),
            ],
        )  # fmt: skip
        yield self._counter(
            "prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_cache_queries
        )
        yield self._counter("prefix_cache_hits", "Tokens found there.", stats.prefix_cache_hits)
        yield self._counter("num_preemptions", "Times that a request lost its blocks.", stats.num_preemptions)
        reasons = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0} | dict(stats.finished)
        yield self._family(
            CounterMetricFamily, "request_success", "Ended requests by how.",
            [({"finished_reason": reason}, count) for reason, count in reasons.items()],
        )  # fmt: skip
        yield self._family(
            CounterMetricFamily, "admission_rejections", "Refused requests by why.",
            [({"reason": reason}, count) for reason, count in stats.rejected.items()],
        )  # fmt: skip
        yield self._counter(
            "spec_decode_num_drafts", "Times that tokens were proposed.", stats.spec_num_drafts
        )
        yield self._counter("spec_decode_num_draft_tokens", "Tokens proposed.", stats.spec_num_draft_tokens)
        yield self._counter(
            "spec_decode_num_accepted_tokens", "Proposed tokens that were accepted.",
            stats.spec_num_accepted_tokens,
        )  # fmt: skip
        yield self._family(
            CounterMetricFamily, "spec_decode_num_accepted_tokens_per_pos", "The same by place.",
            [({"position": str(i)}, count) for i, count in enumerate(stats.spec_accepted_per_position)],
        )  # fmt: skip

    def _iterations(self, stats: EngineStats) -> Metric:
        family = HistogramMetricFamily(
            self._prefix + "iteration_tokens_total", "Tokens of a step.", labels=_LABELS
        )
        ends = [*(f"{end}.0" for end in ITERATION_TOKEN_BUCKETS), "+Inf"]
        counts = list(itertools.accumulate(stats.iteration_tokens)) or [0] * len(ends)
        total = stats.prompt_tokens - stats.prompt_tokens_cached + stats.generation_tokens
        family.add_metric(self._labels, list(zip(ends, counts, strict=True)), total)
        return family

    def _own(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._counter("infini:steps", "Steps of the engine.", stats.num_steps)
        phases = ("schedule", "prepare", "run", "emit")
        yield self._family(
            CounterMetricFamily, "infini:step_seconds", "Seconds of steps by what was done in them.",
            [({"phase": phase}, getattr(stats, f"{phase}_s")) for phase in phases],
        )  # fmt: skip
        yield self._gauge("infini:kv_blocks", "Blocks of the cache.", stats.num_blocks)
        yield self._gauge(
            "infini:kv_blocks_free", "Blocks of the cache that no request holds.", stats.num_free_blocks
        )
        yield self._gauge("infini:engine_healthy", "1 while the engine's loop runs.", stats.is_healthy)
