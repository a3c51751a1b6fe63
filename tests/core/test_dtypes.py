"""Promotion with weak types (design 4a.1) and the 64-bit rule (design 4a.2)."""

import numpy as np
import pytest

import infini
from infini.core import dtypes, errors, value


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        (((dtypes.bfloat16, False), (dtypes.float32, True)), (dtypes.bfloat16, False)),
        (((dtypes.int32, False), (dtypes.float32, True)), (dtypes.float32, True)),
        (((dtypes.bfloat16, False), (dtypes.float16, False)), (dtypes.float32, False)),
        (((dtypes.uint8, False), (dtypes.int8, False)), (dtypes.int16, False)),
        (((dtypes.int64, False), (dtypes.bfloat16, False)), (dtypes.bfloat16, False)),
        (((dtypes.bool_, False), (dtypes.int32, True)), (dtypes.int32, True)),
        (((dtypes.float64, False), (dtypes.complex64, True)), (dtypes.complex128, False)),
    ],
)
def test_promotion(operands, expected):
    assert dtypes.promote(operands) == expected


def test_eight_bit_floats_do_not_promote_implicitly():
    with pytest.raises(errors.PromotionError, match="no common type"):
        dtypes.promote(((dtypes.float8_e4m3fn, False), (dtypes.float32, False)))


@pytest.mark.parametrize(
    ("host", "narrow"), [(np.float64, "float32"), (np.int64, "int32"), (np.complex128, "complex64")]
)
def test_host_data_of_64_bits_become_the_default(host, narrow):
    assert value.literal(np.ones(2, host)).dtype.name == narrow


def test_explicit_dtype_keeps_64_bits():
    assert value.literal(np.ones(2), dtypes.float64).dtype == dtypes.float64


def test_knob_keeps_64_bits():
    with infini.config(host64="keep"):
        assert value.literal(np.ones(2)).dtype == dtypes.float64


def test_integers_that_do_not_fit_are_an_error():
    with pytest.raises(OverflowError, match="does not fit int32"):
        value.literal(2**40)


def test_python_numbers_are_weak_and_numpy_numbers_are_not():
    assert value.literal(1.0).weak and value.literal(1).weak
    assert not value.literal(np.float32(1.0)).weak and not value.literal(True).weak


def test_text_is_no_dtype():
    with pytest.raises(TypeError, match="not a dtype"):
        dtypes.canonical("strange")
