"""Rotary embeddings against their definitions, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import infini.numpy as inp
from infini.llm.models import rope

PLAIN = {"max_position_embeddings": 64, "rope_theta": 100.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [5.0, 6.0, 7.0, 8.0]}


def frequencies(data: dict[str, Any], served: int = 64, dim: int = 8) -> np.ndarray:
    return rope.frequencies(rope.read(PLAIN | data, dim), max_length=64, served_length=served)


def turned(x: np.ndarray, positions: list[int], embeddings: rope.Rope) -> np.ndarray:
    by = rope.rotation(inp.asarray(positions), embeddings, max_length=64, served_length=64, dtype="float32")
    return np.asarray(rope.rotate(inp.asarray(x), by, embeddings))


def test_default() -> None:
    np.testing.assert_allclose(frequencies({}), [1, 100**-0.25, 100**-0.5, 100**-0.75], rtol=1e-6)


def test_linear() -> None:
    np.testing.assert_allclose(
        frequencies({"rope_scaling": {"type": "linear", "factor": 4}}), frequencies({}) / 4
    )


def test_dynamic_is_chosen_for_the_length_that_is_served() -> None:
    data = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    np.testing.assert_array_equal(frequencies(data, served=64), frequencies({}))
    base = 100.0 * (2.0 * 96 / 64 - 1.0) ** (8 / 6)
    np.testing.assert_allclose(frequencies(data, served=96), base ** (-np.arange(4) / 4), rtol=1e-6)


@pytest.mark.parametrize("original, factors", [(64, "short_factor"), (32, "long_factor")])
def test_longrope_divides_by_the_factors_of_the_length_that_is_served(original: int, factors: str) -> None:
    data = {"rope_scaling": LONG, "original_max_position_embeddings": original}
    np.testing.assert_allclose(frequencies(data), frequencies({}) / np.asarray(LONG[factors]), rtol=1e-6)


def test_longrope_sharpens_attention() -> None:
    found = rope.read(PLAIN | {"rope_scaling": LONG, "original_max_position_embeddings": 16}, 8)
    assert found.scaling.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert rope.read(PLAIN | {"rope_scaling": LONG}, 8).scaling.attention_factor == 1.0


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_old_names_of_longrope(name: str) -> None:
    own = rope.read(PLAIN | {"rope_scaling": {**LONG, "rope_type": None, "type": name}}, 8)
    assert own == rope.read(PLAIN | {"rope_scaling": LONG}, 8)


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("dim", [8, 6])
def test_pairs_turn_by_their_angles_and_the_rest_stays(is_interleaved: bool, dim: int) -> None:
    embeddings = rope.Rope(dim=dim, theta=100.0, is_interleaved=is_interleaved)
    x = np.random.default_rng(0).normal(size=(3, 2, 8)).astype(np.float32)
    half = dim // 2
    first, second = (
        (x[..., 0:dim:2], x[..., 1:dim:2]) if is_interleaved else (x[..., :half], x[..., half:dim])
    )
    pairs = first + 1j * second
    angles = np.asarray([0, 5, 9])[:, None, None] * 100.0 ** (-np.arange(half) / half)
    pairs = pairs * np.exp(1j * angles)
    expected = np.concatenate([pairs.real, pairs.imag, x[..., dim:]], axis=-1)
    np.testing.assert_allclose(turned(x, [0, 5, 9], embeddings), expected, atol=1e-5)


def test_a_share_of_the_head_may_be_said_in_both_places() -> None:
    for data in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        assert rope.read(PLAIN | data, 16).dim == 8
