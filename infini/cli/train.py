"""`infini train`: a small language model on text of the user's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infini.cli import training
from infini.train import gpt, trainer

Sizes = gpt.Config()
Defaults = trainer.Settings(num_steps=1)


def command(  # noqa: PLR0913, PLR0917  # typer passes them by name
    data: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder of text; may be repeated. Default: Python's standard library."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path("model"),
    steps: Annotated[int | None, typer.Option(help="Number of steps.", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of training. Default: 90, when --steps is absent.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per step.", min=1)] = Defaults.batch_size,
    seq_len: Annotated[int, typer.Option(help="Tokens per window.", min=2)] = Defaults.length,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = Defaults.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of parameters and batches.", min=0)] = 0,
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = Sizes.vocab_size,
    layers: Annotated[int, typer.Option(help="Blocks.", min=1)] = Sizes.num_layers,
    hidden_size: Annotated[int, typer.Option(help="Width.", min=1)] = Sizes.hidden_size,
    intermediate_size: Annotated[
        int, typer.Option(help="Feed-forward width.", min=1)
    ] = Sizes.intermediate_size,
    heads: Annotated[int, typer.Option(help="Query heads.", min=1)] = Sizes.num_heads,
    kv_heads: Annotated[int, typer.Option(help="Key-value heads.", min=1)] = Sizes.num_kv_heads,
    tie_embeddings: Annotated[
        bool, typer.Option(help="Use the embedding table as output projection.")
    ] = Sizes.tie_embeddings,
) -> None:
    """Train a small language model on text and write it as a Hugging Face folder."""
    config = gpt.Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden_size // heads,
        max_length=max(Sizes.max_length, seq_len),
        tie_embeddings=tie_embeddings,
    )
    settings = trainer.Settings(
        num_steps=steps,
        budget_s=90.0 if steps is None and seconds is None else seconds,
        batch_size=batch_size,
        length=seq_len,
        learning_rate=lr,
        warmup_steps=Defaults.warmup_steps if steps is None else min(Defaults.warmup_steps, steps // 5),
        seed=seed,
    )
    training.run(data or [], out, config, settings)
