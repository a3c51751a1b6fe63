"""Linear algebra against JAX: values, derivatives in both modes, batches, and mistakes. What JAX gave for the
programs is recorded by `linalg_table`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from tests.parity import linalg_table
from tests.parity.linalg_table import Function, general, square

RECORDED = np.load(linalg_table.RECORDED)
NAMES = [(kind, name) for kind, (_, names) in linalg_table.PROGRAMS.items() for name in names]


def close(found: Any, expected: Any, bound: float = 2e-4) -> None:
    mine, theirs = linalg_table.flat(found), linalg_table.flat(expected)
    assert len(mine) == len(theirs)
    for x, y in zip(mine, theirs, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        scale = max(1.0, float(np.nanmax(np.abs(np.where(np.isfinite(y), y, 0)), initial=0.0)))
        bound_of = 2e-3 if y.dtype == np.float16 else bound
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=bound_of, atol=bound_of * scale)


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_equals_what_jax_gave(kind: str, name: str) -> None:
    found = linalg_table.PROGRAMS[kind][0](inf, inp, name)
    places = [place for place in RECORDED.files if place.startswith(f"{kind}/{name}/")]
    close(
        found,
        [RECORDED[f"{kind}/{name}/{i}"] for i in range(len(places))],
        2e-4 if kind == "values" else 2e-3,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_jax_still_gives_what_is_recorded(kind: str, name: str) -> None:
    for i, y in enumerate(linalg_table.flat(linalg_table.PROGRAMS[kind][0](jax, jnp, name))):
        close(y, RECORDED[f"{kind}/{name}/{i}"], 2e-4 if kind == "values" else 2e-3)


MISTAKES: dict[str, tuple[Function, tuple[Any, ...]]] = {
    "norm of three axes": (lambda np_, x: np_.linalg.norm(x, 2), (np.ones((2, 2, 2)),)),
    "norm of matrices of order 3": (lambda np_, x: np_.linalg.norm(x, 3), (np.ones((2, 2)),)),
    "fro of vectors": (lambda np_, x: np_.linalg.norm(x, "fro"), (np.ones(2),)),
    "norm of a scalar": (lambda np_, x: np_.linalg.norm(x, 2), (np.float32(1),)),
    "inv not square": (lambda np_, x: np_.linalg.inv(x), (np.ones((2, 3)),)),
    "det not square": (lambda np_, x: np_.linalg.det(x), (np.ones((2, 3)),)),
    "solve sizes": (lambda np_, a, b: np_.linalg.solve(a, b), (np.ones((2, 2)), np.ones(3))),
    "qr mode": (lambda np_, x: np_.linalg.qr(x, "foo"), (np.ones((2, 2)),)),
    "eigh UPLO": (lambda np_, x: np_.linalg.eigh(x, "X"), (np.ones((2, 2)),)),
    "power not square": (lambda np_, x: np_.linalg.matrix_power(x, 2), (np.ones((2, 3)),)),
    "slogdet method": (lambda np_, x: np_.linalg.slogdet(x, method="x"), (np.eye(2),)),
    "svd full derivative": (
        lambda np_, x: grad_of(np_)(lambda y: np_.sum(np_.linalg.svd(y)[0]))(x), (general(3, 5),),
    ),
}  # fmt: skip


def grad_of(np_: Any) -> Any:
    return inf.grad if np_ is inp else jax.grad


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_raise_what_jax_raises(name: str) -> None:
    function, operands = MISTAKES[name]
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as theirs:
        function(jnp, *operands)
    built_in = next(c for c in (NotImplementedError, ValueError, TypeError) if isinstance(theirs.value, c))
    with pytest.raises(built_in) as mine:
        function(inp, *operands)
    assert isinstance(mine.value, inf.InfiniError)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("name", ["qr", "svd", "lu"])
def test_matrices_without_elements(name: str, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    close(tuple(getattr(inf.lax.linalg, name)(x)), tuple(getattr(jax.lax.linalg, name)(x)))


def test_pivots_to_permutation() -> None:
    pivots = np.array([[1, 1, 3], [2, 2, 2]], np.int32)
    close(
        inf.lax.linalg.lu_pivots_to_permutation(pivots, 5),
        jax.lax.linalg.lu_pivots_to_permutation(pivots, 5),
    )


@pytest.mark.parametrize("flags", [1, 3, 6, 8, 12, 15, 21, 28])
def test_triangular_solve(flags: int) -> None:
    names = ("left_side", "lower", "transpose_a", "conjugate_a", "unit_diagonal")
    options = {name: bool(flags >> i & 1) for i, name in enumerate(names)}
    a, b = square(3, "complex64"), general(3, 3, "complex64")
    close(inf.lax.linalg.triangular_solve(a, b, **options), jax.lax.linalg.triangular_solve(a, b, **options))
