"""`infini generate`: continue a prompt with a model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from infini.cli import output
from infini.core import errors
from infini.llm import generate, sampling, stops
from infini.train import model_files, runs

_DTYPES = {"stored": None, "float32": "float32", "bfloat16": "bfloat16"}


def command(  # noqa: PLR0917  # typer passes them by name
    model_dir: Annotated[
        Path, typer.Argument(help="Model folder in Hugging Face's layout, or the folder of a run.")
    ],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Text to continue. Without one, standard input is read."),
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File whose text to continue.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Tokens to make at most.", min=1)
    ] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="Spread of the choice; 0 takes the likeliest token.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among the likeliest K tokens; 0 means all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens of this joint probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal text.", min=0)] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16"], typer.Option(help="Dtype to compute in.")
    ] = "stored",
) -> None:
    """Continue a prompt, token by token.

    What the options leave open is taken from the folder's generation_config.json.
    """
    text = _prompt(prompt, prompt_file)
    if stop and not all(stop):
        raise errors.ValueMismatchError(
            "an empty text cannot end the answer", got="--stop ''", fix="leave the option out"
        )
    model = model_files.load(_model_folder(model_dir), dtype=_DTYPES[dtype])
    stated = model.generation
    how = sampling.Sampling(
        float(stated.get("temperature", 1.0)) if temperature is None else temperature,
        int(stated.get("top_k", 0)) if top_k is None else top_k,
        float(stated.get("top_p", 1.0)) if top_p is None else top_p,
    )
    continue_prompt(model, text, max_new_tokens=max_new_tokens, how=how, seed=seed, stop=stop or ())


def continue_prompt(
    model: model_files.Model,
    prompt: str,
    *,
    max_new_tokens: int,
    how: sampling.Sampling,
    seed: int,
    stop: list[str] | tuple[str, ...] = (),
) -> None:
    """Write a prompt and its continuation to standard output as it comes, the speed to standard error."""
    tokens = model.tokenizer
    ids = tokens.encode_prompt(prompt)
    if not ids:
        raise errors.ValueMismatchError(
            "the prompt is empty",
            got="no text, and a tokenizer without a token that begins one",
            fix="give a text with -p",
        )
    made = generate.Generation(
        model.params,
        model.config,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=how,
        seed=seed,
        end_ids=tokens.end_ids,
    )
    output.stream(prompt)
    for piece in stops.until(tokens.stream(made, prompt=ids), stop):
        output.stream(piece)
    output.stream("\n")
    output.console(stderr=True).print(
        f"{made.num_tokens} tokens, {made.tokens_per_s:,.1f} tokens/s, first after {made.prefill_s:.2f} s"
    )


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
    if prompt is None and not sys.stdin.isatty():
        return sys.stdin.read()
    return prompt or ""


def _model_folder(path: Path) -> Path:
    """The folder itself, or the model in the folder of a run."""
    inner = runs.Places.of_run(path).model
    return inner if not (path / "config.json").is_file() and inner.is_dir() else path
