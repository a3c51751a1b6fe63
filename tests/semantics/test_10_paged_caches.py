"""Design 4a.10 for caches in blocks: a step of a decoder writes its keys and values in place and copies no
cache, with layers scanned and unrolled, in floats and in codes of a byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax, random

LAYERS, HEADS, KEY_HEADS, WIDTH = 3, 4, 2, 16
BLOCKS, SIZE, TOKENS = 128, 16, 5
CACHE = BLOCKS * KEY_HEADS * SIZE * WIDTH  # elements of keys or of values
MODEL = HEADS * WIDTH
KINDS = ("float32", "bfloat16", "int8", "float8_e4m3fn")
Step = Callable[..., Any]


def layer(x: Any, weights: Any, cache: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mixed = x @ weights
    cuts = (MODEL, MODEL + KEY_HEADS * WIDTH)
    query, *new = inp.split(mixed, cuts, axis=1)
    found = dict(cache)
    for name, rows in zip(("key", "value"), new, strict=True):
        rows = rows.reshape(TOKENS, KEY_HEADS, WIDTH)
        if f"{name}_scale" in cache:
            rows, scale = lax.paged_quantize(rows, cache[name].dtype)
            found[f"{name}_scale"] = lax.paged_update(cache[f"{name}_scale"], scale, batch["slots"])
        found[name] = lax.paged_update(cache[name], rows, batch["slots"])
    out = lax.paged_attention(
        query.reshape(TOKENS, HEADS, WIDTH), found["key"], found["value"], batch["tables"], batch["lengths"],
        batch["starts"], key_scales=found.get("key_scale"), value_scales=found.get("value_scale"),
    )  # fmt: skip
    return x + out.reshape(TOKENS, MODEL), found


def unrolled(x: Any, weights: Any, caches: Any, batch: Any) -> Any:
    kept = []
    for i in range(LAYERS):
        x, cache = layer(x, weights[i], caches[i], batch)
        kept.append(cache)
    return x, kept


def scanned(x: Any, weights: Any, caches: Any, batch: Any) -> Any:
    return lax.scan(lambda x, own: layer(x, own[0], own[1], batch), x, (weights, caches))


def empty(kind: str) -> dict[str, Any]:
    shape = (BLOCKS, KEY_HEADS, SIZE, WIDTH)
    cache = {name: inp.zeros(shape, kind) for name in ("key", "value")}
    if kind in ("int8", "float8_e4m3fn"):
        cache |= {f"{name}_scale": inp.zeros(shape[:3]) for name in ("key", "value")}
    return cache


def arguments(kind: str, *, is_scanned: bool) -> tuple[Any, ...]:
    """Two requests, one with four tokens and one with one, and caches of what came before."""
    key = random.key(0)
    x = random.normal(key, (TOKENS, MODEL))
    weights = 0.1 * random.normal(key, (LAYERS, MODEL, MODEL + 2 * KEY_HEADS * WIDTH))
    caches = [empty(kind) for _ in range(LAYERS)]
    if is_scanned:
        caches = infini.tree.map(lambda *layers: inp.stack(layers), *caches)
    batch = {
        "slots": inp.asarray([32, 33, 34, 35, 81]),
        "tables": inp.asarray([[2, 0], [7, 5]]),
        "lengths": inp.asarray([4, 18]),
        "starts": inp.asarray([0, 4, 5]),
    }
    return x, weights, caches, batch


@functools.cache
def compiled(kind: str, is_scanned: bool) -> Any:
    step = infini.jit(scanned if is_scanned else unrolled, donate_argnums=2, donation="require")
    return step.lower(*arguments(kind, is_scanned=is_scanned)).compile()


@pytest.mark.parametrize("is_scanned", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_copies_no_cache(kind: str, is_scanned: bool) -> None:
    executable = compiled(kind, is_scanned)
    size = inp.dtype(kind).itemsize
    assert executable.cost_analysis()["copied bytes"] < CACHE * size
    memory = executable.memory_analysis()
    assert memory["temp bytes"] < CACHE * size
    assert memory["alias bytes"] >= 2 * LAYERS * CACHE * size


@pytest.mark.parametrize("kind", KINDS)
def test_layers_scanned_and_unrolled_agree(kind: str) -> None:
    found, kept = compiled(kind, False)(*arguments(kind, is_scanned=False))
    other, stacked = compiled(kind, True)(*arguments(kind, is_scanned=True))
    np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-6)
    for i in range(LAYERS):
        for name, cache in kept[i].items():
            one, two = (np.asarray(x).astype(np.float32) for x in (cache, stacked[name][i]))
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_codes_of_a_byte_are_near_to_floats() -> None:
    found, _ = compiled("float32", False)(*arguments("float32", is_scanned=False))
    for kind, tolerance in (("int8", 0.05), ("float8_e4m3fn", 0.2)):
        coded, _ = compiled(kind, False)(*arguments(kind, is_scanned=False))
        assert np.abs(np.asarray(found) - np.asarray(coded)).max() < tolerance
