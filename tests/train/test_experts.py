"""Mixtures of experts: both forms are the same sum over chosen experts, capacities drop what comes late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import random
from infini.sharding import NamedSharding, P, make_mesh
from infini.train import experts, gpt

B, T, M, E, F, K = 2, 6, 8, 4, 5, 2
CONFIG = gpt.Config(
    vocab_size=61, hidden_size=32, intermediate_size=16, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, num_experts=E, experts_per_token=K,
)  # fmt: skip


@pytest.fixture
def weights(rng: np.random.Generator) -> experts.Params:
    shapes = {"gate_proj": (E, F, M), "up_proj": (E, F, M), "down_proj": (E, M, F)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((B, T, M)).astype(np.float32)


@pytest.fixture
def routing(rng: np.random.Generator, x: np.ndarray) -> experts.Routing:
    return experts.route(rng.standard_normal((E, M)).astype(np.float32), x, K)


def computed(weights: experts.Params, x: np.ndarray, routing: experts.Routing, num_places: int) -> np.ndarray:
    """The layer by loops over choices, first choices first."""
    found = np.zeros_like(x)
    for b in range(B):
        used = [0] * E
        for k in range(K):
            for t in range(T):
                e = int(routing.experts[b, t, k])
                used[e] += 1
                if used[e] <= num_places:
                    gate = weights["gate_proj"][e] @ x[b, t]
                    hidden = gate / (1 + np.exp(-gate)) * (weights["up_proj"][e] @ x[b, t])
                    found[b, t] += float(routing.weights[b, t, k]) * (weights["down_proj"][e] @ hidden)
    return found


def test_without_a_capacity_every_choice_counts(weights, x, routing) -> None:
    found = experts.dropless(weights, x, routing)
    np.testing.assert_allclose(found, computed(weights, x, routing, T), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_places", [1, 2, 3, T])
def test_a_capacity_drops_what_comes_late(weights, x, routing, num_places: int) -> None:
    found = experts.with_capacity(weights, x, routing, num_places)
    np.testing.assert_allclose(found, computed(weights, x, routing, num_places), rtol=1e-4, atol=1e-4)


def test_gradients_of_both_forms_are_equal_where_nothing_is_dropped(weights, x, routing) -> None:
    def loss(form):
        return inf.grad(lambda w, x: (form(w, x, routing) ** 2).sum(), argnums=(0, 1))(weights, x)

    one, other = loss(experts.dropless), loss(lambda *a: experts.with_capacity(*a, T))
    for a, b in zip(inf.tree.leaves(one), inf.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_weights_of_the_chosen_sum_to_one_unless_they_shall_not(x) -> None:
    router = np.eye(E, M, dtype=np.float32)
    np.testing.assert_allclose(experts.route(router, x, K).weights.sum(-1), 1, rtol=1e-6)
    assert (experts.route(router, x, K, is_normalized=False).weights.sum(-1) < 1).all()


def test_even_routing_has_the_least_balance_loss() -> None:
    even = experts.Routing(None, None, inp.full(E, K / E), inp.full(E, 1 / E))
    lazy = experts.Routing(None, None, inp.array([1.0, 1, 0, 0]), inp.array([0.5, 0.5, 0, 0]))
    assert float(experts.balance([even])) == pytest.approx(K)
    assert float(experts.balance([lazy])) == pytest.approx(2 * K)


@pytest.mark.parametrize(
    ("tokens", "factor", "places"), [(8, 1.0, 4), (8, 1.25, 5), (8, 100.0, 8), (1, 1.0, 1), (6, 0.1, 1)]
)
def test_capacities(tokens: int, factor: float, places: int) -> None:
    assert experts.capacity(tokens, E, K, factor) == places


def test_token_by_token_with_a_cache_gives_the_logits_of_the_whole() -> None:
    params = gpt.init(random.PRNGKey(0), CONFIG)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 5)).astype(np.int32)
    whole, cache = gpt.forward(params, tokens, CONFIG), gpt.init_cache(CONFIG, 2, 8)
    for position in range(5):
        step, cache = gpt.forward_cached(
            params, cache, tokens[:, position : position + 1], np.int32(position), CONFIG
        )
        np.testing.assert_allclose(step[:, 0], whole[:, position], atol=1e-5)


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    params = gpt.init(random.PRNGKey(0), CONFIG)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 5)).astype(np.int32)
    config = replace(CONFIG, capacity_factor=1.0)
    plain, again = (
        inf.grad(lambda p, c=c: gpt.loss(p, tokens, config, is_checkpointed=c))(params) for c in (False, True)
    )
    for a, b in zip(inf.tree.leaves(plain), inf.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_experts_over_devices_exchange_and_agree() -> None:
    """Sequences and experts are split over one axis: each layer hands rows over and takes them back."""
    config = replace(CONFIG, capacity_factor=1.25)
    params = gpt.init(random.PRNGKey(0), config)
    windows = np.random.default_rng(0).integers(0, 61, (4, 9)).astype(np.int32)
    loss = inf.jit(inf.value_and_grad(lambda p, w: gpt.loss(p, w, config)))
    value, gradients = loss(params, windows)
    with inf.config(device="reference", cpu_devices=4, check=1):
        mesh = make_mesh((4,), ("ep",))

        def place(path: tuple, leaf: inf.Array) -> inf.Array:
            return inf.device_put(
                np.asarray(leaf), NamedSharding(mesh, P("ep") if "experts" in str(path) else P())
            )

        placed = inf.tree.map_with_path(place, params)
        there = inf.device_put(windows, NamedSharding(mesh, P("ep")))
        own, split = loss(placed, there)
        assert float(own) == pytest.approx(float(value), rel=1e-6)
        for a, b in zip(inf.tree.leaves(split), inf.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(np.asarray(b)).max())))
