"""Transformations in any order of nesting give what each of them promises: jit and checkpoint change nothing,
vmap is a loop, a gradient is the slope.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
from tests.transforms import programs

ROWS = np.array([[0.7, -0.4, 0.9], [-0.6, 0.8, 0.3]], np.float32)
ORDERS = list(itertools.permutations(("jit", "vmap", "grad", "checkpoint")))


def applied(order: tuple[str, ...], f: Callable[..., Any]) -> Callable[..., Any]:
    """The transformations in this order, innermost first. After vmap a gradient is that of the sum."""
    is_mapped = False
    for name in order:
        if name == "vmap":
            f, is_mapped = inf.vmap(f), True
        elif name == "grad":
            f = inf.grad(_summed(f)) if is_mapped else inf.grad(f)
        else:
            f = {"jit": inf.jit, "checkpoint": inf.checkpoint}[name](f)
    return f


def _summed(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: f(x).sum()


def by_rows(f: Callable[..., Any]) -> np.ndarray:
    return np.stack([np.asarray(f(row)) for row in ROWS])


@pytest.mark.parametrize("f", programs.PROGRAMS, ids=lambda f: f.__name__)
def test_any_order_of_nesting_gives_the_gradient(f: Callable[..., Any], seed: int) -> None:
    expected = by_rows(inf.grad(f))
    for order in random.Random(seed).sample(ORDERS, 3):
        found = applied(order, f)(ROWS)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5, err_msg=" then ".join(order))


@pytest.mark.parametrize("f", programs.PROGRAMS, ids=lambda f: f.__name__)
def test_the_gradient_is_the_slope(f: Callable[..., Any]) -> None:
    step = 1e-3
    for row in ROWS:
        slopes = [
            (float(f(row + step * e)) - float(f(row - step * e))) / (2 * step) for e in np.eye(3, dtype="f")
        ]
        np.testing.assert_allclose(inf.grad(f)(row), slopes, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("f", programs.FORWARD_PROGRAMS, ids=lambda f: f.__name__)
def test_forward_and_reverse_mode_agree(f: Callable[..., Any]) -> None:
    row = ROWS[0]
    np.testing.assert_allclose(inf.jacfwd(f)(row), inf.jacrev(f)(row), rtol=1e-4, atol=1e-5)
    _, push = inf.linearize(f, row)
    np.testing.assert_allclose(push(row), inf.jvp(f, (row,), (row,))[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("f", programs.FORWARD_PROGRAMS, ids=lambda f: f.__name__)
def test_second_derivatives_agree_and_are_symmetric(f: Callable[..., Any]) -> None:
    row = ROWS[1]
    expected = np.asarray(inf.jit(inf.jacfwd(inf.jacrev(f)))(row))
    np.testing.assert_allclose(expected, expected.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(inf.jit(inf.jacrev(inf.jacrev(f)))(row), expected, rtol=1e-3, atol=1e-4)
