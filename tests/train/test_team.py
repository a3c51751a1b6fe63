"""A run that several devices or processes share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import infini as inf
from infini.core import errors, events
from infini.testing import count_collectives
from infini.train import checkpoints, gpt, team, trainer
from infini.train.step import Computation
from tests.parallel import jobs

CONFIG = gpt.Config(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
)
TOKENS = np.tile(np.arange(32, dtype=np.uint16), 40)


def _losses(num_devices: int, config: gpt.Config = CONFIG, **changes: object) -> list[float]:
    settings = trainer.Settings(num_steps=4, length=16, **{"batch_size": 4} | changes)
    losses: list[float] = []
    with inf.config(cpu_devices=num_devices):
        outcome = trainer.train(
            config, settings, TOKENS, TOKENS, on_step=lambda report: losses.append(report.loss)
        )
    return [*losses, outcome.held_out_after]


@pytest.mark.parametrize(("num_parts", "zero"), [(1, 0), (2, 0), (2, 1), (2, 2)])
def test_losses_on_two_devices_are_those_on_one(num_parts: int, zero: int) -> None:
    how = Computation(num_parts=num_parts)
    found = _losses(2, computation=how, layout=team.Layout(zero=zero))
    np.testing.assert_allclose(found, _losses(1, computation=how), rtol=1e-3)


@pytest.mark.parametrize(("zero", "times"), [(1, 1), (2, 2)])
def test_sums_of_gradients_are_scattered_once_or_in_every_part(zero: int, times: int) -> None:
    with count_collectives() as counts:
        _losses(2, computation=Computation(num_parts=2), layout=team.Layout(zero=zero))
    assert counts["psum_scatter", ("dp",)].calls == 4 * times  # steps; all gradients in one message


WIDE = replace(
    CONFIG, vocab_size=64, num_heads=4, num_kv_heads=4, head_dim=4, num_experts=4, capacity_factor=1.5
)
LAYOUTS = {
    "tensor": team.Layout(dp=1, tp=4),
    "data x tensor": team.Layout(tp=2),
    "sequence": team.Layout(tp=2, sequence=True),
    "zero 1": team.Layout(zero=1),
    "zero 3 x tensor": team.Layout(tp=2, zero=3),
    "experts x data": team.Layout(ep=2, dispatch="all_to_all"),
    "experts gathered x data": team.Layout(ep=2),
    "context x data": team.Layout(cp=2, attention="ring"),
    "context x tensor": team.Layout(cp=2, tp=2, attention="all_to_all"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_under_every_layout_are_those_of_one_device(name: str) -> None:
    found = _losses(4, config=WIDE, layout=LAYOUTS[name])
    np.testing.assert_allclose(found, _losses(1, config=WIDE), rtol=1e-3)


def test_a_layout_has_as_many_devices_as_there_are() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"dp = 1, ep = 1, cp = 1, tp = 3[^$]*product is 4"):
        _losses(4, layout=team.Layout(tp=3))
    with pytest.raises(errors.ValueMismatchError, match=r"mpirun -n"):
        _losses(1, layout=team.Layout(dp=2))


def test_a_run_goes_on_under_another_layout(tmp_path: Path) -> None:
    """What four devices left in parts, two go on with, as if nothing had been."""

    def losses(num_steps: int, num_devices: int, layout: team.Layout, **options: object) -> list[float]:
        found: list[float] = []
        with inf.config(cpu_devices=num_devices):
            trainer.train(
                CONFIG, trainer.Settings(num_steps=num_steps, length=16, layout=layout), TOKENS, TOKENS,
                on_step=lambda report: found.append(report.loss), **options,
            )  # fmt: skip
        return found

    whole = losses(5, 1, team.Layout())
    store = checkpoints.Store(tmp_path)
    first = losses(3, 4, team.Layout(tp=2, zero=3), checkpoints=store)
    rest = losses(5, 2, team.Layout(dp=1, tp=2), checkpoints=store, is_resumed=True)
    np.testing.assert_allclose([*first, *rest], whole, rtol=1e-3)


def test_devices_must_divide_the_batch() -> None:
    with pytest.raises(errors.ValueMismatchError, match="devices do not divide the batch"):
        _losses(2, batch_size=3)


@pytest.mark.parametrize(
    ("num_experts", "got"), [(0, "no experts over ep = 2"), (3, "3 experts over ep = 2")]
)
def test_devices_must_divide_the_experts(num_experts: int, got: str) -> None:
    config = replace(WIDE, num_experts=num_experts)
    with pytest.raises(errors.ValueMismatchError, match=got):
        _losses(4, config=config, layout=team.Layout(ep=2))


def test_devices_must_divide_the_sequences() -> None:
    with pytest.raises(errors.ValueMismatchError, match="16 tokens in 3 parts"):
        _losses(3, layout=team.Layout(cp=3))


def test_one_device_is_a_team_without_a_mesh() -> None:
    alone = team.find()
    assert alone == team.Team() and alone.is_first and alone.num_parts == 1
    assert alone.agree(1.0, 2.0) == (1.0, 2.0)


CONFIGURATION = """
[model]
vocab_size = 270
hidden_size = 16
intermediate_size = 24
num_layers = 1
num_heads = 2
num_kv_heads = 1
[data]
paths = ["{folder}/text.py"]
cache = "{folder}/cache"
[run]
length = 16
checkpoint_every = 2
"""


@pytest.mark.multi
def test_processes_of_mpirun_share_a_run_and_resume_it(tmp_path: Path, mpirun_path: str) -> None:
    (tmp_path / "text.py").write_text("def function(x): return x + 1\n" * 60)
    (tmp_path / "run.toml").write_text(CONFIGURATION.format(folder=tmp_path))

    def train(*options: str) -> str:
        command = ("-m", "infini", "train", "--out", str(tmp_path / "run"), *options)
        done = jobs.run(mpirun_path, 2, *command, INFINI_DEVICE=None)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    said = train("--config", str(tmp_path / "run.toml"), "--steps", "3")
    assert said.count("to train on") == 1  # the first process speaks for all
    train("--resume", "--steps", "5", "--mesh", "tp=2")  # other parts of the same state
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 0, 1, 2, 3, 4, None]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (team.Layout(sequence=True), "mesh.sequence = True does nothing: it is about mesh.tp"),
        (team.Layout(attention="ring", dp=2), "mesh.attention = ring does nothing: it is about mesh.cp"),
        (team.Layout(schedule="gpipe"), "mesh.schedule = gpipe does nothing: it is about mesh.pp"),
        (team.Layout(tp=2, sequence=True), ""),
    ],
)
def test_options_that_do_nothing_are_said(layout: team.Layout, words: str) -> None:
    with events.record() as seen:
        layout.check(2, 1, 8)
    found = [event.message for event in seen if event.code == "mesh-option-unused"]
    assert len(found) == bool(words) and all(words in message for message in found)
