"""`numpy.fft` against NumPy: functions, sizes, axes, norms, dtypes, `jit` and `vmap`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import errors
from infini.testing import assert_close, check_grads

NORMS = (None, "backward", "ortho", "forward")
ONE = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
TWO = ("fft2", "ifft2", "rfft2", "irfft2")
SEVERAL = ("fftn", "ifftn", "rfftn", "irfftn")


def drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    if name.startswith(("rfft", "ihfft")):
        return x.astype(np.float32)
    return (x + 1j * rng.standard_normal(shape)).astype(np.complex64)


def same(name: str, x: np.ndarray, *args: Any, **options: Any) -> None:
    found = getattr(inp.fft, name)(inp.asarray(x), *args, **options)
    wanted = getattr(np.fft, name)(x, *args, **options)
    assert found.dtype == wanted.dtype
    assert_close(found, wanted, "contraction")


@pytest.mark.parametrize("name", ONE)
def test_one_axis(name: str, rng: np.random.Generator) -> None:
    x = drawn(rng, name, (4, 6, 5))
    for norm in NORMS:
        same(name, x, norm=norm)
    for (n, axis), norm in zip(((None, 0), (1, 1), (4, -1), (9, 0)), NORMS, strict=True):
        same(name, x, n, axis, norm)


@pytest.mark.parametrize("name", TWO)
def test_two_axes(name: str, rng: np.random.Generator) -> None:
    x = drawn(rng, name, (4, 3, 5))
    places = ((None, (-2, -1)), (None, (2, 0)), ((2, 7), (0, 1)), ((1, 1), (-2, -1)))
    for (s, axes), norm in zip(places, NORMS, strict=True):
        same(name, x, s, axes, norm)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_axes(name: str, rng: np.random.Generator) -> None:
    x = drawn(rng, name, (2, 3, 4, 3))
    for axes, norm in zip((None, (3, 1), (0,), (2, 0, 1)), NORMS, strict=True):
        same(name, x, None, axes, norm)
    same(name, x, [5, 2, 3, 4], (1, 0, 3, 2), "ortho")


@pytest.mark.parametrize("name", SEVERAL)
def test_more_than_three_axes_go_one_group_after_another(name: str, rng: np.random.Generator) -> None:
    x = drawn(rng, name, (2, 3, 2, 3, 2, 3, 4))
    same(name, x)
    same(name, x, (3, 2, 1, 2, 3, 2, 5), range(7))


@pytest.mark.parametrize("name", ("fft", "rfft", "irfft", "fftn"))
def test_an_empty_batch_stays_empty(name: str, rng: np.random.Generator) -> None:
    x = drawn(rng, name, (0, 4))
    same(name, x, **({"axes": (1,)} if name == "fftn" else {}))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8", "float16", "float32", "complex64"])
def test_dtypes_of_results(dtype: str) -> None:
    x = inp.ones(4, dtype)
    assert inp.fft.fft(x).dtype == "complex64"
    assert inp.fft.irfft(x).dtype == "float32"
    if dtype not in ("float16", "complex64"):
        assert inp.fft.rfft(x).dtype == "complex64"


@pytest.mark.parametrize("dtype", ["int64", "float64", "complex128"])
def test_64_bits_stay_64_bits(dtype: str) -> None:
    x = inp.ones(4, dtype)
    assert inp.fft.fft(x).dtype == "complex128"
    assert inp.fft.irfft(x).dtype == "float64"


@pytest.mark.parametrize("name", ONE)
def test_jit_and_vmap_change_nothing(name: str, rng: np.random.Generator) -> None:
    x = drawn(rng, name, (3, 4, 5))
    function = getattr(inp.fft, name)
    wanted = function(x, 6, 1, "ortho")
    assert_close(inf.jit(function, static_argnums=(1, 2, 3))(x, 6, 1, "ortho"), wanted, "contraction")
    assert_close(inf.vmap(lambda row: function(row, 6, 0, "ortho"))(x), wanted, "contraction")


@pytest.mark.parametrize("name", [*ONE, *SEVERAL])
def test_derivatives(name: str, rng: np.random.Generator) -> None:
    with inf.config(host64="keep"):
        x = drawn(rng, name, (3, 4))
        x = inp.asarray(x.astype("float64" if x.dtype == "float32" else "complex128"))
        check_grads(lambda x: getattr(inp.fft, name)(x, norm="ortho"), (x,), order=1)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
def test_frequencies(n: int) -> None:
    for d in (1.0, 0.25):
        assert_close(inp.fft.fftfreq(n, d), np.fft.fftfreq(n, d).astype(np.float32))
        assert_close(inp.fft.rfftfreq(n, d), np.fft.rfftfreq(n, d).astype(np.float32))
    assert inp.fft.fftfreq(n, dtype="float64").dtype == "float64"
    x = inp.fft.fftfreq(n)
    np.testing.assert_array_equal(inp.fft.ifftshift(inp.fft.fftshift(x)), x)


@pytest.mark.parametrize("axes", [None, 0, -1, (0, 2), (1,)])
def test_shifts(axes: Any) -> None:
    x = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(inp.fft.fftshift(x, axes), np.fft.fftshift(x, axes))
    np.testing.assert_array_equal(inp.fft.ifftshift(x, axes), np.fft.ifftshift(x, axes))


def test_a_convolution_is_a_product_of_spectra(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 50)).astype(np.float32)

    @inf.jit
    def convolved(x: Any, y: Any) -> Any:
        return inp.fft.irfft(inp.fft.rfft(x, 99) * inp.fft.rfft(y, 99), 99)

    assert_close(convolved(x, y), np.convolve(x, y), "contraction")


MISTAKES = {
    "size": (lambda x: inp.fft.fft(x, 0), "positive"),
    "axis": (lambda x: inp.fft.fft(x, axis=5), "no axis 5"),
    "several axes": (lambda x: inp.fft.fft(x, axis=(0, 1)), "fftn"),
    "norm": (lambda x: inp.fft.fft(x, norm="both"), "'backward', 'ortho', 'forward'"),
    "twice": (lambda x: inp.fft.fftn(x, axes=(0, 0)), "once"),
    "sizes and axes": (lambda x: inp.fft.fftn(x, s=(2,), axes=(0, 1)), "one size for each axis"),
    "three axes": (lambda x: inp.fft.fft2(x, axes=(0, 1, 0)), "fftn"),
    "many sizes": (lambda x: inp.fft.fftn(x, s=(2, 2, 2)), "more sizes than dimensions"),
    "complex": (lambda x: inp.fft.rfft(x * 1j), "real numbers only"),
    "frequencies": (lambda x: inp.fft.fftfreq([3]), "one number"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_say_what_is_wrong(name: str) -> None:
    call, text = MISTAKES[name]
    with pytest.raises(errors.ValueMismatchError, match=text):
        call(inp.ones((3, 4)))
