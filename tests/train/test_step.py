"""One training step: the loss falls, and the state is donated."""

from __future__ import annotations

import functools
import warnings

import numpy as np

import infini as inf
from infini import random
from infini.train import gpt, step

CONFIG = gpt.Config(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
)
HYPER = step.Hyperparameters()
WINDOWS = (np.arange(4 * 9).reshape(4, 9) % 40).astype(np.int32)


def _state() -> step.State:
    return inf.jit(functools.partial(step.init_state, config=CONFIG, hyper=HYPER))(random.PRNGKey(0))


def test_loss_goes_down() -> None:
    run = inf.jit(functools.partial(step.step, config=CONFIG, hyper=HYPER))
    state, losses = _state(), []
    for _ in range(20):
        state, metrics = run(state, WINDOWS, np.float32(0.02))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_donated_state_is_given_up() -> None:
    run = inf.jit(functools.partial(step.step, config=CONFIG, hyper=HYPER), donate_argnums=0)
    before = _state()
    after, _ = run(before, WINDOWS, np.float32(0.01))
    assert before["params"]["embed_tokens"].is_deleted()
    assert not after["params"]["embed_tokens"].is_deleted()


def test_norms_do_not_decay() -> None:
    hyper = step.Hyperparameters(weight_decay=1e3, max_norm=1e-30)
    run = functools.partial(step.step, config=CONFIG, hyper=hyper)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        after, _ = inf.jit(run)(_state(), WINDOWS, np.float32(1e-3))
    np.testing.assert_allclose(after["params"]["norm"], 1.0, atol=0.01)
    assert np.abs(after["params"]["embed_tokens"]).max() < 0.01


def test_num_parameters_counts_elements() -> None:
    assert step.num_parameters({"a": np.zeros((2, 3)), "b": [np.zeros(4)]}) == 10
