"""A run with everything shown: what `infini train` and `infini demo` share."""

from __future__ import annotations

import math
import os

from infini.cli import output, progress
from infini.core import comm, events
from infini.data import tokens
from infini.train import runs, step, trainer
from infini.train.configuration import Configuration


def run(configuration: Configuration, places: runs.Places, *, is_resumed: bool = False) -> runs.Result:
    """Train a model, and say what happens on standard error.

    Args:
        configuration: all options.
        places: where to keep what is written.
        is_resumed: go on from the newest checkpoint.

    Raises:
        InfiniError: as `runs.run`.
    """
    if not comm.speaks():
        return runs.run(configuration, places, is_resumed=is_resumed)
    with progress.listener(_show_data) as listener, events.listen(_say_at_once):
        result = runs.run(configuration, places, is_resumed=is_resumed, listener=listener)
    show_outcome(result.outcome)
    output.say(f"model: {places.model}\nmeasurements: {places.metrics}")
    return result


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


def _show_data(data: tokens.TokenizedCorpus) -> None:
    found = data.manifest
    documents = f"{found.num_train_documents:,} documents, {found.num_held_out_documents:,} held out"
    others = f", {data.num_binary} files that are no text passed by" if data.num_binary else ""
    ids = f"{found.num_train:,} tokens to train on, {found.num_held_out:,} held out"
    where = "found from an earlier run" if data.was_there else "made now"
    output.say(
        f"text: {documents}, {found.num_bytes / 1e6:.1f} MB{others}\n"
        f"tokens: {ids}, {data.tokenizer.vocab_size:,} different, {where}"
    )


def _say_at_once(event: events.Event) -> None:
    """Ctrl-C was heard: told at once, and past sys.stderr, which may be in the middle of a write."""
    if event.code == "interrupt-held-back":
        os.write(2, f"\n{event.message}\n".encode())
    elif event.code == "folder-recovered":
        output.say(event.message)
