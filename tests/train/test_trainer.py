"""The training loop: measurements, budgets, interruption, a loss that is not finite."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infini.core import errors, events
from infini.data import batches
from infini.train import checkpoints, gpt, programs, trainer

CONFIG = gpt.Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_length=32,
)
TOKENS = np.tile(np.arange(32, dtype=np.uint16), 40)


def _settings(**changes: object) -> trainer.Settings:
    defaults = {"batch_size": 4, "length": 16, "learning_rate": 0.02, "num_evaluation_windows": 6}
    return trainer.Settings(**defaults | changes)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_held_out_loss_falls_below_the_unigram_entropy() -> None:
    outcome = trainer.train(CONFIG, _settings(num_steps=40), TOKENS, TOKENS[:200])
    assert outcome.held_out_before == pytest.approx(math.log(32), abs=0.1)
    assert outcome.unigram_entropy == pytest.approx(math.log(32), abs=0.05)
    assert outcome.held_out_after < 0.5 * outcome.unigram_entropy
    assert outcome.stopped_by == "budget"


def test_equal_seeds_give_equal_runs() -> None:
    losses: list[list[float]] = [[], []]
    for run in losses:
        trainer.train(
            CONFIG,
            _settings(num_steps=3),
            TOKENS,
            TOKENS,
            on_step=lambda report, run=run: run.append(report.loss),
        )
    assert losses[0] == losses[1]


def test_metrics_hold_what_a_repetition_needs(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    settings = _settings(num_steps=3)
    trainer.train(CONFIG, settings, TOKENS, TOKENS, metrics_file=path)
    lines = _lines(path)
    assert [line["event"] for line in lines] == ["start", "step", "step", "step", "end"]
    assert gpt.Config(**lines[0]["config"]) == CONFIG
    assert lines[0]["settings"]["seed"] == settings.seed
    assert lines[1]["learning_rate"] == settings.learning_rate_at(0, 0.0)
    assert lines[-1]["num_steps"] == 3


def test_a_budget_of_time_ends_the_run() -> None:
    outcome = trainer.train(
        CONFIG, _settings(budget_s=0.05), TOKENS, TOKENS, on_step=lambda report: time.sleep(0.02)
    )
    assert 2 <= outcome.num_steps <= 4


def test_interrupt_ends_the_run_with_what_there_is(tmp_path: Path) -> None:
    def on_step(report: trainer.StepReport) -> None:
        if report.step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    path = tmp_path / "run.jsonl"
    outcome = trainer.train(
        CONFIG, _settings(num_steps=1000), TOKENS, TOKENS, on_step=on_step, metrics_file=path
    )
    assert outcome.stopped_by == "interrupt"
    assert outcome.num_steps == 3
    assert np.isfinite(outcome.params["embed_tokens"]).all()
    assert _lines(path)[-1]["stopped_by"] == "interrupt"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_polite_kill_ends_the_run_as_ctrl_c_does() -> None:
    def on_step(report: trainer.StepReport) -> None:
        if report.step == 1:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with events.record() as seen:
        outcome = trainer.train(CONFIG, _settings(num_steps=1000), TOKENS, TOKENS, on_step=on_step)
    assert (outcome.stopped_by, outcome.num_steps) == ("interrupt", 2)
    assert "interrupt-held-back" in [event.code for event in seen]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_is_not_held_back() -> None:
    def on_step(report: trainer.StepReport) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.train(CONFIG, _settings(num_steps=1000), TOKENS, TOKENS, on_step=on_step)


def test_training_works_outside_the_main_thread() -> None:
    outcomes: list[trainer.Outcome] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(trainer.train(CONFIG, _settings(num_steps=1), TOKENS, TOKENS))
    )
    thread.start()
    thread.join()
    assert outcomes[0].num_steps == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(trainer.NonFiniteLossError, match="training stopped at step") as caught:
        trainer.train(CONFIG, _settings(num_steps=50, learning_rate=1e30), TOKENS, TOKENS)
    assert "smaller learning rate" in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "quarter", "end"), [("cosine", 0.8682, 0.1), ("linear", 0.775, 0.1), ("constant", 1.0, 1.0)]
)
def test_learning_rate_rises_and_falls(schedule: str, quarter: float, end: float) -> None:
    settings = _settings(num_steps=100, learning_rate=1.0, warmup_steps=4, final_share=0.1, schedule=schedule)
    assert settings.learning_rate_at(0, 0.0) == 0.25
    assert settings.learning_rate_at(3, 0.0) == 1.0
    assert settings.learning_rate_at(25, 0.25) == pytest.approx(quarter, abs=1e-4)
    assert settings.learning_rate_at(100, 1.0) == pytest.approx(end)


def test_held_out_loss_is_measured_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    reports: list[trainer.StepReport] = []
    settings = _settings(num_steps=6, evaluate_every=2)
    trainer.train(CONFIG, settings, TOKENS, TOKENS, on_step=reports.append, metrics_file=path)
    assert [report.step for report in reports if report.held_out_loss is not None] == [1, 3]
    assert [line["step"] for line in _lines(path) if "held_out_loss" in line and "step" in line] == [1, 3]


def test_batches_come_in_the_order_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[batches.Batches] = []
    monkeypatch.setattr(batches.Batches, "__post_init__", lambda self: seen.append(self))
    trainer.train(CONFIG, _settings(num_steps=1, order="shuffled"), TOKENS, TOKENS)
    assert [found.order for found in seen] == ["shuffled"]


def test_given_parameters_are_the_start(tmp_path: Path) -> None:
    outcome = trainer.train(CONFIG, _settings(num_steps=40), TOKENS, TOKENS[:200])
    start = {"params": lambda: outcome.params, "checkpoints": checkpoints.Store(tmp_path)}
    # A run that was killed before its first checkpoint begins where it began.
    again = trainer.train(CONFIG, _settings(num_steps=1), TOKENS, TOKENS[:200], is_resumed=True, **start)
    assert again.held_out_before == pytest.approx(outcome.held_out_after)


@pytest.mark.parametrize("seed", [1, None])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, seed: int | None) -> None:
    store = checkpoints.Store(tmp_path)
    trainer.train(CONFIG, _settings(num_steps=1), TOKENS, TOKENS, checkpoints=store)
    changed = {"settings": _settings(num_steps=2, seed=seed or 0), "tokens": TOKENS if seed else TOKENS[:99]}
    with pytest.raises(
        errors.ValueMismatchError, match="seed changed" if seed else "not the one that the run saw"
    ):
        trainer.train(CONFIG, **changed, held_out=TOKENS, checkpoints=store, is_resumed=True)


def test_measurements_that_were_lost_are_missed(tmp_path: Path) -> None:
    store, path = checkpoints.Store(tmp_path / "checkpoints"), tmp_path / "run.jsonl"
    trainer.train(CONFIG, _settings(num_steps=1), TOKENS, TOKENS, checkpoints=store, metrics_file=path)
    path.unlink()
    with pytest.raises(errors.ValueMismatchError, match="lacks measurements"):
        trainer.train(
            CONFIG,
            _settings(num_steps=2),
            TOKENS,
            TOKENS,
            checkpoints=store,
            metrics_file=path,
            is_resumed=True,
        )


def test_mean_loss_counts_every_window_once() -> None:
    windows = np.arange(6)[:, None]
    assert programs.mean_loss(lambda params, part: part.mean(), {}, windows) == 2.5


@pytest.mark.parametrize("changes", [{}, {"num_steps": 1, "budget_s": 1.0}])
def test_settings_want_one_budget(changes: dict) -> None:
    with pytest.raises(errors.ValueMismatchError, match="either a number of steps or a time"):
        _settings(**changes)


def test_settings_refuse_what_is_not_positive() -> None:
    with pytest.raises(errors.ValueMismatchError, match="learning_rate must be positive"):
        _settings(num_steps=1, learning_rate=0.0)


@pytest.mark.parametrize("sizes", [{"max_length": 8}, {"head_dim": 7}, {"num_kv_heads": 3}])
def test_sizes_that_do_not_go_together_are_an_error(sizes: dict) -> None:
    with pytest.raises(errors.ValueMismatchError, match="do not go together"):
        trainer.train(replace(CONFIG, **sizes), _settings(num_steps=1), TOKENS, TOKENS)
