"""A run of `infini train` repeated in JAX gives the same curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from infini.core import errors
from infini.data import tokens
from infini.perf import replay
from infini.train import gpt, trainer

CONFIG = gpt.Config(
    vocab_size=280,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.metrics.jsonl"
    found = tokens.read([Path(__file__)], vocab_size=280)
    settings = trainer.Settings(num_steps=30, batch_size=2, length=16, warmup_steps=5)
    trainer.train(CONFIG, settings, found.train, found.held_out, metrics_file=path)
    return path


def test_curves_agree(run: Path) -> None:
    found = replay.replay(run, [Path(__file__)])
    assert found["num_steps"] == 30
    assert found["curve_difference"] < 1e-3
    assert found["held_out_difference"] < 1e-3


def test_jax_from_disturbed_parameters_is_compared_with_jax(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "NOISE", 1e-4)  # a model this small keeps the losses of a run of six steps
    found = replay.replay(run, [Path(__file__)], max_steps=6, num_disturbed=2)
    gaps = [found[f"disturbed_{n}_step_difference"] for n in (1, 2)]
    assert all(0 < gap < 1e-2 for gap in gaps)
    assert gaps[0] != gaps[1]


def test_other_text_is_an_error(run: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="not the one that the run saw"):
        replay.replay(run, [Path(replay.__file__)])


def test_a_file_without_a_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(errors.ValueMismatchError, match="holds no run"):
        replay.replay(tmp_path / "empty.jsonl")
