"""Devices of a manual program that take different branches, and turn in loops as often as they like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.sharding import P, make_mesh

ROWS = P("a")


@pytest.fixture(params=["reference", "cpu"])
def four(request):
    """Four devices in this process."""
    with inf.config(device=request.param, cpu_devices=4):
        yield


def run(body: Callable[..., Any], x: np.ndarray, out: P = ROWS) -> np.ndarray:
    """A body on a mesh of two by two, its argument split over both."""
    mesh = make_mesh((2, 2), ("a", "b"))
    mapped = inf.shard_map(body, mesh=mesh, in_specs=P("a", "b"), out_specs=out, check_vma=False)
    return np.asarray(inf.jit(mapped)(x))


X = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.mark.usefixtures("four")
class TestBranches:
    def test_rows_of_a_mesh_take_different_ones(self) -> None:
        def body(x):
            first = lax.axis_index("a") == 0
            return lax.cond(first, lambda: lax.psum(x, "b"), lambda: -lax.psum(x, "b"))

        np.testing.assert_array_equal(run(body, X), [[1], [-5]])

    def test_different_collectives(self) -> None:
        def body(x):
            return lax.switch(lax.axis_index("a"), [lambda: lax.pmax(x, "b"), lambda: lax.pmin(x, "b")])

        np.testing.assert_array_equal(run(body, X), [[1], [2]])

    def test_every_device_knows_where_it_is(self) -> None:
        def body(x):
            rank = lax.axis_index(("a", "b"))
            return lax.cond(rank % 2 == 1, lambda: x + lax.axis_index("a").astype(x.dtype), lambda: -x)

        np.testing.assert_array_equal(run(body, X, P("a", "b")), [[0, 1], [-2, 4]])

    def test_several_results_and_gradients(self) -> None:
        mesh = make_mesh((2, 2), ("a", "b"))

        def body(x):
            pick = lax.axis_index("a") == 0
            one, two = lax.cond(
                pick, lambda x: (lax.psum(x * x, "b"), x), lambda x: (x.sum(keepdims=True), 3 * x), x
            )
            return one, two

        mapped = inf.shard_map(
            body, mesh=mesh, in_specs=P("a", "b"), out_specs=(P("a", "b"), P("a", "b")), check_vma=False
        )
        one, two = inf.jit(mapped)(X)
        np.testing.assert_array_equal(one, [[1, 1], [2, 3]])
        np.testing.assert_array_equal(two, [[0, 1], [6, 9]])
        found = inf.jit(inf.grad(lambda x: mapped(x)[1].sum()))(inp.asarray(X))
        np.testing.assert_array_equal(found, [[1, 1], [3, 3]])

    def test_a_group_that_is_not_together_is_an_error(self) -> None:
        def body(x):
            return lax.cond(lax.axis_index("b") == 0, lambda: lax.psum(x, "b"), lambda: x)

        with pytest.raises(errors.CollectiveError, match=r"of the group \[0, 1\] only \[0\] are there"):
            run(body, X, P("a", "b"))


@pytest.mark.usefixtures("four")
class TestLoops:
    def test_rows_of_a_mesh_turn_differently_often(self) -> None:
        def body(x):
            last = lax.axis_index("a") + 1
            return lax.while_loop(
                lambda c: c[0] < last, lambda c: (c[0] + 1, c[1] + lax.psum(x, "b")), (0, x * 0)
            )[1]

        np.testing.assert_array_equal(run(body, X), [[1], [10]])

    def test_every_device_turns_as_often_as_its_number_says(self) -> None:
        def body(x):
            rank = lax.axis_index(("a", "b"))
            return lax.fori_loop(0, rank, lambda i, c: c + lax.axis_index("b").astype(x.dtype) + 1, x)

        np.testing.assert_array_equal(run(body, X * 0, P("a", "b")), [[0, 2], [2, 6]])

    def test_a_branch_in_a_loop(self) -> None:
        def body(x):
            row = lax.axis_index("a")

            def turn(i, total):
                return total + lax.cond((i + row) % 2 == 0, lambda: lax.psum(x, "b"), lambda: x * 0 + 100)

            return lax.fori_loop(0, 2 + row, turn, x * 0)

        # Row 0 turns twice, row 1 three times, and they sum in opposite turns.
        np.testing.assert_array_equal(run(body, X), [[101], [205]])
