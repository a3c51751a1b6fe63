"""Attention over keys in blocks over a mesh: heads are split with the cache, and nothing is communicated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition
from infini.core import check
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh

HEADS, CACHE, WHOLE = P(None, "tp"), P(None, "tp"), P()


def step(query: Any, new: Any, keys: Any, values: Any, table: Any, lengths: Any, starts: Any) -> Any:
    """Writes keys, and attends to them."""
    slots = inp.asarray([5, 6, 7, 17])
    keys, values = lax.paged_update(keys, new, slots), lax.paged_update(values, 2 * new, slots)
    return lax.paged_attention(query, keys, values, table, lengths, starts), keys, values


def operands(heads: int, key_heads: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    floats = [(4, heads, 8), (4, key_heads, 8), (6, key_heads, 4, 8), (6, key_heads, 4, 8)]
    found = [rng.normal(size=shape).astype(np.float32) for shape in floats]
    integers = ([[2, 1], [4, 3]], [8, 6], [0, 3, 4])
    return found + [np.array(x, np.int32) for x in integers]


SPLIT = [HEADS, HEADS, CACHE, CACHE, WHOLE, WHOLE, WHOLE]


def test_heads_are_split_with_the_cache_for_nothing() -> None:
    mesh = AbstractMesh(("tp",), (2,))
    program = inf.make_jaxpr(step)(*operands(8, 4))
    found = partition.partition(program, mesh, [tuple(s) for s in SPLIT])
    check.check(found.program)
    assert not Counter(c.name for c in found.collectives)
    assert found.out_specs == (tuple(HEADS), tuple(CACHE), tuple(CACHE))


def test_queries_of_one_key_head_are_split_beside_a_whole_cache() -> None:
    mesh = AbstractMesh(("tp",), (2,))
    program = inf.make_jaxpr(lax.paged_attention)(*(operands(8, 1)[i] for i in (0, 2, 3, 4, 5, 6)))
    found = partition.partition(program, mesh, [tuple(HEADS), *[()] * 5])
    assert not found.collectives
    assert found.out_specs == (tuple(HEADS),)


@pytest.mark.parametrize("count", [2, 4])
def test_a_split_step_gives_what_one_device_gives(count: int) -> None:
    arrays = operands(8, 4)
    with inf.config(cpu_devices=4):
        expected = inf.jit(step)(*arrays)
        mesh = make_mesh((count,), ("tp",))
        placed = [inf.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, SPLIT, strict=True)]
        for found, wanted in zip(inf.jit(step)(*placed), expected, strict=True):
            np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-6)
