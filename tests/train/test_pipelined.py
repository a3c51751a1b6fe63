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
from infini.parallel import checkpoints as store
from infini.train import (
    checkpoints,
    configuration,
    gpt,
    model_files,
    options,
    programs,
    runs,
    stages,
    step,
    team,
    trainer,
)
from infini.train.step import PLAIN, Computation

CONFIG = gpt.Config(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2,
    head_dim=8, tie_embeddings=True,
)  # fmt: skip
EXPERTS = replace(CONFIG, num_experts=2, capacity_factor=1.5, tie_embeddings=False)
DEEP = replace(CONFIG, num_layers=4)
TOKENS = np.tile(np.arange(32, dtype=np.uint16), 40)


def run(
    num_devices: int,
    config: gpt.Config = CONFIG,
    layout: team.Layout = team.Layout(),  # noqa: B008  # immutable
    parts: int = 1,
    num_steps: int = 3,
    how: Computation = PLAIN,
    **given: Any,
) -> tuple[list[float], trainer.Outcome]:
    """Losses, norms and held-out losses of all steps, and the outcome; six windows are held out."""
    settings = trainer.Settings(
        num_steps=num_steps, length=16, batch_size=8, layout=layout, num_evaluation_windows=6,
        evaluate_every=2, computation=replace(how, num_parts=parts), schedule="constant", warmup_steps=4,
    )  # fmt: skip
    found: list[float] = []

    def note(report: trainer.StepReport) -> None:
        found.extend([report.loss, report.gradient_norm])
        if report.held_out_loss is not None:
            found.append(report.held_out_loss)

    with inf.config(device="reference", cpu_devices=num_devices):
        outcome = trainer.train(config, settings, TOKENS, TOKENS, on_step=note, **given)
    return found, outcome


# Devices, the layout, and the parts of a step with which one device computes the same.
CASES = {
    "1f1b, tied": (2, CONFIG, team.Layout(pp=2, microbatches=4), 1),
    "gpipe, bfloat16": (2, replace(CONFIG, tie_embeddings=False), team.Layout(pp=2, schedule="gpipe"), 8),
    "interleaved x zero 1, tied": (4, DEEP, team.Layout(pp=2, schedule="interleaved", zero=1), 1),
    "data x tensor, experts": (8, EXPERTS, team.Layout(pp=2, tp=2, microbatches=2), 2),
    "split experts": (4, EXPERTS, team.Layout(pp=2, ep=2), 4),
    "context": (4, CONFIG, team.Layout(pp=2, cp=2, attention="ring", microbatches=4), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_trains_as_one_device_does(name: str) -> None:
    num_devices, config, layout, parts = CASES[name]
    is_small = "bfloat16" in name
    how = Computation("bfloat16", is_checkpointed=True) if is_small else PLAIN
    found, outcome = run(num_devices, config, layout, how=how)
    wanted, alone = run(1, config, parts=parts, how=how)
    found += [outcome.held_out_before, outcome.held_out_after]
    wanted += [alone.held_out_before, alone.held_out_after]
    np.testing.assert_allclose(found, wanted, rtol=2e-2 if is_small else 1e-5)
    assert tree.structure(outcome.params) == tree.structure(alone.params)
    for a, b in zip(tree.leaves(outcome.params), tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3 if is_small else 1e-5)


def test_parts_of_a_step_are_the_microbatches() -> None:
    found, _ = run(2, EXPERTS, team.Layout(pp=2), parts=2, num_steps=1)
    np.testing.assert_allclose(found, run(1, EXPERTS, parts=2, num_steps=1)[0], rtol=1e-5)


def test_a_run_goes_on_with_other_stages_and_without(tmp_path: Path) -> None:
    """What a pipeline left, with a table that two stages have, every other layout goes on with."""
    layouts = [
        (2, team.Layout(pp=2)),
        (2, team.Layout(dp=1, tp=2)),
        (4, team.Layout(pp=2, dp=2, zero=3, schedule="interleaved")),
        (1, team.Layout()),
    ]
    kept, found = checkpoints.Store(tmp_path), []
    for number, (num_devices, layout) in enumerate(layouts):
        given = {"num_steps": number + 1, "checkpoints": kept, "is_resumed": number > 0}
        reported, outcome = run(num_devices, DEEP, layout, **given)
        assert outcome.num_steps == number + 1
        found += reported[:2]
    wanted = run(1, DEEP, num_steps=4, **{"checkpoints": checkpoints.Store(tmp_path / "whole")})[0]
    del wanted[4]  # the loss on held-out text after two steps
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_stages_at_one_place_have_memory_of_their_own(tmp_path: Path) -> None:
    """What several stages have is read once, and each of them donates it."""
    layout = team.Layout(pp=2, schedule="interleaved")
    settings = trainer.Settings(num_steps=1, batch_size=8, layout=layout)
    with inf.config(device="cpu", cpu_devices=2):
        made = programs.of(DEEP, settings, team.find(layout))
        values = tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made.types())
        saved = store.save(tmp_path, values, 0).wait()
        state = made.loaded(store.load(saved, made.types()))
    buffers = [id(buffer) for leaf in tree.leaves(state) for buffer in leaf.buffers]
    assert len(set(buffers)) == len(buffers)


def test_a_run_starts_from_given_parameters() -> None:
    with inf.config(device="reference"):
        given = tree.map(np.asarray, gpt.init(random.PRNGKey(7), CONFIG))
    options_ = {"params": lambda: given, "num_steps": 1}
    found = run(2, CONFIG, team.Layout(pp=2), **options_)[0]
    np.testing.assert_allclose(found, run(1, CONFIG, **options_)[0], rtol=1e-5)


# --- how the model is cut -----------------------------------------------------------------------------


def test_parts_of_a_state_join_to_the_state() -> None:
    with inf.config(device="reference"):
        state = step.init_state(random.PRNGKey(0), DEEP, step.Hyperparameters())
    cut = stages.cut(DEEP, 2)
    parts = cut.split(state)
    assert [sorted(part["params"]) for part in parts] == [
        ["embed_tokens", "layers"],
        ["embed_tokens", "layers", "norm"],
    ]
    joined = cut.join(parts)
    assert tree.structure(joined) == tree.structure(state)
    assert all(a is b for a, b in zip(tree.leaves(joined), tree.leaves(state), strict=True))


def test_the_numbers_of_blocks_with_a_window_are_those_of_the_model() -> None:
    config = replace(DEEP, sliding_window=3, full_layers=(1, 2))
    with inf.config(device="reference"):
        params = gpt.init(random.PRNGKey(0), config)
        cut = stages.cut(config, 4)
        windows = TOKENS[:34].reshape(2, 17).astype(np.int32)
        found = windows[:, :-1]
        for function, part in zip(cut.functions(), cut.split(params), strict=True):
            found = function(part, found)
        np.testing.assert_allclose(
            cut.loss(found, windows[:, 1:]), gpt.loss(params, windows, config), rtol=1e-6
        )


# --- what does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "parts", "message"),
    [
        ({"pp": 3}, 1, r"stages of the pipeline do not divide the blocks[^$]*2 blocks for 3 stages"),
        ({"pp": 2, "schedule": "interleaved"}, 1, r"2 blocks for 4 stages"),
        ({"pp": 2, "virtual_stages": 2}, 1, r"2 blocks for 4 stages"),
        (
            {"pp": 1, "microbatches": 2},
            1,
            r"mesh.microbatches is for a pipeline[^$]*leave mesh.microbatches out",
        ),
        (
            {"pp": 2, "microbatches": 3},
            1,
            r"8 sequences in 3 microbatches[^$]*one of 1, 2, 4, 8 microbatches",
        ),
        (
            {"pp": 2, "dp": 4, "microbatches": 4},
            1,
            r"4 microbatches, each for 4 groups of devices[^$]*one of 1, 2 microb",
        ),
        ({"pp": 2, "dp": 16}, 1, r"expected: a multiple of 16 sequences"),
        ({"pp": 2, "microbatches": 4}, 2, r"run.accumulate = 2, mesh.microbatches = 4"),
    ],
)
def test_a_pipeline_that_does_not_fit(layout: dict[str, Any], parts: int, message: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=message):
        run(1, CONFIG, team.Layout(**layout), parts)


def test_1f1b_has_one_stage_at_each_place() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r'virtual_stages = 2[^$]*"interleaved"'):
        run(1, DEEP, team.Layout(pp=2, virtual_stages=2))


def test_interleaved_microbatches_go_round_in_groups() -> None:
    layout = team.Layout(pp=2, schedule="interleaved", microbatches=1)
    with pytest.raises(errors.ValueMismatchError, match=r"2 of which go round at a time[^$]*one of 2, 4, 8"):
        run(1, DEEP, layout)


@pytest.mark.parametrize(
    ("layout", "batch_size", "num_groups", "count"),
    [
        ({"pp": 2}, 64, 1, 8),
        ({"pp": 2}, 6, 1, 6),
        ({"pp": 2}, 24, 4, 6),
        ({"pp": 4, "schedule": "interleaved"}, 24, 2, 12),
        ({"pp": 2}, 11, 1, 1),
    ],
)
def test_microbatches_keep_places_from_waiting(
    layout: dict[str, Any], batch_size: int, num_groups: int, count: int
) -> None:
    assert team.Layout(**layout).num_microbatches(1, batch_size, num_groups) == count


def test_options_of_a_pipeline() -> None:
    given = ["mesh.pp=2", "mesh.schedule=interleaved", "mesh.microbatches=4", "mesh.virtual_stages=2"]
    chosen = options.override(configuration.Configuration(), given)
    wanted = team.Layout(pp=2, schedule="interleaved", microbatches=4, virtual_stages=2)
    assert chosen.settings().layout == wanted
    before = configuration.Configuration()
    assert configuration.check_resume(before, chosen) == []


def test_other_microbatches_are_another_run_for_experts() -> None:
    before = options.override(configuration.Configuration(), ["model.num_experts=4"])
    notes = configuration.check_resume(before, options.override(before, ["mesh.pp=2"]))
    assert len(notes) == 1 and "experts" in notes[0]
    both = ["model.num_experts=4", "run.accumulate=4"]
    before = options.override(configuration.Configuration(), both)
    assert configuration.check_resume(before, options.override(before, ["mesh.pp=2"])) == []


# --- over processes -----------------------------------------------------------------------------------

CONFIGURATION = """
[model]
vocab_size = 270
hidden_size = 16
intermediate_size = 24
num_layers = 2
num_heads = 2
num_kv_heads = 2
tie_embeddings = true
[data]
paths = ["{folder}/text.py"]
cache = "{folder}/cache"
[schedule]
kind = "constant"
[run]
batch_size = 8
length = 16
checkpoint_every = 1
[mesh]
pp = 2
schedule = "gpipe"
microbatches = 4
"""


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
def test_processes_of_mpirun_are_stages_and_then_parts(tmp_path: Path, mpirun_path: str) -> None:
    (tmp_path / "text.py").write_text("def function(x): return x + 1\n" * 60)
    (tmp_path / "run.toml").write_text(CONFIGURATION.format(folder=tmp_path))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    environment |= {
        "INFINI_DEVICE": "reference",
        "INFINI_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }

    def train(*given: str) -> None:
        start = [mpirun_path, "-n", "2", sys.executable, "-m", "infini", "train"]
        command = [*start, "--out", str(tmp_path / "run"), *given]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    train("--config", str(tmp_path / "run.toml"), "--steps", "2")
    train("--resume", "--steps", "3", "--mesh", "pp=1,tp=2,microbatches=none")
    alone = options.override(
        configuration.read(tmp_path / "run.toml"), ["mesh.pp=1", "mesh.microbatches=none", "run.steps=3"]
    )
    with inf.config(device="reference"):
        runs.run(alone, runs.Places.of_run(tmp_path / "alone"))

    def measured(name: str) -> list[list[float]]:
        text = (tmp_path / name / "metrics.jsonl").read_text()
        lines = [line for line in map(json.loads, text.splitlines()) if line["event"] == "step"]
        return [[line["step"], line["loss"], line["gradient_norm"]] for line in lines]

    np.testing.assert_allclose(measured("run"), measured("alone"), rtol=1e-5)
    trained, wanted = (model_files.load(tmp_path / name / "model") for name in ("run", "alone"))
    for a, b in zip(tree.leaves(trained.params), tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
