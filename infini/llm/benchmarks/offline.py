"""The engine without a server: the time of one batch, the throughput of many requests, and prefill and
decoding alone, as vLLM's `bench latency` and `bench throughput`, llama.cpp's `llama-bench` and
`llama-batched-bench` measure them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from infini.core import errors
from infini.llm.benchmarks.datasets import Sample

PERCENTILES: Final = (10, 25, 50, 75, 90, 99)


class Engine(Protocol):
    """What is measured: an `infini.llm.LLM`, and anything that generates as one does."""

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
        """Finished outputs of prompts."""
        ...


MakeParams = Callable[[int], Any]  # SamplingParams for so many tokens, greedy, that no end token ends


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one batch.

    Args:
        seconds: of every round.
    """

    seconds: Sequence[float]

    @property
    def mean_s(self) -> float:
        """Mean over the rounds."""
        return float(np.mean(self.seconds))

    @property
    def percentiles_s(self) -> dict[int, float]:
        """Seconds by percentile."""
        return {p: float(np.percentile(self.seconds, p)) for p in PERCENTILES}

    def as_text(self) -> str:
        """vLLM's lines."""
        lines = [f"Avg latency: {self.mean_s} seconds"]
        lines += [f"{p}% percentile latency: {s} seconds" for p, s in self.percentiles_s.items()]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:  # Any: whatever JSON holds
        """vLLM's keys."""
        return {
            "avg_latency": self.mean_s,
            "latencies": list(self.seconds),
            "percentiles": {str(p): s for p, s in self.percentiles_s.items()},
        }


def latency(
    engine: Engine,
    params: MakeParams,
    *,
    vocab_size: int,
    input_tokens: int = 32,
    output_tokens: int = 128,
    batch_size: int = 8,
    num_warmups: int = 10,
    num_rounds: int = 30,
    seed: int = 0,
    on_round: Callable[[], None] = lambda: None,
) -> Latency:
    """Time one batch of random prompts again and again.

    Every round has other prompts, so that none of it is found in a cache.

    Args:
        engine: what to measure.
        params: sampling for so many tokens.
        vocab_size: ids lie below it.
        input_tokens: ids of a prompt.
        output_tokens: tokens made for each.
        batch_size: prompts at once.
        num_warmups: rounds that are not counted.
        num_rounds: rounds that are.
        seed: of the prompts.
        on_round: called after each.
    """
    rng = np.random.default_rng(seed)
    seconds = []
    for number in range(num_warmups + num_rounds):
        prompts = _prompts(rng, vocab_size, batch_size, input_tokens)
        start = time.perf_counter()
        engine.generate(prompts, params(output_tokens), use_tqdm=False)
        if number >= num_warmups:
            seconds.append(time.perf_counter() - start)
        on_round()
    return Latency(seconds)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Many requests at once.

    Args:
        seconds: of all.
        num_requests: how many.
        prompt_tokens: of all prompts.
        output_tokens: made.
    """

    seconds: float
    num_requests: int
    prompt_tokens: int
    output_tokens: int

    def as_text(self) -> str:
        """vLLM's lines."""
        total = self.prompt_tokens + self.output_tokens
        return (
            f"Throughput: {self.num_requests / self.seconds:.2f} requests/s, "
            f"{total / self.seconds:.2f} total tokens/s, "
            f"{self.output_tokens / self.seconds:.2f} output tokens/s\n"
            f"Total num prompt tokens:  {self.prompt_tokens}\n"
            f"Total num output tokens:  {self.output_tokens}"
        )

    def as_json(self) -> dict[str, Any]:  # Any: whatever JSON holds
        """vLLM's keys, and the two sorts of tokens."""
        total = self.prompt_tokens + self.output_tokens
        return {
            "elapsed_time": self.seconds,
            "num_requests": self.num_requests,
            "total_num_tokens": total,
            "requests_per_second": self.num_requests / self.seconds,
            "tokens_per_second": total / self.seconds,
            "total_prompt_tokens": self.prompt_tokens,
            "total_output_tokens": self.output_tokens,
            "output_tokens_per_second": self.output_tokens / self.seconds,
        }


def throughput(
    engine: Engine, params: MakeParams, samples: Sequence[Sample], *, use_tqdm: bool = True
) -> Throughput:
    """Hand over all requests at once and wait for the last.

    Args:
        engine: what to measure; its programs should be warm.
        params: sampling for so many tokens.
        samples: the requests.
        use_tqdm: show a bar.
    """
    prompts = [_prompt(s) for s in samples]
    each = [params(s.output_tokens) for s in samples]
    start = time.perf_counter()
    found = engine.generate(prompts, each, use_tqdm=use_tqdm)
    seconds = time.perf_counter() - start
    made = sum(len(c.token_ids) for output in found for c in output.outputs)
    return Throughput(seconds, len(samples), sum(len(o.prompt_token_ids) for o in found), made)


@dataclass(frozen=True, slots=True)
class Speed:
    """Prefill or decoding of one sequence, in llama-bench's terms.

    Args:
        num_prompt: tokens of the prompt that is computed.
        num_generated: tokens made.
        depth: tokens in the cache before.
        seconds: of every round.
    """

    num_prompt: int
    num_generated: int
    depth: int
    seconds: Sequence[float]

    @property
    def name(self) -> str:
        """As llama-bench writes it: pp512, tg128, pp512+tg128, with @ d4096 for a depth."""
        parts = [f"pp{self.num_prompt}"] if self.num_prompt else []
        parts += [f"tg{self.num_generated}"] if self.num_generated else []
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def tokens_per_s(self) -> list[float]:
        """Of every round."""
        return [(self.num_prompt + self.num_generated) / s for s in self.seconds]

    @property
    def mean(self) -> float:
        """Mean tokens per second."""
        return float(np.mean(self.tokens_per_s))

    @property
    def std(self) -> float:
        """Deviation of the tokens per second over the rounds."""
        return float(np.std(self.tokens_per_s, ddof=1)) if len(self.seconds) > 1 else 0.0


def prefill(
    engine: Engine,
    params: MakeParams,
    *,
    vocab_size: int,
    num_prompt: int,
    depth: int = 0,
    num_rounds: int = 5,
    seed: int = 0,
) -> Speed:
    """Time a prompt until its first token.

    With a depth, the time of the first `depth` tokens alone is subtracted.

    Args:
        engine: what to measure.
        params: sampling for so many tokens.
        vocab_size: ids lie below it.
        num_prompt: tokens of the prompt.
        depth: tokens before them.
        num_rounds: rounds that are counted; one more warms up.
        seed: of the prompts.
    """
    rng = np.random.default_rng(seed)

    def seconds(length: int) -> float:
        (found,) = engine.generate(_prompts(rng, vocab_size, 1, length), params(1), use_tqdm=False)
        return _first_s(found)

    found = []
    for number in range(num_rounds + 1):
        whole = seconds(depth + num_prompt) - (seconds(depth) if depth else 0.0)
        if number:
            found.append(max(whole, 1e-9))
    return Speed(num_prompt, 0, depth, found)


def decode(
    engine: Engine,
    params: MakeParams,
    *,
    vocab_size: int,
    num_generated: int,
    num_prompt: int = 0,
    depth: int = 0,
    num_rounds: int = 5,
    seed: int = 0,
) -> Speed:
    """Time tokens after the first; with a prompt, the prompt and the tokens.

    Args:
        engine: what to measure.
        params: sampling for so many tokens.
        vocab_size: ids lie below it.
        num_generated: tokens made.
        num_prompt: tokens of a prompt whose time counts, too.
        depth: tokens in the cache before.
        num_rounds: rounds that are counted; one more warms up.
        seed: of the prompts.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_rounds + 1):
        prompts = _prompts(rng, vocab_size, 1, max(depth + num_prompt, 1))
        # One token more than is counted: the first one belongs to the prompt.
        (output,) = engine.generate(prompts, params(num_generated + 1), use_tqdm=False)
        seconds = output.metrics.last_token_time - output.metrics.first_token_time
        if num_prompt:
            seconds += _first_s(output)
        if number:
            found.append(seconds)
    return Speed(num_prompt, num_generated, depth, found)


@dataclass(frozen=True, slots=True)
class Batched:
    """A line of llama-batched-bench.

    Args:
        num_prompt: tokens of each prompt (PP).
        num_generated: tokens made for each (TG).
        num_sequences: sequences at once (B).
        prefill_s: seconds of the prompts (T_PP).
        decode_s: seconds of the tokens (T_TG).
    """

    num_prompt: int
    num_generated: int
    num_sequences: int
    prefill_s: float
    decode_s: float

    @property
    def num_cached(self) -> int:
        """Tokens in the cache at the end (N_KV)."""
        return self.num_sequences * (self.num_prompt + self.num_generated)

    @property
    def prefill_tokens_per_s(self) -> float:
        """S_PP."""
        return self.num_sequences * self.num_prompt / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """S_TG."""
        return self.num_sequences * self.num_generated / self.decode_s

    def as_json(self) -> dict[str, float]:
        """The keys of llama-batched-bench's lines of JSON."""
        seconds = self.prefill_s + self.decode_s
        return {
            "pp": self.num_prompt,
            "tg": self.num_generated,
            "pl": self.num_sequences,
            "n_kv": self.num_cached,
            "t_pp": self.prefill_s,
            "speed_pp": self.prefill_tokens_per_s,
            "t_tg": self.decode_s,
            "speed_tg": self.decode_tokens_per_s,
            "t": seconds,
            "speed": self.num_cached / seconds,
        }


BATCHED_HEADER: Final = (
    "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n"
    "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|"
)


def batched_line(found: Batched) -> str:
    """One row of llama-batched-bench's table."""
    row = found.as_json()
    return (
        f"|{found.num_prompt:6d} | {found.num_generated:6d} | {found.num_sequences:4d} | "
        f"{found.num_cached:6d} | {found.prefill_s:8.3f} | {found.prefill_tokens_per_s:8.2f} | "
        f"{found.decode_s:8.3f} | {found.decode_tokens_per_s:8.2f} | {row['t']:8.3f} | {row['speed']:8.2f} |"
    )


def batched(
    engine: Engine,
    params: MakeParams,
    *,
    vocab_size: int,
    num_prompt: int,
    num_generated: int,
    num_sequences: int,
    seed: int = 0,
) -> Batched:
    """Several sequences at once: all prompts, then all tokens.

    The engine mixes prompts and tokens, so the time of the tokens is that of everything less that of the
    prompts alone. Other prompts are asked each time; an engine with a prefix cache finds nothing in it.

    Args:
        engine: what to measure; warm.
        params: sampling for so many tokens.
        vocab_size: ids lie below it.
        num_prompt: tokens of each prompt.
        num_generated: tokens made for each.
        num_sequences: how many at once.
        seed: of the prompts.
    """
    rng = np.random.default_rng(seed)

    def seconds(count: int) -> float:
        prompts = _prompts(rng, vocab_size, num_sequences, num_prompt)
        start = time.perf_counter()
        engine.generate(prompts, params(count), use_tqdm=False)
        return time.perf_counter() - start

    first = seconds(1)
    whole = seconds(num_generated + 1)
    return Batched(num_prompt, num_generated, num_sequences, first, max(whole - first, 1e-9))


def _first_s(output: Any) -> float:  # Any: a RequestOutput
    metrics = output.metrics
    if metrics is None or metrics.first_token_time is None:
        raise errors.InfiniError("the engine made no token", got=f"request {output.request_id}")
    return metrics.first_token_time - metrics.first_scheduled_time


def _prompts(
    rng: np.random.Generator, vocab_size: int, count: int, length: int
) -> list[dict[str, list[int]]]:
    ids = rng.integers(0, vocab_size, (count, length))
    return [{"prompt_token_ids": row.tolist()} for row in ids]


def _prompt(sample: Sample) -> Any:  # Any: text, or a dictionary with ids
    return {"prompt_token_ids": list(sample.prompt)} if isinstance(sample.prompt, tuple) else sample.prompt
