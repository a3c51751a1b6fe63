"""One training step: the loss falls, and the state is donated."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import numpy as np
import pytest

import infini as inf
from infini import random
from infini.train import gpt, step

CONFIG = gpt.Config(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
)
HYPER = step.Hyperparameters()
WINDOWS = (np.arange(4 * 9).reshape(4, 9) % 40).astype(np.int32)


def _state(hyper: step.Hyperparameters = HYPER) -> step.State:
    return inf.jit(functools.partial(step.init_state, config=CONFIG, hyper=hyper))(random.PRNGKey(0))


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


def _one_step(computation: step.Computation, hyper: step.Hyperparameters = HYPER) -> tuple[step.State, dict]:
    run = functools.partial(step.step, config=CONFIG, hyper=hyper, computation=computation)
    return inf.jit(run, donate_argnums=0, donation="require")(_state(hyper), WINDOWS, np.float32(0.01))


def _assert_close(found: step.State, expected: step.State, atol: float) -> None:
    for ours, theirs in zip(inf.tree.leaves(found), inf.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=atol)


@pytest.mark.parametrize(
    "computation", [step.Computation(num_parts=2), step.Computation(num_parts=4, is_checkpointed=True)]
)
def test_a_step_in_parts_and_computed_twice_is_the_same_step(computation: step.Computation) -> None:
    state, metrics = _one_step(computation)
    expected, expected_metrics = _one_step(step.PLAIN)
    _assert_close(state, expected, atol=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-5)


def test_checkpointed_blocks_keep_less() -> None:
    config = replace(CONFIG, num_layers=4)

    def peak(is_checkpointed: bool) -> int:
        how = step.Computation(is_checkpointed=is_checkpointed)
        run = inf.jit(
            functools.partial(step.step, config=config, hyper=HYPER, computation=how), donate_argnums=0
        )
        state = inf.jit(functools.partial(step.init_state, config=config, hyper=HYPER))(random.PRNGKey(0))
        windows = np.zeros((8, 33), np.int32)
        lowered = run.lower(state, windows, np.float32(0.1)).compile()
        return lowered.memory_analysis()["temp bytes"]

    assert peak(True) < 0.7 * peak(False)


def test_bfloat16_is_computed_in_and_kept_nowhere() -> None:
    state, metrics = _one_step(step.Computation(dtype="bfloat16"))
    expected, expected_metrics = _one_step(step.PLAIN)
    assert float(metrics["loss"]) != float(expected_metrics["loss"])
    assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-2)
    assert {str(leaf.dtype) for leaf in inf.tree.leaves(state)} == {"float32", "int32"}
    params, expected_params = state["params"], expected["params"]
    # A first step of Adam moves by the learning rate, in the direction of the gradient's sign.
    same = [
        np.mean(np.abs(np.asarray(a) - np.asarray(b)) < 1e-3)
        for a, b in zip(inf.tree.leaves(params), inf.tree.leaves(expected_params), strict=True)
    ]
    assert min(same) > 0.8


def test_bfloat16_losses_follow_those_of_float32() -> None:
    losses: dict[str, list[float]] = {}
    for dtype in ("float32", "bfloat16"):
        how = step.Computation(dtype=dtype)
        run = inf.jit(
            functools.partial(step.step, config=CONFIG, hyper=HYPER, computation=how), donate_argnums=0
        )
        state, losses[dtype] = _state(), []
        for _ in range(20):
            state, metrics = run(state, WINDOWS, np.float32(0.02))
            losses[dtype].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


def test_embeddings_may_be_kept_from_decaying() -> None:
    changes = {"weight_decay": 10.0, "max_norm": 1e-30}
    for decay_embeddings in (True, False):
        state, _ = _one_step(step.PLAIN, step.Hyperparameters(**changes, decay_embeddings=decay_embeddings))
        before = _state()["params"]
        table = np.abs(np.asarray(state["params"]["embed_tokens"]) / np.asarray(before["embed_tokens"]))
        inner = np.abs(
            np.asarray(state["params"]["layers"][0]["mlp"]["up_proj"])
            / np.asarray(before["layers"][0]["mlp"]["up_proj"])
        )
        assert np.median(inner) == pytest.approx(0.9, abs=0.01)
        assert np.median(table) == pytest.approx(0.9 if decay_embeddings else 1.0, abs=0.01)


def test_gradients_may_go_unclipped() -> None:
    state, _ = _one_step(step.PLAIN, step.Hyperparameters(max_norm=None))
    clipped, _ = _one_step(step.PLAIN, step.Hyperparameters(max_norm=1e9))
    _assert_close(state, clipped, atol=0.0)
