"""Fourier transforms as passes of Triton text, under its interpreter, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infini.compiler.triton import fourier, language, lower
from infini.compiler.triton.target import GENERIC
from infini.core import dtypes, ir, primitive
from infini.core.ir import ArrayType

interpret = pytest.importorskip("infini.compiler.triton.interpret")

OF_COMPLEX = {dtypes.complex64: dtypes.float32, dtypes.complex128: dtypes.float64}


def run(x: np.ndarray, fft_type: str, lengths: tuple[int, ...]) -> np.ndarray:
    op = primitive.by_name("fft")
    attrs = ir.Attrs({"fft_type": fft_type, "fft_lengths": lengths})
    (equation,) = ir.single_equation(op, (ArrayType(x.shape, x.dtype),), attrs).equations
    out = np.full(equation.output.type.shape, np.nan, equation.output.type.dtype)
    scratch = np.full(max(lower.scratch_bytes(equation), 1), 0xFF, np.uint8)
    memory = {"x0": x, "y0": out, "scratch": scratch}
    for source in lower.sources(equation):
        assert language.violations(source.text, GENERIC) == []
        interpret.launch(source, [memory[role] for role in source.roles])
    return out


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype in OF_COMPLEX:
        return (rng.uniform(-1, 1, shape) + 1j * rng.uniform(-1, 1, shape)).astype(dtype)
    return rng.uniform(-1, 1, shape).astype(dtype)


@pytest.mark.parametrize(
    "lengths", [(1,), (2,), (30,), (37,), (128,), (6, 8), (1, 5), (3, 4, 5), (289,)], ids=str
)
@pytest.mark.parametrize("fft_type", ["fft", "ifft", "rfft", "irfft"])
def test_transforms(fft_type: str, lengths: tuple[int, ...], rng: np.random.Generator) -> None:
    half = (*lengths[:-1], lengths[-1] // 2 + 1)
    shape = (2, *(half if fft_type == "irfft" else lengths))
    x = drawn(rng, shape, dtypes.float32 if fft_type == "rfft" else dtypes.complex64)
    found = run(x, fft_type, lengths)
    axes = tuple(range(-len(lengths), 0))
    wanted = getattr(np.fft, f"{fft_type}n")(
        x.astype(np.complex128 if fft_type != "rfft" else float), lengths, axes
    )
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * scale)


def test_doubles_are_exact_to_their_precision(rng: np.random.Generator) -> None:
    x = drawn(rng, (60,), dtypes.complex128)
    np.testing.assert_allclose(run(x, "fft", (60,)), np.fft.fft(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, 2, 12, 97, 1024, 1000, 30030, 2 * 1009])
def test_factors(length: int) -> None:
    found = fourier.factors(length)
    assert math.prod(found) == length
    primes = [n for n in found if n > 16]
    assert all(n == 1009 or n in (17, 97) or n < 17 for n in primes)


def test_a_power_of_two_takes_few_passes() -> None:
    assert len(fourier.passes(ArrayType((4096,), dtypes.complex64), "fft", (4096,))) == 3
