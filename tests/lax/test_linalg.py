"""Decompositions as library calls: the route, what is missing without the library, many and large ones,
failures. Small ones of every dtype are in the oracle tests, derivatives against JAX in the parity tests."""

from __future__ import annotations

import builtins
import importlib

import numpy as np
import pytest

import infini as inf
from infini import errors, lax
from infini.backends import coverage
from infini.backends.cpu import libraries

NAMES = ("cholesky", "eig", "eigh", "lu", "qr", "svd", "triangular_solve")


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_says_that_a_library_computes_it(name: str) -> None:
    (row,) = coverage.table(["cpu", "reference"], name, every_example=True)
    assert set(row.routes["cpu"].values()) == {"library"}
    assert set(row.routes["reference"].values()) == {"own"}


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise builtins.ImportError(name)

    libraries.lapack.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(errors.LoweringError, match="pip install scipy-openblas32"):
        libraries.addresses(["declare void @scipy_spotrf_(ptr)"])
    assert libraries.addresses(["declare void @other(ptr)"]) == {}


@pytest.mark.parametrize("shape", [(200, 3, 4), (130, 90), (90, 130)])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_factors_make_the_matrix_again(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape)
    x = (x + 1j * rng.standard_normal(shape) if dtype == "complex128" else x).astype(dtype)
    with inf.config(host64="keep"):
        given = inf.device_put(x)
    bound = 2e-5 if dtype == "float32" else 1e-12
    q, r = lax.linalg.qr(given, full_matrices=False)
    u, s, vh = lax.linalg.svd(given, full_matrices=False)
    packed, _, order = (np.asarray(y) for y in lax.linalg.lu(given))
    count = min(shape[-2:])
    lower = np.tril(packed[..., :count], -1) + np.eye(shape[-2], count)
    found = lower @ np.triu(packed[..., :count, :])
    rows = np.take_along_axis(x, order[..., None], -2)
    for made, wanted in (
        (q @ r, x),
        (np.asarray(u) * np.asarray(s)[..., None, :] @ np.asarray(vh), x),
        (found, rows),
    ):
        np.testing.assert_allclose(np.asarray(made), wanted, rtol=0, atol=bound * 10)


def test_eigenvectors_of_a_large_matrix(rng: np.random.Generator) -> None:
    x = rng.standard_normal((150, 150)).astype(np.float32)
    x = x + x.T
    vectors, values = (np.asarray(y) for y in lax.linalg.eigh(x))
    np.testing.assert_allclose(x @ vectors, vectors * values, rtol=0, atol=2e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(150), rtol=0, atol=1e-4)


def test_one_bad_matrix_of_a_batch_spoils_no_other() -> None:
    good = np.eye(3, dtype=np.float32) * 4
    found = np.asarray(lax.linalg.cholesky(np.stack([good, -good, good])))
    np.testing.assert_array_equal(found[[0, 2]], np.stack([np.eye(3) * 2] * 2))
    assert np.isnan(found[1][np.tril_indices(3)]).all()


def test_numbers_that_are_not_finite_give_nan() -> None:
    x = np.full((3, 3), np.nan, np.float32)
    assert np.isnan(np.asarray(lax.linalg.svd(x, compute_uv=False))).all()
    assert np.isnan(np.asarray(lax.linalg.eigh(x)[1])).all()


def test_decompositions_run_in_loops_and_branches() -> None:
    def step(x, _):
        q, r = lax.linalg.qr(x)
        return lax.cond(True, lambda: r @ q, lambda: x), None

    x = np.array([[4.0, 1.0], [1.0, 3.0]], np.float32)
    found, _ = inf.jit(lambda x: lax.scan(step, x, None, length=40))(x)
    np.testing.assert_allclose(np.diag(found), np.linalg.eigvalsh(x)[::-1], rtol=1e-5)
