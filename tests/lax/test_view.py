"""Views: every function of the family equals NumPy's, may be batched and differentiated, and refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import check_grads

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

ROWS: list[tuple[Any, Any]] = [
    (lambda x: lax.reshape(x, (4, 6), (2, 0, 1)), X.transpose(2, 0, 1).reshape(4, 6)),
    (lambda x: lax.collapse(x, 1), X.reshape(2, 12)),
    (lambda x: lax.collapse(x, 0, 2), X.reshape(6, 4)),
    (lambda x: lax.transpose(x, (2, 0, 1)), X.transpose(2, 0, 1)),
    (lambda x: lax.broadcast(x, (2,)), np.stack([X, X])),
    (lambda x: lax.broadcast_to_rank(x, 5), X[None, None]),
    (lambda x: lax.broadcast_like(x[:, :1], x), np.repeat(X[:, :1], 3, 1)),
    (lambda x: lax.index_in_dim(x, -1, 1), X[:, -1:]),
    (lambda x: lax.index_in_dim(x, 1, 2, keepdims=False), X[:, :, 1]),
    (lambda x: lax.slice_in_dim(x, -3, None, 2, 2), X[:, :, -3::2]),
    (lambda x: lax.split(x, (1, 0, 3), 2)[2], X[:, :, 1:]),
    (lambda x: lax.unstack(x, 1)[2], X[:, 2]),
    (lambda x: lax.stack([x, -x], 1), np.stack([X, -X], 1)),
    (lambda x: lax.tile(x, (2, 1, 3)), np.tile(X, (2, 1, 3))),
    (lambda x: lax.concatenate(x, 1), np.concatenate(X, 1)),
    (lambda x: lax.rev(x, (0, 2)), X[::-1, :, ::-1]),
    (lambda x: lax.full_like(x, 3), np.full_like(X, 3)),
    (lambda x: lax.pad(x, 9.0, [(1, 0, 0), (-1, -1, 0), (0, 1, 2)])[1:, :, :-1:3], X[:, 1:2]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "expected"), ROWS, ids=range(len(ROWS)))
def test_equals_numpy(function: Any, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(function(X), expected)
    np.testing.assert_array_equal(inf.jit(function)(X), expected)
    batch = np.stack([X, X + 1])
    rows = inf.vmap(function)(batch)
    np.testing.assert_array_equal(rows, np.stack([np.asarray(function(row)) for row in batch]))


@pytest.mark.parametrize(("function", "expected"), ROWS[:-2], ids=range(len(ROWS) - 2))
def test_derivatives(function: Any, expected: np.ndarray) -> None:
    with inf.config(host64="keep"):
        check_grads(function, (X.astype(np.float64),), order=1, atol=1e-6, rtol=1e-6)


def test_the_fill_of_a_pad_may_be_batched_and_differentiated() -> None:
    x, fills = inp.ones((2, 3)), inp.arange(2.0)

    def pad(x: Any, fill: Any) -> Any:
        return lax.pad(x, fill, [(1, 1, 1)])

    found = inf.vmap(pad)(x, fills)
    assert found[1].tolist() == [1, 1, 1, 1, 1, 1, 1] and found[0].tolist() == [0, 1, 0, 1, 0, 1, 0]
    shared = inf.vmap(pad, in_axes=(None, 0))(x[0], fills)
    np.testing.assert_array_equal(shared, found)
    of_x, of_fill = inf.grad(lambda x, f: (inf.vmap(pad)(x, f) * inp.arange(7.0)).sum(), argnums=(0, 1))(
        x, fills
    )
    assert of_fill.tolist() == [12, 12] and of_x.tolist() == [[1, 3, 5], [1, 3, 5]]


def test_weak_flags_of_filled_arrays() -> None:
    assert lax.full((2,), 1).weak_type and not lax.full((2,), 1, "int32").weak_type
    assert lax.full_like(2.0, 1).weak_type and not lax.full_like(inp.ones(2), 1).weak_type


def test_filled_arrays_may_be_split() -> None:
    with inf.config(device="reference", cpu_devices=2):
        placement = NamedSharding(make_mesh((2,), ("data",)), P("data"))
        found = inf.jit(lambda: lax.full((4,), 3.0, sharding=placement))()
        assert found.sharding == placement and found.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: lax.reshape(x, (-1,)), lambda x: lax.reshape(x, (5,)),
        lambda x: lax.transpose(x, (0, 0, 1)), lambda x: lax.squeeze(x, (0,)),
        lambda x: lax.expand_dims(x, (0, 0)), lambda x: lax.slice(x, (0,), (1,)),
        lambda x: lax.slice(x, (0, 0, 0), (3, 3, 4)), lambda x: lax.index_in_dim(x, 9),
        lambda x: lax.rev(x, (3,)), lambda x: lax.pad(x, 0.0, [(0, 0, 0)]),
        lambda x: lax.pad(x, 0.0, [(-9, 0, 0), (0, 0, 0), (0, 0, 0)]),
        lambda x: lax.concatenate([x, x[0]], 0), lambda x: lax.concatenate([], 0),
        lambda x: lax.split(x, (1,), 1), lambda x: lax.tile(x, (1,)), lambda x: lax.stack([x, x[0]]),
        lambda x: lax.full((2,), x), lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2, 1)),
        lambda x: lax.broadcast_shapes((2,), (3,)), lambda x: lax.broadcasted_iota("int32", (2,), 1),
        lambda x: lax.iota("bool", 2), lambda x: lax.collapse(x, 2, 1),
    ],
    ids=range(22),
)  # fmt: skip
def test_refusals_have_four_parts(call: Any) -> None:
    with pytest.raises(errors.InfiniError) as caught:
        call(inp.asarray(X))
    assert caught.value.what and caught.value.got and caught.value.where
