"""Elementwise operations: what their functions accept and refuse, and what the oracle tests cannot say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.core import dtypes, errors, primitive
from infini.testing import gradients

FLOAT8 = [np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]


# --- what functions refuse ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lax.sign(True), "sign does not take"),
        (lambda: lax.round(True), "round does not take"),
        (lambda: lax.abs(np.uint8(3)), "abs does not take"),
        (lambda: lax.add(True, True), "add does not take"),
        (lambda: lax.square(True), "square does not take"),
        (lambda: lax.exp(1), "exp does not take"),
        (lambda: lax.shift_left(True, True), "shift_left does not take"),
        (lambda: lax.lt(1j, 1j), "lt does not take"),
        (lambda: lax.real(1.0), "real does not take"),
        (lambda: lax.complex(1, 2), "complex does not take"),
        (lambda: lax.bitwise_and(1.0, 2.0), "and does not take"),
        (lambda: lax.pow(np.int32(2), np.int32(3)), "pow does not take"),
        (lambda: lax.add(1, 2.0), "operands of one dtype"),
        (lambda: lax.add(np.arange(3), 1.5), "operands of one dtype"),
        (lambda: lax.atan2(1.0, 1j), "operands of one dtype"),
        (lambda: lax.add(np.ones(3), np.ones((2, 3))), "operands of equal shape"),
        (lambda: lax.integer_pow(3, -1), "no negative powers"),
        (lambda: lax.reciprocal(2), "no negative powers"),
        (lambda: lax.clamp(np.zeros(2), np.ones(3), 1.0), "scalars or of the shape"),
        (lambda: lax.clamp(0.0, np.arange(3), 1.0), "operands of one dtype"),
        (lambda: lax.select_n(True, 1.0, 2.0, 3.0), "at most two cases"),
        (lambda: lax.select_n(True), "at least one case"),
        (lambda: lax.select_n(np.array([True]), np.ones(2), np.ones(2)), "of one shape"),
        (lambda: lax.select_n(1.5, 1.0, 2.0), "select_n does not take"),
        (lambda: lax.convert_element_type(1 + 2j, "float32"), "does not become real"),
        (lambda: lax.bitcast_convert_type(np.ones(2, bool), "uint8"), "no bool or complex"),
        (lambda: lax.bitcast_convert_type(np.ones(4, "uint8"), "uint16"), "last dimension"),
        (lambda: lax.reduce_precision(1.0, 0, 3), "a format with bits"),
        (lambda: lax.exp(1.0, accuracy=3), "accuracy is not understood"),
        (lambda: inf.grad(lax.betainc)(1.0, 2.0, 0.5), "no derivative by a"),
        (lambda: inf.grad(lax.zeta)(2.0, 1.0), "no derivative by x"),
        (lambda: inf.grad(lax.nextafter)(1.0, 2.0), "no derivative by x1"),
        (lambda: inf.grad(lax.polygamma)(1.0, 2.0), "no derivative by m"),
    ],
)
def test_a_wrong_operand_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(errors.InfiniError, match=message):
        call()


def test_python_numbers_take_the_dtype_of_the_array() -> None:
    x = np.ones(3, ml_dtypes.bfloat16)
    assert lax.mul(x, 0.5).dtype == dtypes.bfloat16
    assert lax.max(x, 0).dtype == dtypes.bfloat16
    assert lax.clamp(0, x, 1).dtype == dtypes.bfloat16


def test_arrays_of_one_rank_broadcast_and_scalars_do() -> None:
    found = lax.add(np.ones((3, 1), np.float32), np.ones((1, 2), np.float32))
    assert found.shape == (3, 2)
    assert lax.add(np.ones(3, np.float32), np.float32(1)).shape == (3,)


def test_weak_numbers_stay_weak() -> None:
    assert lax.exp(1.0).weak and lax.integer_pow(2.0, 3).weak and lax.real(1j).weak
    assert not lax.convert_element_type(1.0, "float32").weak


# --- choice -------------------------------------------------------------------------------------


def test_select_n_chooses_by_number() -> None:
    cases = [np.full(6, i, np.float32) for i in range(3)]
    found = lax.select_n(np.array([0, 1, 2, 1, -1, 7], np.int32), *cases)
    np.testing.assert_array_equal(found, [0, 1, 2, 1, 0, 2])
    np.testing.assert_array_equal(lax.select_n(np.int8(1), *cases), cases[1])


def test_select_n_by_number_has_a_derivative() -> None:
    which = np.array([0, 2, 1], np.int32)

    def chosen(x: Any) -> Any:
        return lax.reduce_sum(lax.select_n(which, x, lax.mul(x, 2.0), lax.mul(x, 3.0)), (0,))

    np.testing.assert_array_equal(inf.grad(chosen)(np.ones(3, np.float32)), [1, 3, 2])


def test_clamp_gives_the_upper_limit_where_limits_cross_and_keeps_nan() -> None:
    x = np.array([1.0, np.nan, 5.0], np.float32)
    np.testing.assert_array_equal(lax.clamp(3.0, x, 2.0), [2, np.nan, 2])


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", ["uint8", "int16", "float16", "bfloat16", "float8_e5m2"])
def test_bitcast_to_narrower_and_back(narrow: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**31, (3, 4), dtype=np.int32)
    parts = lax.bitcast_convert_type(x, narrow)
    assert parts.shape == (3, 4, 4 // parts.dtype.itemsize)
    np.testing.assert_array_equal(np.asarray(parts).view(np.uint8).reshape(-1), x.view(np.uint8).reshape(-1))
    np.testing.assert_array_equal(lax.bitcast_convert_type(parts, "int32"), x)


def test_shifts_beyond_the_width() -> None:
    x, y = np.array([-5, -5, -5, 5], np.int32), np.array([31, 32, -1, 40], np.int32)
    np.testing.assert_array_equal(lax.shift_right_arithmetic(x, y), [-1, -1, -1, 0])
    np.testing.assert_array_equal(lax.shift_right_logical(x, y), [1, 0, 0, 0])
    unsigned = np.array([200, 100], np.uint8)
    np.testing.assert_array_equal(lax.shift_right_arithmetic(unsigned, np.uint8([1, 1])), [228, 50])


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_upper_half_of_products(dtype: str, rng: np.random.Generator) -> None:
    info = np.iinfo(dtype)
    ends = np.array([info.min, info.max, 0, 1], dtype)
    a, b = (np.concatenate([rng.integers(info.min, info.max, 40, dtype), x]) for x in (ends, ends[::-1]))
    exact = [(int(p) * int(q)) >> info.bits for p, q in zip(a, b, strict=True)]
    with inf.config(host64="keep"):
        np.testing.assert_array_equal(lax.mulhi(a, b), np.array(exact, dtype))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_every_float8_becomes_float32_and_stays(dtype: np.dtype, device: str) -> None:
    codes = np.arange(256, dtype=np.uint8).view(dtype)
    with inf.config(device=device):
        wide = np.asarray(inf.jit(lambda x: lax.convert_element_type(x, "float32"))(codes))
        back = np.asarray(inf.jit(lambda x: lax.convert_element_type(x, dtype))(wide))
        kept = np.asarray(inf.jit(lambda x: lax.select(lax.eq(x, x), x, x))(codes))
    np.testing.assert_array_equal(wide, codes.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(wide), np.signbit(codes.astype(np.float32)))
    np.testing.assert_array_equal(back.view(np.uint8), codes.astype(np.float32).astype(dtype).view(np.uint8))
    np.testing.assert_array_equal(kept.view(np.uint8), codes.view(np.uint8))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float32_becomes_the_nearest_float8(dtype: np.dtype, rng: np.random.Generator) -> None:
    codes = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    numbers = np.unique(codes[np.isfinite(codes)])
    ties = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    far = np.array([464, 465, 480, 61440, 61439.996, 65536, 1e30, np.inf, np.nan, 1e-45, 0.0], np.float32)
    anything = rng.integers(0, 2**32, 1 << 16, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([numbers, ties, *near, far, -far, anything])
    found = np.asarray(inf.jit(lambda x: lax.convert_element_type(x, dtype))(x))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found.view(np.uint8), x.astype(dtype).view(np.uint8))


def test_float8_is_rounded_after_every_operation() -> None:
    x = np.array([1.125, 1.25, 3.5], ml_dtypes.float8_e4m3fn)
    wide = x.astype(np.float32)
    product = (wide * wide).astype(x.dtype).astype(np.float32)
    found = inf.jit(lambda x: lax.add(lax.mul(x, x), x))(x)
    np.testing.assert_array_equal(
        np.asarray(found).astype(np.float32), (product + wide).astype(x.dtype).astype(np.float32)
    )


def test_complex_numbers_become_real_with_a_warning() -> None:
    with pytest.warns(np.exceptions.ComplexWarning, match="imaginary part"):
        assert lax.convert_element_type(np.complex64(1 + 2j), "float32").item() == 1.0


def test_whole_numbers_of_any_size_become_what_is_asked_for() -> None:
    assert lax.convert_element_type(2**40, "float32").item() == 2.0**40
    assert lax.convert_element_type(300, "uint8").item() == 44
    assert lax.convert_element_type(float("nan"), "int32").item() == 0
    assert lax.convert_element_type(np.float32(300), "uint8").item() == 255


def test_reduce_precision_keeps_the_dtype() -> None:
    x = np.array([1.23456, 65519.0, 65520.0, 6.1e-5, np.nan, -0.0], np.float32)
    found = np.asarray(lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10))
    np.testing.assert_array_equal(found, np.array([1.234375, 65504, np.inf, 0, np.nan, 0], np.float32))
    assert np.signbit(found[-1])


# --- derivatives at edges -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "x", "slope"),
    [
        (lax.abs, 0.0, 1.0),
        (lambda x: lax.pow(x, np.float32(0.0)), 0.0, np.nan),
        (lambda x: lax.pow(x, np.int32(0)), 0.0, 0.0),
        (lambda x: lax.pow(x, np.int32(1)), 0.0, 1.0),
        (lambda x: lax.pow(np.float32(0.0), x), 2.0, 0.0),
        (lambda x: lax.integer_pow(x, 0), 0.0, 0.0),
        (lambda x: lax.max(x, 1.0), 1.0, 0.5),
        (lambda x: lax.clamp(1.0, x, 2.0), 1.0, 0.0),
        (lambda x: lax.clamp(1.0, x, 2.0), 1.5, 1.0),
        (lambda x: lax.atan2(x, x), 0.0, np.nan),
        (lax.sqrt, 0.0, np.inf),
        (lax.asin, 1.0, np.inf),
        (lax.bessel_i1e, 0.0, 0.5),
        (lax.round, 0.5, 0.0),
        (lambda x: lax.rem(x, 3.0), 7.0, 1.0),
        (lambda x: lax.rem(np.float32(-7.0), x), 3.0, 2.0),
    ],
)
def test_slope_at_an_edge(function: Callable[..., Any], x: float, slope: float) -> None:
    np.testing.assert_equal(float(inf.grad(function)(np.float32(x))), slope)


def test_slope_of_the_size_of_complex_numbers() -> None:
    z = np.array([3 + 4j, 0j], np.complex64)
    with inf.config(device="reference"):
        np.testing.assert_allclose(inf.vmap(inf.grad(lax.abs))(z), [0.6 - 0.8j, 0], rtol=1e-6)


def test_logistic_vanishes_as_the_exponential_does() -> None:
    x = np.array([-86, -88.5, -89, -95, -103, -104, -1000, -np.inf, 0, -0.0, 88, np.inf, np.nan], np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    decomposed = lax.logistic_p.rule(primitive.DECOMPOSE)
    for device in ("cpu", "reference"):
        with inf.config(device=device):
            for function in (lax.logistic, lambda x: decomposed(x)[0]):
                found = np.asarray(inf.jit(function)(x))
                np.testing.assert_allclose(found, exact.astype(np.float32), rtol=3e-7, atol=3e-45)


@pytest.mark.parametrize("name", ["tanh", "exp2", "atan", "lgamma", "erfc", "logistic", "cbrt", "asinh"])
def test_third_derivative(name: str) -> None:
    function = getattr(lax, name)
    with inf.config(host64="keep"):
        gradients.check_grads(function, [np.array([0.7, 1.3])], order=3, atol=1e-3, rtol=1e-3)
