"""`infini bench serve`: a load on a server, and what its clients saw."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import Progress

from infini.cli import output
from infini.core import errors
from infini.io import folders
from infini.llm.benchmarks import client, datasets, report, serving
from infini.llm.text import tokenizer as tokenizer_
from infini.llm.text.tokenizer import Tokenizer

_METRICS = ("ttft", "tpot", "itl", "e2el")
# Ids below it are tokens of nearly every vocabulary.
_VOCAB_SIZE = 1000


def command(  # noqa: PLR0913, PLR0917  # typer passes them by name
    base_url: Annotated[str | None, typer.Option(help="URL; or name --host and --port.")] = None,
    host: Annotated[str, typer.Option(help="Host of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    backend: Annotated[
        Literal["infini", "vllm", "openai", "openai-chat"], typer.Option(help="What the server speaks.")
    ] = "infini",
    endpoint: Annotated[str | None, typer.Option(help="Path of the endpoint, if not the usual one.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model there; the first it lists if absent.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key of the server.", envvar=["INFINI_API_KEY", "OPENAI_API_KEY"])
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with a tokenizer, to count tokens and to write random text.")
    ] = None,
    dataset_name: Annotated[
        Literal["random", "prefix_repetition", "sharegpt", "custom"], typer.Option(help="What to ask.")
    ] = "random",
    dataset_path: Annotated[
        Path | None, typer.Option(help="File of sharegpt or custom (lines of JSON).")
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="Requests.", min=1)] = 1000,
    num_warmups: Annotated[int, typer.Option(help="Requests before the measurement.", min=0)] = 1,
    input_len: Annotated[
        int | None,
        typer.Option("--input-len", "--random-input-len", help="Tokens of a random prompt.", min=1),
    ] = None,
    output_len: Annotated[
        int | None,
        typer.Option("--output-len", "--random-output-len", help="Tokens to ask for; 128 if absent."),
    ] = None,
    range_ratio: Annotated[
        float, typer.Option("--range-ratio", "--random-range-ratio", help="Spread of both lengths.")
    ] = 0.0,
    prefix_len: Annotated[
        int | None, typer.Option("--prefix-len", "--random-prefix-len", help="Tokens that prompts share.")
    ] = None,
    num_prefixes: Annotated[
        int, typer.Option("--num-prefixes", "--prefix-repetition-num-prefixes", help="Shared beginnings.")
    ] = 10,
    request_rate: Annotated[float, typer.Option(help="Requests per second; inf for all at once.")] = math.inf,
    burstiness: Annotated[float, typer.Option(help="1 is Poisson, less comes in bursts.")] = 1.0,
    max_concurrency: Annotated[int | None, typer.Option(help="Most requests under way.", min=1)] = None,
    ramp_up_strategy: Annotated[
        Literal["linear", "exponential"] | None, typer.Option(help="How the rate grows.")
    ] = None,
    ramp_up_start_rps: Annotated[float, typer.Option(help="Requests per second at first.")] = 1.0,
    ramp_up_end_rps: Annotated[float, typer.Option(help="Requests per second at last.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="End tokens do not end an answer.")] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0.0)] = 0.0,
    extra_body: Annotated[str | None, typer.Option(help="JSON with more fields of each request.")] = None,
    percentile_metrics: Annotated[str, typer.Option(help="Of ttft,tpot,itl,e2el.")] = "ttft,tpot,itl",
    metric_percentiles: Annotated[str, typer.Option(help="Percentiles, such as 50,90,99.")] = "99",
    goodput: Annotated[
        list[str] | None, typer.Option(help="A goal such as ttft:200 (ms); may be repeated.")
    ] = None,
    save_result: Annotated[bool, typer.Option(help="Write the numbers to a file of JSON.")] = False,
    save_detailed: Annotated[bool, typer.Option(help="With every request.")] = False,
    result_dir: Annotated[Path, typer.Option(help="Folder of that file.")] = Path(),
    result_filename: Annotated[str | None, typer.Option(help="Its name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Measure a server from outside: throughput, time to first token, time per token.

    Lines and JSON are those of `vllm bench serve`.
    """
    metrics = _parts("--percentile-metrics", percentile_metrics, _METRICS)
    percentiles = [_number("--metric-percentiles", p, 0.0, 100.0) for p in metric_percentiles.split(",")]
    goals = dict(_goal(text) for text in goodput or ())
    options = {"temperature": temperature} | ({"ignore_eos": True} if ignore_eos else {}) | _extra(extra_body)
    target = serving.Target(
        base_url or f"http://{host}:{port}", backend, model, api_key, endpoint, options=options
    )
    load = serving.Load(
        request_rate, burstiness, max_concurrency, ramp_up_strategy, ramp_up_start_rps, ramp_up_end_rps, seed
    )
    tokens = None if tokenizer is None else tokenizer_.from_folder(tokenizer)
    dataset = datasets.Dataset(
        name=dataset_name,
        path=dataset_path,
        num_prompts=num_prompts,
        input_tokens=input_len,
        output_tokens=output_len,
        range_ratio=range_ratio,
        prefix_tokens=prefix_len,
        num_prefixes=num_prefixes,
        seed=seed,
    )
    samples = _samples(dataset, tokens, is_text=backend == "openai-chat")
    run = _run(target, samples, load, num_warmups)
    encode = None if tokens is None else (lambda text: tokens.encode(text, add_special_tokens=False))
    result = serving.summarize(run, percentiles=percentiles, goals_ms=goals, encode=encode)
    found = report.as_json(result, run, load, target, metrics=metrics, is_detailed=save_detailed)
    output.stream(
        (json.dumps(found) if as_json else report.as_text(result, run, load, metrics=metrics)) + "\n"
    )
    if save_result or save_detailed:
        name = result_filename or f"{backend}-{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
        path = result_dir / name
        result_dir.mkdir(parents=True, exist_ok=True)
        with folders.replacing_file(path) as file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        output.say(f"wrote {path}")
    if result.failed:
        reasons = sorted({o.error for o in run.outcomes if not o.is_success})
        output.say(f"{result.failed} requests failed: {reasons[0]}")
    if not result.completed:
        raise typer.Exit(1)


def _run(
    target: serving.Target, samples: list[datasets.Sample], load: serving.Load, num_warmups: int
) -> serving.Run:
    console = output.console(stderr=True)
    if not console.is_terminal:
        return serving.run(target, samples, load, num_warmups=num_warmups)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("requests", total=len(samples))

        def on_done(outcome: client.Outcome) -> None:
            progress.advance(bar)

        return serving.run(target, samples, load, num_warmups=num_warmups, on_done=on_done)


def _samples(
    dataset: datasets.Dataset, tokenizer: Tokenizer | None, *, is_text: bool
) -> list[datasets.Sample]:
    if tokenizer is None:
        found = dataset.samples(vocab_size=_VOCAB_SIZE, encode=None)
    else:
        found = dataset.samples(vocab_size=tokenizer.vocab_size, encode=tokenizer.encode)
    if not is_text or dataset.name in ("sharegpt", "custom"):
        return found
    if tokenizer is None:
        raise errors.ValueMismatchError(
            "a chat takes text, and random ids become text by a tokenizer only",
            fix="add --tokenizer FOLDER, or use --backend infini",
        )
    return [_as_text(sample, tokenizer) for sample in found]


def _as_text(sample: datasets.Sample, tokenizer: Tokenizer) -> datasets.Sample:
    text = tokenizer.decode(list(sample.prompt))  # type: ignore[arg-type]  # ids, as they were drawn
    return datasets.Sample(text, len(tokenizer.encode(text)), sample.output_tokens)


def _parts(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if part not in known:
            raise errors.ValueMismatchError(f"{option} has {part!r}", expected=", ".join(known))
    return found


def _number(option: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise errors.ValueMismatchError(
            f"{option} has {text!r}", expected=f"numbers from {low:g} to {high:g}"
        )
    return value


def _goal(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    if name not in ("ttft", "tpot", "e2el"):
        raise errors.ValueMismatchError(
            f"--goodput has {text!r}", expected="ttft:MS, tpot:MS or e2el:MS", fix="--goodput ttft:200"
        )
    return name, _number("--goodput", limit, 0.0, math.inf)


def _extra(text: str | None) -> dict[str, Any]:  # Any: whatever JSON holds
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.ValueMismatchError("--extra-body is not JSON", got=str(error)) from error
    if not isinstance(found, dict):
        raise errors.ValueMismatchError("--extra-body is no object", got=text)
    return found
