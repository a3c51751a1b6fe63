"""Blocks of floats: what they hold, and how large the errors are."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
from infini.core import errors
from infini.io import gguf
from tests.io.gguf import tensors as tensors_

# Mean squared errors of llama.cpp's ggml_quantize_chunk on the same tensors, recorded in November 2026.
LLAMA_CPP = {
    "normal": {"Q4_K": 2.044513e-06, "Q5_K": 5.227398e-07, "Q6_K": 1.264751e-07},
    "heavy tails": {"Q4_K": 1.064640e-05, "Q5_K": 2.742209e-06, "Q6_K": 8.536183e-07},
    "laplace": {"Q4_K": 5.777723e-06, "Q5_K": 1.481692e-06, "Q6_K": 3.806278e-07},
    "uniform": {"Q4_K": 9.897602e-04, "Q5_K": 2.520538e-04, "Q6_K": 5.875854e-05},
    "rows of different sizes": {"Q4_K": 5.374830e-06, "Q5_K": 1.368678e-06, "Q6_K": 3.360861e-07},
    "columns of different sizes": {"Q4_K": 2.659854e-05, "Q5_K": 7.268964e-06, "Q6_K": 2.254472e-06},
    "to one side": {"Q4_K": 2.562911e-06, "Q5_K": 6.337216e-07, "Q6_K": 4.712176e-07},
    "positive": {"Q4_K": 7.183266e-07, "Q5_K": 1.720373e-07, "Q6_K": 1.261712e-07},
    "mostly zero": {"Q4_K": 2.518031e-04, "Q5_K": 1.375479e-04, "Q6_K": 7.047530e-06},
    "large": {"Q4_K": 5.112442e03, "Q5_K": 1.306359e03, "Q6_K": 3.153735e02},
}
MADE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0")


def _error(x, type):
    return float(((gguf.dequantize(gguf.quantize(x, type), type).astype(np.float64) - x) ** 2).mean())


@pytest.mark.parametrize("type", ["Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("kind", LLAMA_CPP)
def test_errors_are_not_larger_than_those_of_llama_cpp(kind, type):
    assert _error(tensors_.tensors()[kind], type) <= LLAMA_CPP[kind][type]


@pytest.mark.parametrize("type", MADE)
def test_zeros_stay_zeros(type):
    found = gguf.dequantize(gguf.quantize(np.zeros((2, 512), np.float32), type), type)
    np.testing.assert_array_equal(found, np.zeros((2, 512)))


@pytest.mark.parametrize("type", ["Q4_K", "Q5_K"])
def test_numbers_on_the_grid_of_a_type_are_kept(type):
    top = 15 if type == "Q4_K" else 31
    codes = np.random.default_rng(0).integers(0, top + 1, (4, 8, 32))
    codes[:, :, 0], codes[:, :, 1] = 0, top
    x = (codes * 63 * 0.5 - 63 * 0.25).reshape(4, 256).astype(np.float32)
    np.testing.assert_allclose(gguf.dequantize(gguf.quantize(x, type), type), x, rtol=2e-3, atol=0.02)


@pytest.mark.parametrize("type", MADE)
def test_the_number_of_threads_changes_nothing(type):
    x = np.random.default_rng(1).standard_normal((600, 256)).astype(np.float32)
    with inf.config(num_threads=1):
        one = gguf.quantize(x, type)
    with inf.config(num_threads=3):
        np.testing.assert_array_equal(gguf.quantize(x, type), one)


@pytest.mark.parametrize("type", MADE)
def test_subnormal_and_huge_numbers_give_finite_blocks(type):
    x = np.random.default_rng(2).standard_normal((2, 256)).astype(np.float32)
    for scale in (1e-30, 1e-6, 1e3):
        assert np.isfinite(gguf.dequantize(gguf.quantize(x * np.float32(scale), type), type)).all()


def test_any_float_is_quantised():
    x = np.random.default_rng(3).standard_normal((2, 256))
    expected = gguf.quantize(x.astype(np.float32), "Q8_0")
    np.testing.assert_array_equal(gguf.quantize(x, "Q8_0"), expected)


def test_leading_dimensions_stay():
    assert gguf.quantize(np.ones((2, 3, 512), np.float32), "Q6_K").shape == (2, 3, 420)


def test_rows_that_blocks_do_not_divide_are_an_error():
    with pytest.raises(errors.ValueMismatchError, match="whole blocks of Q4_K"):
        gguf.quantize(np.ones((2, 300), np.float32), "Q4_K")


def test_types_that_nothing_makes_are_an_error():
    with pytest.raises(errors.UnsupportedError, match="IQ2_XS"):
        gguf.quantize(np.ones((2, 256), np.float32), "IQ2_XS")


def test_bytes_of_another_size_are_no_blocks():
    with pytest.raises(errors.TypeMismatchError, match="Q6_K"):
        gguf.dequantize(np.zeros((2, 100), np.uint8), "Q6_K")


@pytest.mark.parametrize("type", ["Q8_K", "I32"])
def test_types_that_are_no_floats_are_an_error(type):
    found = gguf.type_of(type)
    with pytest.raises(errors.UnsupportedError, match=type):
        gguf.dequantize(np.zeros((1, found.block_nbytes), np.uint8), type)


def test_bits_of_one_and_two_are_signs_and_levels():
    """Q1_0 and Q2_0, which the package gguf does not read: a float16 and then codes, lowest bits first."""
    one = np.concatenate([np.array([2.0], np.float16).view(np.uint8), np.full(16, 0b0000_0101, np.uint8)])
    np.testing.assert_array_equal(gguf.dequantize(one[None], "Q1_0")[0, :8], [2, -2, 2, -2, -2, -2, -2, -2])
    two = np.concatenate([np.array([2.0], np.float16).view(np.uint8), np.full(16, 0b11_10_01_00, np.uint8)])
    np.testing.assert_array_equal(gguf.dequantize(two[None], "Q2_0")[0, :4], [-2, 0, 2, 4])
