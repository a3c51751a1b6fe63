"""Determinants and their derivatives, against minors computed by NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import testing

RNG = np.random.default_rng(5)


def general(rows: int, columns: int, dtype: str = "float32") -> np.ndarray:
    x = RNG.standard_normal((rows, columns))
    return (x + 1j * RNG.standard_normal(x.shape) if dtype.startswith("complex") else x).astype(dtype)


def square(size: int, dtype: str = "float32") -> np.ndarray:
    """A well conditioned matrix."""
    return general(size, size, dtype) + 4 * np.eye(size, dtype=dtype)


def of_rank(rank: int, size: int = 5, dtype: str = "float32") -> np.ndarray:
    """A square matrix of a rank; float32 makes it singular but for rounding."""
    return general(size, rank, dtype) @ general(rank, size, dtype)


def with_zero_pivot(place: int, size: int = 5) -> np.ndarray:
    """An upper triangle with a zero on its diagonal, which elimination leaves where it is."""
    found = np.triu(np.arange(1.0, size * size + 1).reshape(size, size)).astype(np.float32)
    found[place, place] = 0
    return found


def cofactors(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    found = np.empty_like(wide)
    for i, j in np.ndindex(*x.shape):
        minor = np.delete(np.delete(wide, i, 0), j, 1)
        found[i, j] = (-1) ** (i + j) * np.linalg.det(minor)
    return found


ZERO_COLUMN = np.where(np.arange(5) == 0, 0, square(5)).astype(np.float32)
SINGULAR = {
    "regular": square(5),
    "rank 4": of_rank(4),
    "rank 3": of_rank(3),
    "rank 1": np.ones((5, 5), np.float32),
    "zero": np.zeros((5, 5), np.float32),
    "zero column": ZERO_COLUMN,
    "zero row": ZERO_COLUMN.T.copy(),
    "equal rows": square(5)[[0, 1, 2, 2, 4]],
    **{f"zero pivot {place}": with_zero_pivot(place) for place in range(5)},
    "two zero pivots": with_zero_pivot(1) * (np.arange(5) != 3),
    "wide range": np.diag([1e10, 1.0, 2.0, 1e-2]).astype(np.float32) + np.eye(4, k=1, dtype=np.float32),
    "complex": square(4, "complex64"),
    "complex rank 3": of_rank(3, 4, "complex64"),
    "one": np.zeros((1, 1), np.float32),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_the_derivative_is_the_matrix_of_cofactors(name: str) -> None:
    x = SINGULAR[name]
    found = inf.jit(inf.grad(inp.linalg.det, holomorphic=np.iscomplexobj(x)))(x)
    expected = cofactors(x)
    np.testing.assert_allclose(found, expected, rtol=3e-4, atol=1e-5 * max(np.abs(expected).max(), 1))


def test_matrices_of_a_batch_are_taken_one_by_one() -> None:
    x = np.stack([SINGULAR[name] for name in ("regular", "zero pivot 2", "zero", "rank 4")])
    found = inf.grad(lambda x: inp.linalg.det(x).sum())(x)
    for one, expected in zip(np.asarray(found), map(cofactors, x), strict=True):
        np.testing.assert_allclose(one, expected, rtol=3e-4, atol=1e-5 * max(np.abs(expected).max(), 1))
    np.testing.assert_allclose(inf.vmap(inf.grad(inp.linalg.det))(x), found, rtol=1e-5)


def test_derivatives_of_second_order_at_a_regular_matrix() -> None:
    testing.check_grads(inp.linalg.det, (square(4, "float64"),), order=2)


def test_determinants_of_empty_matrices_are_one() -> None:
    x = np.zeros((2, 0, 0), np.float32)
    assert inp.linalg.det(x).tolist() == [1, 1]
    assert inf.grad(lambda x: inp.linalg.det(x).sum())(x).shape == x.shape
