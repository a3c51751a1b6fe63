"""`infini bench`: the server, one batch, many requests, prefill and decoding alone.

Lines and JSON are those of vLLM's `bench`, llama.cpp's `llama-bench` and `llama-batched-bench`.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import Progress

from infini.backends.cpu import limits
from infini.cli import bench_serve, output
from infini.core import backend as backend_, config, errors
from infini.llm.benchmarks import datasets, offline
from infini.llm.benchmarks.facts import ModelFacts
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from infini.perf import record

app = typer.Typer(help="Measure language models and servers.", no_args_is_help=True)
app.command("serve")(bench_serve.command)

_BEYOND_CACHES = 512 << 20  # bytes
_REPEATS = 12

_Model = Annotated[str, typer.Argument(help="Model folder, GGUF file, or name of a pulled model.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Seed = Annotated[int, typer.Option(help="Of the prompts.")]
_DType = Annotated[str, typer.Option(help="Dtype to compute in; auto is the model's.")]
_Quantization = Annotated[
    str | None, typer.Option("--quantization", "-q", help="Quantise weights on load, such as q8_0.")
]
_Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", help="Threads of the CPU.", min=1),
]


@app.command("latency")
def latency(  # noqa: PLR0913, PLR0917  # typer passes them by name
    model: _Model,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 32,
    output_len: Annotated[int, typer.Option(help="Tokens made for each.", min=1)] = 128,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.", min=1)] = 8,
    num_iters_warmup: Annotated[int, typer.Option(help="Rounds that are not counted.", min=0)] = 10,
    num_iters: Annotated[int, typer.Option(help="Rounds that are.", min=1)] = 30,
    dtype: _DType = "auto",
    quantization: _Quantization = None,
    threads: _Threads = None,
    seed: _Seed = 0,
    output_json: Annotated[Path | None, typer.Option(help="Write the numbers to this file, too.")] = None,
    as_json: _Json = False,
) -> None:
    """Time of one batch from the first prompt to the last token."""
    engine = _engine(
        model,
        threads,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=batch_size,
        max_model_len=input_len + output_len,
    )
    with _bar("rounds", num_iters_warmup + num_iters) as advance:
        found = offline.latency(
            engine,
            _params,
            vocab_size=_vocab_size(engine),
            input_tokens=input_len,
            output_tokens=output_len,
            batch_size=batch_size,
            num_warmups=num_iters_warmup,
            num_rounds=num_iters,
            seed=seed,
            on_round=advance,
        )
    _show(found.as_text(), found.as_json() | _circumstances(model), as_json, output_json)


@app.command("throughput")
def throughput(  # noqa: PLR0913, PLR0917  # typer passes them by name
    model: _Model,
    dataset_name: Annotated[
        Literal["random", "prefix_repetition", "sharegpt", "custom"], typer.Option(help="What to ask.")
    ] = "random",
    dataset_path: Annotated[Path | None, typer.Option(help="File of sharegpt or custom.")] = None,
    num_prompts: Annotated[int, typer.Option(help="Requests.", min=1)] = 1000,
    input_len: Annotated[
        int | None, typer.Option(help="Tokens of a random prompt; 1024 if absent.", min=1)
    ] = None,
    output_len: Annotated[int | None, typer.Option(help="Tokens to ask for; 128 if absent.", min=1)] = None,
    range_ratio: Annotated[float, typer.Option(help="Spread of both lengths.")] = 0.0,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests in a step.", min=1)] = 16,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Most tokens in a step.", min=1)] = 512,
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of a request.", min=1)] = None,
    dtype: _DType = "auto",
    quantization: _Quantization = None,
    threads: _Threads = None,
    seed: _Seed = 0,
    output_json: Annotated[Path | None, typer.Option(help="Write the numbers to this file, too.")] = None,
    as_json: _Json = False,
) -> None:
    """Requests and tokens per second of many requests handed over at once."""
    engine = _engine(
        model,
        threads,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
    )
    dataset = datasets.Dataset(
        name=dataset_name,
        path=dataset_path,
        num_prompts=num_prompts,
        input_tokens=input_len,
        output_tokens=output_len,
        range_ratio=range_ratio,
        seed=seed,
    )
    tokenizer = engine.tokenizer
    samples = dataset.samples(
        vocab_size=_vocab_size(engine), encode=None if tokenizer is None else tokenizer.encode
    )
    found = offline.throughput(engine, _params, samples)
    _show(found.as_text(), found.as_json() | _circumstances(model), as_json, output_json)


@app.command("decode")
def decode(  # noqa: PLR0913, PLR0917  # typer passes them by name
    model: _Model,
    n_prompt: Annotated[str, typer.Option("--n-prompt", "-p", help="Lengths of prompts.")] = "512",
    n_gen: Annotated[str, typer.Option("--n-gen", "-n", help="Numbers of tokens to make.")] = "128",
    pg: Annotated[list[str] | None, typer.Option("-pg", help="PROMPT,TOKENS timed together.")] = None,
    n_depth: Annotated[str, typer.Option("--n-depth", "-d", help="Tokens in the cache before.")] = "0",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Rounds.", min=1)] = 5,
    form: Annotated[
        Literal["md", "csv", "json", "jsonl"], typer.Option("--output", "-o", help="Form of the result.")
    ] = "md",
    dtype: _DType = "auto",
    quantization: _Quantization = None,
    threads: _Threads = None,
    seed: _Seed = 0,
) -> None:
    """Tokens per second of one sequence: prompts (pp) and tokens (tg), as llama-bench shows them.

    Sampling and the engine's own work are in the times. Behind llama-bench's columns stands the share of the
    memory's bandwidth that reading all weights once for each token needs.
    """
    prompts, made, depths = (
        _whole_numbers(o, t) for o, t in (("-p", n_prompt), ("-n", n_gen), ("-d", n_depth))
    )
    pairs = [_pair(text) for text in pg or ()]
    singles = [(p, 0) for p in prompts if p] + [(0, n) for n in made if n]
    cases = [(p, n, d) for d in depths for p, n in (*singles, *pairs)]
    if not cases:
        raise errors.ValueMismatchError("there is nothing to measure", fix="give -p or -n a number above 0")
    bandwidth = _bandwidth(threads)
    engine = _engine(
        model,
        threads,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=1,
        enable_prefix_caching=False,
        max_model_len=max(p + n + d for p, n, d in cases) + 2,
    )
    found = []
    for num_prompt, num_generated, depth in cases:
        shared: dict[str, Any] = {  # Any: of both functions
            "vocab_size": _vocab_size(engine),
            "num_prompt": num_prompt,
            "depth": depth,
            "num_rounds": repetitions,
            "seed": seed,
        }
        speed = (
            offline.decode(engine, _params, num_generated=num_generated, **shared)
            if num_generated
            else offline.prefill(engine, _params, **shared)
        )
        found.append(_row(engine, model, speed, bandwidth))
    output.stream(_as_form(found, form) + "\n")


@app.command("batched")
def batched(  # noqa: PLR0917  # typer passes them by name
    model: _Model,
    npp: Annotated[str, typer.Option("-npp", help="Lengths of prompts.")] = "128,512",
    ntg: Annotated[str, typer.Option("-ntg", help="Numbers of tokens to make.")] = "128",
    npl: Annotated[str, typer.Option("-npl", help="Numbers of sequences at once.")] = "1,2,4,8",
    form: Annotated[
        Literal["md", "jsonl"], typer.Option("--output-format", help="Form of the result.")
    ] = "md",
    dtype: _DType = "auto",
    quantization: _Quantization = None,
    threads: _Threads = None,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Most tokens in a step.", min=1)] = 512,
    seed: _Seed = 0,
) -> None:
    """Tokens per second of several sequences at once, as llama-batched-bench shows them."""
    prompts, made, counts = (_whole_numbers(o, t) for o, t in (("-npp", npp), ("-ntg", ntg), ("-npl", npl)))
    longest = max(prompts) + max(made) + 1
    engine = _engine(
        model,
        threads,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=max(counts),
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=False,
        max_model_len=longest,
    )
    if form == "md":
        output.stream(offline.BATCHED_HEADER + "\n")
    for num_prompt in prompts:
        for num_generated in made:
            for num_sequences in counts:
                found = offline.batched(
                    engine,
                    _params,
                    vocab_size=_vocab_size(engine),
                    num_prompt=num_prompt,
                    num_generated=num_generated,
                    num_sequences=num_sequences,
                    seed=seed,
                )
                line = offline.batched_line(found) if form == "md" else json.dumps(found.as_json())
                output.stream(line + "\n")


def _params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def _engine(model: str, threads: int | None, **options: Any) -> LLM:  # Any: fields of EngineConfig
    if threads is not None:
        config.config.update("num_threads", threads)
    return LLM(model, verbose=True, **options)


def _bandwidth(threads: int | None) -> float:
    """Bytes per second that the memory gives, measured before anything else uses the threads."""
    if threads is not None:
        config.config.update("num_threads", threads)
    return limits.measure(_REPEATS, [_BEYOND_CACHES]).read_bytes_per_s[_BEYOND_CACHES]


def _vocab_size(engine: LLM) -> int:
    return engine.engine.checkpoint.config.vocab_size


class _bar:  # noqa: N801  # used as a function
    """A bar on a terminal; calls advance it."""

    def __init__(self, text: str, total: int) -> None:
        console = output.console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(text, total=total)

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        return lambda: self._progress.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _circumstances(model: str) -> dict[str, Any]:  # Any: whatever JSON holds
    """What a number depends on."""
    return {
        "model_id": model,
        "commit": record.commit(),
        "machine": record.machine(),
        "versions": record.versions(),
    }


def _show(text: str, data: dict[str, Any], as_json: bool, file: Path | None) -> None:  # Any: JSON
    output.stream((json.dumps(data) if as_json else text) + "\n")
    if file is not None:
        file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
        if min(found) < 0:
            raise ValueError(text)
    except ValueError as error:
        raise errors.ValueMismatchError(
            f"{option} has {text!r}", expected="whole numbers, such as 128,512"
        ) from error
    return found


def _pair(text: str) -> tuple[int, int]:
    found = _whole_numbers("-pg", text)
    if len(found) != 2 or not all(found):
        raise errors.ValueMismatchError(f"-pg has {text!r}", expected="PROMPT,TOKENS, such as 512,128")
    return found[0], found[1]


def _row(engine: LLM, model: str, speed: offline.Speed, bandwidth: float) -> dict[str, Any]:  # Any: JSON
    """One measurement with llama-bench's names, and what is ours behind them."""
    facts = ModelFacts.of(engine.engine.checkpoint)
    machine = record.machine()
    rates = speed.tokens_per_s
    ns = [int(s * 1e9) for s in speed.seconds]
    mean_ns = sum(ns) / len(ns)
    is_decoding = speed.num_generated and not speed.num_prompt
    return {
        "build_commit": record.commit(),
        "cpu_info": machine["cpu"],
        "backends": backend_.default_device().platform.upper(),
        "model_filename": model,
        "model_type": facts.description,
        "model_size": facts.nbytes,
        "model_n_params": facts.num_params,
        "n_threads": config.config.num_threads,
        "n_prompt": speed.num_prompt,
        "n_gen": speed.num_generated,
        "n_depth": speed.depth,
        "test": speed.name,
        "test_time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": int(mean_ns),
        "stddev_ns": int((sum((n - mean_ns) ** 2 for n in ns) / max(len(ns) - 1, 1)) ** 0.5),
        "avg_ts": speed.mean,
        "stddev_ts": speed.std,
        "samples_ns": ns,
        "samples_ts": rates,
        "bandwidth_share": facts.nbytes_read * speed.mean / bandwidth if is_decoding else None,
    }


def _as_form(rows: Sequence[dict[str, Any]], form: str) -> str:  # Any: JSON
    if form == "json":
        return json.dumps(list(rows), indent=2)
    if form == "jsonl":
        return "\n".join(json.dumps(row) for row in rows)
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip()
    return _as_markdown(rows)


def _as_markdown(rows: Sequence[dict[str, Any]]) -> str:  # Any: JSON
    header = (
        f"| {'model':<30} | {'size':>10} | {'params':>10} | {'backend':<10} | {'threads':>7} | "
        f"{'test':>15} | {'t/s':>20} | {'bandwidth':>9} |"
    )
    widths = (30, 9, 9, 10, 6, 14, 19, 8)
    line = "| " + " | ".join("-" * n + ("" if n in (30, 10) else ":") for n in widths) + " |"
    lines = [header, line]
    for row in rows:
        share = row["bandwidth_share"]
        rate = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
        lines.append(
            f"| {row['model_type']:<30} | {_size(row['model_size']):>10} | "
            f"{row['model_n_params'] / 1e9:>8.2f} B | {row['backends']:<10} | {row['n_threads']:>7} | "
            f"{row['test']:>15} | {rate:>20} | {'' if share is None else f'{share:.0%}':>9} |"
        )
    return "\n".join(lines)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.2f} MiB"
