"""The model, its optimizer and its training step run on JAX with their imports changed, and lose the same."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import infini as inf
import infini.random as inf_random
from infini import optim
from infini.data import batches
from infini.perf import jax_twin
from infini.train import gpt, step

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_length": 64,
}
# Real text is at hand: the bytes of this file.
TOKENS = np.frombuffer(Path(__file__).read_bytes(), np.uint8)


def _losses(
    root: ModuleType, random: ModuleType, own_gpt: ModuleType, own_step: ModuleType, **changes: Any
) -> list[float]:
    """Losses of 20 steps with donated state, from the same parameters on either side."""
    config = own_gpt.Config(**SIZES | changes)
    options = {"config": config, "hyper": own_step.Hyperparameters()}
    state = root.jit(functools.partial(own_step.init_state, **options))(random.PRNGKey(7))
    run = root.jit(functools.partial(own_step.step, **options), donate_argnums=0)
    losses = []
    for number in range(20):
        windows = batches.random_windows(TOKENS, batch_size=4, length=32, seed=0, step=number)
        state, metrics = run(state, windows, np.float32(3e-3))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("changes", [{"tie_embeddings": True}, {"tie_embeddings": False, "num_kv_heads": 4}])
def test_losses_of_twenty_steps_are_those_of_jax(changes: dict[str, Any]) -> None:
    twin_gpt, twin_step = jax_twin.load("train.gpt"), jax_twin.load("train.step")
    expected = _losses(jax, jax.random, twin_gpt, twin_step, **changes)
    found = _losses(inf, inf_random, gpt, step, **changes)
    assert expected[-1] < expected[0] - 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_initial_parameters_are_those_of_jax() -> None:
    twin_gpt = jax_twin.load("train.gpt")
    found = inf.tree.leaves(gpt.init(inf_random.PRNGKey(3), gpt.Config(**SIZES)))
    expected = jax.tree.leaves(twin_gpt.init(jax.random.PRNGKey(3), twin_gpt.Config(**SIZES)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-8)


def test_cached_steps_are_those_of_jax() -> None:
    twin_gpt = jax_twin.load("train.gpt")
    twin_config, config = twin_gpt.Config(**SIZES), gpt.Config(**SIZES)
    params = twin_gpt.init(jax.random.PRNGKey(3), twin_config)
    tokens = TOKENS[None, :6].astype(np.int32)
    expected, cache = twin_gpt.forward_cached(
        params, twin_gpt.init_cache(twin_config, 1, 16), tokens, 0, twin_config
    )
    host = jax.tree.map(np.asarray, params)
    found, own_cache = gpt.forward_cached(host, gpt.init_cache(config, 1, 16), tokens, 0, config)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(own_cache[1]["key"], cache[1]["key"], atol=1e-5)


def test_schedules_are_those_on_jax() -> None:
    twin = jax_twin.load("optim")
    arguments = (0.0, 1e-3, 10, 100, 1e-4)
    ours = optim.warmup_cosine_decay_schedule(*arguments)
    theirs = twin.warmup_cosine_decay_schedule(*arguments)
    for count in (0, 3, 10, 57, 100, 200):
        np.testing.assert_allclose(ours(count), theirs(count), rtol=1e-6)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import infini as inf", "import jax as inf"),
        ("import infini.numpy as inp", "import jax.numpy as inp"),
        (
            "from infini import Array, optim, tree",
            "from jax import Array, tree; from infini_on_jax import optim",
        ),
        ("from infini.train import gpt", "from infini_on_jax.train import gpt"),
        ("    infini = 1", "    infini = 1"),
    ],
)
def test_only_imports_are_rewritten(line: str, expected: str) -> None:
    assert jax_twin.rewritten(line) == expected
