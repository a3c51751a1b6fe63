"""From text to a model folder: what `infini train` and `infini demo` share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infini.cli import output, progress
from infini.data import corpus, tokens
from infini.io import hugging_face
from infini.io.folders import check_replaceable
from infini.train import gpt, model_files, step, trainer


@dataclass(frozen=True, slots=True)
class Result:
    """A trained model and how its training went."""

    model: model_files.Model
    outcome: trainer.Outcome


def run(data: Sequence[Path], out: Path, config: gpt.Config, settings: trainer.Settings) -> Result:
    """Read text, train a tokenizer and a model on it, write the model folder, and say what happens.

    Args:
        data: files and folders of text; the Python standard library when there are none.
        out: the model folder. Measurements go to a file beside it.
        config: sizes; the vocabulary becomes smaller when the text is too small for it.
        settings: how to train.

    Raises:
        InfiniError: there is no text, the folder holds other files, the loss is not finite, ...
    """
    trainer.check(config, settings)
    check_replaceable(out, hugging_face.FILES)
    console = output.console(stderr=True)
    with console.status("reading text"):
        text = corpus.read(data)
    numbers = f"{len(text.train)} documents to train on, {len(text.held_out)} held out"
    console.print(f"text: {numbers}, {text.size / 1e6:.1f} M characters")
    with console.status("training the tokenizer"):
        ids = tokens.tokenize(text, vocab_size=config.vocab_size)
    config = replace(config, vocab_size=ids.tokenizer.vocab_size)
    numbers = f"{len(ids.train):,} to train on, {len(ids.held_out):,} held out"
    console.print(f"tokens: {numbers}, {config.vocab_size} different")

    metrics_file = out.with_name(f"{out.name}.metrics.jsonl")
    with progress.bar() as show:
        outcome = trainer.train(
            config, settings, ids.train, ids.held_out, on_step=show, metrics_file=metrics_file
        )
    model = model_files.Model(config, outcome.params, ids.tokenizer)
    model_files.save(out, model)
    if outcome.stopped_by == "interrupt":
        console.print(f"interrupted after {outcome.num_steps} steps; what there is was saved")
    show_outcome(outcome)
    console.print(f"model: {out}\nmeasurements: {metrics_file}", soft_wrap=True)
    return Result(model, outcome)


def show_outcome(outcome: trainer.Outcome) -> None:
    """Losses before and after, beside what guessing by frequency would lose."""
    losses = (
        ("held-out loss before training", outcome.held_out_before),
        ("unigram entropy of the held-out text", outcome.unigram_entropy),
        ("held-out loss after training", outcome.held_out_after),
    )
    parameters = f"{step.num_parameters(outcome.params) / 1e6:.2f} M parameters"
    steps = f"{outcome.num_steps} steps of {outcome.num_tokens // max(outcome.num_steps, 1)} tokens"
    output.show_table(
        f"{parameters}, {steps}, {outcome.train_s:.0f} s, {outcome.tokens_per_s:,.0f} tokens/s",
        [(name, f"{value:.3f}", f"{math.exp(value):,.0f}") for name, value in losses],
        header=("", "nats per token", "perplexity"),
    )
