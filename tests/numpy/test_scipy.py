"""What `infini.scipy` and `infini.image` add to NumPy's functions, against definitions; comparisons with JAX
are in the parity tests."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import image
from infini.scipy import fft, linalg, signal, special
from infini.scipy.stats import norm
from infini.testing import assert_close, check_grads


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 5e-7), ("float64", 2e-15)])
def test_quantiles_of_the_normal_distribution(dtype: str, bound: float) -> None:
    exponents = 37 if dtype == "float32" else 300
    p = np.concatenate([10.0 ** -np.arange(1, exponents, 3), np.linspace(0.01, 0.99, 99)]).astype(dtype)
    with inf.config(host64="keep"):
        found = np.asarray(special.ndtri(inp.asarray(p)))
    wanted = np.array([NormalDist().inv_cdf(float(x)) for x in p])
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound)


def test_quantiles_and_their_function_are_inverse() -> None:
    x = inp.linspace(-3.0, 3.0, 9)
    np.testing.assert_allclose(norm.ppf(norm.cdf(x, 1.0, 2.0), 1.0, 2.0), x, atol=1e-5)
    np.testing.assert_allclose(norm.isf(norm.sf(x, 1.0, 2.0), 1.0, 2.0), x, atol=1e-5)
    check_grads(special.ndtri, (inp.array([0.1, 0.4, 0.93]),), order=1, eps=1e-3)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_cosine_transforms_are_products_with_cosines(size: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, size)).astype(np.float32)
    k, m = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    cosines = 2 * np.cos(np.pi * k * (2 * m + 1) / (2 * size))
    assert_close(fft.dct(x), (x @ cosines.T).astype(np.float32), "contraction")
    assert_close(fft.idct(fft.dct(x)), x, "contraction")
    length = np.linalg.norm(np.asarray(fft.dct(x, norm="ortho")), axis=1)
    np.testing.assert_allclose(length, np.linalg.norm(x, axis=1), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1.0), ("float64", 8.0), ("complex64", 0.01)])
def test_the_exponential_of_a_matrix(dtype: str, size: float, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((2, 4, 4)) * size / 4).astype(dtype)
    with inf.config(host64="keep"):
        found = np.asarray(linalg.expm(inp.asarray(x)))
    values, vectors = np.linalg.eig(x.astype(np.complex128))
    wanted = vectors * np.exp(values)[:, None, :] @ np.linalg.inv(vectors)
    bound = 1e-11 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound * np.abs(wanted).max())


def test_the_exponential_needs_as_many_squarings_as_allowed() -> None:
    assert np.isnan(np.asarray(linalg.expm(inp.eye(2) * 100, max_squarings=2))).all()


def test_convolutions_by_sums_and_by_spectra_agree(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((6, 9)).astype(np.float32), rng.standard_normal((3, 2)).astype(np.float32)
    for mode in ("full", "same", "valid"):
        assert_close(signal.convolve(x, y, mode, "fft"), signal.convolve(x, y, mode), "contraction")


@pytest.mark.parametrize(
    "method", ["nearest", "linear", "cubic", "lanczos3", "lanczos5", "area", "cubic-pytorch"]
)
def test_an_image_of_one_colour_stays_so(method: str) -> None:
    x = inp.full((2, 5, 7, 3), 4.0)
    for shape in ((2, 10, 3, 3), (2, 2, 7, 3)):
        np.testing.assert_allclose(image.resize(x, shape, method), np.full(shape, 4.0), rtol=1e-5)


def test_pixels_of_whole_blocks_are_their_mean(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 8)).astype(np.float32)
    blocks = x.reshape(3, 2, 2, 4).mean((1, 3))
    assert_close(image.resize(x, (3, 2), "area"), blocks, "contraction")
