"""`lax.linalg.eig`: vectors of both sides, many and large matrices, numbers that are not finite,
derivatives. Values against JAX are in the parity tests, the route in `test_linalg`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.testing import check_grads

DTYPES = ("float32", "float64", "complex64", "complex128")


def drawn(rng: np.random.Generator, dtype: str, *shape: int) -> Any:
    x = rng.standard_normal(shape)
    x = x + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else x
    with inf.config(host64="keep"):
        return inf.device_put(x.astype(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 3, 3), (2, 0, 4, 4), (60, 60)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_both_sides_solve_their_equations(
    dtype: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    x = drawn(rng, dtype, *shape)
    w, left, right = (np.asarray(y) for y in lax.linalg.eig(x))
    assert w.dtype == left.dtype == right.dtype == np.result_type(x.dtype, np.complex64)
    bound = 1e-10 if w.dtype == np.complex128 else 2e-4
    a = np.asarray(x)
    adjoint = left.conj().swapaxes(-1, -2)
    np.testing.assert_allclose(a @ right, right * w[..., None, :], rtol=0, atol=bound)
    np.testing.assert_allclose(adjoint @ a, w[..., :, None] * adjoint, rtol=0, atol=bound)
    for vectors in (left, right):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-2), np.ones(w.shape), rtol=0, atol=bound)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_only_what_is_asked_for_comes_back(
    dtype: str, left: bool, right: bool, rng: np.random.Generator
) -> None:
    x = drawn(rng, dtype, 4, 4)
    options = {"compute_left_eigenvectors": left, "compute_right_eigenvectors": right}
    found = lax.linalg.eig(x, **options)
    assert len(found) == 1 + left + right
    every = lax.linalg.eig(x)
    wanted = [every[0], *([every[1]] if left else []), *([every[2]] if right else [])]
    for y, z in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(y), np.asarray(z), rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_one_bad_matrix_of_a_batch_spoils_no_other_and_prints_nothing(
    number: float, capfd: pytest.CaptureFixture[str]
) -> None:
    x = np.stack([np.diag([1.0, 2.0, 3.0]).astype(np.float32)] * 3)
    x[1, 0, 2] = number
    found = np.asarray(inp.linalg.eigvals(x))
    np.testing.assert_array_equal(found[[0, 2]], [[1, 2, 3]] * 2)
    assert np.isnan(found[1]).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_derivatives_of_values_and_vectors(dtype: str, rng: np.random.Generator) -> None:
    with inf.config(host64="keep"):
        x = drawn(rng, dtype, 2, 3, 3) + inp.asarray(np.diag([1.0, 5.0, 12.0]))
        check_grads(lambda x: inp.linalg.eigvals(x), (x,), order=1)
        check_grads(lambda x: lax.linalg.eig(x, enable_eigvec_derivs=True), (x,), order=1)


def test_a_derivative_of_vectors_has_to_be_asked_for() -> None:
    with pytest.raises(errors.UnsupportedError, match="enable_eigvec_derivs=True"):
        inf.grad(lambda x: inp.linalg.eig(x)[1].real.sum())(inp.eye(2))


def test_zeros_of_polynomials_are_found_again(rng: np.random.Generator) -> None:
    zeros = np.sort(rng.uniform(-2, 2, 5)).astype(np.float32)
    found = inp.sort(inp.roots(inp.poly(zeros)).real)
    np.testing.assert_allclose(found, zeros, atol=2e-3)
    p = inp.asarray([0.0, 0.0, 1.0, -3.0, 2.0])
    assert np.isnan(inf.jit(lambda p: inp.roots(p, strip_zeros=False))(p)).sum() == 2
    with pytest.raises(errors.ConcretizationError, match="strip_zeros=False"):
        inf.jit(inp.roots)(p)


@pytest.mark.parametrize("full", [False, True])
def test_fits_equal_those_of_numpy(full: bool, rng: np.random.Generator) -> None:
    x, w = rng.uniform(-1, 1, 20), rng.uniform(0.5, 1, 20)
    y = np.stack([x**3 - x + 0.5, np.sin(x)], 1)
    found = inp.polyfit(x, y, 3, full=full, w=w)
    wanted = np.polyfit(x, y, 3, full=full, w=w)
    np.testing.assert_allclose(found[0] if full else found, wanted[0] if full else wanted, atol=1e-4)
    if full:
        assert int(found[2]) == wanted[2]
