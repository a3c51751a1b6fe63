"""`infini generate`: continue a prompt with a model."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from infini.cli import output
from infini.core import errors
from infini.llm.engine.config import Options
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from infini.train import runs

# One prompt needs few of the programs: they are compiled when first needed, not all before.
_ONE: Options = {"max_num_seqs": 1, "enforce_eager": True, "enable_prefix_caching": False}


def command(  # noqa: PLR0913, PLR0917  # options; typer passes them by name
    model: Annotated[
        str,
        typer.Argument(help="Model folder in Hugging Face's layout, GGUF file, or the folder of a run."),
    ],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Text to continue. Without one, or with -, standard input."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="File whose text to continue.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "--max-new-tokens", "-n", help="Tokens to make at most.", min=1)
    ] = 128,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "--temp", help="Spread of the choice; 0 takes the likeliest token."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among the likeliest K tokens; 0 means all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens of this joint probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Leave out tokens below this share of the likeliest one's.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", "--repeat-penalty", help="Above 1: repeat less.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Equal seeds give equal text.", min=0)] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the token that ends a text.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Dtype to compute in; auto: as it is stored."),
    ] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", "-q", help="Quantise on load: int8, q8_0, q4_0, q4_k, q6_k."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of another tokenizer.")] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", "--ctx-size", "-c", help="Most tokens of the text.", min=1),
    ] = None,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option("--max-num-batched-tokens", "-b", help="Tokens of the prompt computed at once.", min=1),
    ] = 512,
    kv_cache_dtype: Annotated[
        str, typer.Option("--kv-cache-dtype", "-ctk", help="Dtype of the cache: auto, float16, int8, fp8 ...")
    ] = "auto",
    spec_method: Annotated[
        Literal["ngram", "draft"] | None,
        typer.Option(help="Propose tokens ahead: from the text itself, or by a smaller model."),
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option("--draft-model", "-md", help="The smaller model.")
    ] = None,
    spec_tokens: Annotated[
        int, typer.Option("--spec-tokens", "--draft-max", help="Tokens proposed at once.", min=1)
    ] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print the output as one JSON object.")] = False,
    no_echo: Annotated[bool, typer.Option("--no-echo", help="Print the continuation alone.")] = False,
) -> None:
    """Continue a prompt, token by token.

    What the options leave open is taken from the model's generation_config.json.
    """
    text = _prompt(prompt, prompt_file)
    if stop and not all(stop):
        raise errors.ValueMismatchError(
            "an empty text cannot end the answer", got="--stop ''", fix="leave the option out"
        )
    options: Options = {
        **_ONE,
        "dtype": dtype,
        "quantization": quantization,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": max_num_batched_tokens,
        "kv_cache_dtype": kv_cache_dtype,  # type: ignore[typeddict-item]  # the engine checks it
        "speculative_config": _speculation(spec_method, draft_model, spec_tokens),
    }
    engine = LLM(model_path(model), tokenizer=tokenizer, verbose=sys.stderr.isatty(), **options)
    given: dict[str, Any] = {  # Any: numbers of several kinds
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    params = dataclasses.replace(
        engine.get_default_sampling_params(),
        **{name: number for name, number in given.items() if number is not None},
        max_tokens=max_tokens,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    continue_prompt(engine, text, params, echo=not no_echo, as_json=as_json)


def continue_prompt(
    engine: LLM, prompt: str, params: SamplingParams, *, echo: bool = True, as_json: bool = False
) -> None:
    """Write a prompt and its continuation to standard output as it comes, the speed to standard error.

    Args:
        engine: the model.
        prompt: the text.
        params: how to continue it.
        echo: whether the prompt is written, too.
        as_json: write one JSON object at the end instead.
    """
    ids = _ids(engine, prompt)
    begin = time.perf_counter()
    times: list[tuple[float, int]] = []  # when how many tokens were there
    token_ids: list[int] = []
    text = ""
    finish_reason = None
    stream = engine.stream({"prompt": prompt, "prompt_token_ids": ids}, params)
    if echo and not as_json:
        output.stream(prompt)
    for part in stream:
        completion = part.outputs[0]
        token_ids += completion.token_ids
        times.append((time.perf_counter(), len(token_ids)))
        text += completion.text
        finish_reason = completion.finish_reason
        if not as_json:
            output.stream(completion.text)
        if completion.error is not None:
            raise errors.InfiniError(completion.error)
    count, first_s, speed = len(token_ids), times[0][0] - begin, _speed(times)
    if as_json:
        told: dict[str, Any] = {  # Any: JSON
            "prompt": prompt,
            "text": text,
            "token_ids": token_ids,
            "finish_reason": finish_reason,
            "num_prompt_tokens": len(ids),
            "first_token_s": first_s,
            "tokens_per_s": speed,
        }
        output.stream(json.dumps(told, ensure_ascii=False))
    output.stream("\n")
    line = f"{count} tokens, {speed:,.1f} tokens/s, first after {first_s:.2f} s"
    stats = engine.stats()
    if stats.spec_num_draft_tokens:
        share = stats.spec_num_accepted_tokens / stats.spec_num_draft_tokens
        line += f", {share:.0%} of {stats.spec_num_draft_tokens} proposed tokens accepted"
    output.console(stderr=True).print(line)


def _speed(times: list[tuple[float, int]]) -> float:
    """Tokens per second, from the second output on, which pays for compiling the step that decodes."""
    if len(times) < 3:
        return 0.0
    (start, before), (end, after) = times[1], times[-1]
    return (after - before) / (end - start)


def model_path(name: str) -> Path:
    """Where a model is: the path itself, or the model in the folder of a run."""
    path = Path(name).expanduser()
    inner = runs.Places.of_run(path).model
    return inner if not (path / "config.json").is_file() and inner.is_dir() else path


def _ids(engine: LLM, prompt: str) -> list[int]:
    """Ids of a prompt to go on from: never with the token that ends a text, and never none."""
    words = engine.tokenizer
    if words is None:
        raise errors.ValueMismatchError(
            "the model has no tokenizer", got="no tokenizer.json", fix="name one with --tokenizer"
        )
    ids = words.encode(prompt)
    while ids and ids[-1] in words.eos_ids and ids[-1] != words.bos_id:
        ids.pop()
    begins = [id for id in (words.bos_id, words.eos_id) if id is not None]
    if not ids and not begins:
        raise errors.ValueMismatchError(
            "the prompt is empty",
            got="no text, and a tokenizer without a token that begins one",
            fix="give a text with -p",
        )
    return ids or begins[:1]


def _speculation(method: str | None, draft_model: str | None, count: int) -> dict[str, Any] | None:
    if draft_model is not None:
        return {"method": "draft_model", "model": draft_model, "num_speculative_tokens": count}
    if method == "draft":
        raise errors.ValueMismatchError(
            "a smaller model is to propose tokens and none is named",
            got="--spec-method draft",
            fix="name it with --draft-model",
        )
    return None if method is None else {"method": method, "num_speculative_tokens": count}


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The text to continue: given, of a file, or of standard input when it is no terminal."""
    if prompt is not None and file is not None:
        raise errors.ValueMismatchError(
            "there are two prompts", got="--prompt and --prompt-file", fix="leave one of them out"
        )
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ValueMismatchError(
                f"the prompt {file} cannot be read",
                got=str(error),
                expected="a file with text in UTF-8",
                fix="correct --prompt-file",
            ) from error
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return sys.stdin.read()
    return prompt or ""
