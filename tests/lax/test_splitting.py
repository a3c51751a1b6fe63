"""Reductions, cumulative operations and sorting over several devices: which collectives there are, and that
results are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.compiler import partition
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import tolerances

MESH = AbstractMesh(("data",), (4,))
ROWS, COLUMNS = P("data", None), P(None, "data")
X = np.cos(np.arange(64, dtype=np.float32)).reshape(8, 8)
FLAGS, BITS = X > 0.9, (X * 100).astype(np.int32)

# function, operand, how it is split, collectives
CASES: list[tuple[Callable[..., Any], np.ndarray, P, list[str]]] = [
    (lambda x: lax.cumsum(x, 1), X, ROWS, []),
    (lambda x: lax.cumsum(x, 0), X, ROWS, ["all_gather"]),
    (lambda x: lax.cummax(x, 0), X, COLUMNS, []),
    (lambda x: lax.cumlogsumexp(x, 1, reverse=True), X, COLUMNS, ["all_gather"]),
    (lambda x: lax.cumsum(lax.reduce_sum(x, (0,)), 0), X, ROWS, ["psum"]),
    (lambda x: lax.sort(x, 1), X, ROWS, []),
    (lambda x: lax.sort((x, -x), 0), X, ROWS, ["all_to_all"] * 4),
    (lambda x: lax.sort(x[:, :3], 0), X, ROWS, ["all_gather"]),
    (lambda x: lax.top_k(x, 3), X, ROWS, []),
    (lambda x: lax.top_k(x, 3), X, COLUMNS, ["all_gather"]),  # of whole parts, which are smaller
    (lambda x: lax.argmin(x, 1, "int32"), X, ROWS, []),
    (lambda x: lax.reduce_prod(x, (1,)), X, ROWS, []),
    (lambda x: lax.reduce_prod(x, (0,)), X, ROWS, ["all_gather"]),
    (lambda x: lax.reduce_or(x, (0,)), FLAGS, ROWS, ["pmax"]),
    (lambda x: lax.reduce_and(x, (0, 1)), FLAGS, COLUMNS, ["pmin"]),
    (lambda x: lax.reduce_xor(x, (0,)), BITS, ROWS, ["all_gather"]),
]


@pytest.mark.parametrize(("function", "x", "spec", "expected"), CASES, ids=range(len(CASES)))
def test_collectives(function: Callable[..., Any], x: np.ndarray, spec: P, expected: list[str]) -> None:
    found = partition.partition(inf.make_jaxpr(function)(x), MESH, [tuple(spec)])
    assert [c.name for c in found.collectives] == expected


@pytest.mark.parametrize(("function", "x", "spec", "expected"), CASES, ids=range(len(CASES)))
def test_sharded_equals_unsharded(
    function: Callable[..., Any], x: np.ndarray, spec: P, expected: list[str]
) -> None:
    with inf.config(device="reference", cpu_devices=4, check=1):
        mesh = make_mesh((4,), ("data",))
        split = inf.jit(function)(inf.device_put(x, NamedSharding(mesh, spec)))
        for found, whole in zip(inf.tree.leaves(split), inf.tree.leaves(function(x)), strict=True):
            tolerances.assert_close(found, whole, "reduction")
