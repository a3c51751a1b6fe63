"""A serving benchmark as text and as JSON, with vLLM's lines and keys; what is only ours stands behind."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from infini.llm.benchmarks.serving import Load, Result, Run, Spread, Target

_WIDTH: Final = 50
_TITLES: Final = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
}
_DRAFTS: Final = "vllm:spec_decode_num_drafts_total"
_DRAFTED: Final = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED: Final = "vllm:spec_decode_num_accepted_tokens_total"


def as_text(result: Result, run: Run, load: Load, *, metrics: Sequence[str] = ("ttft", "tpot", "itl")) -> str:
    """The report, one line for each number.

    Args:
        result: the numbers.
        run: for the counters of the server.
        load: how requests arrived.
        metrics: which times to show: "ttft", "tpot", "itl", "e2el".
    """
    return "\n".join(_lines(result, run, load, metrics))


def _lines(result: Result, run: Run, load: Load, metrics: Sequence[str]) -> Iterator[str]:
    yield f"{' Serving Benchmark Result ':=^{_WIDTH}}"
    yield _count("Successful requests:", result.completed)
    yield _count("Failed requests:", result.failed)
    if load.max_concurrency is not None:
        yield _count("Maximum request concurrency:", load.max_concurrency)
    if load.ramp_up is None and math.isfinite(load.request_rate):
        yield _number("Request rate configured (RPS):", load.request_rate)
    yield _number("Benchmark duration (s):", result.duration_s)
    yield _count("Total input tokens:", result.total_input_tokens)
    yield _count("Total generated tokens:", result.total_output_tokens)
    yield _number("Request throughput (req/s):", result.request_throughput)
    if result.request_goodput is not None:
        yield _number("Request goodput (req/s):", result.request_goodput)
    yield _number("Output token throughput (tok/s):", result.output_throughput)
    yield _number("Peak output token throughput (tok/s):", result.max_output_tokens_per_s)
    yield _number("Peak concurrent requests:", result.max_concurrent_requests)
    yield _number("Total token throughput (tok/s):", result.total_token_throughput)
    for name in metrics:
        title, short = _TITLES[name]
        spread: Spread = getattr(result, name)
        yield f"{title:-^{_WIDTH}}"
        yield _number(f"Mean {short} (ms):", spread.mean)
        yield _number(f"Median {short} (ms):", spread.median)
        for percentile, value in spread.percentiles.items():
            yield _number(f"P{percentile:g} {short} (ms):", value)
    yield from _speculation(run)
    yield from _own(run)
    yield "=" * _WIDTH


def _speculation(run: Run) -> Iterator[str]:
    drafts, drafted, accepted = (run.grown(name) for name in (_DRAFTS, _DRAFTED, _ACCEPTED))
    if not drafts or not drafted or accepted is None:
        return
    yield f"{'Speculative Decoding':-^{_WIDTH}}"
    yield _number("Acceptance rate (%):", 100 * accepted / drafted)
    yield _number("Acceptance length:", 1 + accepted / drafts)
    yield _count("Drafts:", int(drafts))
    yield _count("Draft tokens:", int(drafted))
    yield _count("Accepted tokens:", int(accepted))


def _own(run: Run) -> Iterator[str]:
    queries, hits = (run.grown(f"vllm:prefix_cache_{name}_total") for name in ("queries", "hits"))
    preemptions = run.grown("vllm:num_preemptions_total")
    if queries is None and preemptions is None:
        return
    yield f"{'Engine':-^{_WIDTH}}"
    if queries:
        yield _number("Prefix cache hit (%):", 100 * (hits or 0.0) / queries)
    if preemptions is not None:
        yield _count("Preemptions:", int(preemptions))


def _count(label: str, number: int) -> str:
    return f"{label:<40} {number:<10}".rstrip()


def _number(label: str, number: float) -> str:
    return f"{label:<40} {number:<10.2f}".rstrip()


def as_json(
    result: Result,
    run: Run,
    load: Load,
    target: Target,
    *,
    metrics: Sequence[str] = ("ttft", "tpot", "itl"),
    is_detailed: bool = False,
) -> dict[str, Any]:  # Any: whatever JSON holds
    """The report with vLLM's keys.

    Args:
        result: the numbers.
        run: every request.
        load: how requests arrived.
        target: the server.
        metrics: which times to write.
        is_detailed: add what became of every request.
    """
    found: dict[str, Any] = {  # Any: whatever JSON holds
        "date": datetime.datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": target.backend,
        "endpoint_type": target.backend,
        "model_id": target.model,
        "tokenizer_id": target.model,
        "num_prompts": len(run.outcomes),
        "request_rate": "inf" if math.isinf(load.request_rate) else load.request_rate,
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
        "duration": result.duration_s,
        "completed": result.completed,
        "failed": result.failed,
        "total_input_tokens": result.total_input_tokens,
        "total_output_tokens": result.total_output_tokens,
        "request_throughput": result.request_throughput,
        "request_goodput": result.request_goodput,
        "output_throughput": result.output_throughput,
        "total_token_throughput": result.total_token_throughput,
        "max_output_tokens_per_s": result.max_output_tokens_per_s,
        "max_concurrent_requests": result.max_concurrent_requests,
    }
    for name in metrics:
        spread: Spread = getattr(result, name)
        found |= {
            f"mean_{name}_ms": spread.mean,
            f"median_{name}_ms": spread.median,
            f"std_{name}_ms": spread.std,
        }
        found |= {f"p{p:g}_{name}_ms": value for p, value in spread.percentiles.items()}
    if is_detailed:
        found |= {
            "input_lens": [o.prompt_tokens for o in run.outcomes],
            "output_lens": list(result.output_tokens),
            "ttfts": [o.ttft_s or 0.0 for o in run.outcomes],
            "itls": [o.gaps_s for o in run.outcomes],
            "start_times": [o.start_s for o in run.outcomes],
            "generated_texts": [o.text for o in run.outcomes],
            "errors": [o.error for o in run.outcomes],
        }
    return found
