"""Runs whose model is cut into stages of a pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import random, tree
from infini.core import errors
from infini.train import checkpoints, configuration, gpt, options, stages, team, trainer
from infini.train.step import Computation

CONFIG = gpt.Config(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=2, num_kv_heads=2,
    head_dim=8, tie_embeddings=True,
)  # fmt: skip
EXPERTS = replace(CONFIG, num_experts=2, capacity_factor=1.5, tie_embeddings=False)
TOKENS = np.tile(np.arange(32, dtype=np.uint16), 40)


def run(
    num_devices: int,
    config: gpt.Config = CONFIG,
    layout: team.Layout = team.Layout(),
    parts: int = 1,
    num_steps: int = 3,
    how: Computation = Computation(),
    **given: Any,
) -> tuple[list[float], trainer.Outcome]:
    """Losses and norms of each step, held-out losses, and the outcome. There are six windows to measure on."""
    settings = trainer.Settings(
        num_steps=num_steps, length=16, batch_size=8, layout=layout, num_evaluation_windows=6,
        evaluate_every=2, computation=replace(how, num_parts=parts),
    )  # fmt: skip
    found: list[float] = []

    def note(report: trainer.StepReport) -> None:
        found.extend([report.loss, report.gradient_norm])
        if report.held_out_loss is not None:
            found.append(report.held_out_loss)

    with inf.config(cpu_devices=num_devices):
        outcome = trainer.train(config, settings, TOKENS, TOKENS, on_step=note, **given)
    return [outcome.held_out_before, *found, outcome.held_out_after], outcome


# Devices, the layout, and the parts of a step with which one device computes the same.
CASES = {
    "1f1b, tied": (2, CONFIG, team.Layout(pp=2, microbatches=4), 4),
    "gpipe": (4, replace(CONFIG, tie_embeddings=False), team.Layout(pp=4, schedule="gpipe"), 8),
    "interleaved x zero 1, tied": (4, CONFIG, team.Layout(pp=2, schedule="interleaved", zero=1), 4),
    "data x tensor, experts": (8, EXPERTS, team.Layout(pp=2, tp=2, microbatches=2), 2),
    "experts": (4, EXPERTS, team.Layout(pp=2, ep=2), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_trains_as_one_device_does(name: str) -> None:
    num_devices, config, layout, parts = CASES[name]
    found, outcome = run(num_devices, config, layout)
    wanted, alone = run(1, config, parts=parts)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for a, b in zip(tree.leaves(outcome.params), tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_parts_of_a_step_are_the_microbatches() -> None:
    layout = team.Layout(pp=2)
    np.testing.assert_allclose(run(2, EXPERTS, layout, parts=2)[0], run(1, EXPERTS, parts=2)[0], rtol=1e-4)
