"""Design 4a.10: a cache that is carried or donated is updated in place: no step copies it."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax

LAYERS, LENGTH, WIDTH = 4, 256, 64
CACHE = LENGTH * WIDTH * 4


def decode(is_scanned):
    def layer(x, cache, i):
        cache = lax.dynamic_update_slice(cache, x[None], (i, 0))
        return inp.tanh(cache.sum(axis=0) + x), cache

    def scanned(x, caches, i):
        return lax.scan(lambda x, cache: layer(x, cache, i), x, caches)

    def unrolled(x, caches, i):
        out = []
        for n in range(LAYERS):
            x, cache = layer(x, caches[n], i)
            out.append(cache)
        return x, out

    return scanned if is_scanned else unrolled


def arguments(is_scanned):
    caches = inp.zeros((LAYERS, LENGTH, WIDTH))
    return inp.ones(WIDTH), caches if is_scanned else [caches[n] for n in range(LAYERS)], 3


@pytest.mark.parametrize("is_scanned", [True, False])
def test_a_decode_step_makes_no_temporary_of_the_size_of_the_cache(is_scanned):
    step = infini.jit(decode(is_scanned), donate_argnums=1, donation="require")
    memory = step.lower(*arguments(is_scanned)).compile().memory_analysis()
    assert memory["temp bytes"] < CACHE
    assert memory["alias bytes"] >= LAYERS * CACHE


@pytest.mark.parametrize("is_scanned", [True, False])
def test_a_decode_step_copies_no_cache(is_scanned):
    step = infini.jit(decode(is_scanned), donate_argnums=1, donation="require")
    cost = step.lower(*arguments(is_scanned)).compile().cost_analysis()
    assert cost["copied bytes"] < CACHE


@pytest.mark.parametrize("is_scanned", [True, False])
def test_in_place_updates_change_no_result(is_scanned):
    plain, donated = infini.jit(decode(is_scanned)), infini.jit(decode(is_scanned), donate_argnums=1)
    expected = plain(*arguments(is_scanned))
    found = donated(*arguments(is_scanned))
    for a, b in zip(infini.tree.leaves(expected), infini.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
