"""`infini generate`: continue a prompt with a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infini.cli import output
from infini.core import errors
from infini.llm import generate, sampling
from infini.train import model_files


def command(  # noqa: PLR0917  # typer passes them by name
    model_dir: Annotated[Path, typer.Argument(help="Model folder.")],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Text to continue; nothing starts a new document.")
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to make at most.", min=1)] = 128,
    temperature: Annotated[
        float, typer.Option(help="Spread of the choice; 0 takes the likeliest token.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among the likeliest K tokens; 0 means all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Choose among the likeliest tokens of this joint probability.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal text.", min=0)] = 0,
) -> None:
    """Continue a prompt, token by token."""
    continue_prompt(
        model_files.load(model_dir),
        prompt,
        max_new_tokens=max_new_tokens,
        how=sampling.Sampling(temperature, top_k, top_p),
        seed=seed,
    )


def continue_prompt(
    model: model_files.Model, prompt: str, *, max_new_tokens: int, how: sampling.Sampling, seed: int
) -> None:
    """Write a prompt and its continuation to standard output as it comes, the speed to standard error."""
    tokens = model.tokenizer
    ids = tokens.encode(prompt) or ([] if tokens.begin_id is None else [tokens.begin_id])
    if not ids:
        raise errors.ValueMismatchError("the prompt is empty", fix="give a text with -p")
    made = generate.Generation(
        model.params,
        model.config,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=how,
        seed=seed,
        end_id=tokens.end_id,
    )
    output.stream(prompt)
    for piece in tokens.stream(made, prompt=ids):
        output.stream(piece)
    output.stream("\n")
    output.console(stderr=True).print(
        f"{made.num_tokens} tokens, {made.tokens_per_s:,.1f} tokens/s, first after {made.prefill_s:.2f} s"
    )
