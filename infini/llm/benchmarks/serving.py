"""Load on a server, as clients make it: arrivals at a rate, at most so many at once, and what they saw.

Definitions are vLLM's (https://docs.vllm.ai/en/latest/benchmarking/): time to first token from sending to
the first text; time per output token over all but the first; gaps between texts pooled over requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from infini.core import errors
from infini.llm.benchmarks import client as client_
from infini.llm.benchmarks.client import Backend, Outcome
from infini.llm.benchmarks.datasets import Encode, Sample

RampUp = Literal["linear", "exponential"]
_CONNECT_S: Final = 30.0
_TOTAL_S: Final = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive.

    Args:
        request_rate: requests per second on average; infinity sends all at once.
        burstiness: shape of the gamma distribution of the time between them; 1 is a Poisson process, less
            comes in bursts, more evenly.
        max_concurrency: at most so many are under way; None for no limit.
        ramp_up: how the rate grows from `start_rate` to `end_rate`; None keeps it.
        start_rate: requests per second at first.
        end_rate: requests per second at last.
        seed: of the arrivals.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ramp_up: RampUp | None = None
    start_rate: float = 1.0
    end_rate: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("request_rate", "burstiness", "start_rate", "end_rate"):
            if not getattr(self, name) > 0:
                raise errors.ValueMismatchError(
                    f"{name} has to be positive", got=repr(getattr(self, name)), fix="inf sends all at once"
                )
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise errors.ValueMismatchError(
                "max_concurrency has to be at least 1", got=repr(self.max_concurrency)
            )

    def arrivals(self, count: int) -> list[float]:
        """Seconds after the start at which requests are sent."""
        if self.ramp_up is None and math.isinf(self.request_rate):
            return [0.0] * count
        rng = np.random.default_rng(self.seed)
        found, now = [], 0.0
        for number in range(count):
            found.append(now)
            rate = self._rate(number / max(count - 1, 1))
            now += float(rng.gamma(self.burstiness, 1.0 / (rate * self.burstiness)))
        return found

    def _rate(self, share: float) -> float:
        if self.ramp_up is None:
            return self.request_rate
        if self.ramp_up == "linear":
            return self.start_rate + (self.end_rate - self.start_rate) * share
        return self.start_rate * (self.end_rate / self.start_rate) ** share


@dataclass(frozen=True, slots=True)
class Target:
    """The server.

    Args:
        base_url: such as http://127.0.0.1:8000.
        backend: what it speaks.
        model: name of the model there; the first that it lists when absent.
        api_key: sent as a bearer token.
        endpoint: path of the endpoint; the backend's usual one when absent.
        options: more fields of every request.
    """

    base_url: str = "http://127.0.0.1:8000"
    backend: Backend = "infini"
    model: str | None = None
    api_key: str | None = None
    endpoint: str | None = None
    options: Mapping[str, Any] | None = None  # Any: whatever JSON holds

    @property
    def url(self) -> str:
        """Of the endpoint."""
        return self.base_url.rstrip("/") + (self.endpoint or client_.PATHS[self.backend])

    @property
    def headers(self) -> dict[str, str]:
        """What proves who asks."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


@dataclass(frozen=True, slots=True)
class Run:
    """Requests and what became of them.

    Args:
        outcomes: one for each request, in the order of sending.
        duration_s: from the first request sent to the last answer.
        before: counters of the server before it, by their Prometheus names; empty where it tells none.
        after: the same behind it.
    """

    outcomes: Sequence[Outcome]
    duration_s: float
    before: Mapping[str, float]
    after: Mapping[str, float]

    def grown(self, name: str) -> float | None:
        """By how much a counter of the server grew."""
        return self.after[name] - self.before.get(name, 0.0) if name in self.after else None


def run(
    target: Target,
    samples: Sequence[Sample],
    load: Load,
    *,
    num_warmups: int = 0,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> Run:
    """Send requests and wait for all answers.

    Args:
        target: the server.
        samples: what to ask.
        load: how requests arrive.
        num_warmups: requests before the measurement, one after the other; the first sample is asked.
        on_done: called after each answer.

    Raises:
        InfiniError: the server cannot be reached or refuses the first request.
    """
    return asyncio.run(_run(target, samples, load, num_warmups, on_done))


async def _run(
    target: Target,
    samples: Sequence[Sample],
    load: Load,
    num_warmups: int,
    on_done: Callable[[Outcome], None],
) -> Run:
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(_TOTAL_S, connect=_CONNECT_S)
    gate = asyncio.Semaphore(load.max_concurrency or len(samples))
    async with httpx.AsyncClient(limits=limits, timeout=timeout) as client:
        model = target.model or await _first_model(client, target)

        async def ask(sample: Sample) -> Outcome:
            content = client_.body(sample, backend=target.backend, model=model, options=target.options or {})
            return await client_.request(client, target.url, sample, content, target.headers)

        async def ask_at(sample: Sample, when_s: float) -> Outcome:
            await asyncio.sleep(max(0.0, start + when_s - time.perf_counter()))
            async with gate:
                found = await ask(sample)
            on_done(found)
            return found

        for _ in range(num_warmups):
            first = await ask(samples[0])
            if not first.is_success:
                raise errors.InfiniError(
                    "the server did not answer the request before the measurement",
                    got=first.error,
                    fix=f"see to the server at {target.base_url}; --tokenizer says which ids its model has",
                )
        before = await counters(client, target)
        start = time.perf_counter()
        outcomes = await asyncio.gather(
            *(ask_at(s, w) for s, w in zip(samples, load.arrivals(len(samples)), strict=True))
        )
        duration = time.perf_counter() - start
        return Run(outcomes, duration, before, await counters(client, target))


async def _first_model(client: Any, target: Target) -> str:  # Any: httpx is loaded late
    import httpx

    url = target.base_url.rstrip("/") + "/v1/models"
    try:
        response = await client.get(url, headers=target.headers)
        response.raise_for_status()
        return response.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise errors.InfiniError(
            "the server does not say which model it has",
            got=f"{url}: {error}",
            fix="start one with `infini serve MODEL`, correct --base-url, or name the model with --model",
        ) from error


async def counters(client: Any, target: Target) -> dict[str, float]:  # Any: httpx is loaded late
    """Counters and gauges of a server's /metrics, summed over labels; empty where there are none."""
    import httpx

    try:
        response = await client.get(target.base_url.rstrip("/") + "/metrics", headers=target.headers)
    except httpx.HTTPError:
        return {}
    found: dict[str, float] = {}
    for name, value in _values(response.text) if response.status_code == 200 else ():
        found[name] = found.get(name, 0.0) + value
    return found


def _values(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            try:
                yield name.split("{", 1)[0].strip(), float(value)
            except ValueError:
                continue


@dataclass(frozen=True, slots=True)
class Spread:
    """Many times as a few numbers, in milliseconds."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]

    @classmethod
    def of(cls, seconds: Sequence[float], percentiles: Sequence[float]) -> Spread:
        """Of times in seconds; zeros where there are none."""
        if not seconds:
            return cls(0.0, 0.0, 0.0, dict.fromkeys(percentiles, 0.0))
        ms = np.asarray(seconds) * 1e3
        return cls(
            float(ms.mean()),
            float(np.median(ms)),
            float(ms.std()),
            {p: float(np.percentile(ms, p)) for p in percentiles},
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What a run says, with vLLM's names of its numbers.

    Args:
        completed: requests with a whole answer.
        failed: the others.
        duration_s: seconds of the run.
        total_input_tokens: of the completed.
        total_output_tokens: of the completed.
        request_throughput: completed requests per second.
        request_goodput: those that met every goal, per second; None without goals.
        output_throughput: made tokens per second.
        total_token_throughput: all tokens per second.
        max_output_tokens_per_s: most pieces of text that arrived within one second.
        max_concurrent_requests: most requests that were under way within one second.
        ttft: time to first token.
        tpot: time per output token after the first.
        itl: gaps between texts.
        e2el: time to the last text.
        output_tokens: of every request, 0 for failed ones.
    """

    completed: int
    failed: int
    duration_s: float
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread
    output_tokens: Sequence[int]


def summarize(
    run: Run,
    *,
    percentiles: Sequence[float] = (99.0,),
    goals_ms: Mapping[str, float] | None = None,
    encode: Encode | None = None,
) -> Result:
    """The numbers of a run.

    Args:
        run: what became of the requests.
        percentiles: which to compute.
        goals_ms: most milliseconds of "ttft", "tpot" and "e2el" that a good answer takes.
        encode: text to ids, for servers that do not count tokens; then pieces of text are counted.
    """
    tokens = [_output_tokens(outcome, encode) for outcome in run.outcomes]
    done = [(o, n) for o, n in zip(run.outcomes, tokens, strict=True) if o.is_success]
    tpot = [_per_token(o, n) for o, n in done if n > 1]
    good = None
    if goals_ms:
        good = sum(_meets(o, n, goals_ms) for o, n in done) / run.duration_s
    num_in, num_out = sum(o.prompt_tokens for o, _ in done), sum(n for _, n in done)
    peak_tokens, peak_requests = _peaks([o for o, _ in done])
    return Result(
        completed=len(done),
        failed=len(run.outcomes) - len(done),
        duration_s=run.duration_s,
        total_input_tokens=num_in,
        total_output_tokens=num_out,
        request_throughput=len(done) / run.duration_s,
        request_goodput=good,
        output_throughput=num_out / run.duration_s,
        total_token_throughput=(num_in + num_out) / run.duration_s,
        max_output_tokens_per_s=peak_tokens,
        max_concurrent_requests=peak_requests,
        ttft=Spread.of([o.ttft_s or 0.0 for o, _ in done], percentiles),
        tpot=Spread.of(tpot, percentiles),
        itl=Spread.of([gap for o, _ in done for gap in o.gaps_s], percentiles),
        e2el=Spread.of([o.latency_s for o, _ in done], percentiles),
        output_tokens=[n if o.is_success else 0 for o, n in zip(run.outcomes, tokens, strict=True)],
    )


def _output_tokens(outcome: Outcome, encode: Encode | None) -> int:
    if outcome.output_tokens is not None:
        return outcome.output_tokens
    if encode is not None:
        return len(encode(outcome.text))
    return len(outcome.gaps_s) + (outcome.ttft_s is not None)


def _per_token(outcome: Outcome, tokens: int) -> float:
    return (outcome.latency_s - (outcome.ttft_s or 0.0)) / (tokens - 1)


def _meets(outcome: Outcome, tokens: int, goals_ms: Mapping[str, float]) -> bool:
    seconds = {
        "ttft": outcome.ttft_s or 0.0,
        "tpot": _per_token(outcome, tokens) if tokens > 1 else 0.0,
        "e2el": outcome.latency_s,
    }
    return all(seconds[name] * 1e3 <= limit for name, limit in goals_ms.items())


def _peaks(done: Sequence[Outcome]) -> tuple[float, int]:
    """Most pieces of text, and most requests under way, of the seconds of a run."""
    if not done:
        return 0.0, 0
    start = min(o.start_s for o in done)
    length = max(o.start_s + o.latency_s for o in done) - start
    texts, busy = (np.zeros(int(length) + 2) for _ in range(2))
    for o in done:
        moments = o.start_s - start + np.cumsum([o.ttft_s or 0.0, *o.gaps_s])
        np.add.at(texts, moments.astype(int).clip(0, len(texts) - 1), 1)
        busy[int(o.start_s - start) : int(o.start_s - start + o.latency_s) + 1] += 1
    return float(texts.max()), int(busy.max())
