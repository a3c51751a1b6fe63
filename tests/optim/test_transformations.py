"""Gradient transformations against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import optim

PARAMS = {"w": inp.array([[1.0, -2.0], [0.5, 4.0]]), "b": inp.array([1.0, 2.0])}
GRADIENTS = {"w": inp.array([[3.0, 0.0], [0.0, 0.0]]), "b": inp.array([0.0, 4.0])}


def test_global_norm_is_that_of_all_leaves() -> None:
    assert float(optim.global_norm(GRADIENTS)) == pytest.approx(5.0)


@pytest.mark.parametrize(("max_norm", "factor"), [(1.0, 0.2), (10.0, 1.0)])
def test_clip_by_global_norm_only_shrinks(max_norm: float, factor: float) -> None:
    clip = optim.clip_by_global_norm(max_norm)
    updates, _ = clip.update(GRADIENTS, clip.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["b"], [0.0, 4.0 * factor], rtol=1e-6)


def test_clip_of_zero_is_zero() -> None:
    zero = {"b": inp.zeros(2)}
    updates, _ = optim.clip_by_global_norm(1.0).update(zero, (), zero)
    np.testing.assert_array_equal(updates["b"], [0.0, 0.0])


def test_adamw_follows_its_definition() -> None:
    rate, b1, b2, eps, decay = 0.1, 0.8, 0.9, 1e-8, 0.01
    optimizer = optim.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay)
    rng = np.random.default_rng(0)
    expected = rng.normal(size=5)
    params = {"w": inp.asarray(expected, dtype="float32")}
    state = optimizer.init(params)
    mean = square = np.zeros(5)
    for count in range(1, 6):
        gradient = rng.normal(size=5)
        updates, state = optimizer.update({"w": inp.asarray(gradient, dtype="float32")}, state, params)
        params = optim.apply_updates(params, updates)
        mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient**2
        step = (mean / (1 - b1**count)) / (np.sqrt(square / (1 - b2**count)) + eps)
        expected = expected - rate * (step + decay * expected)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-6)


def test_mask_chooses_what_decays() -> None:
    decay = optim.add_decayed_weights(0.5, mask=lambda params: {"w": True, "b": False})
    updates, _ = decay.update(GRADIENTS, decay.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], [[3.5, -1.0], [0.25, 2.0]])
    np.testing.assert_allclose(updates["b"], GRADIENTS["b"])


def test_chain_applies_in_order() -> None:
    chained = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(10.0))
    updates, _ = chained.update(GRADIENTS, chained.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["b"], [0.0, -8.0], rtol=1e-6)


def test_schedule_sees_the_number_of_the_update() -> None:
    optimizer = optim.sgd(optim.linear_schedule(1.0, 0.0, 2))
    state = optimizer.init(PARAMS)
    steps = []
    for _ in range(3):
        updates, state = optimizer.update(GRADIENTS, state, PARAMS)
        steps.append(float(updates["b"][1]))
    assert steps == [-4.0, -2.0, 0.0]


def test_a_traced_learning_rate_needs_no_new_trace() -> None:
    traces = []

    @inf.jit
    def update(rate: inf.Array) -> inf.Array:
        traces.append(rate)
        return optim.adamw(rate).update(GRADIENTS, optim.adamw(0.0).init(PARAMS), PARAMS)[0]["b"]

    np.testing.assert_allclose(update(2.0), 2 * np.asarray(update(1.0)), rtol=1e-6)
    assert len(traces) == 1


def test_moments_of_bfloat16_parameters_are_float32() -> None:
    params = {"w": inp.ones(2, "bfloat16")}
    optimizer = optim.adam(0.1)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert state[0].mu["w"].dtype == inp.float32
    assert optim.apply_updates(params, updates)["w"].dtype == inp.bfloat16
