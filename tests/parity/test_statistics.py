"""Covariance, correlation and finite differences against JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp

X = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
PLACES = np.cumsum(np.abs(X[0]) + 0.1).astype(np.float32)
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "cov": lambda np_: np_.cov(X),
    "cov of one": lambda np_: np_.cov(X[0]),
    "cov of columns": lambda np_: np_.cov(X, rowvar=False, bias=True),
    "cov of two": lambda np_: np_.cov(X, X[:1] ** 2, ddof=0),
    "cov with counts": lambda np_: np_.cov(X, fweights=np.arange(1, 8)),
    "cov with weights": lambda np_: np_.cov(X, fweights=np.arange(1, 8), aweights=np.abs(X[1])),
    "cov of complex": lambda np_: np_.cov(X + 1j * X[::-1]),
    "cov of integers": lambda np_: np_.cov(np.arange(6).reshape(2, 3) ** 2),
    "corrcoef": lambda np_: np_.corrcoef(X),
    "corrcoef of columns": lambda np_: np_.corrcoef(X, rowvar=False),
    "corrcoef of one": lambda np_: np_.corrcoef(X[0]),
    "gradient": lambda np_: np_.gradient(X),
    "gradient of a line": lambda np_: np_.gradient(X[0], 0.5),
    "gradient of places": lambda np_: np_.gradient(X, PLACES, axis=1),
    "gradient of two steps": lambda np_: np_.gradient(X, 2.0, PLACES),
    "gradient of integers": lambda np_: np_.gradient(np.array([1, 4, 9, 16])),
    "gradient of two samples": lambda np_: np_.gradient(np.array([1.0, 4.0])),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_equal_those_of_jax(name: str) -> None:
    found, expected = PROGRAMS[name](inp), PROGRAMS[name](jnp)
    assert isinstance(found, list) == isinstance(expected, list)
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    for x, y in pairs:
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2e-5, atol=2e-6)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        inp.cov(np.ones((2, 2, 2)))
    with pytest.raises(TypeError, match="integers"):
        inp.cov(X, fweights=np.ones(7))
    with pytest.raises(ValueError, match="fewer than two"):
        inp.gradient(np.ones(1))
    with pytest.raises(inf.InfiniError, match="one distance per axis"):
        inp.gradient(X, 1.0, 2.0, axis=0)
