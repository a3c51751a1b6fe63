"""Attention of a split sequence: every form computes what one device does, and sends what the literature
says.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import nn
from infini.sharding import NamedSharding, P, make_mesh

FORMS = ("gather", "ring", "all_to_all")
B, T, D = 2, 16, 4


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operands(heads: int = 8, key_heads: int = 8, keys: int = T) -> tuple[np.ndarray, ...]:
    return (
        numbers(B, T, heads, D),
        numbers(B, keys, key_heads, D, seed=1),
        numbers(B, keys, key_heads, D, seed=2),
    )


BIAS = numbers(8, T, T, seed=3)
NEAR = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) < 5
MASK = (np.random.default_rng(4).random((B, 1, T, T)) < 0.7) | np.eye(T, dtype=bool)
LONE = MASK & (np.arange(T) != 3)[:, None]  # row 3 looks at nothing
# Names of options: operands beside queries, keys and values, and options of `dot_product_attention`.
OPTIONS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "window behind": ({}, {"is_causal": True, "local_window_size": (3, 0)}),
    "window around": ({}, {"local_window_size": (2, 1)}),
    "bias": ({"bias": BIAS}, {"is_causal": True}),
    "bias that hides": ({"bias": np.where(NEAR, 0, -np.inf).astype(np.float32)}, {}),
    "mask": ({"mask": MASK}, {}),
    "mask of a row without keys": ({"mask": LONE}, {"is_causal": True}),
    "lengths": ({"key_value_seq_lengths": np.array([5, 16], np.int32)}, {"is_causal": True}),
}


def attention(name: str) -> Any:
    extras, options = OPTIONS[name]

    def f(q: Any, k: Any, v: Any) -> Any:
        return nn.dot_product_attention(q, k, v, **extras, **options)

    return f


def with_gradients(f: Any) -> Any:
    """Results, and gradients for queries, keys and values."""

    def run(*args: Any) -> Any:
        value, back = inf.vjp(f, *args)
        return value, *back(inp.cos(value))

    return run


def sharded(f: Any, form: str, count: int, **options: Any) -> Any:
    mesh = make_mesh((count,), ("cp",))
    return inf.shard(
        f, mesh=mesh, in_specs=P(None, "cp"), out_specs=P(None, "cp"), strategies={"attention": form}, **options
    )


def assert_equal(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_results_and_gradients_are_those_of_one_device(form: str, name: str, count: int) -> None:
    f, args = with_gradients(attention(name)), operands()
    with inf.config(device="reference", cpu_devices=8, check=1):
        assert_equal(sharded(f, form, count)(*args), inf.jit(f)(*args))
